"""Opens PNG, JPEG and BMP files and checks checksums and lengths first; a decoder alone fills in missing data and ignores surplus data.

with open_picture(path) as picture:       # Pillow's image
    np.asarray(picture)
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedml.cohort.images.bounds import inflated, require_plausible
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.images.upright import upright_size
from fedml.quiet import hush

LARGEST = 2**28  # pixels, near Pillow's own limit; a sample has one or two bytes
_PNG = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples per pixel (PNG, section 11.2.1)
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # x, y, steps (section 8.2)
_BLOCK = 2**20


@contextmanager
def open_picture(path: Path, size: Sequence[int] | None = None) -> Iterator[Any]:
    """The picture opened by Pillow; pixels are not decoded yet.

    Args:
        path: the file.
        size: for a mask, (rows, columns) of its upright image; a mask of another size is refused before it is decoded.

    Raises:
        ItemError: truncated, wrong-length, too-large, unreadable, mask-mismatch.
        Exception: any exception of Pillow.
    """
    from PIL import Image

    if not path.stat().st_size:
        raise ItemError(Unusable.TRUNCATED, f"{path}: is empty.")
    try:
        with hush():  # a warning of many pixels, of which the limit is below
            picture = Image.open(path)
    except Image.DecompressionBombError as error:
        raise ItemError(Unusable.TOO_LARGE, f"{path}: declares more pixels than the limit of the decoder.") from error
    with picture:
        width, height = picture.size
        if size is not None and upright_size(picture) != tuple(size):
            raise ItemError(
                Unusable.MASK_MISMATCH, f"{path}: the mask is {upright_size(picture)}, its image {tuple(size)}; export both again."
            )
        if width * height > LARGEST:
            raise ItemError(Unusable.TOO_LARGE, f"{path}: declares {width} x {height} pixels, the limit is {LARGEST}.")
        if size is None and picture.format != "BMP":
            require_plausible(path, path.stat().st_size, width * height * len(picture.getbands()))
        if picture.format == "PNG":
            _check_png(path)
        elif picture.format == "BMP":
            _check_bmp(path)
        yield picture


def _check_png(path: Path) -> None:
    """Checks every chunk's CRC, the IEND chunk, and that the image data have the length that the header implies (PNG, sections 5, 7,
    10)."""
    data, at, ended = path.read_bytes(), len(_PNG), False
    parts: list[bytes] = []
    while not ended:
        if at + 12 > len(data):
            raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated, the IEND chunk is missing.")
        (length,) = struct.unpack(">I", data[at : at + 4])
        name, content = data[at + 4 : at + 8], memoryview(data)[at + 8 : at + 8 + length]
        if at + 12 + length > len(data):
            raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated within a chunk.")
        if struct.pack(">I", zlib.crc32(content, zlib.crc32(name))) != data[at + 8 + length : at + 12 + length]:
            raise ItemError(Unusable.UNREADABLE, f"{path}: a chunk is damaged, its checksum differs.")
        if name == b"IDAT":
            parts.append(bytes(content))
        at, ended = at + 12 + length, name == b"IEND"
    _check_image_data(path, parts, _png_length(path, data[16:29]))


def _png_length(path: Path, header: bytes) -> int:
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    if depth not in _DEPTHS.get(colour, ()) or interlace > 1:
        raise ItemError(Unusable.UNREADABLE, f"{path}: has an invalid PNG colour type, bit depth or interlace method.")
    bits, length = depth * _SAMPLES[colour], 0
    for x, y, across, down in _ADAM7 if interlace else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // across), -(-(height - y) // down)
        if columns > 0 and rows > 0:
            length += rows * (1 + -(-columns * bits // 8))  # one byte for the filter type before each row
    return length


def _check_image_data(path: Path, parts: Sequence[bytes], expected: int) -> None:
    try:
        length, ended, behind = inflated(b"".join(parts), zlib.MAX_WBITS, expected)
    except zlib.error as error:
        raise ItemError(Unusable.UNREADABLE, f"{path}: the image data are damaged.") from error
    if length > expected or (ended and behind):
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: contains more image data than its header declares.")
    if length < expected or not ended:
        raise ItemError(Unusable.TRUNCATED, f"{path}: the image data are truncated, {length} of {expected} bytes are present.")


def _check_bmp(path: Path) -> None:
    """Checks that the rows of an uncompressed bitmap, padded to four bytes, fill the file from the pixel offset to the end."""
    with path.open("rb") as file:
        head = file.read(54)
    if len(head) < 54:
        raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated.")
    offset, kind = struct.unpack("<I", head[10:14])[0], struct.unpack("<I", head[14:18])[0]
    if kind < 40:
        return
    width, height, _, bits, packed = struct.unpack("<iiHHI", head[18:34])
    if packed not in (0, 3):  # run-length encoded
        return
    expected, length = offset + abs(height) * (-(-abs(width) * bits // 32) * 4), path.stat().st_size
    if length < expected:
        raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated, {length} of {expected} bytes are present.")
    if length > expected + _BLOCK or (kind < 124 and length > expected + 4):  # version 5 may store a colour profile after the pixels
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: contains more than the {expected} bytes that its header declares.")
