"""Standardisation (g-formula): the mean outcome if everyone had each level of a category, by a regression; from sums of sites.

    sums = site_sums(Persons(x, y, offset), levels, beta, family, at)        # at a site; x and each of levels with a column of ones first
    estimates(sums, at, information, meat)                                   # of all sites

Robins 1986, Math Model 7:1393. Variances are those of the stacked estimating equations of regression and means, so that they allow for the
coefficients being estimated and for the persons being a sample (Stefanski and Boos 2002, Am Stat 56:29).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from fedml.analytics.glm import Family, mean_and_slope

Floats = npt.NDArray[Any]


class Persons(NamedTuple):
    """``x`` (persons, K), ``y`` (persons,), ``offset`` (persons,) or None."""

    x: Floats
    y: Floats
    offset: Floats | None


def site_sums(people: Persons, levels: Sequence[Floats], beta: Floats, family: Family, at: Floats) -> dict[str, Floats]:
    """Sums over persons of d = mean outcome with a level - ``at`` (levels,): ``means`` (levels,) of d, ``products`` (levels, levels) of d
    d', ``slope`` (levels, K) of the derivative of d by beta, ``cross`` (levels, K) of d times the score of the regression."""
    shift = 0.0 if people.offset is None else people.offset
    score = people.x * (people.y - mean_and_slope(people.x @ beta + shift, family)[0])[:, None]
    each = [mean_and_slope(x @ beta + shift, family) for x in levels]
    d = np.stack([mean for mean, _ in each]) - at[:, None]
    slope = np.stack([weight @ x for (_, weight), x in zip(each, levels, strict=True)])
    return {"means": d.sum(1), "products": d @ d.T, "slope": slope, "cross": d @ score}


def estimates(sums: Mapping[str, Floats], persons: int, at: Floats, information: Floats, meat: Floats) -> tuple[Floats, Floats]:
    """(levels,) means and their covariance (levels, levels), from the sums of all sites about ``at``; precise where it is near the means.

    Args:
        sums: ``slope`` and ``cross`` (levels, width) at the places of all coefficients.
        information, meat: (width, width) of the regression.
    """
    shift = sums["means"] / persons
    about = sums["products"] - persons * np.outer(shift, shift)  # the scores sum to 0, so cross is the same about any value
    pull = np.linalg.solve(information, sums["slope"].T)
    mixed = pull.T @ sums["cross"].T
    return at + shift, (about + mixed + mixed.T + pull.T @ meat @ pull) / persons**2


def contrasts(means: Floats, covariance: Floats, level: float, *, ratio: bool) -> list[dict[str, dict[str, float] | None]]:
    """Of each level: its ``mean``, its ``difference`` from that of the first, and with ``ratio`` the logarithm of the quotient."""
    out = list[dict[str, dict[str, float] | None]]()
    for k, value in enumerate(means):
        by = np.eye(len(means))[k]
        less = by - np.eye(len(means))[0]
        row: dict[str, dict[str, float] | None] = {"mean": _row(float(value), by, covariance, level), "difference": None, "log_ratio": None}
        if k:
            row["difference"] = _row(float(value - means[0]), less, covariance, level)
        if k and ratio and value > 0 and means[0] > 0:
            row["log_ratio"] = _row(float(np.log(value / means[0])), less / np.where(less != 0, means, 1.0), covariance, level)
        out.append(row)
    return out


def _row(value: float, by: Floats, covariance: Floats, level: float) -> dict[str, float]:
    error = float(np.sqrt(np.maximum(by @ covariance @ by, 0.0)))
    half = float(norm.ppf(0.5 + level / 2)) * error
    p = float(2 * norm.sf(abs(value) / error)) if error > 0 else float("nan")
    return {"estimate": value, "error": error, "lower": value - half, "upper": value + half, "p": p}
