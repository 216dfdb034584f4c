"""The difference of two AUROCs by DeLong's variance, without draws: what the paired bootstrap is checked against."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from fedml.learning.differences import Difference


def delong(truth: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike, *, level: float = 0.95) -> Difference:
    """Difference of two correlated AUROCs (DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837), by ranks (Sun and Xu 2014, IEEE
    Signal Process Lett 21:1389).

    Args:
        truth: (persons,) 0 or 1. a, b: (persons,) scores of two models, higher for 1.
    """
    y = np.asarray(truth).astype(bool)
    m, n = int(y.sum()), int((~y).sum())
    scores = np.stack([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)])
    if scores.shape != (2, len(y)):
        raise ValueError(f"scores are of {scores.shape[1]} persons, the truth is of {len(y)}")
    if min(m, n) < 1:
        return Difference(math.nan, math.nan, math.nan, math.nan, level, "none: one class only")
    ranks = rankdata(scores, axis=1)
    placed = (ranks[:, y] - rankdata(scores[:, y], axis=1)) / n  # of each case: the share of controls below it
    outside = 1 - (ranks[:, ~y] - rankdata(scores[:, ~y], axis=1)) / m  # of each control: the share of cases above it
    auroc = placed.mean(1)
    value = float(auroc[0] - auroc[1])
    if min(m, n) < 2:
        return Difference(value, math.nan, math.nan, math.nan, level, "none: a class has one person")
    variance = float(np.var(placed[0] - placed[1], ddof=1) / m + np.var(outside[0] - outside[1], ddof=1) / n)
    if variance <= 0:  # both rank alike, or both separate: no spread
        return Difference(value, value, value, 1.0 if value == 0 else math.nan, level, "DeLong")
    error = math.sqrt(variance)
    half = float(norm.ppf(0.5 + level / 2)) * error
    return Difference(value, value - half, value + half, float(2 * norm.sf(abs(value) / error)), level, "DeLong")
