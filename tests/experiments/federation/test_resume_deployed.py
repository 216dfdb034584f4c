"""The server process, and a site, of a real federation killed in mid-run, which then goes on: with the bits of an undisturbed run, and
for the sites as the same run. ``FEDML_KILLS``: how often each is killed (default 10; a site takes a minute to be let in again)."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedml.clients.gate.journal import entries, verify
from fedml.clients.service import running
from fedml.clients.site.manifest import read_site
from fedml.experiments.federation.local import start_site
from fedml.flower.superlink import stop_group
from fedml.runs.events import Resumed, Round
from fedml.runs.log import read_log
from tests.command import command
from tests.experiments.federation.test_federation import SITES, STUDY, make_site, rounds_of
from tests.experiments.federation.test_kills import joined, processes, start, wait

pytestmark = [pytest.mark.long, pytest.mark.federation]

KILLS = int(os.environ.get("FEDML_KILLS", "10"))
ROUNDS = 10
PLAN = STUDY.replace("lr = 0.05", 'optimizer = "sgd"\nlr = 0.05').replace("rounds = 2", f"rounds = {ROUNDS}")
PLAN = PLAN.replace("quorum = 2", "quorum = 3").replace("timeout = 40", "timeout = 20") + '[strategy]\nname = "scaffold"\n'


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A federation that is up. Sites answer as many runs of the study as begin here, and no more."""
    folder = tmp_path_factory.mktemp("resumed")
    for number, name in enumerate(SITES):
        make_site(folder / "sites" / name, name, number)
        manifest = folder / "sites" / name / "site.toml"
        manifest.write_text(manifest.read_text().replace("max_evaluations = 20\n", f"max_evaluations = 1\nmax_runs = {2 * KILLS + 1}\n"))
    (folder / "trial.toml").write_text(PLAN)
    done = command("fedml", "federation", "up", "--sites", "sites", cwd=folder)
    try:
        assert done.returncode == 0, done.stderr
        for name in SITES:
            approved = command("fedml-site", "approve", "trial.toml", "--site", f"sites/{name}", "--yes", "--by", "Dr. Test", cwd=folder)
            assert approved.returncode == 0, approved.stderr
        yield folder
    finally:
        for name in SITES:
            if process := running(folder / "sites" / name / ".fedml"):
                stop_group(process, 10)
        command("fedml", "federation", "down", "--sites", "sites", cwd=folder)


@pytest.fixture(scope="module")
def straight(work: Path) -> dict[str, Any]:
    """A run that nothing disturbed."""
    out, errors = start(work, "trial.toml", "straight").communicate(timeout=200)
    told: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    assert told["status"] == "finished", errors
    return told


def go_on(work: Path, run: Path, tries: int = 1) -> dict[str, Any]:
    """The run's summary after it went on; a site that was killed may be turned away for a minute."""
    words = ("--engine", "deployment", "--superlink", "sites", "--no-track", "--json", "--resume", str(run))
    for _ in range(tries):
        done = command("fedml", "run", "trial.toml", *words, cwd=work)
        told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1]) if done.stdout.strip() else {"status": done.stderr}
        if told["status"] == "finished":
            break
    return told


def check(work: Path, run: Path, told: dict[str, Any], straight: dict[str, Any], begun: int) -> None:
    """The bits of an undisturbed run, each round once, journals that are whole and know of no other run."""
    assert told["status"] == "finished", told
    assert told["weights_sha256"] == straight["weights_sha256"]
    events = read_log(run, strict=True)[0]
    assert [event.round for event in events if isinstance(event, Round)] == list(range(1, ROUNDS + 1))
    assert any(isinstance(event, Resumed) for event in events)
    for name in SITES:
        path = work / "sites" / name / ".fedml" / "journal.jsonl"
        assert verify(path) == []
        assert len({entry.run for entry in entries(path) if entry.verdict == "accepted"}) == begun


def test_a_killed_server_process(work: Path, straight: dict[str, Any]) -> None:
    home, chance, where = work / "sites" / ".federation", random.Random(5), list[int]()
    for number in range(KILLS):
        runs = f"server-{number}"
        wait(lambda: not processes("flwr-serverapp", str(home)), "the server app of an earlier run is still there")
        run, done = start(work, "trial.toml", runs), chance.randrange(ROUNDS - 2)  # rounds before the kill
        wait(lambda runs=runs, done=done: len(rounds_of(work / runs)) > done, "no round", 180)
        time.sleep(chance.random() * 0.3)
        for process in processes("flwr-serverapp", str(home)):
            os.kill(process, signal.SIGKILL)
        run.communicate(timeout=200)
        (folder,) = (work / runs).iterdir()
        told = {"status": "finished"} if run.returncode == 0 else go_on(work, folder)
        if run.returncode:
            where.append(next(event.round for event in read_log(folder)[0] if isinstance(event, Resumed)))
            check(work, folder, told, straight, number + 2)
    print(f"{KILLS} kills of the server process: the run went on after rounds {sorted(where)}")
    assert len(where) > KILLS // 2
    bundled = command("fedml", "bundle", str(folder), "-o", "run.zip", cwd=work, XDG_CONFIG_HOME=str(work / "config"))
    assert bundled.returncode == 0, bundled.stderr
    keys = [word for name in SITES for word in ("--site-key", f"{name}=sites/{name}/node.key.pub")]
    checked = command("fedml", "verify", "run.zip", *keys, cwd=work)
    assert checked.returncode == 0, checked.stdout


def test_a_killed_site(work: Path, straight: dict[str, Any]) -> None:
    """The quorum is all sites, so the run fails; the site comes back with what it kept, and the run goes on."""
    chance, again = random.Random(6), 0
    for number in range(KILLS):
        runs, name = f"site-{number}", SITES[number % len(SITES)]
        run = start(work, "trial.toml", runs)
        wait(lambda runs=runs: rounds_of(work / runs), "no round", 180)
        time.sleep(chance.random())
        site, before = read_site(work / "sites" / name), joined(work, name)
        process = running(site.state)
        assert process
        os.kill(process, signal.SIGKILL)
        wait(lambda name=name: not processes("fedml.flower.supernode", f"{work}/sites/{name}/"), f"{name}: an orphan SuperNode")
        start_site(site)
        out, errors = run.communicate(timeout=300)
        (folder,) = (work / runs).iterdir()
        wait(lambda name=name, before=before: joined(work, name) > before, f"{name} is not back", 120)
        if run.returncode:
            assert "the quorum is" in errors, errors
            check(work, folder, go_on(work, folder, 3), straight, len(list(work.glob("server-*"))) + number + 2)
            again += 1
        else:
            assert json.loads(out.strip().splitlines()[-1])["weights_sha256"] == straight["weights_sha256"]
    print(f"{KILLS} kills of a site: {again} runs failed and went on")
