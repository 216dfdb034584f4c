"""The features of the IBSI's digital phantom have the IBSI's reference values.

The phantom: 5 x 4 x 4 voxels of 2 mm with the intensities 1, 3, 4, 6 and 9, of which 74 are the region. Values and tolerances: IBSI
reference manual (Zwanenburg 2016, arXiv:1612.07003), chapter 3, "dig. phantom", 3D, averaged over directions; where no tolerance is
stated, a value is right to its three digits.
"""

from __future__ import annotations

from math import floor, log10

import numpy as np
import pytest

from fedml.cohort.radiomics.features import FAMILIES, region_features
from fedml.cohort.radiomics.region import Binning

# Slices from front to back, rows from top to bottom.
PHANTOM = np.array(
    [
        [[4, 4, 6, 4, 1], [4, 4, 6, 1, 1], [1, 1, 6, 1, 1], [1, 1, 6, 1, 1]],
        [[4, 1, 6, 4, 1], [1, 1, 3, 1, 1], [1, 1, 9, 1, 1], [1, 1, 1, 1, 1]],
        [[1, 4, 6, 1, 1], [1, 1, 6, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
        [[1, 4, 4, 1, 1], [1, 4, 4, 1, 1], [1, 4, 4, 1, 1], [1, 4, 4, 1, 1]],
    ]
).transpose(2, 1, 0)
OUTSIDE = [(0, 1, 1), (2, 2, 1), (3, 2, 3), (4, 2, 3), (3, 3, 3), (4, 3, 3)]
REFERENCE: dict[str, float | tuple[float, float]] = {
    "shape_MeshVolume": (556, 4), "shape_VoxelVolume": (592, 4), "shape_SurfaceArea": (388, 3), "shape_SurfaceVolumeRatio": (0.698, 0.004),
    "shape_Sphericity": (0.843, 0.005), "shape_Maximum3DDiameter": (13.1, 0.1), "shape_Elongation": (0.816, 0.005),
    "shape_Flatness": (0.749, 0.005),
    "firstorder_Mean": 2.15, "firstorder_Variance": 3.05, "firstorder_Skewness": 1.08, "firstorder_Median": 1, "firstorder_Minimum": 1,
    "firstorder_10Percentile": 1, "firstorder_90Percentile": 4, "firstorder_Maximum": 6, "firstorder_InterquartileRange": 3,
    "firstorder_Range": 5, "firstorder_MeanAbsoluteDeviation": 1.55, "firstorder_RobustMeanAbsoluteDeviation": 1.11,
    "firstorder_Energy": 567, "firstorder_RootMeanSquared": 2.77, "firstorder_Entropy": 1.27, "firstorder_Uniformity": 0.512,
    "glcm_MaximumProbability": 0.503, "glcm_JointAverage": 2.14, "glcm_SumSquares": 3.1, "glcm_JointEntropy": 2.4,
    "glcm_DifferenceAverage": 1.43, "glcm_DifferenceVariance": 3.06, "glcm_DifferenceEntropy": 1.56, "glcm_SumAverage": 4.29,
    "glcm_SumEntropy": 1.92, "glcm_JointEnergy": 0.303, "glcm_Contrast": 5.32, "glcm_Id": 0.677, "glcm_Idn": 0.851, "glcm_Idm": 0.618,
    "glcm_Idmn": 0.898, "glcm_InverseVariance": 0.0604, "glcm_Correlation": 0.157, "glcm_Autocorrelation": 5.06,
    "glcm_ClusterTendency": 7.07, "glcm_ClusterShade": 16.6, "glcm_ClusterProminence": 145, "glcm_Imc1": -0.157, "glcm_Imc2": 0.52,
    "glrlm_ShortRunEmphasis": 0.705, "glrlm_LongRunEmphasis": 3.06, "glrlm_LowGrayLevelRunEmphasis": 0.603,
    "glrlm_HighGrayLevelRunEmphasis": 9.7, "glrlm_ShortRunLowGrayLevelEmphasis": 0.352, "glrlm_ShortRunHighGrayLevelEmphasis": 8.54,
    "glrlm_LongRunLowGrayLevelEmphasis": 2.39, "glrlm_LongRunHighGrayLevelEmphasis": 17.6, "glrlm_GrayLevelNonUniformity": 21.8,
    "glrlm_GrayLevelNonUniformityNormalized": 0.43, "glrlm_RunLengthNonUniformity": 26.9,
    "glrlm_RunLengthNonUniformityNormalized": 0.513, "glrlm_RunPercentage": 0.68, "glrlm_GrayLevelVariance": 3.46,
    "glrlm_RunVariance": 0.574, "glrlm_RunEntropy": 2.43,
    "glszm_SmallAreaEmphasis": 0.255, "glszm_LargeAreaEmphasis": 550, "glszm_LowGrayLevelZoneEmphasis": 0.253,
    "glszm_HighGrayLevelZoneEmphasis": 15.6, "glszm_SmallAreaLowGrayLevelEmphasis": 0.0256, "glszm_SmallAreaHighGrayLevelEmphasis": 2.76,
    "glszm_LargeAreaLowGrayLevelEmphasis": 503, "glszm_LargeAreaHighGrayLevelEmphasis": 1490, "glszm_GrayLevelNonUniformity": 1.4,
    "glszm_GrayLevelNonUniformityNormalized": 0.28, "glszm_SizeZoneNonUniformity": 1, "glszm_SizeZoneNonUniformityNormalized": 0.2,
    "glszm_ZonePercentage": 0.0676, "glszm_GrayLevelVariance": 2.64, "glszm_ZoneVariance": 331, "glszm_ZoneEntropy": 2.32,
    "gldm_SmallDependenceEmphasis": 0.045, "gldm_LargeDependenceEmphasis": 109, "gldm_LowGrayLevelEmphasis": 0.693,
    "gldm_HighGrayLevelEmphasis": 7.66, "gldm_SmallDependenceLowGrayLevelEmphasis": 0.00963,
    "gldm_SmallDependenceHighGrayLevelEmphasis": 0.736, "gldm_LargeDependenceLowGrayLevelEmphasis": 102,
    "gldm_LargeDependenceHighGrayLevelEmphasis": 235, "gldm_GrayLevelNonUniformity": 37.9, "gldm_DependenceNonUniformity": 4.86,
    "gldm_DependenceNonUniformityNormalized": 0.0657, "gldm_GrayLevelVariance": 3.05, "gldm_DependenceVariance": 22.1,
    "gldm_DependenceEntropy": 4.4,
    "ngtdm_Coarseness": 0.0296, "ngtdm_Contrast": 0.584, "ngtdm_Busyness": 6.54, "ngtdm_Complexity": 13.5, "ngtdm_Strength": 0.763,
}  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    mask = np.ones(PHANTOM.shape, bool)
    for place in OUTSIDE:
        mask[place] = False
    values = region_features(PHANTOM, mask, (2, 2, 2), Binning(width=1.0), tuple(FAMILIES))
    return {name.removeprefix("original_"): value for name, value in values.items()}


def digits(value: float) -> float:
    """To three digits."""
    return round(value, 2 - floor(log10(abs(value)))) if value else 0.0


@pytest.mark.parametrize("name", REFERENCE)
def test_a_feature_has_the_reference_value(name: str, found: dict[str, float]) -> None:
    stated = REFERENCE[name]
    if isinstance(stated, tuple):
        assert abs(found[name] - stated[0]) <= stated[1]
    else:
        assert digits(found[name]) == pytest.approx(stated, rel=1e-12)


@pytest.mark.parametrize(("name", "stated", "tolerance"), [("Major", 11.4, 0.1), ("Minor", 9.31, 0.06), ("Least", 8.54, 0.05)])
def test_axes_are_those_of_pyradiomics_whose_covariance_divides_by_one_voxel_more(
    name: str, stated: float, tolerance: float, found: dict[str, float]
) -> None:
    assert abs(found[f"shape_{name}AxisLength"] * (74 / 73) ** 0.5 - stated) <= tolerance


def test_kurtosis_is_that_of_pyradiomics_which_is_3_more(found: dict[str, float]) -> None:
    assert digits(found["firstorder_Kurtosis"] - 3) == -0.355


def test_only_features_without_a_reference_value_are_left_out(found: dict[str, float]) -> None:
    """The IBSI has no diameters by plane, no maximal correlation and no energy times volume; axes and kurtosis are above."""
    planes = {f"shape_Maximum2DDiameter{plane}" for plane in ("Slice", "Row", "Column")}
    planes |= {f"shape_{axis}AxisLength" for axis in ("Major", "Minor", "Least")}
    assert found.keys() - REFERENCE.keys() == {*planes, "glcm_MCC", "firstorder_TotalEnergy", "firstorder_Kurtosis"}
