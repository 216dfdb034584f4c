"""Each process of a federation killed alone (SIGKILL), idle and in the midst of runs: everything comes back, nothing is left behind.

The processes that were started by hand, a site's and the centre's, are started again once, as a service manager does; their children come
back by themselves. ``FEDML_KILLS``: how often each is killed (default 10; 100 take about two hours).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fedml.clients.gate.journal import verify
from fedml.clients.service import running
from fedml.clients.site.manifest import read_site
from fedml.errors import RunError
from fedml.experiments.federation.centre import registered
from fedml.experiments.federation.local import read_running, start_site
from fedml.flower.parent import descendants
from fedml.flower.superlink import command_path, stop_group
from tests.command import command
from tests.experiments.federation.test_federation import SITES, STUDY, make_site, rounds_of, start_superlink_again

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("FEDML_KILLS", "10"))
BACK_SECONDS = 60
LONG = STUDY.replace('"trial"', '"long"').replace("rounds = 2", "rounds = 20").replace("quorum = 2", "quorum = 1")
SAID = (
    "the quorum is",
    "the server app was ended without a result",
    "the SuperLink gave up the run",
    "flwr run failed",
    "no site answered",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a federation that is up, and two studies that all approved."""
    folder = tmp_path_factory.mktemp("kills")
    for number, name in enumerate(SITES):
        make_site(folder / "sites" / name, name, number)
        manifest = folder / "sites" / name / "site.toml"
        manifest.write_text(manifest.read_text().replace("max_evaluations = 20\n", "max_evaluations = 100000\nmax_runs = 100000\n"))
    (folder / "tiny.toml").write_text(STUDY)
    (folder / "long.toml").write_text(LONG)
    done = command("fedml", "federation", "up", "--sites", "sites", cwd=folder)
    try:
        assert done.returncode == 0, done.stderr
        for name in SITES:
            for study in ("tiny.toml", "long.toml"):
                approved = command("fedml-site", "approve", study, "--site", f"sites/{name}", "--yes", "--by", "Dr. Test", cwd=folder)
                assert approved.returncode == 0, approved.stderr
        yield folder
        assert all_take_part(folder)
        for name in SITES:
            assert verify(folder / "sites" / name / ".fedml" / "journal.jsonl") == []
    finally:
        for name in SITES:
            if process := running(folder / "sites" / name / ".fedml"):
                stop_group(process, 10)
        command("fedml", "federation", "down", "--sites", "sites", cwd=folder)
    wait(lambda: not processes(str(folder)), "no process is left behind")


def processes(*parts: str) -> list[int]:
    """Ids of the processes whose command line has all parts."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (place / "cmdline").read_bytes().decode(errors="replace")
            if all(part in line for part in parts) and (place / "stat").read_text().rpartition(") ")[2][0] != "Z":
                found.append(int(place.name))
    return found


def wait(what: Callable[[], object], why: str, seconds: float = BACK_SECONDS) -> None:
    """Until ``what`` is true; fails with ``why`` after ``seconds``."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"after {seconds} s: {why}"
        time.sleep(0.1)


def start(work: Path, study: str, runs: str) -> subprocess.Popen[str]:
    """``fedml run`` on the real sites."""
    words = ["run", study, "--engine", "deployment", "--superlink", "sites", "--no-track", "--json", "--runs", runs]
    return subprocess.Popen([command_path("fedml"), *words], cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def all_take_part(work: Path) -> bool:
    """Whether a run with every site succeeds; a site may be turned away for half a minute."""
    for _ in range(4):
        out, _ = start(work, "tiny.toml", "checks").communicate(timeout=300)
        told = json.loads(out.strip().splitlines()[-1]) if out.strip() else {}
        if told.get("status") == "finished" and all(site["rounds"] == 2 for site in told["sites"].values()):
            return True
    return False


@contextmanager
def traffic(work: Path, on: bool) -> Iterator[None]:
    """Runs, one after the other. Each ends well, or with a sentence."""
    stop, bad = threading.Event(), list[str]()

    def go() -> None:
        while not stop.is_set():
            run = start(work, "long.toml", "traffic")
            out, errors = run.communicate(timeout=400)
            if run.returncode != 0 and (run.returncode != 1 or not any(said in errors for said in SAID) or "Traceback" in errors):
                bad.append(f"{run.returncode}: {errors} {out}")

    thread = threading.Thread(target=go)
    if on:
        thread.start()
        time.sleep(8)
    try:
        yield
    finally:
        stop.set()
        if on:
            thread.join()
    assert not bad, bad


def joined(work: Path, name: str) -> int:
    """How often this site's SuperNodes were let in."""
    return (work / "sites" / name / ".fedml" / "supernode.log").read_text(errors="replace").count("SuperNode ID:")


def halves() -> list[tuple[bool, list[str]]]:
    """``KILLS`` names of sites, in turn, and whether runs are in progress: in the second half."""
    names = [SITES[n % len(SITES)] for n in range(KILLS)]
    return [(False, names[: KILLS // 2]), (True, names[KILLS // 2 :])]


def test_a_site(work: Path) -> None:
    for busy, names in halves():
        with traffic(work, busy):
            for name in names:
                site, before = read_site(work / "sites" / name), joined(work, name)
                process = running(site.state)
                assert process
                os.kill(process, signal.SIGKILL)
                wait(lambda name=name: not processes("fedml.flower.supernode", f"{work}/sites/{name}/"), f"{name}: an orphan SuperNode")
                start_site(site)
                wait(lambda name=name, before=before: joined(work, name) > before, f"{name} is not back")
    assert all_take_part(work)


def test_a_supernode(work: Path) -> None:
    for busy, names in halves():
        with traffic(work, busy):
            mains = {name: running(work / "sites" / name / ".fedml") for name in SITES}
            for at in range(0, len(names), len(SITES)):
                group = names[at : at + len(SITES)]
                before = {name: joined(work, name) for name in group}
                for name in group:
                    (process,) = processes("fedml.flower.supernode", f"{work}/sites/{name}/")
                    os.kill(process, signal.SIGKILL)
                for name in group:
                    wait(lambda name=name, before=before: joined(work, name) > before[name], f"{name}'s SuperNode is not back", 90)
            assert mains == {name: running(work / "sites" / name / ".fedml") for name in SITES}, "the site's own process stays"
    assert all_take_part(work)


def answers(home: Path) -> bool:
    """Whether the SuperLink lists its nodes."""
    try:
        return len(registered(home)) == len(SITES)
    except RunError:
        return False


def test_the_superlink(work: Path) -> None:
    home = work / "sites" / ".federation"
    for number in range(KILLS):
        busy = number % 5 == 0
        with traffic(work, busy):
            before = read_running(work / "sites")
            assert before
            os.kill(before.superlink, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(before.superlink, 0)
            wait(lambda: not processes("flower-superexec", str(home)), "an orphan SuperExec")
            wait(lambda: not processes("flwr-serverapp", str(home)), "an orphan server app")
            start_superlink_again(work / "sites", before)
            wait(lambda: answers(home), "the SuperLink is not back")
        if busy:
            assert all_take_part(work), "the next run works"
    assert all_take_part(work)


def test_the_superlinks_executor(work: Path) -> None:
    home = work / "sites" / ".federation"
    for number in range(KILLS):
        busy = number % 5 == 0
        with traffic(work, busy):
            (process,) = processes("flower-superexec", str(home))
            os.kill(process, signal.SIGKILL)
            wait(lambda process=process: processes("flower-superexec", str(home)) not in ([], [process]), "SuperExec is not back")
        if busy:
            assert all_take_part(work), "the next run works"
    assert all_take_part(work)


def test_a_server_app(work: Path) -> None:
    home, early = work / "sites" / ".federation", KILLS // 10
    for number in range(KILLS):
        runs = f"killed-{number}"
        wait(lambda: not processes("flwr-serverapp", str(home)), "the server app of an earlier run is still there")
        run = start(work, "long.toml" if number >= early else "tiny.toml", runs)
        wait(lambda: processes("flwr-serverapp", str(home)), "no server app")
        if number >= early:
            wait(lambda runs=runs: rounds_of(work / runs), "no round", 180)
        for process in processes("flwr-serverapp", str(home)):
            os.kill(process, signal.SIGKILL)
        out, errors = run.communicate(timeout=200)
        told = json.loads(out.strip().splitlines()[-1])
        # One that was killed before it had taken the run is replaced by Flower; of a later one Flower learns after a minute.
        if number < early and not run.returncode:
            assert told["status"] == "finished", errors
        else:
            assert (run.returncode, told["status"]) == (1, "failed"), errors
            assert any(said in errors for said in SAID[1:3]), errors
        wait(lambda: not processes("flwr-serverapp", str(home)), "an orphan server app")
    assert all_take_part(work), "the next run works"


def test_the_tracker(tmp_path: Path) -> None:
    """MLflow's delivery killed at any time: the run finishes and says what is not delivered, and it is delivered later."""
    make_site(tmp_path / "sites" / "oslo", "oslo", 1)
    text = STUDY.replace('["oslo", "porto", "utrecht"]', '["oslo"]').replace("quorum = 2", "quorum = 1")
    (tmp_path / "one.toml").write_text(text.replace("rounds = 2", "rounds = 100"))
    chance, told = random.Random(1), []
    for _ in range(KILLS):
        words = ["run", "one.toml", "--sites", "sites", "--json"]
        run = subprocess.Popen([command_path("fedml"), *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        parts = ("fedml", "run")  # a copy of the command
        wait(lambda run=run, parts=parts: children(run.pid, *parts) or run.poll() is not None, "no tracker")
        time.sleep(chance.random() * 6)
        for process in children(run.pid, *parts):
            os.kill(process, signal.SIGKILL)
        out, errors = run.communicate(timeout=200)
        told.append((run.returncode, json.loads(out.strip().splitlines()[-1]), errors))
    undelivered = [row for row in told if row[1]["mlflow_run_id"] is None]
    assert len(undelivered) > KILLS // 4
    for code, summary, errors in told:
        assert summary["status"] == "finished", errors
        assert code == (3 if summary["mlflow_run_id"] is None else 0)
    for _, _, errors in undelivered:
        assert "fedml track --pending" in errors.strip().splitlines()[-1], errors
    done = command("fedml", "track", "--pending", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == len(undelivered)
    assert "all runs are delivered" in command("fedml", "track", "--pending", cwd=tmp_path).stdout


def children(parent: int, *parts: str) -> list[int]:
    """The processes that ``parent`` started and whose command line has all parts."""
    found = []
    for process in processes(*parts):
        with suppress(OSError):
            if int((Path("/proc") / str(process) / "stat").read_text().rpartition(") ")[2].split()[1]) == parent:
                found.append(process)
    return found


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("late", [False, True])
def test_a_killed_simulation_leaves_no_process(tmp_path: Path, sign: signal.Signals, late: bool) -> None:
    for number, name in enumerate(SITES):
        make_site(tmp_path / "sites" / name, name, number)
    (tmp_path / "long.toml").write_text(LONG)
    words = ["run", "long.toml", "--sites", "sites", "--engine", "simulation", "--no-track", "--runs", "runs"]
    run = subprocess.Popen([command_path("fedml"), *words], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait(lambda: children(run.pid, "fedml.flower.owned"), "no SuperLink")
    (superlink,) = children(run.pid, "fedml.flower.owned")
    if late:
        wait(lambda: rounds_of(tmp_path / "runs"), "no round", 180)
    (home,) = (word.removesuffix("/state.db") for word in Path(f"/proc/{superlink}/cmdline").read_text().split("\0") if "/state.db" in word)
    started = [superlink, *(process for process, _ in descendants(superlink))]
    assert not late or any("ray" in Path(f"/proc/{process}/cmdline").read_text() for process in started)
    os.kill(run.pid, sign)
    run.wait(60)
    wait(lambda: not any(map(lives, started)) and not processes(home), "an orphan")


def lives(process: int) -> bool:
    """Whether it has not ended."""
    with suppress(OSError):
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(") ")[2][0] != "Z"
    return False
