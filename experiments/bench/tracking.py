"""Benchmark: tracking 50 sites x 20 metrics x 100 rounds in MLflow: `deliver` of the run's folder (runs, figures, artifacts, model) against
one ``log_metric`` call for each of the sites' figures, on the same kind of store (SQLite).

The run is real: 50 simulated sites of 30 persons, three clinical columns, a linear model. It has 12 figures for each site and round: eight
of validation persons, the loss, bytes sent and received, participation. To reach 20, the eight are added to each round's log a second time,
as those of training persons.

The peer logs the figures of the first rounds (the argument) and its time is scaled to all, because all calls are alike. Both stores are
then compared over those rounds. The peer's time excludes the creation of its runs, ours includes it; imports of MLflow are not counted.

    .venv/bin/python experiments/bench/tracking.py [ROUNDS]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedml.experiments.bench.timing import machine, table

SITES, ROUNDS, PERSONS = 50, 100, 30


def make_run(folder: Path) -> Path:
    """Runs the study over the sites; returns the run's folder."""
    from fedml.clients.site.manifest import find_sites
    from fedml.experiments.runs.run import new_run, run
    from fedml.runs.log import EVENTS, read_events
    from fedml.study.study import Study, validate

    names, rng = [f"site-{k:02d}" for k in range(SITES)], np.random.default_rng(0)
    for name in names:
        (folder / "sites" / name).mkdir(parents=True)
        x = rng.normal(size=(PERSONS, 3))
        y = (x.sum(1) + rng.normal(size=PERSONS) > 0).astype(int)
        ids = [f"{name}-{k}" for k in range(PERSONS)]
        rows = zip(ids, x, strict=True)
        (folder / "sites" / name / "clinical.csv").write_text("id,a,b,c\n" + "".join(f"{i},{r[0]},{r[1]},{r[2]}\n" for i, r in rows))
        (folder / "sites" / name / "persons.csv").write_text("id,y\n" + "".join(f"{i},{v}\n" for i, v in zip(ids, y, strict=True)))
        manifest = f'[site]\nname = "{name}"\n[data]\npersons = "persons.csv"\nclinical = {{ path = "clinical.csv" }}\n'
        (folder / "sites" / name / "site.toml").write_text(manifest)
    plan = {
        "study": {"name": "wide"},
        "cohort": {"inputs": ["clinical"], "target": "y", "classes": [0, 1], "split": {"train": 0.5, "val": 0.25, "test": 0.25},
                   "clinical": {"columns": ["a", "b", "c"]}},
        "model": {"clinical": {"net": "linear"}},
        "federation": {"sites": names, "rounds": ROUNDS},
    }  # fmt: skip
    study = validate(Study, plan, "the bench's study")
    run_folder = new_run(study, folder / "runs", None, engine="local", job="train")
    ended = run(study, find_sites(folder / "sites", tuple(names))[0], run_folder)
    if ended.status != "finished":
        raise SystemExit(ended.reason)
    logged, _ = read_events(run_folder)
    for row in logged:
        if row["event"] == "round":
            row["metrics"]["train"] = row["metrics"]["val"]
    (run_folder / EVENTS).write_text("".join(json.dumps(row) + "\n" for row in logged))
    return run_folder


def figures(run: Path) -> list[tuple[str, str, float, int, int]]:
    """(site, name, value, milliseconds, step) for every figure of a site in a round."""
    from fedml.runs.events import Round
    from fedml.runs.log import read_log

    ways: tuple[Literal["train_loss", "bytes_out", "bytes_in"], ...] = ("train_loss", "bytes_out", "bytes_in")
    out = []
    for event in read_log(run)[0]:
        if not isinstance(event, Round):
            continue
        stamp, number = int(event.time * 1000), event.round
        for site, row in event.sites.items():
            for part, scores in event.metrics.items():
                out += [(site, f"{part}/{k}", v, stamp, number - 1) for k, v in scores["sites"][site].items() if v is not None]
            out += [(site, f"work/{k}", float(row[k] or 0.0), stamp, number) for k in ways]
            out.append((site, "work/took_part", 1.0, stamp, number))
    return out


def ours(run: Path, uri: str) -> float:
    """Seconds to deliver the run's folder to a new store."""
    from fedml.study.study import parse_study
    from fedml.tracking.deliver import deliver

    os.environ["MLFLOW_TRACKING_URI"] = uri
    study = parse_study((run / "study.json").read_text())
    began = time.perf_counter()
    deliver(run, study)
    return time.perf_counter() - began


def peer(all_figures: list[tuple[str, str, float, int, int]], uri: str) -> float:
    """Seconds for one ``log_metric`` call for each figure, in a store with one run for each site."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    number = client.create_experiment("wide")
    runs = {site: client.create_run(number, run_name=site).info.run_id for site in dict.fromkeys(row[0] for row in all_figures)}
    began = time.perf_counter()
    for site, name, value, stamp, step in all_figures:
        client.log_metric(runs[site], name, value, stamp, step)
    return time.perf_counter() - began


def histories(uri: str, steps: int) -> dict[tuple[str, str], list[tuple[int, float, int]]]:
    """(site, metric) -> (step, value, milliseconds) up to ``steps``, of the figures that the peer has too."""
    from mlflow import MlflowClient

    client, out = MlflowClient(uri), {}
    for run in client.search_runs([client.get_experiment_by_name("wide").experiment_id]):
        site = run.info.run_name.rpartition("/")[2]
        for name in run.data.metrics if site.startswith("site-") else ():
            found: list[Any] = client.get_metric_history(run.info.run_id, name)
            last = steps - (not name.startswith("work/"))
            kept = sorted((m.step, m.value, m.timestamp) for m in found if m.step <= last)
            if kept:
                out[site, name] = kept
    return out


def main() -> None:
    """Prints the machine and one table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        run = make_run(folder)
        all_figures = figures(run)
        first = [row for row in all_figures if row[4] + (not row[1].startswith("work/")) <= rounds]
        from mlflow import MlflowClient

        uris = {who: f"sqlite:///{folder / who}.db" for who in ("ours", "peer")}
        for uri in uris.values():  # creates the tables, which takes the same time for both
            MlflowClient(uri).search_experiments()
        from fedml.tracking import scoring  # noqa: F401 - imports torch and mlflow before the clock starts

        peer_seconds = peer(first, uris["peer"])
        our_seconds = ours(run, uris["ours"])
        whole = peer_seconds * len(all_figures) / len(first)
        equal = histories(uris["ours"], rounds) == histories(uris["peer"], rounds)
        load = os.getloadavg()[0]
    print(machine())
    table(
        f"{len(all_figures)} figures of {SITES} sites over {ROUNDS} rounds; load {load:.1f}",
        ("", "s", "figures/s"),
        [
            ("ours, the complete record", f"{our_seconds:.1f}", f"{len(all_figures) / our_seconds:.0f}"),
            (f"one call each, {len(first)} figures measured", f"{peer_seconds:.1f}", f"{len(first) / peer_seconds:.0f}"),
            ("one call each, scaled to all", f"{whole:.0f}", ""),
            ("one call each / ours", f"{whole / our_seconds:.1f}", ""),
        ],
    )
    print(f"the same figures in both stores: {'yes' if equal else 'NO'}")
    if not equal:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
