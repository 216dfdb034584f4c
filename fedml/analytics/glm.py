"""Generalised linear models from sums of sites: gaussian (identity), binomial (logit), poisson (log, with an offset); equal to pooled.

    sums = site_sums(x, y, beta, family, offset, robust=False)       # at a site; x with a column of ones first
    found = solve(asked, family, names)                              # asked(beta, robust) -> the sums of all sites, at their places

Newton's method, which for these links is iteratively reweighted least squares (McCullagh and Nelder 1989, section 2.5).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from fedml.analytics.cox import linearly_dependent

Floats = npt.NDArray[Any]
Family = Literal["gaussian", "binomial", "poisson"]
STEPS = 30
TOLERANCE = 1e-11
FAR = 30.0  # log odds or log rate of a standard deviation: separation


class Sums(NamedTuple):
    """Sums over persons: ``gradient`` (K,), ``information`` (K, K) without the dispersion, ``meat`` (K, K) of products of the scores (0
    unless asked), the log-likelihood (gaussian: -squares / 2), the squared Pearson residuals, and persons."""

    gradient: Floats
    information: Floats
    meat: Floats
    log_likelihood: float
    squares: float
    persons: int


class Solved(NamedTuple):
    """``beta`` (width,), ``information`` and ``meat`` (width, width), ``dispersion`` (1 unless gaussian)."""

    beta: Floats
    information: Floats
    meat: Floats
    log_likelihood: float
    dispersion: float
    pearson: float
    persons: int
    steps: int


def site_sums(x: Floats, y: Floats, beta: Floats, family: Family, offset: Floats | None, *, robust: bool) -> Sums:
    """The sums of a site's persons: ``x`` (persons, K), ``y`` (persons,), ``offset`` (persons,) or None."""
    eta = x @ beta + (0.0 if offset is None else offset)
    mean, weight, each = _moments(eta, y, family)
    rest = y - mean
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = np.where(weight > 0, rest**2 / weight, 0.0)
    scores = x * rest[:, None]
    meat = scores.T @ scores if robust else np.zeros((x.shape[1],) * 2)
    return Sums(x.T @ rest, (x * weight[:, None]).T @ x, meat, float(each.sum()), float(squares.sum()), len(y))


def mean_and_slope(eta: Floats, family: Family) -> tuple[Floats, Floats]:
    """The mean of each person with the linear predictor ``eta``, and its derivative by it."""
    mean, slope, _ = _moments(eta, np.zeros_like(eta), family)
    return mean, slope


def _moments(eta: Floats, y: Floats, family: Family) -> tuple[Floats, Floats, Floats]:
    """The mean, the variance function and the log-likelihood of each person."""
    if family == "gaussian":
        return eta, np.ones_like(eta), -((y - eta) ** 2) / 2
    if family == "binomial":
        small = np.exp(-np.abs(eta))
        mean = np.where(eta >= 0, 1, small) / (1 + small)
        return mean, small / (1 + small) ** 2, y * eta - np.maximum(eta, 0) - np.log1p(small)
    mean = np.exp(np.minimum(eta, 500.0))
    return mean, mean, y * eta - mean - gammaln(y + 1)


def solve(asked: Callable[[Floats, bool], Sums], family: Family, names: list[str], start: Floats) -> Solved:
    """The maximum of the likelihood, from ``start`` (width,); ``names`` (width,) of the coefficients.

    Raises:
        ValueError: columns depend on each other, or there is no finite maximum; the message names columns.
    """
    beta, last, best = start, start, -np.inf
    for number in range(STEPS):
        sums = asked(beta, False)
        if number and sums.log_likelihood < best - 1e-9 * (1 + abs(best)):
            beta = (beta + last) / 2
            continue
        if not number and (dependent := linearly_dependent(sums.information, names)):
            raise ValueError(f"{', '.join(dependent)} depend on each other or do not vary; remove one of them from covariates")
        best, last = sums.log_likelihood, beta
        try:
            move = np.linalg.solve(sums.information, sums.gradient)
        except np.linalg.LinAlgError:
            break
        if np.abs(move).max() < TOLERANCE * max(1.0, float(np.abs(beta).max())):
            final = asked(beta, True)
            left = final.persons - len(beta)
            dispersion = final.squares / left if family == "gaussian" and left > 0 else 1.0
            likelihood = final.log_likelihood
            if family == "gaussian":
                variance = final.squares / final.persons
                likelihood = -final.persons / 2 * (np.log(2 * np.pi * variance) + 1)
            return Solved(beta, final.information, final.meat, float(likelihood), dispersion, final.squares, final.persons, number + 1)
        # From far off the log link asks for steps that overshoot by as much as a rate is above 1.
        beta = beta + (np.clip(move, -FAR / 6, FAR / 6) if family == "poisson" else move)
        if family != "gaussian" and np.abs(beta).max() > FAR:
            break
    worst = names[int(np.argmax(np.abs(beta)))]
    raise ValueError(f"the likelihood has no finite maximum: {worst} separates the outcomes; remove it, or merge its levels")


def variances(found: Solved, meat: Floats | None = None) -> Floats:
    """(width, width) covariance of beta: model-based, or with ``meat`` the sandwich (White 1980, HC0; Liang and Zeger 1986, clusters)."""
    bread = np.linalg.inv(found.information)
    out: Floats = bread * found.dispersion if meat is None else bread @ meat @ bread
    return out
