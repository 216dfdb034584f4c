"""Each fault at a site has one outcome (docs/run-a-federation.md), the same on each engine: its code in the round, the sum of the others.

The weights are those of the local engine with the same fault, to the bit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from fedml.clients.gate.local import app as local_app
from fedml.clients.work import client
from fedml.experiments.federation.local import all_sites
from fedml.experiments.runs.run import On, new_run, run
from fedml.flower import simulation
from fedml.flower.grid import InProcessGrid
from fedml.flower.superlink import command_path, stop_group
from fedml.runs.events import NO_FINAL, Final, Round
from fedml.runs.log import last, read_log
from fedml.strategies.rounds import run_study
from fedml.study.read import read_study
from tests import faults
from tests.command import ROOT, command
from tests.experiments.federation.test_federation import STUDY, make_site
from tests.faults import AT_A_SITE, FILE, SITE
from tests.federated import centre_up, join_centre, service_up, wait_for
from tests.tracked import end, free_port, mlflow_server

pytestmark = [pytest.mark.long, pytest.mark.federation]

SITES = ("a", "b", "c", "d")
SGD, SLOW = 'optimizer = "sgd"\nlr = 0.05', "local_epochs = 100\nbatch_size = 10"
PLAN = (
    STUDY.replace('["oslo", "porto", "utrecht"]', json.dumps(SITES)).replace("rounds = 2", "rounds = 3").replace("quorum = 2", "quorum = 3")
)
PLAN = PLAN.replace("lr = 0.05", SGD)


@contextmanager
def faulty_service(site: Path, fault: Path) -> Iterator[None]:
    """``fedml-site start`` at whose work the faults of ``tests.faults`` strike."""
    environment = {**os.environ, FILE: str(fault), "PYTHONPATH": str(ROOT)}
    with (site / "start.out").open("ab") as out:
        words = [sys.executable, "-m", "tests.faults", str(site)]
        process = subprocess.Popen(words, env=environment, stdout=out, stderr=out, start_new_session=True)
    log = site / ".fedml" / "supernode.log"
    try:
        wait_for(lambda: log.exists() and "SuperNode ID:" in log.read_text(), lambda: (site / "start.out").read_text())
        yield
    finally:
        stop_group(process.pid, 30)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A centre that is up (``home``), four sites that approved ``trial.toml``, and the file of the fault."""
    folder = tmp_path_factory.mktemp("matrix")
    (folder / "trial.toml").write_text(PLAN)
    longer = PLAN.replace('"trial"', '"long"').replace("rounds = 3", "rounds = 20")
    (folder / "long.toml").write_text(longer.replace(SGD, f"{SGD}\n{SLOW}"))
    (folder / "fault").write_text("")
    with ExitStack() as stack:
        home = stack.enter_context(centre_up(folder / "home", "127.0.0.1", "127.0.0.1"))
        for number, name in enumerate(SITES):
            site = folder / "sites" / name
            make_site(site, name, number)
            manifest = site / "site.toml"
            manifest.write_text(manifest.read_text().replace("max_evaluations = 20\n", "max_evaluations = 1000\nmax_runs = 1000\n"))
            join_centre(site, home, "127.0.0.1", name=name)
            for study in ("trial.toml", "long.toml"):
                told = command("fedml-site", "approve", study, "--site", f"sites/{name}", "--yes", "--by", "Dr. Test", cwd=folder)
                assert told.returncode == 0, told.stderr
            stack.enter_context(faulty_service(site, folder / "fault") if name == SITE else service_up(site))
        yield folder


def deployed(work: Path, runs: Path) -> Path:
    words = ("--engine", "deployment", "--superlink", "home", "--no-track", "--json", "--runs", str(runs))
    return done(work, words, runs)


def simulated(work: Path, runs: Path) -> Path:
    study, begin = read_study(work / "trial.toml"), simulation.write_app
    made = new_run(study, runs, None, engine="simulation", job="train")
    with patch.object(simulation, "write_app", lambda app, apps, config: begin(app, {**apps, "client": "tests.faulty_app:app"}, config)):
        outcome = run(study, all_sites(work / "sites"), made, On("simulation", work / "sites"))
    assert outcome.status == "finished", outcome.reason
    return made


def in_process(work: Path, runs: Path) -> Path:
    study = read_study(work / "trial.toml")
    made = new_run(study, runs, None, engine="local", job="train")
    with patch.object(client, "execute", faults.execute):
        run_study(study, InProcessGrid(local_app, [{"manifest": str(work / "sites" / name / "site.toml")} for name in SITES]), made)
    return made


ENGINES = {"local": in_process, "simulation": simulated, "deployment": deployed}


def done(work: Path, words: tuple[str, ...], runs: Path) -> Path:
    """The folder of a run that finished."""
    ended = command("fedml", "run", "trial.toml", *words, cwd=work)
    assert ended.returncode == 0, ended.stderr
    (run,) = runs.iterdir()
    return run


def rounds_of(run: Path) -> list[Round]:
    return [e for e in read_log(run)[0] if isinstance(e, Round)]


def weights_of(run: Path) -> str:
    final = last(read_log(run)[0], NO_FINAL)
    assert isinstance(final, Final)
    return final.weights_sha256


@pytest.mark.parametrize("fault", AT_A_SITE)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_fault_at_a_site(engine: str, fault: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FILE, str(work / "fault"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (work / "fault").write_text(fault)
    try:
        run = ENGINES[engine](work, tmp_path / "runs")
        known = in_process(work, tmp_path / "known")
    finally:
        (work / "fault").write_text("")
    assert [e.refused for e in rounds_of(run)] == [{}, {SITE: AT_A_SITE[fault].code}, {}]
    assert weights_of(run) == weights_of(known)
    assert "oslo-017" not in (run / "events.jsonl").read_text(), "the text of an exception stays at the site"


ASKED = {
    "local": ("--sites", "sites"),
    "simulation": ("--sites", "sites", "--engine", "simulation"),
    "deployment": ("--engine", "deployment", "--superlink", "home"),
}


@pytest.mark.parametrize("engine", ASKED)
def test_mlflow_goes_down_in_mid_run(engine: str, work: Path, tmp_path: Path) -> None:
    port, runs = free_port(), tmp_path / "runs"
    around = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    words = [command_path("fedml"), "run", "long.toml", *ASKED[engine], "--json", "--runs", str(runs)]
    with mlflow_server(tmp_path, port) as server:
        run = subprocess.Popen(words, cwd=work, env={**os.environ, **around}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: run.poll() is not None or any(rounds_of(folder) for folder in runs.glob("*")), lambda: "no round")
        assert run.poll() is None
        end(server, signal.SIGKILL)
        out, errors = run.communicate(timeout=400)
    told = json.loads(out.strip().splitlines()[-1])
    assert (run.returncode, told["status"], told["mlflow_run_id"]) == (3, "finished", None), errors
    assert "fedml track --pending" in errors
    assert "Traceback" not in errors
    (folder,) = runs.iterdir()
    assert [e.round for e in rounds_of(folder)] == list(range(1, 21))
    with mlflow_server(tmp_path, port):
        pending = command("fedml", "track", str(folder), cwd=work, MLFLOW_TRACKING_URI=around["MLFLOW_TRACKING_URI"])
    assert pending.returncode == 0, pending.stderr


def test_a_simulation_that_ends_before_its_run_is_no_wait(work: Path, tmp_path: Path) -> None:
    """Flower ends a simulation whose client app is none, and does not say so."""
    study, begin = read_study(work / "trial.toml"), simulation.write_app
    made = new_run(study, tmp_path / "runs", None, engine="simulation", job="train")
    with patch.object(simulation, "write_app", lambda app, apps, config: begin(app, {**apps, "client": "tests.faults:execute"}, config)):
        outcome = run(study, all_sites(work / "sites"), made, On("simulation", work / "sites"))
    assert outcome.status == "failed"
    assert "ended before the run" in outcome.reason
