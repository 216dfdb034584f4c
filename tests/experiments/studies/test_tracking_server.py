"""Tracking against a real MLflow server: the same record as in a file; down, killed in the middle or slow, it costs no run anything."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fedml.tracking import outbox
from fedml.tracking.deliver import deliver, deliver_pending
from tests.command import command
from tests.conftest import make_plan, to_toml
from tests.tracked import SITES, content, end, finished, free_port, mlflow_server, proxy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sites of two hospitals and a study over them."""
    made = tmp_path_factory.mktemp("server")
    finished(made)
    plan = make_plan(sites=SITES, study__question="Is y so?", training__lr=0.1)
    (made / "toy.toml").write_text(to_toml(plan))
    return made


def run_it(folder: Path, address: str) -> dict[str, Any]:
    """`fedml run` with MLflow at an address: its JSON, and its other output."""
    done = command("fedml", "run", "toy.toml", "--sites", "sites", "--json", cwd=folder, MLFLOW_TRACKING_URI=address)
    assert done.returncode in (0, 3), done.stderr
    reported: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    assert reported["status"] == "finished"
    assert (reported["mlflow_run_id"] is None, reported["mlflow_error"] is not None) == (done.returncode == 3,) * 2
    return {**reported, "said": done.stderr}


@pytest.mark.long
def test_a_server_that_is_down_gets_the_record_when_it_is_up(folder: Path) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    reported = run_it(folder, address)
    assert reported["mlflow_run_id"] is None
    assert "fedml track --pending" in reported["said"]
    with mlflow_server(folder, port):
        done = command("fedml", "track", "--pending", cwd=folder, MLFLOW_TRACKING_URI=address)
        assert done.returncode == 0, done.stderr
        there = content(address)
        assert set(there) == {reported["run_id"], *(f"{reported['run_id']}/{site}" for site in SITES)}
        assert {r["status"] for r in there.values()} == {"FINISHED"}
        assert there[reported["run_id"]]["metrics"]["test/auroc"][0][1] == reported["metrics"]["test"]["auroc"]
        assert there[reported["run_id"]]["models"] == 1
        again = command("fedml", "track", "--pending", cwd=folder, MLFLOW_TRACKING_URI=address)
        assert "all runs are delivered" in again.stdout
        assert content(address) == there
        # The same run in a file's store reads the same.
        alone = command("fedml", "track", reported["folder"], cwd=folder, MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'alone.db'}")
        assert alone.returncode == 0, alone.stderr
        assert content(f"sqlite:///{folder / 'alone.db'}") == there


@pytest.mark.long
def test_a_server_killed_in_the_middle_leaves_no_half_and_no_double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, study = finished(tmp_path)
    outbox.mark_pending(run)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    for at in (6, 16):  # while children are made; while figures are written
        with mlflow_server(tmp_path, port) as server:

            def kill(number: int, at: int = at, server: Any = server) -> None:
                if number == at:
                    end(server, signal.SIGKILL)

            with proxy(port, kill) as through, monkeypatch.context() as patch:
                patch.setenv("MLFLOW_TRACKING_URI", through)
                with pytest.raises(Exception, match=r"(?i)connection|max retries"):
                    deliver(run, study)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert outbox.pending(run.parent) == [run]
    with mlflow_server(tmp_path, port):
        deliver_pending(run.parent, print)
        there = content(address)
        assert outbox.pending(run.parent) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'alone.db'}")
    monkeypatch.chdir(tmp_path)
    deliver(run, study)
    assert there == content(f"sqlite:///{tmp_path / 'alone.db'}")


@pytest.mark.long
def test_a_slow_server_gets_it_all(folder: Path) -> None:
    port = free_port()
    with mlflow_server(folder, port), proxy(port, lambda _: time.sleep(0.2)) as through:
        reported = run_it(folder, through)
        there = content(f"http://127.0.0.1:{port}")[reported["run_id"]]
    assert reported["mlflow_run_id"], reported["said"]
    assert there["status"] == "FINISHED"
    assert [step for step, _, _ in there["metrics"]["work/seconds"]] == [1, 2, 2]  # two rounds and the last evaluation
