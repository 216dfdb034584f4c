"""Scores of rare variants where cases are rare: their distribution is skewed, and a normal one gives p values that are too small.

    covariance = widened(scores, covariance, weight, gram, third)       # of a set; then ``fedml.analytics.genetests.set_tests``

Each column's score is taken as a sum of binomial trials with the variance and third cumulant that the sites send, its tail by the saddle
point (Dey et al. 2017, Am J Hum Genet 101:37), and its variance is replaced by that with which the normal distribution has the same p. The
burden is treated likewise, and the whole covariance widened by its factor (Zhao et al. 2020, Am J Hum Genet 106:3).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtri_exp

Array = npt.NDArray[np.float64]
_USUAL = 2.0  # standard errors within which the normal distribution is taken


def widened(score: Array, covariance: Array, weight: Array, gram: Array, third: Array) -> Array:
    """The covariance (columns, columns) with which normal scores have the p values of the saddle point.

    Args:
        gram: (columns,) variance of each score before the adjustment for covariates. third: (columns,) its third cumulant.
    """
    trials, chance = _binomial(gram, third)
    own = np.diag(covariance)
    factor = np.array([
        _factor(float(score[j]), float(own[j]), trials[j : j + 1], chance[j : j + 1], np.ones(1)) for j in range(len(score))
    ])  # fmt: skip
    scale = np.sqrt(factor)
    out: Array = covariance * scale * scale[:, None]
    total, plain, now = float(weight @ score), float(weight @ covariance @ weight), float(weight @ out @ weight)
    if now > 0:
        out = out * max(1.0, plain * _factor(total, plain, trials, chance, weight) / now)
    return out


def _binomial(variance: Array, third: Array) -> tuple[Array, Array]:
    """Numbers of trials and chances with these variances and third cumulants, (columns,)."""
    skew = np.clip(third / np.where(variance > 0, variance, 1.0), -1 + 1e-6, 1 - 1e-6)
    chance = (1 - skew) / 2
    return variance / (chance * (1 - chance)), chance


def _factor(score: float, variance: float, trials: Array, chance: Array, weight: Array) -> float:
    """By how much a variance is to be multiplied so that the normal p of ``score`` is that of the saddle point."""
    z = abs(score) / math.sqrt(variance) if variance > 0 else 0.0
    if z <= _USUAL:
        return 1.0
    own = float((trials * chance * (1 - chance)) @ weight**2)
    at = z * math.sqrt(own)
    tails = [tail for sign in (1.0, -1.0) if (tail := _log_tail(at, trials, chance, sign * weight)) is not None]
    if not tails:
        return 1.0
    log_p = min(float(np.logaddexp.reduce(tails)), -1e-12)
    same = -float(ndtri_exp(log_p - math.log(2)))
    return (z / same) ** 2 if same > 0 else 1.0


def _log_tail(at: float, trials: Array, chance: Array, weight: Array) -> float | None:
    """log P(sum of weighted, centred binomials >= ``at``) by the saddle point; minus infinity beyond the largest; None at the mean."""
    largest = float((trials * np.where(weight > 0, (1 - chance) * weight, -chance * weight)).sum())
    if at >= largest * (1 - 1e-9):
        return -math.inf if at > largest else float((trials * np.log(np.where(weight > 0, chance, 1 - chance))).sum())

    def slope(t: float) -> float:
        return float((trials * weight * (_share(t) - chance)).sum()) - at

    def _share(t: float) -> Array:
        grown = np.clip(np.log(chance / (1 - chance)) + t * weight, -700, 700)
        out: Array = 1 / (1 + np.exp(-grown))
        return out

    high = 1.0
    while slope(high) < 0:
        high *= 2
        if high > 1e4:
            return None
    t = brentq(slope, 0.0, high, xtol=1e-12)
    share = _share(t)
    cumulant = float((trials * (np.logaddexp(np.log1p(-chance), np.log(chance) + t * weight) - chance * t * weight)).sum())
    w = math.sqrt(max(2 * (t * at - cumulant), 0.0))
    v = t * math.sqrt(float((trials * weight**2 * share * (1 - share)).sum()))
    return None if w <= 0 or v <= 0 else float(log_ndtr(-(w + math.log(v / w) / w)))
