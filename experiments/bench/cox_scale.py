"""Benchmark: Cox regression over three sites against lifelines on the pooled persons with the same rounded times, one thread, equal results.

    .venv/bin/python experiments/bench/cox_scale.py [PERSONS] [REPEATS]    # PERSONS of each site; 20,000 and 5
    .venv/bin/python experiments/bench/cox_scale.py memory [PERSONS ...]   # of each site; 2,000 and 20,000

Simulated: 20 correlated normal covariates, 60 intervals of 30 days, ties by Efron, sites of a centre that is not trusted (min_count 5).
Ours: the command ``fedml survival --no-track`` with all sites in its process, from its start to its page; and the time from the first
message to the last table, which also has the robust and site-clustered variances, the test of proportional hazards, and each site alone.
lifelines: the ``fit`` of ``CoxPHFitter`` in a process of its own, at its default precision, without its import; the model alone. Its results
are compared at precision 1e-13. Memory: peak of a process that does the server's part alone, on the recorded sums of the sites.
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


def within(folder: Path) -> float:
    """Seconds from the first message to the end of the last run, by its record."""
    return next(float(e["seconds"]) for e in read_events(last_run(folder))[0] if e["event"] == "outcomes")


def theirs(folder: Path, precision: float | None = None) -> tuple[float, float]:
    """Wall and CPU seconds of lifelines' fit in a process of its own, which writes ``theirs.csv``."""
    words = [sys.executable, __file__, "lifelines", str(folder), *([] if precision is None else [str(precision)])]
    done = subprocess.run(words, check=True, capture_output=True, text=True, env={**os.environ, **_ONE})
    wall, cpu = map(float, done.stdout.split()[-2:])
    return wall, cpu


def fit_lifelines(folder: Path, precision: float | None) -> None:
    """Fits and prints the wall and CPU seconds of it."""
    from lifelines import CoxPHFitter

    people = pd.read_csv(folder / "all.csv")
    ends = json.loads((last_run(folder) / "outcomes.json").read_text())["cox"]["baseline"]["time"]
    people["time"] = np.array(ends)[np.searchsorted(ends, people.time)]  # of the intervals that sites merged
    wall, cpu = time.perf_counter(), time.process_time()
    options = {} if precision is None else {"fit_options": {"precision": precision}}
    fitted = CoxPHFitter().fit(people, "time", "event", **options)
    print(time.perf_counter() - wall, time.process_time() - cpu)
    fitted.summary.assign(log_likelihood=fitted.log_likelihood_).to_csv(folder / "theirs.csv", float_format="%.17g")


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
            mine = ours(folder)
            found.append((mine.seconds, mine.cpu_seconds, within(folder), mine.peak_mb, *theirs(folder)))
        columns = list(zip(*found, strict=True))
        rows = []
        for what, own, peer in (
            ("first message to last table, wall s", 2, 4), ("whole command, wall s", 0, 4), ("whole command, CPU s", 1, 5),
        ):  # fmt: skip
            ratios = [a / b for a, b in zip(columns[own], columns[peer], strict=True)]
            medians = [f"{statistics.median(values):.2f}" for values in (columns[own], columns[peer], ratios)]
            rows.append((what, *medians, f"{min(ratios):.2f} to {max(ratios):.2f}"))
        title = f"Cox, 3 x {persons:,} persons, {COLUMNS} covariates, {repeats} pairs; load {os.getloadavg()[0]:.1f}"
        table(title, ("", "ours", "lifelines", "ratio", "range"), rows)
        print(f"largest resident set of ours, with three sites: {max(columns[3]):.0f} MB")
        print(check_equal(folder))


def server(folder: Path) -> None:
    """The server's part on the recorded sums; prints the peak of this process before and after it, in MB."""
    from fedml.experiments.evidence.again import again

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    run, before = last_run(folder), peak()
    with tempfile.TemporaryDirectory() as name:
        again(run, Path(name))
    print(before, peak(), sum((run / part).stat().st_size for part in ("sums.bin", "steps.jsonl")))


def memory(sizes: tuple[int, ...] = (2_000, 20_000)) -> None:
    """Prints the server's peak for each number of persons."""
    rows = []
    for persons in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder, persons)
            ours(folder)
            done = subprocess.run([sys.executable, __file__, "server", name], check=True, capture_output=True, text=True, env=os.environ | _ONE)
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
