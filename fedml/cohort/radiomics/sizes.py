"""GLRLM, GLSZM and GLDM: how often a grey level has runs, zones and dependences of a size.

- Runs (Galloway 1975, Computer Graphics and Image Processing 4:172): voxels of one level in a row, in each of 13 directions (4 of a
  picture); a feature is its mean over the directions (IBSI: 3D, averaged).
- Zones (Thibault 2013, International Journal of Pattern Recognition 27:1357002): connected voxels of one level, by faces, edges or corners.
- Dependence (Sun and Wee 1983, Computer Vision 23:341): a voxel and its neighbours of the same level.

Each is a matrix of counts, levels x sizes, and has the same features, under the names of PyRadiomics 3.0.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedml.cohort.radiomics.region import Floats, Ints, Region, entropy

_SHORT, _LONG, _LOW, _HIGH = "short", "long", "low", "high"
RUNS = {
    "GrayLevelNonUniformity": "gn", "GrayLevelNonUniformityNormalized": "gnn", "GrayLevelVariance": "gv",
    "HighGrayLevelRunEmphasis": _HIGH, "LongRunEmphasis": _LONG, "LongRunHighGrayLevelEmphasis": "long-high",
    "LongRunLowGrayLevelEmphasis": "long-low", "LowGrayLevelRunEmphasis": _LOW, "RunEntropy": "entropy", "RunLengthNonUniformity": "sn",
    "RunLengthNonUniformityNormalized": "snn", "RunPercentage": "share", "RunVariance": "sv", "ShortRunEmphasis": _SHORT,
    "ShortRunHighGrayLevelEmphasis": "short-high", "ShortRunLowGrayLevelEmphasis": "short-low",
}  # fmt: skip
ZONES = {
    "GrayLevelNonUniformity": "gn", "GrayLevelNonUniformityNormalized": "gnn", "GrayLevelVariance": "gv",
    "HighGrayLevelZoneEmphasis": _HIGH, "LargeAreaEmphasis": _LONG, "LargeAreaHighGrayLevelEmphasis": "long-high",
    "LargeAreaLowGrayLevelEmphasis": "long-low", "LowGrayLevelZoneEmphasis": _LOW, "SizeZoneNonUniformity": "sn",
    "SizeZoneNonUniformityNormalized": "snn", "SmallAreaEmphasis": _SHORT, "SmallAreaHighGrayLevelEmphasis": "short-high",
    "SmallAreaLowGrayLevelEmphasis": "short-low", "ZoneEntropy": "entropy", "ZonePercentage": "share", "ZoneVariance": "sv",
}  # fmt: skip
DEPENDENCES = {
    "DependenceEntropy": "entropy", "DependenceNonUniformity": "sn", "DependenceNonUniformityNormalized": "snn", "DependenceVariance": "sv",
    "GrayLevelNonUniformity": "gn", "GrayLevelVariance": "gv", "HighGrayLevelEmphasis": _HIGH, "LargeDependenceEmphasis": _LONG,
    "LargeDependenceHighGrayLevelEmphasis": "long-high", "LargeDependenceLowGrayLevelEmphasis": "long-low", "LowGrayLevelEmphasis": _LOW,
    "SmallDependenceEmphasis": _SHORT, "SmallDependenceHighGrayLevelEmphasis": "short-high",
    "SmallDependenceLowGrayLevelEmphasis": "short-low",
}  # fmt: skip


def run_features(region: Region) -> dict[str, float]:
    """The features of runs by name; NaN where no two voxels of the region lie in one direction."""
    found = []
    for way in region.ways():
        ranks, lengths = _runs(region, region.step(way))
        if lengths.max() > 1 or _on_one_line(region, way):
            found.append(_emphases(ranks, lengths, region))
    return {name: float(np.mean([one[key] for one in found])) if found else float("nan") for name, key in RUNS.items()}


def _on_one_line(region: Region, way: Sequence[int]) -> bool:
    """Whether two voxels of the region lie on one line in a direction; without, PyRadiomics leaves the direction out."""
    places = np.stack(np.nonzero(region.mask), 1)
    axis = next(axis for axis, step in enumerate(way) if step)
    lines = places - np.outer(places[:, axis] * way[axis], way)
    return len(np.unique(lines, axis=0)) < len(lines)


def _runs(region: Region, step: int) -> tuple[Ints, Ints]:
    """(runs,) the rank of the level from 0, and the length, of each run in a direction."""
    levels, inside = region.levels.ravel(), region.inside
    starts = inside[levels[inside - step] != levels[inside]]
    lengths = np.ones(len(starts), np.int64)
    going = np.arange(len(starts))
    while len(going):
        ahead = starts[going] + lengths[going] * step
        going = going[levels[ahead] == levels[starts[going]]]  # the margin ends a run before the box does
        lengths[going] += 1
    return levels[starts].astype(np.int64) - 1, lengths


def zone_features(region: Region) -> dict[str, float]:
    """The features of zones by name."""
    from scipy import ndimage  # half a second, which studies without radiomics do not wait for

    around = np.ones((3,) * region.mask.ndim, bool)
    levels, sizes = [], []
    for rank, box in enumerate(ndimage.find_objects(region.levels)):
        if box is not None:
            marked, count = ndimage.label(region.levels[box] == rank + 1, around)
            levels.append(np.full(count, rank, np.int64))
            sizes.append(np.bincount(marked.ravel(), minlength=count + 1)[1:])
    found = _emphases(np.concatenate(levels), np.concatenate(sizes), region)
    return {name: found[key] for name, key in ZONES.items()}


def dependence_features(region: Region) -> dict[str, float]:
    """The features of dependence by name."""
    levels, inside = region.levels.ravel(), region.inside
    own = levels[inside]
    alike = np.ones(len(inside), np.int64)
    for way in region.ways(both=True):
        alike += levels[inside + region.step(way)] == own
    found = _emphases(own.astype(np.int64) - 1, alike, region)
    return {name: found[key] for name, key in DEPENDENCES.items()}


def _emphases(ranks: Ints, sizes: Ints, region: Region) -> dict[str, float]:
    """The features of (elements,) runs, zones or voxels, of which each has the rank of its level and a size."""
    number, voxels = len(ranks), len(region.values)
    i, j = region.present[ranks].astype(np.float64), sizes.astype(np.float64)
    by_level: Floats = np.bincount(ranks).astype(np.float64)
    by_size: Floats = np.bincount(sizes).astype(np.float64)
    _, pairs = np.unique(ranks * (int(sizes.max()) + 1) + sizes, return_counts=True)
    low, high, short, long = i**-2, i**2, j**-2, j**2
    return {
        "gn": float((by_level**2).sum() / number), "gnn": float((by_level**2).sum() / number**2), "gv": float(i.var()),
        "sn": float((by_size**2).sum() / number), "snn": float((by_size**2).sum() / number**2), "sv": float(j.var()),
        "share": number / voxels, "entropy": entropy(pairs / number), _LOW: float(low.mean()), _HIGH: float(high.mean()),
        _SHORT: float(short.mean()), _LONG: float(long.mean()), "short-low": float((short * low).mean()),
        "short-high": float((short * high).mean()), "long-low": float((long * low).mean()), "long-high": float((long * high).mean()),
    }  # fmt: skip
