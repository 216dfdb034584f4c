"""A sweep through the command: its runs are those of `fedml run`, validation persons alone choose, a repeated command goes on."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

import fedml
from fedml.errors import InputError
from fedml.runs.log import EVENTS, read_events
from tests.command import command, quick, run_json
from tests.conftest import clinical_site, make_plan, to_toml

SPLIT = {"train": 0.5, "val": 0.25, "test": 0.25}
GRID = ("--grid", "lr=1e-4,0.1", "--seeds", "0-1")
RANGES = {"x1": [-3, 9], "x2": [-9, 7], "x3": [0, 200]}


def make_sites(folder: Path, persons: int = 120) -> None:
    for seed, name in enumerate("ab"):
        clinical_site(folder / "sites" / name, name, persons, seed)


def write_study(folder: Path, **changes: Any) -> Path:
    plan = make_plan(study__name="toy", **{"federation__rounds": 3, "cohort__split": SPLIT, **changes})
    (folder / "toy.toml").write_text(to_toml(plan))
    return folder / "toy.toml"


def sweep(folder: Path, *words: object, track: bool = False, by: Any = quick, **environment: str) -> subprocess.CompletedProcess[str]:
    tracked = () if track else ("--no-track",)
    done: subprocess.CompletedProcess[str] = by(
        "fedml", "sweep", "toy.toml", "--sites", "sites", *words, *tracked, cwd=folder, **environment
    )
    return done


def swept(folder: Path, *words: object, **options: Any) -> dict[str, Any]:
    done = sweep(folder, *words, "--json", **options)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def runs_of(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / "fedml-runs").glob(f"*/{EVENTS}"))


def last_metrics(run: Path, part: str) -> dict[str, float]:
    found: dict[str, float] = next(e for e in read_events(run)[0] if e["event"] == "final")["metrics"][part]["all"]
    return found


def rewrite(run: Path, part: str, auroc: float) -> None:
    """Another AUROC in a run's last evaluation."""
    lines = []
    for line in (run / EVENTS).read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "final":
            event["metrics"][part]["all"]["auroc"] = auroc
        lines.append(json.dumps(event))
    (run / EVENTS).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A sweep of two values and two seeds that MLflow has: its folder, its JSON, what it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    make_sites(folder)
    write_study(folder)
    done = sweep(folder, *GRID, "--json", track=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, json.loads(done.stdout.strip().splitlines()[-1]), done.stderr


def test_the_choice_follows_from_the_validation_metrics_of_the_record(work: tuple[Path, dict[str, Any], str]) -> None:
    folder, found, printed = work
    assert (found["tries"], found["runs"], found["mlflow_error"]) == (2, 4, None)
    assert len(runs_of(folder)) == 4
    means = {}
    for row in found["rows"]:
        each = [last_metrics(folder / run, "val")["auroc"] for run in row["runs"]]
        means[row["values"]["training.lr"]] = np.mean(each)
        assert row["val"]["value"] == pytest.approx(np.mean(each))
        assert row["sd_over_seeds"] == pytest.approx(np.std(each, ddof=1))
        assert row["val"]["low"] < row["val"]["value"] < row["val"]["high"]
    best = max(means, key=lambda lr: means[lr])
    assert found["best"]["values"] == {"training.lr": best}
    assert [row["values"]["training.lr"] for row in found["rows"]] == sorted(means, key=lambda lr: -means[lr])
    test = np.mean([last_metrics(folder / run, "test")["auroc"] for run in found["best"]["runs"]])
    assert found["test_of_best"]["value"] == pytest.approx(test)
    assert "best of 2 tries, 4 runs" in printed
    assert "The best of 2 tries is optimistic" in printed
    other = next(row for row in found["rows"] if row["values"]["training.lr"] != best)
    hidden = {f"{last_metrics(folder / run, 'test')['auroc']:.3f}" for run in other["runs"]}
    shown = {f"{last_metrics(folder / run, part)['auroc']:.3f}" for run in found["best"]["runs"] + other["runs"] for part in ("val",)}
    assert not (hidden - shown) & set(re.findall(r"0\.\d{3}", printed)), "test metrics of what was not chosen are not printed"


def test_all_seeds_have_the_same_validation_and_test_persons(work: tuple[Path, dict[str, Any], str]) -> None:
    from fedml.clients.site.manifest import read_site
    from fedml.clients.site.read import read_cohort
    from fedml.study.study import parse_study

    folder, found, _ = work
    site, parts = read_site(folder / "sites" / "a"), set()
    for run in found["best"]["runs"]:
        study = parse_study((folder / run / "study.json").read_text())
        cohort = read_cohort(site, study)
        parts.add(tuple(tuple(cohort.ids[row] for row in cohort.rows(part)) for part in ("train", "val", "test")))
    assert len(parts) == 1
    seeds = [json.loads((folder / run / "study.json").read_text())["study"]["seed"] for run in found["best"]["runs"]]
    assert seeds == [0, 1]


def test_mlflow_has_a_parent_with_the_runs_as_children(work: tuple[Path, dict[str, Any], str]) -> None:
    from mlflow import MlflowClient

    folder, found, _ = work
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    every = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    (parent,) = [r for r in every if r.data.tags.get("fedml.job") == "sweep"]
    children = {r.data.tags["fedml.run_id"]: r for r in every if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert set(children) == {run.name for run in runs_of(folder)}
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["tries"] == 2
    assert parent.data.metrics["test/auroc"] == pytest.approx(found["test_of_best"]["value"])
    assert "optimistic" in parent.data.tags["mlflow.note.content"]
    chosen = {Path(run).name for run in found["best"]["runs"]}
    for row in found["rows"]:
        for seed, run in enumerate(row["runs"]):
            child = children[Path(run).name].data
            assert child.params["lr"] == json.dumps(row["values"]["training.lr"])
            assert child.params["seed"] == str(seed)
            named = children[Path(run).name].info.run_name
            assert named == f"lr {child.params['lr']}, seed {seed} ({run[-6:]})"
            assert child.metrics["val/auroc_low"] < child.metrics["val/auroc"] < child.metrics["val/auroc_high"]
            tested = [name for name in child.metrics if name.startswith("test/")]
            model = children[Path(run).name].outputs
            assert bool(tested) == bool(model and model.model_outputs) == (Path(run).name in chosen)
    of_sites = [r for r in every if "fedml.site" in r.data.tags]
    assert len(of_sites) == 8
    silent = [r for r in of_sites if not any(name.startswith("test/") for name in r.data.metrics)]
    assert len(silent) == 4


def test_a_repeated_command_runs_what_is_missing_alone(work: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    folder, found, _ = work
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = {run.name: (run / EVENTS).stat().st_mtime_ns for run in runs_of(copy)}
    again = swept(copy, *GRID)
    assert {**again, "folder": ""} == {**found, "folder": ""}
    assert {run.name: (run / EVENTS).stat().st_mtime_ns for run in runs_of(copy)} == before
    cut, gone = copy / found["rows"][0]["runs"][0], copy / found["rows"][1]["runs"][1]
    lines = (cut / EVENTS).read_text().splitlines(keepends=True)
    (cut / EVENTS).write_text("".join(lines[:-1]))  # as a killed process leaves it
    shutil.rmtree(gone)
    third = swept(copy, *GRID)
    new = {run.name for run in runs_of(copy)} - set(before)
    assert len(new) == 2
    assert [(row["values"], row["val"]) for row in third["rows"]] == [(row["values"], row["val"]) for row in found["rows"]]
    named = [Path(run).name for row in third["rows"] for run in row["runs"]]
    assert new < set(named)
    assert not {cut.name, gone.name} & set(named)


def test_test_metrics_choose_nothing_and_validation_metrics_do(work: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    folder, found, _ = work
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    loser = found["rows"][-1]
    for run in loser["runs"]:
        rewrite(copy / run, "test", 0.999)
    for run in found["best"]["runs"]:
        rewrite(copy / run, "test", 0.001)
    assert swept(copy, *GRID)["best"] == found["best"]
    for run in loser["runs"]:
        rewrite(copy / run, "val", 0.999)
    turned = swept(copy, *GRID)
    assert turned["best"]["values"] == loser["values"]
    assert turned["test_of_best"]["value"] == pytest.approx(0.999)
    members = {run.name: json.loads((run / "sweep_run.json").read_text())["chosen"] for run in runs_of(copy)}
    assert {name for name, chosen in members.items() if chosen} == {Path(run).name for run in loser["runs"]}


def test_a_choice_that_changes_is_delivered_again(work: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    """An interrupted sweep may be delivered by `fedml track --pending` before it has chosen."""
    from mlflow import MlflowClient

    from fedml.tracking.sweeps import deliver_sweep

    folder, found, _ = work
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for run in found["rows"][-1]["runs"]:
        rewrite(copy / run, "val", 0.999)
    swept(copy, *GRID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy / 'mlflow.db'}")
        (made,) = (copy / "fedml-runs").glob("sweep-*")
        deliver_sweep(made)
    client = MlflowClient(f"sqlite:///{copy / 'mlflow.db'}")
    every = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    assert len(every) == 1 + 4 + 8, "nothing is there twice"
    names = {Path(run).name for run in found["rows"][-1]["runs"]}
    late = [r for r in every if r.data.tags["fedml.run_id"] in names and "fedml.site" not in r.data.tags]
    assert all("test/auroc_low" in r.data.metrics and r.outputs.model_outputs for r in late)


def test_a_run_of_a_sweep_is_that_of_the_run_command(tmp_path: Path) -> None:
    make_sites(tmp_path)
    write_study(tmp_path)
    found = swept(tmp_path, "--grid", "lr=0.1", "--grid", "strategy.name=fedprox", "--set", "strategy.mu=0.5")
    words = ("toy.toml", "--sites", "sites", "--no-track", "--runs", "alone")
    alone = run_json(
        *words, "--set", "training.lr=0.1", "--set", "strategy.name=fedprox", "--set", "strategy.mu=0.5", cwd=tmp_path, by=quick
    )
    (run,) = found["best"]["runs"]
    assert json.loads((tmp_path / run / EVENTS).read_text().splitlines()[0])["study_sha256"] == alone["study_sha256"]
    assert (tmp_path / run / "model.safetensors").read_bytes() == (tmp_path / alone["folder"] / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--grid", "lr=0.1,-1", "--grid", "strategy.name=fedavg,fedprox"), r"lr = -1, strategy.name = fedavg: toy.toml: \[training\] lr"),
        (("--grid", "strategy.name=fedavg,fedpox"), r"strategy.name = fedpox: .*did you mean"),
        (("--grid", "strategy.name=fedprox,fedavg", "--grid", "mu=0.1"), "strategy.name = fedavg, mu = 0.1: "),
        (("--grid", "clinical.net=linear,mlp"), r"clinical.net = mlp: .*needs hidden"),
        (("--grid", "lr=0.1,1e-1"), "are the same study"),
        (("--grid", "lr=1e-4..1e-1"), "add --random N"),
        (("--grid", "lr=1e-4..2e6", "--optuna", "3"), "lr = 2000000.0: |optuna, which is not installed"),
        (("--grid", "lr=0.1", "--random", "2", "--optuna", "2"), "exclude each other"),
        (("--grid", "lr=0.1", "--seeds", "x"), '--seeds "x"'),
        (("--grid", "lr=0.1,1", "--set", "cohort.split={ train = 0.6, val = 0.0, test = 0.4 }"), "no site has validation persons"),
        ((), "give --grid KEY=VALUE"),
    ],
)
def test_what_cannot_be_swept_is_named_before_anything_starts(tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    make_sites(tmp_path, 60)
    write_study(tmp_path)
    done = sweep(tmp_path, *words)
    assert done.returncode == 2
    assert re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not runs_of(tmp_path)


def test_a_try_that_fails_is_no_candidate_and_is_made_again(tmp_path: Path) -> None:
    make_sites(tmp_path, 60)
    write_study(tmp_path, training__optimizer="sgd", training__weight_decay=1000.0)
    done = sweep(tmp_path, "--grid", "lr=1e6,0.1", "--json")  # weights of 1e9 and more are implausible
    assert done.returncode == 0, done.stderr
    assert "failed: lr = 1000000.0: seed 0: round 1" in done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert [(row["values"]["training.lr"], row["val"]["value"] is None) for row in found["rows"]] == [(0.1, False), (1e6, True)]
    assert found["tries"] == 2
    assert found["best"]["values"] == {"training.lr": 0.1}
    assert len(runs_of(tmp_path)) == 2
    swept(tmp_path, "--grid", "lr=1e6,0.1")
    assert len(runs_of(tmp_path)) == 3
    nothing = sweep(tmp_path, "--grid", "lr=1e6")
    assert nothing.returncode == 1
    assert "no try has a value of the validation metric; the first: seed 0: round 1" in nothing.stderr


def test_random_draws_repeat_and_say_when_there_are_no_more(tmp_path: Path) -> None:
    make_sites(tmp_path, 60)
    write_study(tmp_path)
    words = ("--grid", "lr=0.01,0.1", "--grid", "batch_size=16,32", "--random", "30")
    done = sweep(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "there are only 4 different combinations" in done.stdout
    assert len(runs_of(tmp_path)) == 4
    assert "finished before" in sweep(tmp_path, *words).stdout
    assert len(runs_of(tmp_path)) == 4


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 8, for a sum with sensitivity / noise ``mu``."""

    def excess(epsilon: float) -> float:
        return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)) - delta

    return float(brentq(excess, 0, 500))


def private_study(folder: Path, **privacy: Any) -> None:
    persons = {"unit": "patient", "delta": 1e-3, "persons": {"a": 60, "b": 60}, "ranges": RANGES}
    write_study(folder, training__batch_size=0, training__optimizer="sgd", privacy={**persons, "noise_multiplier": 8.0, **privacy})


def test_the_cost_of_all_tries_is_shown_and_asked_about(tmp_path: Path) -> None:
    make_sites(tmp_path)
    private_study(tmp_path)
    asked = sweep(tmp_path, *GRID)
    assert asked.returncode == 2
    assert "give --yes" in asked.stderr
    assert not runs_of(tmp_path)
    costs = re.findall(r"Privacy: (\w): 4 runs cost each person at most epsilon ([\d.]+) together", asked.stdout)
    assert [site for site, _ in costs] == ["a", "b"]
    expected = gaussian_epsilon(math.sqrt(4 * 3) / 8.0, 1e-3)  # four runs of three rounds of one step over all persons
    for _, value in costs:
        assert expected - 1e-6 <= float(value) <= expected * 1.01 + 0.01  # rounded up
    done = sweep(tmp_path, *GRID, "--yes")
    assert done.returncode == 0, done.stderr
    assert len(runs_of(tmp_path)) == 4
    assert sweep(tmp_path, *GRID).returncode == 0, "nothing is left to be asked about"
    shutil.rmtree(runs_of(tmp_path)[0])
    assert "a: 5 runs cost each person" in sweep(tmp_path, *GRID).stdout, "what was released before counts too"
    refused = sweep(tmp_path, "--grid", "lr=0.1..0.2", "--optuna", "2", PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    assert re.search("not known before|not installed", refused.stderr)


def test_a_budget_that_all_tries_exceed_refuses_before_the_first(tmp_path: Path) -> None:
    make_sites(tmp_path, 800)  # of fewer, the noise may leave a class without validation persons
    private_study(tmp_path, metrics="private", noise_multiplier=8.0)
    single = gaussian_epsilon(math.sqrt(4) / 8.0, 1e-3)  # validation persons: three rounds and the last evaluation
    for name in "ab":
        manifest = tmp_path / "sites" / name / "site.toml"
        policy = f"[policy]\nmax_epsilon = {1.3 * single}\ndelta = 1e-3\n"
        manifest.write_text(manifest.read_text().replace("public = true", "public = false") + policy)
    refused = sweep(tmp_path, *GRID, "--yes")
    assert refused.returncode == 2
    assert "the privacy budget does not suffice" in refused.stderr
    assert "4 trainings" in refused.stderr
    assert not runs_of(tmp_path)
    assert sweep(tmp_path, "--grid", "lr=0.1", "--yes").returncode == 0, "one of them fits"


def test_a_store_that_does_not_answer_gets_the_sweep_later(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    make_sites(tmp_path, 60)
    write_study(tmp_path, federation__rounds=1)
    done = sweep(tmp_path, "--grid", "lr=0.01,0.1", track=True, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/toy.toml/mlflow.db")
    assert done.returncode == 3, done.stderr
    assert "MLflow has no complete record of this sweep" in done.stdout
    assert "Chosen by validation" in done.stdout
    later = quick("fedml", "track", "--pending", cwd=tmp_path)
    assert later.returncode == 0, later.stderr
    assert [line.split("-")[0] for line in later.stdout.splitlines()] == ["toy", "toy", "sweep"]
    assert "all runs are delivered" in quick("fedml", "track", "--pending", cwd=tmp_path).stdout
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    every = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    (parent,) = [r for r in every if r.data.tags.get("fedml.job") == "sweep"]
    assert parent.info.status == "FINISHED"
    assert sum(r.data.tags.get("mlflow.parentRunId") == parent.info.run_id for r in every) == 2


def test_a_sweep_in_python_is_that_of_the_command(tmp_path: Path) -> None:
    make_sites(tmp_path)
    file = write_study(tmp_path)
    study = fedml.Study.read(file)
    found = fedml.sweep(study, tmp_path / "sites", {"lr": [1e-4, 0.1]}, range(2), runs=tmp_path / "fedml-runs", track=False)
    told = swept(tmp_path, *GRID)
    assert len(runs_of(tmp_path)) == 4, "the command finds the runs of the same sweep"
    assert found.best == told["best"]["values"]
    assert found.test == told["test_of_best"]
    assert [run.folder.name for run in found.runs] == [Path(run).name for run in told["best"]["runs"]]
    assert found.table["val_auroc"].tolist() == pytest.approx([row["val"]["value"] for row in told["rows"]])
    assert found.table["training.lr"].tolist() == [row["values"]["training.lr"] for row in told["rows"]]
    assert "best of 2 tries" in str(found)
    assert found.runs[0].metrics["auroc"] == last_metrics(found.runs[0].folder, "test")["auroc"]
    with pytest.raises(InputError, match="several keys"):
        fedml.sweep(study, tmp_path / "sites", {"name": ["a"]}, runs=tmp_path / "other", track=False)
    both = {"clinical.net": ["mlp"], "clinical.hidden": [[4], [8]]}
    wide = fedml.sweep(study, tmp_path / "sites", both, runs=tmp_path / "other", track=False)
    assert sorted(map(str, wide.table["model.clinical.hidden"])) == ["[4]", "[8]"]


def test_data_that_changed_are_run_again(tmp_path: Path) -> None:
    make_sites(tmp_path, 60)
    write_study(tmp_path, federation__rounds=1)
    swept(tmp_path, "--grid", "lr=0.01,0.1")
    clinical_site(tmp_path / "sites" / "b", "b", 61, 9)
    swept(tmp_path, "--grid", "lr=0.01,0.1")
    assert len(runs_of(tmp_path)) == 4


def test_optuna_chooses_from_earlier_results_and_repeats(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    make_sites(tmp_path, 60)
    write_study(tmp_path, federation__rounds=1)
    words = ("--grid", "lr=1e-4..1e-1", "--optuna", "4")
    found = swept(tmp_path, *words, PYTHONPATH=os.environ.get("PYTHONPATH", ""), by=command)
    assert found["tries"] == 4
    assert all(1e-4 <= row["values"]["training.lr"] <= 1e-1 for row in found["rows"])
    again = swept(tmp_path, *words, PYTHONPATH=os.environ.get("PYTHONPATH", ""), by=command)
    assert again["rows"] == found["rows"]
    assert len(runs_of(tmp_path)) == 4


def test_damage_of_the_sweeps_file_is_a_sentence(tmp_path: Path) -> None:
    make_sites(tmp_path, 60)
    write_study(tmp_path, federation__rounds=1)
    swept(tmp_path, "--grid", "lr=0.1")
    (file,) = (tmp_path / "fedml-runs").glob("sweep-*/sweep.json")
    for text in ("", "[]", '{"schema": 1}', file.read_text().replace('"run": "', '"run": "../')):
        file.write_text(text)
        done = sweep(tmp_path, "--grid", "lr=0.1")
        assert done.returncode == 2
        assert "sweep.json: cannot be read" in done.stderr
        assert "delete the folder" in done.stderr


@pytest.mark.long
def test_a_stopped_sweep_keeps_what_is_finished_and_goes_on(tmp_path: Path) -> None:
    make_sites(tmp_path)
    write_study(tmp_path, federation__rounds=40)
    words = [
        str(Path(sys.executable).parent / "fedml"),
        "sweep",
        "toy.toml",
        "--sites",
        "sites",
        "--grid",
        "lr=0.01,0.02,0.05,0.1",
        "--no-track",
    ]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(3000):
        ended = [run for run in runs_of(tmp_path) if '"event": "end"' in (run / EVENTS).read_text()]
        if ended and len(runs_of(tmp_path)) > len(ended):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    finished = [run.name for run in runs_of(tmp_path) if '"status": "finished"' in (run / EVENTS).read_text()]
    assert f"stopped: {len(finished)} of 4 runs are finished and kept; repeat the command" in errors
    assert 1 <= len(finished) < 4
    before = len(runs_of(tmp_path))
    found = swept(tmp_path, "--grid", "lr=0.01,0.02,0.05,0.1")
    assert set(finished) < {Path(run).name for row in found["rows"] for run in row["runs"]}
    assert len(runs_of(tmp_path)) == before + 4 - len(finished)
