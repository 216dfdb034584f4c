"""Opens a NIfTI file and checks its checksum and data length, which nibabel does not.

volume = open_nifti(path)                       # nibabel's image; no voxel is decoded yet
np.asarray(volume.dataobj), volume.affine
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedml.cohort.images.bounds import require_length, require_plausible
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.images.transforms import LARGEST


def open_nifti(path: Path, size: Sequence[int] | None = None) -> Any:
    """The file as a ``nibabel`` image.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        size: for a mask, the size of its image in voxels; a mask with another number of voxels is refused before it is read.

    Raises:
        ItemError: not-an-image, truncated, wrong-length, too-large, unreadable; geometry: its affine is singular or not finite;
            mask-mismatch.
        Exception: any exception of nibabel for a header that it cannot read.
    """
    import nibabel

    if not path.stat().st_size:
        raise ItemError(Unusable.TRUNCATED, f"{path}: is empty.")
    volume: Any = nibabel.load(path)
    if not isinstance(volume, nibabel.Nifti1Image):  # Nifti2Image is a subclass
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: is {type(volume).__name__}, not NIfTI.")
    shape = tuple(int(n) for n in volume.shape)
    if not shape or min(shape) < 1:
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: declares {shape} voxels.")
    if size is not None and math.prod(shape) != math.prod(size):
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: the mask is {shape}, its image {tuple(size)}; export both again.")
    if math.prod(shape) > LARGEST:
        raise ItemError(Unusable.TOO_LARGE, f"{path}: declares {shape} voxels, the limit is {LARGEST}.")
    length = math.prod(shape) * volume.get_data_dtype().itemsize
    if size is None:  # a mask's size is bounded by its image, and a mask of zeros compresses without limit
        require_plausible(path, path.stat().st_size, length)
    require_length(path, int(volume.dataobj.offset) + length)
    axes = volume.affine[:3, : min(len(shape), 3)]
    if not np.isfinite(volume.affine).all() or np.linalg.matrix_rank(axes) < axes.shape[1]:
        raise ItemError(Unusable.GEOMETRY, f"{path}: its affine is singular or not finite.")
    return volume
