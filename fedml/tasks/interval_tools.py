"""Tools for intervals of measures: strata, bootstrap samples of cells, Wilson's limits, Student's t. See ``intervals.py``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.tasks.counts import add_counts

Floats = npt.NDArray[np.float64]
Parts = Sequence[Mapping[str, npt.NDArray[Any]]]
# Counts by site, which class of the outcome (None: all), level, (seed, draws) -> None if these counts do not contain the metric.
FindInterval = Callable[[Parts, int | None, float, tuple[int, int]], "Interval | None"]

STRATUM = 20  # a bootstrap sample of n has (n - 1) / n of the variance: at most 5 % is lost
_CELLS = 1 << 21  # numbers in memory at a time


@dataclass(frozen=True)
class Interval:
    """A metric, and its limits at ``level``; without limits they are NaN and ``method`` gives the reason."""

    value: float
    low: float
    high: float
    level: float
    method: str


def expit(x: float) -> float:
    """The inverse of the logit, for any x: exp of a large number is none."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def no_interval(value: float, level: float, why: str) -> Interval:
    """``value`` without limits, with the reason."""
    return Interval(value, math.nan, math.nan, level, f"none: {why}")


def strata(parts: Parts, least: int = STRATUM) -> list[dict[str, npt.NDArray[Any]]]:
    """The counts by stratum: sites with at least ``least`` persons are strata; smaller sites are combined until they have as many."""
    out: list[dict[str, npt.NDArray[Any]]] = []
    open_: list[Mapping[str, npt.NDArray[Any]]] = []
    for part in sorted(parts, key=lambda p: float(p["persons"][0])):
        open_.append(part)
        if sum(float(p["persons"][0]) for p in open_) >= least:
            out.append(add_counts(open_))
            open_ = []
    return [*out, add_counts(open_)] if open_ else out


def resampled(tables: Sequence[npt.NDArray[Any]], seed: int, draws: int) -> Iterator[npt.NDArray[np.int64]]:
    """Bootstrap samples: (some draws, cells) sums over the tables, each of which keeps its own number of persons in every draw.

    Args:
        tables: by stratum, (cells,) persons. Together the yielded have ``draws`` rows.
    """
    rng = np.random.default_rng(seed)
    cells = len(tables[0])
    filled = [(np.flatnonzero(table), int(table.sum())) for table in tables]
    step = max(1, _CELLS // cells)
    for at in range(0, draws, step):
        rows = min(step, draws - at)
        out = np.zeros((rows, cells), dtype=np.int64)
        for table, (cell, persons) in zip(tables, filled, strict=True):
            if persons:
                out[:, cell] += rng.multinomial(persons, table[cell] / persons, size=rows)
        yield out


def wilson(hits: npt.ArrayLike, persons: npt.ArrayLike, level: float) -> tuple[Floats, Floats]:
    """Wilson's score limits of ``hits`` among ``persons``, elementwise; NaN where there are no persons."""
    k, n = np.asarray(hits, dtype=np.float64), np.asarray(persons, dtype=np.float64)
    z2 = quantile(level) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        half = np.sqrt(z2 * (k * (n - k) / n + z2 / 4))
        low, high = (k + z2 / 2 - half) / (n + z2), (k + z2 / 2 + half) / (n + z2)
    # At 0 and n the limits are exactly 0 and 1; the formula is off by rounding.
    low, high = np.where(k == 0, 0.0, low), np.where(k == n, 1.0, high)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def quantile(level: float) -> float:
    """Standard errors on either side of an interval at ``level``."""
    from scipy.special import ndtri  # scipy.stats takes half a second to import

    return float(ndtri(0.5 + level / 2))


def student(values: Sequence[tuple[float, float, float]], level: float, *, share: bool = False) -> Interval:
    """Of a mean, from (persons, sum, sum of squares) by site: variances within sites, or over all where a site has one person.

    Args:
        share: the values lie between 0 and 1: limits on the logit scale (delta method), which a skewed distribution of few persons needs.
    """
    from scipy.special import stdtrit

    n, total, squares = (
        (np.array(x) for x in zip(*(v for v in values if v[0]), strict=True)) if any(v[0] for v in values) else (np.zeros(1),) * 3
    )
    if len(n) > 1 and n.min() < 2:
        n, total, squares = (np.array([x.sum()]) for x in (n, total, squares))
    persons = float(n.sum())
    if not persons:
        return no_interval(math.nan, level, "it is not defined in any person")
    value, free = float(total.sum() / persons), float(persons - len(n))
    if free < 1:
        return no_interval(value, level, "one person has no spread")
    within = np.maximum(squares - total**2 / n, 0)  # rounding may give a negative value
    half = float(stdtrit(free, 0.5 + level / 2)) * math.sqrt(float((n * within / (n - 1)).sum())) / persons
    method = f"Student's t, {free:.0f} degrees of freedom"
    if not share:
        return Interval(value, value - half, value + half, level, method)
    if not 1e-9 < value < 1 - 1e-9:
        return no_interval(value, level, "every person has the same value")
    from scipy.special import expit, logit

    low, high = (float(expit(logit(value) + sign * half / (value * (1 - value)))) for sign in (-1, 1))
    return Interval(value, low, high, level, f"{method}, logit scale")


def mean_of(each: Sequence[Interval], level: float) -> Interval:
    """The mean of several classes: its limits are the means of theirs, as if the classes rose and fell together."""
    if len(each) == 1:
        return each[0]
    method = f"mean of the limits of {len(each)} classes: " + ", ".join(sorted({e.method for e in each}))
    value, low, high = np.mean([(e.value, e.low, e.high) for e in each], axis=0)
    return Interval(float(value), float(low), float(high), level, method)
