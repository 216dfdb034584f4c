"""The runs of a sweep, one after the other in this process: libraries are imported once, and MLflow is written after the last run."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedml.cli import is_debug
from fedml.errors import RunError
from fedml.experiments.runs.run import On, Outcome, new_run, outcome, run
from fedml.experiments.sweep.folder import State
from fedml.experiments.sweep.plan import Data, Sweep, Try, forget
from fedml.experiments.sweep.result import Result, Row, choose, recorded, row_of
from fedml.experiments.sweep.values import Point, as_text, short_names, shown
from fedml.runs.events import Event, Round
from fedml.study.study import Study
from fedml.tasks.registry import make_task
from fedml.tracking import outbox
from fedml.tracking.members import Member, read_member, write_member

if TYPE_CHECKING:
    from rich.console import Console


class Stopped(KeyboardInterrupt):
    """Stopped from the keyboard. ``str()``: what is kept, and how to go on."""


class Progress:
    """A bar over the rounds of all runs; without a terminal, a line for each run that ended."""

    def __init__(self, total: int, rounds: int, console: Console) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self.total, self.rounds, self.console, self.done = total, rounds, console, 0
        self.bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.row = self.bar.add_task("", total=total * max(rounds, 1))
        self.bar.start()

    def __call__(self, events: Sequence[Event]) -> None:
        """Moves the bar with the rounds in ``events``."""
        for event in events:
            if isinstance(event, Round):
                self.bar.update(self.row, completed=self.done * self.rounds + min(event.round, self.rounds))

    def begin(self, text: str) -> None:
        """A run begins."""
        self.bar.update(self.row, description=f"run {self.done + 1}/{self.total}: {text}", refresh=True)

    def end(self, text: str) -> None:
        """A run ended."""
        self.done += 1
        self.bar.update(self.row, completed=self.done * self.rounds)
        self.console.print(f"{self.done}/{self.total} {text}", markup=False, soft_wrap=True)

    def close(self) -> None:
        """Removes the bar."""
        self.bar.stop()


def missing(studies: Sequence[Study], state: State, data: Data) -> list[Study]:
    """The studies without a finished run on the same data."""
    return [study for study in studies if _earlier(study, state, data) is None]


def _earlier(study: Study, state: State, data: Data) -> Outcome | None:
    entry = state.entries.get(study.sha256)
    if entry is None:
        return None
    folder = state.folder.parent / entry.run
    found = outcome(folder, 0.0)
    return found if found.status == "finished" and entry.data == data.key(study) else None


def run_sweep(
    sweep: Sweep, tries: Sequence[Try], state: State, data: Data, study_file: Path | None, console: Console, *, track: bool
) -> Result:
    """Makes the runs that are missing, chooses, and writes the result to ``sweep.json``.

    Args:
        tries: as ``plan.checked`` gave them; empty with Optuna. track: mark runs and sweep as to be delivered to MLflow.

    Raises:
        RunError: no combination has a value of the validation metric. Stopped: from the keyboard.
    """
    progress = Progress(sweep.most * len(sweep.search.seeds), sweep.study.federation.rounds, console)
    found: dict[str, tuple[Row, list[Outcome]]] = {}  # by the study of the first seed: Optuna may find a combination again
    source = _tries(sweep, tries)
    try:
        tried = next(source, None)
        while tried is not None:
            key = tried.studies[0].sha256
            if key not in found:
                made = [_one(study, tried.point, state, data, study_file, progress, track) for study in tried.studies]
                found[key] = row_of(tried, made), made
            tried = _next(source, found[key][0].val.value)
    except KeyboardInterrupt as error:
        kept = sum(outcome(state.folder.parent / e.run, 0.0).status == "finished" for e in state.entries.values())
        raise Stopped(f"{kept} of {progress.total} runs are finished and kept; repeat the command to make the others.") from error
    finally:
        progress.close()
    result = choose(sweep, list(found.values()), state.folder)
    _settle(result, [made for _, outcomes in found.values() for made in outcomes], state, track)
    if result.best is None:
        raise RunError(f"no try has a value of the validation metric; the first: {result.rows[0].failed}")
    return result


def _next(source: Generator[Try, float], score: float) -> Try | None:
    try:
        return source.send(score)
    except StopIteration:
        return None


def _tries(sweep: Sweep, tries: Sequence[Try]) -> Generator[Try, float]:
    if not sweep.search.optuna:
        for tried in tries:  # noqa: UP028 - `yield from` a sequence refuses what is sent
            yield tried
        return
    from fedml.experiments.sweep.tpe import suggested

    source: Generator[Point, float] = suggested(
        sweep.search.space, sweep.search.optuna, sweep.study.study.seed, make_task(sweep.study).higher
    )
    point = next(source)
    while True:
        score = yield sweep.build(point)
        try:
            point = source.send(score)
        except StopIteration:
            return


def _one(study: Study, point: Point, state: State, data: Data, study_file: Path | None, progress: Progress, track: bool) -> Outcome:
    """The finished run of a study: an earlier one, or a new one."""
    names, several = short_names(point), len(state.sweep.search.seeds) > 1
    text = shown(point) + (f", seed {study.study.seed}" if several else "")
    progress.begin(text)
    made = _earlier(study, state, data)
    if made is not None:
        ended = f"finished before, {made.run.name}"
    else:
        runs = state.folder.parent
        folder = new_run(study, runs, study_file, engine="local", job="train")
        params = {names[key]: as_text(value) for key, value in point.items()} | ({"seed": str(study.study.seed)} if several else {})
        write_member(folder, Member(state.id, params))
        if track:
            outbox.mark_pending(folder)
        state.note(study.sha256, folder.name, data.key(study))
        made = run(study, data.sites, folder, On("local"), listeners=[progress], debug=is_debug())
        ended = f"{made.seconds:.1f} s"
        forget()
    if made.status == "stopped":
        raise KeyboardInterrupt
    metric = make_task(study).watched
    value = made.final.metrics["val"]["all"].get(metric) if "val" in made.final.metrics else None
    score = "undefined" if value is None or not math.isfinite(value) else f"{value:.3f}"
    progress.end(f"{text}: " + (f"val {metric} {score} ({ended})" if made.status == "finished" else f"failed: {made.reason}"))
    return made


def _settle(result: Result, outcomes: Sequence[Outcome], state: State, track: bool) -> None:
    """Marks the chosen runs, and writes the result."""
    chosen = set(() if result.best is None else result.best.runs)
    for row in result.rows:
        for folder in row.runs:
            member = read_member(folder)
            if member is not None and member.chosen != (folder in chosen):
                write_member(folder, replace(member, chosen=folder in chosen))
    state.write(recorded(result, max(event.time for made in outcomes for event in made.events)))
    if track:
        outbox.mark_again(state.folder)
