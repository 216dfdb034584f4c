"""A run that stopped goes on: with the bits of a run that did not, each round once in the record, and never as another run than it was."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedml.clients.work.known import forget_data
from fedml.errors import InputError
from fedml.experiments.evidence.bundle import write_bundle
from fedml.experiments.evidence.verify import verify
from fedml.experiments.options import WhereAgain
from fedml.experiments.runs.launch import launch, make_console
from fedml.experiments.runs.resume import held, study_to_resume
from fedml.flower.parent import descendants
from fedml.flower.superlink import command_path
from fedml.runs.checkpoints import CHECKPOINTS, KEPT, Keeper, newest
from fedml.runs.events import Privacy, Resumed, Round
from fedml.runs.log import EVENTS, UNFINISHED, read_events, read_log
from fedml.study.read import read_study
from fedml.study.study import Study
from tests.conftest import clinical_site, public_data

ROOT = Path(__file__).resolve().parents[3]
KEY = Ed25519PrivateKey.generate()
SITES = ("a", "b", "c")
TEXT = """
[study]
name = "toy"
purpose = "DUO:0000042"
[cohort]
inputs = ["clinical"]
target = "y"
classes = [0, 1]
split = { train = 0.6, val = 0.2, test = 0.2 }
[cohort.clinical]
columns = ["x1", "x2"]
[model]
task = "classification"
[training]
optimizer = "sgd"
lr = 0.1
batch_size = 16
[federation]
sites = ["a", "b", "c"]
rounds = 6
[strategy]
name = "scaffold"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites and a study whose server and sites keep state."""
    made = tmp_path_factory.mktemp("resume")
    for seed, name in enumerate(SITES):
        clinical_site(made / "sites" / name, name, 90, seed)
    (made / "toy.toml").write_text(TEXT)
    return made


def go(folder: Path, study: Study, resume: Path | None = None) -> Any:
    """``fedml run`` in this process."""
    where = WhereAgain(folder / "sites", runs=folder / "whole", resume=resume)
    return launch(None, study, where, make_console(True), "resume" if resume else "train", track=False).outcome


@pytest.fixture(scope="module")
def whole(folder: Path) -> str:
    """The weights of a run that nothing stopped."""
    outcome = go(folder, read_study(folder / "toy.toml"))
    assert outcome.status == "finished"
    assert not (outcome.run / CHECKPOINTS).exists()
    assert not (outcome.run / KEPT).exists(), "what sites kept does not stay in the run's folder"
    return str(outcome.final.weights_sha256)


def killed(folder: Path, moment: str, *more: str) -> Path:
    """The folder of a run that was killed at the moment."""
    words = ["run", "toy.toml", "--sites", "sites", "--runs", f"runs/{moment}", *(more or ["--no-track"])]
    before = {**os.environ, "PYTHONPATH": str(ROOT)}
    (folder / "runs").mkdir(exist_ok=True)
    (folder / "runs" / moment).mkdir()
    cwd = folder / "runs" / moment
    words = [word if word not in ("toy.toml", "sites") else str(folder / word) for word in words]
    words[words.index("--runs") + 1] = "runs"
    done = subprocess.run([sys.executable, "-m", "tests.killed", moment, *words], cwd=cwd, env=before, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (run,) = (cwd / "runs").iterdir()
    return run


def test_a_run_killed_at_any_moment_goes_on_with_the_same_bits(folder: Path, whole: str) -> None:
    study = read_study(folder / "toy.toml")
    after = {"agreed": 0, "partial:1": 0, "round:3": 2, "unlogged:3": 3, "final": 6, "end": 6}
    for moment, number in after.items():
        run = killed(folder, moment)
        outcome = go(folder, study, run)
        assert (outcome.status, outcome.final.weights_sha256) == ("finished", whole), moment
        events = read_log(run, strict=True)[0]
        assert [event.round for event in events if isinstance(event, Round)] == [1, 2, 3, 4, 5, 6], moment
        (again,) = (event for event in events if isinstance(event, Resumed))
        assert (again.round, again.status) == (number, "killed"), moment
        assert [event.time for event in events] == sorted(event.time for event in events)
        assert not (run / CHECKPOINTS).exists()
        write_bundle(run, folder / f"{moment}.zip", KEY)
        found = verify(folder / f"{moment}.zip")
        assert found.ok, [check for check in found.checks if not check.ok]
        assert f"resumed {'after round ' + str(number) if number else 'before its first round'}" in found.files["report.html"].decode()
        with pytest.raises(InputError, match="is finished"):
            go(folder, study, run)


def test_what_does_not_fit_is_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    study, run = read_study(folder / "toy.toml"), killed(folder, "round:4")
    log = (run / EVENTS).read_bytes()

    def refused(given: Study | None, words: str, at: Path = run) -> None:
        with pytest.raises(InputError, match=words) as error:
            go(folder, study_to_resume(at, given), at)
        assert str(error.value).count("\n") == 0
        assert (run / EVENTS).read_bytes() == log, "nothing is written"

    (tmp_path / "changed.toml").write_text(TEXT.replace("lr = 0.1", "lr = 0.2"))
    refused(read_study(tmp_path / "changed.toml"), r"differs from the run's in training\.lr")
    (tmp_path / "other.toml").write_text(TEXT.replace('"toy"', '"other"'))
    refused(read_study(tmp_path / "other.toml"), 'is a run of the study "toy", not of "other"')
    refused(None, "is not a run's folder", tmp_path)
    with held(run):
        refused(study, "is still running")
    with pytest.raises(InputError, match="the run is of the engine local; give --engine local"):
        launch(None, study, WhereAgain(folder / "sites", "simulation", resume=run), make_console(True), "resume", track=False)
    files = sorted((run / CHECKPOINTS).glob("*.safetensors"))
    assert len(files) in (2, 3)
    files[-1].write_bytes(files[-1].read_bytes()[:-1])
    found = newest(run / CHECKPOINTS)
    assert found is not None
    assert found[0] == 2, "a damaged one is not used, the one before it is"
    for file in files:
        file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
    refused(study, "the checkpoint is damaged")
    for file in files:
        file.unlink()
    refused(study, "the run has no checkpoint to go on from")


def test_a_run_that_failed_goes_on_and_a_damaged_checkpoint_costs_one_round_more(folder: Path, whole: str) -> None:
    study, run = read_study(folder / "toy.toml"), killed(folder, "round:5")
    newest_file = sorted((run / CHECKPOINTS).glob("4-*"))[0]
    newest_file.write_bytes(b"")
    # Of a site, the state of the round before is there too.
    outcome = go(folder, study, run)
    assert outcome.final.weights_sha256 == whole
    (again,) = (event for event in outcome.events if isinstance(event, Resumed))
    assert (again.round, again.rounds_again) == (3, 2)
    assert [event.round for event in outcome.events if isinstance(event, Round)] == [1, 2, 3, 4, 5, 6]


def test_a_site_whose_data_changed_since_does_not_go_on(folder: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(SITES):
        clinical_site(tmp_path / "sites" / name, name, 90, seed)
    (tmp_path / "toy.toml").write_text(TEXT)
    run = killed(tmp_path, "round:2")
    clinical_site(tmp_path / "sites" / "b", "b", 90, 77)
    outcome = go(tmp_path, read_study(tmp_path / "toy.toml"), run)
    assert outcome.status == "failed"
    assert "b: its data changed since the run began" in outcome.reason
    clinical_site(tmp_path / "sites" / "b", "b", 90, 1)
    forget_data()
    again = go(tmp_path, read_study(tmp_path / "toy.toml"), run)
    assert again.status == "finished", again.reason
    assert [(e.status, e.round) for e in again.events if isinstance(e, Resumed)] == [("killed", 1), ("failed", 1)]
    assert not (run / UNFINISHED).exists()


def test_epsilon_counts_the_round_that_is_released_twice(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sites").symlink_to(folder / "sites")
    private = '[privacy]\nunit = "patient"\nnoise_multiplier = 2.0\nclipping_norm = 1.0\ndelta = 1e-5\n'
    text = TEXT.replace("scaffold", "fedavg") + private + "persons = { a = 60, b = 60, c = 60 }\n"
    ranges = "ranges = { x1 = [-4.0, 4.0], x2 = [-4.0, 4.0] }\n"
    (tmp_path / "toy.toml").write_text(text + ranges)
    study = read_study(tmp_path / "toy.toml")
    straight = go(tmp_path, study)
    assert straight.status == "finished", straight.reason
    epsilon = {Path("whole"): epsilon_of(straight.events)}
    for moment in ("round:3", "final"):
        run = killed(tmp_path, moment)
        outcome = go(tmp_path, study, run)
        assert outcome.status == "finished", outcome.reason
        epsilon[Path(moment)] = epsilon_of(outcome.events)
        write_bundle(run, tmp_path / f"{moment}.zip", KEY)
        assert verify(tmp_path / f"{moment}.zip").ok
    assert epsilon[Path("round:3")] > epsilon[Path("whole")], "round 3 has noise of its own each time"
    assert epsilon[Path("final")] >= epsilon[Path("whole")]


def epsilon_of(events: list[Any]) -> float:
    """The epsilon that the log ends with."""
    (privacy,) = (event for event in events if isinstance(event, Privacy))
    assert privacy.epsilon is not None
    return privacy.epsilon


def histories(store: Path, run: str) -> dict[str, Counter[int]]:
    """Metric -> step -> how often MLflow has it, of the one run of that id and of its sites."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    found = client.search_runs([e.experiment_id for e in client.search_experiments()], f"tags.`fedml.run_id` = '{run}'")
    assert len([r for r in found if "fedml.site" not in r.data.tags]) == 1
    assert {r.info.status for r in found} == {"FINISHED"}
    return {
        f"{r.data.tags.get('fedml.site', '')} {name}": Counter(m.step for m in client.get_metric_history(r.info.run_id, name))
        for r in found
        for name in r.data.metrics
    }


def check_histories(store: Path, run: str, rounds: int) -> None:
    """Each metric once for each round; the last evaluation has the number of the last round, and figures of work of its own."""
    found = {name: Counter({step: n for step, n in steps.items() if step < rounds}) for name, steps in histories(store, run).items()}
    found = {name: steps for name, steps in found.items() if steps}
    assert found[" work/sites"].keys() == set(range(1, rounds))
    assert all(set(steps.values()) == {1} for steps in found.values()), {n: s for n, s in found.items() if set(s.values()) != {1}}


def fedml(cwd: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """``fedml`` as a process."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [command_path("fedml"), *words], cwd=cwd, env={**os.environ, **environment}, stdout=pipe, stderr=pipe, text=True
    )


def test_mlflow_has_each_round_once(folder: Path) -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    store = folder / "mlflow.db"
    before, os.environ["MLFLOW_TRACKING_URI"] = os.environ.get("MLFLOW_TRACKING_URI"), f"sqlite:///{store}"
    try:
        run = killed(folder, "round:6", "--track")
        again = fedml(folder, "run", "toy.toml", "--sites", "sites", "--resume", str(run), "--json")
        out, errors = again.communicate(timeout=200)
        assert again.returncode == 0, errors
        assert json.loads(out.strip().splitlines()[-1])["mlflow_run_id"]
        check_histories(store, run.name, 6)
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI")
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


HEART = ["--sites", "sites", "--set", "federation.rounds=10", "--set", "training.local_epochs=10", "--json"]


def hospitals(tmp_path: Path, study: str, *more: str) -> list[str]:
    """The command of a 10-round study of four hospitals, whose folders are made."""
    made = fedml(tmp_path, "prepare", "heart", "--out", "sites", "--data", str(public_data("uci_heart").parent))
    assert made.wait(120) == 0
    return ["run", str(ROOT / "experiments" / "studies" / study), *HEART, *more]


def told_by(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a command that ended well tells."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    told: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return told


def begun(tmp_path: Path, study: list[str], runs: str, **environment: str) -> subprocess.Popen[str]:
    """The study's run, from its first event on."""
    run = fedml(tmp_path, *study, "--runs", runs, **environment)
    while run.poll() is None and not list((tmp_path / runs).glob(f"*/{EVENTS}")):
        time.sleep(0.002)
    return run


def seconds_of(run: Path) -> float:
    """From a run's first event to its last."""
    rows = read_events(run)[0]
    return float(rows[-1]["time"] - rows[0]["time"])


@pytest.mark.long
@pytest.mark.parametrize("study", ["heart.toml", "heart_private.toml"])
def test_killed_at_random_moments_of_a_study_of_four_hospitals(study: str, tmp_path: Path) -> None:
    """``FEDML_KILLS`` moments (default 50) within the run: a run that was killed after its end does not count. With privacy each site adds
    noise of its own, so its weights differ: epsilon is compared."""
    kills, chance, private = int(os.environ.get("FEDML_KILLS", "50")), random.Random(21), "private" in study
    store, words = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}, hospitals(tmp_path, study)
    if private:
        for manifest in (tmp_path / "sites").glob("*/site.toml"):
            assert "public = true" in manifest.read_text(), "no ledger stops so many runs"
    told_by(begun(tmp_path, words, "first", **store))  # what is read and computed once is not in the seconds of the next
    told = told_by(begun(tmp_path, words, "straight", **store))
    straight, seconds = read_log(tmp_path / told["folder"])[0], seconds_of(tmp_path / told["folder"])
    known, where, early, number = histories(tmp_path / "mlflow.db", told["run_id"]), Counter[int](), 0, 0
    while sum(where.values()) < kills:
        number += 1
        assert number <= 4 * kills, (where, early)
        run, done = begun(tmp_path, words, f"runs-{number}", **store), chance.randrange(11)  # rounds, whatever the machine's load
        (folder,) = (tmp_path / f"runs-{number}").iterdir()
        while run.poll() is None and sum(row["event"] == "round" for row in read_events(folder)[0]) < done:
            time.sleep(0.005)
        time.sleep(chance.random() * seconds / 12)
        run.kill()
        run.communicate()
        again = fedml(tmp_path, *words, "--resume", str(folder), **store)
        out, errors = again.communicate(timeout=300)
        if again.returncode == 2 and "is finished" in errors:
            early += 1
            continue
        assert again.returncode == 0, errors
        events = read_log(folder, strict=True)[0]
        if private:
            assert epsilon_of(events) >= epsilon_of(straight)
        else:
            assert json.loads(out.strip().splitlines()[-1])["weights_sha256"] == told["weights_sha256"]
        (event,) = (e for e in events if isinstance(e, Resumed))
        where[event.round] += 1
        assert [e.round for e in events if isinstance(e, Round)] == list(range(1, 11))
        assert {name: set(steps) for name, steps in histories(tmp_path / "mlflow.db", folder.name).items()} == {
            name: set(steps) for name, steps in known.items()
        }
        check_histories(tmp_path / "mlflow.db", folder.name, 10)
    print(f"{study}: {kills} kills within the run, which went on after rounds {dict(sorted(where.items()))}; {early} after its end")
    assert len(where) >= min(kills // 5, 5)


@pytest.mark.long
def test_the_process_of_sites_killed_at_random_moments(tmp_path: Path) -> None:
    """``FEDML_KILLS`` kills (default 50) of the second process of ``--workers 2``: the run goes on by itself, or is resumed."""
    kills, chance = int(os.environ.get("FEDML_KILLS", "50")), random.Random(22)
    words = [*hospitals(tmp_path, "heart.toml", "--set", "strategy.name=scaffold", "--set", "training.optimizer=sgd"), "--no-track"]
    wanted = told_by(begun(tmp_path, [*words, "--workers", "1"], "straight"))["weights_sha256"]
    killed = resumed = number = 0
    while killed < kills:
        number += 1
        run, struck = begun(tmp_path, [*words, "--workers", "2"], f"runs-{number}"), set[int]()
        while run.poll() is None:
            time.sleep(0.02)
            found = [child for child, _ in descendants(run.pid) if child not in struck and is_worker(child)]
            if found and killed < kills:
                time.sleep(6 * chance.random())  # it begins in 3 s
                with suppress(ProcessLookupError):
                    os.kill(found[0], signal.SIGKILL)
                    killed += 1
                struck.add(found[0])
        out, errors = run.communicate(timeout=300)
        (folder,) = (tmp_path / f"runs-{number}").iterdir()
        if run.returncode:
            assert "the quorum is" in errors, errors
            resumed += 1
            told = told_by(fedml(tmp_path, *words, "--workers", "2", "--resume", str(folder)))
        else:
            told = json.loads(out.strip().splitlines()[-1])
        assert told["weights_sha256"] == wanted
        events = read_log(folder, strict=True)[0]
        assert [e.round for e in events if isinstance(e, Round)] == list(range(1, 11))
        assert not any(e.refused for e in events if isinstance(e, Round))
    print(f"{kills} kills of the sites' process in {number} runs, of which {resumed} were resumed")


def is_worker(process: int) -> bool:
    """Whether it is a further process of the local engine."""
    with suppress(OSError):
        return b"fedml.clients.gate.engine_worker" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False


def test_a_checkpoint_keeps_types_shapes_and_bits(tmp_path: Path) -> None:
    import numpy as np
    import torch

    arrays = {"a": torch.randn(3, 4), "b": torch.tensor(7), "c": np.zeros((0, 2), np.uint8), "d": np.array(np.pi), "e": np.array([True])}
    keeper = Keeper(tmp_path / "kept", durable=True)
    for number in range(5):
        keeper.write(number, arrays, {"score": 0.1 + 0.2, "text": "π"})
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 2
    found = newest(tmp_path / "kept")
    assert found is not None
    number, back, note = found
    assert (number, note) == (4, {"score": 0.1 + 0.2, "text": "π"})
    for name, value in arrays.items():
        plain = np.asarray(value)
        assert (back[name].dtype, back[name].shape) == (plain.dtype, plain.shape)
        assert back[name].tobytes() == plain.tobytes()
