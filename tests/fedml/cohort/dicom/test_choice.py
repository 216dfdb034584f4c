"""A PACS study as a person's folder: which series is the image, and what is said of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.sequence import Sequence as Items

from fedml.cohort.dicom.choice import choose, fits
from fedml.cohort.dicom.headers import candidates
from fedml.cohort.found_images import ImageRules
from fedml.cohort.images.images import Images
from fedml.cohort.images.reasons import TooManyExcluded, Unusable
from fedml.cohort.read_images import read_images
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape
from fedml.study.series_section import Select, SiteSelect
from tests.dicom_files import item, write_enhanced, write_seg, write_series, write_slice
from tests.dicom_studies import CORONAL, cube, pacs, uid


def read(folder: Path, select: Select | None, site: SiteSelect | None = None, persons: tuple[str, ...] = ("p",)) -> Images:
    """Images cut to 5 x 6 x 4 voxels, so that series of any length are read."""
    shape = ImageShape(size=(5, 6, 4), crop=True, select=select)
    return read_images(folder, "dicom", list(persons), shape, rules=ImageRules(max_quarantined=1.0, select=site))


def same(images: Images, voxels: np.ndarray[Any, Any]) -> None:
    """The image is the middle four slices of ``voxels``, in HU."""
    assert images.person.tolist() == [0]
    start = (len(voxels) - 4) // 2
    whole = np.moveaxis(voxels.astype(np.float32) - 1024, (0, 1, 2), (2, 1, 0))
    assert any(np.array_equal(images.pixels[:][0, 0], whole[:, :, k : k + 4]) for k in (start, start + 1))


def test_what_headers_say_of_each_series(tmp_path: Path) -> None:
    pacs(tmp_path / "p")
    found, broken = candidates(tmp_path / "p")
    assert broken == []
    about = {c.about.number: c.about for c in found}
    assert {n: (a.plane, a.slices, a.thickness, a.localizer, a.derived, a.secondary) for n, a in about.items()} == {
        "1": ("coronal", 1, 3.0, True, False, False), "2": ("axial", 5, 3.0, False, False, False),
        "3": ("axial", 9, 1.0, False, False, False),
        "4": ("coronal", 7, 3.0, False, True, True), "5": ("", 1, 3.0, False, False, True),
    }  # fmt: skip
    assert about["3"].words() == "series 3 (CT, axial, 9 slices of 1 mm)"
    assert about["3"].words(described=True) == 'series 3 (CT, axial, 9 slices of 1 mm, kernel B70f, "LUNG 1.0 B70f")'


def test_two_series_that_could_be_the_image_are_never_averaged(tmp_path: Path) -> None:
    """The scout, the reformatted plane and the dose page are no question; the two kernels are, and the sentence lists them."""
    pacs(tmp_path / "p")
    with pytest.raises(InputError, match="has no usable image"):
        read(tmp_path, None)
    with pytest.raises(TooManyExcluded) as caught:
        read_images(tmp_path, "dicom", ["p"], ImageShape(size=(5, 6, 4), crop=True), rules=ImageRules(max_quarantined=0.0))
    (one,) = caught.value.excluded
    assert one.reason is Unusable.SEVERAL_SERIES
    assert one.file == str(tmp_path / "p")
    assert "has 2 series that the study selects" in one.text
    assert (
        "series 2 (CT, axial, 5 slices of 3 mm); series 3 (CT, axial, 9 slices of 1 mm); state rules in [cohort.image.select]" in one.text
    )
    assert "B30f" not in one.text  # what is written freely stays on the site's screen


@pytest.mark.parametrize(
    ("rules", "which"),
    [
        ({"kernel": ("b30?",)}, "soft"),
        ({"description": ("*lung*",)}, "lung"),
        ({"not_description": ("*lung*",)}, "soft"),
        ({"thickness_mm": (0.0, 1.5)}, "lung"),
        ({"prefer": ("most-slices",)}, "lung"),
        ({"prefer": ("newest",)}, "lung"),
        ({"prefer": ("thinnest",)}, "lung"),
        ({"modality": ("CT",), "orientation": "axial", "image_type": ("AXIAL",), "thickness_mm": (2.0, 5.0)}, "soft"),
    ],
)
def test_rules_of_the_study_select_the_image(tmp_path: Path, rules: dict[str, Any], which: str) -> None:
    voxels = pacs(tmp_path / "p")
    same(read(tmp_path, Select(**rules)), voxels[which])


def test_a_site_names_its_own_kernels_and_descriptions(tmp_path: Path) -> None:
    voxels = pacs(tmp_path / "p")
    study = Select(kernel=("STANDARD",), prefer=("most-slices",))
    with pytest.raises(InputError, match="has no usable image"):
        read(tmp_path, study)
    same(read(tmp_path, study, SiteSelect(kernel=("B30f",))), voxels["soft"])
    assert study.at(SiteSelect()) == study


def test_a_person_who_lacks_what_the_study_selects_is_no_fault_of_the_site(tmp_path: Path) -> None:
    """Nor is a summary page, which is one series more: no person is excluded for it."""
    pacs(tmp_path / "p")
    write_series(tmp_path / "q", cube(), SeriesDescription="other", PatientIdentityRemoved="YES", PatientID="q")
    shape = ImageShape(size=(5, 6, 4), crop=True, select=Select(kernel=("B30f",)))
    images = read_images(tmp_path, "dicom", ["p", "q"], shape, rules=ImageRules(max_quarantined=0.0))
    assert images.person.tolist() == [0]
    assert [(e.person, e.reason) for e in images.excluded] == [("q", Unusable.NO_SERIES)]
    assert "has no series that the study selects: series ? (CT, axial, 4 slices of 3 mm)" in images.excluded[0].text


def test_the_only_series_is_the_image_whatever_it_is_unless_the_study_states_rules(tmp_path: Path) -> None:
    """As a folder of prepared series: computed maps and processed X-rays say DERIVED."""
    voxels = cube()
    write_series(
        tmp_path / "p", voxels, ImageType=["DERIVED", "SECONDARY", "ADC"], PatientIdentityRemoved="YES", PatientID="p", Modality="CT"
    )
    same(read(tmp_path, None), voxels)
    same(read(tmp_path, Select(derived=True, secondary=True)), voxels)
    with pytest.raises(InputError, match="has no usable image"):
        read(tmp_path, Select(derived=True))


def test_several_are_images_of_one_person_if_the_study_says_so(tmp_path: Path) -> None:
    pacs(tmp_path / "p")
    assert read(tmp_path, Select(several=True)).person.tolist() == [0, 0]


def test_a_localizer_within_the_series_is_left_out(tmp_path: Path) -> None:
    voxels = cube(4)
    about = {"PatientIdentityRemoved": "YES", "PatientID": "p"}
    write_series(tmp_path / "p", voxels, **about)
    write_slice(tmp_path / "p" / "z.dcm", cube(1)[0], (0, 0, 0), axes=CORONAL, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **about)
    same(read(tmp_path, None), voxels)


def test_plates_of_one_series_are_told_apart_by_their_view(tmp_path: Path) -> None:
    front, side = cube(2)
    about = {"PatientIdentityRemoved": "YES", "PatientID": "p", "Modality": "DX", "drop": ["RescaleSlope", "RescaleIntercept"]}
    write_slice(tmp_path / "p" / "1.dcm", front, None, ViewPosition="PA", **about)
    write_slice(tmp_path / "p" / "2.dcm", side, None, ViewPosition="LL", **about)
    shape = ImageShape(size=(6, 5), select=Select(view=("PA", "AP")))
    images = read_images(tmp_path, "dicom", ["p"], shape)
    np.testing.assert_array_equal(images.pixels[:][0, 0], front.astype(np.float32))
    with pytest.raises(TooManyExcluded, match="view LL"):
        read_images(tmp_path, "dicom", ["p"], ImageShape(size=(6, 5)))


def test_of_several_series_the_one_that_was_segmented_is_the_image(tmp_path: Path) -> None:
    first, second = cube(4), cube(4)
    about = {"PatientIdentityRemoved": "YES", "PatientID": "p"}
    write_series(tmp_path / "i" / "p" / "1", first, SeriesInstanceUID=uid(21), **about)
    write_series(tmp_path / "i" / "p" / "2", second, SeriesInstanceUID=uid(22), **about)
    drawn = np.zeros((6, 5), np.uint8)
    drawn[2, 3] = 1
    (tmp_path / "m").mkdir()
    write_seg(
        tmp_path / "m" / "p.dcm", [(1, (-5.0, 7.0, 16.0), drawn)], PatientIdentityRemoved="YES", PatientID="p",
        ReferencedSeriesSequence=Items([item(SeriesInstanceUID=uid(22))]),
    )  # fmt: skip
    images = read_images(
        tmp_path / "i", "dicom", ["p"], ImageShape(size=(5, 6, 4)), codes=(0, 1), rules=ImageRules(tmp_path / "m", max_quarantined=0.0)
    )
    np.testing.assert_array_equal(images.pixels[:][0, 0], np.moveaxis(second.astype(np.float32) - 1024, (0, 1, 2), (2, 1, 0)))
    assert images.masks is not None
    assert np.argwhere(images.masks[:][0, 0]).tolist() == [[3, 2, 2]]


def test_undated_series_are_not_the_oldest(tmp_path: Path) -> None:
    """After a de-identification that removes dates the newest is not known, so the person stays undecided."""
    write_series(tmp_path / "p" / "1", cube(), SeriesInstanceUID=uid(31), SeriesDate="20010101")
    write_series(tmp_path / "p" / "2", cube(), SeriesInstanceUID=uid(32))
    made = choose(candidates(tmp_path / "p")[0], Select(prefer=("newest",)))
    assert made.problem is not None
    assert made.problem[0] is Unusable.SEVERAL_SERIES


def test_an_unreadable_file_may_be_a_slice_of_the_image(tmp_path: Path) -> None:
    pacs(tmp_path / "p")
    (tmp_path / "p" / "2" / "9.dcm").write_bytes((tmp_path / "p" / "2" / "1.dcm").read_bytes()[:200])
    with pytest.raises(InputError, match="has no usable image"):
        read(tmp_path, Select(kernel=("B30f",)))


def test_enhanced_files_are_known_by_their_groups(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    write_enhanced(tmp_path / "p" / "a.dcm", cube(3).astype(np.uint16), [(0, 0, 2.0 * k) for k in range(3)], [(1, 0)] * 3)
    ((_, _, about),) = candidates(tmp_path / "p")[0]
    assert (about.plane, about.slices, about.thickness) == ("axial", 3, 3.0)


def test_a_pattern_is_no_expression() -> None:
    assert fits(" T1 AX ", ("t1*",))
    assert not fits("xT1", ("t1*",))
    assert not fits("aaa", ("(a+)+$",))


def test_a_study_without_the_section_keeps_its_hash() -> None:
    shape = ImageShape(size=(5, 6, 4))
    assert set(shape.model_dump()) == {"channels", "size", "orientation", "spacing_mm", "window", "percentiles", "crop", "tiles"}
    assert ImageShape(size=(5, 6, 4), select=Select(derived=True)).model_dump()["select"] == {"derived": True}
