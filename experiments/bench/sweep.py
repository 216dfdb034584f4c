"""Benchmark: a sweep of 12 runs of the heart study (2 learning rates x 2 algorithms x 3 seeds) against a plain loop of the same 12 runs in
the same process: the checks before the first run, the choice and `sweep.json` are what a sweep adds. Imports are paid before both; MLflow
is written after a sweep and is not counted. The weights of all runs must be equal.

    .venv/bin/python experiments/bench/sweep.py [REPEATS]
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path

from fedml.experiments.bench.timing import Pairs, machine, table
from fedml.experiments.prepare import prepare

HERE = Path(__file__).resolve().parent
STUDY = HERE.parent / "studies" / "heart.toml"
FIXED = {"cohort.split": {"train": 0.46, "val": 0.2, "test": 0.34}}  # heart.toml has no validation persons
LRS, ALGORITHMS, SEEDS = (0.003, 0.01), ("fedavg", "fedprox"), (0, 1, 2)


def main() -> None:
    """Measures, compares and prints."""
    from rich.console import Console

    from fedml.clients.site.manifest import Site, find_sites
    from fedml.experiments.runs.run import new_run, run
    from fedml.experiments.sweep.commands import How, perform
    from fedml.experiments.sweep.plan import Search, Sweep, forget
    from fedml.runs.log import MODEL
    from fedml.study.read import read_study
    from fedml.study.study import Study

    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    base = read_study(STUDY, overrides=FIXED)
    search = Search({"training.lr": LRS, "strategy.name": ALGORITHMS}, SEEDS)
    plan = Sweep(base, lambda changes: read_study(STUDY, overrides={**FIXED, **changes}), search)
    studies: list[Study] = [
        read_study(STUDY, overrides={**FIXED, "cohort.split_key": base.split_key, "training.lr": lr, "strategy.name": name}, seed=seed)
        for lr, name, seed in itertools.product(LRS, ALGORITHMS, SEEDS)
    ]
    quiet = Console(quiet=True)

    def loop(studies: list[Study], sites: dict[str, Site], runs: Path) -> tuple[float, float, list[bytes]]:
        """Seconds within the calls of ``run``, CPU seconds, and the models."""
        forget()
        cpu, ended = 0.0, []
        for study in studies:
            folder = new_run(study, runs, STUDY, engine="local", job="train")
            began = time.process_time()
            ended.append(run(study, sites, folder))
            cpu += time.process_time() - began
        return sum(each.seconds for each in ended), cpu, [(each.run / MODEL).read_bytes() for each in ended]

    def swept(folder: Path, runs: Path) -> tuple[float, float, list[bytes]]:
        """Seconds of the whole sweep, CPU seconds, and the models of its runs in the order of ``studies``."""
        forget()
        began, cpu = time.perf_counter(), time.process_time()
        result, _ = perform(plan, (folder, runs), STUDY, How(track=False), quiet)
        took, used = time.perf_counter() - began, time.process_time() - cpu
        made = {study.sha256: run for row in result.rows for study, run in zip(row.tried.studies, row.runs, strict=True)}
        return took, used, [(made[study.sha256] / MODEL).read_bytes() for study in studies]

    print(machine())
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        prepare("heart", work / "sites", data=HERE.parents[1].parent / "shared" / "data", say=lambda _: None)
        sites = find_sites(work / "sites", base.federation.sites)[0]
        loop(studies[:1], sites, work / "warm")  # imports, bytecode
        wall, cpu = Pairs(), Pairs()
        for at in range(repeats):
            ours, our_cpu, models = swept(work / "sites", work / f"sweep-{at}")
            peer, peer_cpu, same = loop(studies, sites, work / f"loop-{at}")
            assert models == same, "the runs of the sweep have other weights"
            for pairs, one, other in ((wall, ours, peer), (cpu, our_cpu, peer_cpu)):
                pairs.ours.append(one)
                pairs.peer.append(other)
    head = ("12 runs of heart", "sweep (s)", "12 runs alone (s)", "ratio", "range")
    table(f"median of {repeats}", head, [wall.row("wall"), cpu.row("CPU")])


if __name__ == "__main__":
    main()
