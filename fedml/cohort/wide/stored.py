"""The rows of a matrix in an entry of the cache (``fedml.cohort.wide.cache``): float32 in a ``.npy`` file, NaN where missing.

    stored = Stored(Path("cache/0123-4567"))
    stored.read(at, out, places)         # the rows ``at`` of the file, into the rows ``places`` of ``out``

Rows are read with ``pread``, not mapped: the pages of a map count as the process's memory as long as they are there, and of 1.2 GB all
would be there after one pass. What is read twice comes from the operating system's page cache in both ways.
"""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import IO, Any, final

import numpy as np
import numpy.typing as npt

from fedml.errors import InputError

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
VALUES, SMALL_FILES = "values.npy", ("digests.npy", "known.npy", "rows.npy")
_KIND = np.dtype("<f4")
_AT_ONCE = 1 << 28  # bytes of one call
_CHECKED = 1 << 22  # bytes of rows that are checked at once


@final
class Stored:
    """A complete entry. ``shape``: (rows, columns). ``digests`` (rows, 32): SHA-256 of each row. ``known`` (rows,): its numbers that are
    not missing. ``rows`` (persons,): the row of each person for whom the entry was made, -1 for one without.

    Raises:
        OSError, ValueError: a file is missing or is not of this form.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.digests, self.known, self.rows = (_array(place / name) for name in SMALL_FILES)
        with (place / VALUES).open("rb") as file:
            self.shape, self._begin = read_header(file)
            size = os.fstat(file.fileno()).st_size
        rows, columns = self.shape
        if size != self._begin + rows * columns * _KIND.itemsize:
            raise ValueError(f"{VALUES} does not have the length of {rows} x {columns} numbers")
        if self.digests.shape != (rows, 32) or self.known.shape != (rows,) or self.rows.ndim != 1 or self.rows.max(initial=-1) >= rows:
            raise ValueError("the entry's files do not fit each other")

    def __reduce__(self) -> tuple[Any, ...]:
        return Stored, (self.place,)  # each worker process opens the file itself

    @cached_property
    def _file(self) -> IO[bytes]:
        return (self.place / VALUES).open("rb", buffering=0)  # open until the end: an entry that is evicted meanwhile can still be read

    def read(self, at: Rows, out: Floats, places: Rows, start: int = 0) -> None:
        """Reads columns ``start`` to ``start`` + out's width of the rows ``at`` into the rows ``places`` of ``out`` (C-contiguous).

        Raises:
            InputError: the file was shortened or cannot be read.
        """
        width, columns = out.shape[1], self.shape[1]
        most = max(1, _AT_ONCE // max(1, width * _KIND.itemsize)) if width == columns else 1
        for first, last in _runs(at, places, most):
            target = out[places[first] : places[first] + last - first]
            offset = self._begin + (int(at[first]) * columns + start) * _KIND.itemsize
            view = target.data.cast("B") if target.size else memoryview(b"")
            try:
                while len(view):
                    count = os.preadv(self._file.fileno(), [view], offset)
                    if not count:
                        raise InputError(f"{self.place / VALUES}: is shorter than it was; start again, and it is made anew.")
                    view, offset = view[count:], offset + count
            except OSError as error:
                raise InputError(f"{self.place / VALUES}: cannot be read ({error.strerror}); check the disk.") from error

    def whole(self) -> bool:
        """Whether every row has its recorded SHA-256."""
        rows, columns = self.shape
        step = max(1, _CHECKED // (columns * _KIND.itemsize))
        for begin in range(0, rows, step):
            at = np.arange(begin, min(begin + step, rows))
            block = np.empty((len(at), columns), np.float32)
            self.read(at, block, at - begin)
            if not np.array_equal(digests_of(block), self.digests[at]):
                return False
        return True


def _runs(at: Rows, places: Rows, most: int) -> list[tuple[int, int]]:
    """Ranges of at most ``most`` entries in which ``at`` and ``places`` both go up by one."""
    if most == 1:
        return [(k, k + 1) for k in range(len(at))]
    ends = np.flatnonzero((np.diff(at) != 1) | (np.diff(places) != 1)) + 1
    runs = zip([0, *ends.tolist()], [*ends.tolist(), len(at)], strict=True)
    return [(k, min(k + most, last)) for first, last in runs for k in range(first, last, most)]


def digests_of(block: Floats) -> npt.NDArray[np.uint8]:
    """(rows, 32): SHA-256 of each row."""
    found = b"".join(hashlib.sha256(row.data).digest() for row in block)
    return np.frombuffer(found, np.uint8).reshape(len(block), 32)


def write_header(file: IO[bytes], rows: int, columns: int) -> int:
    """Writes the header of the ``.npy`` file; returns its length, which does not depend on ``rows``."""
    about = {"descr": _KIND.str, "fortran_order": False, "shape": (rows, columns)}
    np.lib.format.write_array_header_1_0(file, about)
    return file.tell()


def read_header(file: IO[bytes]) -> tuple[tuple[int, int], int]:
    """(rows, columns), and the header's length. ``ValueError``: it is not that of a matrix of float32."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("it is of another version")
    shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
    if kind != _KIND or fortran or len(shape) != 2:
        raise ValueError("it is not a matrix of float32")
    return (int(shape[0]), int(shape[1])), file.tell()


def _array(path: Path) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    return found
