"""The main job as processes: synth, check, run on both engines, the MLflow record, the saved model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedml.clients.site.manifest import find_sites
from fedml.clients.site.read import load_aligned
from fedml.runs.log import load_model, read_events
from fedml.tracking.scoring import restore
from tests.command import STUDIES, command, quick, quick_json, run_json
from tests.inputs import clinical_of, dosages_of, images_of

SMALL = ("--set", "federation.rounds=2", "--set", "model.image.channels=[4, 8]")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three synthetic hospitals and one tracked run of the demo study over them."""
    folder = tmp_path_factory.mktemp("work")
    done = command("fedml", "synth", "sites", "--sites", "3", "--persons", "40", "--seed", "5", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def first(work: Path) -> dict[str, Any]:
    """``--json`` of the first run, on the local engine."""
    return run_json(STUDIES / "demo.toml", "--sites", "sites", *SMALL, cwd=work)


def test_json_says_what_was_done(first: dict[str, Any]) -> None:
    assert first["status"] == "finished"
    assert first["rounds"] == 2
    assert set(first["sites"]) == {"oslo", "porto", "utrecht"}
    assert all(site["rounds"] == 2 for site in first["sites"].values())
    merged = first["metrics"]["test"]
    assert merged["persons"] == sum(site["test"]["persons"] for site in first["sites"].values())
    assert merged["accuracy"] == pytest.approx(
        sum(s["test"]["accuracy"] * s["test"]["persons"] for s in first["sites"].values()) / merged["persons"], abs=1e-12
    )
    assert first["bytes"]["in"] > 0
    assert first["privacy"] == {"unit": "none"}


@pytest.mark.parametrize("engine", ["local", pytest.param("simulation", marks=pytest.mark.long)])
def test_twice_is_bitwise_equal_on_each_engine_and_another_seed_is_not(work: Path, first: dict[str, Any], engine: str) -> None:
    again = quick_json(STUDIES / "demo.toml", "--sites", "sites", *SMALL, "--no-track", cwd=work)
    ray = run_json(STUDIES / "demo.toml", "--sites", "sites", *SMALL, "--no-track", "--engine", engine, cwd=work)
    other = quick_json(STUDIES / "demo.toml", "--sites", "sites", *SMALL, "--no-track", "--seed", "2", cwd=work)
    assert first["weights_sha256"] == again["weights_sha256"] == ray["weights_sha256"] != other["weights_sha256"]
    files = [(work / r["folder"] / "model.safetensors").read_bytes() for r in (first, again, ray)]
    assert files[0] == files[1] == files[2]
    assert first["metrics"] == again["metrics"] == ray["metrics"]


def test_mlflow_holds_the_record(work: Path, first: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("demo")
    runs = client.search_runs([experiment.experiment_id])
    parent = client.get_run(first["mlflow_run_id"])
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(r.data.tags["fedml.site"] for r in children) == ["oslo", "porto", "utrecht"]
    assert {r.info.status for r in (parent, *children)} == {"FINISHED"}
    assert parent.data.tags["fedml.study_sha256"] == first["study_sha256"]
    assert parent.data.params["study.seed"] == "1"
    assert parent.data.tags["fedml.version.torch"].startswith(torch.__version__.split("+")[0])
    assert len(parent.data.tags["fedml.git_commit"]) >= 4
    assert parent.data.metrics["test/auroc"] == pytest.approx(first["metrics"]["test"]["auroc"])
    assert [m.step for m in client.get_metric_history(parent.info.run_id, "val/auroc")] == [0, 1, 2]
    for child in children:
        own = first["sites"][child.data.tags["fedml.site"]]["test"]
        assert child.data.metrics["test/persons"] == own["persons"]
    names = {a.path for a in client.list_artifacts(parent.info.run_id, "record")}
    assert {"record/study.toml", "record/study.json", "record/events.jsonl", "record/panel.tsv"} <= names


def test_logged_model_scores_raw_inputs(work: Path, first: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.chdir(work)
    mlflow.set_tracking_uri(f"sqlite:///{work / 'mlflow.db'}")
    scorer = mlflow.pyfunc.load_model(f"runs:/{first['mlflow_run_id']}/model")
    assert {i.name for i in scorer.metadata.signature.inputs} == {"image", "variants", "clinical"}
    run = work / first["folder"]
    study, model = restore(run)
    cohort = load_aligned((str(find_sites(work / "sites", ("oslo",))[0]["oslo"].file),), study, load_model(run)[2])
    images = images_of(cohort)
    rows = [r for r in range(len(cohort)) if (images.person == r).sum() == 1][:8]
    raw = {
        "image": np.stack([images.pixels[images.person == r][0] for r in rows]).astype(np.float32),
        "variants": dosages_of(cohort).dosage[rows],
        "clinical": clinical_of(cohort).values[rows],
    }
    said = scorer.predict(raw)
    with torch.inference_mode():
        expected = torch.softmax(model(cohort.batch(rows)).double(), 1).numpy()
    assert said[["probability_0", "probability_1"]].to_numpy() == pytest.approx(expected, abs=1e-6)


def test_check_tells_the_plan_and_site_check_the_data(work: Path) -> None:
    plan = command("fedml", "check", STUDIES / "demo.toml", cwd=work)
    assert plan.returncode == 0
    for reported in ("Leaves a site", "oslo, porto, utrecht", "unit: none", "4 clinical columns", "20 rounds"):
        assert reported in plan.stdout
    data = command("fedml-site", "check", STUDIES / "demo.toml", "--site", work / "sites" / "oslo", cwd=work)
    assert data.returncode == 0, data.stderr
    assert "would use 40 persons" in data.stdout


def test_a_missing_tracking_server_does_not_fail_the_run(work: Path) -> None:
    done = quick(
        "fedml", "run", STUDIES / "demo.toml", "--sites", "sites", *SMALL, "--json", cwd=work,
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "fedml track" in done.stderr
    reported = json.loads(done.stdout.strip().splitlines()[-1])
    assert reported["status"] == "finished"
    later = quick("fedml", "track", reported["folder"], cwd=work)
    assert later.returncode == 0, later.stderr
    from mlflow import MlflowClient

    kept = MlflowClient(f"sqlite:///{work / 'mlflow.db'}").get_run(later.stdout.strip())
    assert kept.info.status == "FINISHED"
    assert kept.data.metrics["test/auroc"] == pytest.approx(reported["metrics"]["test"]["auroc"])


def test_a_failed_run_says_why_and_is_recorded(work: Path) -> None:
    words = (
        "--set",
        "training.lr=1e6",
        "--set",
        "training.batch_size=1",
        "--set",
        "training.optimizer=sgd",
        "--set",
        "federation.quorum=3",
    )
    done = quick("fedml", "run", STUDIES / "demo.toml", "--sites", "sites", *SMALL, *words, "--json", cwd=work)
    assert done.returncode == 1
    reported = json.loads(done.stdout.strip().splitlines()[-1])
    assert reported["status"] == "failed"
    assert "oslo (non-finite)" in reported["reason"]
    assert "quorum is 3" in done.stderr
    assert [e["event"] for e in read_events(work / reported["folder"])[0]][-1] == "end"
    from mlflow import MlflowClient

    assert MlflowClient(f"sqlite:///{work / 'mlflow.db'}").get_run(reported["mlflow_run_id"]).info.status == "FAILED"
