"""The voxels of a file whose header says how many bytes they are: raw or compressed, in the same file or in one beside it.

beside(path, "scan.raw")                                   # the file, or ItemError
unpacked(path, packed, expected, "gzip", bomb=True)        # just ``expected`` bytes
"""

from __future__ import annotations

import bz2
import zlib
from pathlib import Path
from typing import Literal

from fedml.cohort.images.bounds import require_plausible
from fedml.cohort.images.reasons import ItemError, Unusable

PADDING = 512  # bytes; zeros up to here may follow the voxels
Encoding = Literal["raw", "gzip", "zlib", "bzip2"]
HEADERS = (".mhd", ".nhdr")


def beside(path: Path, name: str) -> Path:
    """The file of the voxels that the header ``path`` names. It lies in the header's folder; there, it has the header's name up to the
    ending, or the folder has no other header: in a folder of several persons a header could name the voxels of another one.

    Raises:
        ItemError: unreadable: another place, another name, no such file; or a link that leads elsewhere.
    """
    plain = Path(name).name == name and "\\" not in name and name not in ("", ".", "..")
    if not plain:
        raise ItemError(Unusable.UNREADABLE, f"{path}: its voxels are not in its own folder; put both files into one.")
    found = path.parent / name
    if not found.is_file() or found.resolve().parent != path.resolve().parent:
        raise ItemError(Unusable.UNREADABLE, f"{path}: its voxels are not in its own folder, under the name that it states.")
    if name.partition(".")[0] != path.stem:
        others = [one for one in path.parent.iterdir() if one.name.endswith(HEADERS) and one.name != path.name]
        if others:
            text = "names voxels of another name, in a folder with other images; give both files one name, or a folder of their own"
            raise ItemError(Unusable.UNREADABLE, f"{path}: {text}.")
    return found


def read_beside(path: Path, expected: int) -> bytes:
    """The bytes of a file that holds ``expected`` bytes of voxels, compressed or not.

    Raises:
        ItemError: wrong-length: it is larger than that, even uncompressed.
    """
    if path.stat().st_size > expected + expected // 100 + 2**16:
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: holds more than the {expected} bytes that its header declares.")
    return path.read_bytes()


def unpacked(path: Path, packed: memoryview, expected: int, encoding: Encoding, *, bomb: bool) -> bytes | memoryview:
    """The bytes of the voxels, just as many as the header declares; never more than that is unpacked.

    Args:
        bomb: whether the ratio of compression is limited: that of a mask is not, which is bounded by its image.

    Raises:
        ItemError: truncated, wrong-length, too-large; unreadable: the compressed data are damaged.
    """
    if encoding == "raw":
        behind = bytes(packed[expected : expected + PADDING])
        check_length(path, len(packed), expected, any(behind) or len(packed) > expected + PADDING)
        return packed[:expected]
    if bomb:
        require_plausible(path, len(packed), expected)
    try:
        out, ended, rest = _bunzip(packed, expected) if encoding == "bzip2" else _inflate(packed, expected, encoding)
    except (zlib.error, OSError, EOFError) as error:
        raise ItemError(Unusable.UNREADABLE, f"{path}: its compressed data are damaged.") from error
    check_length(path, len(out), expected, len(out) > expected or any(rest))
    if not ended:
        raise ItemError(Unusable.TRUNCATED, f"{path}: is cut short.")
    return out


def _inflate(packed: memoryview, expected: int, encoding: Encoding) -> tuple[bytes, bool, bytes]:
    inflate = zlib.decompressobj(zlib.MAX_WBITS | (16 if encoding == "gzip" else 32))
    out = inflate.decompress(packed, expected + 1)
    if len(out) == expected and not inflate.eof:  # the checksum follows the last byte
        out += inflate.decompress(inflate.unconsumed_tail, 1)
    return out, inflate.eof, inflate.unused_data


def _bunzip(packed: memoryview, expected: int) -> tuple[bytes, bool, bytes]:
    expand = bz2.BZ2Decompressor()
    out = expand.decompress(bytes(packed), expected + 1)
    if len(out) == expected and not expand.eof:
        out += expand.decompress(b"", 1)
    return out, expand.eof, expand.unused_data if expand.eof else b""


def check_length(path: Path, length: int, expected: int, more: bool) -> None:
    """Raises ``ItemError`` unless the length is the expected one; ``more``: there is more than padding behind."""
    if length < expected:
        raise ItemError(Unusable.TRUNCATED, f"{path}: is cut short, {length} of {expected} bytes are there.")
    if more:
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: holds more than the {expected} bytes that its header declares.")
