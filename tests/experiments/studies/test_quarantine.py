"""An unusable image is excluded with its reason and the run continues; too many exclusions end the reading."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fedml.clients.site.manifest import read_site
from fedml.clients.site.quarantine import read
from fedml.clients.site.read import read_cohort
from fedml.cohort.dicom.folders import group_series
from fedml.cohort.dicom.series import read_series
from fedml.cohort.found_images import ImageRules
from fedml.cohort.images.masks import as_classes
from fedml.cohort.images.reasons import Unusable
from fedml.cohort.read_images import read_images
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape
from fedml.study.series_section import Select
from tests.command import quick as command
from tests.conftest import federate, make_plan, make_study, public_data, to_toml, write_csv, write_manifest, write_picture
from tests.dicom_files import write_seg, write_series, write_slice
from tests.inputs import images_of

RNG = np.random.default_rng(5)
PERSONS = 30
IDS = [f"p{k:02d}" for k in range(PERSONS)]


def picture_site(folder: Path, persons: int = PERSONS, policy: str = "") -> Path:
    """Pictures of 9 x 8 whose brightness tells the label."""
    ids = [f"p{k:02d}" for k in range(persons)]
    y = RNG.integers(0, 2, persons)
    for person, label in zip(ids, y, strict=True):
        write_picture(folder / "images" / f"{person}.png", RNG.integers(60 + 60 * label, 120 + 60 * label, (9, 8)).astype(np.uint8))
    write_csv(folder / "persons.csv", ids, {"y": y})
    manifest = write_manifest(folder, "a", image='{ path = "images", format = "png" }')
    manifest.write_text(manifest.read_text() + policy)
    return manifest


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def turn(path: Path) -> None:
    write_picture(path, np.arange(72, dtype=np.uint8).reshape(8, 9))


def scribble(path: Path) -> None:
    path.write_bytes(b"no picture")


@pytest.mark.parametrize(("break_it", "reason"), [(cut, Unusable.UNREADABLE), (scribble, Unusable.UNREADABLE), (turn, Unusable.GEOMETRY)])
def test_one_broken_image_of_many_is_excluded_and_the_run_goes_on(
    tmp_path: Path, break_it: Callable[[Path], None], reason: Unusable
) -> None:
    manifest = picture_site(tmp_path / "a")
    broken = tmp_path / "a" / "images" / "p07.png"
    break_it(broken)
    cohort = read_cohort(site := read_site(manifest), study := make_study(("image",), sites=("a",)))
    assert (len(cohort), "p07" in cohort.ids) == (PERSONS - 1, False)
    assert cohort.excluded == {"no input": 1}
    assert sum(cohort.excluded_images.values()) == 1
    assert (cohort.excluded_images.keys() == {str(reason)}) or (
        reason is Unusable.UNREADABLE and set(cohort.excluded_images) == {"truncated"}
    )
    (entry,) = read(site.state)
    assert (entry["person"], entry["file"]) == ("p07", str(broken))
    assert str(broken) in entry["text"]
    assert (site.state / "quarantine.jsonl").stat().st_mode & 0o077 == 0
    assert federate(study, [manifest], tmp_path / "run").final["event"] == "final"


def test_the_list_is_that_of_the_last_reading(tmp_path: Path) -> None:
    site, study = read_site(picture_site(tmp_path)), make_study(("image",), sites=("a",))
    read_cohort(site, study)
    assert not site.state.exists()
    whole = (tmp_path / "images" / "p03.png").read_bytes()
    cut(tmp_path / "images" / "p03.png")
    assert read_cohort(site, study).excluded_images
    (tmp_path / "images" / "p03.png").write_bytes(whole)
    assert not read_cohort(site, study).excluded_images
    assert read(site.state) == []


@pytest.mark.parametrize(("broken", "policy"), [(4, ""), (1, "[policy]\nmax_quarantined = 0.0\n")])
def test_too_many_are_one_sentence_and_still_listed(tmp_path: Path, broken: int, policy: str) -> None:
    site = read_site(picture_site(tmp_path, policy=policy))
    for person in IDS[:broken]:
        cut(tmp_path / "images" / f"{person}.png")
    with pytest.raises(InputError, match=f"p00.png.*{broken} of {PERSONS} persons.*max_quarantined") as caught:
        read_cohort(site, make_study(("image",), sites=("a",)))
    assert "\n" not in str(caught.value)
    assert [e["person"] for e in read(site.state)] == IDS[:broken]
    (tmp_path / "site.toml").write_text((tmp_path / "site.toml").read_text().replace(policy, "") + "[policy]\nmax_quarantined = 0.5\n")
    assert len(read_cohort(read_site(tmp_path), make_study(("image",), sites=("a",)))) == PERSONS - broken


def test_the_commands_show_the_exclusions(tmp_path: Path) -> None:
    picture_site(tmp_path / "a")
    (tmp_path / "s.toml").write_text(to_toml(make_plan(("image",), sites=("a",))))
    assert "no images are excluded" in command("fedml-site", "data", "--site", tmp_path / "a", cwd=tmp_path).stdout
    turn(tmp_path / "a" / "images" / "p02.png")
    checked = command("fedml-site", "check", tmp_path / "s.toml", "--site", tmp_path / "a", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "excluded an image of 1 persons: geometry" in checked.stdout
    listed = command("fedml-site", "data", "--site", tmp_path / "a", cwd=tmp_path).stdout
    assert "1 geometry" in listed
    assert "p02.png: is (1, 8, 9)" in listed


def dicom_site(folder: Path, *, policy: str = "", **changes: Any) -> Path:
    """One series of (4, 6, 5) slices, rows, columns a person, in nested folders; ``changes`` to that of p04."""
    for k, person in enumerate(IDS):
        voxels = RNG.integers(0, 200, (4, 6, 5)).astype(np.int16)
        write_series(folder / "images" / person / "study" / "series", voxels, **(changes if k == 4 else {}))
    write_csv(folder / "persons.csv", IDS, {"y": RNG.integers(0, 2, PERSONS)})
    manifest = write_manifest(folder, "a", image='{ path = "images", format = "dicom" }')
    manifest.write_text(manifest.read_text() + policy)
    return manifest


def test_dicom_series_are_images_of_columns_rows_and_slices(tmp_path: Path) -> None:
    first, second = RNG.integers(0, 200, (4, 6, 5)).astype(np.int16), RNG.integers(0, 200, (4, 6, 5)).astype(np.int16)
    write_series(tmp_path / "p00" / "a", first)
    write_series(tmp_path / "p00" / "deeper" / "b", second, SeriesInstanceUID="1.2.3")
    write_slice(tmp_path / "p02.dcm", first[0], None)
    write_series(tmp_path / "stranger", first)
    images = read_images(tmp_path, "dicom", IDS[:2], ImageShape(size=(5, 6, 4), select=Select(several=True)))
    assert images.person.tolist() == [0, 0]
    assert images.pixels.dtype == np.float32
    volumes = [read_series(files).voxels for files in group_series(tmp_path / "p00").values()]
    np.testing.assert_array_equal(images.pixels[:, 0], np.stack(volumes))
    assert {v.tobytes() for v in volumes} == {np.ascontiguousarray(v.T.astype(np.float32) - 1024).tobytes() for v in (first, second)}
    flat = read_images(tmp_path, "dicom", ["p02"], None)
    np.testing.assert_array_equal(flat.pixels[0, 0], first[0].astype(np.float32) - 1024)


@pytest.mark.parametrize(
    "changes",
    [{"PatientName": "Doe^Jane"}, {"PatientID": "MRN4711"}, {"PatientIdentityRemoved": "NO"}],
    ids=["name", "another's id", "says so"],
)
def test_a_file_that_is_not_de_identified_goes_by_the_policy(
    tmp_path: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(("image",), sites=("a",))
    manifest = dicom_site(tmp_path, **changes)
    cohort = read_cohort(read_site(manifest), study)
    assert cohort.excluded_images == {"not-de-identified": 1}
    assert IDS[4] not in cohort.ids
    text = manifest.read_text()
    manifest.write_text(text + '[policy]\ndeidentification = "refuse"\n')
    with pytest.raises(InputError, match=r"p04/study/series/0\.dcm: is not de-identified.*deidentification"):
        read_cohort(read_site(manifest), study)
    manifest.write_text(text + '[policy]\ndeidentification = "warn"\n')
    with caplog.at_level(logging.WARNING, "fedml.site"):
        assert len(read_cohort(read_site(manifest), study)) == PERSONS
    assert "is not de-identified" in caplog.text
    assert "Doe" not in caplog.text


def test_a_truncated_slice_and_a_missing_one_are_excluded(tmp_path: Path) -> None:
    manifest = dicom_site(tmp_path)
    series = tmp_path / "images" / IDS[4] / "study" / "series"
    cut_file = series / "3.dcm"  # the last: without it the others would still be a volume
    cut_file.write_bytes(cut_file.read_bytes()[:200])
    (tmp_path / "images" / IDS[6] / "study" / "series" / "1.dcm").unlink()
    cohort = read_cohort(read_site(manifest), make_study(("image",), sites=("a",)))
    assert len(cohort) == PERSONS - 2
    assert sum(cohort.excluded_images.values()) == 2
    assert cohort.excluded_images["gap"] == 1


def test_dicom_segmentations_are_masks_and_one_off_its_image_is_excluded(tmp_path: Path) -> None:
    manifest = dicom_site(tmp_path)
    (tmp_path / "masks").mkdir()
    expected = {}
    for k, person in enumerate(IDS[:-1]):
        plane = (RNG.random((6, 5)) < 0.4).astype(np.uint8)
        expected[person] = plane
        z = 13 + (1.5 if k == 4 else 0)
        write_seg(tmp_path / "masks" / f"{person}.dcm", [(1, (-5.0, 7.0, z), plane)])
    manifest.write_text(manifest.read_text().replace('format = "dicom"', 'format = "dicom", masks = "masks"'))
    study = make_study(("image",), sites=("a",), model__task="segmentation", model__segmentation={"channels": [4, 8], "window": [4, 4, 4]})
    cohort = read_cohort(read_site(manifest), study)
    assert cohort.excluded_images == {"mask-mismatch": 1, "no-mask": 1}
    images = images_of(cohort)
    assert images.masks is not None
    assert images.masks.shape == (PERSONS - 2, 1, 5, 6, 4)
    for person, mask in zip(cohort.ids, images.masks, strict=True):
        np.testing.assert_array_equal(mask[0, :, :, 1], expected[person].T)
        assert not mask[0, :, :, [0, 2, 3]].any()
    np.testing.assert_allclose(images.spacing, np.tile([1.5, 2, 3], (PERSONS - 2, 1)))
    assert "dice_mean_person" in federate(study, [manifest], tmp_path / "run").final["metrics"]["test"]["all"]


def nifti(path: Path, voxels: np.ndarray[Any, Any], affine: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def test_nifti_masks_lie_on_their_images_and_both_are_preprocessed(tmp_path: Path) -> None:
    affine = np.diag([-2.0, 1.0, 1.0, 1.0])  # the first axis runs to the left
    mask = np.zeros((8, 12, 10), np.uint8)
    mask[:3] = 128
    for person in IDS[:3]:
        nifti(tmp_path / "images" / f"{person}.nii.gz", (mask * 2.0 - 50).astype(np.float32), affine)
        nifti(tmp_path / "masks" / f"{person}.nii.gz", mask, affine + (5.0 if person == IDS[2] else 0.0) * np.eye(4, k=3))
    shape = ImageShape(size=(12, 12, 12), orientation="RAS", spacing_mm=(1.0, 1.0, 1.0), window=(-50.0, 206.0))
    images = read_images(
        tmp_path / "images", "nifti", IDS[:3], shape, codes=(0, 128), rules=ImageRules(tmp_path / "masks", max_quarantined=0.5)
    )  # fmt: skip
    assert [(a.person, a.reason) for a in images.excluded] == [(IDS[2], Unusable.MASK_MISMATCH)]
    assert images.shape == (1, 12, 12, 12)
    assert images.masks is not None
    assert set(np.unique(images.masks)) == {0, 1}
    assert (images.pixels.min(), images.pixels.max()) == (0, 1)
    inside = images.masks[0, 0].any((1, 2))
    assert inside[-1]  # what ran to the left now begins at the right
    assert not inside[:6].any()
    np.testing.assert_array_equal(images.spacing, np.ones((2, 3)))
    with pytest.raises(InputError, match="max_quarantined"):
        read_images(tmp_path / "images", "nifti", IDS[:3], shape, codes=(0, 128), rules=ImageRules(tmp_path / "masks", max_quarantined=0.3))


def test_orientation_alone_turns_the_spacing_with_the_axes(tmp_path: Path) -> None:
    affine = np.zeros((4, 4))
    affine[0, 2], affine[1, 0], affine[2, 1], affine[3, 3] = 3.0, 1.0, -2.0, 1.0  # axes run A, I, R
    nifti(tmp_path / "images" / "p00.nii.gz", RNG.normal(size=(4, 5, 6)).astype(np.float32), affine)
    nifti(tmp_path / "masks" / "p00.nii.gz", np.zeros((4, 5, 6), np.uint8), affine)
    shape = ImageShape(size=(6, 4, 5), orientation="RAS")
    images = read_images(tmp_path / "images", "nifti", ["p00"], shape, codes=(0, 1), rules=ImageRules(tmp_path / "masks"))
    np.testing.assert_allclose(images.spacing, [[3, 1, 2]])


def test_crop_alone_brings_pictures_of_any_size_to_the_study_s(tmp_path: Path) -> None:
    small, large = RNG.integers(1, 255, (6, 5, 3), np.uint8), RNG.integers(1, 255, (14, 13, 3), np.uint8)
    write_picture(tmp_path / "p00.png", small)
    write_picture(tmp_path / "p01.png", large)
    images = read_images(tmp_path, "png", IDS[:2], ImageShape(channels=3, size=(8, 7), crop=True))
    np.testing.assert_array_equal(images.pixels[0, :, 1:7, 1:6], np.moveaxis(small, -1, 0))
    np.testing.assert_array_equal(images.pixels[1], np.moveaxis(large[3:11, 3:10], -1, 0))


def test_a_mask_s_values_are_the_classes_or_their_places(tmp_path: Path) -> None:
    values = np.array([[0, 128], [255, 0]])
    np.testing.assert_array_equal(as_classes(values, (0, 128, 255), tmp_path)[0], [[0, 1], [2, 0]])
    np.testing.assert_array_equal(as_classes(values // 127, ("other", "cytoplasm", "nucleus"), tmp_path)[0], [[0, 1], [2, 0]])
    with pytest.raises(Exception, match="contains 255"):
        as_classes(values, (0, 128), tmp_path)


def test_real_dicom_of_two_makers_is_read_as_images(tmp_path: Path) -> None:
    root = public_data("dicom_mr")
    (tmp_path / "q").symlink_to(root / "CMB-CRC-SCAN_001" / "adc_image")
    images = read_images(tmp_path, "dicom", ["q"], None, rules=ImageRules(deidentification="warn"))
    assert images.pixels.shape[0] == 1
    assert np.isfinite(images.pixels).all()
    assert images.excluded == ()
