"""Masks of a trained model are on the voxels of each file: NIfTI of many geometries, a DICOM series, pictures."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.spatial.transform import Rotation

from fedml.cohort.one_image import read_one
from fedml.runs.restore import restore
from tests.command import quick, quick_json
from tests.conftest import make_study, to_toml
from tests.lesions import MIDDLE, lesion_site, plan
from tests.seg_geometries import GEOMETRIES, Geometry, Made, middle, write


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on patches that finds bright balls well."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("a", "b"):
        lesion_site(folder / "sites" / name, name, [MIDDLE] * 24)
    image = {
        "orientation": "RAS",
        "spacing_mm": [1.0, 1.0, 1.0],
        "window": [-100.0, 250.0],
        "patches": {"size": [8, 8, 8], "foreground": 0.7},
    }
    study = make_study(("image",), **plan((), cohort__image=image, cohort__classes=[0, 7], federation__rounds=12))
    for name in ("a", "b"):  # the study's value of the class is 7
        for path in (folder / "sites" / name / "masks").iterdir():
            mask = nib.load(path)
            nib.save(nib.Nifti1Image(np.asarray(mask.dataobj) * np.uint8(7), mask.affine), path)
    (folder / "study.toml").write_text(to_toml(study.model_dump(mode="json", exclude_none=True)))
    done = quick_json(folder / "study.toml", "--sites", folder / "sites", "--runs", folder / "runs", "--no-track", cwd=folder)
    assert done["metrics"]["test"]["dice_mean_person/7"] > 0.8
    return Path(done["folder"])


def test_masks_are_on_the_right_voxels_of_twenty_geometries(run: Path, tmp_path: Path) -> None:
    """A ball in world space, drawn on an oblique, flipped, anisotropic grid; the prediction is compared on that grid."""
    (tmp_path / "images").mkdir()
    truths = {}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        spacing, size = rng.uniform(0.7, 1.4, 3), tuple(int(n) for n in rng.integers(18, 30, 3))
        turn = Rotation.from_euler("xyz", rng.uniform(-0.3, 0.3, 3)).as_matrix()
        flips = np.diag(rng.choice([-1, 1], 3))[:, rng.permutation(3)]
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = turn @ flips @ np.diag(spacing), rng.uniform(-50, 50, 3)
        centre = np.array([n / 2 + rng.uniform(-3, 3) for n in size])
        grid = np.moveaxis(np.indices(size), 0, -1) - centre
        ball = ((grid @ affine[:3, :3].T) ** 2).sum(-1) <= 3**2
        voxels = rng.normal(0, 20, size).astype(np.float32) + 150 * ball
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), tmp_path / "images" / f"g{seed:02d}.nii.gz")
        truths[f"g{seed:02d}"] = ball, affine
    (tmp_path / "images" / "broken.nii.gz").write_bytes(b"no image")
    done = quick("fedml-site", "predict", run, "--images", tmp_path / "images", "--out", tmp_path / "masks", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "20 mask(s)" in done.stdout
    assert "left out" in done.stdout
    scores = []
    for name, (ball, affine) in truths.items():
        path = tmp_path / "masks" / f"{name}.nii.gz"
        mask = nib.load(path)
        found = np.asarray(mask.dataobj)
        assert found.shape == ball.shape
        np.testing.assert_allclose(mask.affine, affine, atol=1e-4)
        assert set(np.unique(found).tolist()) <= {0, 7}
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        scores.append(2 * ((found == 7) & ball).sum() / max((found == 7).sum() + ball.sum(), 1))
    assert min(scores) > 0.5, scores
    assert np.mean(scores) > 0.75, scores


def test_what_cannot_be_used_is_said_in_one_sentence(run: Path, tmp_path: Path) -> None:
    for words, says in (
        ([tmp_path / "none", "--images", tmp_path], "has no model.safetensors"),
        ([run, "--images", tmp_path / "none"], "no such file"),
        ([run, "--images", tmp_path], "has no image that the study can use"),
    ):
        done = quick("fedml-site", "predict", *words, "--out", tmp_path / "masks", cwd=tmp_path)
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_series_gets_a_dicom_segmentation_on_its_own_voxels(run: Path, tmp_path: Path) -> None:
    """Of twenty geometries: the ball is where the series has it in the patient, and the NIfTI of the prediction has the same voxels."""
    truths: dict[str, tuple[Made, Geometry]] = {}
    for number, of in enumerate(GEOMETRIES.values()):
        of = of._replace(spacing=(1.1, 0.9), step=float(np.sign(of.step)), slices=20)
        centre, rng = middle(of), np.random.default_rng(number)

        def ball(points: Any, centre: Any = centre, rng: Any = rng) -> Any:
            return rng.normal(0, 20, points.shape[:-1]) + 150 * (np.linalg.norm(points - centre, axis=-1) <= 3.0)

        truths[f"s{number:02d}"] = write(tmp_path / "images" / f"s{number:02d}", of, ball), of
    done = quick("fedml-site", "predict", run, "--images", tmp_path / "images", "--out", tmp_path / "masks", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = quick("fedml-site", "predict", run, "--images", tmp_path / "images", "--out", tmp_path / "n", "--format", "nifti", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = []
    for name, (made, of) in truths.items():
        seg = highdicom.seg.segread(tmp_path / "masks" / f"{name}.dcm")
        assert stat.S_IMODE((tmp_path / "masks" / f"{name}.dcm").stat().st_mode) == 0o600
        assert seg.DeviceSerialNumber == hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
        if of.enhanced:
            frames = [frame for _, frame in made.sources]
            found = seg.get_pixels_by_source_frame(made.sources[0][0], frames, combine_segments=True, assert_missing_frames_are_empty=True)
        else:
            uids = [uid for uid, _ in made.sources]
            found = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
        true = (np.linalg.norm(made.points - middle(of), axis=-1) <= 3.0).reshape(found.shape)
        scores.append(2 * ((found == 1) & true).sum() / max((found == 1).sum() + true.sum(), 1))
        mask = nib.load(tmp_path / "n" / f"{name}.nii.gz")
        values = np.asarray(mask.dataobj)
        at = np.round(np.argwhere(values == 7) @ mask.affine[:3, :3].T + mask.affine[:3, 3], 2) * [-1, -1, 1]
        points = np.round(made.points[found.reshape(-1) == 1], 2)
        assert len(at) == len(points)
        np.testing.assert_allclose(at[np.lexsort(at.T)] + 0.0, points[np.lexsort(points.T)] + 0.0, atol=0.03)
    assert min(scores) > 0.4, scores
    assert np.mean(scores) > 0.7, scores


def seeded(run: Path, folder: Path, seed: int) -> Path:
    """The run as if of another seed: its weights a little moved."""
    folder.mkdir()
    for name in ("panel.tsv", "layout.json"):
        (folder / name).write_bytes((run / name).read_bytes())
    plan = json.loads((run / "study.json").read_text())
    plan["study"]["seed"] = seed
    (folder / "study.json").write_text(json.dumps(plan))
    random = torch.Generator().manual_seed(seed)
    moved = {k: v + 0.05 * torch.randn(v.shape, generator=random) for k, v in load_file(run / "model.safetensors").items()}
    save_file(moved, folder / "model.safetensors")
    return folder


@pytest.mark.long
def test_an_ensemble_and_views_give_the_mean_and_say_how_sure_it_is(run: Path, tmp_path: Path) -> None:
    """Against a dense computation from the models' own scores; the grid of the file is that of the prepared image."""
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(5)
    voxels = (rng.normal(0, 60, (16, 16, 12)) + 90 * (np.indices((16, 16, 12)).sum(0) < 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 1.0, 1.0])), images / "p.nii.gz")
    other, study = seeded(run, tmp_path / "other", 1), restore(run)[0]
    prepared = torch.from_numpy(read_one(images / "p.nii.gz", study.cohort.image))

    def scores(folder: Path, flips: tuple[int, ...]) -> Any:
        axes, model = [1 + axis for axis in flips], restore(folder)[1]
        with torch.inference_mode():
            return torch.softmax(model({"image": prepared.flip(axes)[None]})[0].flip(axes).double(), 0).numpy()

    for words, each in (
        ((run, other), [scores(run, ()), scores(other, ())]),
        ((run, "--view", "flip-0", "--view", "flip-2"), [scores(run, f) for f in ((), (0,), (2,), (0, 2))]),
        ((run, "--maps"), [scores(run, ())]),
    ):
        out = tmp_path / f"out{len(each)}"
        done = quick("fedml-site", "predict", *words, "--maps", "--images", images, "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        p = np.stack(each)
        mean = p.mean(0)
        entropy = -(mean * np.log(mean)).sum(0)
        mutual = (p * (np.log(p) - np.log(mean))).sum(1).mean(0)
        mask = np.asarray(nib.load(out / "p.nii.gz").dataobj)
        clear = np.abs(mean[0] - mean[1]) > 1e-4
        np.testing.assert_array_equal(mask[clear], np.where(mean[1] > mean[0], 7, 0)[clear])
        maps = {kind: np.asarray(nib.load(out / f"p.{kind}.nii.gz").dataobj) for kind in ("entropy", "mutual_information")}
        np.testing.assert_allclose(maps["entropy"], entropy, atol=1e-4)
        np.testing.assert_allclose(maps["mutual_information"], mutual, atol=1e-4)
        table = pd.read_csv(out / "predictions.csv").iloc[0]
        assert table["predictions"] == len(each)
        assert table["voxels/7"] == (mask == 7).sum()
        np.testing.assert_allclose(table["ml/7"], (mask == 7).sum() / 1000, rtol=1e-6)
        np.testing.assert_allclose(table["mutual_information_mean"], mutual.mean(), atol=1e-4)
        assert (table["mutual_information_mean"] == 0) == (len(each) == 1)
    plain = quick("fedml-site", "predict", run, "--images", images, "--out", tmp_path / "plain", cwd=tmp_path)
    assert plain.returncode == 0
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["p.nii.gz"]
    same = [np.asarray(nib.load(tmp_path / name / "p.nii.gz").dataobj) for name in ("plain", "out1")]
    np.testing.assert_array_equal(*same)
    for words, says in (
        ((run, run), "is the same model as"),
        ((run, "--dropout", "3"), "its network has no dropout"),
        ((run, "--view", "flip-9"), "one of: flip-0, flip-1, flip-2, turns"),
        ((run, "--format", "rtstruct"), "one of: same, nifti, dicom-seg"),
        ((run, "--format", "dicom-seg"), "has no image that the study can use"),
    ):
        done = quick("fedml-site", "predict", *words, "--images", images, "--out", tmp_path / "none", cwd=tmp_path)
        assert done.returncode == 2
        assert says in done.stderr
        assert not (tmp_path / "none").exists()
