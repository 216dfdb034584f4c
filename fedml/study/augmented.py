"""What random changes of training images need of the rest of a study."""

from __future__ import annotations

from collections.abc import Iterator

from fedml.study.cohort_section import ImageShape
from fedml.study.imaging import Augment
from fedml.study.monai_transforms import is_random


def augment_problems(augment: Augment, image: ImageShape | None, unit: str) -> Iterator[str]:
    """What speaks against ``[training.augment]`` and random ``[[cohort.image.transforms]]``, as sentences. ``unit``: of ``[privacy]``."""
    drawn = [transform for transform in (() if image is None else image.transforms) if is_random(transform.name)]
    if augment.stain:
        yield from _stain_problems(augment, image)
        augment = augment.model_copy(update={"stain": 0.0})
    keys = ["[training.augment]"] if augment != Augment() else []
    keys += [f"[cohort.image] transforms: {transform.name}" for transform in drawn]
    for key in keys:
        if image is None:
            yield f"{key} changes images of a stated size; give [cohort.image] size, or take it away"
            return
        if unit == "patient":
            yield f'{key} is not built for unit = "patient"; take it away'
        if image.tiles is not None:
            yield f"{key} is not built for tiles of slides; take it away"
    if image is None:
        return
    if max(augment.flip, default=0) >= len(image.size):
        yield f"[training.augment] flip names axis {max(augment.flip)}; the axes of {len(image.size)} start at 0"
    if (augment.scale or augment.shift or augment.noise) and not (image.window or image.percentiles):
        yield "[training.augment] scale, shift and noise are for intensities in 0..1; set [cohort.image] window"
    for transform in drawn:
        axis = transform.options.get("spatial_axis", 0)
        if isinstance(axis, int) and axis >= len(image.size):
            yield f"[cohort.image] transforms: {transform.name} names axis {axis}; the axes of {len(image.size)} start at 0"


def _stain_problems(augment: Augment, image: ImageShape | None) -> Iterator[str]:
    if image is None or image.tiles is None:
        yield "[training.augment] stain changes tiles of stained slides; give [cohort.image] tiles, or take it away"
    elif image.tiles.encoder is not None:
        yield "[training.augment] stain changes pixels, and with [cohort.image.tiles.encoder] training is on features; take one away"
