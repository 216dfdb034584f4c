"""Limits of a mean of persons' values with a long tail, such as the log loss where few persons are cases: bootstrap-t on the log scale.

A sample with fewer cases than expected has a smaller mean and a smaller spread at once, so that limits of one width miss above. Here each
draw's distance from the mean is by its own standard error (Efron and Tibshirani 1993, section 12.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.seeds import derive_seed
from fedml.tasks.interval_tools import Floats, resampled


def studentised(tables: Sequence[npt.NDArray[Any]], values: Floats, level: float, by: tuple[int, int]) -> tuple[float, float]:
    """Distances of the limits from log(mean), the first negative.

    Args:
        tables: by stratum, persons in each cell; each stratum keeps its number of persons. values: of one shape with a table, above 0.
        by: seed and draws.
    """
    cells = np.flatnonzero(np.sum(tables, axis=0).ravel())
    value = values.ravel()[cells].astype(np.float64)
    total, variance = np.zeros(by[1]), np.zeros(by[1])
    own_total = own_variance = 0.0
    for k, table in enumerate(tables):
        drawn = table.ravel()[cells]
        persons = float(drawn.sum())
        if not persons:
            continue
        parts = [_moments(sample, value) for sample in resampled([drawn], derive_seed("bootstrap-t", by[0], k), by[1])]
        first, second = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
        total, variance = total + first, variance + np.maximum(second - first**2 / persons, 0)
        first, second = _moments(drawn[None].astype(np.float64), value)
        own_total, own_variance = own_total + float(first[0]), own_variance + float((second - first**2 / persons)[0])
    error = math.sqrt(max(own_variance, 0.0)) / own_total
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.log(total / own_total) / (np.sqrt(variance) / total)
    distance = np.where(np.isnan(distance), 0.0, distance)  # a draw without spread is one person again and again
    low, high = np.quantile(distance, [(1 - level) / 2, (1 + level) / 2])
    return float(-high * error), float(-low * error)


def _moments(sample: npt.NDArray[Any], value: Floats) -> tuple[Floats, Floats]:
    return sample @ value, sample @ value**2
