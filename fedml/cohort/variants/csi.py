"""Reads CSI and TBI indexes (samtools specifications CSIv1 and tabix), and finds the offset of a region in a BCF file.

read_index(find_index(path, ".csi")).start(contig_number, begin, end)
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from fedml.cohort.variants.bgzf import inflated
from fedml.errors import InputError


class Bin(NamedTuple):
    """``first``: virtual offset of the first record that overlaps the bin; ``chunks``: (begin, end) offsets of the bin's records."""

    first: int
    chunks: tuple[tuple[int, int], ...]


class Csi(NamedTuple):
    """``contigs``: for each contig, bin number -> bin. Bins of the lowest level are 2**shift bases wide; bins of each level above are
    8 times as wide. ``names``: of the contigs, in an index of text; of BCF the header has them."""

    shift: int
    depth: int
    contigs: list[dict[int, Bin]]
    names: tuple[bytes, ...] = ()

    @property
    def described(self) -> int:
        """Number of the bin that describes a contig: offsets of its first record and after its last, and its number of records."""
        return int((8 ** (self.depth + 1) - 1) // 7 + 1)

    def span(self, number: int) -> tuple[int, int]:
        """First base of a bin, 0-based, and the base after its last."""
        level, first = 0, 0
        while number >= first + 8**level:
            first += 8**level
            level += 1
        width = self.shift + 3 * (self.depth - level)
        return (number - first) << width, (number - first + 1) << width

    def start(self, contig: int, begin: int, end: int) -> int | None:
        """The virtual offset at or before the first record that overlaps [begin, end), 0-based; None if no record overlaps it."""
        bins = self.contigs[contig] if contig < len(self.contigs) else {}
        last = min(end, 1 << (self.shift + 3 * self.depth)) - 1
        reached = [b for number, b in bins.items() if self._overlaps(number, begin, last)]
        floor = self._floor(bins, begin)
        return min((max(chunk, floor) for b in reached for chunk, stop in b.chunks if stop > floor), default=None)

    def _overlaps(self, number: int, begin: int, last: int) -> bool:
        level, first = 0, 0
        while number >= first + 8**level:
            first += 8**level
            level += 1
            if level > self.depth:
                return False  # the metadata bin
        width = self.shift + 3 * (self.depth - level)
        return begin >> width <= number - first <= last >> width

    def _floor(self, bins: dict[int, Bin], begin: int) -> int:
        """A virtual offset before which no record overlaps ``begin`` or later bases: that of the nearest bin at or before ``begin``."""
        number = (8**self.depth - 1) // 7 + (begin >> self.shift)
        while number and number not in bins:
            eldest = ((number - 1) >> 3 << 3) + 1
            number = number - 1 if number > eldest else (number - 1) >> 3
        return bins[number].first if number in bins else 0


def read_index(path: Path) -> Csi:
    """The index at ``path``.

    Raises:
        InputError: the file is not a CSI or TBI index, or is damaged.
    """
    data = b"".join(inflated(path))
    try:
        if data[:4] == b"TBI\1":
            (contigs,) = struct.unpack_from("<i", data, 4)
            shift, depth, auxiliary, at = 14, 5, data[8:36], 36
            auxiliary += data[at : at + struct.unpack_from("<i", auxiliary, 24)[0]]
            at = 8 + len(auxiliary)
        else:
            magic, shift, depth, length = struct.unpack_from("<4siii", data)
            if magic != b"CSI\1" or not (0 < shift < 32 and 0 <= depth < 11):
                raise ValueError("not an index")
            auxiliary = data[16 : 16 + length]
            (contigs,) = struct.unpack_from("<i", data, 16 + length)
            at = 20 + length
        if contigs < 0:
            raise ValueError("a negative number of contigs")
        names = tuple(auxiliary[28:].rstrip(b"\0").split(b"\0")) if len(auxiliary) > 28 else ()
        return Csi(shift, depth, _contigs(data, at, contigs, data[:4] == b"TBI\1"), names)
    except (struct.error, ValueError) as error:
        raise InputError(f"{path}: cannot be read as an index; rebuild it (bcftools index -f).") from error


def _contigs(data: bytes, at: int, count: int, tabix: bool) -> list[dict[int, Bin]]:
    """The bins of each contig, from offset ``at``. A TBI bin has no offset of its first record, and a table of offsets follows the bins."""
    contigs = []
    for _ in range(count):
        (bins,) = struct.unpack_from("<i", data, at)
        at += 4
        contig: dict[int, Bin] = {}
        for _ in range(bins):
            number, first, chunks = (*struct.unpack_from("<I", data, at), 0, *struct.unpack_from("<i", data, at + 4)) if tabix else (
                struct.unpack_from("<IQi", data, at)
            )  # fmt: skip
            at += 8 if tabix else 16
            ends = struct.unpack_from(f"<{2 * chunks}Q", data, at)
            at += 16 * chunks
            contig[number] = Bin(first, tuple(zip(ends[::2], ends[1::2], strict=True)))
        if tabix:
            at += 4 + 8 * struct.unpack_from("<i", data, at)[0]
        contigs.append(contig)
    return contigs
