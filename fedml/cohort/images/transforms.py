"""The study's preprocessing of images as MONAI transforms: a deterministic part and a random part (augmentation).

    spec = Preprocess(orientation="RAS", spacing_mm=(1.5, 1.5, 2.0), window=(-57, 164), size=(96, 96, 96))    # CT: the window is in HU
    image, mask = prepared(spec, voxels, affine, mask)             # float32 (channels, 96, 96, 96) in 0..1; uint8 of the same size
    deterministic(spec, keys=("image", "mask"))                    # the same as a monai Compose, for use in another pipeline
    random(Augment(rotate_degrees=10), keys=("image", "mask"), seed=7)
    digest(spec)                                                   # SHA-256, part of a cache's key

Axes: an image is (channels, *size) with ``affine`` (4, 4), voxel indices to millimetres in RAS+ (nibabel's convention, not DICOM's LPS).
Order: orientation, spacing, window, size. Intensities are interpolated linearly without previous smoothing; masks by nearest neighbour.
A window of ``percentiles`` depends on the voxels of all sites: the server computes it, and ``windowed(spec, low, high)`` is the new spec.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from inspect import isclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.code.load import call, failed, resolve
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.errors import InputError
from fedml.study.code_section import Code, CodeFile, module_of
from fedml.study.imaging import Augment, OwnTransform, Preprocess
from fedml.study.monai_transforms import MOVES

FORMAT = 1  # increment when the same spec gives other voxels
LARGEST = 2**29  # voxels of an image, before or after resampling: 2 GB as float32


def windowed(spec: Preprocess, low: float, high: float) -> Preprocess:
    """``spec`` with the window (``low``, ``high``) in raw units, computed by the server, instead of percentiles."""
    return Preprocess(**{**dict(spec), "percentiles": None, "window": (float(low), float(high))})


def digest(spec: Preprocess) -> str:
    """SHA-256, hexadecimal, of the preprocessing parameters. Versions of libraries are not included."""
    text = json.dumps([FORMAT, spec.model_dump(mode="json")], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def deterministic(spec: Preprocess, keys: Sequence[str] = ("image",), masks: Collection[str] = ("mask",)) -> Any:
    """The deterministic part: ``monai.transforms.Compose`` over dictionaries of ``MetaTensor`` (channels, *size).

    Args:
        spec: with a window instead of percentiles.
        keys: dictionary keys to transform; all have the same affine.
        masks: the ``keys`` of label maps: nearest neighbour, no window, padded with 0 (images too, which is the window's low end).

    Raises:
        ValueError: the spec still has ``percentiles``.
    """
    import monai.transforms as mt

    if spec.percentiles:
        raise ValueError("the server computes the window of percentiles: use windowed(spec, low, high)")
    images = [key for key in keys if key not in masks]
    steps: list[Any] = []
    if spec.orientation:
        # Stated explicitly, because the default will change in a later MONAI version.
        steps.append(mt.Orientationd(keys, axcodes=spec.orientation, labels=(("L", "R"), ("P", "A"), ("I", "S"))))
    if spec.spacing_mm:
        mode = ["nearest" if key in masks else "bilinear" for key in keys]
        steps.append(mt.Spacingd(keys, pixdim=spec.spacing_mm, mode=mode, padding_mode="border"))
    if spec.window and images:
        low, high = spec.window
        steps.append(mt.ScaleIntensityRanged(images, a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True))
    steps += [(_own if transform.is_own else _named)(transform, key) for transform in spec.transforms for key in images]
    if spec.size:
        steps.append(mt.ResizeWithPadOrCropd(keys, spatial_size=spec.size, mode="constant"))
    if spec.at_least:
        steps.append(mt.SpatialPadd(keys, spatial_size=spec.at_least, mode="constant"))
    return mt.Compose(steps)


def geometry(spec: Preprocess) -> list[Any]:
    """The steps of ``deterministic`` that move voxels, as MONAI transforms of one ``MetaTensor`` that only note what they would do."""
    import monai.transforms as mt

    steps: list[Any] = []
    if spec.orientation:
        steps.append(mt.Orientation(axcodes=spec.orientation, labels=(("L", "R"), ("P", "A"), ("I", "S")), lazy=True))
    if spec.spacing_mm:
        steps.append(mt.Spacing(pixdim=spec.spacing_mm, lazy=True))
    if spec.size:
        steps.append(mt.ResizeWithPadOrCrop(spatial_size=spec.size, lazy=True))
    if spec.at_least:
        steps.append(mt.SpatialPad(spatial_size=spec.at_least, lazy=True))
    return steps


def _named(transform: OwnTransform, key: str) -> Any:
    """A deterministic step of MONAI, by name."""
    import monai.transforms as mt

    return getattr(mt, transform.name)([key], **transform.options)


def _drawn(transform: OwnTransform, keys: Sequence[str], masks: Collection[str]) -> Any:
    """A random step of MONAI, by name, on images, and on their masks too if it moves voxels."""
    import monai.transforms as mt

    options: dict[str, Any] = {"prob": 1.0, **transform.options}
    if transform.name not in MOVES:
        return getattr(mt, transform.name)([key for key in keys if key not in masks], **options)
    if transform.name != "RandFlipd":
        options["mode"] = ["nearest" if key in masks else "area" if transform.name == "RandZoomd" else "bilinear" for key in keys]
        options["padding_mode"] = "edge" if transform.name == "RandZoomd" else "border"
    return getattr(mt, transform.name)(list(keys), **options)


def _own(transform: OwnTransform, key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A step of own code: (channels, *size) float32 -> the same shape. An image for which it fails ends the reading: no person is lost."""
    import torch
    from monai.data import MetaTensor

    code, made = Code(modules=(CodeFile(module=module_of(transform.name), sha256=transform.sha256),)), list[Callable[..., Any]]()

    def step(item: dict[str, Any]) -> dict[str, Any]:
        if not made:
            found = resolve(code, transform.name)
            made.append(call(code, transform.name, **transform.options) if isclass(found) else partial(found, **transform.options))
        values = np.array(item[key].numpy(), np.float32)
        try:
            out = np.asarray(made[0](values.copy()))
        except Exception as error:
            raise failed(code, transform.name, error) from error
        if out.shape != values.shape or out.dtype.kind not in "buif" or not np.isfinite(out).all():
            raise InputError(
                f'[cohort.image] transforms: "{transform.name}" gives {out.shape} {out.dtype} for an image {values.shape} float32; it must '
                "give finite numbers of the same shape."
            )
        image = torch.from_numpy(np.ascontiguousarray(out, np.float32))
        return {**item, key: MetaTensor(image, affine=item[key].affine)}

    return step


def random(
    spec: Augment, keys: Sequence[str] = ("image",), seed: int = 0, masks: Collection[str] = ("mask",), named: Sequence[OwnTransform] = ()
) -> Any:
    """The random part: ``monai.transforms.Compose`` over dictionaries of tensors (channels, *size).

    ``compose.set_random_state(seed)`` restarts the random sequence: with a seed from (run, epoch, image) a draw does not depend on the
    order of images or the number of processes. Masks are transformed with their image, by nearest neighbour; their values do not change.
    ``named``: MONAI's random transforms of the study, after those of ``spec``; each with probability 1 where it states none.
    """
    import monai.transforms as mt

    images = [key for key in keys if key not in masks]
    steps: list[Any] = [mt.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in spec.flip]
    if spec.rotate_degrees:
        most = math.radians(spec.rotate_degrees)
        mode = ["nearest" if key in masks else "bilinear" for key in keys]
        steps.append(mt.RandRotated(keys, range_x=most, range_y=most, range_z=most, prob=1.0, mode=mode, padding_mode="border"))
    if spec.scale and images:
        steps.append(mt.RandScaleIntensityd(images, factors=spec.scale, prob=1.0))
    if spec.shift and images:
        steps.append(mt.RandShiftIntensityd(images, offsets=spec.shift, prob=1.0))
    if spec.noise and images:
        steps.append(mt.RandGaussianNoised(images, prob=1.0, std=spec.noise))
    steps += [_drawn(transform, keys, masks) for transform in named]
    return mt.Compose(steps).set_random_state(seed)


def prepared(
    spec: Preprocess, image: npt.NDArray[Any], affine: npt.NDArray[Any] | None = None, mask: npt.NDArray[Any] | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]:
    """One image, and its mask, after ``deterministic``.

    Args:
        spec: with a window instead of percentiles.
        image: raw intensities (channels, *size).
        affine: (4, 4), voxel indices to millimetres in RAS+; None if the file has no affine.
        mask: integers 0 to 255, (mask channels, *size) with the size of ``image``.

    Returns:
        float32 (channels, *size); uint8 (mask channels, *size), or None without a mask.

    Raises:
        ItemError: intensities or affine are not finite; the spec needs an affine and the file has none; the image has another number of
            axes than the study; the mask has another size, or labels outside 0 to 255; the result would have more than ``LARGEST`` voxels.
        ValueError: the spec still has ``percentiles``.
    """
    from monai.data import MetaTensor

    _check(spec, image, affine, mask)
    where = None if affine is None else np.asarray(affine, np.float64)
    item = {"image": MetaTensor(np.ascontiguousarray(image, np.float32), affine=where)}
    if mask is not None:
        # As float32, because MONAI resamples floats; integers from 0 to 255 are exact.
        item["mask"] = MetaTensor(np.ascontiguousarray(mask, np.float32), affine=where)
    out = _pipeline(spec, mask is not None)(item)
    labels = None if mask is None else np.ascontiguousarray(out["mask"].numpy().round().astype(np.uint8))
    return np.ascontiguousarray(out["image"].numpy(), np.float32), labels


def spacing_after(spec: Preprocess | None, affine: npt.NDArray[Any] | None, axes: int) -> npt.NDArray[np.float64]:
    """(axes,) voxel spacing in millimetres of an image after ``deterministic``; NaN if unknown.

    Args:
        affine: of the raw image, as in ``prepared``.
    """
    if spec is not None and spec.spacing_mm:
        return np.array(spec.spacing_mm)
    if affine is None:
        return np.full(axes, np.nan)
    spacing: npt.NDArray[np.float64] = np.linalg.norm(affine[:3, :axes], axis=0)
    if spec is None or not spec.orientation:
        return spacing
    from nibabel.orientations import axcodes2ornt, io_orientation

    before, after = io_orientation(affine)[:, 0], axcodes2ornt(spec.orientation)[:, 0]
    return np.array([spacing[np.flatnonzero(before == direction)[0]] for direction in after])


@lru_cache(maxsize=8)
def _pipeline(spec: Preprocess, with_mask: bool) -> Any:
    return deterministic(spec, ("image", "mask") if with_mask else ("image",))


def _check(spec: Preprocess, image: npt.NDArray[Any], affine: npt.NDArray[Any] | None, mask: npt.NDArray[Any] | None) -> None:
    axes = image.ndim - 1
    if axes not in (2, 3) or (spec.axes or axes) != axes:
        raise ItemError(Unusable.GEOMETRY, f"is {image.shape} (channels, *size), the study has images of {spec.axes or '2 or 3'} axes")
    if image.dtype.kind not in "buif":
        raise ItemError(Unusable.NOT_AN_IMAGE, f"contains {image.dtype}, not numbers")
    if not image.size or image.size > LARGEST:
        raise ItemError(Unusable.TOO_LARGE if image.size else Unusable.NOT_AN_IMAGE, f"has {image.size} voxels")
    if not np.isfinite(image).all():
        raise ItemError(Unusable.NON_FINITE, "contains voxels that are not finite")
    if mask is not None:
        if mask.shape[1:] != image.shape[1:]:
            raise ItemError(Unusable.MASK_MISMATCH, f"the mask is {mask.shape[1:]}, the image {image.shape[1:]}")
        if mask.dtype.kind not in "buif" or not ((mask >= 0) & (mask <= 255) & (mask == np.rint(mask))).all():
            raise ItemError(Unusable.MASK_MISMATCH, "the mask contains labels that are not integers from 0 to 255")
    if not spec.needs_geometry:
        return
    if affine is None:
        raise ItemError(Unusable.GEOMETRY, "has no affine, which orientation and spacing_mm need")
    matrix = np.asarray(affine, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise ItemError(Unusable.GEOMETRY, "has an affine that is singular or not finite")
    volume = float(np.prod(np.linalg.norm(matrix[:3, :axes], axis=0)))  # of a voxel, in mm (2 axes: mm²)
    after = math.prod(image.shape) * volume / (math.prod(spec.spacing_mm) if spec.spacing_mm else volume)
    if after > LARGEST:
        raise ItemError(Unusable.TOO_LARGE, f"would have {after:.3g} voxels at the study's spacing")
