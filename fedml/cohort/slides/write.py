"""A slide as a file: tiles of pixels in a TIFF, for persons who do not exist and for tests."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

TIFF_TILE = 256  # pixels a side of what is stored together; a multiple of 16


def write_tiff(path: Path, pixels: np.ndarray[Any, np.dtype[np.uint8]], mpp: float | None) -> None:
    """A tiled, uncompressed TIFF (TIFF 6.0, sections 2 and 15) that OpenSlide reads as a slide of one level.

    Args:
        pixels: uint8 (rows, columns, 3), both sides multiples of ``TIFF_TILE``. mpp: micrometres per pixel; None: not stated.
    """
    (rows, columns), size = pixels.shape[:2], TIFF_TILE**2 * 3
    tiles = pixels.reshape(rows // TIFF_TILE, TIFF_TILE, columns // TIFF_TILE, TIFF_TILE, 3).swapaxes(1, 2).reshape(-1, size)
    extra, entries = b"", list[bytes]()
    values: dict[int, tuple[str, list[int]]] = {  # by tag: width, length, bits, compression, photometric, samples, planes, tiles
        256: ("I", [columns]), 257: ("I", [rows]), 258: ("H", [8, 8, 8]), 259: ("H", [1]), 262: ("H", [2]), 277: ("H", [3]),
        282: ("Q", []), 283: ("Q", []), 284: ("H", [1]), 296: ("H", [3]), 322: ("H", [TIFF_TILE]), 323: ("H", [TIFF_TILE]),
        324: ("I", []), 325: ("I", [size] * len(tiles)),
    }  # fmt: skip
    if mpp is None:
        values = {tag: value for tag, value in values.items() if tag not in (282, 283, 296)}
    start = 8 + 2 + 12 * len(values) + 4
    after = start + 6 + 16 * (mpp is not None) + 8 * len(tiles) * (len(tiles) > 1)
    values[324] = ("I", [after + k * size for k in range(len(tiles))])
    for tag, (kind, numbers) in values.items():
        if kind == "Q":  # a fraction: pixels a centimetre
            count, packed, code = 1, struct.pack("<II", round(1e7 / (mpp or 1.0)), 1000), 5
        else:
            count, packed, code = len(numbers), struct.pack(f"<{len(numbers)}{kind}", *numbers), {"H": 3, "I": 4}[kind]
        if len(packed) > 4:
            packed, extra = struct.pack("<I", start + len(extra)), extra + packed
        entries.append(struct.pack("<HHI", tag, code, count) + packed.ljust(4, b"\0"))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + extra + tiles.tobytes())
