"""The steps of every command that runs a study: read it, find the sites, start the tracking process, run, show, set the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedml.cli import is_debug
from fedml.errors import InputError, RunError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from fedml.experiments.options import Where
    from fedml.experiments.runs.run import Job, Outcome
    from fedml.study.study import Study
    from fedml.tracking.files import Write

UNDELIVERED = 3  # exit code: the run finished, and MLflow has no complete record of it
ENGINES = ("local", "simulation", "deployment")


@dataclass(frozen=True)
class Launched:
    """A run that has ended: the study, how it ended, MLflow's run id (None: no complete record, or not asked for), and why MLflow has no
    complete record (empty: it has, or was not to have one)."""

    study: Study
    outcome: Outcome
    mlflow_run: str | None
    mlflow_error: str = ""


def make_console(as_json: bool) -> Console:
    """Standard output, or standard error if standard output is for JSON. Brackets in a text, such as `[model]`, are printed as they are."""
    from rich.console import Console

    stream = sys.stderr if as_json else sys.stdout
    # Without a terminal, tables may be wider than 80 columns.
    return Console(stderr=as_json, highlight=False, markup=False, width=None if stream.isatty() else 140)


def load_study(path: Path, changes: list[str] | None, seed: int | None) -> Study:
    """The study with ``--set`` and ``--seed``."""
    from fedml.experiments.keys.overrides import parse_overrides
    from fedml.study.read import read_study

    return read_study(path, overrides=parse_overrides(changes or []), seed=seed, fetch=_fetched)


def study_to_run(path: Path | None, again: Path | None, changes: list[str] | None, seed: int | None) -> Study:
    """The study of the file; with ``again``, the folder of a run that goes on, that run's own, which the file must give if there is one.

    Raises:
        InputError: there is neither, or the run is of another study.
    """
    if path is None and (again is None or changes or seed is not None):
        raise InputError("fedml run: give a study file, such as fedml run study.toml; it may be left out only of a plain --resume RUN.")
    given = None if path is None else load_study(path, changes, seed)
    if again is None and given is not None:
        return given
    from fedml.experiments.runs.resume import study_to_resume

    return study_to_resume(again or Path(), given)


def _fetched(uri: str) -> Path:
    """The weights of a model in MLflow, in a folder that is removed when this process ends."""
    import atexit
    import shutil
    import tempfile

    from fedml.runs.log import MODEL
    from fedml.tracking.registry import fetch_model

    into = Path(tempfile.mkdtemp(prefix="fedml-model-"))
    atexit.register(shutil.rmtree, into, ignore_errors=True)
    return fetch_model(uri, into) / MODEL


def find(folder: Path, study: Study, say: Callable[[str], None]) -> dict[str, Any]:
    """The roster's sites in ``folder``; reports the other sites in the folder."""
    from fedml.clients.site.manifest import find_sites

    found, others = find_sites(folder, study.federation.sites)
    if others:
        say(f"not in the roster, ignored: {', '.join(others)}")
    return found


def launch(
    study_file: Path | None, study: Study, where: Where, console: Console, job: Job = "train", *, track: bool, write: Write | None = None
) -> Launched:
    """Runs the study and shows its progress. A failed run is returned as an outcome, not raised.

    ``write``: makes the files for a person that MLflow gets, of a run that trains a model. With the job ``resume`` the run of the folder
    ``where.resume`` goes on.

    Raises:
        InputError: options that do not go together, data that cannot be used, or a run that cannot go on.
    """
    if where.engine not in ENGINES:
        raise InputError(f'--engine "{where.engine}" is not known{nearest(where.engine, ENGINES)}; it is local, simulation or deployment.')
    deployed = where.engine == "deployment"
    if deployed == (where.sites is not None) or deployed != (where.superlink is not None):
        raise InputError("--engine deployment takes --superlink and no --sites; the other engines take --sites and no --superlink.")
    from fedml.experiments.runs.delivery import Tracking

    tracker = Tracking(write) if track else None  # before PyTorch is loaded: of it the copy of this process has no need
    from fedml.clients.gate.local import Plan, check_budgets
    from fedml.experiments.options import WhereAgain
    from fedml.experiments.runs.resume import held, prepare
    from fedml.experiments.runs.run import On, new_run, read_all, run
    from fedml.experiments.runs.run import outcome as outcome_of
    from fedml.experiments.runs.show import Progress

    home, connection = _connection(where.superlink) if where.superlink is not None else (None, "own")
    found = find(where.sites, study, console.print) if where.sites is not None else {}
    if where.superlink is None:
        read_all(study, found, lambda line: console.print(line, markup=False, soft_wrap=True), job)
        if job not in ("preflight", "resume"):  # the first trains nothing; of the second a part is charged already
            check_budgets([Plan(study, name, site) for name, site in found.items()])
    again = where.resume if isinstance(where, WhereAgain) else None
    folder = again or new_run(study, where.runs, study_file, engine=where.engine, job=job)
    trains = job in ("train", "resume")
    on = On(where.engine, where.sites or Path(), home, connection, where.workers if trains else 1)  # type: ignore[arg-type]
    with held(folder):
        complete = again is not None and prepare(again, study, where.engine)
        if tracker:
            tracker.begin(folder, study)
        progress = Progress(study, console, job)
        outcome = (
            outcome_of(folder, 0.0) if complete else
            run(study, found, folder, on, listeners=[progress], debug=is_debug(), job=job)
        )  # fmt: skip
        progress.close()
        finished = trains and outcome.status == "finished"
        if finished and found:
            _draw_examples(folder, study, found, console)
        return Launched(study, outcome, *(tracker.wait(folder, study, finished=finished) if tracker else (None, "")))


def _draw_examples(run: Path, study: Study, sites: dict[str, Any], console: Console) -> None:
    """Pictures of predictions of sites that declare their images public; a failure is printed and does not affect the run."""
    from fedml.experiments.runs.examples import write_examples

    try:
        write_examples(run, study, sites, lambda line: console.print(line, markup=False, soft_wrap=True))
    except Exception as error:
        console.print(f"examples could not be drawn ({error})", markup=False, soft_wrap=True)


def _connection(superlink: str) -> tuple[Path | None, str]:
    """Flower's folder and the connection's name in it: of a centre on this machine, or of the user."""
    from fedml.experiments.federation.centre import find_home
    from fedml.flower.superlink import CONNECTION

    home = find_home(Path(superlink))
    if home is None and Path(superlink).is_dir():
        raise InputError(
            f"--superlink {superlink}: is not a centre's folder; create one with `fedml federation init` or `fedml federation up`."
        )
    return (home, CONNECTION) if home else (None, superlink)


def closing_line(launched: Launched, console: Console) -> None:
    """Prints the status of the run, the folder of its record and, last, that MLflow has no complete record."""
    from fedml.runs.checkpoints import CHECKPOINTS
    from fedml.runs.events import Round
    from fedml.runs.log import UNFINISHED

    outcome = launched.outcome
    console.print(f"{outcome.status} in {outcome.seconds:.1f} s; record: {outcome.run}", style="dim", soft_wrap=True)
    if (kept := outcome.run / UNFINISHED).exists():
        done = max((event.round for event in outcome.events if isinstance(event, Round)), default=0)
        console.print(
            f"{kept}: the weights after round {done}; a study that names the file in [model] start goes on from them", soft_wrap=True
        )
    if outcome.status != "finished" and (outcome.run / CHECKPOINTS).exists():
        console.print(f"the run can go on: the same command with --resume {outcome.run}", soft_wrap=True, markup=False)
    if why := launched.mlflow_error:
        console.print(
            f"MLflow has no complete record of this run ({why}); the run itself {outcome.status}, and its folder has all data. "
            f"Deliver it later: fedml track --pending --runs {outcome.run.parent}, or fedml track {outcome.run}",
            soft_wrap=True, markup=False,
        )  # fmt: skip


def judge(launched: Launched) -> None:
    """Raises ``RunError`` with its reason if the run failed; ends the command with ``UNDELIVERED`` if only MLflow's record is missing."""
    if launched.outcome.status != "finished":
        raise RunError(launched.outcome.reason)
    if launched.mlflow_error:
        raise SystemExit(UNDELIVERED)
