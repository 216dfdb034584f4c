"""Estimates of several sites combined by their variances, and how far they differ.

found = combine(beta, error)                         # (sites, variants), nan where a site has no estimate
found.beta, found.random_beta, found.q_log10_p, found.i2             # (variants,)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedml.analytics.linear import normal_log10_p
from fedml.cohort.variants.frequency import Array


class Combined(NamedTuple):
    """Each (variants,), nan without an estimate: inverse-variance weights (fixed effect); the same with the variance between sites of
    DerSimonian and Laird (1986, Control Clin Trials 7:177) added (random effects); Cochran's Q (1954, Biometrics 10:101) with log10 of its
    p value, and I² (Higgins and Thompson 2002, Stat Med 21:1539) as a share, both nan where fewer than two sites have an estimate."""

    beta: Array
    standard_error: Array
    log10_p: Array
    random_beta: Array
    random_standard_error: Array
    random_log10_p: Array
    q: Array
    q_log10_p: Array
    i2: Array


def combine(beta: Array, error: Array) -> Combined:
    """The sites' estimates ``beta`` (sites, variants) with standard errors ``error``, combined for each variant."""
    from scipy.special import chdtrc

    there = np.isfinite(beta) & np.isfinite(error) & (error > 0)
    known, weight = np.where(there, beta, 0.0), np.where(there, 1 / np.where(there, error, 1.0) ** 2, 0.0)
    fixed, fixed_error = _weighted(known, weight)
    free = there.sum(0) - 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where(free > 0, (weight * (known - fixed) ** 2).sum(0), np.nan)
        between = np.maximum(q - free, 0.0) / (weight.sum(0) - (weight**2).sum(0) / weight.sum(0))
        added = np.where(there, 1 / (error**2 + np.where(free > 0, between, 0.0)), 0.0)
        random, random_error = _weighted(known, added)
        q_log10_p = np.log10(chdtrc(np.maximum(free, 1), q))
        i2 = np.where(q > 0, np.maximum(q - free, 0.0) / q, np.where(np.isnan(q), np.nan, 0.0))
        p, random_p = normal_log10_p(fixed / fixed_error), normal_log10_p(random / random_error)
    return Combined(fixed, fixed_error, p, random, random_error, random_p, q, q_log10_p, i2)


def _weighted(beta: Array, weight: Array) -> tuple[Array, Array]:
    """Weighted means and their standard errors; nan where all weights are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        total = weight.sum(0)
        return np.where(total > 0, (weight * beta).sum(0) / total, np.nan), np.where(total > 0, 1 / np.sqrt(total), np.nan)
