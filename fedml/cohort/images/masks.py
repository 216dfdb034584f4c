"""The mask of an image: a file of the same name in the folder of masks, on the same voxels.

    file = find(Path("masks"), "p1/left")                     # masks/p1/left.nii.gz | .nii | .png | .npy, or None
    mask = as_classes(read(file, affine), (0, 128, 255), file)  # uint8: 0, 1, 2

Classes that are whole numbers are the values in the file; where they are names, value k means the k-th.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.nifti import open_nifti
from fedml.cohort.images.pictures import open_picture
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.study.sections import Code

ENDINGS = (".nii.gz", ".nii", ".png", ".npy")
_OFF = 0.25  # voxels that the corners of mask and image may lie apart


def find(folder: Path, name: str) -> Path | None:
    """The mask of the image ``name`` (``<id>`` or ``<id>/<name>``, without ending)."""
    return next((path for ending in ENDINGS if (path := folder / f"{name}{ending}").is_file()), None)


def read(path: Path, affine: npt.NDArray[np.float64] | None, size: Sequence[int]) -> npt.NDArray[Any]:
    """The values on ``size`` voxels. ``affine``: the image's, voxel to mm in RAS+, or None where it has none.

    Raises:
        ItemError: unreadable, or mask-mismatch: another size, or voxels that lie elsewhere.
    """
    own: npt.NDArray[np.float64] | None = None
    try:
        if path.suffix == ".png":
            with open_picture(path, size) as picture:
                values = np.asarray(picture)  # of a palette the numbers, not the colours
        elif path.suffix == ".npy":
            values = np.asarray(np.load(path, allow_pickle=False))
        else:
            volume = open_nifti(path, size)
            values, own = np.asarray(volume.dataobj), np.asarray(volume.affine, np.float64)
    except ItemError:
        raise
    except Exception as error:  # a decoder raises whatever it likes on a broken file
        raise ItemError(Unusable.UNREADABLE, f"{path}: cannot be read as a mask; replace the file or take it away.") from error
    if values.ndim == len(size) + 1 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.shape != tuple(size):
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: is {values.shape}, its image {tuple(size)}; export both anew.")
    if own is not None and affine is not None and _apart(own, affine, size) > _OFF:
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: its voxels lie elsewhere than those of its image; resample it onto the image.")
    return values


def as_classes(values: npt.NDArray[Any], classes: Sequence[Code], path: Path) -> npt.NDArray[np.uint8]:
    """(1, *size) uint8, the place of each value among ``classes``.

    Raises:
        ItemError: mask-mismatch: a value that is no class.
    """
    whole = not any(isinstance(c, str) for c in classes)
    out = np.zeros(values.shape, np.uint8)
    known = np.zeros(values.shape, bool)
    for place, code in enumerate(classes):
        here = values == (code if whole else place)
        out[here] = place
        known |= here
    if not known.all():
        other = values[~known].flat[0]
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: its mask holds {other}, which is none of the study's classes; correct the mask.")
    return out[None]


def as_values(masks: npt.NDArray[Any], classes: Sequence[Code]) -> npt.NDArray[Any]:
    """The inverse of ``as_classes``: the values that a file holds for places among ``classes``, of any shape."""
    if any(isinstance(c, str) for c in classes):
        return masks
    values: npt.NDArray[Any] = np.array(classes)[masks]
    return values


def _apart(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], size: Sequence[int]) -> float:
    """The most that a corner lies off, in voxels."""
    if min(abs(np.linalg.det(a)) if np.isfinite(a).all() else 0.0 for a in (one, other)) < 1e-12:
        return np.inf
    corners = np.array([[*c, *(0,) * (3 - len(c)), 1.0] for c in product(*((0, n - 1) for n in size))]).T
    return float(np.abs(np.linalg.inv(other) @ one @ corners - corners).max())
