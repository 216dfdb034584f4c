"""NGTDM: how far grey levels are from the mean of their neighbours (Amadasun and King 1989, IEEE Transactions on Systems, Man and
Cybernetics 19:1264). Names and formulas are those of PyRadiomics 3.0.1."""

from __future__ import annotations

import numpy as np

from fedml.cohort.radiomics.region import Region

_SMOOTH = 1e6  # coarseness of a region without a difference


def tone_features(region: Region) -> dict[str, float]:
    """The features by name. A voxel without a neighbour in the region counts with the distance 0 (IBSI leaves it out)."""
    levels, inside = region.levels.ravel(), region.inside
    grey = np.concatenate([[0], region.present]).astype(np.float64)
    total, count = np.zeros(len(inside)), np.zeros(len(inside))
    for way in region.ways(both=True):
        near = levels[inside + region.step(way)]
        total += grey[near]
        count += near > 0
    own = levels[inside]
    away = np.where(count > 0, np.abs(grey[own] - total / np.maximum(count, 1)), 0.0)
    numbers = np.bincount(own)[1:]
    i, p = region.present.astype(np.float64), numbers / numbers.sum()
    s = np.bincount(own, away)[1:]
    voxels, kinds = int(numbers.sum()), len(i)
    weighted, apart = float((p * s).sum()), np.abs(np.subtract.outer(i, i))
    spread = float(np.abs(np.subtract.outer(i * p, i * p)).sum())
    contrast = float((np.outer(p, p) * apart**2).sum() * s.sum() / voxels)
    complexity = (apart * np.add.outer(p * s, p * s) / np.add.outer(p, p)).sum() / voxels
    strength = float((np.add.outer(p, p) * apart**2).sum() / s.sum()) if s.sum() else 0.0
    return {
        "Busyness": weighted / spread if spread else 0.0, "Coarseness": 1 / weighted if weighted else _SMOOTH,
        "Complexity": float(complexity), "Contrast": contrast / (kinds * (kinds - 1)) if kinds > 1 else 0.0, "Strength": strength,
    }  # fmt: skip
