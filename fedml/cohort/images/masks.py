"""Reads the mask of an image: a file with the image's name in the folder of masks, on the same voxel grid.

    file = find(Path("masks"), "p1/left")                     # masks/p1/left.nii.gz | .png | .npy | .nrrd, or None
    mask = as_classes(read(file, affine), (0, 128, 255), file)  # uint8: 0, 1, 2

If the study's classes are integers, they are the values in the file; if they are names, value k is the k-th class.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.formats import FORMATS, by_ending
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.study.section import Code

ENDINGS = tuple(ending for one in FORMATS.values() if one.mask is not None for ending in one.endings)
_MAX_OFFSET_VOXELS = 0.25  # largest distance between corresponding corners of mask and image


def find(folder: Path, name: str) -> Path | None:
    """The mask file of the image ``name`` (``<id>`` or ``<id>/<name>``, without extension), or None."""
    return next((path for ending in ENDINGS if (path := folder / f"{name}{ending}").is_file()), None)


def read(path: Path, affine: npt.NDArray[np.float64] | None, size: Sequence[int]) -> npt.NDArray[Any]:
    """The mask's values, (*size). ``affine``: of the image, voxel indices to mm in RAS+, or None if the image has no affine.

    Raises:
        ItemError: unreadable; mask-mismatch: the mask has another size than the image, or its voxels have other positions.
    """
    form = by_ending(path)
    try:
        if form is None or form.mask is None:
            raise ItemError(Unusable.UNREADABLE, f"{path}: the ending is not one of a mask; use {', '.join(ENDINGS)}.")
        values, mask_affine = form.mask(path, size)
    except ItemError:
        raise
    except Exception as error:  # decoders raise exceptions of any class on damaged files
        raise ItemError(Unusable.UNREADABLE, f"{path}: cannot be read as a mask; replace or delete the file.") from error
    if values.ndim == len(size) + 1 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.shape != tuple(size):
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: the mask is {values.shape}, its image {tuple(size)}; export both again.")
    if mask_affine is not None and affine is not None and corner_distance(mask_affine, affine, size) > _MAX_OFFSET_VOXELS:
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: the voxel positions of mask and image differ; resample the mask onto the image.")
    return values


def as_classes(values: npt.NDArray[Any], classes: Sequence[Code], path: Path) -> npt.NDArray[np.uint8]:
    """(1, *size) uint8, the index of each value in ``classes``.

    Raises:
        ItemError: mask-mismatch: a value is not a class.
    """
    whole = not any(isinstance(c, str) for c in classes)
    if whole and list(classes) == list(range(len(classes))):  # the values are the places: one comparison in place of one each
        fits = (values >= 0) & (values < len(classes)) & (values == np.rint(values))
        if fits.all():
            return values.astype(np.uint8)[None]
    out = np.zeros(values.shape, np.uint8)
    known = np.zeros(values.shape, bool)
    for place, code in enumerate(classes):
        here = values == (code if whole else place)
        out[here] = place
        known |= here
    if not known.all():
        other = values[~known].flat[0]
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: the mask contains {other}, which is not a class of the study; correct the mask.")
    return out[None]


def as_values(masks: npt.NDArray[Any], classes: Sequence[Code]) -> npt.NDArray[Any]:
    """The inverse of ``as_classes``: the file's values for class indices, of any shape."""
    if any(isinstance(c, str) for c in classes):
        return masks
    values: npt.NDArray[Any] = np.array(classes)[masks]
    return values


def corner_distance(affine: npt.NDArray[np.float64], other: npt.NDArray[np.float64], size: Sequence[int]) -> float:
    """Largest offset of a corner's coordinate between two affines, in voxels; infinite if an affine is singular or not finite."""
    if min(abs(np.linalg.det(a)) if np.isfinite(a).all() else 0.0 for a in (affine, other)) < 1e-12:
        return np.inf
    corners = np.array([[*c, *(0,) * (3 - len(c)), 1.0] for c in product(*((0, n - 1) for n in size))]).T
    return float(np.abs(np.linalg.inv(other) @ affine @ corners - corners).max())
