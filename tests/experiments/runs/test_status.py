"""``fedml status`` and ``fedml drop``: of a run that goes on, of one that has ended, of a copied folder, and of what is no run."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message

from fedml.clients.gate.local import app as client_app
from fedml.errors import InputError
from fedml.experiments.runs.run import new_run
from fedml.experiments.runs.status import status_of, text_of
from fedml.flower.grid import InProcessGrid
from fedml.flower.heard import Heard, percent_of, read_heard
from fedml.runs.events import Round
from fedml.runs.live import SILENT_SECONDS, Live, LiveSite, drop, read_live, write_live
from fedml.runs.log import read_log
from fedml.strategies.rounds import run_study
from fedml.strategies.watched import watched
from fedml.study.study import Study
from tests.command import quick
from tests.conftest import clinical_site, federate, make_study

SITES = ("a", "b", "c")


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sites")
    return [clinical_site(folder / name, name, 60, seed) for seed, name in enumerate(SITES)]


def study_of(**changes: Any) -> Study:
    return make_study(sites=SITES, federation__rounds=3, **changes)


def begun(tmp_path: Path, study: Study) -> Path:
    return new_run(study, tmp_path / "runs", None, engine="deployment", job="train")


def lines(run: Path, now: float) -> dict[str, str]:
    """Site -> its line."""
    return {site.name: site.doing for site in status_of(run, now).sites}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[Path, Live, float]]:
    """A run whose server works, in round 2, and writes what it knows."""
    from fedml.flower.parent import working

    run, now = begun(tmp_path, study_of()), time.time()
    with working(run):
        yield run, Live("round", 2, now - 30, now, {name: LiveSite(heard=now) for name in SITES}), now


def test_each_site_in_plain_words(live: tuple[Path, Live, float]) -> None:
    run, what, now = live
    what.sites["a"].percent = 40
    what.sites["b"] = LiveSite("refused", "data-changed", heard=now)
    what.sites["c"].heard = now - 180
    write_live(run, what)
    assert lines(run, now) == {"a": "training 40 %", "b": "refused: data-changed", "c": "silent for 3 min"}
    text = text_of(status_of(run, now), now)
    assert "running after" in text
    assert "training, round 2 of 3" in text


@pytest.mark.parametrize(
    ("site", "says"),
    [
        (LiveSite("replied"), "replied"),
        (LiveSite("asked"), "training"),
        (LiveSite("asked", heard=1.0), "training"),
        (LiveSite("asked", heard=-SILENT_SECONDS), "silent for 60 s"),
        (LiveSite("asked", heard=-7500.0), "silent for 2 h 5 min"),
        (LiveSite("asked", percent=0), "training 0 %"),
        (LiveSite("refused", "removed"), "refused: removed"),
    ],
)
def test_words(live: tuple[Path, Live, float], site: LiveSite, says: str) -> None:
    run, what, now = live
    what.sites["a"] = replace(site, heard=None if site.heard is None else now + min(site.heard, 0))
    write_live(run, what)
    assert lines(run, now + 0.01)["a"] == says


def test_the_end_is_estimated_from_the_last_rounds(live: tuple[Path, Live, float]) -> None:
    from fedml.runs.log import emit

    run, what, now = live
    write_live(run, what)
    assert status_of(run, now).end is None, "nothing is known before a round has ended"
    emit(run, Round(round=1, seconds=100.0, metrics={}, sites={}, refused={}))
    last = [e for e in read_log(run)[0] if isinstance(e, Round)][-1].time
    assert status_of(run, last + 20).end == pytest.approx(last + 200)
    assert status_of(run, last + 900).end == last + 900, "an end in the past is no estimate"


def test_a_removed_site_is_told_and_the_command_checks_what_it_is_given(live: tuple[Path, Live, float], tmp_path: Path) -> None:
    run, what, now = live
    write_live(run, what)
    wrong = quick("fedml", "drop", run, "d", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert '"d" is no site of this run' in wrong.stderr
    done = quick("fedml", "drop", run, "b", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "b is removed from this run; the quorum decides whether it goes on\n")
    assert lines(run, now)["b"] == "removed by the coordinator"


def test_a_server_that_is_gone_is_no_running_run(tmp_path: Path) -> None:
    run, now = begun(tmp_path, study_of()), time.time()
    write_live(run, Live("round", 2, now, now, {"a": LiveSite(percent=40)}))
    (run / "server.lock").touch()  # as a killed server leaves it, or the machine from which the folder was copied
    found = status_of(run, now)
    assert (found.state, "ended without a result" in found.note) == ("ended", True)
    assert "%" not in text_of(found)
    gone = quick("fedml", "drop", run, "a", cwd=tmp_path)
    assert (gone.returncode, "the run is ended, so no site can be removed" in gone.stderr) == (2, True)


def test_a_finished_run_of_the_local_engine_also_where_it_was_copied_to(manifests: list[Path], tmp_path: Path) -> None:
    done = federate(study_of(), manifests, tmp_path / "run")
    assert len(done.events) > 5
    study = study_of()
    (tmp_path / "run" / "study.json").write_text(study.canonical)
    shutil.copytree(tmp_path / "run", tmp_path / "other" / "run")
    for folder in (tmp_path / "run", tmp_path / "other" / "run"):
        assert not (folder / "live.json").exists()
        log = (folder / "events.jsonl").read_text()
        if '"event": "start"' not in log:  # the fixture's runs begin without one
            head = begun(tmp_path / folder.parent.name, study) / "events.jsonl"
            (folder / "events.jsonl").write_text(head.read_text() + log)
        found = status_of(folder, time.time())
        assert (found.state, found.round, found.rounds) == ("finished", 3, 3)
        assert {site.doing for site in found.sites} == {"took part in 3 rounds"}
        assert all(site.bytes_in > 0 < site.bytes_out for site in found.sites)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "none", "does not exist"),
        (lambda p: p, "is not a run's folder"),
        (lambda p: p / "file", "is not a run's folder"),
        (lambda p: p / "runs", "it has the runs x; give one of them"),
        (lambda p: p / "broken", "cannot be read"),
        (lambda p: p / "empty", "has no event of a start"),
    ],
)
def test_a_path_that_is_no_run_is_one_sentence(make: Any, says: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("runs/x", "broken", "empty"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "events.jsonl").write_text("{\n" if name == "broken" else "")
        (tmp_path / name / "study.json").write_text(study_of().canonical)
    with pytest.raises(InputError, match=says) as caught:
        status_of(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_json_and_watch_end_with_the_run(tmp_path: Path) -> None:
    from fedml.runs.events import End
    from fedml.runs.log import emit

    run = begun(tmp_path, study_of())
    emit(run, End(status="failed", reason="round 1: 1 of 3 sites answered"))
    done = quick("fedml", "status", run, "--watch", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["state"], told["note"], len(told["sites"])) == ("failed", "round 1: 1 of 3 sites answered", 3)


def test_what_passes_is_seen_while_a_site_trains_and_weights_are_the_same(manifests: list[Path], tmp_path: Path) -> None:
    """A run of the local engine, held within the training of b: a has replied, c was asked. Then to its end, unchanged to the bit."""
    reached, go, seen = threading.Event(), threading.Event(), dict[str, str]()

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and context.node_id == 2 and not reached.is_set():
            reached.set()
            go.wait(60)
        return client_app(message, context)

    study, run = study_of(), begun(tmp_path, study_of())
    nodes = [{"manifest": str(m)} for m in manifests]

    def work() -> None:
        with watched(run, InProcessGrid(app, nodes), study) as grid:
            run_study(study, grid, run)

    thread = threading.Thread(target=work)
    thread.start()
    assert reached.wait(60)
    until = time.monotonic() + 60
    while (found := read_live(run)) is None or found.phase != "round":
        assert time.monotonic() < until
        time.sleep(0.05)
    seen = {name: site.state for name, site in found.sites.items()}
    go.set()
    thread.join(120)
    assert seen == {"a": "replied", "b": "asked", "c": "asked"}
    assert read_live(run) is None
    plain = federate(study, manifests, tmp_path / "plain")
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "plain" / "model.safetensors").read_bytes()
    assert plain is not None


def test_a_removed_site_is_not_asked_and_the_record_says_so(manifests: list[Path], tmp_path: Path) -> None:
    study, run, asked = study_of(federation__quorum=2), begun(tmp_path, study_of()), list[tuple[int, str]]()

    def app(message: Message, context: Context) -> Message:
        asked.append((context.node_id, message.metadata.message_type))
        if message.metadata.message_type == "train" and context.node_id == 3 and not (run / "dropped").exists():
            drop(run, "b")
        return client_app(message, context)

    with watched(run, InProcessGrid(app, [{"manifest": str(m)} for m in manifests]), study) as grid:
        run_study(study, grid, run)
    events = read_log(run)[0]
    rounds = [e for e in events if isinstance(e, Round)]
    assert [e.refused for e in rounds] == [{}, {"b": "removed"}, {"b": "removed"}]
    assert asked.count((2, "train")) == 1
    assert asked.count((3, "train")) == 3
    assert all("b" not in e.sites for e in rounds[1:])


@pytest.mark.parametrize(
    ("text", "percent"),
    [(b"40", 40), (b"100", 100), (b"0", 0), (b"101", -1), (b"-1", -1), (b"", -1), (b"0040", -1), (b"4 0", -1)],
)
def test_only_a_number_from_0_to_100_is_taken_from_a_header(text: bytes, percent: int) -> None:
    assert percent_of(text) == percent


def test_the_superlink_remembers_a_limited_number(tmp_path: Path) -> None:
    heard = Heard(tmp_path)
    heard.write()
    assert read_heard(tmp_path) == ({}, {}), "nothing is written before something is heard"
    for node in range(10_005):
        heard.node(node, [(b"fedml-progress", b"30")])
    heard.replied(["1234567890123456789", "f" * 64])
    heard.write()
    nodes, replies = read_heard(tmp_path)
    assert (len(nodes), "0" in nodes, nodes["10004"][1], list(replies)) == (10_000, False, 30, ["f" * 64])
    (tmp_path / "heard.json").write_text('{"nodes": 1}')
    assert read_heard(tmp_path) == ({}, {})
