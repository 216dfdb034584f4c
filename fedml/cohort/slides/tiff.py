"""Checks the directories of a TIFF file against the file's length before decoding (TIFF 6.0, sections 2 and 15; BigTIFF).

check_tiff(Path("biopsy.svs"))       # raises ItemError; other files are ignored
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedml.cohort.images.reasons import ItemError, Unusable

_TYPES = {3: "u2", 4: "u4", 16: "u8"}  # integer types: TIFF type code -> NumPy type
_DIRECTORIES = 1000
_ENTRIES = 4096
_TILES = 2**24
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _LENGTHS, _PLANAR, _SAMPLES = 256, 257, 322, 323, 324, 325, 284, 277
_WANTED = (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _LENGTHS, _PLANAR, _SAMPLES)


def check_tiff(path: Path) -> None:
    """Checks that each directory and each of its tiles is within the file, and that the number of tiles matches the image size.

    Raises:
        ItemError: truncated, wrong-length, or unreadable (for instance, the directories form a cycle).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
        if start[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return
        try:
            for found in _directories(file, start, path):
                _check_tiles(found, size, path)
        except struct.error as error:
            raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated within a directory.") from error


def _directories(file: BinaryIO, start: bytes, path: Path) -> Iterator[dict[int, list[int]]]:
    order, big = "<" if start[:1] == b"I" else ">", start[2:4] in (b"+\0", b"\0+")
    number, place = ("Q", "Q") if big else ("H", "I")
    (at,) = struct.unpack(order + place, start[8:16] if big else start[4:8])
    visited: set[int] = set()
    while at:
        if at in visited or len(visited) >= _DIRECTORIES:
            raise ItemError(Unusable.UNREADABLE, f"{path}: the directories form a cycle, or there are more than {_DIRECTORIES}.")
        visited.add(at)
        file.seek(at)
        (count,) = struct.unpack(order + number, file.read(struct.calcsize(order + number)))
        if count > _ENTRIES:
            raise ItemError(Unusable.UNREADABLE, f"{path}: a directory has {count} entries, the limit is {_ENTRIES}.")
        entry = struct.Struct(order + "HH" + place + f"{struct.calcsize(order + place)}s")
        entries = [entry.unpack(file.read(entry.size)) for _ in range(count)]
        (at,) = struct.unpack(order + place, file.read(struct.calcsize(order + place)))
        yield {
            code: _values(file, order, kind, length, where, order + place, path) for code, kind, length, where in entries if code in _WANTED
        }


def _values(file: BinaryIO, order: str, kind: int, count: int, where: bytes, place: str, path: Path) -> list[int]:
    if kind not in _TYPES or count > _TILES:
        raise ItemError(Unusable.UNREADABLE, f"{path}: a directory entry has an invalid type or count.")
    form = np.dtype(order + _TYPES[kind])
    length = form.itemsize * count
    if length > len(where):
        file.seek(struct.unpack(place, where)[0])
        where = file.read(length)
    if len(where) < length:
        raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated within the list of its tiles.")
    return [int(v) for v in np.frombuffer(where[:length], form)]


def _check_tiles(found: dict[int, list[int]], size: int, path: Path) -> None:
    first = {code: values[0] for code, values in found.items() if values}
    if _OFFSETS not in found or _LENGTHS not in found:  # strips: label, macro, thumbnail
        return
    if min(first.get(k, 0) for k in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT)) < 1:
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: declares tiles or an image without pixels.")
    expected = -(-first[_WIDTH] // first[_TILE_WIDTH]) * -(-first[_HEIGHT] // first[_TILE_HEIGHT])
    expected *= first.get(_SAMPLES, 1) if first.get(_PLANAR, 1) == 2 else 1
    offsets, lengths = np.array(found[_OFFSETS], np.uint64), np.array(found[_LENGTHS], np.uint64)
    if len(offsets) != expected or len(lengths) != expected:
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: has {len(offsets)} tiles where its size needs {expected}.")
    if (lengths > size).any() or (offsets > size - lengths).any():
        raise ItemError(Unusable.TRUNCATED, f"{path}: a tile extends past the end of the file.")
