"""Segments by label or code as the study's classes, of one segmentation or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.sequence import Sequence as Items

from fedml.cohort.found_images import ImageRules
from fedml.cohort.images.images import Images
from fedml.cohort.images.reasons import TooManyExcluded, Unusable
from fedml.cohort.read_images import read_images
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape
from fedml.study.study import Study, validate
from tests.conftest import make_plan
from tests.dicom_files import item, write_seg, write_series

RNG = np.random.default_rng(6)
ABOUT = {"PatientIdentityRemoved": "YES", "PatientID": "p"}


def square(row: int, column: int) -> np.ndarray[Any, Any]:
    drawn = np.zeros((6, 5), np.uint8)
    drawn[row : row + 2, column : column + 2] = 1
    return drawn


def seg(path: Path, parts: dict[int, tuple[str, str, np.ndarray[Any, Any]]]) -> None:
    """Segment number -> label, SNOMED code, and what it marks on the second slice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_seg(path, [(n, (-5.0, 7.0, 13.0), drawn) for n, (_, _, drawn) in parts.items()], **ABOUT)
    dataset = pydicom.dcmread(path)
    for one in dataset.SegmentSequence:
        one.SegmentLabel, code, _ = parts[int(one.SegmentNumber)]
        one.SegmentedPropertyTypeCodeSequence = Items([item(CodeValue=code, CodingSchemeDesignator="SCT", CodeMeaning="x")])
    dataset.save_as(path)


def read(folder: Path, segments: dict[str, tuple[str, ...]], classes: tuple[Any, ...] = (0, 1, 2)) -> Images:
    shape = ImageShape(size=(5, 6, 3), segments=segments)
    return read_images(folder / "i", "dicom", ["p"], shape, codes=classes, rules=ImageRules(folder / "m", max_quarantined=0.0))


def marked(images: Images, value: int) -> list[list[int]]:
    """(row, column) on the second slice of the voxels of a class."""
    assert images.masks is not None
    mask = images.masks[:][0, 0]
    assert not mask[:, :, [0, 2]].any()
    return sorted([row, column] for column, row in np.argwhere(mask[:, :, 1] == value).tolist())


def corners(row: int, column: int) -> list[list[int]]:
    return [[row, column], [row, column + 1], [row + 1, column], [row + 1, column + 1]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_series(tmp_path / "i" / "p", RNG.integers(0, 900, (3, 6, 5)).astype(np.int16), **ABOUT)
    return tmp_path


PARTS = {3: ("Liver", "10200004", square(4, 0)), 5: ("Spleen (left)", "78961009", square(0, 0)), 9: ("Tumour", "108369006", square(0, 3))}


def test_classes_by_label_and_by_code_whatever_their_numbers(place: Path) -> None:
    seg(place / "m" / "p.dcm", PARTS)
    with pytest.raises(TooManyExcluded, match="contains 5, which is not a class"):
        read(place, {})
    for rules in ({"1": ("spleen*",), "2": ("*tumo*r",)}, {"1": ("SCT:78961009",), "2": ("sct:108369006",)}):
        images = read(place, rules)
        assert marked(images, 1) == corners(0, 0)
        assert marked(images, 2) == corners(0, 3)  # the liver is background
    images = read(place, {"2": ("liver", "spleen*")})
    assert marked(images, 2) == sorted(corners(0, 0) + corners(4, 0))
    assert marked(images, 1) == []
    names = read(place, {"spleen": ("spleen*",)}, ("none", "liver", "spleen"))
    assert marked(names, 2) == corners(0, 0)


def test_several_segmentations_of_a_series_are_one_mask(place: Path) -> None:
    seg(place / "m" / "p" / "a.dcm", {1: PARTS[5]})
    seg(place / "m" / "p" / "b.dcm", {1: PARTS[9]})
    with pytest.raises(TooManyExcluded, match="has 2 segmentations"):
        read(place, {})
    images = read(place, {"1": ("spleen*",), "2": ("tumour",)})
    assert (marked(images, 1), marked(images, 2)) == (corners(0, 0), corners(0, 3))


def refused(place: Path, reason: Unusable, word: str, rules: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(TooManyExcluded, match=word) as caught:
        read(place, rules)
    assert [e.reason for e in caught.value.excluded] == [reason]


def test_what_is_of_two_classes_or_of_none_is_refused(place: Path) -> None:
    seg(place / "m" / "p.dcm", {1: PARTS[5], 2: ("Cyst", "103552005", square(1, 1))})
    refused(place, Unusable.OVERLAPPING_SEGMENTS, "a voxel is of two classes", {"1": ("spleen*",), "2": ("cyst",)})
    refused(place, Unusable.MASK_MISMATCH, "segment 1 is of two classes", {"1": ("spleen*",), "2": ("SCT:78961009",)})
    refused(place, Unusable.MASK_MISMATCH, "none of its segments is a class", {"1": ("kidney",)})
    both = read(place, {"1": ("spleen*", "cyst")})  # an overlap within a class is none
    assert marked(both, 1) == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [2, 1], [2, 2]]


def test_only_classes_of_the_study_are_named() -> None:
    for name, ok in (("1", True), ("0", False), ("7", False)):
        plan = make_plan(("image",), cohort__image={"size": [5, 6, 3], "segments": {name: ["spleen"]}})
        if ok:
            assert validate(Study, plan, "s.toml").cohort.image is not None
        else:
            with pytest.raises(InputError, match=f'segments names "{name}"'):
                validate(Study, plan, "s.toml")
