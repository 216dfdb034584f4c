"""One run of a study: check the input, make the run's folder, start an engine, follow its events.

folder = new_run(study, Path("fedml-runs"), None, engine="local", job="train")
outcome = run(study, sites, folder, On("local"), listeners=[...])
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from fedml.clients.site.manifest import Site
from fedml.clients.site.read import load_cohort
from fedml.cohort.images.images import Images
from fedml.cohort.persons import Cohort
from fedml.errors import InputError, RunError, sentence_of
from fedml.runs.events import NO_FINAL, End, Event, Final, Start
from fedml.runs.log import EVENTS, STUDY, emit, last, read_log, write_whole
from fedml.runs.software import git_commit, software
from fedml.study.annotation import write_annotation
from fedml.study.sources import write_files
from fedml.study.start import write_start
from fedml.study.study import Study
from fedml.tracking.store import versions

Engine = Literal["local", "simulation", "deployment"]
Job = Literal["train", "resume", "gwas", "genes", "frequencies", "survival", "glm", "describe", "preflight"]
Listener = Callable[[Sequence[Event]], None]
_POLL_SECONDS = 0.2  # between two reads of a run's events
_ASK_SECONDS = 10.0  # between two questions to the SuperLink how the run is


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and its folder. ``final``: the event with the last metrics (``came`` is False if the run failed before)."""

    run: Path
    status: str
    reason: str
    final: Final
    events: list[Event]
    seconds: float


def read_all(study: Study, sites: Mapping[str, Site], say: Callable[[str], None] = lambda _: None, job: Job = "train") -> dict[str, Cohort]:
    """Reads every site's data as the run will, before anything is started or written.

    Raises:
        InputError: the first error in a site's data, or there are no test persons.
    """
    from fedml.code.load import check
    from fedml.modalities.image_words import lost_lines
    from fedml.modalities.registry import check_inputs
    from fedml.strategies.algorithms.registry import make_strategy

    check(study)
    make_strategy(study)
    check_inputs(study)
    cohorts = {}
    for name, site in sites.items():
        cohort = cohorts[name] = load_cohort((str(site.file.resolve()),), study)
        excluded = "".join(f", {count} excluded ({why})" for why, count in cohort.excluded.items())
        excluded += "".join(f", {count} with an excluded image ({why})" for why, count in cohort.excluded_images.items())
        if (images := cohort.input("image", Images)) is not None:
            excluded += "".join(f". {line}" for line in lost_lines(images, study))
        if name in study.federation.evaluate_only:
            say(f"{name}: {cohort.count('test')} persons, who only test the final model (external validation){excluded}")
        else:
            say(f"{name}: {cohort.count('train')} train, {cohort.count('val')} val, {cohort.count('test')} test persons{excluded}")
    training = [cohort for name, cohort in cohorts.items() if name not in study.federation.evaluate_only]
    if job in ("train", "resume") and not any(c.count("test") for c in training):
        without = sum((Counter(c.excluded) for c in training), Counter[str]())
        why = f" (left out at all sites: {', '.join(f'{count} with {reason}' for reason, count in without.items())})" if without else ""
        fix = "raise test in [cohort] split, or correct the split files" + (", labels or ids" if without else "")
        raise InputError(f'study "{study.study.name}": no site has a usable person in the test part{why}; {fix}.')
    return cohorts


def new_run(study: Study, runs: Path, study_file: Path | None, *, engine: str, job: str) -> Path:
    """Creates a run folder with the study and the start event."""
    name = f"{study.study.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    run = runs / name
    run.mkdir(parents=True)
    write_whole(run / STUDY, study.canonical.encode())
    write_files(study.code, run)
    write_start(study.model.start, run)
    write_annotation(study, run)
    if study_file is not None:
        shutil.copyfile(study_file, run / "study.toml")
    commit = git_commit(study_file.resolve().parent if study_file else Path.cwd())
    emit(run, Start(run_id=name, study=study.study.name, study_sha256=study.sha256, git_commit=commit,
                    seed=study.study.seed, versions=versions(), engine=engine, job=job, code=software()))  # fmt: skip
    return run


def follow(run: Path, listeners: Sequence[Listener], stop: threading.Event) -> None:
    """Passes new events to every listener until ``stop`` is set and no events remain. A listener that raises is logged and removed."""
    position, active = 0, list(listeners)
    while True:
        ending = stop.is_set()
        events, position = read_log(run, position)
        for listener in list(active):
            try:
                listener(events)
            except Exception as error:  # an error in display or tracking must not stop the run
                active.remove(listener)
                logging.getLogger("fedml").warning("%s stopped: %s", getattr(listener, "__name__", type(listener).__name__), error)
        if ending and not events:
            return
        stop.wait(_POLL_SECONDS)


def run_nodes(study: Study, nodes: Sequence[Mapping[str, str]], run: Path, job: Job = "train", workers: int = 1) -> None:
    """The local engine over nodes with the given configurations (``manifest``, and ``name`` for pooled data).

    Args:
        workers: processes, this one included (``fedml.experiments.runs.workers``); 0: more than one if the run turns out to be long.
    """
    from flwr.app import Context, RecordDict

    from fedml.clients.gate.local import app as client_app
    from fedml.experiments.runs.workers import Workers
    from fedml.flower.grid import InProcessGrid
    from fedml.strategies.server import app as server_app

    config: dict[str, bool | int | float | str] = {"study": study.canonical, "run": str(run.resolve()), "job": job}
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)
    persons = [1] * len(nodes) if workers == 1 else [_persons(study, node) for node in nodes]
    with Workers(workers, study.training.threads, persons, study.federation.rounds) as others:
        others.begin(config)
        server_app(InProcessGrid(client_app, [dict(n) for n in nodes], config, others), context)


def _persons(study: Study, node: Mapping[str, str]) -> int:
    """Training persons of a node, whose data were read before the run."""
    return load_cohort(tuple(node["manifest"].split("\n")), study).count("train")


class On(NamedTuple):
    """Where a study runs.

    Args:
        sites_folder: for a simulation: the folder that contains the sites' folders.
        flower_home: for a deployment: Flower's folder; None: that of the user. connection: the name in its ``config.toml``.
        workers: for the local engine: as in ``run_nodes``.
    """

    engine: Engine = "local"
    sites_folder: Path = Path()
    flower_home: Path | None = None
    connection: str = "own"
    workers: int = 1


def run(
    study: Study, sites: Mapping[str, Site], run: Path, on: On = On(), *, listeners: Sequence[Listener] = (), debug: bool = False,
    job: Job = "train",
) -> Outcome:  # fmt: skip
    """Runs ``study`` and returns its outcome; a failed run returns an ``Outcome``, it does not raise."""
    began, stop, why = time.monotonic(), threading.Event(), ""
    follower = threading.Thread(target=follow, args=(run, listeners, stop), name="fedml-follow")
    follower.start()
    try:
        if on.engine == "local":
            run_nodes(study, [{"manifest": str(site.file.resolve())} for site in sites.values()], run, job, on.workers)
        elif on.engine == "simulation":
            _simulate(study, on.sites_folder, run, debug, job)
        else:
            _deploy(study, run, on.flower_home, on.connection, job)
    except KeyboardInterrupt:
        emit(run, End(status="stopped", reason="stopped from the keyboard"))
    except Exception as error:
        why = sentence_of(error)
        with suppress(OSError):
            if not _ended(run):
                emit(run, End(status="failed", reason=why))
        if debug:
            logging.getLogger("fedml").exception("the run failed")
    finally:
        stop.set()
        follower.join()
    return outcome(run, time.monotonic() - began, why)


def outcome(run: Path, seconds: float, why: str = "") -> Outcome:
    """Reads how a run ended from its folder. ``why``: what is known of a run that could not write its end."""
    events, _ = read_log(run)
    end = last(events, End(status="failed", reason=why or 'the log ends without an "end" event'))
    return Outcome(run, end.status, end.reason, last(events, NO_FINAL), events, seconds)


def _ended(run: Path) -> bool:
    return any(isinstance(e, End) for e in read_log(run)[0])


def _deploy(study: Study, run: Path, home: Path | None, connection: str, job: Job) -> None:
    """Submits the study to a SuperLink and waits for its end event; stops it there if it does not come to one, or from the keyboard. Raises
    ``RunError`` after a time without events."""
    from fedml.flower.control import stop_run
    from fedml.flower.superlink import submit, write_app

    home = home or Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    app = run / "app"
    apps = {"server": "fedml.strategies.server:app", "client": "fedml.clients.work.client:app"}
    write_app(app, apps, {"study": study.canonical, "run": str(run.resolve()), "job": job})
    number = submit(home, app, connection=connection)
    shutil.rmtree(app)
    try:
        _wait_for_end(study, run, home, number)
    except BaseException:
        stop_run(home, number)  # from the keyboard too: sites would go on training
        raise


def _wait_for_end(study: Study, run: Path, home: Path, number: int) -> None:
    from fedml.flower.control import run_failed
    from fedml.flower.parent import has_left

    silence_seconds = study.federation.timeout * (len(study.federation.sites) + 1) + 120
    asked = changed = time.monotonic()  # not the clock of the day, which can jump
    size = 0
    while not _ended(run):
        if (now := (run / EVENTS).stat().st_size) != size:
            size, changed = now, time.monotonic()
        if time.monotonic() - changed > silence_seconds:
            raise RunError(f"the run has written no event for {silence_seconds} s; see the SuperLink's log.")
        if has_left(run):
            time.sleep(1.0)
            if has_left(run) and not _ended(run):
                raise RunError("the server app was ended without a result, by itself or with the SuperLink; see its log, run again.")
        if time.monotonic() - asked > _ASK_SECONDS:
            asked = time.monotonic()
            if (why := run_failed(home, number)) and not _ended(run):
                raise RunError(f"the SuperLink gave up the run ({why}); see the SuperLink's log, run again.")
        time.sleep(_POLL_SECONDS)


def _simulate(study: Study, sites_folder: Path, run: Path, debug: bool, job: Job) -> None:
    from fedml.flower.parent import has_left
    from fedml.flower.simulation import run_simulation

    cpus = os.cpu_count() or 1
    if study.training.threads > cpus:
        raise RunError(f"[training] threads is {study.training.threads}, this machine has {cpus} CPUs; lower it.")
    run_simulation(
        {"server": "fedml.strategies.server:app", "client": "fedml.clients.gate.local:app"},
        {"study": study.canonical, "run": str(run.resolve()), "sites": str(sites_folder.resolve()), "job": job},
        len(study.federation.sites),
        cpus_per_node=study.training.threads,
        finished=lambda: _ended(run),
        left=lambda: has_left(run),
        debug=debug,
    )
