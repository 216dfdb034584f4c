"""The directories of a TIFF file within bounds (TIFF 6.0, section 2; BigTIFF): whole numbers and texts of the tags that are asked for.

with path.open("rb") as file:
    for found in directories(file, path, (256, 257)): ...        # {256: [width], 257: [height]}
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from fedml.cohort.images.reasons import ItemError, Unusable

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}  # type code -> NumPy type; 2 is text
_MOST = 1000  # directories
_ENTRIES = 4096
_VALUES = 2**24


def order_of(start: bytes) -> Literal["<", ">"]:
    """``<`` or ``>``, by the first bytes of the file."""
    return "<" if start[:1] == b"I" else ">"


def directories(file: BinaryIO, path: Path, wanted: Collection[int], *, most: int = _MOST) -> Iterator[dict[int, list[int]]]:
    """The tags ``wanted`` of each directory of the chain, in order; nothing if the file is not TIFF.

    Raises:
        ItemError: unreadable: the directories form a cycle, or are more than ``most``; truncated.
        struct.error: the file ends within a directory.
    """
    file.seek(0)
    start = file.read(16)
    if start[:4] not in MAGIC:
        return
    order, big = order_of(start), start[2:4] in (b"+\0", b"\0+")
    number, place = ("Q", "Q") if big else ("H", "I")
    (at,) = struct.unpack(order + place, start[8:16] if big else start[4:8])
    visited: set[int] = set()
    while at:
        if at in visited or len(visited) >= most:
            raise ItemError(Unusable.UNREADABLE, f"{path}: the directories form a cycle, or there are more than {most}.")
        visited.add(at)
        file.seek(at)
        (count,) = struct.unpack(order + number, file.read(struct.calcsize(order + number)))
        if count > _ENTRIES:
            raise ItemError(Unusable.UNREADABLE, f"{path}: a directory has {count} entries, the limit is {_ENTRIES}.")
        entry = struct.Struct(order + "HH" + place + f"{struct.calcsize(order + place)}s")
        entries = [entry.unpack(file.read(entry.size)) for _ in range(count)]
        (at,) = struct.unpack(order + place, file.read(struct.calcsize(order + place)))
        yield {
            code: _values(file, order, kind, length, where, order + place, path) for code, kind, length, where in entries if code in wanted
        }


def _values(file: BinaryIO, order: str, kind: int, count: int, where: bytes, place: str, path: Path) -> list[int]:
    if kind not in _TYPES or count > _VALUES:
        raise ItemError(Unusable.UNREADABLE, f"{path}: a directory entry has an invalid type or count.")
    form = np.dtype(order + _TYPES[kind])
    length = form.itemsize * count
    if length > len(where):
        file.seek(struct.unpack(place, where)[0])
        where = file.read(length)
    if len(where) < length:
        raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated within the list of its tiles.")
    return [int(v) for v in np.frombuffer(where[:length], form)]
