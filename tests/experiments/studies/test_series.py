"""Series, volumes and channels by the commands, as processes: what a study may state, and what the site sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.cohort.one_image import read_one
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape
from fedml.study.series_section import Select
from tests.command import quick as command
from tests.conftest import make_plan, make_study, to_toml, write_csv, write_manifest
from tests.dicom_files import write_slice
from tests.dicom_studies import cube, pacs

RNG = np.random.default_rng(4)


def nifti(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = RNG.random((5, 6, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.5, 1.5, 3.0, 1.0])), path)
    return voxels


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        ({"thickness_mm": [1.0]}, "two numbers"), ({"thickness_mm": [3.0, 1.0]}, "two numbers"),
        ({"several": True, "prefer": ["newest"]}, "nothing to decide"),
        ({"orientation": "oblique"}, "axial"), ({"kernal": ["x"]}, "kernal"), ({"prefer": ["best"]}, "most-slices"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be(tmp_path: Path, rules: dict[str, Any], word: str) -> None:
    plan = make_plan(("image",), cohort__image={"size": [5, 6, 4], "select": rules})
    (tmp_path / "s.toml").write_text(to_toml(plan))
    done = command("fedml", "check", tmp_path / "s.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_the_site_sees_what_was_chosen_and_why_the_rest_was_not(tmp_path: Path) -> None:
    """As a process; the same rules choose what a saved model is given."""
    voxels = pacs(tmp_path / "a" / "images" / "p")
    write_csv(tmp_path / "a" / "persons.csv", ["p", "q"], {"y": [0, 1]})
    write_manifest(tmp_path / "a", "a", image='{ path = "images", format = "dicom", select = { kernel = ["B30f"] } }')
    plan = make_plan(("image",), ("a",), cohort__image={"size": [5, 6, 4], "crop": True, "select": {"kernel": ["STANDARD"]}})
    (tmp_path / "s.toml").write_text(to_toml(plan))
    done = command("fedml-site", "data", "--series", "--study", tmp_path / "s.toml", "--site", tmp_path / "a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "p: 1 of 5 series",
        '  left out  series 1 (CT, coronal, 1 slice of 3 mm, localizer, "Topogram"): is a localizer; its kernel is not stated',
        '  image     series 2 (CT, axial, 5 slices of 3 mm, kernel B30f, "Thorax 3.0 B30f")',
        '  left out  series 3 (CT, axial, 9 slices of 1 mm, kernel B70f, "LUNG 1.0 B70f"): its kernel is B70f',
        '  left out  series 4 (CT, coronal, 7 slices of 3 mm, derived, secondary, "cor MPR"): '
        "is derived; is secondary; its kernel is not stated",
        '  left out  series 5 (CT, 1 slice of 3 mm, secondary, "Patient Protocol"): is secondary; its kernel is not stated',
        "q: has no images",
        "a: 1 persons with an image, 1 persons without images",
    ]
    plain = command("fedml-site", "data", "--series", "--site", tmp_path / "a", cwd=tmp_path).stdout
    assert "p: not used, several-series" in plain
    assert "  undecided series 2 (CT" in plain
    shape = ImageShape(size=(5, 6, 4), crop=True, select=Select(kernel=("B30f",)))
    one = read_one(tmp_path / "a" / "images" / "p", shape)
    assert one.shape == (1, 5, 6, 4)
    assert voxels["soft"].shape == (5, 6, 5)
    with pytest.raises(InputError, match="has 2 series that the study selects"):
        read_one(tmp_path / "a" / "images" / "p", ImageShape(size=(5, 6, 4), crop=True))


def test_an_uneven_grid_is_told(tmp_path: Path) -> None:
    for k, plane in enumerate(cube(5)):
        write_slice(tmp_path / "a" / "images" / "p" / f"{k}.dcm", plane, (0, 0, 5.0 * k + 0.9 * (k == 2)))
    (tmp_path / "a").mkdir(exist_ok=True)
    write_csv(tmp_path / "a" / "persons.csv", ["p"], {"y": [0]})
    write_manifest(tmp_path / "a", "a", image='{ path = "images", format = "dicom" }')
    done = command("fedml-site", "data", "--series", "--site", tmp_path / "a", cwd=tmp_path)
    assert "slices are up to 0.9 mm off an even grid" in done.stdout


@pytest.mark.parametrize(
    ("image", "word"),
    [
        ({"channels": {}}, "channels"), ({"channels": {"t1": "*"}, "volumes": "channels"}, "remove one"),
        ({"volumes": "median"}, "volumes"),
        ({"volumes": 0}, "volumes"), ({"channels": 3, "channel_files": [{"name": "t1", "pattern": "*"}]}, "channels"),
        ({"channels": {"t1": "*"}, "select": {"several": True}}, "one series each"), ({"channels": {"t 1": "*"}}, "t 1"),
    ],
)  # fmt: skip
def test_channels_and_volumes_that_cannot_be(tmp_path: Path, image: dict[str, Any], word: str) -> None:
    (tmp_path / "s.toml").write_text(to_toml(make_plan(("image",), cohort__image={"size": [5, 6, 3], **image})))
    done = command("fedml", "check", tmp_path / "s.toml", cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_site_reads_named_channels_into_its_cache(tmp_path: Path) -> None:
    """Through the modality: ids are held against names of files without what names the channel."""
    ids = [f"p{k}" for k in range(6)]
    voxels = {person: [nifti(tmp_path / "images" / f"{person}_{n:04d}.nii.gz") for n in range(2)] for person in ids}
    write_csv(tmp_path / "persons.csv", ids, {"y": [0, 1] * 3})
    site = read_site(write_manifest(tmp_path, "a", image='{ path = "images", format = "nifti" }'))
    image = {"size": [5, 6, 3], "crop": True, "channels": {"a": "*_0000", "b": "*_0001"}}
    study = make_study(("image",), ("a",), cohort__image=image, cohort__split={"train": 1.0, "val": 0.0, "test": 0.0})
    for _ in range(2):
        cohort = read_cohort(site, study)
        for k, person in enumerate(cohort.ids):
            np.testing.assert_array_equal(cohort.batch([k])["image"][0].numpy(), np.stack(voxels[person]))


def test_the_plan_that_a_site_approves_shows_every_rule(tmp_path: Path) -> None:
    """A pattern over free text is a question about persons, so who approves must see it."""
    image = {"size": [5, 6, 4], "select": {"description": ["*thorax*", "*lung*"], "prefer": ["newest"], "derived": True}, "volumes": "mean"}
    (tmp_path / "s.toml").write_text(to_toml(make_plan(("image",), ("a",), cohort__image=image)))
    (tmp_path / "a").mkdir(exist_ok=True)
    write_csv(tmp_path / "a" / "persons.csv", ["p"], {"y": [0]})
    write_manifest(tmp_path / "a", "a", image='{ path = "images", format = "dicom" }')
    shown = command("fedml-site", "approve", tmp_path / "s.toml", "--site", tmp_path / "a", "--yes", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "images of 5 x 6 x 4 (description *thorax* or *lung*; derived true; prefer newest; volumes mean)" in " ".join(
        shown.stdout.split()
    )
