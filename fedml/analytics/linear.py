"""Linear regression of a quantitative trait on each variant in turn, with covariates: ordinary least squares from sums over sites.

    scaling = scaling_from(sum of scaling_sums(X, y))               # once; avoids loss of precision through offsets and units
    X, y = scaled(X, y, scaling)                                    # at each site
    null, sums = null_sums(X, y), variant_sums(dosage, frequency, X, y)          # at each site; additive over chunks of persons: a + b
    solve([null of each site], contributes, sum of variant_sums)    # at the server: beta, standard error, t, p, n per variant

X is (persons, K) float64 with a column of ones; y (persons,). A missing dosage counts as 2 x the pooled frequency. A site that withholds a
variant (small cells) is excluded from it: its persons are not in the variant's n. The coefficient is computed from the residuals of trait
and dosage after regression on the covariates (Frisch and Waugh 1933, Econometrica 1:387).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.counting import Products
from fedml.cohort.variants.frequency import Array, Counts, Dosage, centred, chunks

DEPENDENT = 1e-11  # a column is linearly dependent if the other columns leave at most this share of its sum of squares


@dataclass(frozen=True, eq=False)
class NullSums:
    """X'X (K, K), X'y (K,), y'y and the number of persons."""

    xx: Array
    xy: Array
    yy: float
    n: int

    def __add__(self, other: NullSums) -> NullSums:
        return NullSums(self.xx + other.xx, self.xy + other.xy, self.yy + other.yy, self.n + other.n)


@dataclass(frozen=True, eq=False)
class VariantSums:
    """X'g (K, variants), g'g and g'y (variants,), where g is the dosage minus 2 x the pooled frequency (0 where missing)."""

    xg: Array
    gg: Array
    gy: Array

    def __add__(self, other: VariantSums) -> VariantSums:
        return VariantSums(self.xg + other.xg, self.gg + other.gg, self.gy + other.gy)


class Association(NamedTuple):
    """Tests of variants, each (variants,). ``statistic``: t or z; ``p``: 0 below 1e-308, where ``log10_p`` (<= 0) remains exact. nan where
    the variant is constant or depends linearly on the covariates."""

    beta: Array
    standard_error: Array
    statistic: Array
    p: Array
    log10_p: Array
    n: npt.NDArray[np.int64]


def scaling_sums(covariates: Array, trait: Array) -> Array:
    """(3, K + 1): persons, sums and sums of squares of the covariates' columns and of the trait. Additive over sites."""
    both = np.column_stack([covariates, trait])
    return np.stack([np.full(both.shape[1], float(len(both))), both.sum(0), (both**2).sum(0)])


def scaling_from(sums: Array) -> Array:
    """(2, K + 1): centre and scale of each column, from pooled ``scaling_sums``. A constant column (the ones) has centre 0 and scale 1; the
    trait has scale 1, so that coefficients of variants are in the trait's units."""
    mean = sums[1] / np.maximum(sums[0], 1)
    variance = sums[2] / np.maximum(sums[0], 1) - mean**2
    varies = variance > 1e-14 * mean**2
    scale = np.sqrt(np.where(varies, variance, 1.0))
    scale[-1] = 1.0
    return np.stack([np.where(varies, mean, 0.0), scale])


def scaled(covariates: Array, trait: Array, scaling: Array) -> tuple[Array, Array]:
    """Covariates (persons, K) and trait (persons,), centred and scaled; variants' coefficients do not change if X has a column of ones."""
    return (covariates - scaling[0, :-1]) / scaling[1, :-1], (trait - scaling[0, -1]) / scaling[1, -1]


def null_sums(covariates: Array, trait: Array) -> NullSums:
    """A site's sums of the null model (without a variant)."""
    return NullSums(covariates.T @ covariates, covariates.T @ trait, float(trait @ trait), len(trait))


def variant_sums(dosage: Dosage, frequency: Array, covariates: Array, trait: Array) -> VariantSums:
    """A site's sums for a block of variants: ``dosage`` (persons, variants), pooled ``frequency`` (variants,)."""
    persons, variants = dosage.shape
    out = VariantSums(np.empty((covariates.shape[1], variants)), np.empty(variants), np.empty(variants))
    for part in chunks(persons, variants, 1 << 20):
        g = centred(dosage[:, part], frequency[part])
        out.xg[:, part], out.gg[part], out.gy[part] = covariates.T @ g, np.einsum("ij,ij->j", g, g), trait @ g
    return out


def sums_of_products(found: Products, counts: Counts, frequency: Array, total: Array) -> VariantSums:
    """``variant_sums`` from sums of covariates and, last, the trait with dosages (``fedml.cohort.variants.counting.products``).

    Args:
        counts: (4, variants) of the same persons.
        total: (K + 1,) sums of the covariates and the trait over them.
    """
    both = found.dosage - 2 * frequency * (total[:, None] - found.missing)
    ref, one, two = counts[:3].astype(np.float64)
    squares = ref * (2 * frequency) ** 2 + one * (1 - 2 * frequency) ** 2 + two * (2 - 2 * frequency) ** 2
    return VariantSums(both[:-1], squares, both[-1])


class Estimates(NamedTuple):
    """Of variants, each (variants,): coefficient, standard error, degrees of freedom (at least 1) and number of persons."""

    beta: Array
    standard_error: Array
    degrees: Array
    n: npt.NDArray[np.int64]


def solve(null: Sequence[NullSums], contributes: npt.NDArray[np.bool_], sums: VariantSums) -> Association:
    """Coefficient, standard error and two-sided t test of each variant; arguments as those of ``estimate``."""
    found = estimate(null, contributes, sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = found.beta / found.standard_error
    log10_p = t_log10_p(statistic, found.degrees)
    return Association(found.beta, found.standard_error, statistic, 10.0**log10_p, log10_p, found.n)


def estimate(null: Sequence[NullSums], contributes: npt.NDArray[np.bool_], sums: VariantSums) -> Estimates:
    """Coefficient and standard error of each variant.

    Covariates that depend linearly on others (in the contributing sites) are excluded, also from the degrees of freedom.

    Args:
        null: the null model's sums, one per site.
        contributes: (sites, variants) bool: the site's sums are in ``sums``.
        sums: summed over the contributing sites.
    """
    variants = contributes.shape[1]
    beta, error, free, n = np.full(variants, np.nan), np.full(variants, np.nan), np.ones(variants), np.zeros(variants, np.int64)
    for sites, columns in patterns(contributes):
        total = sum((null[i] for i in sites[1:]), null[sites[0]])
        inverse, _, rank = (x[..., 0] for x in invert(total.xx[..., None]))
        n[columns] = total.n
        xg, gg, gy = sums.xg[:, columns], sums.gg[columns], sums.gy[columns]
        projected = inverse @ xg
        gg_left, gy_left = gg - np.einsum("ij,ij->j", xg, projected), gy - total.xy @ projected
        yy_left = total.yy - total.xy @ inverse @ total.xy
        degrees = total.n - int(rank) - 1
        good = (gg_left > DEPENDENT * gg) & (degrees > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = gy_left / gg_left
            variance = np.maximum(yy_left - slope * gy_left, 0.0) / degrees / gg_left
        beta[columns], error[columns] = np.where(good, slope, np.nan), np.where(good, np.sqrt(np.where(good, variance, 0.0)), np.nan)
        free[columns] = max(degrees, 1)
    return Estimates(beta, error, free, n)


def patterns(contributes: npt.NDArray[np.bool_]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(sites, variants) as indices: groups of variants to which the same sites contribute; variants without sites are skipped."""
    if contributes.shape[1] == 0:
        return
    # A number for each pattern, with one more site at a time: sorting whole columns takes far longer.
    which = np.zeros(contributes.shape[1], np.int64)
    for row in contributes:
        which = which if row.all() else np.unique(2 * which + row, return_inverse=True)[1]
    order = np.argsort(which, kind="stable")
    for columns in np.split(order, np.cumsum(np.bincount(which))[:-1]):
        sites = np.flatnonzero(contributes[:, columns[0]])
        if len(sites):
            yield sites, columns


def invert(matrices: Array) -> tuple[Array, Array, npt.NDArray[np.int64]]:
    """Inverses (P, P, batch), log determinants (batch,) and ranks (batch,) of symmetric non-negative ``matrices`` (P, P, batch).

    By the sweep operator (Goodnight 1979, Am Stat 33:149) after scaling to a unit diagonal. A row that depends linearly on earlier rows is
    excluded: 0 in the inverse, factor 1 in the determinant.
    """
    size = len(matrices)
    diagonal = np.maximum(matrices[np.arange(size), np.arange(size)], 0.0)
    scale = np.where(diagonal > 0, 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), 0.0)
    a = matrices * scale[:, None] * scale[None]
    log_determinant, rank = np.zeros(a.shape[2]), np.zeros(a.shape[2], np.int64)
    kept = np.zeros(diagonal.shape, np.bool_)
    for k in range(size):
        pivot = a[k, k].copy()
        kept[k] = use = pivot > DEPENDENT
        safe = np.where(use, pivot, 1.0)
        row = np.where(use, a[k] / safe, 0.0)
        column = np.where(use, a[:, k], 0.0)
        a = a - column[:, None] * row[None]
        a[k], a[:, k] = np.where(use, row, a[k]), np.where(use, -column / safe, a[:, k])
        a[k, k] = np.where(use, 1 / safe, a[k, k])
        log_determinant += np.where(use, np.log(safe) - 2 * np.log(np.where(use, scale[k], 1.0)), 0.0)
        rank += use
    both = kept[:, None] & kept[None]
    out = np.where(both, (a + a.transpose(1, 0, 2)) / 2 * scale[:, None] * scale[None], 0.0)
    return out, log_determinant, rank


def normal_log10_p(z: Array) -> Array:
    """log10 of the two-sided p value of a standard normal ``z``."""
    from scipy.special import log_ndtr

    out: Array = (log_ndtr(-np.abs(z)) + np.log(2.0)) / np.log(10.0)
    return np.minimum(out, 0.0)


def t_log10_p(t: Array, degrees: Array) -> Array:
    """log10 of the two-sided p value of Student's ``t``, also where p is below the smallest float."""
    from scipy.special import betainc, betaln

    t = np.asarray(t, np.float64)
    square = t * t
    with np.errstate(invalid="ignore", over="ignore"):
        x = np.where(np.isinf(square), 0.0, degrees / (degrees + square))
    a = degrees / 2
    with np.errstate(divide="ignore"):
        out: Array = np.log(betainc(a, 0.5, x))
        if (tiny := out < -600).any():  # incomplete beta function by its continued fraction, in logarithms (DLMF 8.17.22)
            a, x = np.broadcast_to(a, t.shape)[tiny], x[tiny]
            out[tiny] = a * np.log(x) + 0.5 * np.log1p(-x) - np.log(a) - betaln(a, 0.5) + np.log(_continued_fraction(a, x))
    low: Array = np.minimum(out / np.log(10.0), 0.0)
    return low


def _continued_fraction(a: Array, x: Array) -> Array:
    """The fraction of DLMF 8.17.22 with b = 1/2, by the modified method of Lentz."""
    b = 0.5
    c, d = np.ones_like(x), 1 / (1 - (a + b) * x / (a + 1))
    out = d.copy()
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            c, d = 1 + term / c, 1 / (1 + term * d)
            out = out * c * d
        if np.all(np.abs(c * d - 1) < 1e-15):
            break
    return out
