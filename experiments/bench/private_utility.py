"""Benchmark: the loss of AUROC under differential privacy of one patient: pneumonia and heart at epsilon 1, 3, 8 and without privacy, each
with noise at the sites and, for comparison, with the same DP-SGD on pooled data (one node, the sum of the stated persons, the same
epsilon).

The study files define everything except the learning rate, which is in ``RATES`` for each epsilon: the best of a grid by AUROC of the
validation persons, who are neither trained nor tested on. The rates were chosen from many draws of the noise (6 for pneumonia, 60 for
heart), because one run is not informative at epsilon 1; ``--choose`` prints the grid for a few runs, without test persons. "None" is the
same network and steps with unit "none": no clipping, no noise, constants from the sites' sums. The noise is from the operating system, so
each seed is one more run (heart's initial weights depend on it); the split is the same for all.

    .venv/bin/python experiments/bench/private_utility.py [--seeds 0-2] [--studies heart,pneumonia] [--choose]

Data as in ``heart_rounds``: ``../shared/data``. The table is written to standard output, each run to standard error.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedml.clients.site.manifest import read_site
from fedml.experiments.bench.timing import machine
from fedml.experiments.compare.train import parse_seeds
from fedml.experiments.prepare import prepare
from fedml.experiments.runs.run import outcome, run_nodes
from fedml.privacy.claims import rounded_up
from fedml.runs.events import Privacy
from fedml.study.read import read_study
from fedml.study.study import Study, validate

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1].parent / "shared" / "data"
EPSILONS = (1.0, 3.0, 8.0, None)
WAYS = ("federated", "pooled")
RATES = {
    "pneumonia": {"federated": {1.0: 20.0, 3.0: 80.0, 8.0: 80.0, None: 8.0}, "pooled": {1.0: 80.0, 3.0: 80.0, 8.0: 80.0, None: 8.0}},
    "heart": {"federated": {1.0: 1.0, 3.0: 3.0, 8.0: 3.0, None: 0.01}, "pooled": {1.0: 2.0, 3.0: 3.0, 8.0: 3.0, None: 0.01}},
}
GRIDS = {
    "pneumonia": {True: (10.0, 20.0, 40.0, 80.0, 160.0), False: (2.0, 4.0, 8.0, 16.0)},
    "heart": {True: (0.5, 1.0, 2.0, 3.0, 6.0), False: (0.01, 0.03, 0.1, 0.3)},
}


@dataclass(frozen=True)
class Run:
    """One training run: AUROC by part, the largest epsilon over the sites that the run claims (None without privacy), seconds."""

    auroc: dict[str, float]
    epsilon: float | None
    seconds: float


def plan_of(name: str, way: str, epsilon: float | None, rate: float, seed: int) -> Study:
    """The study with this epsilon, learning rate and seed, for its sites or for one pooled site with all persons."""
    study = read_study(
        HERE.parent / "studies" / f"{name}_private.toml", overrides={"training.lr": rate, "training.evaluate_every": 0}, seed=seed
    )
    plan: dict[str, Any] = study.model_dump(mode="json")
    if way == "pooled":
        plan["federation"]["sites"] = ["pooled"]
        plan["privacy"]["persons"] = {"pooled": sum(study.privacy.persons.values())}
    plan["privacy"] = {"unit": "none"} if epsilon is None else plan["privacy"] | {"epsilon": epsilon}
    return validate(Study, plan, f"{name}_private.toml")


def train(study: Study, sites: Path, folder: Path) -> Run:
    """Runs ``study`` in this process; ``sites`` is the folder of the site folders."""
    files = {site.name: str(site.file) for site in map(read_site, sorted(sites.glob("*/site.toml")))}
    if study.federation.sites == ("pooled",):
        nodes = [{"manifest": "\n".join(files.values()), "name": "pooled"}]
    else:
        nodes = [{"manifest": files[name]} for name in study.federation.sites]
    folder.mkdir(parents=True)
    run_nodes(study, nodes, folder)
    done = outcome(folder, 0.0)
    assert done.status == "finished", done.reason
    claimed = next((e.epsilon for e in done.events if isinstance(e, Privacy)), None)
    assert (claimed is None) == (study.privacy.epsilon is None)
    assert claimed is None or study.privacy.epsilon is None or claimed <= study.privacy.epsilon
    times = [e.time for e in done.events]
    return Run({part: row["all"]["auroc"] for part, row in done.final.metrics.items()}, claimed, times[-1] - times[0])


def spread(values: Sequence[float]) -> str:
    """The mean; for several values, also the smallest and the largest."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def epsilon_text(epsilon: float | None) -> str:
    """An epsilon as text, rounded up; "none" for None."""
    return "none" if epsilon is None else rounded_up(epsilon)


def rows(name: str, sites: Path, seeds: Sequence[int], work: Path) -> Iterable[tuple[str, ...]]:
    """A row for each epsilon, for one study."""
    for epsilon in EPSILONS:
        found: dict[str, list[Run]] = {}
        for way in WAYS:
            rate = RATES[name][way][epsilon]
            for seed in seeds:
                run = train(plan_of(name, way, epsilon, rate, seed), sites, work / f"{name}-{way}-{epsilon}-{seed}")
                found.setdefault(way, []).append(run)
                say = f"{name}, epsilon {epsilon_text(epsilon)}, {way}, lr {rate:g}, seed {seed}"
                print(
                    f"{say}: test {run.auroc['test']:.4f}, validation {run.auroc['val']:.4f}, {run.seconds:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
        claims = [max((r.epsilon for r in found[way] if r.epsilon is not None), default=None) for way in WAYS]
        parts = (spread([r.auroc[part] for r in found[way]]) for part in ("test", "val") for way in WAYS)
        yield (name, "none" if epsilon is None else f"{epsilon:g}", " / ".join(map(epsilon_text, claims)), *parts)


def choices(name: str, sites: Path, seeds: Sequence[int], work: Path) -> Iterable[tuple[str, ...]]:
    """AUROC of the validation persons for each learning rate of the grid."""
    for epsilon in EPSILONS:
        for way in WAYS:
            for rate in GRIDS[name][epsilon is not None]:
                folders = {seed: work / f"{name}-{way}-{epsilon}-{rate}-{seed}" for seed in seeds}
                found = [train(plan_of(name, way, epsilon, rate, s), sites, f).auroc["val"] for s, f in folders.items()]
                mark = "*" if rate == RATES[name][way][epsilon] else ""
                yield (name, "none" if epsilon is None else f"{epsilon:g}", way, f"{rate:g}{mark}", spread(found))


def main() -> None:
    """Prepares the sites, trains the models and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description="AUROC under differential privacy of one patient")
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--studies", default="heart,pneumonia")
    parser.add_argument("--choose", action="store_true", help="print the grid of learning rates on validation persons")
    options = parser.parse_args()
    seeds, make = parse_seeds(options.seeds, 0), choices if options.choose else rows
    heads = {
        True: ("study", "epsilon", "data", "learning rate (* in use)", "validation AUROC"),
        False: ("study", "epsilon", "claimed (largest site / pooled)", "test AUROC", "pooled", "validation AUROC", "pooled, validation"),
    }[options.choose]
    print(f"{machine()}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fedml-utility-") as folder:
        for name in options.studies.split(","):
            prepare(name, Path(folder) / name, data=DATA, say=lambda _: None)
            for row in make(name, Path(folder) / name, seeds, Path(folder) / "runs"):
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
