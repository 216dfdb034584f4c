"""The runners: what a user would type in each framework, as a command with its environment variables."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fedml
from fedml.experiments.bench.peers import ours
from fedml.experiments.bench.peers.environments import DISTRIBUTION, complete, python_of
from fedml.experiments.bench.peers.work import Job

HERE = Path(__file__).resolve().parent
# One compute thread a process, for all: on two busy cores, two threads of OpenMP that wait for each other are slower than one.
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Of one run. ``prepared``: from ``prepare``; ``out``: an empty folder; ``environments``: the peers'; ``python``: the runner's."""

    job: Job
    prepared: Path
    out: Path
    environments: Path | None
    python: Path


@dataclass(frozen=True)
class Command:
    """Words, and environment variables beyond those of all runners."""

    words: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Runner:
    """``peer``: the environment that it needs, None: this one. ``daemons``: services of the framework stay when its command ends.
    ``jobs``: those that it does. ``ready``: why it cannot run here, or None."""

    name: str
    peer: str | None
    command: Callable[[Place], Command]
    ready: Callable[[], str | None] = lambda: None
    daemons: bool = False
    jobs: tuple[str, ...] = ("heart", "pneumonia", "empty10", "empty50", "many")


def _script(name: str) -> Callable[[Place], Command]:
    return lambda place: Command((str(place.python), str(HERE / name)), {})


@cache
def has_workers() -> bool:
    """Does this version of ``fedml run`` have ``--workers``?"""
    words = [str(Path(sys.executable).with_name("fedml")), "run", "--help"]
    return "--workers" in subprocess.run(words, capture_output=True, text=True, check=True).stdout


def _ours(workers: int) -> Callable[[Place], Command]:
    def command(place: Place) -> Command:
        study = place.out / "study.toml"
        study.write_text(ours.study(place.job))
        words = (str(Path(sys.executable).with_name("fedml")), "run", str(study), "--sites", str(place.prepared / "sites"), "--json")
        more = ("--workers", str(workers)) if has_workers() else ()
        return Command((*words, *more), {"MLFLOW_TRACKING_URI": f"sqlite:///{place.out}/mlflow.db", "FEDML_DEBUG": ""})

    return command


def _two_workers() -> str | None:
    return None if has_workers() else "fedml run has no --workers"


def _free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


# What is in the app's folder is what Flower packs and installs; torch among its dependencies would be resolved at every run.
_APP = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "peerapp"
version = "0.1.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["peerapp"]

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "peerapp.server:app"
clientapp = "peerapp.client:app"
"""


def _flower(place: Place) -> Command:
    """``flwr run`` at a SuperLink of its own, sites as Ray actors with one CPU each (Flower's default of two would train one at a time)."""
    app, home = place.out / "app", place.out / "flwr"
    home.mkdir()
    (app / "peerapp").mkdir(parents=True)
    (app / "pyproject.toml").write_text(_APP)
    (app / "peerapp" / "__init__.py").touch()
    for name in ("server", "client"):
        text = f"from fedml.experiments.bench.peers.flower_app import {name}\n\napp = {name}\n"
        (app / "peerapp" / f"{name}.py").write_text(text)
    (home / "config.toml").write_text('[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = ":local:"\n')
    federation = f"num-supernodes={len(place.job.sites)} client-resources-num-cpus=1"
    flwr = str(place.python.with_name("flwr"))
    # A SuperLink that another run has left at the default ports would answer in place of this one's.
    ports = {name: _free_port() for name in ("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT")}
    return Command((flwr, "run", str(app), "local", "--stream", "--federation-config", federation), {"FLWR_HOME": str(home), **ports})


SMALL = ("heart", "pneumonia", "empty10", "empty50")  # a process for each of 1,000 sites is too much for a machine of this size
RUNNERS = {
    runner.name: runner
    for runner in (
        Runner("bare", None, _script("bare.py")),
        Runner("ours", None, _ours(1)),
        Runner("ours2", None, _ours(2), ready=_two_workers),
        Runner("pfl", "pfl", _script("pfl_sim.py")),
        Runner("flower", "flower", _flower, daemons=True, jobs=SMALL),
        Runner("nvflare", "nvflare", _script("nvflare_sim.py"), jobs=SMALL),
    )
}


def python(runner: Runner, environments: Path | None) -> Path:
    """The interpreter that runs it: its environment's, or this one for Flower without one, because the project needs the same Flower."""
    if runner.peer and environments and complete(environments, runner.peer):
        return python_of(environments, runner.peer)
    return Path(sys.executable)


def why_not(runner: Runner, job: Job, environments: Path | None) -> str | None:
    """Why a runner cannot do a job here; None if it can."""
    if job.name not in runner.jobs:
        return "a process a site, or an actor, is not made for so many sites on one machine"
    if runner.peer in (None, "flower") or (environments and complete(environments, str(runner.peer))):
        return runner.ready()
    make = f"python -m fedml.experiments.bench.peers.environments DIR --only {runner.peer}"
    return f"{DISTRIBUTION[str(runner.peer)]} is not installed in {environments or 'an environment'}; make it by `{make}`"


def environment(place: Place, command: Command) -> dict[str, str]:
    """All variables of the measured process. The peers find this package, and nothing else of this environment, in a folder with a link."""
    code = place.out / "code"
    code.mkdir()
    (code / "fedml").symlink_to(Path(fedml.__file__).resolve().parent)
    own = {
        "PATH": f"{place.python.parent}{os.pathsep}{os.environ['PATH']}",  # console scripts of an environment call each other by name
        "TMPDIR": str(place.out), "PEERS_OUT": str(place.out), "PEERS_JOB": place.job.name, "PEERS_ROUNDS": str(place.job.rounds),
        "PEERS_ARRAYS": str(place.prepared / "arrays.npz"),
    }  # fmt: skip
    if place.python != Path(sys.executable):
        own["PYTHONPATH"] = str(code)
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, **THREADS, **QUIET, **own, **command.environment}


def clean(place: Place) -> None:
    """Deletes what a run has written."""
    shutil.rmtree(place.out, ignore_errors=True)
