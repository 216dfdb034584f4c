"""A real federation of which a site freezes: the round ends without it, it is removed by a command, or it comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedml.clients.service import running
from fedml.flower.parent import descendants
from fedml.flower.superlink import command_path, stop_group
from fedml.runs.events import Agreed, Final, Round
from fedml.runs.live import read_live
from fedml.runs.log import read_log
from tests.command import command
from tests.experiments.federation.test_federation import SITES, STUDY, make_site

pytestmark = pytest.mark.long

# Rounds of about a second; a site that takes 2 s is late, below a timeout of minutes.
LATE = STUDY.replace('"trial"', '"late"').replace("lr = 0.05", "lr = 0.001\nlocal_epochs = 300\nbatch_size = 10")
LATE = LATE.replace("rounds = 2", "rounds = 12").replace("timeout = 40", "timeout = 240\nlate = 1.5\nlate_seconds = 4")
DROP = LATE.replace('"late"', '"drop"').replace("late = 1.5\nlate_seconds = 4", "")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("lost")
    for number, name in enumerate(SITES):
        make_site(folder / "sites" / name, name, number)
    (folder / "late.toml").write_text(LATE)
    (folder / "drop.toml").write_text(DROP)
    done = command("fedml", "federation", "up", "--sites", "sites", cwd=folder)
    try:
        assert done.returncode == 0, done.stderr
        for name in SITES:
            for study in ("late.toml", "drop.toml"):
                told = command("fedml-site", "approve", study, "--site", f"sites/{name}", "--yes", "--by", "Dr. Test", cwd=folder)
                assert told.returncode == 0, told.stderr
        yield folder
    finally:
        for name in SITES:
            if process := running(folder / "sites" / name / ".fedml"):
                with frozen(folder, name):  # continues it, if a test that failed left it stopped
                    pass
                stop_group(process, 10)
        command("fedml", "federation", "down", "--sites", "sites", cwd=folder)


@contextmanager
def frozen(work: Path, name: str) -> Iterator[None]:
    """The site's process is stopped (SIGSTOP): it neither answers nor ends. Its SuperNode goes on, as that of a machine that swaps does."""
    process = running(work / "sites" / name / ".fedml")
    assert process is not None
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@contextmanager
def started(work: Path, study: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """``fedml run``, and the folder of its run, in its first rounds."""
    words = ["run", study, "--engine", "deployment", "--superlink", "sites", "--no-track", "--runs", study.replace(".toml", "")]
    process = subprocess.Popen([command_path("fedml"), *words], cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 120
        while not (found := list((work / study.replace(".toml", "")).glob("*"))) or len(rounds_of(found[0])) < 3:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.1)
        yield process, found[0]
    finally:
        for child, _ in descendants(process.pid):
            os.kill(child, signal.SIGTERM)
        process.kill()
        process.wait()


def rounds_of(run: Path) -> list[Round]:
    return [e for e in read_log(run)[0] if isinstance(e, Round)]


def test_a_frozen_site_is_late_and_comes_back(work: Path) -> None:
    with started(work, "late.toml") as (process, run):
        with frozen(work, "porto"):
            at = len(rounds_of(run))
            until = time.monotonic() + 100
            while len(rounds_of(run)) < at + 3:
                assert time.monotonic() < until, "the rounds go on without the frozen site"
                time.sleep(0.1)
        out, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
        rounds = rounds_of(run)
        refused = [e.refused.get("porto") for e in rounds]
        assert len(rounds) == 12
        assert refused.count("late") >= 2
        assert set(refused) <= {None, "late"}
        assert {frozenset(e.sites) for e in rounds} == {frozenset(SITES), frozenset(SITES) - {"porto"}}
        (final,) = (e for e in read_log(run)[0] if isinstance(e, Final))
        assert set(final.sites) == set(SITES), "it is back at the last evaluation, which has the whole timeout"
        assert any(isinstance(e, Agreed) for e in read_log(run)[0])
        assert out is not None


def test_a_lost_site_is_removed_by_a_command(work: Path) -> None:
    with started(work, "drop.toml") as (process, run), frozen(work, "oslo"):
        until = time.monotonic() + 60
        waits = {name: "asked" if name == "oslo" else "replied" for name in SITES}
        while (live := read_live(run)) is None or {n: s.state for n, s in live.sites.items()} != waits:
            assert time.monotonic() < until, "the others reply, and the round waits for the frozen site"
            time.sleep(0.1)
        shown = command("fedml", "status", run, cwd=work)
        assert (shown.returncode, "oslo     training" in shown.stdout, shown.stdout.count("replied")) == (0, True, 2), shown.stdout
        at = len(rounds_of(run))
        time.sleep(3)
        assert len(rounds_of(run)) == at
        assert command("fedml", "drop", run, "oslo", cwd=work).returncode == 0
        out, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        assert [e.refused.get("oslo") for e in rounds_of(run)[at:]] == ["removed"] * (12 - at)
        (final,) = (e for e in read_log(run)[0] if isinstance(e, Final))
        assert final.refused == {"oslo": "removed"}
        after = command("fedml", "status", run, cwd=work)
        assert "oslo     removed by the coordinator" in after.stdout
        assert out is not None
