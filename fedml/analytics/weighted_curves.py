"""Survival of two treatments weighted by a propensity score, from sums of weights on a grid: curves, restricted means, the hazard ratio.

    arm = weighted_arm(counts, weights, squares)          # of all sites; each (causes + 2, intervals): enter, events by cause, leave
    kaplan_meier(arm), restricted_mean(arm, times, 1000.0), hazard_ratio([control, treated], 0.95)

Persons of one treatment who leave in the same interval in the same way weigh alike in every derivative, so sums of weights and of squared
weights are all that variances need. These are robust (the infinitesimal jackknife) and take the weights as known: Xie and Liu 2005, Stat
Med 24:3089, for curves; Lin and Wei 1989, JASA 84:1074, for the hazard ratio; as R's survival with ``robust = TRUE``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, norm

from fedml.analytics import cox, cox_sites
from fedml.analytics.cox import Asked, Deaths
from fedml.analytics.curves import Curve, Test, known_until

Floats = npt.NDArray[Any]


class Arm(NamedTuple):
    """One treatment. (kinds, intervals) with the kinds event of interest, each other event, censored: persons who leave, the sums of their
    ``weights`` and of squared weights; and (intervals,) ``at_risk``: the sum of weights of who is there."""

    persons: Floats
    weights: Floats
    squares: Floats
    at_risk: Floats


def weighted_arm(counts: Floats, weights: Floats, squares: Floats) -> Arm:
    """Each argument (causes + 2, intervals): who enters, has an event of each cause, leaves; nobody enters late."""

    def kinds(values: Floats) -> Floats:
        out: Floats = np.concatenate([values[1:-1], values[-1:] - values[1:-1].sum(0)]).astype(np.float64)
        return out

    own = kinds(weights)
    leave = own.sum(0)
    # Summed from the last interval on, so that no error of large sums remains where few are left.
    return Arm(kinds(counts), own, kinds(squares), np.cumsum(leave[::-1])[::-1])


def _survival(arm: Arm) -> tuple[Floats, Floats]:
    """(intervals,) the product-limit estimate; (2, intervals, intervals) the derivative of its logarithm at the end of the second interval
    by the weight of a person who leaves in the first, with an event and without."""
    d, at_risk = arm.weights[:-1].sum(0), arm.at_risk
    there = at_risk > 0
    survival = np.cumprod(1 - np.divide(d, at_risk, out=np.zeros_like(d), where=there))
    with np.errstate(divide="ignore", invalid="ignore"):
        rise = np.cumsum(np.where(d > 0, d / (at_risk * (at_risk - d)), 0.0))
        drop = np.where(there, 1 / at_risk, 0.0)
    before = np.concatenate([[0.0], rise[:-1]])
    size = np.arange(len(d))
    without = rise[np.minimum(size[:, None], size)]
    with_event = np.where(size[:, None] <= size, (before - drop)[:, None], rise[None, :])
    return survival, np.stack([with_event, without])


def _spread(arm: Arm, slopes: Floats) -> Floats:
    """The variance of what changes by ``slopes`` (2, intervals, ...) with the weight of a person who leaves with an event, and without."""
    squares = np.stack([arm.squares[:-1].sum(0), arm.squares[-1]])
    out: Floats = np.einsum("kj,kj...->...", squares, slopes**2)
    return out


def kaplan_meier(arm: Arm, level: float = 0.95) -> Curve:
    """Limits are on the scale of log(-log S), NaN where the estimate is 0, and 1 where it is 1."""
    survival, slopes = _survival(arm)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(_spread(arm, slopes))
        width = norm.ppf(0.5 + level / 2) * spread / np.log(survival)
        low, high = survival ** np.exp(-width), survival ** np.exp(width)
    none, gone = survival == 1, survival == 0
    error = np.where(gone, np.nan, survival * spread)
    return Curve(survival, error, *(np.where(none, 1.0, np.where(gone, np.nan, v)) for v in (low, high)))


def restricted_mean(arm: Arm, times: Floats, horizon: float) -> tuple[float, float]:
    """Mean time without an event up to ``horizon``, and its standard error; NaN as ``curves.restricted_mean``."""
    survival, slopes = _survival(arm)
    if not known_until(survival, arm.at_risk, times, horizon):
        return float("nan"), float("nan")
    widths = np.diff(np.append(np.minimum(times, horizon), horizon))  # after each interval's end, where the survival is of its end
    first = float(min(times[0], horizon))
    area = np.where(widths > 0, survival * widths, 0.0)
    moves = np.where(np.isfinite(slopes), slopes, 0.0) @ area
    return first + float(area.sum()), float(np.sqrt(_spread(arm, moves)))


def hazard_ratio(arms: list[Arm], level: float) -> tuple[dict[str, Any] | None, Test]:
    """The logarithm of the hazard ratio of the second arm to the first, of the event of interest (ties by Efron), with its robust error;
    and the robust score test that it is 1, a weighted log-rank test. None where an arm has no event.

    Raises:
        ValueError: the hazard ratio has no finite maximum.
    """
    size = len(arms[0].at_risk)
    rows = [(arm, kind, k) for arm in (0, 1) for kind in range(len(arms[0].weights)) for k in range(size)]
    arm, kind, last = np.array(rows, np.int64).T
    weight, squares = (np.concatenate([getattr(a, name).ravel() for a in arms]) for name in ("weights", "squares"))
    event = kind == 0
    number = arms[0].persons[0] + arms[1].persons[0]
    if not all(a.persons[0].sum() for a in arms):
        return None, Test(float("nan"), 0, float("nan"))
    total = arms[0].weights[0] + arms[1].weights[0]
    centre = float(arms[1].weights[0].sum() / total.sum())
    people = cox_sites.Followed((arm - centre)[:, None].astype(np.float64), np.zeros_like(last), last, event, weight, None)
    deaths = Deaths(number[None], np.divide(total, number, out=np.ones(size), where=number > 0)[None])
    one = np.ones(size)
    asked = Asked(
        hazard=lambda beta: tuple(v[None] for v in cox_sites.hazard_sums(people, beta, size)),  # type: ignore[arg-type, return-value]
        score=lambda beta, w: cox_sites.score_sums(people, beta, w.rise[0], w.tie[0], one),
        means=lambda beta: tuple(v[None] for v in cox_sites.mean_sums(people, beta, size)),  # type: ignore[arg-type, return-value]
    )
    alone = people._replace(weight=None)  # residuals of a person with the weight 1

    def residuals(beta: Floats, weights: cox.Weights, means: cox.Means) -> Floats:
        parts = (means.at_event[0], means.rise[0], means.tie[0])
        out: Floats = cox_sites.score_residuals(alone, beta, (weights.rise[0], weights.tie[0]), parts)[:, 0]
        return out

    zero = np.zeros(1)
    sums, firsts = asked.hazard(zero), asked.means(zero)
    at_zero = residuals(zero, cox.risk_weights(*sums, deaths, "efron"), cox.means(sums, firsts, deaths, "efron"))
    score, spread = float(weight @ at_zero), float(squares @ at_zero**2)
    statistic = score**2 / spread if spread > 0 else float("nan")
    found = cox.solve(asked, deaths, weight[event] @ people.x[event], cox.Plan("efron", 0.0, ["treatment"]))
    own = residuals(found.beta, found.weights, found.means)
    error = float(np.sqrt(squares @ own**2)) / float(found.information[0, 0])
    value, half = float(found.beta[0]), float(norm.ppf(0.5 + level / 2)) * error
    row = {"estimate": value, "error": error, "lower": value - half, "upper": value + half, "p": float(2 * norm.sf(abs(value) / error))}
    return row, Test(statistic, 1, float(chi2.sf(statistic, 1)))
