"""MONAI's dictionary transforms that a study may name in ``[[cohort.image.transforms]]``, and the arguments of each.

    transform_problem("RandGaussianNoised", {"prob": 2})     # 'prob is 2; RandGaussianNoised takes a number from 0 to 1'
    is_random("RandGaussianNoised")                          # True: applied in training only; others are applied once and cached

No other transform and no other argument is accepted: none reads a file, runs code or changes the number of voxels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedml.errors import nearest


class Takes(NamedTuple):
    """A kind of argument: a number from ``least`` to ``most``, ``whole`` or not; ``length`` of them (0: one number)."""

    least: float
    most: float
    whole: bool = False
    length: int = 0

    @property
    def words(self) -> str:
        """What it takes."""
        one = f"{'whole ' if self.whole else ''}number{'s' if self.length else ''} from {self.least:g} to {self.most:g}"
        return f"{self.length} {one}, the lower first" if self.length else f"a {one}"

    def holds(self, value: Any) -> bool:
        """Whether it takes ``value``."""
        if self.length:
            good = isinstance(value, list | tuple) and len(value) == self.length and all(self._one(v) for v in value)
            return good and list(value) == sorted(value)
        return self._one(value)

    def _one(self, value: Any) -> bool:
        kinds = int if self.whole else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value) and self.least <= value <= self.most


YES = "true or false"
Argument = Takes | str
_PROB, _ANGLE, _LARGE = Takes(0, 1), Takes(0, math.pi, length=2), 1e6
_ANY, _SPREAD, _FACTOR = Takes(-_LARGE, _LARGE), Takes(0, _LARGE), Takes(0, 1)
_SIGMA = Takes(0, 20, length=2)
_RANGE = {"prob": _PROB}

# name -> argument -> what it takes. All of an image's channels are treated alike; masks only move with their image.
DETERMINISTIC: dict[str, dict[str, Argument]] = {
    "NormalizeIntensityd": {"nonzero": YES, "channel_wise": YES},
    "ScaleIntensityd": {"minv": _ANY, "maxv": _ANY, "channel_wise": YES},
    "ScaleIntensityRangePercentilesd": {
        "lower": Takes(0, 100), "upper": Takes(0, 100), "b_min": _ANY, "b_max": _ANY, "clip": YES, "channel_wise": YES
    },
    "ClipIntensityPercentilesd": {"lower": Takes(0, 100), "upper": Takes(0, 100), "channel_wise": YES},
    "ThresholdIntensityd": {"threshold": _ANY, "above": YES, "cval": _ANY},
    "AdjustContrastd": {"gamma": Takes(0.01, 100)},
    "GaussianSmoothd": {"sigma": Takes(0, 20)},
    "GaussianSharpend": {"sigma1": Takes(0, 20), "sigma2": Takes(0, 20), "alpha": Takes(0, 100)},
    "MedianSmoothd": {"radius": Takes(0, 5, whole=True)},
    "HistogramNormalized": {"num_bins": Takes(2, 4096, whole=True), "min": _ANY, "max": _ANY},
}  # fmt: skip
RANDOM: dict[str, dict[str, Argument]] = {
    "RandGaussianNoised": {**_RANGE, "mean": _ANY, "std": _SPREAD},
    "RandRicianNoised": {**_RANGE, "mean": _ANY, "std": _SPREAD},
    "RandGaussianSmoothd": {**_RANGE, "sigma_x": _SIGMA, "sigma_y": _SIGMA, "sigma_z": _SIGMA},
    "RandGaussianSharpend": {**_RANGE, "alpha": Takes(0, 100, length=2)},
    "RandScaleIntensityd": {**_RANGE, "factors": _FACTOR},
    "RandShiftIntensityd": {**_RANGE, "offsets": _SPREAD},
    "RandAdjustContrastd": {**_RANGE, "gamma": Takes(0.01, 100, length=2)},
    "RandBiasFieldd": {**_RANGE, "degree": Takes(1, 5, whole=True), "coeff_range": _FACTOR._replace(length=2)},
    "RandGibbsNoised": {**_RANGE, "alpha": Takes(0, 1, length=2)},
    "RandHistogramShiftd": {**_RANGE, "num_control_points": Takes(3, 100, whole=True)},
    "RandFlipd": {**_RANGE, "spatial_axis": Takes(0, 2, whole=True)},
    "RandRotated": {**_RANGE, "range_x": _ANGLE, "range_y": _ANGLE, "range_z": _ANGLE},
    "RandZoomd": {**_RANGE, "min_zoom": Takes(0.5, 2), "max_zoom": Takes(0.5, 2)},
    "RandAffined": {
        **_RANGE, "rotate_range": Takes(0, math.pi), "shear_range": Takes(0, 1), "translate_range": Takes(0, 4096),
        "scale_range": Takes(0, 0.9),
    },
}  # fmt: skip
MOVES = ("RandFlipd", "RandRotated", "RandZoomd", "RandAffined")  # masks move with their images
_NEEDS = {
    "ScaleIntensityRangePercentilesd": ("lower", "upper", "b_min", "b_max"), "ClipIntensityPercentilesd": ("lower", "upper"),
    "ThresholdIntensityd": ("threshold",), "AdjustContrastd": ("gamma",), "GaussianSmoothd": ("sigma",),
    "MedianSmoothd": ("radius",), "RandScaleIntensityd": ("factors",),
    "RandShiftIntensityd": ("offsets",), "RandFlipd": ("spatial_axis",),
}  # fmt: skip
MONAI = (*DETERMINISTIC, *RANDOM)


def is_random(name: str) -> bool:
    """Whether a transform is applied at random, in training only."""
    return name in RANDOM


def transform_problem(name: str, options: Mapping[str, Any]) -> str:
    """What is wrong with the arguments of the MONAI transform ``name``; "" if nothing is."""
    known = {**DETERMINISTIC, **RANDOM}[name]
    for key, value in options.items():
        takes = known.get(key)
        if takes is None:
            return f'"{key}" is not an argument of {name} here{nearest(key, known)}; it takes {", ".join(known)}'
        if not (isinstance(value, bool) if isinstance(takes, str) else takes.holds(value)):
            return f"{key} is {value!r}; {name} takes {takes if isinstance(takes, str) else takes.words}"
    if lacking := [key for key in _NEEDS.get(name, ()) if key not in options]:
        return f"{name} needs {lacking[0]}; write such as {lacking[0]} = {'1' if lacking[0] != 'upper' else '99'}"
    for low, high in (("lower", "upper"), ("min_zoom", "max_zoom"), ("b_min", "b_max"), ("minv", "maxv"), ("min", "max")):
        if low in options and high in options and not options[low] < options[high]:
            return f"{low} is {options[low]}, {high} is {options[high]}; the first must be smaller"
    return ""
