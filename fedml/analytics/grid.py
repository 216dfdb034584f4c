"""The grid of times that all sites share: intervals merged until nothing that is counted in one of them is about few persons.

    end = next_end(cells, edges, start, least)    # at each site; the server asks again from the largest answer until all agree

A cell is a kind of person in an interval: those who leave with an event, those who are censored, those who enter; of everyone, or of a
group. An interval may be released where each of its cells holds nobody or at least ``fewest`` persons. So no
difference between two sums of neighbouring intervals is about few persons. A site answers with one end at a time, which tells no count.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Cells(NamedTuple):
    """``counts`` (cells, intervals of the study's grid) of persons and the ``fewest`` (cells,) that a sum may be about; ``enter`` and
    ``leave`` (groups, intervals), of which at least ``floor`` persons, or none, must be at risk."""

    counts: Ints
    fewest: Ints
    enter: Ints
    leave: Ints
    floor: int


def possible(cells: Cells, edges: npt.NDArray[np.uint8]) -> bool:
    """Whether every interval of the grid may be released. ``edges`` (intervals,): 1 where an interval of the merged grid ends."""
    ends = np.flatnonzero(edges)
    starts = np.concatenate([[-1], ends[:-1]])
    return all(_fine(cells, _totals(cells), int(start), int(end)) for start, end in zip(starts, ends, strict=True))


def _totals(cells: Cells) -> tuple[Ints, Ints, Ints]:
    def total(values: Ints) -> Ints:
        return np.concatenate([np.zeros((len(values), 1), np.int64), np.cumsum(values, axis=1)], axis=1)

    return total(cells.counts), total(cells.enter), total(cells.leave)


def _fine(cells: Cells, totals: tuple[Ints, Ints, Ints], start: int, end: int) -> bool:
    counts, enter, leave = totals
    inside = counts[:, end + 1] - counts[:, start + 1]
    at_risk = enter[:, end + 1] - leave[:, start + 1]
    return not (((inside > 0) & (inside < cells.fewest)).any() or ((at_risk > 0) & (at_risk < cells.floor)).any())


def places(edges: npt.NDArray[np.uint8]) -> Ints:
    """(intervals of the study's grid,) the place of each in the merged grid."""
    out: Ints = np.concatenate([[0], np.cumsum(edges)[:-1]]).astype(np.int64)
    return out


def next_end(cells: Cells, edges: npt.NDArray[np.uint8], start: int, least: int) -> int:
    """The first end from ``least`` on, among ``edges``, of an interval that begins behind ``start`` (-1: at the beginning) and may be
    released, and behind which the rest may be released as one interval; -1 if there is none.

    So whatever ends all sites accept one after the other, the last interval can be closed at the end of the grid.
    """
    totals, last = _totals(cells), len(edges) - 1
    for end in np.flatnonzero(edges).tolist():
        if end >= least and _fine(cells, totals, start, end) and (end == last or _fine(cells, totals, end, last)):
            return int(end)
    return -1
