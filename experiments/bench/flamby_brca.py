"""Benchmark: Fed-TCGA-BRCA of FLamby as a study, against a rerun of the protocol in plain PyTorch, and against the published figures.

    .venv/bin/python experiments/bench/flamby_brca.py [--seeds 42-46] [--rows FedAdam,FedYogi]

The protocol (Ogier du Terrail et al. 2022, arXiv:2210.04620, and https://github.com/owkin/FLamby, folder fed_tcga_brca):

- Persons, features, split: ``fedml prepare brca``. Twelve persons with time 0 are left out, who are in no risk set and no pair.
- Model: one linear layer on 39 features. Loss: Cox's partial likelihood of a batch of 8 persons, by their number.
- Federated: 5 rounds of 100 updates a site, SGD; FedAvg at 0.1; FedAdam and FedYogi at 0.01 and at the server 0.1, betas 0.9 and 0.999,
  1e-8 added to the root. Sites count by training persons. Pooled: the same 500 updates over all persons together.
- Figure: ``lifelines.utils.concordance_index`` of the score and the exact times of the test persons *of all sites together*; mean and
  standard deviation over the seeds 42 to 46. That this is the published figure follows from FLamby's own files of results (folder
  ``results_benchmark_fed_tcga_brca``, one file a seed): of its rows "Pooled Test", FedAdam and FedYogi have mean .8421, FedAvg .7353 and
  standard deviation .175, pooled .7041 and .114. The mean over the six test sets of the same files is .815 for FedAdam. Both are printed.

A study standardises features by the training persons of all sites, unless it says ``[cohort] standardise = "centre"``. FLamby takes them
raw, so age, in years, is fifty times as wide as an indicator. The rows "in their units" are its protocol; the others, and the rerun on
standardised features, show what that is worth. What still differs: times of the study's loss are rounded up to 30 days, ties by Breslow
(FLamby: in the order of the batch); it begins each round with a new order of batches, as the rerun does (FLamby goes on with the old one);
beside the score it learns a baseline. FLamby's pooled model is trained by Adam at 0.1 for 30 passes; "pooled, 500 updates" has the
updates of one site instead.

Data: ``../shared/data``. The table is written to standard output, runs to standard error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedml.clients.site.manifest import Site, find_sites
from fedml.experiments import api
from fedml.experiments.bench.image_parity import train
from fedml.experiments.bench.timing import machine, table
from fedml.experiments.compare.train import parse_seeds
from fedml.experiments.models.predictions import predictions
from fedml.experiments.prepare import prepare
from fedml.study.read import read_study

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1].parent / "shared" / "data"
STUDY = HERE.parent / "studies" / "brca.toml"
ROUNDS, UPDATES, BATCH = 5, 100, 8
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Region:
    """One site. ``x``: (persons, 39) raw features; ``time``, ``event``, ``held``: (persons,), days, death, and whether tested."""

    name: str
    ids: tuple[str, ...]
    x: torch.Tensor
    time: torch.Tensor
    event: torch.Tensor
    held: npt.NDArray[np.bool_]


def read_region(folder: Path) -> Region:
    """A site that ``fedml prepare brca`` has written."""
    import pandas as pd

    people, clinical, split = (pd.read_csv(folder / f"{name}.csv", index_col="id") for name in ("persons", "clinical", "split"))
    x = torch.from_numpy(clinical.loc[people.index].to_numpy(np.float32))
    days, died = (torch.from_numpy(people[name].to_numpy(np.float32)) for name in ("days", "died"))
    return Region(folder.name, tuple(people.index), x, days, died, (split.loc[people.index, "part"] == "test").to_numpy())


def c_indices(regions: Sequence[Region], score: Mapping[str, Floats]) -> tuple[float, float]:
    """C-index of the test persons: the mean over sites, and of all together. score: region -> (persons,), larger is worse."""
    from lifelines.utils import concordance_index

    parts = [(r.time.numpy()[r.held], -score[r.name][r.held], r.event.numpy()[r.held]) for r in regions]
    each = [float(concordance_index(*part)) for part in parts]
    return float(np.mean(each)), float(concordance_index(*(np.concatenate(column) for column in zip(*parts, strict=True))))


# The rerun: no code of the project. A model is a linear layer of PyTorch.


def batch_loss(score: torch.Tensor, time: torch.Tensor, event: torch.Tensor) -> torch.Tensor:
    """-log partial likelihood of a batch by its persons, in the order of falling times."""
    order = torch.argsort(-time, stable=True)
    return ((torch.logcumsumexp(score[order], 0) - score[order]) * event[order]).mean()


def steps(model: torch.nn.Linear, region: Region, x: torch.Tensor, lr: float, updates: int, rng: np.random.Generator) -> None:
    """So many updates of SGD on a region's training persons, in place; pass after pass, each in a new order."""
    optimizer, rows, waiting = torch.optim.SGD(model.parameters(), lr=lr), np.flatnonzero(~region.held), list[Any]()
    for _ in range(updates):
        if not waiting:
            order = rng.permutation(rows)
            waiting = [order[k : k + BATCH] for k in range(0, len(order), BATCH)]
        chosen = torch.from_numpy(waiting.pop(0))
        optimizer.zero_grad()
        batch_loss(model(x[chosen])[:, 0], region.time[chosen], region.event[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def rerun(
    regions: Sequence[Region], xs: Mapping[str, torch.Tensor], seed: int, lr: float, server: tuple[str, float] | None
) -> torch.nn.Linear:
    """FedAvg, or FedAdam or FedYogi with a server's rate."""
    torch.manual_seed(seed)
    rng, model = np.random.default_rng(seed), torch.nn.Linear(39, 1)
    w = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    share = [float((~r.held).sum()) / sum(float((~q.held).sum()) for q in regions) for r in regions]
    for _ in range(ROUNDS):
        delta = torch.zeros_like(w)
        for region, fraction in zip(regions, share, strict=True):
            torch.nn.utils.vector_to_parameters(w.clone(), model.parameters())
            steps(model, region, xs[region.name], lr, UPDATES, rng)
            delta += fraction * (torch.nn.utils.parameters_to_vector(model.parameters()).detach() - w)
        if server is not None:
            m = 0.9 * m + 0.1 * delta
            v = 0.999 * v + 0.001 * delta**2 if server[0] == "fedadam" else v - 0.001 * torch.sign(v - delta**2) * delta**2
            delta = server[1] * m / (v.sqrt() + 1e-8)
        w = w + delta
    torch.nn.utils.vector_to_parameters(w, model.parameters())
    return model


def standardised(regions: Sequence[Region]) -> dict[str, torch.Tensor]:
    """Features by the mean and standard deviation of the training persons of all sites."""
    x = torch.cat([r.x[torch.from_numpy(~r.held)] for r in regions])
    return {r.name: (r.x - x.mean(0)) / (x.std(0) + 1e-9) for r in regions}


@dataclass(frozen=True)
class Row:
    """One row: the published C-index, the server's step of the rerun, and the changed keys of the study."""

    name: str
    published: str
    lr: float
    server: tuple[str, float] | None
    changes: Mapping[str, Any]
    way: str = "federated"


AVG = {"strategy.name": "fedavg", "training.lr": 0.1}
UNITS = {"cohort.standardise": "centre"}
ROWS = (
    Row("pooled, 500 updates", ".704 ± .114", 0.1, None, AVG, "pooled"),
    Row("FedAvg", ".735 ± .175", 0.1, None, AVG),
    Row("FedAdam", ".842", 0.01, ("fedadam", 0.1), {}),
    Row("FedYogi", ".842", 0.01, ("fedyogi", 0.1), {"strategy.name": "fedyogi"}),
    Row("FedAvg, in their units", ".735 ± .175", 0.1, None, {**AVG, **UNITS}),
    Row("FedAdam, in their units", ".842", 0.01, ("fedadam", 0.1), UNITS),
    Row("FedYogi, in their units", ".842", 0.01, ("fedyogi", 0.1), {"strategy.name": "fedyogi", **UNITS}),
    Row("FedAvg, 50 rounds", "", 0.1, None, {**AVG, "federation.rounds": 50}),
)


def study_scores(row: Row, seed: int, sites: Mapping[str, Site], run: Path) -> dict[str, float]:
    """Trains the study; case -> log-hazard of each person, up to a constant."""
    began = time.perf_counter()
    train(_plan(row, seed), dict(sites), row.way, run)
    found = predictions(run, sites)
    print(f"{run.name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    return dict(zip(found["id"], found["risk"], strict=True))


def _plan(row: Row, seed: int) -> Any:
    """The study without its analyses, of which none is run here, and without the keys of a server's step that is not there."""
    plan = tomllib.loads(STUDY.read_text(encoding="utf-8"))
    del plan["describe"], plan["survival"]["curves"], plan["survival"]["cox"]
    if row.server is None:
        plan["strategy"] = {"name": "fedavg"}
    study = api.Study.of(plan)
    for key, value in {"study.seed": seed, **row.changes}.items():
        study = study.set(key, value)
    return study.plan


def measure(row: Row, seeds: Sequence[int], regions: Sequence[Region], sites: Mapping[str, Site], work: Path) -> list[str]:
    """Cells of the table: C-index of all sites together, of the rerun (on raw features where the study's keep their units) and of the
    study; last its mean over the sites."""
    xs = {r.name: r.x for r in regions} if "cohort.standardise" in row.changes else standardised(regions)
    again: list[tuple[float, float]] = []
    if row.way == "federated" and "federation.rounds" not in row.changes:
        models = [rerun(regions, xs, seed, row.lr, row.server) for seed in seeds]
        again = [c_indices(regions, {r.name: _scores(model, xs[r.name]) for r in regions}) for model in models]
    studies = []
    for seed in seeds:
        name = f"{row.name.replace(', ', '-').replace(' ', '-').lower()}-{seed}"
        by_id = study_scores(row, seed, sites, work / name)
        studies.append(c_indices(regions, {r.name: np.array([by_id[i] for i in r.ids]) for r in regions}))
    return [row.published, _shown([c[1] for c in again]) if again else "", *(_shown([c[k] for c in studies]) for k in (1, 0))]


def _scores(model: torch.nn.Linear, x: torch.Tensor) -> Floats:
    with torch.inference_mode():
        found: Floats = model(x)[:, 0].double().numpy()
    return found


def _shown(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f} (sd {np.std(values, ddof=1) if len(values) > 1 else 0:.4f})"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="FLamby's TCGA-BRCA, as a study and in plain PyTorch")
    parser.add_argument("--seeds", default="42-46")
    parser.add_argument("--rows", default="", help="names of the rows to run, separated by semicolons; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [name.strip() for name in options.rows.split(";") if name.strip()]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare("brca", work / "sites", data=DATA, say=lambda text: print(text, flush=True))
        names = read_study(STUDY).federation.sites
        sites, regions = find_sites(work / "sites", names)[0], [read_region(work / "sites" / name) for name in names]
        print(machine())
        seeds = parse_seeds(options.seeds, 42)
        lines = [(row.name, *measure(row, seeds, regions, sites, work)) for row in ROWS if not wanted or row.name in wanted]
    table(
        f"C-index of the test persons of all sites together, seeds {options.seeds}",
        ("", "published", "rerun", "study", "study, mean over sites"), lines,
    )  # fmt: skip


if __name__ == "__main__":
    main()
