"""``fedml-site predict-slides``: the table is the model's answer, the picture shows the model's attention on the right tiles."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedml.clients.desk.predict_slides import SlideOptions, write_slides
from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.cohort.slides.slide import open_slide
from fedml.cohort.slides.thumbnail import thumbnail
from fedml.errors import InputError
from fedml.runs.restore import restore
from fedml.study.study import Study
from tests.command import quick as command
from tests.conftest import federate, make_study, write_manifest
from tests.experiments.studies.test_slide_features import digest, weights
from tests.experiments.studies.test_slide_run import SIDE, SPEC, slide_changes, slide_site, write_tiff


def finished(folder: Path, image: dict[str, Any], site: Path) -> tuple[Path, Study]:
    study = make_study(
        ("image",),
        **slide_changes(cohort__image={"tiles": image}, model__image={"pooling": "attention", "channels": [4, 8]}, federation__sites=["a"]),
    )
    federate(study, [site], folder)
    (folder / "study.json").write_text(study.canonical)
    return folder, study


@pytest.mark.parametrize("encoded", [False, True])
def test_a_table_and_a_picture_of_each_slide(tmp_path: Path, encoded: bool) -> None:
    site = slide_site(tmp_path / "a", "a", 6, 1)
    options, spec = SlideOptions(), dict(SPEC)
    if encoded:
        weights(tmp_path / "a" / "e.safetensors")
        spec["encoder"] = {"net": "cnn", "sha256": digest(tmp_path / "a" / "e.safetensors")}
        site = write_manifest(tmp_path / "a", "a", image='{ path = "slides", format = "slide", encoder = "e.safetensors" }')
        options = SlideOptions(encoder=tmp_path / "a" / "e.safetensors")
    run, study = finished(tmp_path / "run", spec, site)
    written = write_slides(run, tmp_path / "a" / "slides", tmp_path / "out", options, say=lambda _: None)
    names = ["a000/1", "a000/2", *(f"a{k:03d}" for k in range(1, 6))]
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == [
        *(f"{n}-attention.png" for n in names),
        "predictions.csv",
    ]
    assert all(path.stat().st_mode & 0o077 == 0 for path in written)
    rows = {row["id"]: row for row in csv.DictReader((tmp_path / "out" / "predictions.csv").open())}
    model, cohort = restore(run)[1], read_cohort(read_site(site), study)
    with torch.inference_mode():
        expected = torch.softmax(model(cohort.batch(range(6))).double(), 1)[:, 1].tolist()
    assert [float(rows[i]["probability_1"]) for i in cohort.ids] == pytest.approx(expected, abs=1e-5)
    # The picture: glass as it is, and the tile with most attention the reddest of all.
    batch = cohort.batch([1])
    tiles = batch["image"] if encoded else torch.cat(list(batch["image"]))
    with torch.inference_mode():
        each = model.encoder["image"](model.preprocess["image"](tiles))
        assert model.pooling is not None
        most = int(model.pooling.attention(each, torch.zeros(len(tiles), dtype=torch.long), 1).argmax())
    small, cell = thumbnail(open_slide(tmp_path / "a" / "slides" / "a001.tif"), 1600)
    drawn = np.asarray(Image.open(tmp_path / "out" / "a001-attention.png")).astype(int)
    assert drawn.shape == small.shape == (6 * SIDE, 7 * SIDE, 3)
    assert cell == 1
    np.testing.assert_array_equal(drawn[5 * SIDE :], small[5 * SIDE :])
    change = (drawn - small)[: 5 * SIDE, : 6 * SIDE].reshape(5, SIDE, 6, SIDE, 3).mean((1, 3))
    wanted = 0.55 * (np.array([165, 0, 38]) - small.astype(float)[: 5 * SIDE, : 6 * SIDE].reshape(5, SIDE, 6, SIDE, 3).mean((1, 3)))
    assert np.abs(change - wanted).sum(2).argmin() == most


def test_a_picture_of_a_slide_with_coarse_levels_is_small(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (512, 768, 3), np.uint8)
    slide = open_slide(write_tiff(tmp_path / "a.tif", pixels))
    small, cell = thumbnail(slide, 100)
    assert cell == 7
    assert small.shape == (74, 110, 3)
    np.testing.assert_array_equal(small[3, 5], np.rint(pixels[21:28, 35:42].astype(float).mean((0, 1))))


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    site = slide_site(tmp_path / "a", "a", 6, 1)
    weights(tmp_path / "a" / "e.safetensors")
    site = write_manifest(tmp_path / "a", "a", image='{ path = "slides", format = "slide", encoder = "e.safetensors" }')
    run, _ = finished(tmp_path / "run", {**SPEC, "encoder": {"net": "cnn", "sha256": digest(tmp_path / "a" / "e.safetensors")}}, site)
    with pytest.raises(InputError, match="this site names no file; give its path as --encoder"):
        write_slides(run, tmp_path / "a" / "slides", tmp_path / "out", SlideOptions(), say=print)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no slide"):
        write_slides(run, tmp_path / "empty", tmp_path / "out", SlideOptions(tmp_path / "a" / "e.safetensors"), say=print)
    given = ["--images", "a/slides/a001.tif", "--out", "out", "--encoder", "a/e.safetensors", "--cache", "kept"]
    done = command("fedml-site", "predict-slides", "run", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a001-attention.png").exists()
    assert len(list((tmp_path / "kept" / "features").glob("*/*.npy"))) == 1
