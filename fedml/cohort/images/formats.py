"""Formats of images that are one file each: one closed table for the manifest, the reader, masks, the doctor and a saved model.

Adding a format is a function that reads it and a line in ``FORMATS``. Three more names of a manifest hold images in other ways (``NAMES``):
series of DICOM slices, one ``.npz`` of all images, and whole slides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.images import mha, nrrd, tiff
from fedml.cohort.images.nifti import open_nifti, position
from fedml.cohort.images.pictures import open_picture
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.images.upright import upright
from fedml.errors import nearest

Voxels = tuple[npt.NDArray[Any], npt.NDArray[np.float64] | None]  # raw values, and the affine (voxel to mm in RAS+) or None


class Format(NamedTuple):
    """A format of which each file holds one image.

    Args:
        endings: file name endings. read: the raw voxels, without rescaling, and their affine (None if the file has none).
        mask: the same for a mask; its second argument is the size of the image, which is compared with the file's header before the mask is
            decoded. None: a mask cannot have this format.
        volumes: True: all axes are spatial, columns first. False: (rows, columns), and a third axis is colour.
        package: the Python package that decodes the file; empty for NumPy.
        others: the further files that reading the file opens; None: there are none.
        anatomical: False: the file cannot say which side of a body an axis points to, so a study's orientation is refused.
    """

    endings: tuple[str, ...]
    read: Callable[[Path], Voxels]
    mask: Callable[[Path, Sequence[int]], Voxels] | None
    volumes: bool
    package: str
    others: Callable[[Path], tuple[Path, ...]] | None = None
    anatomical: bool = True


def _picture(path: Path) -> Voxels:
    with open_picture(path) as picture:
        plain = picture.mode in ("L", "RGB", "I;16", "I", "F")
        turned = upright(picture)
        return np.asarray(turned if plain else turned.convert("RGB")), None  # palettes and alpha become colours


def _picture_mask(path: Path, size: Sequence[int]) -> Voxels:
    with open_picture(path, size) as picture:
        return np.asarray(upright(picture)), None  # of a palette the numbers, not the colours


def _npy(path: Path) -> Voxels:
    array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: nothing is allocated by what the header says
    if (over := path.stat().st_size - array.offset - array.nbytes) > 0:
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: has {over} bytes more than its header declares.")
    return np.array(array), None


def _npy_mask(path: Path, size: Sequence[int]) -> Voxels:
    return np.asarray(np.load(path, allow_pickle=False)), None


def _nifti(path: Path) -> Voxels:
    volume = open_nifti(path)
    return np.asarray(volume.dataobj, dtype=np.float32), position(volume)


def _nifti_mask(path: Path, size: Sequence[int]) -> Voxels:
    volume = open_nifti(path, size)
    return np.asarray(volume.dataobj), position(volume)


FORMATS: dict[str, Format] = {
    "nifti": Format((".nii.gz", ".nii"), _nifti, _nifti_mask, True, "nibabel"),
    "png": Format((".png",), _picture, _picture_mask, False, "pillow"),
    "bmp": Format((".bmp",), _picture, None, False, "pillow"),
    "jpeg": Format((".jpg", ".jpeg"), _picture, None, False, "pillow"),
    "npy": Format((".npy",), _npy, _npy_mask, False, ""),
    "nrrd": Format(nrrd.ENDINGS, nrrd.read_nrrd, nrrd.read_nrrd, True, "pynrrd", nrrd.others_of),
    "mha": Format(mha.ENDINGS, mha.read_metaimage, mha.read_metaimage, True, "", mha.others_of),
    "tiff": Format(tiff.ENDINGS, tiff.read_tiff, tiff.read_tiff, False, "imagecodecs", anatomical=False),
}
NAMES = (*FORMATS, "dicom", "npz", "slide")


def known(name: str) -> str:
    """``name``, if a manifest may have it as a format; ``ValueError`` otherwise."""
    if name not in NAMES:
        raise ValueError(f'"{name}" is not a format of images{nearest(name, NAMES)}; one of: {", ".join(NAMES)}')
    return name


def by_ending(path: Path) -> Format | None:
    """The format that a file's name says; None: none of these."""
    return next((one for one in FORMATS.values() if path.name.endswith(one.endings)), None)
