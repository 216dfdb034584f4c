"""Each named fault has one outcome (docs/run-a-federation.md): of a site a code in the record, of the server a sentence."""

from __future__ import annotations

import errno
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from flwr.app import Context, Message, RecordDict

from fedml.clients.gate.local import app as client_app
from fedml.clients.work import client
from fedml.clients.work.client import reason_of
from fedml.errors import InputError, Reason, RunError, sentence_of
from fedml.experiments.runs.launch import Launched, closing_line, make_console
from fedml.experiments.runs.run import Outcome, new_run
from fedml.flower.grid import InProcessGrid
from fedml.runs.events import NO_FINAL, Round
from fedml.runs.log import UNFINISHED, emit, load_model, read_log
from fedml.strategies.rounds import run_study
from fedml.wire.records import Phase
from tests.command import command
from tests.conftest import clinical_site, make_study, to_toml
from tests.faults import AT_A_SITE, struck

SITES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sites")
    return [clinical_site(folder / name, name, 60, seed) for seed, name in enumerate(SITES)]


@pytest.mark.parametrize("fault", AT_A_SITE)
def test_a_fault_at_a_site_is_its_code_and_the_round_is_that_of_the_others(fault: str, manifests: list[Path], tmp_path: Path) -> None:
    """On the other engines: ``tests/experiments/federation/test_fault_matrix.py``."""
    study, execute = make_study(sites=SITES, federation__rounds=3, federation__quorum=3), client.execute

    def faulty(request: Any, content: RecordDict, memory: Any) -> RecordDict:
        strikes = (request.name, request.phase, request.round) == ("b", Phase.ROUND, 2)
        return struck(fault, execute, request, content, memory) if strikes else execute(request, content, memory)

    run = new_run(study, tmp_path, None, engine="local", job="train")
    with patch.object(client, "execute", faulty):
        run_study(study, InProcessGrid(client_app, [{"manifest": str(m)} for m in manifests]), run)
    rounds = [e for e in read_log(run)[0] if isinstance(e, Round)]
    assert [e.refused for e in rounds] == [{}, {"b": AT_A_SITE[fault].code}, {}]
    assert set(rounds[1].sites) == set(SITES) - {"b"}
    assert all(torch.isfinite(value).all() for value in load_model(run)[0].values())
    assert "oslo-017" not in (run / "events.jsonl").read_text()


def put_study(folder: Path, manifests: list[Path], rounds: int) -> None:
    for manifest in manifests:
        shutil.copytree(manifest.parent, folder / "sites" / manifest.parent.name)
    plan = {
        "study": {"name": "toy"}, "cohort": {"inputs": ["clinical"], "target": "y", "clinical": {"columns": ["x1", "x2", "x3"]}},
        "federation": {"sites": list(SITES), "rounds": rounds},
    }  # fmt: skip
    (folder / "study.toml").write_text(to_toml(plan))


@pytest.mark.parametrize("size", [4_000, 20_000, 40_001])
def test_a_full_disk_at_the_server_ends_the_run_with_a_sentence_and_whole_events(size: int, manifests: list[Path], tmp_path: Path) -> None:
    put_study(tmp_path, manifests, 40)
    limit = f"import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); os.execv(sys.argv[1], sys.argv[1:])"
    words = [str(Path(sys.executable).parent / "fedml"), "run", "study.toml", "--sites", "sites", "--no-track"]
    done = subprocess.run([sys.executable, "-c", limit, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    (run,) = (tmp_path / "fedml-runs").iterdir()
    assert (run / "events.jsonl").read_bytes().endswith(b"}\n")
    assert not (run / "model.safetensors").exists()
    rounds = [e.round for e in read_log(run, strict=True)[0] if isinstance(e, Round)]
    assert rounds == list(range(1, len(rounds) + 1))
    shown = command("fedml", "status", run, cwd=tmp_path)
    assert (shown.returncode, "running" in shown.stdout) == (0, False)


def test_an_event_that_does_not_fit_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    run = new_run(make_study(), tmp_path, None, engine="local", job="train")
    before = (run / "events.jsonl").read_bytes()
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, soft[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            emit(run, Round(round=1, seconds=1.0, metrics={}, sites={}, refused={}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert (run / "events.jsonl").read_bytes() == before
    emit(run, Round(round=1, seconds=1.0, metrics={}, sites={}, refused={}))
    assert len(read_log(run, strict=True)[0]) == 2


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_a_clock_that_jumps_changes_no_round(jump: float, manifests: list[Path], tmp_path: Path) -> None:
    """The clock of the day jumps by a day in round 2; waits and weights are those of a run without it."""
    study, real, jumped = make_study(sites=SITES, federation__rounds=3), time.time, False

    def app(message: Message, context: Context) -> Message:
        nonlocal jumped
        jumped = jumped or (message.metadata.message_type == "train" and context.node_id == 4)
        return client_app(message, context)

    found = []
    for name, clock in (("plain", real), ("jumps", lambda: real() + jump * jumped)):
        run = new_run(study, tmp_path / name, None, engine="local", job="train")
        with patch("time.time", clock):
            run_study(study, InProcessGrid(app, [{"manifest": str(m)} for m in manifests]), run)
        events = [e for e in read_log(run)[0] if isinstance(e, Round)]
        assert [e.round for e in events] == [1, 2, 3]
        assert all(0 <= e.seconds < 3600 and not e.refused for e in events)
        found.append((run / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_a_run_of_a_centre_is_not_given_up_because_the_clock_jumps(tmp_path: Path) -> None:
    from fedml.experiments.runs import run as runs
    from fedml.runs.events import End

    study = make_study(federation__timeout=1)
    run = new_run(study, tmp_path, None, engine="deployment", job="train")
    real, looks = time.time, 0

    def ended(folder: Path) -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            emit(folder, End(status="finished", reason=""))
        return looks > 3

    with patch.object(runs, "_ended", ended), patch("time.time", lambda: real() + 1e6), patch.object(runs, "_POLL_SECONDS", 0.01):
        runs._wait_for_end(study, run, tmp_path, 1)
    assert looks == 4


def test_a_copied_run_is_read_on_another_machine(manifests: list[Path], tmp_path: Path) -> None:
    put_study(tmp_path, manifests, 2)
    assert command("fedml", "run", "study.toml", "--sites", "sites", "--no-track", cwd=tmp_path).returncode == 0
    (run,) = (tmp_path / "fedml-runs").iterdir()
    other = tmp_path / "other"
    shutil.copytree(run, other / "copied")
    shutil.rmtree(tmp_path / "fedml-runs")
    shutil.rmtree(tmp_path / "sites")
    for words in (("status", "copied"), ("report", "copied"), ("bundle", "copied", "-o", "run.zip"), ("verify", "run.zip")):
        done = command("fedml", *words, cwd=other, XDG_CONFIG_HOME=str(tmp_path / "config"))
        assert done.returncode == 0, (words, done.stderr)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (MemoryError(), "too little memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), "too little memory"),
        (RunError("round 2: 1 of 3 sites answered"), "round 2: 1 of 3 sites answered"),
        (InputError("x.toml: is empty"), "x.toml: is empty"),
        (ValueError("other"), "ValueError: other"),
    ],
)
def test_sentences(error: BaseException, says: str) -> None:
    assert says in sentence_of(error)


def test_an_error_whose_text_cannot_be_made_is_none_of_them() -> None:
    def told(self: object) -> str:
        raise RecursionError

    silent = type("Silent", (RuntimeError,), {"__str__": told})("oslo-017")
    assert reason_of(silent) is Reason.INTERNAL


def test_brackets_of_a_text_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last lines of a run that failed name a key, whose section is in brackets, and paths, which may have some."""
    run = tmp_path / "[a]"
    run.mkdir()
    (run / UNFINISHED).touch()
    outcome = Outcome(run, "failed", "why", NO_FINAL, [], 1.0)
    closing_line(Launched(make_study(), outcome, None), make_console(False))
    said = capsys.readouterr().out
    assert f"record: {run}" in said
    assert "names the file in [model] start goes on from them" in said
