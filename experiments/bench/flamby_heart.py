"""Benchmark: Fed-Heart-Disease of FLamby as studies, against a rerun of the protocol in plain numpy, and against the published table.

    .venv/bin/python experiments/bench/flamby_heart.py [--seeds 42-46] [--write DIR]

The protocol (Ogier du Terrail et al. 2022, arXiv:2210.04620, and https://github.com/owkin/FLamby, folder fed_heart_disease):

- Persons: the columns slope, ca and thal are left out, then each person who lacks one of the other ten: 740 persons remain. Cholesterol 0
  counts as a value. Inputs: 8 numbers, and indicators of each level of cp and restecg but the first.
- Test persons: 34 % of each site by scikit-learn's ``train_test_split`` with random state 43, stratified by the label where the site
  has more than two persons of each class.
- Standardisation: a site's training persons by their own mean and standard deviation, indicators too. Pooled training, *and the pooled test
  set*, by those of all sites' training persons. So a federated model is tested on other scales than those on which it was trained.
- Model: logistic regression, one logit. Federated: 15 rounds of 100 updates of 4 persons, SGD; FedAvg at 0.001; FedAdam at 0.01 and at the
  server 0.01, betas 0.9 and 0.999, no correction of the bias, 1e-8 added to the root. Sites count by training persons. Pooled: Adam at
  0.001, 50 passes, batches of 4.
- Figure: accuracy on the test persons of all sites, mean over the seeds 42 to 46.

Rows "all sites": the same, with all sites' mean and standard deviation in training too, which the project computes by itself from sums.
Rows "two logits": the project's own linear network, which has one logit for each class, at half of each learning rate.

A study differs from the rerun in the order of batches (a study begins each round with a new order, FLamby goes on in the last pass), in a
second standardisation (of columns that are standardised already, by the moments of all sites' training persons), and in the population's
standard deviation in place of the sample's. First weights are the same (except two logits).

Data: ``../shared/data``, by ``fedml prepare heart``. The table is written to standard output, runs to standard error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedml.clients.site.manifest import find_sites
from fedml.experiments import api
from fedml.experiments.bench.image_parity import train
from fedml.experiments.bench.timing import machine, table
from fedml.experiments.compare.train import parse_seeds
from fedml.experiments.prepare import prepare
from fedml.experiments.prepare.source import write_manifest, write_table
from fedml.experiments.runs.run import outcome
from fedml.study.read import read_study
from fedml.study.study import Study

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1].parent / "shared" / "data"
SITES = ("cleveland", "budapest", "zurich-basel", "long-beach")
NUMBERS = ("age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak")
LEVELS = {"cp": (2, 3, 4), "restecg": (1, 2)}  # all but the first
COLUMNS = (*NUMBERS, *(f"{name}_{level}" for name, levels in LEVELS.items() for level in levels))
ROUNDS, UPDATES, BATCH, PASSES = 15, 100, 4, 50


@dataclass(frozen=True)
class Hospital:
    """One site. ``x``: (persons, 13) float32 raw inputs; ``y``: (persons,) 0 or 1; ``held``: (persons,) whether the person is tested."""

    name: str
    x: torch.Tensor
    y: torch.Tensor
    held: torch.Tensor


Moments = tuple[torch.Tensor, torch.Tensor]
Vector = npt.NDArray[np.float64]
Part = tuple[Vector, Vector]  # standardised inputs and a 1 (persons, 14), labels (persons,)


def read_hospital(folder: Path) -> Hospital:
    """The protocol's persons of a site that ``fedml prepare heart`` has written."""
    import pandas as pd
    from sklearn.model_selection import train_test_split

    rows = pd.read_csv(folder / "clinical.csv").merge(pd.read_csv(folder / "persons.csv"), on="id", validate="one_to_one")
    rows = rows.dropna(subset=[*NUMBERS, *LEVELS])
    for name, levels in LEVELS.items():
        for level in levels:
            rows[f"{name}_{level}"] = (rows[name] == level).astype(float)
    y = rows["disease"].to_numpy()
    stratify = y if np.bincount(y, minlength=2).min() > 2 else None
    held = train_test_split(np.arange(len(y)), test_size=1 - 0.66, train_size=0.66, random_state=43, stratify=stratify)[1]
    x = torch.from_numpy(rows[list(COLUMNS)].to_numpy(np.float32))
    return Hospital(folder.name, x, torch.tensor(y, dtype=torch.float32), torch.isin(torch.arange(len(y)), torch.from_numpy(held)))


def moments(hospitals: Sequence[Hospital]) -> Moments:
    """Mean and standard deviation (of the sample) of each input over the training persons."""
    x = torch.cat([h.x[~h.held] for h in hospitals])
    return x.mean(0), x.std(0)


def scaled(x: torch.Tensor, by: Moments) -> torch.Tensor:
    """``x`` standardised; a constant column becomes 0 for those among whom it is constant."""
    return (x - by[0]) / (by[1] + 1e-9)


def part(hospital: Hospital, rows: torch.Tensor, by: Moments) -> Part:
    """The persons in ``rows`` on the scale ``by``."""
    x = scaled(hospital.x[rows], by).double()
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1).numpy(), hospital.y[rows].double().numpy()


def training_parts(hospitals: Sequence[Hospital], scale: str) -> list[Part]:
    """Each site's training persons, by their own moments ("own sites") or by those of all sites."""
    return [part(h, ~h.held, moments([h] if scale == "own sites" else hospitals)) for h in hospitals]


# The rerun: no code of the project. A model is a vector (14,) float64: 13 weights and the bias.


def first_weights(seed: int) -> Vector:
    """PyTorch's default for a linear layer, as it follows from the seed."""
    torch.manual_seed(seed)
    return torch.nn.utils.parameters_to_vector(torch.nn.Linear(len(COLUMNS), 1).parameters()).detach().double().numpy()


def orders(persons: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Batches without end: pass after pass, each in a new order, the last batch of a pass as small as it is."""
    while True:
        order = rng.permutation(persons)
        yield from (order[k : k + BATCH] for k in range(0, persons, BATCH))


def gradient(w: Vector, x: Vector, y: Vector) -> Vector:
    """Of the mean binary cross-entropy over persons with the inputs ``x`` (persons, 14), of which the last is 1."""
    return (1 / (1 + np.exp(-(x @ w))) - y) @ x / len(y)


def pooled(part: Part, seed: int) -> Vector:
    """Adam (Kingma and Ba 2015) over all persons."""
    w, (x, y) = first_weights(seed), part
    m, v = np.zeros_like(w), np.zeros_like(w)
    batches = orders(len(y), np.random.default_rng(seed))
    for step in range(1, PASSES * -(-len(y) // BATCH) + 1):
        chosen = next(batches)
        g = gradient(w, x[chosen], y[chosen])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.001 * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return w


def federated(parts: Sequence[Part], seed: int, lr: float, server_lr: float | None = None) -> Vector:
    """FedAvg, or FedAdam with ``server_lr``."""
    w, rng = first_weights(seed), np.random.default_rng(seed)
    batches = [orders(len(y), rng) for _, y in parts]
    share = [len(y) / sum(len(y) for _, y in parts) for _, y in parts]
    m, v = np.zeros_like(w), np.zeros_like(w)
    for _ in range(ROUNDS):
        delta = np.zeros_like(w)
        for (x, y), order, fraction in zip(parts, batches, share, strict=True):
            local = w
            for _ in range(UPDATES):
                chosen = next(order)
                local = local - lr * gradient(local, x[chosen], y[chosen])
            delta += fraction * (local - w)
        if server_lr is not None:
            m, v = 0.9 * m + 0.1 * delta, 0.999 * v + 0.001 * delta**2
            delta = server_lr * m / (np.sqrt(v) + 1e-8)
        w = w + delta
    return w


def accuracy(w: Vector, hospitals: Sequence[Hospital]) -> float:
    """Of the test persons of all sites, on the scale of all sites."""
    x, y = (np.concatenate(parts) for parts in zip(*(part(h, h.held, moments(hospitals)) for h in hospitals), strict=True))
    return float(((x @ w > 0) == (y > 0)).mean())


# The studies.


def write_sites(hospitals: Sequence[Hospital], out: Path) -> None:
    """Writes the sites twice: ``out/own`` with training persons on their site's scale and test persons on that of all sites; ``out/all``
    raw."""
    for kind in ("own", "all"):
        for hospital in hospitals:
            folder = out / kind / hospital.name
            folder.mkdir(parents=True)
            x = hospital.x
            if kind == "own":
                x = torch.where(hospital.held[:, None], scaled(x, moments(hospitals)), scaled(x, moments([hospital])))
            ids = [f"{hospital.name}-{k:03d}" for k in range(len(x))]
            write_table(folder / "persons.csv", ("id", "disease"), zip(ids, map(int, hospital.y.tolist()), strict=True))
            write_table(folder / "clinical.csv", ("id", *COLUMNS), ((i, *row) for i, row in zip(ids, x.tolist(), strict=True)))
            write_table(
                folder / "split.csv", ("id", "part"), ((i, "test" if h else "train") for i, h in zip(ids, hospital.held, strict=True))
            )
            lines = 'clinical = { path = "clinical.csv" }', 'split = "split.csv"'
            write_manifest(folder, "UCI heart disease as FLamby uses it, CC BY 4.0", *lines)


def make_study(file: str, changes: Mapping[str, Any]) -> Study:
    """The study with these changes, without own code if another network is named."""
    if "model.clinical" not in changes:
        return read_study(HERE / file, overrides=dict(changes))
    sections = tomllib.loads((HERE / file).read_text(encoding="utf-8"))
    del sections["code"]
    sections["model"]["clinical"] = changes["model.clinical"]
    study = api.Study.of(sections)
    for key, value in changes.items():
        study = study.set(key, value)
    return study.plan


def study_accuracy(sites: Path, run: Path, file: str, way: str, changes: Mapping[str, Any]) -> float:
    """Trains the study on the sites (``way`` "federated" or "pooled") in the folder ``run``; accuracy of all test persons."""
    study = make_study(file, changes)
    began = time.perf_counter()
    train(study, find_sites(sites, study.federation.sites)[0], way, run)
    value = outcome(run, 0.0).final.metrics["test"]["all"]["accuracy"]
    print(f"{run.name}: {value:.4f}, {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    return float(value)


@dataclass(frozen=True)
class Row:
    """One row: published accuracy, the rerun by seed, and the study with its sites, way to train and changed keys."""

    name: str
    published: str
    rerun: Callable[[int], Vector]
    file: str
    sites: str
    changes: Mapping[str, Any]
    way: str = "federated"


AVG, ADAM = "flamby_heart.toml", "flamby_heart_fedadam.toml"
ALL_PERSONS = {
    "training.optimizer": "adam", "training.local_steps": 0, "training.local_epochs": PASSES, "federation.rounds": 1,
}  # fmt: skip


def rows(hospitals: Sequence[Hospital]) -> list[Row]:
    """The table's rows."""
    own, alike = (training_parts(hospitals, scale) for scale in ("own sites", "all sites"))
    everybody = np.concatenate([x for x, _ in alike]), np.concatenate([y for _, y in alike])
    two = {"model.clinical": {"net": "linear"}}
    return [
        Row("pooled", ".795", lambda seed: pooled(everybody, seed), AVG, "all", ALL_PERSONS, "pooled"),
        Row("FedAvg", ".748", lambda seed: federated(own, seed, 0.001), AVG, "own", {}),
        Row("FedAdam", ".779", lambda seed: federated(own, seed, 0.01, 0.01), ADAM, "own", {}),
        Row("FedAvg, two logits", "", lambda seed: federated(own, seed, 0.001), AVG, "own", {**two, "training.lr": 0.0005}),
        Row(
            "FedAdam, two logits", "", lambda seed: federated(own, seed, 0.01, 0.01), ADAM, "own",
            {**two, "training.lr": 0.005, "strategy.server_lr": 0.005},
        ),
        Row("FedAvg, all sites", "", lambda seed: federated(alike, seed, 0.001), AVG, "all", {}),
        Row("FedAdam, all sites", "", lambda seed: federated(alike, seed, 0.01, 0.01), ADAM, "all", {}),
    ]  # fmt: skip


def measure(row: Row, seeds: Sequence[int], hospitals: Sequence[Hospital], work: Path) -> tuple[list[float], list[float]]:
    """Accuracy by seed of the rerun and of the study."""
    plain = [accuracy(row.rerun(seed), hospitals) for seed in seeds]
    studies = []
    for seed in seeds:
        changes = {"study.seed": seed, **({} if "model.clinical" in row.changes else {"model.clinical.init": seed}), **row.changes}
        run = work / f"{row.name.replace(', ', '-').replace(' ', '-').lower()}-{seed}"
        studies.append(study_accuracy(work / "sites" / row.sites, run, row.file, row.way, changes))
    return plain, studies


def load(work: Path) -> list[Hospital]:
    """The four sites, prepared in ``work``."""
    prepare("heart", work / "prepared", data=DATA, say=lambda _: None)
    return [read_hospital(work / "prepared" / name) for name in SITES]


def main() -> None:
    """Prints the table, or writes the sites."""
    parser = argparse.ArgumentParser(description="FLamby's heart disease, as studies and in plain numpy")
    parser.add_argument("--seeds", default="42-46")
    parser.add_argument("--write", type=Path, help="write the sites to this folder, and train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        hospitals = load(Path(folder))
        write_sites(hospitals, options.write or Path(folder) / "sites")
        for hospital in hospitals:
            held = int(hospital.held.sum())
            print(f"{hospital.name}: {len(hospital.y) - held} training and {held} test persons, {int(hospital.y.sum())} with disease")
        if options.write:
            return
        print(machine())
        seeds, lines = parse_seeds(options.seeds, 42), []
        for row in rows(hospitals):
            found = [np.array(values) for values in measure(row, seeds, hospitals, Path(folder))]
            shown = [f"{values.mean():.4f} (sd {values.std(ddof=1) if len(seeds) > 1 else 0:.4f})" for values in found]
            lines.append((row.name, row.published, *shown, f"{found[1].mean() - found[0].mean():+.4f}"))
    table(f"accuracy on the pooled test set, seeds {options.seeds}", ("", "published", "rerun", "study", "study - rerun"), lines)


if __name__ == "__main__":
    main()
