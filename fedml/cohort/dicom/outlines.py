"""Closed outlines in the plane of a slice as pixels: a pixel belongs to an outline if its centre lies in it, or on it.

    part = filled(points, (rows, columns))         # points (n, 2): (column, row) in pixels, the centre of the first pixel is (0, 0)
    part.inside, part.edge                         # of the box of pixels from part.row, part.column

Inside is by the even-odd rule, so a keyhole (an outline that runs to a hole, around it and back on the same line) leaves the hole out. The
centre of a pixel on the outline counts as inside, on every side alike; vertices within a hundredth of a pixel of the line through centres
are taken as on it, which is what coordinates with two or three decimals can tell.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SNAP = 0.01  # pixels
MOST = 2**24  # crossings of an outline with rows, and pixels on its edges
_EXACT = 1e-7

Points = npt.NDArray[np.float64]


class Part(NamedTuple):
    """An outline on the pixels of its box, which begins at (``row``, ``column``): ``inside`` by the even-odd rule, ``edge`` on the
    outline."""

    row: int
    column: int
    inside: npt.NDArray[np.bool_]
    edge: npt.NDArray[np.bool_]

    @property
    def box(self) -> tuple[slice, slice]:
        """Where it lies in the matrix."""
        return slice(self.row, self.row + self.inside.shape[0]), slice(self.column, self.column + self.inside.shape[1])


def filled(points: Points, shape: tuple[int, int]) -> Part:
    """The outline's pixels; what lies beyond the matrix of ``shape`` (rows, columns) is left out.

    Raises:
        ValueError: the outline crosses more than ``MOST`` rows or columns.
    """
    near = np.rint(points)
    start = np.where(np.abs(points - near) <= SNAP, near, points)
    size = np.array(shape[::-1])
    first = np.clip(np.floor(start.min(axis=0)), 0, size).astype(np.int64)
    behind = np.clip(np.ceil(start.max(axis=0)) + 1, first, size).astype(np.int64)
    start = start - first
    end = np.roll(start, -1, axis=0)
    box = int(behind[1] - first[1]), int(behind[0] - first[0])
    inside, edge = _parity(start, end, box), np.zeros(box, bool)
    _mark_edges(start, end, edge)
    return Part(int(first[1]), int(first[0]), inside, edge)


def _parity(start: Points, end: Points, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Even-odd by rows: an edge is crossed by the rows from its upper end (included) to its lower end (not included)."""
    rows, columns = shape
    swap = start[:, 1] > end[:, 1]
    upper, lower = np.where(swap[:, None], end, start), np.where(swap[:, None], start, end)
    first = np.clip(np.ceil(upper[:, 1]), 0, rows).astype(np.int64)
    behind = np.clip(np.ceil(lower[:, 1]), 0, rows).astype(np.int64)
    row, edge = _each(first, behind)
    part = (row - upper[edge, 1]) / (lower[edge, 1] - upper[edge, 1])
    crossing = upper[edge, 0] + part * (lower[edge, 0] - upper[edge, 0])
    column = np.clip(np.ceil(crossing), 0, columns).astype(np.int64)
    toggles = np.zeros((rows, columns + 1), np.int64)
    np.add.at(toggles, (row, column), 1)
    return np.asarray(np.cumsum(toggles, axis=1)[:, :columns] % 2 == 1)


def _mark_edges(start: Points, end: Points, inside: npt.NDArray[np.bool_]) -> None:
    """Marks each pixel whose centre lies on an edge: along the axis on which the edge is longer, every whole place of it is looked at."""
    size = np.array(inside.shape[::-1])
    along = np.argmax(np.abs(end - start), axis=1)
    for axis in (0, 1):
        a, b = start[along == axis], end[along == axis]
        swap = a[:, axis] > b[:, axis]
        low, high = np.where(swap[:, None], b, a), np.where(swap[:, None], a, b)
        first = np.clip(np.ceil(low[:, axis] - _EXACT), 0, size[axis]).astype(np.int64)
        behind = np.clip(np.floor(high[:, axis] + _EXACT) + 1, 0, size[axis]).astype(np.int64)
        place, edge = _each(first, behind)
        length = high[edge, axis] - low[edge, axis]
        part = np.divide(place - low[edge, axis], length, out=np.zeros(len(place)), where=length > 0)
        across = low[edge, 1 - axis] + part * (high[edge, 1 - axis] - low[edge, 1 - axis])
        whole = np.rint(across)
        on = (np.abs(across - whole) <= _EXACT) & (whole >= 0) & (whole < size[1 - axis])
        other = whole[on].astype(np.int64)
        inside[(other, place[on]) if axis == 0 else (place[on], other)] = True


def _each(first: npt.NDArray[np.int64], behind: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every whole number of each range, and the number of its range."""
    count = np.maximum(behind - first, 0)
    if int(count.sum()) > MOST:
        raise ValueError(f"an outline crosses more than {MOST} rows or columns")
    edge = np.repeat(np.arange(len(count)), count)
    return np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge], edge
