"""Transposes variant-major genotypes into packed rows of persons, in bounded memory and without a second copy on disk.

spool = Spool(persons, capacity=64 * 2**20, folder=partial)
for block in blocks:
    spool.add(block.dosage)                  # int8 (variants, persons)
for begin, rows in spool.rows():             # uint8 (some persons, ceil(variants / 4)), the layout of fedml.cohort.variants.packed.Packed
    file.write(rows.data)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.packed import width

Numbers = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
_CHUNK = 1 << 20  # bytes at a time; temporary arrays of this size fit in the processor's cache


@final
class Spool:
    """Takes blocks (variants, persons), returns packed rows of persons; uses about twice ``capacity`` bytes of memory. ``fine``: blocks and
    rows are uint16 (``fedml.cohort.variants.fine.Fine``), one number for each variant.

    The buffer is packed along variants, in the order of arrival, so that packing reads consecutive bytes. A full buffer is transposed and
    written as a segment file, last person first. ``rows`` reads persons from the ends of the segments and truncates the segments as it
    goes.
    """

    def __init__(self, persons: int, capacity: int, folder: Path | None, *, fine: bool = False) -> None:
        self.persons, self.capacity, self.folder, self.variants = persons, capacity, folder, 0
        self.fine, self._type = fine, np.dtype(np.uint16 if fine else np.uint8)
        self._buffer = np.empty((max(1, capacity // (persons * self._type.itemsize)), persons), self._type)
        self._filled = 0  # variants in the buffer
        self._segments: list[tuple[Path, int]] = []  # file, numbers per person in it

    @property
    def size(self) -> int:
        """Bytes of the table so far."""
        return self.width(self.variants) * self.persons * self._type.itemsize

    def width(self, variants: int) -> int:
        """Numbers in a person's row."""
        return variants if self.fine else width(variants)

    def add(self, dosage: npt.NDArray[np.int8] | npt.NDArray[np.uint16]) -> None:
        """Adds variants: int8 (variants, persons) of -1 to 2, or uint16."""
        at, room = 0, (1 if self.fine else 4) * len(self._buffer)
        while at < len(dosage):
            if self._filled == room:
                self._flush()
            count = min(len(dosage) - at, room - self._filled)
            if self.fine:
                self._buffer[self._filled : self._filled + count] = dosage[at : at + count]
            else:
                self._put(dosage[at : at + count].view(np.uint8))
            at, self._filled, self.variants = at + count, self._filled + count, self.variants + count

    def _put(self, dosage: npt.NDArray[np.uint8]) -> None:
        lead = min(-self._filled % 4, len(dosage))
        whole = (len(dosage) - lead) // 4 * 4
        step = max(1, _CHUNK // (4 * self.persons))
        for at in (*range(lead), *range(lead + whole, len(dosage))):  # variants before the first and after the last full byte
            place, shift = divmod(self._filled + at, 4)
            code = (dosage[at] & 3) << (2 * shift)
            self._buffer[place] = self._buffer[place] | code if shift else code
        quads = dosage[lead : lead + whole].reshape(-1, 4, self.persons)
        target = self._buffer[(self._filled + lead) // 4 :]
        for at in range(0, len(quads), step):
            codes = quads[at : at + step] & 3
            packed = target[at : at + len(codes)]
            packed[...] = codes[:, 0]
            for shift in (1, 2, 3):
                packed |= codes[:, shift] << (2 * shift)

    def _transposed(self, buffer: Any) -> Iterator[Any]:
        """(persons, numbers) of a (numbers, persons) buffer, some persons at a time."""
        step = max(1, _CHUNK // max(1, len(buffer)))
        return (np.ascontiguousarray(buffer[:, at : at + step].T) for at in range(0, self.persons, step))

    def _flush(self) -> None:
        assert self.folder is not None  # noqa: S101 - without a folder the caller keeps the table below the capacity
        used = self.width(self._filled)
        self._segments.append((self.folder / f"segment-{len(self._segments)}", used))
        with self._segments[-1][0].open("wb") as file:
            for rows in self._transposed(self._buffer[:used, ::-1]):
                file.write(rows.data)
        self._filled = 0

    def rows(self) -> Iterator[tuple[int, Numbers]]:
        """(first person, rows) in order, some persons at a time. Can be read only once, because it deletes the segments."""
        begin = 0
        if not self._segments:
            for rows in self._transposed(self._buffer[: self.width(self._filled)]):
                yield begin, rows
                begin += len(rows)
            return
        self._flush()
        self._buffer = self._buffer[:0].copy()  # frees the buffer's memory for the rows below
        size, wide = self._type.itemsize, self.width(self.variants)
        step = max(1, self.capacity // (wide * size))
        for begin in range(0, self.persons, step):
            left = max(0, self.persons - begin - step)
            out, at = np.empty((self.persons - begin - left, wide), self._type), 0
            for path, used in self._segments:
                with path.open("r+b", buffering=0) as file:
                    file.seek(left * used * size)
                    piece = np.fromfile(file, self._type, len(out) * used)
                    file.truncate(left * used * size)
                out[:, at : at + used] = piece.reshape(len(out), used)[::-1]
                at += used
            yield begin, out
        for path, _ in self._segments:
            path.unlink()
