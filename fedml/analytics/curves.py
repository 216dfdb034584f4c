"""Survival curves from counts on a grid of times: Kaplan-Meier, Nelson-Aalen, Aalen-Johansen, quantiles, restricted means, log-rank.

    table = life_table(entries, events, censored)          # each (intervals,), events (causes, intervals); summed over sites
    curve = kaplan_meier(table)
    quantile(curve, times, 0.5)                            # estimate, lower, upper

A person whose (rounded) time is the end of interval k leaves in k and is at risk in the intervals from that of the entry to k. With counts
summed over sites every result is that of the pooled persons. Persons who are censored in an interval are at risk at its end, as usual.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, norm

Floats = npt.NDArray[Any]


class LifeTable(NamedTuple):
    """Each (intervals,): persons at risk and all their events; ``causes`` (causes, intervals): the events by cause."""

    at_risk: Floats
    events: Floats
    causes: Floats


class Curve(NamedTuple):
    """Each (intervals,), at the end of each interval: an estimate, its standard error and the limits of its interval."""

    estimate: Floats
    error: Floats
    lower: Floats
    upper: Floats


class Test(NamedTuple):
    """A chi-squared statistic, its degrees of freedom and its p value."""

    chi2: float
    df: int
    p: float


def life_table(entries: npt.NDArray[np.int64], events: npt.NDArray[np.int64], censored: npt.NDArray[np.int64]) -> LifeTable:
    """The persons at risk in each interval, from those who enter (intervals,), have an event (causes, intervals), are censored."""
    leave = events.sum(0) + censored
    at_risk = np.cumsum(entries) - np.concatenate([[0], np.cumsum(leave)[:-1]])
    return LifeTable(at_risk.astype(np.float64), events.sum(0).astype(np.float64), events.astype(np.float64))


def _shares(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def kaplan_meier(table: LifeTable, level: float = 0.95) -> Curve:
    """The product-limit estimate (Kaplan and Meier 1958, JASA 53:457), Greenwood's standard error, and limits on the scale of
    log(-log S) (Kalbfleisch and Prentice 2002, section 1.4), nan where the estimate is 0, and 1 where it is 1."""
    n, d = table.at_risk, table.events
    survival = np.cumprod(1 - _shares(d, n))
    variance = np.cumsum(_greenwood(n, d))
    with np.errstate(divide="ignore", invalid="ignore"):
        error = survival * np.sqrt(variance)
        width = norm.ppf(0.5 + level / 2) * np.sqrt(variance) / np.log(survival)
        low, high = survival ** np.exp(-width), survival ** np.exp(width)
    none, gone = survival == 1, survival == 0
    return Curve(survival, np.where(gone, np.nan, error), *(np.where(none, 1.0, np.where(gone, np.nan, v)) for v in (low, high)))


def _greenwood(n: Floats, d: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(d > 0, d / (n * (n - d)), 0.0)


def nelson_aalen(table: LifeTable, level: float = 0.95) -> Curve:
    """The cumulative hazard (Aalen 1978, Ann Stat 6:701), the variance sum d / n^2, and limits on its logarithmic scale."""
    hazard = np.cumsum(_shares(table.events, table.at_risk))
    error = np.sqrt(np.cumsum(_shares(table.events, table.at_risk**2)))
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(hazard > 0, np.exp(norm.ppf(0.5 + level / 2) * error / hazard), 1.0)
    return Curve(hazard, error, hazard / factor, hazard * factor)


def aalen_johansen(table: LifeTable, cause: int, level: float = 0.95) -> Curve:
    """The cumulative incidence of one of competing events (Aalen and Johansen 1978), with the delta-method variance (Marubini and
    Valsecchi 1995, section 10.4) and limits on the scale of log(-log(1 - F))."""
    n, d, own = table.at_risk, table.events, table.causes[cause]
    before = np.concatenate([[1.0], np.cumprod(1 - _shares(d, n))[:-1]])
    step = before * _shares(own, n)
    incidence = np.cumsum(step)
    # Var F(t) = sum over u <= t of (F(t) - F(u))^2 g_u + b_u - 2 (F(t) - F(u)) c_u, expanded in powers of F(t).
    all_in = _greenwood(n, d)
    g = np.where(np.isfinite(all_in), all_in, 0.0)
    b, c = before**2 * _shares((n - own) * own, n**3), before * _shares(own, n**2)
    first = incidence**2 * np.cumsum(g) - 2 * incidence * np.cumsum(incidence * g) + np.cumsum(incidence**2 * g)
    variance = first + np.cumsum(b) - 2 * (incidence * np.cumsum(c) - np.cumsum(incidence * c))
    error = np.sqrt(np.maximum(variance, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = 1 - incidence
        width = norm.ppf(0.5 + level / 2) * error / (rest * np.log(rest))
        low, high = 1 - rest ** np.exp(width), 1 - rest ** np.exp(-width)
    none = incidence == 0
    return Curve(incidence, error, np.where(none, 0.0, low), np.where(none, 0.0, high))


def free_before(counts: npt.NDArray[np.int64]) -> Floats:
    """(intervals,) the probability of no censoring before each interval's end, by Kaplan-Meier; at a time of both, events come first.
    ``counts`` (causes + 2, intervals): who enters, has an event of each cause, leaves."""
    events, leave = counts[1:-1].sum(0), counts[-1]
    left = counts[0].sum() - np.concatenate([[0], np.cumsum(leave)[:-1]]) - events
    free = np.cumprod(1 - _shares((leave - events).astype(np.float64), left.astype(np.float64)))
    out: Floats = np.concatenate([[1.0], free[:-1]])
    return out


def quantile(curve: Curve, times: Floats, share: float) -> tuple[float, float, float]:
    """The first of ``times`` (intervals,) at which survival is at most 1 - ``share``, and where its limits are (Brookmeyer and Crowley
    1982, Biometrics 38:29); nan where they are not reached."""

    def first(values: Floats) -> float:
        below = np.flatnonzero(np.nan_to_num(values, nan=1.0) <= 1 - share + 1e-12)
        return float(times[below[0]]) if len(below) else float("nan")

    lower, upper = first(np.where(curve.estimate == 0, 0.0, curve.lower)), first(curve.upper)
    return first(curve.estimate), lower, upper


def known_until(survival: Floats, at_risk: Floats, times: Floats, horizon: float) -> bool:
    """Whether a curve is known until ``horizon``: somebody is observed until then, or everybody has had the event before."""
    there = np.flatnonzero(at_risk > 0)
    return len(there) > 0 and bool(survival[-1] <= 0 or times[there[-1]] >= min(horizon, times[-1]))


def restricted_mean(table: LifeTable, times: Floats, horizon: float) -> tuple[float, float]:
    """Mean time without an event up to ``horizon``, and its standard error (Klein and Moeschberger 2003, section 4.5); nan of nobody, and
    where nobody is observed until then and not everybody has had the event."""
    survival = np.cumprod(1 - _shares(table.events, table.at_risk))
    if not known_until(survival, table.at_risk, times, horizon):
        return float("nan"), float("nan")
    ends = np.minimum(times, horizon)
    widths = np.diff(ends, prepend=0.0)
    areas = np.concatenate([[1.0], survival[:-1]]) * widths  # of each interval; survival drops at its end
    beyond = float(survival[-1]) * max(horizon - float(times[-1]), 0.0)
    total = float(areas.sum()) + beyond
    after = total - np.cumsum(areas)
    inside = times <= horizon
    terms = _greenwood(table.at_risk, table.events)
    terms = np.where(np.isfinite(terms) & inside, terms, 0.0)
    return total, float(np.sqrt((after**2 * terms).sum()))


def difference(one: tuple[float, float], other: tuple[float, float], level: float = 0.95) -> tuple[float, float, float, float]:
    """Of two independent estimates with standard errors: one - other, the limits of its interval, and p."""
    gap, error = one[0] - other[0], float(np.hypot(one[1], other[1]))
    if not error > 0:
        return gap, float("nan"), float("nan"), float("nan")
    width = float(norm.ppf(0.5 + level / 2)) * error
    return gap, gap - width, gap + width, float(2 * norm.sf(abs(gap) / error))


def log_rank(strata: list[list[LifeTable]]) -> Test:
    """The log-rank test that groups have the same hazard (Mantel 1966), over strata: ``strata[stratum][group]``; one stratum: unstratified.

    The variance is hypergeometric. Groups without anyone at risk together with others do not count in the degrees of freedom.
    """
    observed = np.zeros(len(strata[0]))
    variance = np.zeros((len(observed), len(observed)))
    for groups in strata:
        n = np.stack([g.at_risk for g in groups])
        d = np.stack([g.events for g in groups]).sum(0)
        total = n.sum(0)
        share = _shares(n, np.broadcast_to(total, n.shape))
        observed += np.array([g.events.sum() for g in groups]) - (share * d).sum(1)
        factor = d * _shares(total - d, total - 1)
        variance += np.diag((share * factor).sum(1)) - (share * factor) @ share.T
    return quadratic_test(observed, variance)


def quadratic_test(score: Floats, variance: Floats) -> Test:
    """score' variance^- score, chi-squared with the rank of ``variance``."""
    values, vectors = np.linalg.eigh(variance)
    kept = values > 1e-10 * max(float(values.max(initial=0.0)), 1e-300)
    df = int(kept.sum())
    if not df:
        return Test(float("nan"), 0, float("nan"))
    statistic = float((((vectors[:, kept].T @ score) ** 2) / values[kept]).sum())
    return Test(statistic, df, float(chi2.sf(statistic, df)))
