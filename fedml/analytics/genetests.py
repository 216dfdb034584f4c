"""Tests of a set of variants from their scores U = G'r (variants,) and the covariance of U without an effect, (variants, variants).

    found = set_tests(score, covariance, weight, frequency)        # burden, SKAT, SKAT-O, ACAT-V, and all together

Burden: (sum w U)^2 (Li and Leal 2008, Am J Hum Genet 83:311). SKAT: sum (w U)^2 (Wu et al. 2011, Am J Hum Genet 89:82). SKAT-O: the best of
mixtures of both on a grid of rho (Lee, Wu and Lin 2012, Biostatistics 13:762; the grid and the bound of R's SKAT, "optimal.adj"). ACAT-V:
the single variants' p values by the Cauchy distribution (Liu et al. 2019, Am J Hum Genet 104:410). Combined: burden, SKAT and ACAT-V by the
Cauchy distribution, as ACAT-O does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.analytics.linear import normal_log10_p
from fedml.analytics.quadratic import eigenvalues, moment_quantile, survival, upper_tail

Array = npt.NDArray[np.float64]
RHO = (0.0, 0.01, 0.04, 0.09, 0.25, 0.5, 1.0)
_NEARLY_ONE = 0.999  # the largest rho that is computed with
_PANELS = np.array([0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10.0])  # of the integral, standard normal


class SetTests(NamedTuple):
    """``beta`` and ``standard_error``: of the weighted number of rare alleles. p values as log10; ``method``: of SKAT's."""

    beta: float
    standard_error: float
    burden: float
    skat: float
    skat_o: float
    acat_v: float
    combined: float
    rho: float
    method: str


def beta_weight(frequency: Array) -> Array:
    """The density of Beta(1, 25) at ``frequency``, as a share of that at 0: a rarer variant weighs more (Wu et al. 2011)."""
    out: Array = (1 - frequency) ** 24
    return out


def set_tests(score: Array, covariance: Array, weight: Array, frequency: Array, plain: Array | None = None) -> SetTests | None:
    """All tests of one set; None if no variant varies.

    Args:
        frequency: (variants,) of the rare alleles, by which ACAT-V weighs.
        plain: the covariance before it was widened (``fedml.analytics.unbalanced``), by which beta is estimated; None: ``covariance``.
    """
    good = np.diag(covariance) > 0
    information = float(weight[good] @ (covariance if plain is None else plain)[np.ix_(good, good)] @ weight[good])
    score, covariance, weight, frequency = score[good], covariance[np.ix_(good, good)], weight[good], frequency[good]
    u, a = weight * score, covariance * weight * weight[:, None]
    total, variance = float(u.sum()), float(a.sum())
    lambdas = eigenvalues(a)
    if not len(lambdas) or min(variance, information) <= 1e-11 * float(np.trace(a)):
        return None
    burden = float(normal_log10_p(np.array([total / math.sqrt(variance)]))[0])
    skat, method = upper_tail(float(u @ u), lambdas)
    mixed, rho = skat_o(u, a)
    single = normal_log10_p(score / np.sqrt(np.diag(covariance)))
    acat = cauchy(single, weight**2 * frequency * (1 - frequency))
    combined = cauchy(np.array([burden, skat, acat]), np.ones(3))
    return SetTests(total / information, math.sqrt(variance) / information, burden, skat, mixed, acat, combined, rho, method)


def cauchy(log10_p: Array, weight: Array) -> float:
    """log10 p of the weighted mean of the Cauchy values of p values given as log10 (Liu and Xie 2020, J Am Stat Assoc 115:393)."""
    weight = weight / weight.sum()
    p = np.clip(10.0**log10_p, None, 1 - 1e-9)
    with np.errstate(divide="ignore", over="ignore"):
        # log10 of weight x tan((1/2 - p) pi), which is nearly 1 / (p pi) where p is small
        small = log10_p < -12
        values = np.where(small, 0.0, np.tan((0.5 - np.where(small, 0.5, p)) * math.pi)) * weight
        huge = np.log10(weight[small]) - log10_p[small] - math.log10(math.pi)
    if small.any():
        top = float(huge.max())
        statistic = top + math.log10(float((10 ** (huge - top)).sum()) + float(values.sum()) / 10**top if top < 300 else 1.0)
        return min(-statistic - math.log10(math.pi), 0.0)
    total = float(values.sum())
    if total > 1e6:
        return -math.log10(total * math.pi)
    return math.log10(max(0.5 - math.atan(total) / math.pi, 1e-300))


def skat_o(u: Array, a: Array) -> tuple[float, float]:
    """log10 p of SKAT-O, and the rho with the smallest p.

    Args:
        u: weighted scores. a: their covariance.
    """
    if len(u) == 1:
        return float(normal_log10_p(np.array([u[0] / math.sqrt(a[0, 0])]))[0]), 0.0
    grid = np.minimum(np.array(RHO), _NEARLY_ONE)
    square, total = float(u @ u), float(u.sum()) ** 2
    each, spectra = [], []
    for rho in grid:
        spectra.append(eigenvalues(_mixed(a, float(rho))))
        each.append(upper_tail((1 - rho) * square + rho * total, spectra[-1])[0])
    best = int(np.argmin(each))
    least = each[best]
    quantiles = np.array([moment_quantile(max(10**least, 1e-300), spectrum) for spectrum in spectra])
    log10_p = _integrated(a, grid, quantiles) if least > -250 else 0.0
    most = min(least + math.log10(3), 0.0)  # as R's SKAT: p is at most 3 times the smallest
    if log10_p is None or log10_p > most or least <= -250:
        log10_p = most
    return min(log10_p, 0.0), RHO[best]


def _mixed(a: Array, rho: float) -> Array:
    """R^1/2 a R^1/2, where R = (1 - rho) I + rho 11'."""
    size = len(a)
    low, high = math.sqrt(1 - rho), math.sqrt(1 - rho + size * rho)
    root = low * np.eye(size) + (high - low) / size
    out: Array = root @ a @ root
    return (out + out.T) / 2


def _integrated(a: Array, grid: Array, quantiles: Array) -> float | None:
    """log10 of P(some Q of the grid exceeds its quantile): section 2 of Lee, Wu and Lin 2012."""
    size, ones = len(a), a.sum(1)
    mean = float(ones.sum()) / size**2  # of the squared mean column
    share = ones / size / mean  # regression of each column on the mean column
    first = mean * np.outer(share, share)
    second = a - first
    lambdas = eigenvalues(second)
    tau = (size**2 * grid + float(share @ share) * (1 - grid)) * mean
    if not len(lambdas):  # all columns are one
        return None
    expected, variance = float(lambdas.sum()), 2 * float((lambdas**2).sum())
    cross = 4 * float((first * second).sum())
    shrink = math.sqrt(variance / (variance + max(cross, 0.0)))
    upper = survival(lambdas)
    node, own = np.polynomial.legendre.leggauss(8)
    ends = _ends(quantiles / (1 - grid), tau / (1 - grid), expected * (1 - 1 / shrink))
    left, width = ends[:-1, None], np.diff(ends)[:, None]
    z = (left + width * (node + 1) / 2).ravel()
    density = (width * own / 2).ravel() * 2 * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    limit = ((quantiles - np.outer(z * z, tau)) / (1 - grid)).min(1)
    p = float(density @ upper((limit - expected) * shrink + expected))
    return math.log10(p) if p > 0 else None


def _ends(high: Array, slope: Array, zero: float) -> Array:
    """Ends of panels of the integral over z: where the smallest of the lines ``high`` - ``slope`` z^2 changes, and, closer and closer,
    where it falls to ``zero``, below which everything exceeds it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        cross = (high[:, None] - high) / (slope[:, None] - slope)
        reach = float(np.min(np.where(slope > 0, (high - zero) / slope, np.inf)))
    last = float(_PANELS[-1])
    cut = math.sqrt(reach) if 0 < reach < last**2 else last
    known = cross[np.isfinite(cross) & (cross > 0) & (cross < last**2)]
    closer = cut * (1 - 0.5 ** np.arange(1, 14))
    ends = np.unique(np.concatenate([_PANELS, np.sqrt(known), closer, [cut]]))
    apart: Array = ends[np.concatenate([[True], np.diff(ends) > 1e-9])]
    return apart
