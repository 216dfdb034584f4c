"""Synthetic images are the same voxels in each format, de-identified as DICOM says, and a study of them ends alike."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from fedml.clients.site.read import load_cohort
from fedml.cohort.dicom.deidentified import findings
from fedml.cohort.dicom.series import read_series
from fedml.cohort.read_images import read_images
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape
from fedml.study.read import read_study
from fedml.study.series_section import Select
from fedml.synthetic.synthetic import Size, write_synthetic
from tests.command import STUDIES
from tests.conftest import federate

SMALL = Size(sites=2, persons=40, variants=20, image_size=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same hospitals in each format."""
    folder = tmp_path_factory.mktemp("made")
    for kind in ("nifti", "dicom", "npz"):
        write_synthetic(folder / kind, SMALL, seed=3, image=kind)
    return {kind: folder / kind for kind in ("nifti", "dicom", "npz")}


def test_voxels_persons_and_place_are_the_same_in_each_format(made: dict[str, Path]) -> None:
    import nibabel

    ids = [line.split(",")[0] for line in (made["npz"] / "oslo" / "persons.csv").read_text().splitlines()[1:]]
    shape = ImageShape(size=(8, 8, 8), select=Select(several=True))  # some have a second scan
    read = {k: read_images(made[k] / "oslo" / ("images.npz" if k == "npz" else "images"), k, ids, shape) for k in made}
    for kind in ("dicom", "npz"):
        np.testing.assert_array_equal(read[kind].pixels, read["nifti"].pixels)
        np.testing.assert_array_equal(read[kind].person, read["nifti"].person)
        assert read[kind].excluded == ()
    person = next(p for p in ids if (made["nifti"] / "oslo" / "images" / f"{p}.nii.gz").exists())
    volume = read_series(sorted((made["dicom"] / "oslo" / "images" / person / "1").iterdir()))
    np.testing.assert_allclose(volume.affine, nibabel.load(made["nifti"] / "oslo" / "images" / f"{person}.nii.gz").affine, atol=1e-6)
    assert volume.modality == "MR"


def test_every_file_is_marked_and_found_to_be_de_identified(made: dict[str, Path]) -> None:
    files = sorted((made["dicom"] / "oslo" / "images").rglob("*.dcm"))
    uids = set()
    for path in files:
        one = pydicom.dcmread(path)
        uids.add(str(one.SOPInstanceUID))
        assert (one.PatientIdentityRemoved, one.PatientID) == ("YES", path.parts[-3])
        assert all(len(uid) <= 64 and uid.startswith("2.25.") for uid in (one.SOPInstanceUID, one.SeriesInstanceUID, one.StudyInstanceUID))
    assert len(uids) == len(files)
    assert list(findings(files[0], identifiers=[], pseudonym=files[0].parts[-3])) == []


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_uids(made: dict[str, Path], tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        out = hashlib.sha256()
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            out.update(str(path.relative_to(folder)).encode() + path.read_bytes())
        return out.hexdigest()

    write_synthetic(tmp_path / "again", SMALL, seed=3, image="dicom")
    assert digest(tmp_path / "again") == digest(made["dicom"])
    write_synthetic(tmp_path / "other", replace(SMALL, persons=10), seed=4, image="dicom")
    first = [pydicom.dcmread(next((f / "oslo" / "images").rglob("001.dcm"))).SeriesInstanceUID for f in (made["dicom"], tmp_path / "other")]
    assert first[0] != first[1]


def test_the_demo_study_ends_alike_on_each_format(made: dict[str, Path], tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "cohort.image.select": {"several": True},
        "federation.rounds": 1,
        "federation.sites": ["oslo", "porto"],
        "cohort.image.size": [8, 8, 8],
        "model.image.channels": [4],
    }
    study = read_study(STUDIES / "demo.toml", overrides=changes)
    runs = {k: federate(study, [made[k] / s / "site.toml" for s in ("oslo", "porto")], tmp_path / k) for k in made}
    for kind in ("dicom", "npz"):
        assert runs[kind].final["metrics"] == runs["nifti"].final["metrics"]
        assert runs[kind].sha256 == runs["nifti"].sha256
    assert load_cohort((str(made["dicom"] / "oslo" / "site.toml"),), study).excluded_images == {}


def test_another_format_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'image = "dicm".*"dicom"'):
        write_synthetic(tmp_path / "x", SMALL, seed=3, image="dicm")
    assert not (tmp_path / "x").exists()
