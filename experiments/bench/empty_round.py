"""Benchmark: an empty round, 10 sites, 1,000 parameters, no epochs, no evaluation. It measures the cost of the federation itself: creating,
packing, reading, checking, answering and averaging messages. The local engine against the same two apps in Flower's simulation on Ray.

The seconds of a round are from the run's events; a repetition is a run of 20 rounds and counts with its median. The final weights of both
engines must be bitwise equal.

    .venv/bin/python experiments/bench/empty_round.py [REPEATS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from fedml.clients.site.manifest import find_sites
from fedml.experiments.bench.timing import Pairs, machine, table
from fedml.experiments.runs.run import Engine, On, new_run, run
from fedml.runs.events import Agreed, Round
from fedml.study.study import Study, parse_study, validate

SITES, COLUMNS, PERSONS, ROUNDS = 10, 499, 30, 20  # 499 columns and a constant, for two classes: 1,000 parameters
ROSTER = [f"site-{i}" for i in range(SITES)]
NAMES = [f"c{i}" for i in range(COLUMNS)]


def make_study() -> Study:
    """A study with a linear model and zero epochs."""
    plan = {
        "study": {"name": "empty"},
        "cohort": {
            "inputs": ["clinical"],
            "target": "label",
            "split": {"train": 0.5, "val": 0.0, "test": 0.5},
            "clinical": {"columns": NAMES, "indicate": False},
        },
        "training": {"local_epochs": 0, "evaluate_every": 0},
        "federation": {"sites": ROSTER, "rounds": ROUNDS, "timeout": 120},
    }
    return parse_study(validate(Study, plan, "the empty study").canonical)


def make_sites(out: Path) -> None:
    """Writes the sites, with simulated tables."""
    generator = np.random.default_rng(0)
    for site in ROSTER:
        folder = out / site
        folder.mkdir(parents=True)
        rows = [",".join(("id", "label", *NAMES))]
        for person in range(PERSONS):
            values = ",".join(f"{v:.3f}" for v in generator.standard_normal(COLUMNS))
            rows.append(f"{site}-{person},{person % 2},{values}")
        (folder / "table.csv").write_text("\n".join(rows) + "\n")
        manifest = f'[site]\nname = "{site}"\n[data]\npersons = "table.csv"\nclinical = {{ path = "table.csv" }}\n'
        (folder / "site.toml").write_text(manifest)


def one_run(study: Study, engine: Engine, sites: Path, runs: Path) -> tuple[list[float], str]:
    """Seconds of each round, and the digest of the final weights."""
    found, _ = find_sites(sites, study.federation.sites)
    outcome = run(study, found, new_run(study, runs, None, engine=engine, job="train"), On(engine, sites))
    assert outcome.status == "finished", outcome.reason
    times = [e.seconds for e in outcome.events if isinstance(e, Round)]
    assert len(times) == ROUNDS
    parameters = next(e.parameters for e in outcome.events if isinstance(e, Agreed))
    assert parameters == 1000, parameters
    return times, outcome.final.weights_sha256


def main() -> None:
    """Measures, compares and prints."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(machine())
    study, pairs, first, digests = make_study(), Pairs(), Pairs(), set[str]()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_sites(work / "sites")
        for _ in range(repeats):
            for engine, rounds, starts in (("local", pairs.ours, first.ours), ("simulation", pairs.peer, first.peer)):
                times, digest = one_run(study, engine, work / "sites", work / "runs")  # type: ignore[arg-type]
                rounds.append(statistics.median(times))
                starts.append(times[0])
                digests.add(digest)
    assert len(digests) == 1, f"final weights differ: {digests}"
    head = ("", "local (ms)", "simulation (ms)", "ratio", "range")
    rows = [pairs.row("a round", 1000), first.row("the first round of a run", 1000)]
    table(f"empty round, {SITES} sites, 1,000 parameters, median of {repeats} runs of {ROUNDS} rounds", head, rows)
    print(f"\nfinal weights: bitwise equal on both engines in all {2 * repeats} runs")


if __name__ == "__main__":
    main()
