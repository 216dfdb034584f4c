"""A run that MLflow has no record of says so last, in ``--json`` and by its exit code, and is delivered later."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from fedml.flower.superlink import command_path
from tests.command import command, quick
from tests.conftest import clinical_site, make_plan, to_toml
from tests.tracked import free_port


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A site and a study over it."""
    clinical_site(tmp_path / "sites" / "lund", "lund", 60, 1)
    (tmp_path / "toy.toml").write_text(to_toml(make_plan(sites=("lund",))))
    return tmp_path


def delivered(work: Path, **environment: str) -> int:
    """How many runs ``fedml track --pending`` delivers."""
    done = quick("fedml", "track", "--pending", cwd=work, **environment)
    assert done.returncode == 0, done.stderr
    return sum(": all" not in line and "all runs are" not in line for line in done.stdout.splitlines())


def last_of(errors: str) -> str:
    """The last line of standard error that is no note about libraries."""
    return [line for line in errors.strip().splitlines() if not line.startswith("note: ")][-1]


def test_no_server(work: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    environment = {"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    shown = quick("fedml", "run", "toy.toml", "--sites", "sites", cwd=work, **environment)
    assert shown.returncode == 3, shown.stderr
    last = shown.stdout.strip().splitlines()[-1]
    assert "MLflow has no complete record of this run" in last
    assert "the run itself finished" in last
    assert "fedml track --pending" in last
    assert "Traceback" not in shown.stdout + shown.stderr
    asked = quick("fedml", "run", "toy.toml", "--sites", "sites", "--json", cwd=work, **environment)
    told = json.loads(asked.stdout.strip().splitlines()[-1])
    assert (asked.returncode, told["status"], told["mlflow_run_id"]) == (3, "finished", None)
    assert address.removeprefix("http://") in told["mlflow_error"] or "onnect" in told["mlflow_error"]
    assert "MLflow has no complete record" in last_of(asked.stderr)
    untracked = quick("fedml", "run", "toy.toml", "--sites", "sites", "--json", "--no-track", cwd=work, **environment)
    told = json.loads(untracked.stdout.strip().splitlines()[-1])
    assert (untracked.returncode, told["mlflow_run_id"], told["mlflow_error"]) == (0, None, None)
    assert delivered(work) == 2  # to the store that is there
    assert delivered(work) == 0


@pytest.mark.parametrize("seconds", [0.0, pytest.param(4.0, marks=pytest.mark.long)])
def test_the_process_that_records_is_killed(work: Path, seconds: float) -> None:
    text = (work / "toy.toml").read_text()
    (work / "toy.toml").write_text(text.replace("rounds = ", "rounds = 20") if seconds else text)
    words = [command_path("fedml"), "run", "toy.toml", "--sites", "sites", "--json"]
    run = subprocess.Popen(words, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    path = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    until = time.monotonic() + 60
    while not (found := path.read_text().split()) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(seconds)
    os.kill(int(found[0]), signal.SIGKILL)
    out, errors = run.communicate(timeout=120)
    told = json.loads(out.strip().splitlines()[-1])
    assert (run.returncode, told["status"], told["mlflow_run_id"]) == (3, "finished", None), errors
    assert "signal 9" in told["mlflow_error"]
    assert "signal 9" in last_of(errors)
    assert delivered(work) == 1
    assert delivered(work) == 0


@pytest.mark.long
def test_a_record_in_part(work: Path) -> None:
    """The store takes parameters and no figures, as a full disk or a broken table does."""
    assert quick("fedml", "run", "toy.toml", "--sites", "sites", cwd=work).returncode == 0
    with sqlite3.connect(work / "mlflow.db") as store:
        store.execute("CREATE TRIGGER broken BEFORE INSERT ON metrics BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END")
    done = quick("fedml", "run", "toy.toml", "--sites", "sites", "--json", cwd=work)
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert (done.returncode, told["status"], told["mlflow_run_id"]) == (3, "finished", None)
    assert "full" in told["mlflow_error"]
    refused = quick("fedml", "track", "--pending", cwd=work)
    assert (refused.returncode, "are not delivered yet" in refused.stderr) == (1, True)
    with sqlite3.connect(work / "mlflow.db") as store:
        store.execute("DROP TRIGGER broken")
    assert delivered(work) == 1
    assert delivered(work) == 0


@pytest.mark.long
def test_a_run_that_failed_says_both(work: Path) -> None:
    (work / "sites" / "lund" / "persons.csv").write_text("id,y\n")
    done = command(
        "fedml", "run", "toy.toml", "--sites", "sites", "--json", cwd=work, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}"
    )
    assert done.returncode in (1, 2)
    assert last_of(done.stderr).startswith("error: ")
