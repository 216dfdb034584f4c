"""Images of persons, a format a function: PNG, JPEG, NPY, NIfTI files, or one ``.npz`` array.

Files: ``<id>.<ending>``, or ``<id>/<anything>.<ending>`` where a person has several. An ``.npz`` holds ``ids`` (text) and ``images``
(images, then the axes of one image); an id may stand there several times. Intensities stay raw; the model standardises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.errors import InputError
from fedml.study import ImageShape


@dataclass(frozen=True)
class Images:
    """All images of a cohort: ``pixels`` (images, channels, *size) and, for each, the row of its person (ascending)."""

    pixels: npt.NDArray[Any]
    person: npt.NDArray[np.int64]
    masks: npt.NDArray[np.uint8] | None = None  # (images, 1, *size)
    spacing: npt.NDArray[np.float64] | None = None  # (images, axes) mm, NaN where the file does not say

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *size) of one image."""
        return tuple(self.pixels.shape[1:])


def _read_picture(path: Path) -> npt.NDArray[Any]:
    from PIL import Image

    with Image.open(path) as picture:
        plain = picture.mode in ("L", "RGB", "I;16", "I", "F")
        return np.asarray(picture if plain else picture.convert("RGB"))  # palettes and alpha become colours


def _read_npy(path: Path) -> npt.NDArray[Any]:
    return np.asarray(np.load(path, allow_pickle=False))


def _read_nifti(path: Path) -> npt.NDArray[Any]:
    import nibabel

    return np.asarray(nibabel.load(path).dataobj, dtype=np.float32)


# format -> (endings, reader). Adding a format is one function and one line.
FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Path], npt.NDArray[Any]]]] = {
    "png": ((".png",), _read_picture),
    "jpeg": ((".jpg", ".jpeg"), _read_picture),
    "npy": ((".npy",), _read_npy),
    "nifti": ((".nii.gz", ".nii"), _read_nifti),
}


def read_images(path: Path, kind: str, persons: list[str], shape: ImageShape | None) -> Images:
    """The images of ``persons`` in the table's order; a person may have none or several.

    Args:
        path: the folder, or the ``.npz`` file when ``kind`` is ``npz``.
        kind: ``npz`` or a key of ``FORMATS``.
        persons: ids; images of anybody else are not read.
        shape: the study's; None takes the first image's and asks the others to agree.

    Raises:
        InputError: a file is missing, truncated, non-finite, or of another shape; nobody has an image.
    """
    row = {person: at for at, person in enumerate(persons)}
    pairs = _npz(path, row, shape) if kind == "npz" else _files(path, kind, row, shape)
    if not pairs:
        expected = "in its array ids" if kind == "npz" else f"as <id>{FORMATS[kind][0][0]} or <id>/<name>{FORMATS[kind][0][0]}"
        raise InputError(f"{path}: holds no image of a person in the persons table {expected}; correct data.image in site.toml.")
    order = sorted(range(len(pairs)), key=lambda k: pairs[k][0])
    pairs = [pairs[k] for k in order]
    masks = None
    if kind == "npz":
        with np.load(path, allow_pickle=False) as arrays:
            if "masks" in arrays:
                keep = [k for k, i in enumerate(arrays["ids"].astype(str)) if i in row]
                masks = arrays["masks"][keep][order][:, None].astype(np.uint8)
    return Images(np.stack([pixels for _, pixels in pairs]), np.array([at for at, _ in pairs], dtype=np.int64), masks)


def _files(folder: Path, kind: str, row: dict[str, int], shape: ImageShape | None) -> list[tuple[int, npt.NDArray[Any]]]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; correct data.image in site.toml.")
    endings, read = FORMATS[kind]
    pairs: list[tuple[int, npt.NDArray[Any]]] = []
    first: tuple[int, ...] | None = None
    for person, at in row.items():
        own = [folder / f"{person}{ending}" for ending in endings]
        if (folder / person).is_dir():
            own += sorted(p for p in (folder / person).iterdir() if p.name.endswith(endings))
        for path in own:
            if not path.exists():
                continue
            try:
                raw = read(path)
            except Exception as error:  # a decoder raises whatever it likes on a broken file
                raise InputError(f"{path}: cannot be read as {kind} ({_short(error)}); replace the file or take it away.") from error
            pixels = channels_first(raw, shape, path, volumes=kind == "nifti")
            first = first or pixels.shape
            if pixels.shape != first:
                raise InputError(f"{path}: is {pixels.shape}, the images before it are {first} (channels, *size); make them alike.")
            pairs.append((at, pixels))
    return pairs


def _npz(path: Path, row: dict[str, int], shape: ImageShape | None) -> list[tuple[int, npt.NDArray[Any]]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, images = arrays["ids"].astype(str), arrays["images"]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; correct data.image in site.toml.") from error
    except Exception as error:  # zip, zlib and numpy each have their own
        raise InputError(f"{path}: cannot be read as .npz with arrays ids and images ({_short(error)}); write it anew.") from error
    if ids.ndim != 1 or images.ndim < 3:
        raise InputError(f"{path}: ids is {ids.shape} and images {images.shape}; ids has one axis, images one more than an image.")
    if len(ids) != len(images):
        raise InputError(f"{path}: has {len(ids)} ids but {len(images)} images; give one id an image.")
    return [(row[i], channels_first(image, shape, path)) for i, image in zip(ids, images, strict=True) if i in row]


def channels_first(raw: npt.NDArray[Any], shape: ImageShape | None, path: Path, *, volumes: bool = False) -> npt.NDArray[Any]:
    """``raw`` as (channels, *size), uint8 or float32.

    Raises:
        InputError: the image cannot be brought to ``shape`` by naming its axes, or a voxel is not finite.
    """
    if raw.dtype.kind not in "buif":
        raise InputError(f"{path}: holds {raw.dtype}, not plain numbers; replace the file or take it away.")
    if shape is None:
        if not 2 <= raw.ndim <= 4:
            raise InputError(f"{path}: has {raw.ndim} axes, an image has 2 to 4; replace the file or take it away.")
        picture = raw.ndim == 3 and raw.shape[-1] in ((1,) if volumes else (1, 3, 4))
        out = np.moveaxis(raw, -1, 0) if picture or raw.ndim == 4 else raw[None]
    elif raw.shape == shape.size and shape.channels == 1:
        out = raw[None]
    elif raw.shape == (shape.channels, *shape.size):
        out = raw
    elif raw.shape == (*shape.size, shape.channels):
        out = np.moveaxis(raw, -1, 0)
    else:
        raise InputError(
            f"{path}: is {raw.shape}, the study expects {shape.size} with {shape.channels} channel(s); "
            "resample it or change [cohort.image]."
        )
    if out.dtype != np.uint8:
        out = out.astype(np.float32)
        if not np.isfinite(out).all():
            raise InputError(f"{path}: holds voxels that are not finite numbers; replace the file or take it away.")
    return np.ascontiguousarray(out)


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:120].rstrip(".")
