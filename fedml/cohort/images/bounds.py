"""Limits on decompressed size: refuses decompression bombs, small files that decompress to more than the memory.

    require_plausible(path, path.stat().st_size, rows * columns * 3)      # ItemError(too-large)

Deflate compresses at most 1,032 to 1 (zlib's manual), and only constant bytes come near. The largest ratio known for a public image set is
220 (binary shapes of 64 x 64 x 64 voxels); photographs and scans stay below 20.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from fedml.cohort.images.reasons import ItemError, Unusable

RATIO = 500
SMALL = 64 * 2**20  # bytes; a decompressed size up to this limit is always accepted
_BLOCK, _PIECE = 2**20, 2**14
_PADDING = 512  # bytes; at most this many zeros may follow the data


def require_plausible(path: Path, packed: int, unpacked: int) -> None:
    """Checks the ratio of ``unpacked`` to ``packed`` bytes.

    Raises:
        ItemError: too-large: the file is a decompression bomb.
    """
    if unpacked > SMALL and unpacked > RATIO * packed:
        raise ItemError(Unusable.TOO_LARGE, f"{path}: decompresses to {unpacked >> 20} MB, {unpacked // max(packed, 1)} times its size.")


def inflated(data: bytes, wbits: int, most: int) -> tuple[int, bool, int]:
    """(decompressed bytes of ``data``, whether the stream ends, bytes after its end). Discards the output; stops above ``most`` bytes.

    Raises:
        zlib.error: the stream is damaged, or its checksum is wrong.
    """
    inflate, length, at, view = zlib.decompressobj(wbits), 0, 0, memoryview(data)
    while at < len(data) and not inflate.eof and length <= most:
        rest: bytes | memoryview = view[at : at + _PIECE]
        at += len(rest)
        while rest and not inflate.eof and length <= most:
            length += len(inflate.decompress(rest, _BLOCK))
            rest = inflate.unconsumed_tail
    return length, inflate.eof, len(inflate.unused_data) + len(data) - at


def require_length(path: Path, expected: int) -> None:
    """Checks that a file's length is the ``expected`` bytes, and the checksum of a ``.gz``, in bounded memory.

    Raises:
        ItemError: truncated, wrong-length, or unreadable (the checksum differs).
    """
    length, rest = 0, b""
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path) as file:
                while length <= expected + _PADDING and (block := file.read(_BLOCK)):
                    rest += block[max(0, expected - length) :]
                    length += len(block)
        else:
            length = path.stat().st_size
            if expected < length <= expected + _PADDING:
                with path.open("rb") as file:
                    file.seek(expected)
                    rest = file.read()
    except EOFError as error:
        raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ItemError(Unusable.UNREADABLE, f"{path}: its compressed data are damaged.") from error
    if length < expected:
        raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated, {length} of {expected} bytes are present.")
    if length > expected + _PADDING or any(rest):
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: contains more than the {expected} bytes that its header declares.")
