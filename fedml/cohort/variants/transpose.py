"""Turns genotypes, which come variant after variant, into packed rows of persons, in bounded memory and without a second copy on disk.

spool = Spool(persons, capacity=64 * 2**20, folder=partial)
for block in blocks:
    spool.add(block.dosage)                  # int8 (variants, persons)
for begin, rows in spool.rows():             # uint8 (some persons, ceil(variants / 4)), as fedml.cohort.variants.packed.Packed holds them
    file.write(rows.data)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.packed import width

_CHUNK = 1 << 20  # bytes at a time, so that what is in between stays in the processor's cache


@final
class Spool:
    """Blocks (variants, persons) come in, packed rows of persons come out, in memory of about twice ``capacity`` bytes.

    The buffer is packed along variants, as they come, so that packing runs over neighbouring bytes. When it is full, it is turned and
    written as a segment, last person first: the table is then read off the segments' ends, which are cut off.
    """

    def __init__(self, persons: int, capacity: int, folder: Path | None) -> None:
        self.persons, self.capacity, self.folder, self.variants = persons, capacity, folder, 0
        self._buffer = np.empty((max(1, capacity // persons), persons), np.uint8)
        self._filled = 0  # variants in the buffer
        self._segments: list[tuple[Path, int]] = []  # with the bytes of a person in each

    @property
    def size(self) -> int:
        """Bytes of the table so far."""
        return width(self.variants) * self.persons

    def add(self, dosage: npt.NDArray[np.int8]) -> None:
        """Takes int8 (variants, persons) of -1 to 2."""
        at, room = 0, 4 * len(self._buffer)
        while at < len(dosage):
            if self._filled == room:
                self._flush()
            count = min(len(dosage) - at, room - self._filled)
            self._put(dosage[at : at + count].view(np.uint8))
            at, self._filled, self.variants = at + count, self._filled + count, self.variants + count

    def _put(self, dosage: npt.NDArray[np.uint8]) -> None:
        lead = min(-self._filled % 4, len(dosage))
        whole = (len(dosage) - lead) // 4 * 4
        step = max(1, _CHUNK // (4 * self.persons))
        for at in (*range(lead), *range(lead + whole, len(dosage))):  # what does not fill a byte
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

    def _turned(self, buffer: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
        """(persons, bytes) of a (bytes, persons) buffer, some persons at a time."""
        each = max(1, _CHUNK // max(1, len(buffer)))
        return (np.ascontiguousarray(buffer[:, at : at + each].T) for at in range(0, self.persons, each))

    def _flush(self) -> None:
        assert self.folder is not None  # noqa: S101 - without a folder the caller keeps the table below the capacity
        used = width(self._filled)
        self._segments.append((self.folder / f"segment-{len(self._segments)}", used))
        with self._segments[-1][0].open("wb") as file:
            for rows in self._turned(self._buffer[:used, ::-1]):
                file.write(rows.data)
        self._filled = 0

    def rows(self) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """The table's rows in order, some at a time, each with its first person. Only once: segments are gone afterwards."""
        begin = 0
        if not self._segments:
            for rows in self._turned(self._buffer[: width(self._filled)]):
                yield begin, rows
                begin += len(rows)
            return
        self._flush()
        self._buffer = self._buffer[:0].copy()  # its memory is needed for the stretches of rows
        each = max(1, self.capacity // width(self.variants))
        for begin in range(0, self.persons, each):
            left = max(0, self.persons - begin - each)
            out, at = np.empty((self.persons - begin - left, width(self.variants)), np.uint8), 0
            for path, used in self._segments:
                with path.open("r+b", buffering=0) as file:
                    file.seek(left * used)
                    piece = np.fromfile(file, np.uint8, len(out) * used)
                    file.truncate(left * used)
                out[:, at : at + used] = piece.reshape(len(out), used)[::-1]
                at += used
            yield begin, out
        for path, _ in self._segments:
            path.unlink()
