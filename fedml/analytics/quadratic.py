"""The distribution of Q = sum of lambda_j X_j, X_j independent chi-squares of one degree of freedom, all lambda_j > 0.

    log10_p, method = upper_tail(q, lambdas)             # log10 of P(Q > q); "davies", "ruben", "kuonen" or "liu"

Davies (1980, Appl Stat 29:323, AS 155) inverts the characteristic function numerically with a bound on the error. Of few lambdas it needs
many terms; there Q is a mixture of chi-squares (Ruben 1962, Ann Math Stat 33:542), which is exact too, where that needs few. Where p is so
small that the bounds say nothing, the saddle point of Kuonen (1999, Biometrika 86:929) is taken, whose relative error stays small in the
tail; where that has no solution, the moments of Liu, Tang and Zhang (2009, Comput Stat Data Anal 53:853).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import chdtrc, gammaincc, log_ndtr
from scipy.stats import ncx2

from fedml.analytics.linear import normal_log10_p

Array = npt.NDArray[np.float64]
ACCURACY, ROUGH = 1e-9, 1e-6  # largest error of Davies' probability; where nothing else is exact
RELATIVE = 1e-3  # largest error relative to p
TERMS, MANY = 4096, 200_000  # of Davies' integral; where nothing else is exact
_CHI_SQUARES = 3000  # in Ruben's mixture
_LOG28 = math.log(2) / 8
_NEGLIGIBLE = 1e-10  # eigenvalues below this share of the largest are rounding errors


def eigenvalues(matrix: Array) -> Array:
    """The eigenvalues of a symmetric non-negative matrix that are not rounding errors, in descending order; empty for a matrix of zeros."""
    if not matrix.size:
        return np.zeros(0)
    found: Array = np.asarray(np.linalg.eigvalsh(matrix)[::-1], np.float64)
    return found[found > _NEGLIGIBLE * max(found[0], 0.0)] if found[0] > 0 else np.zeros(0)


def upper_tail(q: float, lambdas: Array) -> tuple[float, str]:
    """log10 of P(Q > ``q``), and the method; (0, "none") without ``lambdas``."""
    if not len(lambdas) or q <= 0:
        return 0.0, "none"
    if len(lambdas) == 1:
        return float(normal_log10_p(np.array([math.sqrt(q / lambdas[0])]))[0]), "davies"
    if (p := davies(q, lambdas)) is not None and p > ACCURACY / RELATIVE:
        return math.log10(min(p, 1.0)), "davies"
    if p is None and (mixed := ruben(lambdas)) is not None:
        if (p := float(mixed(np.array([q]))[0])) > ACCURACY / RELATIVE:
            return math.log10(min(p, 1.0)), "ruben"
    elif p is None and (p := davies(q, lambdas, ROUGH, MANY)) is not None and p > ROUGH / RELATIVE:
        return math.log10(min(p, 1.0)), "davies"
    found = kuonen(q, lambdas)
    return (liu(q, lambdas), "liu") if found is None else (found, "kuonen")


def kuonen(q: float, lambdas: Array) -> float | None:
    """log10 of P(Q > ``q``) by the saddle point; None at the mean, where it is not defined, and where it is not found."""
    scale = float(lambdas[0])
    x, ratio = q / scale, lambdas / scale
    mean = float(ratio.sum())
    if abs(x - mean) < 1e-5 * mean:
        return None

    def slope(t: float) -> float:
        return float((ratio / (1 - 2 * t * ratio)).sum()) - x

    low, high = (0.0, 0.5 * (1 - 1e-15)) if x > mean else (-len(ratio) / (2 * x) - 1, 0.0)
    high = min(high, 0.5 - 0.25 / max(x, 1.0) * 1e-3) if x > mean and slope(0.5 - 0.25 / max(x, 1.0) * 1e-3) > 0 else high
    if slope(low) * slope(high) > 0:
        return None
    t = brentq(slope, low, high, xtol=1e-16, rtol=8.9e-16, maxiter=500)
    cumulant = -0.5 * float(np.log1p(-2 * t * ratio).sum())
    curvature = float((2 * (ratio / (1 - 2 * t * ratio)) ** 2).sum())
    w = math.copysign(math.sqrt(max(2 * (t * x - cumulant), 0.0)), t)
    v = t * math.sqrt(curvature)
    if w == 0 or v / w <= 0:
        return None
    return float(min(log_ndtr(-(w + math.log(v / w) / w)) / math.log(10), 0.0))


def liu(q: float, lambdas: Array) -> float:
    """log10 of P(Q > ``q``) by the non-central chi-square with Q's first moments."""
    c1, c2, c3, c4 = (float((lambdas**k).sum()) for k in (1, 2, 3, 4))
    s1, s2 = c3 / c2**1.5, c4 / c2**2
    if s1**2 > s2:
        a = 1 / (s1 - math.sqrt(s1**2 - s2))
        delta = s1 * a**3 - a**2
        degrees = a**2 - 2 * delta
    else:
        a, delta = 1 / s1, 0.0
        degrees = c2**3 / c3**2
    x = (q - c1) / math.sqrt(2 * c2) * math.sqrt(2) * a + degrees + delta
    p = float(ncx2.sf(x, degrees, delta)) if delta > 0 else float(chdtrc(degrees, max(x, 0.0)))
    return math.log10(max(p, 1e-300))


def moment_quantile(p: float, lambdas: Array) -> float:
    """q with P(Q > q) = ``p``, by the chi-square with Q's mean, variance and kurtosis (Lee, Wu and Lin 2012, Biostatistics 13:762)."""
    from scipy.special import chdtri

    c1, c2, c4 = (float((lambdas**k).sum()) for k in (1, 2, 4))
    degrees = c2**2 / c4
    return (float(chdtri(degrees, p)) - degrees) / math.sqrt(2 * degrees) * math.sqrt(2 * c2) + c1


class _Davies:
    """Davies' bounds for one Q. ``variance``: of the normal variable that is added so that the integral converges."""

    def __init__(self, lambdas: Array) -> None:
        self.lambdas = lambdas
        self.mean, self.largest = float(lambdas.sum()), float(lambdas.max())
        self.sd = math.sqrt(2 * float((lambdas**2).sum()))
        self.variance = 0.0

    def tail(self, u: float) -> tuple[float, float]:
        """Chernoff's bound of the tail beyond a value, and the value, at ``u``."""
        x = 2 * u * self.lambdas
        total = u * u * self.variance + float((x**2 / (1 - x) + np.log1p(-x) + x).sum())
        return math.exp(-0.5 * total), u * self.variance + float((self.lambdas / (1 - x)).sum())

    def cutoff(self, accuracy: float, start: float) -> float:
        """A value beyond which (upwards for ``start`` > 0) less than ``accuracy`` of the probability is."""
        bound = 2 * self.largest if start > 0 else 0.0
        u1, u2, c1 = 0.0, start, self.mean
        while True:
            p, c2 = self.tail(u2 / (1 + u2 * bound))
            if p <= accuracy:
                break
            u1, c1, u2 = u2, c2, 2 * u2
        while (c1 - self.mean) / (c2 - self.mean) < 0.9:
            middle = (u1 + u2) / 2
            p, c = self.tail(middle / (1 + middle * bound))
            if p > accuracy:
                u1, c1 = middle, c
            else:
                u2, c2 = middle, c
        return c2

    def truncation(self, u: float, more: float) -> float:
        """Bound of the integral beyond ``u``, with ``more`` variance."""
        square = (2 * u * self.lambdas) ** 2
        variance = (self.variance + more) * u * u
        large = square > 1
        base = 2 * variance + float(np.log1p(square[~large]).sum())
        count = int(large.sum())
        first, second = base + float(np.log(square[large]).sum()), base + float(np.log1p(square[large]).sum())
        x, y = math.exp(-0.25 * first) / math.pi, math.exp(-0.25 * second) / math.pi
        one = 2 * x / count if count else 1.0
        two = 2.5 * y if second > 1 else 1.0
        three = 1.0 if variance / 2 <= y else y / (variance / 2)
        return min(one, two, three)

    def end(self, start: float, accuracy: float) -> float:
        """u beyond which the integral is at most ``accuracy``."""
        top, u = start, start / 4
        if self.truncation(u, 0) > accuracy:
            while self.truncation(top, 0) > accuracy:
                top *= 4
        else:
            top = u
            while self.truncation(top / 4, 0) <= accuracy:
                top /= 4
        for divisor in (2.0, 1.4, 1.2, 1.1):
            if self.truncation(top / divisor, 0) <= accuracy:
                top /= divisor
        return top

    def convergence(self, x: float) -> float | None:
        """Coefficient of the error that more variance makes at ``x``; None if it is too large."""
        if x <= 0:
            return 1 / (math.pi * x * x) if x else None
        value, ordered = x, np.sort(self.lambdas)
        for at, own in enumerate(ordered):
            less, least = value - own, own / _LOG28
            if less > least:
                value = less
                continue
            value = min(value, least)
            exponent = (value - less) / own + (len(ordered) - 1 - at)
            return None if exponent > 100 else 2 ** (exponent / 4) / (math.pi * value * value)
        return 1 / (math.pi * value * value)

    def integral(self, c: Array, terms: int, step: float, damped: float | None = None) -> Array:
        """1/2 - P(Q < c) for each ``c``; ``damped``: of the part that this variance takes away."""
        total = np.zeros(len(c))
        for start in range(0, terms + 1, 2048):
            u = (np.arange(start, min(start + 2048, terms + 1)) + 0.5) * step
            x = 2 * u[:, None] * self.lambdas
            size = step / math.pi * np.exp(-0.25 * np.log1p(x * x).sum(1) - 0.5 * self.variance * u * u) / u
            if damped is not None:
                size = size * -np.expm1(-0.5 * damped * u * u)
            total += size @ np.sin(0.5 * np.arctan(x).sum(1)[:, None] - u[:, None] * c)
        return total


def davies(q: float, lambdas: Array, accuracy: float = ACCURACY, terms: int = TERMS) -> float | None:
    """P(Q > ``q``) with an error of at most ``accuracy``; None if the integral needs more than ``terms`` terms."""
    work = _Davies(lambdas)
    end = work.end(16 / work.sd, 0.5 * accuracy)
    if work.largest > 0.07 * work.sd and (factor := work.convergence(q)) is not None:
        more = 0.25 * accuracy / factor
        if work.truncation(end, more) < 0.2 * accuracy:
            work.variance += more
            end = work.end(end, 0.25 * accuracy)
    left, total = 0.5 * accuracy, 0.0
    while True:
        up, down = work.cutoff(left, 4.5 / work.sd) - q, q - work.cutoff(left, -4.5 / work.sd)
        if up < 0 or down < 0:
            return 0.0 if up < 0 else 1.0
        step = 2 * math.pi / max(up, down)
        needed, usual = end / step, 3 / math.sqrt(left)
        if needed <= 1.5 * usual or usual > terms:
            break
        rough = end / math.floor(usual + 0.5)
        beyond = 2 * math.pi / rough
        factors = (work.convergence(q - beyond), work.convergence(q + beyond))
        if beyond <= abs(q) or None in factors:
            break
        more = 0.33 * left / (1.1 * sum(f for f in factors if f is not None))
        total += float(work.integral(np.array([q]), math.floor(usual + 0.5), rough, more)[0])
        terms -= int(usual)
        work.variance += more
        left *= 0.67
        end = work.end(end, 0.25 * left)
        left *= 0.75
    if needed > terms:
        return None
    total += float(work.integral(np.array([q]), math.floor(needed + 0.5), step)[0])
    return min(max(0.5 + total, 0.0), 1.0)


def ruben(lambdas: Array) -> Callable[[Array], Array] | None:
    """The function q (any,) -> P(Q > q) as a mixture of chi-squares, to 1e-12; None if it needs too many."""
    least = float(lambdas.min())
    share = 1 - least / lambdas
    if share.max() ** _CHI_SQUARES > 1e-3:
        return None
    weights = np.zeros(_CHI_SQUARES)
    weights[0] = math.exp(0.5 * float(np.log(least / lambdas).sum()))
    powers = (share[:, None] ** np.arange(1, _CHI_SQUARES)).sum(0)
    total, count = weights[0], 1
    while total < 1 - 1e-12:
        if count == _CHI_SQUARES:
            return None
        weights[count] = float(powers[count - 1 :: -1] @ weights[:count]) / (2 * count)
        total += weights[count]
        count += 1
    used = weights[:count]
    half = len(lambdas) / 2 + np.arange(count)

    def of(q: Array) -> Array:
        x = np.maximum(q, 0) / (2 * least)
        out: Array = np.minimum(gammaincc(half, x[:, None]) @ used, 1.0)
        return out

    return of


def survival(lambdas: Array) -> Callable[[Array], Array]:
    """The function q (any,) -> P(Q > q), fast for many q: one grid for all of them where it needs few terms, else one by one."""
    if len(lambdas) == 1:
        return lambda q: chdtrc(1, np.maximum(q, 0) / lambdas[0])
    work = _Davies(lambdas)
    end = work.end(16 / work.sd, 0.5 * ACCURACY)
    top, bottom = work.cutoff(0.25 * ACCURACY, 4.5 / work.sd), work.cutoff(0.25 * ACCURACY, -4.5 / work.sd)
    step = 2 * math.pi / (top - min(bottom, 0.0))
    together = end / step <= TERMS
    if not together and (mixed := ruben(lambdas)) is not None:
        return mixed

    def of(q: Array) -> Array:
        out = np.where(q <= 0, 1.0, 0.0)
        inside = np.flatnonzero((q > 0) & (q < top))
        if together and len(inside):
            out[inside] = np.clip(0.5 + work.integral(q[inside], math.floor(end / step + 0.5), step), 0, 1)
            alone = np.flatnonzero((q > 0) & (out < ACCURACY / RELATIVE))
        else:
            alone = np.flatnonzero(q > 0)
        for at in alone.tolist():
            out[at] = 10 ** upper_tail(float(q[at]), lambdas)[0]
        return out

    return of
