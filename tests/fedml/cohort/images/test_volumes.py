"""Several volumes of a series or file, and several files, as one image: channels, a mean, one of them; grids that agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fedml.cohort.found_images import ImageRules
from fedml.cohort.images.images import Images
from fedml.cohort.images.named import owner_of
from fedml.cohort.images.reasons import TooManyExcluded, Unusable
from fedml.cohort.one_image import read_one
from fedml.cohort.read_images import read_images
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape
from fedml.study.series_section import ChannelFile, Select
from fedml.study.study import Study, validate
from tests.conftest import make_plan, make_study
from tests.dicom_files import item, write_enhanced, write_series, write_slice

RNG = np.random.default_rng(4)
MM = np.diag([1.5, 1.5, 3.0, 1.0])
ABOUT = {"PatientIdentityRemoved": "YES", "PatientID": "p", "Modality": "MR", "drop": ["RescaleSlope", "RescaleIntercept"]}


def image_of(voxels: Any) -> Any:
    """(slices, rows, columns) as (columns, rows, slices)."""
    return np.moveaxis(np.asarray(voxels, np.float32), (0, 1, 2), (2, 1, 0))


def volumes(folder: Path, facts: list[dict[str, Any]], *, step: float = 3.0) -> list[np.ndarray[Any, Any]]:
    """A series in which every slice is there once for each of ``facts``, in an order that says nothing."""
    cubes = [RNG.integers(0, 900, (3, 6, 5)).astype(np.int16) for _ in facts]
    order = [(n, k) for n in range(len(facts)) for k in range(3)]
    for name, at in enumerate(RNG.permutation(len(order))):
        n, k = order[at]
        write_slice(folder / f"{name:02d}.dcm", cubes[n][k], (0, 0, step * k), InstanceNumber=name, **(ABOUT | facts[n]))
    return cubes


def read(folder: Path, kind: str = "dicom", **keys: Any) -> Images:
    return read_images(folder, kind, ["p"], ImageShape(**{"size": (5, 6, 3), **keys}), rules=ImageRules(max_quarantined=1.0))


def refused(folder: Path, reason: Unusable, word: str, kind: str = "dicom", **keys: Any) -> None:
    with pytest.raises(TooManyExcluded, match=word) as caught:
        read_images(folder, kind, ["p"], ImageShape(**{"size": (5, 6, 3), **keys}), rules=ImageRules(max_quarantined=0.0))
    assert [e.reason for e in caught.value.excluded] == [reason]


ECHOES = [{"EchoTime": 10}, {"EchoTime": 80}]
DIFFUSION = [{"DiffusionBValue": b} for b in (0, 1000, 500)]
PHASES = [{"TemporalPositionIdentifier": n} for n in (1, 2, 3)]
REPEATS = [{"AcquisitionNumber": n} for n in (4, 2)]
TIMES = [{"AcquisitionTime": t} for t in ("120000.5", "115959")]
KINDS = [{"ImageType": ["ORIGINAL", "PRIMARY", kind, "ND"]} for kind in ("P", "M")]
BOTH = [{"EchoTime": e, "AcquisitionNumber": n} for e in (10, 20) for n in (1, 2)]


@pytest.mark.parametrize(
    ("facts", "order", "words"),
    [
        (ECHOES, (0, 1), "2 volumes .echo time 10, 80."), (DIFFUSION, (0, 2, 1), "3 volumes .b-value 0, 500, 1000."),
        (PHASES, (0, 1, 2), "phase 1, 2, 3"),
        (REPEATS, (1, 0), "acquisition"), (TIMES, (1, 0), "time"), (KINDS, (1, 0), "magnitude or phase"),
        (BOTH, (0, 1, 2, 3), "echo time 10, 20"),
    ],
)  # fmt: skip
def test_volumes_of_a_series_are_told_apart_by_their_headers(tmp_path: Path, facts: list[dict[str, Any]], order: Any, words: str) -> None:
    cubes = volumes(tmp_path / "p", facts)
    refused(tmp_path, Unusable.SEVERAL_SERIES, words)
    stacked = np.stack([image_of(cubes[k]) for k in order])
    np.testing.assert_array_equal(read(tmp_path, volumes="channels", channels=len(facts)).pixels[:][0], stacked)
    np.testing.assert_array_equal(read(tmp_path, volumes="mean").pixels[:][0, 0], stacked.astype(np.float64).mean(0).astype(np.float32))
    np.testing.assert_array_equal(read(tmp_path, volumes=2).pixels[:][0, 0], stacked[1])
    refused(tmp_path, Unusable.GEOMETRY, f"has {len(facts)} volumes", volumes=len(facts) + 1)
    refused(tmp_path, Unusable.GEOMETRY, "the study expects", volumes="channels", channels=len(facts) + 1)


@pytest.mark.parametrize(
    ("facts", "rules", "which"),
    [(ECHOES, {"echo_time_ms": (70.0, 90.0)}, 1), (DIFFUSION, {"b_value": (900.0, 1100.0)}, 1), (PHASES, {"phase": (2,)}, 1)],
)
def test_a_rule_of_the_study_selects_a_volume(tmp_path: Path, facts: list[dict[str, Any]], rules: dict[str, Any], which: int) -> None:
    cubes = volumes(tmp_path / "p", facts)
    images = read(tmp_path, select=Select(**rules))
    np.testing.assert_array_equal(images.pixels[:][0, 0], image_of(cubes[which]))
    np.testing.assert_array_equal(read_one(tmp_path / "p", ImageShape(size=(5, 6, 3), select=Select(**rules)))[0], image_of(cubes[which]))
    other = {"echo_time_ms": (1.0, 2.0)} if "echo_time_ms" in rules else {"b_value": (1.0, 2.0)} if "b_value" in rules else {"phase": (9,)}
    refused_none = read_images(
        tmp_path, "dicom", ["p", "q"], ImageShape(size=(5, 6, 3), select=Select(**rules)), rules=ImageRules(max_quarantined=0.0)
    )
    assert refused_none.excluded == ()
    with pytest.raises(InputError, match="has no usable image"):
        read(tmp_path, select=Select(**other))


def test_a_volume_that_lacks_a_slice_is_not_filled_from_another(tmp_path: Path) -> None:
    volumes(tmp_path / "p", DIFFUSION)
    next(iter(sorted((tmp_path / "p").iterdir()))).unlink()
    refused(tmp_path, Unusable.DUPLICATE_SLICES, "has the position of another slice", volumes="channels", channels=3)


def test_two_slices_of_one_place_that_nothing_tells_apart_stay_refused(tmp_path: Path) -> None:
    volumes(tmp_path / "p", [{}, {}])
    refused(tmp_path, Unusable.DUPLICATE_SLICES, "has the position of another slice", volumes="mean")


def test_a_missing_slice_of_every_volume_is_a_gap(tmp_path: Path) -> None:
    volumes(tmp_path / "p", ECHOES)
    for k, fact in enumerate(ECHOES):
        write_slice(tmp_path / "p" / f"far{k}.dcm", np.arange(30, dtype=np.int16).reshape(6, 5), (0, 0, 15.0), **(ABOUT | fact))
    refused(tmp_path, Unusable.GAP, "not evenly spaced", volumes="mean")


def test_the_frames_of_an_enhanced_file_are_volumes_too(tmp_path: Path) -> None:
    import pydicom
    from pydicom.sequence import Sequence as Items

    (tmp_path / "p").mkdir()
    cube = RNG.integers(0, 900, (6, 6, 5)).astype(np.uint16)
    path = write_enhanced(tmp_path / "p" / "a.dcm", cube, [(0, 0, 3.0 * (k // 2)) for k in range(6)], [(1, 0)] * 6)
    dataset = pydicom.dcmread(path)
    dataset.PatientIdentityRemoved, dataset.PatientID = "YES", "p"
    for k, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        group.MRDiffusionSequence = Items([item(DiffusionBValue=float(800 * (1 - k % 2)))])
    dataset.save_as(path)
    images = read(tmp_path, volumes="channels", channels=2)
    np.testing.assert_array_equal(images.pixels[:][0], np.stack([image_of(cube[1::2]), image_of(cube[::2])]))
    np.testing.assert_array_equal(read(tmp_path, select=Select(b_value=(700.0, 900.0))).pixels[:][0, 0], image_of(cube[::2]))


@pytest.mark.parametrize("packed", [".nii", ".nii.gz"])
def test_volumes_of_a_nifti_file(tmp_path: Path, packed: str) -> None:
    voxels = RNG.random((5, 6, 3, 4)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, MM), tmp_path / f"p{packed}")
    refused(tmp_path, Unusable.GEOMETRY, "the study expects", "nifti")
    np.testing.assert_array_equal(read(tmp_path, "nifti", volumes=3).pixels[:][0, 0], voxels[..., 2])
    mean = voxels.mean(-1, dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(read(tmp_path, "nifti", volumes="mean").pixels[:][0, 0], mean)
    channels = read(tmp_path, "nifti", volumes="channels", channels=4)
    np.testing.assert_array_equal(channels.pixels[:][0], np.moveaxis(voxels, -1, 0))
    np.testing.assert_array_equal(read_one(tmp_path / f"p{packed}", ImageShape(size=(5, 6, 3), volumes="mean"))[0], mean)
    refused(tmp_path, Unusable.GEOMETRY, "has 4 volumes", "nifti", volumes=5)


def channels(**patterns: str) -> dict[str, Any]:
    return {"channels": len(patterns), "channel_files": tuple(ChannelFile(name=n, pattern=p) for n, p in patterns.items())}


def nifti(path: Path, affine: Any = MM, size: tuple[int, ...] = (5, 6, 3)) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = RNG.random(size).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return voxels


def test_named_channels_are_files_of_a_person(tmp_path: Path) -> None:
    """In a folder of the person, and beside each other as nnU-Net names them; p1 is not p1_2, and a third file is nobody's channel."""
    inside = [nifti(tmp_path / "a" / "p" / f"sub_{kind}.nii.gz") for kind in ("T1w", "T2w", "FLAIR")]
    images = read(tmp_path / "a", "nifti", **channels(t2="*_T2w", t1="*_T1w"))
    np.testing.assert_array_equal(images.pixels[:][0], np.stack([inside[1], inside[0]]))
    flat = {
        name: nifti(tmp_path / "b" / f"{name}.nii.gz") for name in ("p1_0000", "p1_0001", "p1_2_0000", "p1_2_0001", "p10_0000", "p10_0001")
    }
    found = read_images(
        tmp_path / "b", "nifti", ["p1", "p1_2", "p10"], ImageShape(size=(5, 6, 3), **channels(a="*_0000", b="*_0001")),
        rules=ImageRules(max_quarantined=0.0),
    )  # fmt: skip
    assert found.person.tolist() == [0, 1, 2]
    for row, person in enumerate(("p1", "p1_2", "p10")):
        np.testing.assert_array_equal(found.pixels[:][row], np.stack([flat[f"{person}_0000"], flat[f"{person}_0001"]]))
    assert owner_of("p10_0000", {"p1"}) is None


def test_channels_must_be_there_once_and_on_one_grid(tmp_path: Path) -> None:
    two = channels(t1="*_T1w", t2="*_T2w")
    first = nifti(tmp_path / "p" / "x_T1w.nii.gz")
    with pytest.raises(InputError, match="has no usable image"):
        read(tmp_path, "nifti", **two)
    nifti(tmp_path / "p" / "x_T2w.nii.gz", MM @ np.diag([1, 1, 1.5, 1]))
    refused(tmp_path, Unusable.GEOMETRY, 'channel "t2" have other positions than those of channel "t1"', "nifti", **two)
    nifti(tmp_path / "p" / "x_T2w.nii.gz", size=(5, 6, 4))
    refused(tmp_path, Unusable.GEOMETRY, 'channel "t2" is .5, 6, 4., channel "t1" .5, 6, 3.', "nifti", **two)
    near = MM.copy()
    near[0, 3] = 0.001
    second = nifti(tmp_path / "p" / "x_T2w.nii.gz", near)
    np.testing.assert_array_equal(read(tmp_path, "nifti", **two).pixels[:][0], np.stack([first, second]))
    nifti(tmp_path / "p" / "y_T2w.nii.gz")
    refused(tmp_path, Unusable.SEVERAL_SERIES, '2 files of the person fit channel "t2"', "nifti", **two)


def test_a_mask_is_of_the_person_and_on_the_channels_grid(tmp_path: Path) -> None:
    for kind in ("0000", "0001"):
        nifti(tmp_path / "i" / f"p_{kind}.nii.gz")
    drawn = RNG.integers(0, 2, (5, 6, 3)).astype(np.uint8)
    (tmp_path / "m").mkdir()
    nibabel.save(nibabel.Nifti1Image(drawn, MM), tmp_path / "m" / "p.nii.gz")
    shape = ImageShape(size=(5, 6, 3), **channels(a="*_0000", b="*_0001"))
    images = read_images(tmp_path / "i", "nifti", ["p"], shape, codes=(0, 1), rules=ImageRules(tmp_path / "m", max_quarantined=0.0))
    assert images.masks is not None
    np.testing.assert_array_equal(images.masks[:][0, 0], drawn)


def test_named_channels_are_series_by_their_description(tmp_path: Path) -> None:
    cubes = {}
    for number, (name, extra) in enumerate(
        (("t1_tse", {}), ("t2_tse", {}), ("t2_scout", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}))
    ):
        cubes[name] = RNG.integers(0, 900, (3, 6, 5)).astype(np.int16)
        about = ABOUT | {"SeriesDescription": name, "SeriesInstanceUID": f"1.2.3.{number}", "SeriesNumber": number} | extra
        write_series(tmp_path / "p" / name, cubes[name], **about)
    two = channels(t1="t1*", t2="T2*")
    images = read(tmp_path, select=Select(modality=("MR",)), **two)
    np.testing.assert_array_equal(images.pixels[:][0], np.stack([image_of(cubes["t1_tse"]), image_of(cubes["t2_tse"])]))
    refused(tmp_path, Unusable.SEVERAL_SERIES, 'channel "t2" has 2 series', select=Select(localizer=True), **two)
    shape = ImageShape(size=(5, 6, 3), select=Select(modality=("MR",)), **two)
    np.testing.assert_array_equal(read_one(tmp_path / "p", shape), images.pixels[:][0])


def test_a_study_writes_channels_as_a_table(tmp_path: Path) -> None:
    """Its canonical form keeps their order, and reading that gives the same study."""
    plan = make_plan(("image",), cohort__image={"size": [5, 6, 3], "channels": {"t2": "*_T2w*", "t1": "*_T1w*"}})
    study = validate(Study, plan, "s.toml")
    assert study.cohort.image is not None
    assert study.cohort.image.channels == 2
    assert [one.name for one in study.cohort.image.channel_files] == ["t2", "t1"]
    assert validate(Study, json.loads(study.canonical), "study.json").sha256 == study.sha256
    assert "volumes" not in make_study(("image",), cohort__image={"size": [5, 6, 3]}).canonical


def test_the_cache_is_of_the_rules_that_made_it(tmp_path: Path) -> None:
    """The same files under another rule are other images: volumes, selected echoes, segments and channels are part of the key."""
    nifti(tmp_path / "n" / "p.nii.gz", size=(5, 6, 3, 2))
    cubes = volumes(tmp_path / "d" / "p", ECHOES)

    def cached(kind: str, **keys: Any) -> Any:
        shape = ImageShape(**{"size": (5, 6, 3), "crop": True, **keys})
        rules = ImageRules(max_quarantined=0.0, cache=tmp_path / "cache")
        return read_images(tmp_path / kind[0], kind, ["p"], shape, rules=rules).pixels[:][0, 0]

    for kind in ("nifti", "dicom"):
        one, two, mean = (cached(kind, volumes=rule) for rule in (1, 2, "mean"))
        assert not np.array_equal(one, two)
        np.testing.assert_array_equal(mean, ((one.astype(np.float64) + two) / 2).astype(np.float32))
    for k, around in enumerate(((5.0, 15.0), (75.0, 85.0))):
        np.testing.assert_array_equal(cached("dicom", select=Select(echo_time_ms=around)), image_of(cubes[k]))
