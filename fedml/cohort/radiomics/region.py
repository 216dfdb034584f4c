"""A region of an image with its intensities sorted into grey levels, as features of texture need it.

    region = region_of(image, mask, spacing, Binning(width=25.0))
    region.values, region.levels          # intensities of its voxels; grey levels in a box around it, 0 outside of the region

Bins are those of PyRadiomics. Of a fixed width they are counted from intensity 0, not from the region's minimum (IBSI), so that two
regions of one kind of tissue have the same edges; a fixed number of bins spans the region's own range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.reasons import ItemError, Unusable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MOST_VOXELS = 2**24  # of a region; its features need some 100 bytes of memory each
MOST_LEVELS = 1000  # grey levels that occur; a matrix of co-occurrence has their square


@dataclass(frozen=True)
class Binning:
    """How intensities become grey levels: bins of a fixed ``width`` in the units of the file, or a fixed ``count`` over the region's range.
    Exactly one is given."""

    width: float | None = None
    count: int | None = None


@dataclass(frozen=True, eq=False)
class Region:
    """A region of an image.

    Args:
        values: (voxels,) intensities. mask: (*box) which voxels of the box around the region are in it, with one voxel of margin.
        levels: (*box) ranks from 1 of the voxels' grey levels among ``present``, 0 outside.
        present: (levels,) the grey levels that occur, ascending; the lowest is 1. spacing: (axes,) mm.
    """

    values: Floats
    mask: npt.NDArray[np.bool_]
    levels: npt.NDArray[np.int32]
    present: Ints
    spacing: Floats

    @property
    def inside(self) -> Ints:
        """(voxels,) places of the region's voxels in the flat box."""
        return np.flatnonzero(self.mask.ravel())

    def ways(self, *, both: bool = False) -> list[tuple[int, ...]]:
        """The directions to the neighbours of a voxel, one of each opposite pair or ``both``.

        Directions along an axis in which the region is one voxel thick are left out, as PyRadiomics does.
        """
        thin = [size == 3 for size in self.mask.shape]  # one voxel and the margins
        found = (way for way in product((-1, 0, 1), repeat=self.mask.ndim) if any(way))
        found = (way for way in found if not any(step and flat for step, flat in zip(way, thin, strict=True)))
        return [way for way in found if both or next(step for step in way if step) > 0]

    def step(self, way: Sequence[int]) -> int:
        """The distance of two neighbours in the flat box."""
        return sum(one * int(np.prod(self.mask.shape[axis + 1 :])) for axis, one in enumerate(way))


def region_of(image: npt.NDArray[Any], mask: npt.NDArray[np.bool_], spacing: Sequence[float], binning: Binning) -> Region:
    """The region ``mask`` of ``image``, both (*size) with 2 or 3 axes; ``spacing``: mm along each axis.

    Raises:
        ItemError: empty-mask: no voxel; small-region: a single voxel or a line of them; too-large: more than ``MOST_VOXELS`` voxels or
            ``MOST_LEVELS`` grey levels; non-finite: an intensity is not finite.
    """
    places = np.nonzero(mask)
    if not len(places[0]):
        raise ItemError(Unusable.EMPTY_MASK, "the mask has no voxel of the region")
    box = tuple(slice(int(at.min()), int(at.max()) + 1) for at in places)
    if len(places[0]) > MOST_VOXELS:
        text = f"the region has {len(places[0]):,} voxels, the limit is {MOST_VOXELS:,}; state a wider spacing_mm"
        raise ItemError(Unusable.TOO_LARGE, text)
    if sum(part.stop - part.start > 1 for part in box) < 2:
        raise ItemError(Unusable.SMALL_REGION, f"the region has {len(places[0])} voxels in a line, and features need an area")
    inside = np.pad(np.ascontiguousarray(mask[box]), 1)
    values = image[box][inside[(slice(1, -1),) * inside.ndim]].astype(np.float64)
    if not np.isfinite(values).all():
        raise ItemError(Unusable.NON_FINITE, "the region has intensities that are not finite")
    binned = _binned(values, binning)
    present, ranks = np.unique(binned, return_inverse=True)
    if len(present) > MOST_LEVELS:
        text = f"the region has {len(present):,} grey levels, the limit is {MOST_LEVELS:,}; state bin_count or a wider bin_width"
        raise ItemError(Unusable.TOO_LARGE, text)
    levels = np.zeros(inside.shape, np.int32)
    levels[inside] = ranks + 1
    return Region(values, inside, levels, present, np.asarray(spacing, np.float64))


def _binned(values: Floats, binning: Binning) -> Ints:
    """(voxels,) grey levels from 1."""
    low, high = float(values.min()), float(values.max())
    if binning.count is not None:
        edges = np.histogram_bin_edges(values, binning.count)
        edges[-1] += 1  # the maximum is in the last bin
        return np.digitize(values, edges)
    width = float(binning.width or 25.0)
    if high / width - low / width > 2**31:
        raise ItemError(Unusable.TOO_LARGE, f"intensities from {low:g} to {high:g} have too many bins of width {width:g}")
    levels: Ints = (np.floor(values / width) - np.floor(low / width)).astype(np.int64) + 1
    return levels


def entropy(p: Floats) -> float:
    """Shannon's entropy of probabilities, bits."""
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())
