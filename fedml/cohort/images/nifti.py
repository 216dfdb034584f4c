"""Opens a NIfTI file and checks its checksum, data length and position, which nibabel does not.

volume = open_nifti(path)                       # nibabel's image; no voxel is decoded yet
np.asarray(volume.dataobj), position(volume, path)

A file can state where its voxels lie twice, in its sform and its qform, and their size a third time in pixdim (NIfTI-1, "3D image
(volume) orientation and location in space"). The standard lets sform and qform differ only where they describe two spaces, such as the
scanner's and an atlas's; in any case pixdim is the size of a voxel. Statements that contradict each other are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.bounds import require_length, require_plausible
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.images.transforms import LARGEST

_SIZE = 0.01  # a voxel's size by sform and by pixdim, relative
_MAX_OFF_VOXELS = 0.5  # distance of a corner by sform and by qform of one space; a quaternion of float32 stays below 0.01


def open_nifti(path: Path, size: Sequence[int] | None = None) -> Any:
    """The file as a ``nibabel`` image.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        size: for a mask, the size of its image in voxels; a mask with another number of voxels is refused before it is read.

    Raises:
        ItemError: not-an-image, truncated, wrong-length, too-large, unreadable; geometry: its affine is singular or not finite, or
            contradicts itself; rescale: its slope or intercept is infinite; mask-mismatch.
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
    _check_scale(volume, path)
    _check_forms(volume, path)
    return volume


def position(volume: Any) -> npt.NDArray[np.float64] | None:
    """Voxel index to mm in RAS+, (4, 4): the sform if its code is above 0, else the qform; None if both codes are 0, where the standard
    has voxel sizes but no orientation (its method 1)."""
    header = volume.header
    return np.asarray(volume.affine, np.float64) if int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0 else None


def _check_scale(volume: Any, path: Path) -> None:
    """nibabel takes an infinite slope for none, and drops it from its header: the stored header says it."""
    from nibabel.openers import ImageOpener

    with ImageOpener(str(path)) as file:
        stored = type(volume.header).from_fileobj(file)
    if math.isinf(float(stored["scl_slope"])):
        raise ItemError(Unusable.RESCALE, f"{path}: its scl_slope is infinite; export it again.")


def _check_forms(volume: Any, path: Path) -> None:
    header, axes = volume.header, min(len(volume.shape), 3)
    codes = int(header["sform_code"]), int(header["qform_code"])
    if codes[0] <= 0:
        return
    sform = np.asarray(header.get_sform(), np.float64)
    sizes, stated = np.linalg.norm(sform[:3, :axes], axis=0), np.abs(np.asarray(header["pixdim"][1 : 1 + axes], np.float64))
    if (np.abs(sizes - stated) > _SIZE * np.maximum(sizes, stated)).any():
        raise ItemError(
            Unusable.GEOMETRY,
            f"{path}: its sform has voxels of {_mm(sizes)} mm, its pixdim says {_mm(stated)} mm; export it again, or correct the header.",
        )
    if codes[1] <= 0:
        return
    qform = np.asarray(header.get_qform(), np.float64)
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise ItemError(
            Unusable.GEOMETRY,
            f"{path}: its sform and its qform have opposite handedness, so left and right are not known; keep the right one of the two.",
        )
    if codes[0] != codes[1]:  # two spaces; the sform is used
        return
    corners = np.array([[*corner, 1.0] for corner in product(*((0, n - 1) for n in (*volume.shape, 1, 1)[:3]))]).T
    off = float(np.linalg.norm(((sform - qform) @ corners)[:3], axis=0).max() / sizes.min())
    if off > _MAX_OFF_VOXELS:
        text = (
            f"{path}: its sform and its qform, both of code {codes[0]}, place voxels {off:.3g} voxels apart; keep the right one of the two."
        )
        raise ItemError(Unusable.GEOMETRY, text)


def _mm(sizes: npt.NDArray[np.float64]) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)
