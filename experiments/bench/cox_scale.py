"""Benchmark: Cox regression over three sites against lifelines on the pooled persons with the same rounded times, one thread.

    .venv/bin/python experiments/bench/cox_scale.py [PERSONS] [REPEATS]    # PERSONS of each site; 20,000 and 5
    .venv/bin/python experiments/bench/cox_scale.py memory [PERSONS ...]   # of each site; 2,000 and 20,000

Simulated: 20 correlated normal covariates, 60 intervals of 30 days, ties by Efron, sites of a centre that is not trusted (min_count 5).
Ours: the command ``fedml survival --no-track`` with all sites in its process, from its start to its page; and the time from the first
step to all results, which also are the robust and site-clustered variances, the test of proportional hazards, each site alone and REML.
lifelines: a process that reads one CSV and calls ``CoxPHFitter().fit`` at its default precision, from its start to its table; the fit
alone. Results are compared at precision 1e-13. Memory: peak of a process that does the server's part alone, on recorded sums of the sites.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from fedml.experiments.bench.timing import Ended, machine, run_process, table
from fedml.runs.log import read_events

SITES, COLUMNS, STEP, INTERVALS = ("oslo", "porto", "utrecht"), 20, 30, 60
NAMES = [f"x{at + 1}" for at in range(COLUMNS)]
CLOSE = 1e-8  # relative
_STUDY = f"""
[study]
name = "scale"
question = "scale"
purpose = "DUO:0000042"
seed = 1
[cohort]
inputs = ["clinical"]
target = {{ time = "time", event = "event" }}
[cohort.clinical]
columns = {json.dumps(NAMES)}
[model]
task = "survival"
[survival]
time_unit = "days"
grid = "{STEP} days"
until = {STEP * INTERVALS}
horizons = [900]
[survival.cox]
covariates = {json.dumps(NAMES)}
[federation]
sites = {json.dumps(SITES)}
"""
_ONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def write(folder: Path, persons: int) -> None:
    """Writes the study, each site's folder, and ``all.csv``: the persons of all sites with rounded times."""
    random = np.random.default_rng(1)
    mix = np.linalg.cholesky(0.3 + 0.7 * np.eye(COLUMNS))
    effects = np.linspace(-0.3, 0.3, COLUMNS)
    parts = []
    for number, name in enumerate(SITES):
        x = np.round(random.normal(size=(persons, COLUMNS)) @ mix.T, 4)
        until = np.minimum(random.uniform(200, 2600, persons), STEP * INTERVALS)
        alive = random.exponential(1500 * np.exp(-x @ effects - 0.1 * number))
        time_ = np.maximum(np.ceil(np.minimum(alive, until)), 1)
        own = pd.DataFrame(x, columns=NAMES).assign(time=time_.astype(int), event=(alive <= until).astype(int))
        (folder / name).mkdir()
        own.assign(id=[f"p{at:06d}" for at in range(persons)]).to_csv(folder / name / "persons.csv", index=False)
        data = 'persons = "persons.csv"\nclinical = { path = "persons.csv" }'
        policy = '[policy]\ncentre = "curious"\nmin_count = 5\n'
        (folder / name / "site.toml").write_text(f'[site]\nname = "{name}"\n[data]\n{data}\n{policy}')
        parts.append(own.assign(time=np.ceil(own.time / STEP) * STEP))
    pd.concat(parts).to_csv(folder / "all.csv", index=False)
    (folder / "study.toml").write_text(_STUDY)


def ours(folder: Path) -> Ended:
    """The command."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    command = [str(Path(sys.executable).with_name("fedml")), "survival", "study.toml", "--sites", ".", "--runs", "runs", "--no-track"]
    return run_process(command, folder, _ONE)


def last_run(folder: Path) -> Path:
    """The folder of the last run."""
    return next((folder / "runs").iterdir())


def within(folder: Path) -> tuple[float, float]:
    """Seconds from the first step to all results in ``outcomes.json``, and to the last plot and page, by the last run's record."""
    run = last_run(folder)
    events = read_events(run)[0]
    began = next(float(e["time"]) for e in events if e["event"] == "step")
    ended = next(float(e["time"]) for e in events if e["event"] == "outcomes")
    return (run / "outcomes.json").stat().st_mtime - began, ended - began


def theirs(folder: Path, precision: float | None = None) -> tuple[Ended, float]:
    """lifelines in a process of its own, which writes ``theirs.csv``; and the wall seconds of its fit alone."""
    words = [sys.executable, __file__, "lifelines", str(folder), *([] if precision is None else [str(precision)])]
    ended = run_process(words, folder, _ONE)
    return ended, float((folder / "output.log").read_text().split()[-1])


def fit_lifelines(folder: Path, precision: float | None) -> None:
    """Fits and prints the wall seconds of it."""
    from lifelines import CoxPHFitter

    people = pd.read_csv(folder / "all.csv")
    ends = json.loads((last_run(folder) / "outcomes.json").read_text())["cox"]["baseline"]["time"]
    people["time"] = np.array(ends)[np.searchsorted(ends, people.time)]  # of the intervals that sites merged
    began = time.perf_counter()
    options = {} if precision is None else {"fit_options": {"precision": precision}}
    fitted = CoxPHFitter().fit(people, "time", "event", **options)
    took = time.perf_counter() - began
    fitted.summary.assign(log_likelihood=fitted.log_likelihood_).to_csv(folder / "theirs.csv", float_format="%.17g")
    print(took)


def check_equal(folder: Path) -> str:
    """Asserts that coefficients, standard errors and the log-likelihood agree; returns the largest relative difference as text."""
    theirs(folder, 1e-13)
    found = json.loads((last_run(folder) / "outcomes.json").read_text())["cox"]
    other = pd.read_csv(folder / "theirs.csv", index_col=0)
    rows = {row["term"]: row for row in found["coefficients"]}
    mine = np.array([[rows[name]["estimate"], rows[name]["model"]["error"]] for name in other.index])
    apart = float(np.max(np.abs(mine / other[["coef", "se(coef)"]].to_numpy() - 1)))
    of_likelihood = abs(found["log_likelihood"] / other.log_likelihood.iloc[0] - 1)
    assert max(apart, of_likelihood) < CLOSE, (apart, of_likelihood)
    merged = INTERVALS - len(found["baseline"]["time"])
    return (
        f"coefficients and standard errors within {apart:.1e}, log-likelihood within {of_likelihood:.1e} (relative); {merged} of "
        f"{INTERVALS} intervals merged; {sum(found['events'].values()):,} events; {found['steps']} steps"
    )


def compare(persons: int = 20_000, repeats: int = 5) -> None:
    """Prints the table of both, measured in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), []
        write(folder, persons)
        for _ in range(repeats):
            mine, (results, plots) = ours(folder), within(folder)
            other, fit = theirs(folder)
            found.append(
                (results, fit, plots, fit, mine.seconds, other.seconds, mine.cpu_seconds, other.cpu_seconds, mine.peak_mb, other.peak_mb)
            )
        columns = list(zip(*found, strict=True))
        rows = []
        for at, what in enumerate(
            ("first step to all results; fit, wall s", "first step to the last plot; fit, wall s", "from start to end, wall s",
             "from start to end, CPU s", "largest resident set, MB")
        ):  # fmt: skip
            own, peer = 2 * at, 2 * at + 1
            ratios = [a / b for a, b in zip(columns[own], columns[peer], strict=True)]
            medians = [f"{statistics.median(values):.2f}" for values in (columns[own], columns[peer], ratios)]
            rows.append((what, *medians, f"{min(ratios):.2f} to {max(ratios):.2f}"))
        title = f"Cox, 3 x {persons:,} persons, {COLUMNS} covariates, {repeats} pairs; load {os.getloadavg()[0]:.1f}"
        table(title, ("", "ours", "lifelines", "ratio", "range"), rows)
        print(check_equal(folder))


def server(folder: Path) -> None:
    """The server's part on the recorded sums; prints the peak of this process before and after it, in MB."""
    from fedml.experiments.evidence.again import again
    from fedml.experiments.runs.record import read_record

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    run, before = last_run(folder), peak()
    again(read_record(run, {"survival"}))
    print(before, peak(), sum((run / part).stat().st_size for part in ("sums.bin", "steps.jsonl")))


def memory(sizes: tuple[int, ...] = (2_000, 20_000)) -> None:
    """Prints the server's peak for each number of persons."""
    rows = []
    for persons in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder, persons)
            ours(folder)
            done = subprocess.run(
                [sys.executable, __file__, "server", name], check=True, capture_output=True, text=True, env=os.environ | _ONE
            )
            before, after, size = map(float, done.stdout.split()[-3:])
            rows.append((f"3 x {persons:,}", f"{before:.1f}", f"{after:.1f}", f"{size / 1024:.0f}"))
    table("the server's process", ("persons", "imported, MB", "peak, MB", "recorded sums, KB"), rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["lifelines"]:
        fit_lifelines(Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else None)
    elif sys.argv[1:2] == ["server"]:
        server(Path(sys.argv[2]))
    else:
        print(machine())
        if sys.argv[1:2] == ["memory"]:
            memory(*((tuple(map(int, sys.argv[2:])),) if sys.argv[2:] else ()))
        else:
            compare(*map(int, sys.argv[1:]))
