"""TIFF pictures and stacks: plain pages, ImageJ's and OME-TIFF (TIFF 6.0; docs.openmicroscopy.org/ome-model).

    voxels, affine = read_tiff(path)      # picture: (rows, columns[, channels]); stack: (columns, rows, slices, channels)

A stack has more than one plane of Z: pages of a plain file, ``slices`` of ImageJ, SizeZ of OME-XML, whose TiffData says which plane is
where. Planes of C are channels; of T, without C, too. The pages are decoded here, by NumPy and imagecodecs, each piece of a page to just
the bytes that its header declares. OME's PhysicalSize is the spacing; which side of a body an axis points to no TIFF says.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.bounds import inflated, require_plausible
from fedml.cohort.images.directories import MAGIC, directories, order_of
from fedml.cohort.images.ome import Planes, planes_of_ome
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.images.transforms import LARGEST

ENDINGS = (".ome.tiff", ".ome.tif", ".tiff", ".tif")
_PAGES, _SEGMENTS = 20_000, 2**20
(
    _REDUCED, _WIDTH, _HEIGHT, _BITS, _PACKED, _COLOURS, _FILL, _TEXT, _STRIPS, _WAY_UP, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES, _PLANAR,
    _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _FORMAT,
) = (254, 256, 257, 258, 259, 262, 266, 270, 273, 274, 277, 278, 279, 284, 317, 322, 323, 324, 325, 338, 339)  # fmt: skip
_WANTED = frozenset((_REDUCED, _WIDTH, _HEIGHT, _BITS, _PACKED, _COLOURS, _FILL, _TEXT, _STRIPS, _WAY_UP, _SAMPLES, _STRIP_ROWS,
                     _STRIP_BYTES, _PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _FORMAT))  # fmt: skip
_KINDS = {1: "u", 2: "i", 3: "f"}
_DEFLATE, _LZW, _PACKBITS, _ZSTD = (8, 32946), 5, 32773, 50000

Affine = npt.NDArray[np.float64]


class _Page(NamedTuple):
    tags: Mapping[int, list[int]]
    shape: tuple[int, int, int]  # rows, columns, samples
    kind: np.dtype[Any]

    def one(self, tag: int, default: int) -> int:
        return self.tags[tag][0] if self.tags.get(tag) else default


def read_tiff(path: Path, size: Sequence[int] | None = None) -> tuple[npt.NDArray[Any], Affine | None]:
    """The values as they are stored, and the spacing in mm on the diagonal, None if the file states none.

    Args:
        size: of a mask, the voxels of its image: any other number of voxels is refused before it is decoded.

    Raises:
        ItemError: not-an-image, truncated, wrong-length, too-large, unreadable, compressed, geometry, several-series (pages of different
            sizes), mask-mismatch.
    """
    with path.open("rb") as file:
        start = file.read(4)
        if start not in MAGIC:
            reason = Unusable.NOT_AN_IMAGE if start else Unusable.TRUNCATED
            raise ItemError(reason, f"{path}: is not TIFF.")
        try:
            found = [tags for tags in directories(file, path, _WANTED, most=_PAGES) if not tags.get(_REDUCED, [0])[0] & 1]
        except struct.error as error:
            raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated within a directory.") from error
        pages = [_page(tags, order_of(start), path) for tags in found]
        if not pages:
            raise ItemError(Unusable.TRUNCATED, f"{path}: has no page.")
        if any((page.shape, page.kind) != (pages[0].shape, pages[0].kind) for page in pages):
            raise ItemError(Unusable.SEVERAL_SERIES, f"{path}: has pages of different sizes or types; an image is one series of pages.")
        planes = _planes(pages, path)
        count = math.prod(planes.shape) * math.prod(pages[0].shape)
        if size is not None and count != math.prod(size):
            raise ItemError(Unusable.MASK_MISMATCH, f"{path}: has {count} voxels, its image {tuple(size)}; export both again.")
        if count > LARGEST:
            raise ItemError(Unusable.TOO_LARGE, f"{path}: declares {count} voxels, the limit is {LARGEST}.")
        if size is None:
            require_plausible(path, path.stat().st_size, count * pages[0].kind.itemsize)
        return _array(file, path, pages, planes), _spacing(planes)


def _page(tags: Mapping[int, list[int]], order: Literal["<", ">"], path: Path) -> _Page:
    page = _Page(tags, (0, 0, 0), np.dtype("u1"))
    shape = page.one(_HEIGHT, 0), page.one(_WIDTH, 0), page.one(_SAMPLES, 1)
    bits, formats = set(tags.get(_BITS) or [1]), set(tags.get(_FORMAT) or [1])
    if min(shape) < 1:
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: declares a page of {shape} rows, columns and samples.")
    if len(bits) > 1 or len(formats) > 1 or min(formats) not in _KINDS or min(bits) not in (8, 16, 32, 64):
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: has values of {sorted(bits)} bits; 8, 16, 32 or 64 of one kind are read.")
    name = f"{_KINDS[min(formats)]}{min(bits) // 8}"
    if name == "f1":
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: has floating-point values of 8 bits.")
    colours = page.one(_COLOURS, 1)
    if colours not in (0, 1, 2) or (colours == 2) != (shape[2] >= 3):
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: has the colours {colours} of TIFF; grey and RGB are read; save it as one of them.")
    if colours == 0:
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: is stored inverted (0 is white); save it with black as 0.")
    if page.one(_WAY_UP, 1) != 1 or page.one(_FILL, 1) != 1:
        raise ItemError(Unusable.GEOMETRY, f"{path}: is stored turned (Orientation {page.one(_WAY_UP, 1)}); save it upright.")
    return _Page(tags, shape, np.dtype(name).newbyteorder(order))


def _planes(pages: Sequence[_Page], path: Path) -> Planes:
    """Which page is which plane."""
    text = bytes(pages[0].tags.get(_TEXT) or []).strip(b"\0 \r\n")
    if text.startswith(b"<") and b"<OME" in text[:1000]:
        return planes_of_ome(text, len(pages), pages[0].shape, pages[0].kind, path)
    if text.startswith(b"ImageJ="):
        counts = dict(re.findall(rb"^(images|channels|slices|frames)=(\d{1,9})\s*$", text, re.MULTILINE))
        slices, channels, frames = (int(counts.get(name, 1)) for name in (b"slices", b"channels", b"frames"))
        images = int(counts.get(b"images", len(pages)))
        if images != len(pages):
            raise ItemError(Unusable.WRONG_LENGTH, f"{path}: says that it has {images} images, and {len(pages)} pages are there.")
        if slices * channels * frames != images:
            slices, channels, frames = images, 1, 1
        at = np.arange(images).reshape(frames, slices, channels)
        return Planes(at, (None, None, None))
    return Planes(np.arange(len(pages)).reshape(1, -1, 1), (None, None, None))


def _array(file: BinaryIO, path: Path, pages: Sequence[_Page], planes: Planes) -> npt.NDArray[Any]:
    """(rows, columns[, channels]), or (columns, rows, slices, channels)."""
    frames, slices, channels = planes.shape
    rows, columns, samples = pages[0].shape
    if sum(n > 1 for n in (frames, channels, samples)) > 1:
        text = f"{path}: has {frames} times, {channels} channels and {samples} samples of a pixel; an image has one of them more than once."
        raise ItemError(Unusable.GEOMETRY, text)
    out = np.empty((slices, frames * channels * samples, rows, columns), pages[0].kind.newbyteorder("="))
    for t, z, c in np.ndindex(*planes.shape):
        decoded = _decoded(file, path, pages[int(planes.page[t, z, c])])
        first = (t * channels + c) * samples
        out[z, first : first + samples] = np.moveaxis(decoded, -1, 0)
    if slices > 1:
        return out.transpose(3, 2, 0, 1)
    return out[0, 0] if out.shape[1] == 1 else np.moveaxis(out[0], 0, -1)


def _spacing(planes: Planes) -> Affine | None:
    x, y, z = planes.spacing_mm
    if x is None or y is None:
        return None
    if planes.shape[1] == 1:
        return np.diag([y, x, 1.0, 1.0])
    return None if z is None else np.diag([x, y, z, 1.0])


def _decoded(file: BinaryIO, path: Path, page: _Page) -> npt.NDArray[Any]:
    """(rows, columns, samples) of a page."""
    rows, columns, samples = page.shape
    out = np.empty(page.shape, page.kind.newbyteorder("="))
    apart = page.one(_PLANAR, 1) == 2
    for data, (top, left, plane), (high, wide) in _segments(file, path, page):
        inner = min(high, rows - top), min(wide, columns - left)
        values = _unpacked(data, page, (high, wide, 1 if apart else samples), inner[0], path)
        part = values[: inner[0], : inner[1]]
        if apart:
            out[top : top + inner[0], left : left + inner[1], plane] = part[..., 0]
        else:
            out[top : top + inner[0], left : left + inner[1]] = part
    return out


def _segments(file: BinaryIO, path: Path, page: _Page) -> Iterator[tuple[bytes, tuple[int, int, int], tuple[int, int]]]:
    """The bytes of each strip or tile, where it begins (row, column, plane), and its size (rows, columns)."""
    rows, columns, samples = page.shape
    tiled = _TILES in page.tags
    size = (page.one(_TILE_HEIGHT, 0), page.one(_TILE_WIDTH, 0)) if tiled else (min(page.one(_STRIP_ROWS, rows), rows), columns)
    offsets, lengths = page.tags.get(_TILES if tiled else _STRIPS) or [], page.tags.get(_TILE_BYTES if tiled else _STRIP_BYTES) or []
    if min(size) < 1 or (tiled and max(size) > 2**14):
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: declares strips or tiles of {size} pixels.")
    planes = samples if page.one(_PLANAR, 1) == 2 else 1
    down, across = -(-rows // size[0]), -(-columns // size[1])
    if not len(offsets) == len(lengths) == planes * down * across or len(offsets) > _SEGMENTS:
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: has {len(offsets)} strips or tiles where {planes * down * across} are needed.")
    end = path.stat().st_size
    for k, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        if offset + length > end or not length:
            raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated, a strip or tile is not in the file.")
        file.seek(offset)
        plane, rest = divmod(k, down * across)
        top, left = rest // across * size[0], rest % across * size[1]
        high = size[0] if tiled else min(size[0], rows - top)
        yield file.read(length), (top, left, plane), (high, size[1])


def _unpacked(data: bytes, page: _Page, shape: tuple[int, int, int], least: int, path: Path) -> npt.NDArray[Any]:
    """(rows, columns, samples) of a strip or tile."""
    expected = math.prod(shape) * page.kind.itemsize
    packed = page.one(_PACKED, 1)
    try:
        raw = _raw(data, packed, expected, path)
    except ItemError:
        raise
    except Exception as error:  # each codec raises its own class
        raise ItemError(Unusable.UNREADABLE, f"{path}: its compressed data are damaged.") from error
    if len(raw) != expected:
        reason = Unusable.TRUNCATED if len(raw) < expected else Unusable.WRONG_LENGTH
        raise ItemError(reason, f"{path}: a strip or tile has {len(raw)} of {expected} bytes.")
    values = np.frombuffer(raw, page.kind).reshape(shape)
    predictor = page.one(_PREDICTOR, 1)
    if predictor == 1:
        return values
    plain = values.astype(page.kind.newbyteorder("="))
    if predictor == 2 and plain.dtype.kind in "ui":
        return np.cumsum(plain, axis=1, dtype=plain.dtype)
    if predictor == 3 and plain.dtype.kind == "f":
        import imagecodecs

        return np.asarray(imagecodecs.floatpred_decode(np.frombuffer(raw, page.kind).reshape(shape), axis=-2)).astype(plain.dtype)
    raise ItemError(Unusable.UNREADABLE, f"{path}: has the predictor {predictor} of TIFF on values of {plain.dtype}.")


def _raw(data: bytes, packed: int, expected: int, path: Path) -> bytes:
    if packed == 1:
        return data
    if packed in _DEFLATE:
        length, ended, _ = inflated(data, zlib.MAX_WBITS, expected)
        return b"" if not ended and length < expected else zlib.decompressobj().decompress(data, expected + 1)
    import imagecodecs

    if packed == _LZW:
        return bytes(imagecodecs.lzw_decode(data, out=expected + 1))
    if packed == _PACKBITS:
        return bytes(imagecodecs.packbits_decode(data, out=expected + 1))
    if packed == _ZSTD:
        return bytes(imagecodecs.zstd_decode(data, out=expected + 1))
    raise ItemError(Unusable.COMPRESSED, f"{path}: has the compression {packed} of TIFF; save it plain, or by deflate, LZW or Zstandard.")
