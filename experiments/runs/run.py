"""One run of a study: check the input, make the run's folder, start an engine, follow its events.

folder = new_run(study, Path("fedml-runs"), None, engine="local", job="train")
outcome = run(study, sites, folder, On("local"), listeners=[...])
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from fedml.clients.site.manifest import Site
from fedml.clients.site.read import load_cohort
from fedml.cohort.persons import Cohort
from fedml.errors import InputError, RunError
from fedml.runs.events import NO_FINAL, End, Event, Final, Start
from fedml.runs.log import EVENTS, STUDY, emit, last, read_log, write_whole
from fedml.study.study import Study
from fedml.tracking import outbox
from fedml.tracking.store import versions

Engine = Literal["local", "simulation", "deployment"]
Job = Literal["train", "gwas", "preflight"]
Listener = Callable[[Sequence[Event]], None]
_TRACKING_SECONDS = 300  # for MLflow to take what is left once the run has ended
_TICK = 0.2  # seconds between two looks at a run's events


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and its folder. ``final`` is the event with the last metrics (it has not come if the run failed)."""

    run: Path
    status: str
    reason: str
    final: Final
    events: list[Event]
    seconds: float


def read_all(study: Study, sites: Mapping[str, Site], say: Callable[[str], None] = lambda _: None, job: Job = "train") -> dict[str, Cohort]:
    """Reads every site's data as the study will, before anything is started or written.

    Raises:
        InputError: the first thing that cannot be used, or nobody to test on.
    """
    from fedml.modalities.registry import check_inputs
    from fedml.strategies.algorithms.registry import make_strategy

    make_strategy(study)
    check_inputs(study)
    cohorts = {}
    for name, site in sites.items():
        cohort = cohorts[name] = load_cohort((str(site.file),), study)
        left = "".join(f", {count} left out ({why})" for why, count in cohort.left_out.items())
        left += "".join(f", {count} with an excluded image ({why})" for why, count in cohort.set_aside.items())
        say(f"{name}: {cohort.count('train')} train, {cohort.count('val')} val, {cohort.count('test')} test persons{left}")
    if job == "train" and not any(c.count("test") for c in cohorts.values()):
        raise InputError(
            f'study "{study.study.name}": no site has a person in the test part; raise test in [cohort] split, or correct the split files.'
        )
    return cohorts


class Tracking:
    """``fedml track --follow`` in a process of its own: MLflow, slow or down, cannot hold up a run, and works on another core. Final.

    It is started early, for MLflow's import takes seconds, and is told the run's folder once there is one.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "fedml.experiments.cli", "track", "-", "--follow"]
        self.run = Path()
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def begin(self, run: Path) -> None:
        """Tells which run to follow; should MLflow not take it, the run's folder says that it is owed."""
        self.run = run
        outbox.want(run)
        with suppress(BrokenPipeError):
            assert self.process.stdin is not None  # noqa: S101 - it is a pipe
            self.process.stdin.write(f"{run}\n")
            self.process.stdin.flush()

    def wait(self, say: Callable[[str], None]) -> str | None:
        """MLflow's run id once the record is complete; None, and a line on what to do, if MLflow did not take it."""
        try:
            told, trouble = self.process.communicate(timeout=_TRACKING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            told, trouble = "", f"it took longer than {_TRACKING_SECONDS} s"
        if self.process.returncode == 0 and told.strip():
            return told.split()[-1]
        why = (trouble.strip().splitlines() or ["no word from it"])[-1].removeprefix("error: ")
        say(f"MLflow did not take the record ({why}); later: fedml track --pending, or fedml track {self.run}")
        return None


def git_commit(folder: Path) -> str:
    """Commit of the working tree at ``folder``, ``+changes`` if it differs from it, or ``none``."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return head + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "none"


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def new_run(study: Study, runs: Path, study_file: Path | None, *, engine: str, job: str) -> Path:
    """A fresh run folder that holds the study."""
    name = f"{study.study.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    run = runs / name
    run.mkdir(parents=True)
    write_whole(run / STUDY, study.canonical.encode())
    if study_file is not None:
        shutil.copyfile(study_file, run / "study.toml")
    commit = git_commit(study_file.resolve().parent if study_file else Path.cwd())
    emit(run, Start(run_id=name, study=study.study.name, study_sha256=study.sha256, git_commit=commit,
                    seed=study.study.seed, versions=versions(), engine=engine, job=job))  # fmt: skip
    return run


def follow(run: Path, listeners: Sequence[Listener], stop: threading.Event) -> None:
    """Hands new events to every listener until ``stop`` is set and nothing is left. A listener that fails is told and dropped."""
    at, alive = 0, list(listeners)
    while True:
        ending = stop.is_set()
        events, at = read_log(run, at)
        for listener in list(alive):
            try:
                listener(events)
            except Exception as error:  # a record that cannot be shown or tracked must not stop the run
                alive.remove(listener)
                logging.getLogger("fedml").warning("%s stopped: %s", getattr(listener, "__name__", type(listener).__name__), error)
        if ending and not events:
            return
        stop.wait(_TICK)


def run_nodes(study: Study, nodes: Sequence[Mapping[str, str]], run: Path, job: Job = "train") -> None:
    """The local engine over nodes with the given configurations (``manifest``, and ``name`` for a pooled one)."""
    from flwr.app import Context, RecordDict

    from fedml.clients.work.client import app as client_app
    from fedml.flower.grid import InProcessGrid
    from fedml.strategies.server import app as server_app

    config: dict[str, bool | int | float | str] = {"study": study.canonical, "run": str(run.resolve()), "job": job}
    grid = InProcessGrid(client_app, [dict(n) for n in nodes], config)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)
    server_app(grid, context)


class On(NamedTuple):
    """What a study runs on.

    Args:
        sites_folder: of the simulation: the folder of the sites' folders.
        flower_home: of a deployment: Flower's folder; None: the user's own. connection: the name in its ``config.toml``.
    """

    engine: Engine = "local"
    sites_folder: Path = Path()
    flower_home: Path | None = None
    connection: str = "own"


def run(
    study: Study, sites: Mapping[str, Site], run: Path, on: On = On(), *, listeners: Sequence[Listener] = (), debug: bool = False,
    job: Job = "train",
) -> Outcome:  # fmt: skip
    """Runs ``study`` and returns how it ended; a failed run is an ``Outcome`` too, never an exception."""
    began, stop = time.monotonic(), threading.Event()
    follower = threading.Thread(target=follow, args=(run, listeners, stop), name="fedml-follow")
    follower.start()
    try:
        if on.engine == "local":
            run_nodes(study, [{"manifest": str(site.file.resolve())} for site in sites.values()], run, job)
        elif on.engine == "simulation":
            _simulate(study, on.sites_folder, run, debug, job)
        else:
            _deploy(study, run, on.flower_home, on.connection, job)
    except KeyboardInterrupt:
        emit(run, End(status="stopped", reason="stopped from the keyboard"))
    except Exception as error:
        with suppress(OSError):
            if not _ended(run):
                emit(run, End(status="failed", reason=str(error) or type(error).__name__))
        if debug:
            logging.getLogger("fedml").exception("the run failed")
    finally:
        stop.set()
        follower.join()
    return outcome(run, time.monotonic() - began)


def outcome(run: Path, seconds: float) -> Outcome:
    """Reads how a run ended from its folder."""
    events, _ = read_log(run)
    end = last(events, End(status="failed", reason="it left no last event"))
    return Outcome(run, end.status, end.reason, last(events, NO_FINAL), events, seconds)


def _ended(run: Path) -> bool:
    return any(isinstance(e, End) for e in read_log(run)[0])


def _deploy(study: Study, run: Path, home: Path | None, connection: str, job: Job) -> None:
    """Submits the study to a SuperLink and waits for its last event; no event for longer than a round may take ends the wait."""
    from fedml.flower.superlink import submit, write_app

    home = home or Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    app = run / "app"
    apps = {"server": "fedml.strategies.server:app", "client": "fedml.clients.work.client:app"}
    write_app(app, apps, {"study": study.canonical, "run": str(run.resolve()), "job": job})
    submit(home, app, connection=connection)
    shutil.rmtree(app)
    patience = study.federation.timeout * (len(study.federation.sites) + 1) + 120
    while not _ended(run):
        if time.time() - (run / EVENTS).stat().st_mtime > patience:
            raise RunError(f"nothing was heard of the run for {patience} s; look at the SuperLink's log.")
        time.sleep(_TICK)


def _simulate(study: Study, sites_folder: Path, run: Path, debug: bool, job: Job) -> None:
    from fedml.flower.simulation import run_simulation

    cpus = os.cpu_count() or 1
    if study.training.threads > cpus:
        raise RunError(f"[training] threads is {study.training.threads}, this machine has {cpus} CPUs; lower it.")
    run_simulation(
        {"server": "fedml.strategies.server:app", "client": "fedml.clients.work.client:app"},
        {"study": study.canonical, "run": str(run.resolve()), "sites": str(sites_folder.resolve()), "job": job},
        len(study.federation.sites),
        cpus_per_node=study.training.threads,
        finished=lambda: _ended(run),
        debug=debug,
    )
