"""A measurement of several jobs and runners in turn, and what is wrong with its results."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedml.experiments.bench.peers import checks, prepare, runners
from fedml.experiments.bench.peers.figures import Run, one
from fedml.experiments.bench.peers.limits import Limit
from fedml.experiments.bench.peers.work import JOBS


@dataclass(frozen=True)
class Plan:
    """What is measured. ``repeats``: job -> runs of each runner; ``runners``: job -> their names. ``environments``: folder of the peers'
    environments, or None. ``timeout``: seconds of one run. ``prepared``: folder of the jobs' data, for the time of the session."""

    repeats: Mapping[str, int]
    runners: Mapping[str, Sequence[str]]
    data: Path
    environments: Path | None
    timeout: float
    prepared: Path


@dataclass
class Measured:
    """``skipped``: what could not be run -> why. ``wrong``: results that are not those of the work."""

    runs: list[Run] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


@contextmanager
def session(data: Path, environments: Path | None, timeout: float) -> Iterator[Plan]:
    """A plan of nothing, with a folder for the jobs' data that is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        yield Plan({}, {}, data.resolve(), environments and environments.resolve(), timeout, Path(folder))


def possible(plan: Plan, job: str, skipped: dict[str, str]) -> list[str]:
    """The runners that can do ``job`` here; why others cannot is added to ``skipped``."""
    if why := prepare.why_not(JOBS[job], plan.data):
        skipped[job] = why
        return []
    found = []
    for name in plan.runners[job]:
        if why := runners.why_not(runners.RUNNERS[name], JOBS[job], plan.environments):
            skipped[f"{job}, {name}"] = why
        else:
            found.append(name)
    return found


def measure(plan: Plan, each: Callable[[Measured], None] = lambda _: None) -> Measured:
    """All runs. Repetitions are the outer loop and the order of runners turns, so a slow spell of the machine falls on all.

    Args:
        each: called after each run with all until then.
    """
    measured = Measured()
    chosen = {job: possible(plan, job, measured.skipped) for job in plan.repeats}
    order = [(job, name) for job, names in chosen.items() for name in names]
    for job, names in chosen.items():
        if names and not (plan.prepared / job).exists():
            prepare.prepare(JOBS[job], plan.data, plan.prepared)
    for repeat in range(max(plan.repeats.values(), default=0)):
        for job, names in chosen.items():
            turn = repeat % max(len(names), 1)
            for name in names[turn:] + names[:turn] if repeat < plan.repeats[job] else ():
                measured.runs.append(_one(plan, job, name))
                measured.runs.sort(key=lambda run: order.index((run.job, run.runner)))
                measured.wrong = _wrong(measured.runs)
                each(measured)
    return measured


def _wrong(runs: Sequence[Run]) -> list[str]:
    bare = {run.job: run for run in runs if run.runner == "bare"}
    problems = [(run, checks.problem(run, bare.get(run.job))) for run in runs]
    return [f"{run.job}, {run.runner}: {problem}" for run, problem in problems if problem]


def _one(plan: Plan, job: str, name: str) -> Run:
    run = one(runners.RUNNERS[name], JOBS[job], plan.prepared / job, plan.environments, plan.timeout)
    if run.figures:
        f = run.figures
        said = f"{f.total:.1f} s, a round {f.round * 1000:.2f} ms, CPU {f.cpu:.1f} s, {f.memory:.0f} MB, load {f.load:.1f}"
    else:
        said = str(run.error)
    print(f"{job}, {name}: {said}", file=sys.stderr, flush=True)
    return run


def needed(limits: Sequence[Limit]) -> dict[str, list[str]]:
    """Job -> the runners that these limits are about, and the bare loop, against which results are checked."""
    found: dict[str, set[str]] = {}
    for limit in limits:
        found.setdefault(limit.job, {"bare"}).update({limit.runner, limit.than or limit.runner})
    return {job: [name for name in runners.RUNNERS if name in names] for job, names in found.items()}
