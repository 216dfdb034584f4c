"""Whether an index belongs to its genotype file: with one of an earlier version, a region silently lacks records.

    check_index(Path("cohort.vcf.gz"), Path("cohort.vcf.gz.tbi"), None)

Always: the index ends where the file ends, and its offsets begin records of their contig at a position of their bin. Of an index that is
older than the file, which a copy may be too, also the number of records. Times alone say nothing, because copies have new ones.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, final

from fedml.cohort.variants.bgzf import block_size, inflated
from fedml.cohort.variants.csi import Csi, read_index
from fedml.errors import InputError

_SAMPLED = 1000  # offsets that are looked up; each takes the inflation of a block
_BLOCK = 2**16  # most bytes of a bgzip block
_ENOUGH = 1000  # bytes of a record with its contig and position


class _Start(NamedTuple):
    """A chunk's virtual offset, the number of its contig, and the bases of its bin, 0-based, the last not included."""

    offset: int
    contig: int
    first: int
    last: int


def check_index(path: Path, index: Path, names: Mapping[int, bytes] | None) -> None:
    """Compares an index with its file.

    Args:
        names: of a BCF file, contig number -> name; None: the file is text, and the index has the names.

    Raises:
        InputError: the index cannot be read, or belongs to another file, or to an earlier version of it.
    """
    found = read_index(index)
    older = index.stat().st_mtime_ns < path.stat().st_mtime_ns
    with path.open("rb") as file:
        why = _misfit(_Blocks(file), found, names, everything=older)
    if not why and older:
        why = _other_count(path, found, names)
    if why:
        age = ", and it is older than the file" if older else ""
        raise InputError(f"{index}: belongs to another file or to an earlier version of {path}: {why}{age}; run bcftools index -f {path}.")


def _misfit(blocks: _Blocks, index: Csi, names: Mapping[int, bytes] | None, *, everything: bool) -> str:
    """What in the file contradicts the index, or an empty string."""
    bins = [(at, number, b) for at, contig in enumerate(index.contigs) for number, b in contig.items() if number != index.described]
    if end := max((stop for _, _, b in bins for _, stop in b.chunks), default=0):
        data = blocks.at(end)
        if data is None:
            return "the index ends where no block of the file does"
        if data:
            return "the file goes on where the index ends"
    elif blocks.has_record(text=names is None):
        return "the index knows no record, the file has some"
    starts = sorted(_Start(begin, at, *index.span(number)) for at, number, b in bins for begin, _ in b.chunks)
    step = 1 if everything else max(1, len(starts) // _SAMPLED)
    for start in starts[::step]:
        data = blocks.at(start.offset)
        if names is None and start.contig >= len(index.names):
            return "the index lacks the name of a contig"
        known = names is None or start.contig in names
        if not data or not known or not _begins(data, start, index.names[start.contig] if names is None else b""):
            name = index.names[start.contig] if names is None else names.get(start.contig, b"?")
            return f"no record of contig {name.decode(errors='replace')} begins where the index says"
    return ""


def _begins(data: bytes, start: _Start, name: bytes) -> bool:
    """True if ``data`` begins with a record of the contig at a base of the bin. ``name``: empty in BCF."""
    if name:
        fields = data[:_ENOUGH].split(b"\t", 2)
        if len(fields) < 3 or fields[0] != name or not fields[1].isdigit():
            return False
        position = int(fields[1][:12]) - 1
    else:
        if len(data) < 32:
            return False
        shared, _, contig, position = struct.unpack_from("<IIii", data)
        if contig != start.contig or shared < 24:
            return False
    return start.first <= max(position, 0) < start.last  # position 0, of a telomere, is in the first bin


def _other_count(path: Path, index: Csi, names: Mapping[int, bytes] | None) -> str:
    """The difference of the numbers of records, in words; empty if they are equal or the index does not count them."""
    described = [contig.get(index.described) for contig in index.contigs if contig]
    if not all(b is not None and len(b.chunks) == 2 for b in described):
        return ""
    counted = sum(sum(b.chunks[1]) for b in described if b is not None)
    records = sum(1 for _ in _framed(path)) if names is not None else _lines(path)
    return "" if records == counted else f"the file has {records:,} records, the index {counted:,}"


def _lines(path: Path) -> int:
    """Lines that are no header lines."""
    lines, header, last = 0, 0, b"\n"
    in_header, rest = True, b""
    for piece in inflated(path):
        lines += piece.count(b"\n")
        last = piece[-1:]
        if in_header:
            rest += piece
            *whole, rest = rest.split(b"\n")
            header += sum(line.startswith(b"#") for line in whole)
            in_header = all(line.startswith(b"#") for line in whole)
    return lines - header + (last != b"\n")


def _framed(path: Path) -> Iterator[int]:
    """The length of each BCF record."""
    buffer, skip = b"", -1
    for piece in inflated(path):
        buffer += piece
        if skip < 0 and len(buffer) >= 9:
            skip = 9 + int.from_bytes(buffer[5:9], "little")
        at = 0
        if skip > 0:
            at = min(skip, len(buffer))
            skip -= at
        while skip == 0 and at + 8 <= len(buffer) and at + (length := 8 + sum(struct.unpack_from("<II", buffer, at))) <= len(buffer):
            at += length
            yield length
        buffer = buffer[at:] if skip >= 0 else buffer


@final
class _Blocks:
    """The inflated content of an opened bgzip file from virtual offsets on; keeps the last block, because offsets ascend."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.last: tuple[int, bytes, int] = -1, b"", 0  # offset, content, bytes in the file

    def at(self, offset: int) -> bytes | None:
        """At least ``_ENOUGH`` bytes from a virtual offset on, fewer only at the file's end; None where no block begins."""
        if self.last[0] != offset >> 16:
            block = self._block(offset >> 16)
            if block is None:
                return None
            self.last = offset >> 16, *block
        begin, data, size = self.last
        if (offset & 0xFFFF) > len(data):
            return None
        rest, begin = data[offset & 0xFFFF :], begin + size
        while len(rest) < _ENOUGH and size:
            block = self._block(begin)
            if block is None:
                return None
            data, size = block
            rest, begin = rest + data, begin + size
        return rest

    def has_record(self, *, text: bool) -> bool:
        """True if anything follows the header."""
        data, at, size = b"", 0, 1
        while size and (block := self._block(at)) is not None:
            piece, size = block
            data, at = data + piece, at + size
            if text:
                *whole, data = data.split(b"\n")
                if any(not line.startswith(b"#") for line in [*whole, *([data] if data else [])]):
                    return True
            elif len(data) > 9 + int.from_bytes(data[5:9], "little"):
                return True
        return False

    def _block(self, offset: int) -> tuple[bytes, int] | None:
        """Content and bytes of the block at ``offset``, both nothing at the file's end; None if there is no block."""
        self.file.seek(offset)
        found = self.file.read(_BLOCK)
        if not found:
            return (b"", 0) if offset == self.file.seek(0, 2) else None
        size = block_size(found, 0)
        if size is None or size > len(found) or found[:4] != b"\x1f\x8b\x08\x04" or found[12:14] != b"BC":
            return None
        try:
            return zlib.decompress(found[:size], 31, _BLOCK), size
        except zlib.error:
            return None
