"""One run: it is started, watched, and what it left is read and checked; and the medians over runs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from fedml.experiments.bench.peers import ours, runners
from fedml.experiments.bench.peers.marks import Marks, read
from fedml.experiments.bench.peers.work import Job, Weights

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Figures:
    """Of one run. Wall seconds: ``total``, ``start`` until the first round, ``first`` round, a ``round`` (median from the second on),
    ``after`` the last round; ``cpu``: user and system seconds of all processes; ``memory``: largest proportional set size of all processes
    together, MB; ``growth``: memory in the last quarter of the rounds by that in the second (medians; NaN without samples)."""

    total: float
    start: float
    first: float
    round: float
    after: float
    cpu: float
    memory: float
    growth: float
    load: float


@dataclass(frozen=True)
class Run:
    """One run of ``runner``: figures and results, or the error with which it ended."""

    runner: str
    job: str
    figures: Figures | None
    auroc: float | None = None
    weights: Weights = field(default_factory=dict)
    error: str | None = None


def figures(measured: Mapping[str, Any], marks: Marks) -> Figures:
    """The figures of a watched command and its marks."""
    times = marks.rounds
    rounds = np.diff(times)
    samples = [(float(at), float(mb)) for at, mb in measured["memory"]]
    return Figures(
        total=measured["ended"] - measured["began"],
        start=times[0] - measured["began"],
        first=float(rounds[0]),
        round=float(np.median(rounds[1:] if len(rounds) > 1 else rounds)),
        after=measured["ended"] - times[-1],
        cpu=measured["cpu"],
        memory=max((mb for _, mb in samples), default=float("nan")),
        growth=_growth(samples, times),
        load=measured["load"],
    )


def _growth(samples: Sequence[tuple[float, float]], times: Sequence[float]) -> float:
    ends = [times[round(share * (len(times) - 1))] for share in (0.25, 0.5, 0.75, 1)]
    second, last = ([mb for at, mb in samples if ends[i] <= at <= ends[i + 1]] for i in (0, 2))
    return statistics.median(last) / statistics.median(second) if second and last else float("nan")


def one(runner: runners.Runner, job: Job, prepared: Path, environments: Path | None, timeout: float) -> Run:
    """Starts a runner from cold, and reads what it left."""
    # Ray refuses sockets whose path has more than 107 bytes, so the folder's name is short.
    out = Path(tempfile.mkdtemp(prefix="peer-"))
    place = runners.Place(job, prepared, out, environments, runners.python(runner, environments))
    try:
        command = runner.command(place)
        spec = {
            "command": command.words, "cwd": str(out), "environment": runners.environment(place, command), "timeout": timeout,
            "daemons": runner.daemons,
        }  # fmt: skip
        (out / "spec.json").write_text(json.dumps(spec))
        subprocess.run([sys.executable, str(HERE / "watch.py"), str(out / "spec.json")], check=True)
        return _read(runner, job, out, timeout)
    finally:
        runners.clean(place)


def _read(runner: runners.Runner, job: Job, out: Path, timeout: float) -> Run:
    measured = json.loads((out / "measured.json").read_text())
    log = (out / "output.log").read_text(errors="replace")[-1500:]
    if measured["status"] != 0:
        why = f"still running after {timeout:.0f} s" if measured["status"] is None else f"exit status {measured['status']}"
        return Run(runner.name, job.name, None, error=f"{why}; the end of its output:\n{log}")
    try:
        if runner.name.startswith("ours"):
            left = ours.found(job, out)
            return Run(runner.name, job.name, figures(measured, left.marks), left.auroc, left.weights)
        marks = read(out, job.rounds)
        with np.load(out / "weights.npz", allow_pickle=False) as arrays:
            weights = {name: arrays[name] for name in arrays.files}
        auroc = json.loads((out / "result.json").read_text())["auroc"]
        return Run(runner.name, job.name, figures(measured, marks), auroc, weights)
    except (OSError, ValueError, KeyError, IndexError, StopIteration) as error:
        return Run(runner.name, job.name, None, error=f"{type(error).__name__}: {error}; the end of its output:\n{log}")


def medians(runs: Sequence[Run], job: str, runner: str) -> Figures | None:
    """Of the runs that finished; None if none did."""
    done = [run.figures for run in runs if (run.job, run.runner) == (job, runner) and run.figures]
    if not done:
        return None
    return Figures(**{key.name: statistics.median(getattr(one, key.name) for one in done) for key in fields(Figures)})
