"""Pictures of predictions are stored only for sites that declare their images public, and only of test persons."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fedml.clients.cli import app as site_app
from fedml.clients.site.manifest import find_sites, read_site
from fedml.experiments.cli import app
from fedml.experiments.prepare import prepare
from fedml.experiments.runs.examples import write_examples
from fedml.pictures import COLOURS
from fedml.study.study import Study
from fedml.synthetic.synthetic import Size, write_synthetic
from tests.conftest import clinical_site, image_site, make_study, to_toml
from tests.experiments.studies.test_segmentation_run import disc_site


def undeclared(manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace("public = true\n", ""))


def small(**changes: object) -> Study:
    return make_study(("image",), **{"federation__rounds": 1, "model__image": {"channels": [4]}, **changes})


def run(folder: Path, study: Study, *more: str) -> Path:
    """``fedml run`` over ``folder``/sites; the run's folder."""
    (folder / "study.toml").write_text(to_toml(study.model_dump(mode="json", exclude_defaults=True)))
    words = ["run", str(folder / "study.toml"), "--sites", str(folder / "sites"), "--runs", str(folder / "runs"), *more]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "did not accept" not in done.output
    (made,) = (folder / "runs").iterdir()
    return made


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_only_the_declaring_site_is_drawn_and_mlflow_has_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    image_site(tmp_path / "sites" / "a", "a", 30, 1)
    undeclared(image_site(tmp_path / "sites" / "b", "b", 30, 2))
    folder = run(tmp_path, small())
    assert names(folder / "examples") == ["a.png"]
    with Image.open(folder / "examples" / "a.png") as picture:
        assert picture.size[0] > 400
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")  # independent of the store that another test set
    experiment = client.get_experiment_by_name("toy")
    parent = next(r for r in client.search_runs([experiment.experiment_id]) if "mlflow.parentRunId" not in r.data.tags)
    assert [a.path for a in client.list_artifacts(parent.info.run_id, "examples")] == ["examples/a.png"]
    assert client.list_artifacts(parent.info.run_id, "model") is not None


def test_without_a_declaration_there_is_no_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        undeclared(image_site(tmp_path / "sites" / name, name, 30, 1))
    folder = run(tmp_path, small(), "--no-track")
    assert not (folder / "examples").exists()
    assert not list(folder.rglob("*.png"))


@pytest.mark.long
def test_masks_are_drawn_of_test_persons_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        disc_site(tmp_path / "sites" / name, name, 30, seed)
    study = small(cohort__classes=[0, 1, 2], model__task="segmentation", model__segmentation={"channels": [4, 8]})
    folder = run(tmp_path, study, "--no-track")
    assert names(folder / "examples") == ["a.png", "b.png"]
    with Image.open(folder / "examples" / "a.png") as picture:
        seen = np.asarray(picture.convert("RGB")).astype(int)
    for colour in COLOURS[:2]:  # true masks have both classes
        assert (abs(seen - [int(colour[k : k + 2], 16) for k in (1, 3, 5)]).max(-1) < 12).sum() > 40
    sites = find_sites(tmp_path / "sites", ("a", "b"))[0]
    import fedml.experiments.runs.examples as module
    from fedml.clients.site.read import load_cohort

    drawn: dict[str, list[int]] = {}
    monkeypatch.setattr(module, "_masks", lambda study, model, cohort, site, rows: drawn.update({site: rows.tolist()}) or b"")
    write_examples(folder, study, sites, lambda line: None)
    for name, rows in drawn.items():
        cohort = load_cohort((str(sites[name].file),), study)
        assert 0 < len(rows) <= 6
        assert set(rows) <= set(cohort.rows("test").tolist())


def test_a_site_without_images_and_a_study_without_them_have_none(tmp_path: Path) -> None:
    for name in ("a", "b"):
        clinical_site(tmp_path / "sites" / name, name, 40, 1)
    folder = run(tmp_path, make_study(federation__rounds=1), "--no-track")
    assert not (folder / "examples").exists()


def test_an_example_that_cannot_be_drawn_does_not_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fedml.experiments.runs.examples as module

    def broken(*_: object) -> bytes:
        raise RuntimeError("no font")

    for name in ("a", "b"):
        image_site(tmp_path / "sites" / name, name, 30, 1)
    monkeypatch.setattr(module, "_answers", broken)
    folder = run(tmp_path, small(), "--no-track")
    assert names(folder / "examples") == []


def test_synthetic_sites_declare_themselves_and_a_new_manifest_does_not(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "made", Size(sites=1, persons=20, variants=20, image_size=8))
    assert tomllib.loads((tmp_path / "made" / "oslo" / "site.toml").read_text())["data"]["public"] is True
    made = CliRunner().invoke(site_app, ["init", "a", "--out", str(tmp_path / "site.toml")])
    assert made.exit_code == 0, made.output
    assert read_site(tmp_path / "site.toml").manifest.data.public is False


def test_prepared_sites_declare_themselves(tmp_path: Path) -> None:
    from tests.conftest import public_data

    sites = prepare("heart", tmp_path / "heart", data=public_data("uci_heart").parent, say=lambda line: None)
    assert all(tomllib.loads((site / "site.toml").read_text())["data"]["public"] for site in sites)
