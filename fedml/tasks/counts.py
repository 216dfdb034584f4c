"""Counts of persons that add: sites' counts sum to those of all persons together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy.typing as npt

Counts = dict[str, npt.NDArray[Any]]


def add_counts(many: Iterable[Mapping[str, npt.NDArray[Any]]]) -> Counts:
    """Sums by name, in the order given."""
    total: Counts = {}
    for counts in many:
        for key, value in counts.items():
            total[key] = total[key] + value if key in total else value.copy()
    return total
