"""Calibration, reliability and ROC curves from the histogram of log-odds, that is, from counts that add over sites.

    calibration(counts)                   # slope, intercept, expected / observed, calibration error: with intervals
    reliability(counts, by="persons")     # ten groups: mean risk, share of cases
    roc(counts)                           # at most 200 points

A bin stands for its middle, so a risk is known to 0.001. Of several classes, ``c`` is one against the rest. Terms follow Van Calster et al.
2019 (BMC Med 17:230) and Cox 1958 (Biometrika 45:562): with y the outcome and l the model's log-odds, logit P(y) = intercept + slope l; 0
and 1 in a calibrated model. A slope below 1: risks are too extreme, as after overfitting. Noised counts hold no persons: all is NaN or
empty there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtri

from fedml.tasks.classification_counts import MIDPOINTS, noised
from fedml.tasks.classification_measures import NOISED
from fedml.tasks.interval_tools import Interval, wilson

Floats = npt.NDArray[np.float64]
Counts = Mapping[str, npt.NDArray[Any]]

_ITERATIONS = 50
_HALVINGS = 30


@dataclass(frozen=True)
class Calibration:
    """Calibration of one class. saturated: persons in the first or last bin, whose exact log-odds are unknown; they bias the slope.

    slope, intercept: fitted together. in_the_large: intercept with the slope held at 1; below 0 where risks are too high.
    expected_observed: sum of risks / number of cases. error: expected calibration error, ten equally wide groups (Naeini et al. 2015).
    """

    persons: int
    cases: int
    saturated: int
    slope: Interval
    intercept: Interval
    in_the_large: Interval
    expected_observed: Interval
    error: float


@dataclass(frozen=True)
class Reliability:
    """By group, lowest risk first: mean risk, share of cases with Wilson's limits, persons. Empty groups are omitted."""

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    persons: npt.NDArray[np.int64]


def _table(counts: Counts, c: int) -> npt.NDArray[np.int64]:
    """(other/own, bin) persons of class ``c``; for two classes, either class from the histogram of class 1."""
    histogram = counts["histogram"]
    classes = 2 if len(histogram) == 1 else len(histogram)
    if not 0 <= c < classes:
        raise ValueError(f"class {c} is not one of the {classes} classes")
    if noised(counts):
        return np.zeros(histogram.shape[1:], dtype=np.int64)
    found = histogram[c] if classes > 2 else histogram[0] if c == 1 else histogram[0][::-1, ::-1]
    out: npt.NDArray[np.int64] = found.astype(np.int64)
    return out


def calibration(counts: Counts, c: int = 1, *, level: float = 0.95) -> Calibration:
    """Calibration of class ``c`` against the rest, with Wald intervals at ``level``.

    Slope and intercept are maximum likelihood; where cases and others do not overlap there is none, and they are NaN. The interval of
    expected / observed takes the risks as given (Debray et al. 2017, BMJ 356:i6460: on the log scale).

    Args:
        counts: of one part, one site's or merged (``fedml.tasks.classification_counts``), with two classes or more.

    Raises:
        ValueError: there is no such class.
    """
    table = _table(counts, c)
    bins = np.flatnonzero(table.sum(0))
    cases, persons, x = table[1, bins].astype(np.float64), table[:, bins].sum(0).astype(np.float64), MIDPOINTS[bins]
    n, k = int(persons.sum()), int(cases.sum())
    why = NOISED if noised(counts) else "none: no person, or every person, is of the class" if k in (0, n) else ""
    nothing = Interval(math.nan, math.nan, math.nan, level, why)
    intercept = slope = large = ratio = nothing
    if not why:
        large = _wald(_newton(np.ones((len(x), 1)), x, cases, persons), level)[0]
        if _overlap(cases, persons - cases):
            intercept, slope = _wald(_newton(np.stack([np.ones_like(x), x], 1), np.zeros_like(x), cases, persons), level)
        else:
            intercept = slope = Interval(math.nan, math.nan, math.nan, level, "none: cases and others do not overlap")
    if k and not why:
        value = float(persons @ expit(x)) / k
        factor = math.exp(float(ndtri(0.5 + level / 2)) * math.sqrt((1 - k / n) / k))
        ratio = Interval(value, value / factor, value * factor, level, "log scale, risks as given")
    groups = reliability(counts, c, by="width")
    error = float(groups.persons @ np.abs(groups.predicted - groups.observed)) / n if n else math.nan
    return Calibration(n, k, int(table[:, [0, -1]].sum()), slope, intercept, large, ratio, error)


def reliability(
    counts: Counts, c: int = 1, *, groups: int = 10, by: Literal["persons", "width"] = "persons", level: float = 0.95
) -> Reliability:
    """The reliability curve of class ``c``: groups of equally many persons (as near as bins allow), or of risks equally wide.

    Raises:
        ValueError: there is no such class, or no group.
    """
    if groups < 1:
        raise ValueError("a reliability curve needs at least one group")
    table = _table(counts, c)
    persons, risk = table.sum(0), expit(MIDPOINTS)
    # Groups of equally many persons: a bin belongs to the group of its middle person.
    share = (np.cumsum(persons) - persons / 2) / max(int(persons.sum()), 1) if by == "persons" else risk
    group = np.minimum((share * groups).astype(np.int64), groups - 1)
    n = np.bincount(group, weights=persons, minlength=groups)
    cases = np.bincount(group, weights=table[1], minlength=groups)
    total = np.bincount(group, weights=persons * risk, minlength=groups)
    there = n > 0
    n, cases, total = n[there], cases[there], total[there]
    low, high = wilson(cases, n, level)
    return Reliability(total / n, cases / n, low, high, n.astype(np.int64))


def roc(counts: Counts, c: int = 1, *, points: int = 200) -> tuple[Floats, Floats]:
    """1 - specificity and sensitivity, both rising from 0 to 1, at no more than ``points`` thresholds; empty if a class is empty.

    Corners of the exact curve (of bins), spread evenly along it, with both ends of every jump: the area under the straight lines between
    them is the exact one to 1 / (points - 2).

    Raises:
        ValueError: there is no such class, or fewer than 3 points.
    """
    if points < 3:
        raise ValueError("a curve needs at least three points")
    others, cases = _table(counts, c)[:, ::-1]
    if not others.sum() or not cases.sum():
        return np.zeros(0), np.zeros(0)
    bins = np.flatnonzero(others + cases)
    x = np.concatenate([[0.0], np.cumsum(others[bins]) / others.sum()])
    y = np.concatenate([[0.0], np.cumsum(cases[bins]) / cases.sum()])
    if len(x) > points:
        after = np.searchsorted(x + y, np.linspace(0, 2, (points + 1) // 2)[1:-1])
        keep = np.unique([0, *(after - 1), *after, len(x) - 1])
        x, y = x[keep], y[keep]
    return x, y


def _overlap(cases: Floats, others: Floats) -> bool:
    """Whether the likelihood has a maximum (Albert and Anderson 1984). Bins ascending."""
    with_cases, with_others = np.flatnonzero(cases), np.flatnonzero(others)
    return bool(with_cases[0] < with_others[-1] and with_others[0] < with_cases[-1])


def _newton(design: Floats, offset: Floats, cases: Floats, persons: Floats) -> tuple[Floats, Floats]:
    """Maximum likelihood of a grouped logistic regression, and its covariance: Newton's method with step halving."""

    def likelihood(beta: Floats) -> float:
        eta = offset + design @ beta
        return float(cases @ eta - persons @ np.logaddexp(0, eta))

    # Starts at the share of cases, because at 0 all weights could vanish.
    beta = np.zeros(design.shape[1])
    if not offset.any():
        beta[0] = math.log(cases.sum() / (persons.sum() - cases.sum()))
    here = likelihood(beta)
    information: Any = np.eye(len(beta))
    for _ in range(_ITERATIONS):
        p = expit(offset + design @ beta)
        information = design.T @ (design * (persons * p * (1 - p))[:, None])
        step = np.linalg.lstsq(information, design.T @ (cases - persons * p), rcond=None)[0]
        for _ in range(_HALVINGS):
            there = likelihood(beta + step)
            if there >= here:
                break
            step = step / 2
        beta, moved, here = beta + step, float(step @ information @ step), max(here, there)
        if moved < 1e-20:  # in squared standard errors
            break
    covariance: Floats = np.linalg.pinv(information, hermitian=True)
    return beta, covariance


def _wald(fit: tuple[Floats, Floats], level: float) -> list[Interval]:
    beta, covariance = fit
    half = float(ndtri(0.5 + level / 2)) * np.sqrt(np.diag(covariance))
    return [Interval(float(b), float(b - h), float(b + h), level, "maximum likelihood, Wald") for b, h in zip(beta, half, strict=True)]
