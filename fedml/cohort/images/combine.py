"""Several volumes, or several files, as one image: the volumes of a 4-D file by the study's rule, and named channels on one grid.

one_of_many(voxels, study.cohort.image.volumes, path)          # (*size, volumes) -> (*size) or (*size, channels)
on_one_grid([("t1", voxels, affine), ("t2", ..)], where)       # (*size, channels), or ItemError if the grids differ
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.masks import corner_distance
from fedml.cohort.images.reasons import ItemError, Unusable

MAX_OFFSET_VOXELS = 0.25  # largest distance between corresponding corners of two channels
Affine = npt.NDArray[np.float64]


def one_of_many(voxels: npt.NDArray[Any], rule: str | int, where: Path) -> npt.NDArray[Any]:
    """The volumes along the last axis as one image.

    Args:
        rule: ``one`` and ``channels``: unchanged, and one axis less if there is one volume. ``mean``: their mean, in double precision. A
            number from 1: that volume.

    Raises:
        ItemError: geometry: there are fewer volumes than the number.
    """
    if rule == "mean":
        return np.asarray(voxels.mean(-1, dtype=np.float64), np.float32)
    if isinstance(rule, int):
        if rule > voxels.shape[-1]:
            raise ItemError(Unusable.GEOMETRY, f"{where}: has {voxels.shape[-1]} volumes, and [cohort.image] volumes = {rule}.")
        return np.asarray(voxels[..., rule - 1])
    return voxels[..., 0] if voxels.shape[-1] == 1 else voxels


def on_one_grid(parts: Sequence[tuple[str, npt.NDArray[Any], Affine | None]], where: Path) -> npt.NDArray[Any]:
    """(*size, channels) of named channels (name, voxels, affine), each of one grey volume.

    Raises:
        ItemError: geometry: a channel has another size or other positions than the first, or more than one channel of its own.
    """
    first_name, first, first_affine = parts[0]
    for name, voxels, affine in parts:
        if voxels.ndim != first.ndim or voxels.shape != first.shape:
            text = f'channel "{name}" is {voxels.shape}, channel "{first_name}" {first.shape}'
            raise ItemError(Unusable.GEOMETRY, f"{where}: {text}; register the channels and resample them to one grid.")
        if (affine is None) != (first_affine is None) or (
            affine is not None and first_affine is not None and corner_distance(affine, first_affine, first.shape) > MAX_OFFSET_VOXELS
        ):
            text = f'the voxels of channel "{name}" have other positions than those of channel "{first_name}"'
            raise ItemError(Unusable.GEOMETRY, f"{where}: {text}; register the channels and resample them to one grid.")
    return np.stack([voxels for _, voxels, _ in parts], axis=-1)
