"""Counts of persons that add: sites' counts sum to those of all persons together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = dict[str, npt.NDArray[Any]]


def add_counts(many: Iterable[Mapping[str, npt.NDArray[Any]]]) -> Counts:
    """Sums by name, in the order given."""
    total: Counts = {}
    for counts in many:
        for key, value in counts.items():
            total[key] = total[key] + value if key in total else value.copy()
    return total


def rounded_cells(table: npt.NDArray[Any], smallest: int) -> npt.NDArray[Any]:
    """A table of persons without cells from 1 to ``smallest`` - 1: each becomes 0 or ``smallest``, whichever is nearer, and the largest
    cell takes the difference, so that the total stays (conventional rounding of small cells: Hundepool et al. 2012, section 5.4). Where
    the largest cell would become small or negative, fewer cells are rounded up, the smallest of them first. A total below ``smallest``
    stays in one cell."""
    out = table.copy()
    small = (out > 0) & (out < smallest)
    if not small.any():
        return out
    out[small] = 0
    missing = int(table.sum() - out.sum())
    up = sorted(np.argwhere(small & (2 * table > smallest)).tolist(), key=lambda place: -int(table[tuple(place)]))
    if out.any():
        largest = np.unravel_index(int(out.argmax()), out.shape)
        kept = up[: max((int(out[largest]) + missing) // smallest - 1, 0)]
    else:  # one of the small cells becomes the largest
        largest = np.unravel_index(int(table.argmax()), table.shape)
        kept = [place for place in up if tuple(place) != tuple(largest)][: max(missing // smallest - 1, 0)]
    for place in kept:
        out[tuple(place)] = smallest
    out[largest] += missing - smallest * len(kept)
    return out


def rounded_confusion(confusion: npt.NDArray[Any], smallest: int) -> npt.NDArray[Any]:
    """A (true, predicted) table with small cells rounded within the persons of their class; over all classes where one has so few persons
    that their number would follow from those of the others."""
    totals = confusion.sum(1)
    if ((totals > 0) & (totals < smallest)).any():
        return rounded_cells(confusion, smallest)
    return np.stack([rounded_cells(row, smallest) for row in confusion])
