"""The axes of an image as a file has them, in one order: channels first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.study.cohort_section import ImageShape


def channels_first(raw: npt.NDArray[Any], shape: ImageShape | None, path: Path, *, volumes: bool = False) -> npt.NDArray[Any]:
    """``raw`` as (channels, *size), uint8 or float32. If the study preprocesses images, ``size`` is not checked here.

    Raises:
        ItemError: the axes of the image do not match ``shape``, a voxel is not finite, all voxels are equal, or all are beyond
            the study's window.
    """
    if raw.dtype.kind not in "buif":
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: has the type {raw.dtype}, not numbers; replace or delete the file.")
    out = _any_shape(raw, path, volumes) if shape is None else _named_axes(raw, shape)
    if out is None and shape is not None:
        text = f"{path}: is {raw.shape}, the study expects {shape.size} with {shape.channels} channel(s); "
        raise ItemError(Unusable.GEOMETRY, text + "resample it or change [cohort.image].")
    assert out is not None  # noqa: S101 - for the type checker
    if out.dtype != np.uint8:
        out = out.astype(np.float32)
        if not np.isfinite(out).all():
            raise ItemError(Unusable.NON_FINITE, f"{path}: has voxels that are not finite; replace or delete the file.")
    if out.size > 1:
        _require_contrast(float(out.min()), float(out.max()), shape, path)
    return np.ascontiguousarray(out)


def _require_contrast(low: float, high: float, shape: ImageShape | None, path: Path) -> None:
    if low == high:
        text = f"{path}: has the value {low:g} in every voxel, so it shows nothing; replace or delete the file."
        raise ItemError(Unusable.CONSTANT, text)
    window = () if shape is None else shape.window  # of the study; a window that sites agree on is of their own percentiles
    if window and (high <= window[0] or low >= window[1]):
        text = f"{path}: has values from {low:g} to {high:g}, all beyond [cohort.image] window {list(window)}, so it would show nothing"
        raise ItemError(Unusable.CONSTANT, f"{text}; correct the window, or replace the file.")


def _any_shape(raw: npt.NDArray[Any], path: Path, volumes: bool) -> npt.NDArray[Any]:
    if not 2 <= raw.ndim <= 4:
        text = f"{path}: has {raw.ndim} axes, an image has 2 to 4; replace or delete the file."
        raise ItemError(Unusable.NOT_AN_IMAGE, text)
    picture = raw.ndim == 3 and raw.shape[-1] in ((1,) if volumes else (1, 3, 4))
    return np.moveaxis(raw, -1, 0) if picture or raw.ndim == 4 else raw[None]


def _named_axes(raw: npt.NDArray[Any], shape: ImageShape) -> npt.NDArray[Any] | None:
    free = shape.preprocess is not None
    axes = len(shape.size)

    def fits(size: tuple[int, ...]) -> bool:
        return len(size) == axes and (free or size == shape.size)

    if shape.channels == 1 and fits(raw.shape):
        return raw[None]
    if raw.ndim == axes + 1:
        last, first = raw.shape[-1] == shape.channels, raw.shape[0] == shape.channels
        if first and fits(raw.shape[1:]) and not (free and last):
            return raw
        if last and fits(raw.shape[:-1]):
            return np.moveaxis(raw, -1, 0)
    return None
