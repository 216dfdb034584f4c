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
    a: Statistic, b: Statistic, persons: int, *, seed: int, site: npt.ArrayLike | None = None, level: float = 0.95, draws: int = 2000
) -> Difference:
    """Persons drawn with replacement, within their site, both models on the same draw: percentile interval (Efron and Tibshirani 1993).

    p is twice the share of draws on the far side of 0, both counts raised by one (Davison and Hinkley 1997, section 4.2).

    Args:
        a, b: ``statistic`` of each model on the same persons in one order. site: (persons,) index; sites below ``intervals.STRATUM``
        persons are drawn from together.

    Raises:
        ValueError: ``site`` is not of these persons.
    """
    group = np.zeros(persons, dtype=np.int64) if site is None else np.unique(np.asarray(site), return_inverse=True)[1].ravel()
    if len(group) != persons:
        raise ValueError(f"{len(group)} sites are given for {persons} persons")
    once = np.ones((1, persons), dtype=np.int64)
    value = float((a(once) - b(once))[0]) if persons else math.nan
    if math.isnan(value) or persons < 2:
        return Difference(value, math.nan, math.nan, math.nan, level, "none: not defined in these persons")
    tables = [np.isin(group, members).astype(np.int64) for members in _together(np.bincount(group))]
    samples = resampled(tables, derive_seed("paired", seed), draws)
    found = np.concatenate([a(sample) - b(sample) for sample in samples])
    found = found[~np.isnan(found)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    p = 2 * (1 + min(int((found <= 0).sum()), int((found >= 0).sum()))) / (len(found) + 1)
    return Difference(value, float(low), float(high), min(p, 1.0), level, "paired bootstrap, percentile")


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


def over_seeds(differences: Sequence[float], *, level: float = 0.95) -> Difference:
    """Student's t of the differences of runs paired by seed. It does not generalise to other persons."""
    d = np.asarray(differences, dtype=np.float64)
    value = float(d.mean()) if len(d) else math.nan
    if len(d) < 2:
        return Difference(value, math.nan, math.nan, math.nan, level, "none: one seed has no spread")
    error = float(d.std(ddof=1) / math.sqrt(len(d)))
    half = float(student.ppf(0.5 + level / 2, len(d) - 1)) * error
    p = float(2 * student.sf(abs(value) / error, len(d) - 1)) if error > 0 else (1.0 if value == 0 else math.nan)
    return Difference(value, value - half, value + half, p, level, f"paired t over {len(d)} seeds")
