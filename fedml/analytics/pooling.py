"""Two-stage meta-analysis of one coefficient: each site's estimate and standard error, combined.

found = two_stage(estimates, errors)             # (sites,), nan where a site has none
found.random["reml"].estimate, found.i2, found.prediction
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import chi2, norm, t

Floats = npt.NDArray[Any]


class Pooled(NamedTuple):
    """An estimate over sites, its standard error, the limits of its interval and p; ``between``: the variance between sites (tau²)."""

    estimate: float
    error: float
    lower: float
    upper: float
    p: float
    between: float


class TwoStage(NamedTuple):
    """``fixed``: inverse-variance weights; ``random``: by method; ``q``: Cochran's Q with its p; ``i2`` a share; ``prediction``: where a
    new site's effect lies (Higgins et al. 2009, JRSS A 172:137), nan of fewer than three sites; ``without``: the REML estimates with one
    site left out, in the sites' order."""

    sites: int
    fixed: Pooled
    random: dict[str, Pooled]
    q: float
    q_p: float
    i2: float
    prediction: tuple[float, float]
    without: list[Pooled | None]


def two_stage(estimates: Floats, errors: Floats, level: float = 0.95) -> TwoStage | None:
    """Combines (sites,) ``estimates`` with standard ``errors``; None if no site has both.

    DerSimonian and Laird 1986; REML (Viechtbauer 2005, JEBS 30:261); Hartung and Knapp 2001 (Stat Med 20:3875) about REML's weights.
    """
    there = np.isfinite(estimates) & np.isfinite(errors) & (errors > 0)
    y, v = estimates[there], errors[there] ** 2
    count = len(y)
    if not count:
        return None
    fixed = _combined(y, v, 0.0, level)
    q = float((((y - fixed.estimate) ** 2) / v).sum())
    free = count - 1
    q_p = float(chi2.sf(q, free)) if free else float("nan")
    i2 = max(q - free, 0.0) / q if free and q > 0 else 0.0
    reml = _combined(y, v, _reml(y, v), level)
    random = {"dersimonian_laird": _combined(y, v, _dersimonian_laird(y, v, q), level), "reml": reml}
    if free:
        random["hartung_knapp"] = _hartung_knapp(y, v, reml, level)
    prediction = (float("nan"), float("nan"))
    if count > 2:
        width = float(t.ppf(0.5 + level / 2, count - 2)) * float(np.hypot(np.sqrt(reml.between), reml.error))
        prediction = (reml.estimate - width, reml.estimate + width)
    without: list[Pooled | None] = []
    for site, has in enumerate(there):
        rest = there.copy()
        rest[site] = False
        yy, vv = estimates[rest], errors[rest] ** 2
        without.append(_combined(yy, vv, _reml(yy, vv), level) if has and len(yy) else None)
    return TwoStage(count, fixed, random, q, q_p, i2, prediction, without)


def _combined(y: Floats, v: Floats, between: float, level: float) -> Pooled:
    weight = 1 / (v + between)
    estimate, error = float((weight * y).sum() / weight.sum()), float(weight.sum() ** -0.5)
    width = float(norm.ppf(0.5 + level / 2)) * error
    return Pooled(estimate, error, estimate - width, estimate + width, float(2 * norm.sf(abs(estimate) / error)), between)


def _dersimonian_laird(y: Floats, v: Floats, q: float) -> float:
    weight = 1 / v
    denominator = float(weight.sum() - (weight**2).sum() / weight.sum())
    return max(0.0, (q - (len(y) - 1)) / denominator) if denominator > 0 else 0.0


def _reml(y: Floats, v: Floats) -> float:
    """The root of the derivative of the restricted likelihood; 0 if it falls from 0 on."""
    if len(y) < 2:
        return 0.0

    def slope(between: float) -> float:
        weight = 1 / (v + between)
        mean = (weight * y).sum() / weight.sum()
        return float((weight**2 * (y - mean) ** 2).sum() - weight.sum() + (weight**2).sum() / weight.sum())

    high = 10 * float(np.var(y) + v.max())
    while slope(high) > 0:
        high *= 10
    grid = np.concatenate([[0.0], np.geomspace(high * 1e-8, high, 200)])
    slopes = np.array([slope(b) for b in grid])
    roots = [float(brentq(slope, a, b, xtol=1e-16, rtol=1e-14)) for a, b, s, e in zip(grid, grid[1:], slopes, slopes[1:], strict=False)
             if s > 0 >= e]  # fmt: skip
    candidates = [0.0, *roots]

    def likelihood(between: float) -> float:
        weight = 1 / (v + between)
        mean = (weight * y).sum() / weight.sum()
        return float(-0.5 * (np.log(v + between).sum() + np.log(weight.sum()) + (weight * (y - mean) ** 2).sum()))

    return max(candidates, key=likelihood)


def _hartung_knapp(y: Floats, v: Floats, reml: Pooled, level: float) -> Pooled:
    weight, free = 1 / (v + reml.between), len(y) - 1
    error = float(np.sqrt((weight * (y - reml.estimate) ** 2).sum() / free / weight.sum()))
    width = float(t.ppf(0.5 + level / 2, free)) * error
    p = float(2 * t.sf(abs(reml.estimate) / error, free)) if error else 0.0
    return Pooled(reml.estimate, error, reml.estimate - width, reml.estimate + width, p, reml.between)
