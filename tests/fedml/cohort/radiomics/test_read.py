"""Features of persons are read from images and masks of a site, kept in its cache, and left out with a reason where there is no region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from fedml.cohort.found_images import ImageRules
from fedml.cohort.images.reasons import TooManyExcluded, Unusable
from fedml.cohort.images.transforms import prepared
from fedml.cohort.radiomics.features import region_features
from fedml.cohort.radiomics.read import Features, read_radiomics
from fedml.cohort.radiomics.region import Binning
from fedml.errors import InputError
from fedml.study.imaging import Preprocess
from fedml.study.radiomics import RadiomicsFeatures
from tests.dicom_files import write_seg, write_series

IDS = [f"p{k}" for k in range(6)]
SPACING = (0.9, 1.1, 2.0)


def volume(seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """CT-like intensities, and a mask with the values 1 and 2 in two halves of an ellipsoid."""
    random = np.random.default_rng(seed)
    places = np.indices((14, 12, 9)) - np.array([7, 6, 4]).reshape(3, 1, 1, 1)
    mask = ((places / np.array([5, 4, 3]).reshape(3, 1, 1, 1)) ** 2).sum(0) <= 1
    return random.normal(0, 120, mask.shape).astype(np.float32), (mask * (1 + (places[0] > 0))).astype(np.uint8)


def write(path: Path, voxels: np.ndarray[Any, Any], affine: np.ndarray[Any, Any] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([*SPACING, 1.0]) if affine is None else affine), path)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for k, person in enumerate(IDS):
        image, mask = volume(k)
        write(tmp_path / "ct" / f"{person}.nii.gz", image)
        write(tmp_path / "masks" / f"{person}.nii.gz", mask)
    return tmp_path


def spec(**changes: Any) -> RadiomicsFeatures:
    return RadiomicsFeatures(**{"modality": "CT", "labels": (1, 2), **changes})


def read(site: Path, study: RadiomicsFeatures, persons: Sequence[str] = IDS, **changes: Any) -> Features:
    rules = ImageRules(masks=site / "masks", max_quarantined=0.5, cache=site / "cache")
    return read_radiomics(site / "ct", "nifti", list(persons), study, replace(rules, **changes))


def expected(seed: int, study: RadiomicsFeatures, labels: Sequence[int] = (1, 2)) -> np.ndarray[Any, Any]:
    image, mask = volume(seed)
    bins = Binning(study.bin_width, study.bin_count)
    values = region_features(image, np.isin(mask, labels), SPACING, bins, study.families)
    return np.array([values[name] for name in study.columns])


def test_values_are_those_of_the_files_arrays_without_resampling(site: Path) -> None:
    study = spec(spacing_mm=())
    found = read(site, study)
    assert found.present.all()
    for k in range(len(IDS)):
        np.testing.assert_allclose(found.values[k], expected(k, study), rtol=2e-7)  # the cache has float32


@pytest.mark.parametrize(("labels", "count"), [((1,), 32), ((2,), None)])
def test_labels_bins_and_features_are_the_studys(site: Path, labels: tuple[int, ...], count: int | None) -> None:
    names = ("original_ngtdm_Strength", "original_shape_MeshVolume")
    study = spec(labels=labels, spacing_mm=(), bin_count=count, features=names)
    found = read(site, study)
    assert found.values.shape == (6, 2)
    assert study.columns == names[::-1], "the order of the families"
    np.testing.assert_allclose(found.values[3], expected(3, study, labels), rtol=2e-7)


def test_resampling_is_to_the_studys_spacing_and_does_not_depend_on_how_the_file_is_turned(site: Path) -> None:
    study, (image, mask) = spec(), volume(0)
    turned = np.diag([*SPACING, 1.0])
    turned[0] = -turned[0]
    write(site / "ct" / "p1.nii.gz", image[::-1], turned)
    write(site / "masks" / "p1.nii.gz", mask[::-1], turned)
    found = read(site, study)
    np.testing.assert_allclose(found.values[1], found.values[0], rtol=1e-4)
    grid = Preprocess(orientation="RAS", spacing_mm=(1.0, 1.0, 1.0))
    # The region's surroundings, as they are cut out of the file.
    box = tuple(slice(max(0, int(at.min()) - 3), int(at.max()) + 4) for at in np.nonzero(mask))
    resampled, region = prepared(grid, image[box][None], np.diag([*SPACING, 1.0]), (mask[box] > 0)[None].astype(np.uint8))
    assert region is not None
    values = region_features(resampled[0], region[0] > 0, (1, 1, 1), Binning(width=25.0), study.families)
    np.testing.assert_allclose(found.values[0], [values[name] for name in study.columns], rtol=1e-5)  # NIfTI has float32 affines
    assert found.values[0][study.columns.index("original_shape_VoxelVolume")] == region.sum()


def test_the_cache_keeps_the_features_and_knows_a_changed_file_and_changed_settings(site: Path) -> None:
    study = spec(spacing_mm=())
    first = read(site, study)
    (entry,) = (site / "cache").glob("*/items.json")
    stamp = entry.stat().st_mtime_ns
    fewer = read(site, spec(spacing_mm=(), features=("original_glcm_Id",)))
    assert np.array_equal(fewer.values[:, 0], first.values[:, study.columns.index("original_glcm_Id")])
    assert [entry] == list((site / "cache").glob("*/items.json")), "other features of the same families are in the entry"
    assert entry.stat().st_mtime_ns == stamp
    image, _ = volume(9)
    write(site / "ct" / "p2.nii.gz", image)
    again = read(site, study)
    same = [k for k in range(6) if k != 2]
    assert np.array_equal(again.values[same], first.values[same])
    assert not np.array_equal(again.values[2], first.values[2])
    wider = read(site, spec(spacing_mm=(), bin_width=60.0))
    assert not np.array_equal(wider.values, again.values)
    assert not list((site / "cache").glob("*.partial"))


def test_a_site_without_a_cache_has_the_same_features(site: Path) -> None:
    study = spec(spacing_mm=())
    assert np.array_equal(read(site, study).values, read(site, study, cache=None).values)


def test_persons_without_a_region_are_left_out_with_their_reason(site: Path) -> None:
    image, mask = volume(1)
    (site / "masks" / "p0.nii.gz").unlink()
    write(site / "masks" / "p1.nii.gz", np.zeros_like(mask))
    line = np.zeros_like(mask)
    line[7, 6, 3:6] = 1
    write(site / "masks" / "p2.nii.gz", line)
    for name in ("a", "b"):
        write(site / "ct" / "p3" / f"{name}.nii.gz", image)
        write(site / "masks" / "p3" / f"{name}.nii.gz", mask)
    found = read(site, spec(spacing_mm=()), max_quarantined=0.9)
    assert found.present.tolist() == [False, False, False, False, True, True]
    assert {one.person: one.reason for one in found.excluded} == {
        "p0": Unusable.NO_MASK, "p1": Unusable.EMPTY_MASK, "p2": Unusable.SMALL_REGION, "p3": Unusable.SEVERAL_SERIES,
    }  # fmt: skip
    text = next(one.text for one in found.excluded if one.person == "p1")
    assert text.endswith("p1.nii.gz: its mask has no voxel of mask value 1 or 2; correct the file, or leave it out.")
    with pytest.raises(TooManyExcluded, match=r"3 of 6 persons with images have an unusable image, \[policy\] max_quarantined is 0\.1"):
        read(site, spec(spacing_mm=()), max_quarantined=0.1)


def test_an_image_of_a_person_without_a_mask_is_not_missed_where_another_has_one(site: Path) -> None:
    image, _ = volume(1)
    write(site / "ct" / "p3" / "scout.nii.gz", image)
    found = read(site, spec(spacing_mm=()))
    assert found.present.all()
    assert not found.excluded


def test_file_chooses_among_several_files_of_a_person(site: Path) -> None:
    for k in range(6):
        for name, seed in (("a_T1w", k), ("a_T2w", k + 1)):
            write(site / "ct" / IDS[k] / f"{name}.nii.gz", volume(seed)[0])
        (site / "ct" / f"{IDS[k]}.nii.gz").unlink()
    study = spec(spacing_mm=(), file="*_T2w")
    np.testing.assert_allclose(read(site, study).values[4], expected(5, study), rtol=2e-7)


def test_a_wrong_label_is_said_in_one_sentence(site: Path) -> None:
    with pytest.raises(InputError, match=r"max_quarantined is 0\.5"):
        read(site, spec(labels=(7,)))
    with pytest.raises(InputError, match=r"ct: no person in the persons table has an image with mask value 7; correct data\.radiomics in"):
        read(site, spec(labels=(7,)), max_quarantined=1.0)


# --- DICOM, identifiers and hostile studies

ABOUT: dict[str, Any] = {"PatientIdentityRemoved": "YES", "PatientID": "p"}


@pytest.fixture
def series(tmp_path: Path) -> tuple[Path, np.ndarray[Any, Any]]:
    """A series of four slices, and a segmentation whose segment 3 is the liver and 9 a tumour, each a square on two slices."""
    voxels = np.random.default_rng(6).integers(900, 1200, (4, 9, 8)).astype(np.int16)
    write_series(tmp_path / "ct" / "p", voxels, **ABOUT)
    frames = []
    for slice_at in (1, 2):
        for number, (row, column) in {3: (4, 0), 9: (1, 3)}.items():
            drawn = np.zeros((9, 8), np.uint8)
            drawn[row : row + 3, column : column + 4] = 1
            frames.append((number, (-5.0, 7.0, 10.0 + 3 * slice_at), drawn))
    path = tmp_path / "masks" / "p.dcm"
    path.parent.mkdir()
    write_seg(path, frames, **ABOUT)
    dataset = pydicom.dcmread(path)
    for one in dataset.SegmentSequence:
        one.SegmentLabel = {3: "Liver", 9: "Tumour"}[int(one.SegmentNumber)]
    dataset.save_as(path)
    return tmp_path, voxels


@pytest.mark.parametrize("how", [{"segment": ("tumo*",), "labels": (1,)}, {"labels": (9,)}])
def test_the_region_of_a_segmentation_is_chosen_by_label_or_number(series: tuple[Path, np.ndarray[Any, Any]], how: dict[str, Any]) -> None:
    (folder, voxels), study = series, spec(spacing_mm=(), **how)
    rules = ImageRules(masks=folder / "masks", cache=folder / "cache")
    found = read_radiomics(folder / "ct", "dicom", ["p"], study, rules)
    image, region = voxels.transpose(2, 1, 0) - 1024.0, np.zeros((8, 9, 4), bool)
    region[3:7, 1:4, 1:3] = True
    values = region_features(image, region, (1.5, 2, 3), Binning(width=25.0), study.families)
    np.testing.assert_allclose(found.values[0], list(values.values()), rtol=2e-7)


def test_a_series_with_a_persons_name_is_set_aside_and_the_name_is_nowhere(series: tuple[Path, np.ndarray[Any, Any]]) -> None:
    folder, voxels = series
    write_series(folder / "ct" / "p", voxels, **{**ABOUT, "PatientName": "Planted^Person"})
    rules = ImageRules(masks=folder / "masks", max_quarantined=1.0, cache=folder / "cache")
    with pytest.raises(InputError) as refused:
        read_radiomics(folder / "ct", "dicom", ["p"], spec(labels=(9,)), rules)
    assert "no person in the persons table has an image" in str(refused.value)
    assert "Planted" not in str(refused.value)
    assert not [path for path in (folder / "cache").rglob("*") if path.is_file() and b"Planted" in path.read_bytes()]
    with pytest.raises(TooManyExcluded) as counted:
        read_radiomics(folder / "ct", "dicom", ["p"], spec(labels=(9,)), replace(rules, max_quarantined=0.0))
    (one,) = counted.value.excluded
    assert one.reason is Unusable.NOT_DE_IDENTIFIED
    assert "Planted" not in one.text


def test_a_study_cannot_make_a_site_resample_to_more_than_it_holds(site: Path) -> None:
    with pytest.raises(TooManyExcluded) as found:
        read(site, spec(spacing_mm=(0.01, 0.01, 0.01)), max_quarantined=0.0)
    assert {one.reason for one in found.value.excluded} == {Unusable.TOO_LARGE}
    assert "would have" in str(found.value)
