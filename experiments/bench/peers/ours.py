"""The project's side: the study of a job, and its marks, weights and record, read from the run's folder when the command has ended."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fedml.experiments.bench.peers.marks import Marks
from fedml.experiments.bench.peers.work import COLUMNS, SEED, Job, Weights, hidden


@dataclass(frozen=True)
class Found:
    """Of one run. ``weights``: without the constants of the preprocessing, named as the bare loop has them."""

    marks: Marks
    weights: Weights
    auroc: float | None


def study(job: Job) -> str:
    """The study's text: the job's network, optimiser, batches and rounds; no evaluation between the rounds, as in the peers."""
    columns = ", ".join(f'"c{i}"' for i in range(COLUMNS))
    if job.name == "pneumonia":
        inputs = 'inputs = ["image"]\ntarget = "label"\nimage = { channels = 1, size = [28, 28] }'
        network = 'image = { net = "cnn", norm = "group", channels = [32, 64, 128] }'
    else:
        inputs = f'inputs = ["clinical"]\ntarget = "label"\n[cohort.clinical]\ncolumns = [{columns}]\nindicate = false'
        network = f'clinical = {{ net = "mlp", hidden = {list(hidden(job))} }}'
    training = (
        f'optimizer = "{job.optimizer}"\nlr = {job.lr}\nbatch_size = {job.batch}\nlocal_epochs = 1' if job.optimizer else "local_epochs = 0"
    )
    sites = ", ".join(f'"{name}"' for name in job.sites)
    return f"""[study]
name = "{job.name}"
seed = {SEED}
[cohort]
{inputs}
[model]
task = "classification"
{network}
[training]
{training}
evaluate_every = 0
threads = 1
[federation]
sites = [{sites}]
rounds = {job.rounds}
"""


def found(job: Job, out: Path) -> Found:
    """What a run under ``out`` left.

    Raises:
        ValueError: the run did not finish, a site was missing in a round, or MLflow's record is not complete.
    """
    import safetensors.numpy

    lines = (out / "output.log").read_text(errors="replace").splitlines()  # both streams: a note on standard error may be the last
    summary = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    folder = out / summary["folder"]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    rounds = [event for event in events if event["event"] == "round"]
    if summary["status"] != "finished" or len(rounds) != job.rounds:
        raise ValueError(f"the run is {summary['status']} after {len(rounds)} of {job.rounds} rounds")
    if missing := [event["round"] for event in rounds if len(event["sites"]) != len(job.sites)]:
        raise ValueError(f"sites are missing in {len(missing)} rounds, the first is round {missing[0]}")
    recorded(out / "mlflow.db", summary["mlflow_run_id"], job.rounds)
    agreed = next(event["time"] for event in events if event["event"] == "agreed")
    marks = Marks((agreed, *(event["time"] for event in rounds)))
    prefixes = ("encoder.clinical.", "encoder.image.")
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    weights = {k.removeprefix(p): v for k, v in arrays.items() for p in prefixes if k.startswith(p)}
    test = summary["metrics"].get("test", {})
    return Found(marks, weights, test.get("all", test).get("auroc") if job.optimizer else None)


def recorded(store: Path, run_id: str | None, rounds: int) -> None:
    """Checks that MLflow's SQLite ``store`` has the run as finished, with a figure of each round.

    Raises:
        ValueError: it does not.
    """
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as database:
        status = database.execute("select status from runs where run_uuid = ?", (run_id,)).fetchone()
        steps = database.execute("select count(distinct step) from metrics where run_uuid = ?", (run_id,)).fetchone()[0]
    if status != ("FINISHED",):
        raise ValueError(f"MLflow's record of the run {run_id} is {status and status[0]}, not FINISHED")
    if steps < rounds:
        raise ValueError(f"MLflow's record has figures of {steps} of {rounds} rounds")
