"""Reads the bytes of a bgzip or plain file in pieces and checks every bgzip block.

    for piece in inflated(path): ...                    # bytes, about 64 KB each
    for text in whole_lines(inflated(path), path, size=2**20, longest=2**24): ...

A bgzip file is a sequence of gzip members of at most 64 KB. Each member states its length, and the last member is empty (SAM specification,
section 4.1). zlib checks each member's CRC-32 and length.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from fedml.errors import InputError

_GZIP, _HEAD = b"\x1f\x8b", 18  # a bgzip member's header, its extra field included
_EMPTY = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_READ = 2**18


def check_whole(path: Path) -> bool:
    """True if the file is bgzip, False if it is not compressed; reads only the first and last bytes.

    Raises:
        InputError: the file is empty, is gzip but not bgzip, or lacks bgzip's empty last block. A missing last block means that the file is
            truncated, which htslib does not report as an error.
    """
    with path.open("rb") as file:
        start = file.read(_HEAD)
        if not start:
            raise InputError(f"{path}: is empty and has no header; copy the file again.")
        if start[:2] != _GZIP:
            return False
        if start[12:14] != b"BC":
            raise InputError(f"{path}: is compressed with gzip, not bgzip; compress it with bgzip (gunzip -c, then bgzip).")
        file.seek(-min(len(_EMPTY), path.stat().st_size), 2)
        if file.read() != _EMPTY:
            raise InputError(f"{path}: is truncated, its last bgzip block is missing; copy the file again.")
    return True


def inflated(path: Path, start: int = 0) -> Iterator[bytes]:
    """The file's decompressed content, one bgzip block (or 64 KB of a plain file) at a time; ``start``: virtual offset in a bgzip file.

    Raises:
        InputError: a block is damaged or truncated, or bgzip's last block is missing.
    """
    if not check_whole(path):
        with path.open("rb") as file:
            while piece := file.read(2**16):
                yield piece
        return
    with path.open("rb") as file:
        file.seek(start >> 16)
        buffer, at, end, skip = b"", 0, False, start & 0xFFFF
        while True:
            size = block_size(buffer, at)
            if size is None or at + size > len(buffer):
                more = file.read(_READ)
                if not more:
                    break
                buffer, at = buffer[at:] + more, 0
                continue
            if size <= _HEAD or buffer[at : at + 4] != _EMPTY[:4] or buffer[at + 12 : at + 14] != b"BC":
                raise InputError(f"{path}: is damaged, no bgzip block begins where the previous block ends; copy the file again.")
            try:
                piece = zlib.decompress(buffer[at : at + size], 31, 2**16)  # 31: a gzip member, its CRC and length checked
            except zlib.error as error:
                what = "is damaged, a bgzip block does not decompress or fails its checksum"
                raise InputError(f"{path}: {what}; copy the file again.") from error
            at, end = at + size, not piece
            if piece:
                yield piece[skip:]
            skip = 0
        if at != len(buffer) or not end:
            raise InputError(f"{path}: is truncated in the middle of a bgzip block; copy the file again.")


def block_size(buffer: bytes, at: int) -> int | None:
    """Length in bytes of the block that begins at ``at``; None if ``buffer`` ends before the block's length field."""
    return None if len(buffer) - at < _HEAD else int.from_bytes(buffer[at + 16 : at + 18], "little") + 1


def whole_lines(pieces: Iterator[bytes], path: Path, size: int, longest: int) -> Iterator[bytes]:
    """The text in runs of complete lines, about ``size`` bytes each (one line if it is longer); only the last run may lack its line end.

    Raises:
        InputError: a line has more than ``longest`` bytes.
    """
    lines: list[bytes | memoryview] = []  # complete lines
    begun: list[bytes | memoryview] = []  # the beginning of the next line
    full, open_, given = 0, 0, 0
    for piece in pieces:
        first = piece.find(b"\n")
        if open_ + (len(piece) if first < 0 else first) > longest:
            number, length = 1 + _line_ends(path, given + full), open_ + _to_line_end(piece, pieces)
            raise InputError(
                f"{path}: line {number} has {length:,} bytes, more than the memory limit of {longest:,} bytes; "
                "raise data.variants.memory_mb in site.toml."
            )
        cut = piece.rfind(b"\n") + 1 if first >= 0 else 0
        view = memoryview(piece)
        if cut:
            lines += [*begun, view[:cut]]
            full += open_ + cut
            begun, open_ = [], 0
        begun.append(view[cut:])
        open_ += len(piece) - cut
        if full and full + open_ >= size:
            text = b"".join(lines)
            lines, full, given = [], 0, given + full
            yield text
    if full + open_:
        yield b"".join([*lines, *begun])


def _line_ends(path: Path, size: int) -> int:
    """Number of line ends in the first ``size`` bytes; counted only for an error message."""
    count = 0
    for piece in inflated(path):
        count += piece.count(b"\n", 0, size)
        size -= len(piece)
        if size <= 0:
            break
    return count


def _to_line_end(piece: bytes, pieces: Iterator[bytes]) -> int:
    """Number of bytes before the next line end."""
    length = 0
    while (end := piece.find(b"\n")) < 0:
        length += len(piece)
        piece = next(pieces, b"\n")
    return length + end


def find_index(path: Path, *endings: str) -> Path:
    """The index file of ``path``, in the same folder, with the first of ``endings`` that exists.

    Raises:
        InputError: there is no index file.
    """
    for ending in endings:
        index = path.with_name(path.name + ending)
        if index.exists():
            return index
    raise InputError(f"{path}: has no index ({' or '.join(endings)}), which regions need; create it (bcftools index {path}).")
