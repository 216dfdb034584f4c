"""The framework in a script: the same figures as the commands, typed, and errors as sentences."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import fedml
from fedml.errors import InputError, RunError
from fedml.experiments.api import Run
from tests.command import quick
from tests.conftest import clinical_site, make_plan, to_toml


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    for seed, name in enumerate("ab"):
        clinical_site(folder / "sites" / name, name, 120, seed)
    plan = make_plan(sites=("a", "b"), study__name="toy", federation__rounds=4, training__lr=0.05)
    plan["cohort"]["split"] = {"train": 0.6, "val": 0.1, "test": 0.3}
    (folder / "toy.toml").write_text(to_toml(plan))
    return folder


@pytest.fixture(scope="module")
def ran(work: Path) -> Run:
    study = fedml.Study.read(work / "toy.toml").set("training.lr", 0.1)
    return fedml.run(study, work / "sites", runs=work / "runs", track=False)


def test_importing_it_is_light() -> None:
    code = "import sys, fedml; print(sorted({'torch', 'mlflow', 'flwr', 'pandas'} & set(sys.modules))); print(fedml.Study)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "<class 'fedml.experiments.api.Study'>"]
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = fedml.trian  # type: ignore[attr-defined]


def test_a_run_is_that_of_the_command(work: Path, ran: Run) -> None:
    done = quick(
        "fedml", "run", "toy.toml", "--sites", "sites", "--no-track", "--set", "training.lr=0.1", "--json", "--runs", "other", cwd=work
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert ran.metrics == told["metrics"]["test"]
    assert ran.study.plan.sha256 == told["study_sha256"]
    (folder,) = (work / "other").iterdir()
    assert (folder / "model.safetensors").read_bytes() == (ran.folder / "model.safetensors").read_bytes()
    assert fedml.open_run(ran.folder).metrics == ran.metrics


def test_curves_and_sites_are_tables(ran: Run) -> None:
    assert list(ran.curves.index) == [1, 2, 3, 4]
    assert ran.curves["train_loss"].is_monotonic_decreasing
    assert ran.curves["val_auroc"].between(0, 1).all()
    assert list(ran.sites.index) == ["a", "b"]
    assert ran.sites["persons"].sum() == ran.metrics["persons"]


def test_predictions_are_those_of_a_forward_pass(work: Path, ran: Run) -> None:
    """Against the layers' own numbers: a linear model of standardised columns with indicators, written out here."""
    found = ran.predictions(work / "sites")
    table = pd.read_csv(work / "sites" / "a" / "clinical.csv")
    own = found[found["site"] == "a"]
    assert own["id"].tolist() == table["id"].tolist()
    assert set(found["part"]) == {"train", "val", "test"}
    again = ran.model.predict(table.drop(columns="id"))
    np.testing.assert_allclose(again["probability_1"], own["probability_1"], atol=1e-6)
    state = {k: v.numpy().astype(np.float64) for k, v in ran.model.network.state_dict().items()}
    x = table[["x1", "x2", "x3"]].to_numpy()
    mean, std = state["preprocess.clinical.mean"], state["preprocess.clinical.std"]
    z = np.where(np.isnan(x), 0.0, (x - mean) / std)
    weight = state["encoder.clinical.weight"]
    logits = np.hstack([z, np.isnan(x)]) @ weight.T + state["encoder.clinical.bias"]
    np.testing.assert_allclose(
        1 / (1 + np.exp(-(logits[:, -1] - (logits[:, 0] if logits.shape[1] > 1 else 0)))), again["probability_1"], atol=1e-5
    )


def test_the_command_writes_the_same_predictions_for_this_account_alone(work: Path, ran: Run) -> None:
    done = quick("fedml", "predict", ran.folder, "--sites", "sites", "--out", "p.csv", cwd=work)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "p.csv: 240 persons of 2 sites"
    assert (work / "p.csv").stat().st_mode & 0o777 == 0o600
    table, found = pd.read_csv(work / "p.csv"), ran.predictions(work / "sites")
    assert list(table.columns) == list(found.columns)
    np.testing.assert_allclose(table["probability_1"], found["probability_1"])
    assert quick("fedml", "predict", work / "sites", "--sites", "sites", cwd=work).returncode == 2


def test_a_report_is_shown_in_a_notebook(ran: Run) -> None:
    page = ran.report()
    assert page.file.exists()
    assert page._repr_html_().startswith("<iframe srcdoc=")


def test_a_comparison_is_a_table(work: Path, ran: Run) -> None:
    study = fedml.Study.read(work / "toy.toml")
    found = fedml.compare(study, work / "sites", baselines="pooled", runs=work / "runs").table
    assert list(found.index) == ["federated", "pooled"]
    assert found.loc["pooled", "difference_low"] <= found.loc["pooled", "difference"] <= found.loc["pooled", "difference_high"]
    with pytest.raises(InputError, match="needs sites"):
        fedml.compare(study)


def test_one_sites_work_in_this_process(work: Path) -> None:
    client = fedml.client(fedml.Study.read(work / "toy.toml"), work / "sites" / "a")
    before = client.evaluate()
    losses = [client.train(seed=k) for k in range(8)]
    assert losses[-1] < losses[0]
    assert client.evaluate()["auroc"] > before["auroc"]
    assert isinstance(client.model, torch.nn.Module)
    assert client.cohort.batch([0, 1])["clinical"].shape == (2, 3)


def test_errors_are_sentences(work: Path) -> None:
    study = fedml.Study.read(work / "toy.toml")
    with pytest.raises(InputError, match=r"training\.lr = -1"):
        study.set("training.lr", -1)
    with pytest.raises(InputError, match="is not a known key"):
        study.set("training.learning_rat", 1)
    with pytest.raises(InputError, match="no such"):
        fedml.run(study, work / "nowhere", track=False, runs=work / "runs")
    assert "Study       toy" in str(study)
    absent = study.set("federation.sites", ["a", "b", "c"]).set("federation.timeout", 1)
    with pytest.raises((InputError, RunError)):
        fedml.run(absent, work / "sites", track=False, runs=work / "runs")
