"""The model in MLflow takes images as they are on disk and says of them what it says of the cohort, in which they were prepared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedml.clients.site.read import load_cohort
from fedml.cohort.images.transforms import deterministic
from fedml.cohort.one_image import read_one
from fedml.errors import InputError
from fedml.experiments.cli import app
from fedml.runs.restore import restore
from fedml.study.study import Study
from fedml.tracking.scoring import score, to_batch
from tests.command import quick
from tests.conftest import federate, make_study, to_toml, write_csv, write_manifest, write_picture
from tests.dicom_files import write_series

SHAPE = {"size": [10, 8, 6], "orientation": "RAS", "spacing_mm": [1.5, 2.0, 2.5], "window": [-100, 200]}
TURNED = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 3], [0, 0, -2.5, 9], [0, 0, 0, 1]])  # columns to the front, rows to the left, slices down


def nifti_site(folder: Path, persons: int, *, masks: bool) -> Path:
    """Volumes of several sizes, turned, in other spacings than the study's."""
    import nibabel

    rng = np.random.default_rng(7)
    ids = [f"a{k:02d}" for k in range(persons)]
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    y = rng.integers(0, 2, persons)
    write_csv(folder / "persons.csv", ids, {"y": y})
    for k, person in enumerate(ids):
        size = (7 + k % 3, 12, 6)
        voxels = (rng.normal(40, 30, size) + 60 * y[k]).astype(np.int16)
        affine = TURNED @ np.diag([1 + 0.1 * (k % 2), 1, 1, 1])
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / "images" / f"{person}.nii.gz")
        nibabel.save(nibabel.Nifti1Image((voxels > 60).astype(np.uint8), affine), folder / "masks" / f"{person}.nii.gz")
    place = '{ path = "images", format = "nifti"' + (', masks = "masks"' if masks else "") + " }"
    return write_manifest(folder, "a", image=place)


def study_of(task: str) -> Study:
    changes: dict[str, Any] = {"cohort__image": SHAPE, "federation__rounds": 1, "training__lr": 0.02, "model__task": task}
    changes |= {"model__segmentation": {"channels": [4, 8]}} if task == "segmentation" else {"model__image": {"channels": [4]}}
    return make_study(("image",), ("a",), **changes)


def from_cohort(study: Study, manifest: Path, run: Path) -> torch.Tensor:
    """What the model says of the cohort's persons."""
    cohort = load_cohort((str(manifest),), study)
    model = restore(run)[1]
    with torch.inference_mode():
        return model(cohort.batch(range(len(cohort))))


def on_file(found: np.ndarray[Any, Any], logits: np.ndarray[Any, Any], study: Study, volume: Any) -> None:
    """Compares a mask with the largest of the scores, interpolated at each voxel's place in the patient by SciPy; MONAI says where the
    prepared image is."""
    from monai.data import MetaTensor
    from scipy.ndimage import map_coordinates

    assert study.cohort.image is not None
    assert study.cohort.image.preprocess is not None
    image = MetaTensor(torch.zeros(1, *volume.shape), affine=torch.as_tensor(volume.affine))
    after = deterministic(study.cohort.image.preprocess)({"image": image})["image"].affine.numpy()
    index = np.moveaxis(np.indices(volume.shape), 0, -1)
    at = (index @ volume.affine[:3, :3].T + volume.affine[:3, 3] - after[:3, 3]) @ np.linalg.inv(after[:3, :3]).T
    scores = np.stack([map_coordinates(one, np.moveaxis(at, -1, 0), order=1, mode="nearest") for one in logits])
    inside = ((at > -0.499) & (at < np.array(logits.shape[1:]) - 0.501)).all(-1)
    outside = ((at < -0.501) | (at > np.array(logits.shape[1:]) - 0.499)).any(-1)
    clear = np.abs(scores[0] - scores[1]) > 1e-4
    assert (inside & clear).sum() > 100
    np.testing.assert_array_equal(found[inside & clear], scores.argmax(0)[inside & clear])
    assert not found[outside].any()


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_raw_nifti_through_mlflow_is_scored_as_the_cohort_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    import mlflow
    import nibabel

    study, manifest = study_of(task), nifti_site(tmp_path / "sites" / "a", 24, masks=task == "segmentation")
    (tmp_path / "study.toml").write_text(to_toml(study.model_dump(mode="json", exclude_defaults=True)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", "study.toml", "--sites", "sites", "--runs", "runs", "--no-track"])
    assert done.exit_code == 0, done.output
    (run,) = (tmp_path / "runs").iterdir()
    done = CliRunner().invoke(app, ["track", str(run)])
    assert done.exit_code == 0, done.output
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model(f"runs:/{done.output.split()[-1]}/model")

    expected = from_cohort(study, manifest, run)
    paths = [str(p) for p in sorted((manifest.parent / "images").iterdir())]
    volumes = [nibabel.load(p) for p in paths]
    arrays = [np.asarray(v.dataobj)[None] for v in volumes]
    assert len({a.shape for a in arrays}) == 3
    affines = np.stack([v.affine for v in volumes])
    for given in (paths, {"image": paths}, {"image": arrays, "affine": affines}):
        reported = model.predict(given)
        if task == "segmentation":
            for found, logits, volume in zip(reported.itertuples(), expected, volumes, strict=True):
                assert tuple(found.size) == volume.shape
                on_file(np.reshape(found.predicted, found.size), logits.numpy(), study, volume)
        else:
            np.testing.assert_array_equal(reported["probability_1"], torch.softmax(expected.double(), 1)[:, 1].numpy())
    twice = np.stack([arrays[0], arrays[0]])
    if task == "segmentation":  # in a process of its own, where only the saved model is; and equal to what the site's command writes
        code = "import json, sys, mlflow; m = mlflow.pyfunc.load_model(sys.argv[1]); print(m.predict(json.loads(sys.argv[2])).to_json())"
        uri = f"runs:/{done.output.split()[-1]}/model"
        alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        said = subprocess.run(
            [sys.executable, "-c", code, uri, json.dumps(paths[:3])], cwd=tmp_path, capture_output=True, text=True, check=False, env=alone
        )
        assert said.returncode == 0, said.stderr[-1000:]
        there = json.loads(said.stdout.splitlines()[-1])
        out = quick("fedml-site", "predict", run, "--images", manifest.parent / "images", "--out", tmp_path / "masks", cwd=tmp_path)
        assert out.returncode == 0, out.stderr
        for row, path in enumerate(paths[:3]):
            mask = np.asarray(nibabel.load(tmp_path / "masks" / Path(path).name).dataobj)
            np.testing.assert_array_equal(np.reshape(there["predicted"][str(row)], there["size"][str(row)]), mask)
    both = model.predict({"image": twice, "affine": affines[0]})  # one affine for all
    assert both.iloc[0].equals(model.predict([paths[0]]).iloc[0])
    assert both.iloc[1].equals(both.iloc[0])


def test_who_has_no_image_has_no_mask_and_keeps_the_others_in_place(tmp_path: Path) -> None:
    study, manifest = study_of("segmentation"), nifti_site(tmp_path / "a", 24, masks=True)
    federate(study, [manifest], tmp_path / "run")
    (tmp_path / "run" / "study.json").write_text(study.canonical)
    model = restore(tmp_path / "run")[1]
    path = manifest.parent / "images" / "a00.nii.gz"
    reported = score(study, model, [None, path, ""])["predicted"].tolist()
    assert reported[0] is reported[2] is None
    assert reported[1] == score(study, model, [str(path)])["predicted"][0]


def test_a_dicom_series_is_prepared_as_its_voxels_are(tmp_path: Path) -> None:
    from fedml.cohort.dicom.series import read_series

    voxels = np.random.default_rng(1).integers(900, 1300, (5, 9, 7)).astype(np.uint16)
    files = write_series(tmp_path / "series", voxels)
    study = study_of("classification")
    volume = read_series(files)
    by_array = to_batch(study, {"image": [volume.voxels[None]], "affine": volume.affine})["image"]
    by_path = to_batch(study, [tmp_path / "series"])["image"]
    torch.testing.assert_close(by_path, by_array, rtol=0, atol=0)
    assert by_path.shape == (1, 1, 10, 8, 6)
    assert 0 <= by_path.min() < by_path.max() <= 1


def test_what_cannot_be_used_is_reported_with_its_file_or_place(tmp_path: Path) -> None:
    study = study_of("classification")
    flat = write_picture(tmp_path / "flat.nii.gz", np.zeros((5, 5), np.int16))
    (tmp_path / "cut.nii.gz").write_bytes(write_picture(tmp_path / "whole.nii.gz", np.zeros((5, 5, 5), np.int16)).read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    for given, says in (
        ([tmp_path / "none.nii"], "none.nii: no such file"),
        ([flat], "flat.nii.gz: is"),
        ([tmp_path / "cut.nii.gz"], "cut.nii.gz: cannot be read"),
        ([tmp_path / "empty"], "empty: no file is a DICOM image"),
        ([np.zeros((1, 5, 5, 5))], "image 1 of 1: has no affine"),
        ({"image": [np.full((1, 5, 5, 5), np.inf)], "affine": np.eye(4)}, "image 1 of 1: contains voxels that are not finite"),
    ):
        with pytest.raises(InputError, match=says):
            to_batch(study, given)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"notes.txt: has no known image extension"):
        read_one(tmp_path / "notes.txt", study.cohort.image)
