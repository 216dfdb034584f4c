"""``fedml sweep``, and the same steps for the Python API."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedml.cli import grouped
from fedml.errors import InputError
from fedml.experiments.options import Json, Overrides, Runs, Sites, StudyFile
from fedml.experiments.runs.launch import UNDELIVERED, find, load_study, make_console

if TYPE_CHECKING:
    from rich.console import Console

    from fedml.experiments.sweep.plan import Sweep
    from fedml.experiments.sweep.result import Result

_STOPPED = 130  # exit code, as that of every command that is stopped from the keyboard


@dataclass(frozen=True)
class Tried:
    """What a sweep tries."""

    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE", help="Vary a key of the study; may be repeated. With --random or --optuna also KEY=LOW..HIGH."
        ),
    ] = None
    seeds: Annotated[str, typer.Option(help="Seeds of each combination: one, a range 0-2, or a list 0,1,5; default: the study's.")] = ""
    random: Annotated[int, typer.Option(metavar="N", min=0, help="Draw N combinations in place of the whole grid.", show_default=False)] = 0
    optuna: Annotated[
        int, typer.Option(metavar="N", min=0, help="Let Optuna find N combinations, each from those before it.", show_default=False)
    ] = 0


@dataclass(frozen=True)
class How:
    """What a sweep does besides its runs."""

    track: Annotated[bool, typer.Option("--track/--no-track", help="Record the sweep in MLflow, after its last run.")] = True
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask about the privacy cost of all runs; it is still printed.")] = False


@grouped
def sweep(
    study_file: StudyFile,
    sites: Sites,
    tried: Tried,
    how: How,
    changes: Overrides = None,
    runs: Runs = Path("fedml-runs"),
    as_json: Json = False,
) -> None:
    """Run a study with several values of some keys, and choose the best by validation persons alone. Repeat the command to go on.

    A key may be given by its last part, such as lr. A range of positive numbers over a factor of 10 or more is drawn on the log scale.

    Example: fedml sweep experiments/studies/demo.toml --sites out/sites --grid lr=1e-3,1e-2 --grid strategy.name=fedavg,fedprox --seeds 0-2
    """
    from fedml.experiments.compare.train import parse_seeds
    from fedml.experiments.keys.overrides import parse_overrides
    from fedml.experiments.sweep.plan import Search, Sweep
    from fedml.experiments.sweep.result import plain_result, sentences, table_of
    from fedml.experiments.sweep.run import Stopped
    from fedml.experiments.sweep.values import read_space
    from fedml.study.read import read_study

    console, fixed = make_console(as_json), parse_overrides(changes or [])
    study = load_study(study_file, changes, None)
    search = Search(read_space(tried.grid or []), tuple(parse_seeds(tried.seeds, study.study.seed)), tried.random, tried.optuna)
    plan = Sweep(study, lambda changed: read_study(study_file, overrides={**fixed, **changed}), search)
    try:
        result, undelivered = perform(plan, (sites, runs), study_file, how, console)
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        raise SystemExit(_STOPPED) from None
    console.print(table_of(result))
    for line in sentences(result):
        console.print(line, markup=False, soft_wrap=True)
    if undelivered:
        console.print(undelivered, markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps({**plain_result(result), "mlflow_error": undelivered or None}), flush=True)
    if undelivered:
        raise SystemExit(UNDELIVERED)


def perform(plan: Sweep, folders: tuple[Path, Path], study_file: Path | None, how: How, console: Console) -> tuple[Result, str]:
    """All checks, the runs that are missing, and the record in MLflow; returns the result and why MLflow has no complete record.

    Args:
        folders: of the sites and of the runs.

    Raises:
        InputError: something cannot be used; nothing was started. RunError: no try has a value. Stopped: from the keyboard.
    """
    from fedml.experiments.runs.delivery import delivered
    from fedml.experiments.sweep.folder import opened
    from fedml.experiments.sweep.plan import Data, check_privacy, checked, privacy_lines
    from fedml.experiments.sweep.run import missing, run_sweep
    from fedml.experiments.sweep.tpe import require_optuna

    search = plan.search
    if search.random and search.optuna:
        raise InputError("--random and --optuna exclude each other; give one of them.")
    if search.optuna:
        require_optuna()
    data = Data(find(folders[0].resolve(), plan.study, console.print), _line(console))
    tries = checked(plan, data)
    studies = [study for tried in tries for study in tried.studies]
    if search.random and len(tries) < search.random:
        console.print(f"--random {search.random}: there are only {len(tries)} different combinations.", markup=False)
    with opened(plan, folders[1]) as state:
        ahead = missing(studies, state, data)
        check_privacy(ahead, data.sites)
        again = {study.sha256 for study in ahead}
        released = [study for study in studies for _ in range(state.begun(study.sha256) + (study.sha256 in again))]
        costs = list(privacy_lines(released)) if studies else []
        for text in costs:
            console.print(text, markup=False, soft_wrap=True)
        if costs and ahead and not how.yes:
            _ask(len(ahead))
        console.print(f"{plan.most} tries of {len(search.seeds)} run(s) each; sweep: {state.folder}", markup=False, soft_wrap=True)
        result = run_sweep(plan, tries, state, data, study_file, console, track=how.track)
        return result, delivered(state.folder, console, "sweep") if how.track else ""


def _line(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, soft_wrap=True)


def _ask(count: int) -> None:
    """Asks whether the runs may start. Raises ``InputError``: no, or nobody can be asked."""
    if not sys.stdin.isatty():
        raise InputError("the runs spend privacy and nobody can be asked here; give --yes (in Python: yes=True) to start them.")
    if not typer.confirm(f"Start {count} runs?"):
        raise InputError("not started.")
