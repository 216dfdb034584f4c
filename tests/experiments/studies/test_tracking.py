"""The record in MLflow: what it says of a run and each site, that it is there once, and what a run's folder still owes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedml.errors import RunError
from fedml.runs.log import EVENTS, load_counts, read_events
from fedml.study.study import Study
from fedml.tracking import outbox
from fedml.tracking.deliver import deliver, deliver_pending
from fedml.tracking.store import store_key
from tests.command import quick as command
from tests.tracked import SITES, content, finished, name_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study, Path]:
    """A finished run of two sites with subgroups, its study, and the folder it is in."""
    folder = tmp_path_factory.mktemp("tracked")
    run, study = finished(folder)
    return run, study, folder


@pytest.fixture(scope="module")
def reported(made: tuple[Path, Study, Path]) -> dict[str, Any]:
    """What a fresh store holds once the run is delivered."""
    run, study, folder = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.chdir(folder)
        deliver(run, study)
    return content(f"sqlite:///{folder / 'mlflow.db'}")


def test_the_parent_says_what_was_asked_and_what_came_out(made: tuple[Path, Study, Path], reported: dict[str, Any]) -> None:
    from fedml.tasks.intervals import interval
    from fedml.tasks.registry import make_task

    run, study, _ = made
    parent, events = reported[run.name], read_events(run)[0]
    final = next(e for e in events if e["event"] == "final")["metrics"]["test"]
    tags, value = parent["tags"], {name: history[-1][1] for name, history in parent["metrics"].items()}
    assert parent["status"] == "FINISHED"
    assert parent["models"] == 1
    assert tags["fedml.study.study"] == "toy"
    assert tags["fedml.study_sha256"] == study.sha256
    assert tags["fedml.roster"] == "bergen, lund"
    assert tags["fedml.epsilon"] == "none"
    assert tags["fedml.seed"] == "0"
    assert tags["fedml.weights_sha256"] == next(e for e in events if e["event"] == "final")["weights_sha256"]
    assert tags["fedml.version.torch"] == events[0]["versions"]["torch"]
    assert tags["mlflow.source.git.commit"] == events[0]["git_commit"].partition("+")[0] or events[0]["git_commit"] == "none"
    assert value["test/auroc"] == final["all"]["auroc"]
    assert value["test/auroc_worst_site"] == min(site["auroc"] for site in final["sites"].values())
    assert final["sites"][tags["fedml.worst_site"]]["auroc"] == value["test/auroc_worst_site"]
    counts = load_counts(run)["test"]
    limits = interval([counts[s] for s in SITES], make_task(study), "auroc", seed=0)
    assert (value["test/auroc_low"], value["test/auroc_high"]) == (limits.low, limits.high)
    assert limits.low < value["test/auroc"] < limits.high
    note = tags["mlflow.note.content"]
    for words in ("**Question.** Is y so?", f"auroc {final['all']['auroc']:.3f}", tags["fedml.worst_site"], "no differential privacy"):
        assert words in note


def test_each_site_has_a_child_run_with_its_work_and_disclosures(made: tuple[Path, Study, Path], reported: dict[str, Any]) -> None:
    run, study, _ = made
    events = read_events(run)[0]
    agreed, rounds = next(e for e in events if e["event"] == "agreed"), [e for e in events if e["event"] == "round"]
    assert set(reported) == {run.name, *(f"{run.name}/{site}" for site in SITES)}
    for site in SITES:
        child = reported[f"{run.name}/{site}"]
        tags, metrics = child["tags"], child["metrics"]
        assert tags["mlflow.parentRunId"] == run.name  # by name: the ids are MLflow's
        assert tags["fedml.site"] == site
        assert tags["fedml.took_part"] == "1-2"
        assert tags["fedml.quarantined"] == "none"
        assert tags["fedml.dataset_sha256"] == agreed["disclosed"][site]["dataset"]
        assert json.loads(tags["fedml.policy"]) == agreed["disclosed"][site]["policy"]
        assert child["datasets"] == [(site, agreed["disclosed"][site]["dataset"][:36])]
        assert child["params"]["persons.train"] == str(sum(agreed["persons"][site]["train"]))
        assert [value for _, value, _ in metrics["work/took_part"]] == [1, 1]
        final = next(e for e in events if e["event"] == "final")
        assert metrics["test/auroc"][0][1] == final["metrics"]["test"]["sites"][site]["auroc"]
        for way in ("bytes_in", "bytes_out"):
            assert metrics[f"total/{way}"][0][1] == sum(e["sites"][site][way] for e in (*rounds, final)) > 0
    every = [name for name, _ in reported[run.name]["datasets"]]
    assert sorted(every) == sorted([*SITES, "all sites"])
    assert {d for d in reported[run.name]["datasets"] if d[0] != "all sites"} == {reported[f"{run.name}/{s}"]["datasets"][0] for s in SITES}
    assert study.federation.rounds == 2


def test_delivered_again_from_any_point_it_is_there_once_and_the_same(
    made: tuple[Path, Study, Path], reported: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    run, study, folder = made
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(folder)
    before, calls = MlflowClient.set_terminated, list[str]()

    def watched(client: MlflowClient, run_id: str, *words: Any) -> None:
        calls.append(run_id)
        before(client, run_id, *words)

    monkeypatch.setattr(MlflowClient, "set_terminated", watched)
    first = deliver(run, study)
    assert calls == []  # it is whole: nothing is written
    client = MlflowClient(uri)
    client.delete_tag(first, "fedml.events_bytes")  # as if the delivery had been killed just before its end
    lost = next(r for r in client.search_runs(["1"]) if name_of(r) == f"{run.name}/lund")
    client.delete_run(lost.info.run_id)  # and one child not made
    assert deliver(run, study) == first
    assert calls
    assert content(uri) == reported


def test_a_run_is_recorded_by_one_process_at_a_time(made: tuple[Path, Study, Path]) -> None:
    run, study, _ = made
    with outbox.lock_run(run), pytest.raises(RunError, match="another process is recording this run"):
        deliver(run, study)


def test_pending_delivers_what_was_to_be_recorded_and_nothing_else(
    made: tuple[Path, Study, Path], reported: dict[str, Any], tmp_path: Path
) -> None:
    run, _, folder = made
    shutil.copy(folder / "mlflow.db", tmp_path / "mlflow.db")  # a store that has this run, and none of the next
    for name in ("kept", "private", "going"):
        shutil.copytree(run, tmp_path / "runs" / f"toy-{name}")
        log = tmp_path / "runs" / f"toy-{name}" / EVENTS
        log.write_text(log.read_text().replace(run.name, f"toy-{name}"))
        (log.parent / outbox.MARKER).unlink()
    outbox.mark_pending(tmp_path / "runs" / "toy-kept")
    outbox.mark_pending(tmp_path / "runs" / "toy-going")
    log = tmp_path / "runs" / "toy-going" / EVENTS
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))  # it has not ended
    done = command("fedml", "track", "--pending", "--runs", "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("toy-kept: ")
    assert len(done.stdout.splitlines()) == 1
    now = content(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert {name for name in now if "/" not in name} == {run.name, "toy-kept"}
    assert now["toy-kept"]["metrics"] == reported[run.name]["metrics"]
    again = command("fedml", "track", "--pending", "--runs", "runs", cwd=tmp_path)
    assert "all runs are delivered" in again.stdout
    path = tmp_path / "runs" / "toy-kept" / outbox.MARKER
    marker = path.read_text()
    assert str(tmp_path) not in marker
    deliveries = {key: {**own, "events_bytes": own["events_bytes"] - 9} for key, own in json.loads(marker).items()}
    path.write_text(json.dumps(deliveries))  # the store has the run but for its end
    rest = command("fedml", "track", "--pending", "--runs", "runs", cwd=tmp_path)
    assert rest.stdout.startswith("toy-kept: ")


def test_track_says_what_it_needs(tmp_path: Path) -> None:
    for words in ((), ("runs/x", "--pending"), ("--pending", "--runs", "nowhere"), ("nowhere",)):
        done = command("fedml", "track", *words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert "Traceback" not in done.stderr
        assert "fedml-runs" in done.stderr or "--pending" in done.stderr or "nowhere" in done.stderr


def test_a_store_that_cannot_be_reached_leaves_the_run_owed(
    made: tuple[Path, Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(made[0], tmp_path / "runs" / made[0].name)
    (run / outbox.MARKER).write_text("{}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="1 run\\(s\\) are not delivered yet"):
        deliver_pending(tmp_path / "runs", print)
    assert outbox.pending(tmp_path / "runs") == [run]
    (run / outbox.MARKER).write_text("not JSON")
    assert outbox.pending(tmp_path / "runs") == [run]


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), st.sampled_from(["postgresql", "https"]))
def test_the_key_of_a_store_depends_on_no_login_and_reveals_no_password(secret: str, scheme: str) -> None:
    plain = store_key(f"{scheme}://db.example.org/mlflow")
    assert store_key(f"{scheme}://fedml:{secret}@db.example.org/mlflow") == plain
    assert store_key(f"{scheme}://db.example.org/mlflow-{secret}") != plain


def test_the_store_of_a_folder_is_that_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        keys |= {store_key("sqlite:///mlflow.db"), store_key(f"sqlite:///{tmp_path / name / 'mlflow.db'}")}
    assert len(keys) == 2
