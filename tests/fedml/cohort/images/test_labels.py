"""Values of label maps, and mask files of one structure each, as the study's classes; overlaps by the declared order or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fedml.cohort.found_images import ImageRules
from fedml.cohort.images.reasons import TooManyExcluded, Unusable
from fedml.cohort.read_images import read_images
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape
from fedml.study.study import Study, validate
from tests.conftest import make_plan
from tests.dicom_files import write_series
from tests.structure_files import write_structures

RNG = np.random.default_rng(12)
SIZE, AFFINE = (6, 5, 4), np.diag([-1.5, -2.0, 3.0, 1.0])
ABOUT = {"PatientIdentityRemoved": "YES", "PatientID": "p"}


def nifti(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    nifti(tmp_path / "i" / "p.nii.gz", RNG.integers(0, 900, SIZE).astype(np.int16))
    return tmp_path


def read(folder: Path, classes: Any = (0, 1, 2), kind: str = "nifti", **shape: Any) -> Any:
    found = ImageShape(size=SIZE, **shape)
    images = read_images(folder / "i", kind, ["p"], found, codes=classes, rules=ImageRules(folder / "m", max_quarantined=0.0))
    return images.masks[:][0, 0]


def refused(word: str, reason: Unusable, *args: Any, **shape: Any) -> None:
    with pytest.raises(TooManyExcluded, match=word) as caught:
        read(*args, **shape)
    assert [one.reason for one in caught.value.excluded] == [reason]


def test_values_of_a_label_map_are_classes_of_the_study(place: Path) -> None:
    values = RNG.integers(0, 6, SIZE).astype(np.int16)
    nifti(place / "m" / "p.nii.gz", values)
    refused("which is not a class", Unusable.MASK_MISMATCH, place)
    expected = np.where(np.isin(values, [1, 4]), 1, np.where(values == 2, 2, 0))
    np.testing.assert_array_equal(read(place, labels={"1": (1, 4), "2": (2,)}), expected)
    np.testing.assert_array_equal(read(place, ("none", "tumour", "edema"), labels={"edema": (2,), "tumour": (4, 1)}), expected)
    nifti(place / "m" / "p.nii.gz", values + np.float32(0.25))
    refused("no whole numbers", Unusable.MASK_MISMATCH, place, labels={"1": (1, 4)})


def test_a_file_for_each_structure(place: Path) -> None:
    spleen, liver = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    spleen[1:3, 1:3, 1:3], liver[4:, :2, :2] = 255, 1
    nifti(place / "m" / "p" / "spleen.nii.gz", spleen)
    nifti(place / "m" / "p" / "heart.nii.gz", np.ones(SIZE, np.uint8))  # no class
    rules = {"1": ("spleen",), "2": ("liver*",)}
    refused('no mask fits class "2"', Unusable.MASK_MISMATCH, place, mask_files=rules)
    nifti(place / "m" / "p" / "liver_left.nii.gz", liver)
    expected = (spleen > 0) + 2 * (liver > 0)
    np.testing.assert_array_equal(read(place, mask_files=rules), expected)
    refused("is of two classes of .* mask_files", Unusable.MASK_MISMATCH, place, mask_files={"1": ("spleen", "liver*"), "2": ("liver*",)})
    both = liver.copy()
    both[2:5, 2:4, 2:4] = 1
    nifti(place / "m" / "p" / "liver_right.nii.gz", both)  # two files of a class may overlap, two classes may not
    refused("a voxel is of two classes", Unusable.OVERLAPPING_SEGMENTS, place, mask_files=rules)
    for overlap, first in (("later", 2), ("earlier", 1)):
        own = read(place, mask_files=rules, overlap=overlap)
        assert own[2, 2, 2] == first
        assert ((own == 1) | (own == 2)).sum() == ((spleen > 0) | (both > 0)).sum()
    other = nibabel.Nifti1Image(spleen, AFFINE + np.array([[0, 0, 0, 5.0], *[[0, 0, 0, 0.0]] * 3]))
    nibabel.save(other, place / "m" / "p" / "spleen.nii.gz")
    refused("voxel positions of mask and image differ", Unusable.MASK_MISMATCH, place, mask_files=rules, overlap="later")


def test_overlapping_regions_by_the_declared_order(tmp_path: Path) -> None:
    write_series(tmp_path / "i" / "p", RNG.integers(0, 900, (4, 5, 6)).astype(np.int16), **ABOUT)

    def square(low: float, high: float) -> Any:  # mm: pixels of 1.5 mm from x = -5, of 2 mm from y = 7; slice 1 lies at z = 13
        return [(-5 + 1.5 * c, 7 + 2 * r, 13.0) for c, r in ((low, low), (high, low), (high, high), (low, high))]

    write_structures(tmp_path / "m" / "p.dcm", {"Lung": [square(0.5, 4.5)], "GTV": [square(1.5, 2.5)]}, **ABOUT)
    rules = {"1": ("lung",), "2": ("gtv*",)}
    refused("two classes", Unusable.OVERLAPPING_SEGMENTS, tmp_path, (0, 1, 2), "dicom", segments=rules)
    own = read(tmp_path, (0, 1, 2), "dicom", segments=rules, overlap="later")
    assert (np.argwhere(own == 2).tolist(), int((own == 1).sum())) == ([[2, 2, 1]], 15)
    assert (read(tmp_path, (0, 1, 2), "dicom", segments=rules, overlap="earlier") == 1).sum() == 16


def test_dicom_images_with_a_file_for_each_structure(tmp_path: Path) -> None:
    write_series(tmp_path / "i" / "p", RNG.integers(0, 900, (4, 5, 6)).astype(np.int16), **ABOUT)
    affine = np.diag([-1.5, -2.0, 3.0, 1.0])
    affine[:3, 3] = 5, -7, 10
    spleen = (RNG.random(SIZE) < 0.3).astype(np.uint8)
    (tmp_path / "m" / "p").mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(spleen, affine), tmp_path / "m" / "p" / "spleen.nii.gz")
    np.testing.assert_array_equal(read(tmp_path, (0, 1), "dicom", mask_files={"1": ("spleen",)}), spleen)


def test_keys_are_checked_when_the_study_is_read() -> None:
    def study(**image: Any) -> Any:
        return validate(Study, make_plan(("image",), cohort__image={"size": [6, 5, 4], **image}), "s.toml").cohort.image

    assert study(labels={"1": 4}).labels == {"1": (4,)}
    assert study(labels={"1": [1, 4]}).rules == " (class 1 from values 1 or 4)"
    for word, image in {
        'labels names "7"': {"labels": {"7": [1]}}, 'mask_files names "0"': {"mask_files": {"0": ["x"]}},
        "a mask for each class": {"labels": {"1": [1]}, "mask_files": {"1": ["x"]}}, "greater than or equal to 0": {"labels": {"1": [-1]}},
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=word):
            study(**image)
