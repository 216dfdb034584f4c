"""The grid of times that all sites share: intervals merged until nothing that is counted in one of them is about few persons.

    edges = merged(cells, edges, fewest)          # at each site in turn, which passes its edges on to the next

A cell is a kind of person in an interval: those who leave with an event, those who are censored, those who enter; of everyone, or of a
group. An interval may be released where each of its cells holds nobody or at least ``fewest`` persons. Any union of such intervals may be
released too, so what the last site leaves holds at every site, and no difference between two sums of neighbouring intervals is about few.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def possible(cells: Ints, edges: npt.NDArray[np.uint8], fewest: Ints) -> bool:
    """Whether every interval of the grid may be released. ``cells`` (cells, intervals of the study's grid), ``edges`` (intervals,): 1 where
    an interval of the merged grid ends; ``fewest`` (cells,)."""
    sums = np.add.reduceat(cells, _starts(edges), axis=1)
    return not bool(((sums > 0) & (sums < fewest[:, None])).any())


def _starts(edges: npt.NDArray[np.uint8]) -> Ints:
    ends = np.flatnonzero(edges)
    return np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)


def places(edges: npt.NDArray[np.uint8]) -> Ints:
    """(intervals of the study's grid,) the place of each in the merged grid."""
    out: Ints = np.concatenate([[0], np.cumsum(edges)[:-1]]).astype(np.int64)
    return out


def merged(cells: Ints, edges: npt.NDArray[np.uint8], fewest: Ints) -> npt.NDArray[np.uint8] | None:
    """The most intervals that may be released, of those whose ends are among ``edges``; None if not even one may be.

    Where two choices have as many intervals, the one with earlier ends is taken.
    """
    ends = np.flatnonzero(edges)
    before = np.concatenate([np.zeros((len(cells), 1), np.int64), np.cumsum(cells, axis=1)[:, ends]], axis=1)
    count = len(ends)
    best, came = np.full(count + 1, -1), np.full(count + 1, -1)
    best[0] = 0
    for end in range(1, count + 1):
        sums = before[:, end][:, None] - before[:, :end]
        fine = ~((sums > 0) & (sums < fewest[:, None])).any(0) & (best[:end] >= 0)
        if fine.any():
            chosen = np.flatnonzero(fine)
            at = chosen[np.argmax(best[chosen])]  # the first of the best
            best[end], came[end] = best[at] + 1, at
    if best[count] < 0:
        return None
    out, at = np.zeros_like(edges), count
    while at > 0:
        out[ends[at - 1]] = 1
        at = came[at]
    return out
