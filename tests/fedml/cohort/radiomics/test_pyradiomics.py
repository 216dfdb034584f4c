"""The features of eight small volumes and pictures have the values of PyRadiomics 3.0.1.

``pyradiomics_3_0_1.json`` has the volumes and what PyRadiomics gave for them without resampling (``force2D`` for pictures). They are of
unequal spacing, with scattered voxels, one slice, nearly one intensity, and bins of both kinds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.radiomics.features import FAMILIES, region_features
from fedml.cohort.radiomics.region import MOST_LEVELS, Binning
from fedml.study.radiomics import FEATURES, feature_names

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "pyradiomics_3_0_1.json").read_text())
TEXTURE = tuple(family for family in FAMILIES if family != "shape")


def arrays(case: dict[str, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    image, mask = np.array(case["image"]), np.array(list(case["mask"])) == "1"
    return image.reshape(case["size"])[..., slice(None) if case["axes"] == 3 else 0], mask.reshape(case["size"])[
        ..., slice(None) if case["axes"] == 3 else 0
    ]


@pytest.mark.parametrize("case", CASES, ids=[str(at) for at in range(len(CASES))])
def test_every_feature_has_the_value_of_pyradiomics(case: dict[str, Any]) -> None:
    image, mask = arrays(case)
    bins = Binning(case["bins"].get("binWidth"), case["bins"].get("binCount"))
    flat = case["axes"] == 2
    found = region_features(image, mask, case["spacing"][: case["axes"]], bins, TEXTURE if flat else tuple(FAMILIES))
    assert len(found) == (93 if flat else 107)
    assert found.keys() == {f"original_{name}" for name in case["values"]}
    for name, stated in case["values"].items():
        if flat and name == "firstorder_TotalEnergy":  # PyRadiomics has the thickness of the slice, a picture has none
            stated /= case["spacing"][2]
        assert found[f"original_{name}"] == pytest.approx(stated, rel=1e-7, abs=1e-7), name


def test_the_names_are_those_that_the_families_give() -> None:
    image, mask = arrays(CASES[0])
    found = region_features(image, mask, (1, 1, 1), Binning(width=25.0), tuple(FAMILIES))
    assert tuple(found) == feature_names(tuple(FAMILIES))
    assert {family: len(names) for family, names in FEATURES.items()} == {
        "shape": 14, "firstorder": 18, "glcm": 24, "glrlm": 16, "glszm": 16, "gldm": 14, "ngtdm": 5,
    }  # fmt: skip


def test_moving_the_region_in_a_larger_image_changes_nothing() -> None:
    image, mask = arrays(CASES[1])
    large, there = np.full((40, 40, 40), 9999), np.zeros((40, 40, 40), bool)
    box = tuple(slice(7, 7 + size) for size in image.shape)
    large[box], there[box] = image, mask
    one = region_features(image, mask, (1, 2, 3), Binning(width=25.0), tuple(FAMILIES))
    assert region_features(large, there, (1, 2, 3), Binning(width=25.0), tuple(FAMILIES)) == pytest.approx(one, rel=1e-12)


def test_an_axis_turned_leaves_texture_as_it_is() -> None:
    image, mask = arrays(CASES[1])
    one = region_features(image, mask, (1, 1, 1), Binning(width=25.0), TEXTURE)
    for turned, region in ((image[::-1, ::-1], mask[::-1, ::-1]), (image.transpose(2, 0, 1), mask.transpose(2, 0, 1))):
        again = region_features(turned, region, (1, 1, 1), Binning(width=25.0), TEXTURE)
        assert again == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize(
    ("change", "reason"),
    [("none", Unusable.EMPTY_MASK), ("one", Unusable.SMALL_REGION), ("line", Unusable.SMALL_REGION), ("nan", Unusable.NON_FINITE),
     ("levels", Unusable.TOO_LARGE), ("range", Unusable.TOO_LARGE)],
)  # fmt: skip
def test_a_region_without_features_is_refused_with_its_reason(change: str, reason: Unusable) -> None:
    image, mask = np.arange(4096.0).reshape(16, 16, 16), np.zeros((16, 16, 16), bool)
    where: dict[str, Any] = {"none": slice(0, 0), "one": (3, 3, 3), "line": (3, 3)}
    mask[where.get(change, slice(None))] = True
    image[5, 5, 5] = {"nan": np.nan, "range": 1e300}.get(change, 0)
    with pytest.raises(ItemError) as refused:
        region_features(image, mask, (1, 1, 1), Binning(width=1.0), TEXTURE)
    assert refused.value.reason is reason
    assert MOST_LEVELS < 4096
