"""The features of a region of an image, by PyRadiomics' names, such as ``original_glcm_Contrast``.

    names = feature_names(("shape", "firstorder", "glcm"), axes=3)
    values = region_features(image, mask, spacing=(1, 1, 1), binning=Binning(width=25.0), families=("shape", "firstorder", "glcm"))

Values are those of PyRadiomics 3.0.1 with the same bins and without resampling, and with them those of the IBSI (Zwanenburg 2020,
Radiology 295:328) except where docs/radiomics.md says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.radiomics import cooccurrence, intensity, shape, sizes, tone
from fedml.cohort.radiomics.region import Binning, Region, region_of
from fedml.study.radiomics import feature_names

VERSION = 1  # increment when a feature has another value for the same region

FAMILIES: Mapping[str, Callable[[Region], dict[str, float]]] = {
    "shape": shape.shape_features,
    "firstorder": intensity.intensity_features,
    "glcm": cooccurrence.cooccurrence_features,
    "glrlm": sizes.run_features,
    "glszm": sizes.zone_features,
    "gldm": sizes.dependence_features,
    "ngtdm": tone.tone_features,
}


def region_features(
    image: npt.NDArray[Any], mask: npt.NDArray[np.bool_], spacing: Sequence[float], binning: Binning, families: Sequence[str]
) -> dict[str, float]:
    """The features of the region ``mask`` of ``image``, both (*size) of the same 2 or 3 axes, by name.

    Args:
        spacing: mm from voxel to voxel along each axis.
        families: keys of ``FAMILIES``, in their order; shape needs three axes.

    Returns:
        A value for each of ``feature_names(families)``; NaN where a feature is not defined.

    Raises:
        ItemError: as ``region_of``.
    """
    region = region_of(image, mask, spacing, binning)
    found = {f"original_{family}_{name}": value for family in families for name, value in FAMILIES[family](region).items()}
    return {name: found[name] for name in feature_names(families)}
