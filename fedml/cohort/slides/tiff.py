"""Checks the directories of a TIFF file against the file's length before decoding (TIFF 6.0, sections 2 and 15; BigTIFF).

check_tiff(Path("biopsy.svs"))       # raises ItemError; other files are ignored
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from fedml.cohort.images.directories import directories
from fedml.cohort.images.reasons import ItemError, Unusable

_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _LENGTHS, _PLANAR, _SAMPLES = 256, 257, 322, 323, 324, 325, 284, 277
_WANTED = (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _LENGTHS, _PLANAR, _SAMPLES)


def check_tiff(path: Path) -> None:
    """Checks that each directory and each of its tiles is within the file, and that the number of tiles matches the image size.

    Raises:
        ItemError: truncated, wrong-length, or unreadable (for instance, the directories form a cycle).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            for found in directories(file, path, _WANTED):
                _check_tiles(found, size, path)
        except struct.error as error:
            raise ItemError(Unusable.TRUNCATED, f"{path}: is truncated within a directory.") from error


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
