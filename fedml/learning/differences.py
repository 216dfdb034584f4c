"""Differences between two models. Three methods, depending on the available data.

    unpaired(interval_a, interval_b)                                   # counts of both only
    paired_bootstrap(statistic("auroc", y, p_a), statistic("auroc", y, p_b), len(y), site=site, seed=7)   # each person's predictions
    over_seeds([0.012, 0.008, 0.015])                                  # both trained with the same seeds

Persons and seeds are two sources of chance: the first two say what other persons would have given, the last what other seeds would
have given for these same persons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from fedml.seeds import derive_seed
from fedml.tasks.drawn import Statistic
from fedml.tasks.interval_tools import STRATUM, Interval, resampled

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The metric of the first model minus that of the second, limits at ``level``, and two-sided p for no difference; NaN if undefined."""

    value: float
    low: float
    high: float
    p: float
    level: float
    method: str


@dataclass(frozen=True)
class People:
    """What of the persons decides how they are drawn and how many a test has: ``label``, (persons,) class, None: no classes; ``cluster``,
    (persons,) number of the cluster whose persons are drawn together, which is in one site, None: each is one."""

    label: npt.NDArray[Any] | None = None
    cluster: npt.NDArray[Any] | None = None


INDEPENDENT = People()
LEVEL = 0.95
LEAST = 15  # persons of a class, or clusters with one; with fewer, no test of two models keeps its level


def unpaired(a: Interval, b: Interval) -> Difference:
    """From two intervals, treated as independent: MOVER (Zou and Donner 2008, Stat Med 27:1693). No p.

    Of two models on the same persons it is too wide, since who is hard for one is hard for the other, unless they err on opposite
    persons. Intervals of one level are wanted.

    Raises:
        ValueError: the levels differ.
    """
    if a.level != b.level:
        raise ValueError(f"one interval is of level {a.level}, the other of {b.level}")
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    high = value + math.hypot(a.high - a.value, b.value - b.low)
    return Difference(value, low, high, math.nan, a.level, "unpaired, MOVER" if not math.isnan(low) else "none: one has no interval")


def paired_bootstrap(
    a: Statistic, b: Statistic, persons: int, *, seed: int, site: npt.ArrayLike | None = None, of: People = INDEPENDENT, draws: int = 2000
) -> Difference:
    """Persons (or clusters) drawn with replacement, within their site, both models on the same draw: t with the bootstrap's variance.

    Value plus and minus t times the standard deviation over draws (Efron and Tibshirani 1993, section 12.5). Without classes, its square is
    multiplied by n / (n - 1), n the persons. With classes, the degrees of freedom are those of Welch, each class having a share of the
    variance of 1 / its persons. ``experiments/bench/coverage.py`` measures how often it rejects.

    Args:
        a, b: ``statistic`` of each model on the same persons in one order. site: (persons,) index; sites below ``intervals.STRATUM``
        persons are drawn from together. of: without it, persons have no classes and no clusters.

    Returns:
        Neither limits nor p with fewer than ``LEAST`` persons (clusters) of a class.

    Raises:
        ValueError: ``site``, classes or clusters are not of these persons.
    """
    for what, given in (("sites", site), ("classes", of.label), ("clusters", of.cluster)):
        if given is not None and len(np.asarray(given)) != persons:
            raise ValueError(f"{len(np.asarray(given))} {what} are given for {persons} persons")
    once = np.ones((1, persons), dtype=np.int64)
    value = float((a(once) - b(once))[0]) if persons else math.nan
    if math.isnan(value) or persons < 2:
        return Difference(value, math.nan, math.nan, math.nan, LEVEL, "none: not defined in these persons")
    sizes = _independent(persons, of)
    if min(sizes) < LEAST:
        unit = "persons" if of.cluster is None else "clusters of persons"
        why = f"none: fewer than {LEAST} {unit}{' of a class' if len(sizes) > 1 else ''}"
        return Difference(value, math.nan, math.nan, math.nan, LEVEL, why)
    found = _drawn(lambda drawn: a(drawn) - b(drawn), persons, seed=seed, site=site, of=of, draws=draws)
    each = [1 / n for n in sizes]
    free = sum(each) ** 2 / sum(share**2 / (n - 1) for share, n in zip(each, sizes, strict=True))
    # Draws of persons have classes of varying sizes, whose larger spread stands for the n / (n - 1).
    error = float(np.std(found, ddof=1)) * (math.sqrt(sizes[0] / (sizes[0] - 1)) if len(sizes) == 1 else 1.0)
    half = float(student.ppf(0.5 + LEVEL / 2, free)) * error
    p = float(2 * student.sf(abs(value) / error, free)) if error > 0 else (1.0 if value == 0 else math.nan)
    drawn_by = "" if of.cluster is None else " of clusters"
    return Difference(value, value - half, value + half, p, LEVEL, f"paired bootstrap{drawn_by}, t with {free:.0f} degrees of freedom")


def bootstrap(a: Statistic, persons: int, *, seed: int, site: npt.ArrayLike | None = None, of: People = INDEPENDENT) -> tuple[float, float]:
    """Percentile limits of a statistic, persons or clusters drawn as by ``paired_bootstrap``; NaN where it is not defined."""
    found = _drawn(a, persons, seed=seed, site=site, of=of, draws=2000) if persons else np.zeros(0)
    if not len(found):
        return math.nan, math.nan
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _independent(persons: int, of: People) -> list[int]:
    """The number of persons, or of clusters, of each class that has any; of all where there are no classes."""
    unit = np.arange(persons) if of.cluster is None else np.asarray(of.cluster)
    if of.label is None:
        return [len(np.unique(unit))]
    label = np.asarray(of.label)
    return [len(np.unique(unit[label == c])) for c in np.unique(label)]


def _drawn(a: Statistic, persons: int, *, seed: int, site: npt.ArrayLike | None, of: People, draws: int) -> Floats:
    """The statistic of each draw in which it is defined."""
    group = np.zeros(persons, dtype=np.int64) if site is None else np.unique(np.asarray(site), return_inverse=True)[1].ravel()
    if of.cluster is None:
        tables = [np.isin(group, members).astype(np.int64) for members in _together(np.bincount(group))]
        samples = resampled(tables, derive_seed("paired", seed), draws)
    else:
        first, code = np.unique(np.asarray(of.cluster), return_index=True, return_inverse=True)[1:]
        code, home = code.ravel(), group[first]
        tables = [np.isin(home, members).astype(np.int64) for members in _together(np.bincount(home))]
        samples = (sample[:, code] for sample in resampled(tables, derive_seed("paired", seed), draws))
    found = np.concatenate([a(sample) for sample in samples])
    defined: Floats = found[~np.isnan(found)]
    return defined


def _together(sizes: npt.NDArray[np.int64]) -> list[list[int]]:
    """Sites by stratum, as ``intervals.strata``."""
    out: list[list[int]] = []
    held: list[int] = []
    for k in np.argsort(sizes, kind="stable"):
        held.append(int(k))
        if sizes[held].sum() >= STRATUM:
            out.append(held)
            held = []
    return [*out, held] if held else out


def over_seeds(differences: Sequence[float], *, overlap: float | None = None, level: float = 0.95) -> Difference:
    """Student's t of the differences of runs paired by seed. It does not generalise to other persons.

    Args:
        overlap: test persons by training persons, where each seed splits the persons anew: the runs share training persons, so the variance
        of their mean is (1 / runs + overlap) times that between runs (Nadeau and Bengio 2003, Mach Learn 52:239). None: one split.
    """
    d = np.asarray(differences, dtype=np.float64)
    value = float(d.mean()) if len(d) else math.nan
    if len(d) < 2:
        return Difference(value, math.nan, math.nan, math.nan, level, "none: one seed has no spread")
    error = float(d.std(ddof=1)) * math.sqrt(1 / len(d) + (overlap or 0.0))
    half = float(student.ppf(0.5 + level / 2, len(d) - 1)) * error
    p = float(2 * student.sf(abs(value) / error, len(d) - 1)) if error > 0 else (1.0 if value == 0 else math.nan)
    how = "" if overlap is None else ", corrected for overlapping training persons (Nadeau and Bengio)"
    return Difference(value, value - half, value + half, p, level, f"paired t over {len(d)} seeds{how}")


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p values adjusted for their number (Holm 1979, Scand J Stat 6:65); None, or NaN, is no test and stays None."""
    known = sorted((value, at) for at, value in enumerate(p) if value is not None and not math.isnan(value))
    out: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, at) in enumerate(known):
        largest = max(largest, min((len(known) - rank) * value, 1.0))
        out[at] = largest
    return out
