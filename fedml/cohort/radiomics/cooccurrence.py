"""GLCM: how often two grey levels are neighbours (Haralick 1973, IEEE Transactions on Systems, Man and Cybernetics 3:610).

A symmetric matrix for each of 13 directions (4 of a picture) at a distance of one voxel; a feature is its mean over the directions that
have a pair (IBSI: 3D, averaged). Names and formulas are those of PyRadiomics 3.0.1.
"""

from __future__ import annotations

import numpy as np

from fedml.cohort.radiomics.region import Floats, Region, entropy
from fedml.study.radiomics import FEATURES

NAMES = FEATURES["glcm"]


def cooccurrence_features(region: Region) -> dict[str, float]:
    """The features by name; NaN where no voxel of the region has a neighbour in it."""
    levels, inside, count = region.levels.ravel(), region.inside, len(region.present)
    own = levels[inside].astype(np.int64) - 1
    found = []
    for way in region.ways():
        other = levels[inside + region.step(way)].astype(np.int64) - 1
        pair = other >= 0
        if not pair.any():
            continue
        counts = np.bincount(own[pair] * count + other[pair], minlength=count * count).reshape(count, count)
        found.append(_features((counts + counts.T) / (2 * int(pair.sum())), region.present.astype(np.float64)))
    values = np.array(found).mean(0) if found else np.full(len(NAMES), np.nan)
    return dict(zip(NAMES, values.tolist(), strict=True))


def _features(p: Floats, i: Floats) -> list[float]:
    """The features of one symmetric matrix of probabilities ``p`` (levels, levels) of the grey levels ``i``, in the order of ``NAMES``."""
    most, px = i[-1], p.sum(1)
    mean = float((i * px).sum())
    variance = float(((i - mean) ** 2 * px).sum())
    product = float((p * np.outer(i, i)).sum())
    whole = i.astype(np.int64)
    plus = np.bincount(np.add.outer(whole, whole).ravel(), p.ravel()).astype(np.float64)
    minus = np.bincount(np.abs(np.subtract.outer(whole, whole)).ravel(), p.ravel()).astype(np.float64)
    k, d = np.arange(len(plus)), np.arange(len(minus))
    difference = float((d * minus).sum())
    joint, one = entropy(p.ravel()), entropy(px)
    independent = np.outer(px, px)
    both = p > 0
    cross = float(-(p[both] * np.log2(independent[both])).sum())
    free = entropy(independent.ravel())
    return [
        product, float((plus * (k - 2 * mean) ** 4).sum()), float((plus * (k - 2 * mean) ** 3).sum()),
        float((plus * (k - 2 * mean) ** 2).sum()), float((minus * d**2).sum()), (product - mean**2) / variance if variance else 1.0,
        difference, entropy(minus), float((minus * (d - difference) ** 2).sum()), float((minus / (1 + d)).sum()),
        float((minus / (1 + d**2)).sum()), float((minus / (1 + d**2 / most**2)).sum()), float((minus / (1 + d / most)).sum()),
        (joint - cross) / one if one else 0.0, float(np.sqrt(max(0.0, 1 - np.exp(-2 * (free - joint))))),
        float((minus[1:] / d[1:] ** 2).sum()), mean, float((p**2).sum()), joint, _correlation(p, px), float(p.max()), 2 * mean,
        entropy(plus), variance,
    ]  # fmt: skip


def _correlation(p: Floats, px: Floats) -> float:
    """The maximal correlation coefficient: the second eigenvalue, by size, of p normalised by the roots of its margins."""
    if len(px) < 2:
        return 1.0
    root = np.sqrt(np.where(px > 0, px, 1.0))
    return float(np.sort(np.abs(np.linalg.eigvalsh(p / np.outer(root, root))))[-2])
