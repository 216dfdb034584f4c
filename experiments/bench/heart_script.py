"""The peer of ``heart_rounds.py``: the same federated averaging as a script by torch and numpy, without fedml.

The script reads the same tables and plan, draws the same batches from the same seeds, evaluates the model of each round before training,
and writes ``weights.npz`` and ``metrics.json``. Features are standardised once, before the rounds.

    python heart_script.py PLAN.toml SITES_FOLDER OUT_FOLDER
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

Floats = npt.NDArray[np.float64]
MISSING = {"", "NA", "NaN", "nan", "?"}


def derive_seed(*parts: int | str) -> int:
    """fedml's derivation of seeds, so that both draw the same numbers."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def in_train(person: str, key: str, fraction: float) -> bool:
    """fedml's split, a keyed hash of the id, without a validation part."""
    digest = hashlib.blake2b(person.encode(), digest_size=8, key=hashlib.sha256(key.encode()).digest()).digest()
    return int.from_bytes(digest, "big") / 2**64 < fraction


def read(folder: Path, plan: dict[str, Any]) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Raw features (persons, columns), NaN if missing; labels (persons,); mask of the training persons (persons,)."""
    clinical = plan["cohort"]["clinical"]
    with (folder / "clinical.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    with (folder / "persons.csv").open() as file:
        persons = list(csv.DictReader(file))
    x = np.full((len(persons), len(clinical["columns"])), np.nan)
    for at, person in enumerate(persons):
        for column, name in enumerate(clinical["columns"]):
            text = rows[person["id"]][name]
            if text not in MISSING and float(text) not in clinical["missing"].get(name, ()):
                x[at, column] = float(text)
    y = np.array([int(p[plan["cohort"]["target"]]) for p in persons])
    key, fraction = f"seed-{plan['study']['seed']}", plan["cohort"]["split"]["train"]
    return x, y, np.array([in_train(p["id"], key, fraction) for p in persons])


def standardise(raw: list[Floats], training: list[npt.NDArray[np.bool_]]) -> list[torch.Tensor]:
    """All sites' features, standardised by the training persons' mean and standard deviation; missing values are the mean."""
    sums = np.zeros((3, raw[0].shape[1]))
    for x, rows in zip(raw, training, strict=True):
        filled = np.nan_to_num(x[rows])
        sums += np.stack([(~np.isnan(x[rows])).sum(0), filled.sum(0), (filled**2).sum(0)])
    mean = sums[1] / sums[0]
    std = torch.from_numpy(np.sqrt(sums[2] / sums[0] - mean**2).astype(np.float32))
    centre, out = torch.from_numpy(mean.astype(np.float32)), []
    for x in raw:
        values = torch.from_numpy(x.astype(np.float32))
        out.append(((values - centre) * (1 / std)).masked_fill(torch.isnan(values), 0.0))
    return out


def metrics(z: Floats, y: npt.NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, AUROC (ties one half), Brier score, log loss."""
    odds = z[:, 1] - z[:, 0]
    negative, positive = np.sort(odds[y == 0]), odds[y == 1]
    below, upto = (np.searchsorted(negative, positive, side=side) for side in ("left", "right"))
    p = 1 / (1 + np.exp(-odds))
    return {
        "accuracy": float(((odds > 0) == y).mean()),
        "auroc": float((below + upto).sum() / 2 / (len(negative) * len(positive))),
        "brier": float(((p - y) ** 2).mean()),
        "log_loss": float(np.logaddexp(0, np.where(y == 1, -odds, odds)).mean()),
    }


def evaluate(model: nn.Module, xs: list[torch.Tensor], ys: list[torch.Tensor]) -> dict[str, float]:
    """Metrics over the persons of all sites."""
    model.eval()
    with torch.inference_mode():
        z = np.concatenate([model(x).double().numpy() for x in xs])
    return metrics(z, torch.cat(ys).numpy())


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, plan: dict[str, Any], seed: int) -> None:
    """One site's epochs, with a new optimiser."""
    optimizer = torch.optim.Adam(model.parameters(), lr=plan["lr"], weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(plan["local_epochs"]):
        for batch in torch.randperm(len(y), generator=generator).split(plan["batch_size"]):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x[batch]), y[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def main() -> None:
    """Runs the rounds of federated averaging, then writes the weights and the metrics."""
    plan = tomllib.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    seed, sites = plan["study"]["seed"], plan["federation"]["sites"]
    raw, labels, training = map(list, zip(*(read(Path(sys.argv[2]) / s, plan) for s in sites), strict=True))
    features = standardise(raw, training)
    y = [torch.from_numpy(v) for v in labels]
    train_x, train_y = ([v[torch.from_numpy(rows)] for v, rows in zip(values, training, strict=True)] for values in (features, y))
    test_x, test_y = ([v[torch.from_numpy(~rows)] for v, rows in zip(values, training, strict=True)] for values in (features, y))
    torch.manual_seed(derive_seed("initial weights", seed))
    hidden = plan["model"]["clinical"]["hidden"][0]
    model = nn.Sequential(nn.Linear(len(plan["cohort"]["clinical"]["columns"]), hidden), nn.ReLU(), nn.Linear(hidden, 2))
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    history, persons = [], sum(map(len, train_y))
    for number in range(1, plan["federation"]["rounds"] + 1):
        model.load_state_dict(weights)
        history.append(evaluate(model, train_x, train_y))
        total = {k: torch.zeros_like(v) for k, v in weights.items()}
        for site, x, labels_of_site in zip(sites, train_x, train_y, strict=True):
            model.load_state_dict(weights)
            train(model, x, labels_of_site, plan["training"], derive_seed("training", seed, number, site))
            for key, value in model.state_dict().items():
                total[key].add_(value, alpha=len(labels_of_site))
        weights = {k: v / persons for k, v in total.items()}
    model.load_state_dict(weights)
    out = Path(sys.argv[3])
    np.savez(out / "weights.npz", **{f"encoder.clinical.{k}": v.numpy() for k, v in weights.items()})
    (out / "metrics.json").write_text(json.dumps({"history": history, "test": evaluate(model, test_x, test_y)}))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        main()
    else:
        print("The peer of heart_rounds.py, which runs this script. Usage: python heart_script.py PLAN.toml SITES_FOLDER OUT_FOLDER")
