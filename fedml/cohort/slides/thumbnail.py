"""A small picture of a slide's tissue, for pictures at the site."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.slides.slide import LARGEST_SCAN, Slide

_BLOCK = 2048  # pixels per side read at once


def thumbnail(slide: Slide, side: int) -> tuple[npt.NDArray[np.uint8], float]:
    """Means over squares of pixels: uint8 (rows, columns, 3), at most about twice ``side`` along the longer side, and the width of one of
    its pixels in pixels of level 0. Never the label.

    Raises:
        ItemError: the pixels cannot be decoded, or too many would have to be.
    """
    wanted = max(1.0, max(slide.size) / side)
    level = max((k for k, one in enumerate(slide.levels) if one.downsample <= wanted), key=lambda k: slide.levels[k].downsample)
    width, height, down = slide.levels[level]
    if width * height > LARGEST_SCAN:
        raise ItemError(Unusable.TOO_LARGE, f"{slide.path}: has no coarse level, and {width} x {height} pixels exceed {LARGEST_SCAN}")
    factor = max(1, int(wanted / down))
    block = max(1, _BLOCK // factor) * factor
    out = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    for top in range(0, height, block):
        for left in range(0, width, block):
            wide, high = min(block, width - left), min(block, height - top)
            x, y = int(left * slide.size[0] / width), int(top * slide.size[1] / height)
            part = slide.region(x, y, wide, high, level).astype(np.float64)
            for axis in (0, 1):
                starts = np.arange(0, part.shape[axis], factor)
                counts = np.diff(np.append(starts, part.shape[axis]))
                part = np.add.reduceat(part, starts, axis=axis) / (counts[:, None, None] if axis == 0 else counts[None, :, None])
            out[top // factor :, left // factor :][: part.shape[0], : part.shape[1]] = np.rint(part)
    return out, down * factor
