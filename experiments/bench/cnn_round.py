"""Benchmark: a study with images, all of ``run_study`` on the local engine (agreement, statistics, rounds, evaluation, saved model),
against a plain PyTorch loop with the same federated averaging over the same batches. Three sites of 600 simulated 28 x 28 images, the
"cnn" network, one and two threads. Both have the images in memory before they start. Final weights must be equal.

    .venv/bin/python experiments/bench/cnn_round.py [REPEATS]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedml.clients.site.manifest import find_sites
from fedml.clients.site.read import load_cohort
from fedml.clients.work.client import app
from fedml.cohort.images.images import Images
from fedml.experiments.bench.timing import machine, paired, seconds, table
from fedml.flower.grid import InProcessGrid
from fedml.seeds import derive_seed
from fedml.strategies.rounds import run_study
from fedml.study.section import PARTS
from fedml.study.study import Study, parse_study, validate

ROSTER = ["amber", "birch", "cedar"]
PERSONS, SIZE, ROUNDS = 600, 28, 4
TOLERANCE = 1e-6
Tensors = dict[str, torch.Tensor]


def make_study(threads: int) -> Study:
    """A study of four rounds of one epoch."""
    plan = {
        "study": {"name": "cnn"},
        "cohort": {"inputs": ["image"], "target": "label", "image": {"channels": 1, "size": [SIZE, SIZE]}},
        "model": {"image": {"net": "cnn", "channels": [16, 32, 64]}},
        "training": {"optimizer": "adam", "lr": 0.001, "batch_size": 32, "local_epochs": 1, "threads": threads},
        "federation": {"sites": ROSTER, "rounds": ROUNDS},
    }
    return parse_study(validate(Study, plan, "the image study").canonical)


def make_sites(out: Path) -> None:
    """Writes the sites: images of noise, with a brighter square if the label is 1."""
    generator = np.random.default_rng(0)
    for site in ROSTER:
        folder = out / site
        folder.mkdir(parents=True)
        labels = generator.integers(0, 2, PERSONS)
        images = generator.integers(0, 200, (PERSONS, SIZE, SIZE), dtype=np.uint8)
        images[labels == 1, 8:16, 8:16] += 40
        ids = [f"{site}-{i}" for i in range(PERSONS)]
        np.savez(folder / "images.npz", ids=np.array(ids), images=images)
        (folder / "persons.csv").write_text("\n".join(["id,label", *(f"{i},{v}" for i, v in zip(ids, labels, strict=True))]) + "\n")
        manifest = (
            f'[site]\nname = "{site}"\n[data]\npublic = true\npersons = "persons.csv"\nimage = {{ path = "images.npz", format = "npz" }}\n'
        )
        (folder / "site.toml").write_text(manifest)


def ours(study: Study, sites: Path, run: Path) -> Tensors:
    """Runs the study as ``fedml run`` does; returns the final arrays."""
    run.mkdir(exist_ok=True)
    manifests = [str(site.file.resolve()) for site in find_sites(sites, study.federation.sites)[0].values()]
    config: dict[str, bool | int | float | str] = {"study": study.canonical, "run": str(run)}
    return run_study(study, InProcessGrid(app, [{"manifest": m} for m in manifests], config), run).arrays


def network() -> nn.Sequential:
    """The layers of the study's network, in plain PyTorch."""
    layers: list[nn.Module] = []
    for before, channels in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.GroupNorm(8, channels), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))


def evaluate(model: nn.Module, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """Accuracy and log loss over the persons of all sites."""
    model.eval()
    with torch.inference_mode():
        z, y = torch.cat([model(x) for x, _ in parts]), torch.cat([y for _, y in parts])
    return float((z.argmax(1) == y).double().mean()), float(functional.cross_entropy(z.double(), y))


def plain_loop(study: Study, data: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> Tensors:
    """The plain loop; ``data``: (images, labels, parts) of each site. Returns the final weights."""
    torch.set_num_threads(study.training.threads)
    training = torch.cat([x[parts == 0] for x, _, parts in data]).double()
    mean, variance = training.mean(), (training**2).mean() - training.mean() ** 2
    scale = 1 / variance.sqrt().float()
    ready = [((x.float() - mean.float()) * scale, y, parts) for x, y, parts in data]
    train, val, test = ([(x[parts == p], y[parts == p]) for x, y, parts in ready] for p in range(3))
    torch.manual_seed(derive_seed("initial weights", study.study.seed))
    model = network()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    for number in range(1, ROUNDS + 1):
        model.load_state_dict(weights)
        evaluate(model, val)
        total = {k: torch.zeros_like(v) for k, v in weights.items()}
        for site, (x, y) in zip(ROSTER, train, strict=True):
            model.load_state_dict(weights)
            optimizer = torch.optim.Adam(model.parameters(), lr=study.training.lr, fused=True)
            generator = torch.Generator().manual_seed(derive_seed("training", study.study.seed, number, site))
            model.train()
            for batch in torch.randperm(len(y), generator=generator).split(study.training.batch_size):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                functional.cross_entropy(model(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            for key, value in model.state_dict().items():
                total[key].add_(value, alpha=len(y))
        weights = {k: v / sum(len(y) for _, y in train) for k, v in total.items()}
    model.load_state_dict(weights)
    evaluate(model, val)
    evaluate(model, test)
    return weights


def compare(our: Tensors, theirs: Tensors) -> str:
    """Asserts that the final weights agree within ``TOLERANCE``; returns the difference as text."""
    named = {f"encoder.image.{k}": v for k, v in theirs.items()}
    assert our.keys() == named.keys(), (sorted(our), sorted(named))
    if all(torch.equal(our[k], v) for k, v in named.items()):
        return "bitwise equal"
    apart = max(float((our[k] - v).abs().max() / v.abs().max()) for k, v in named.items())
    assert apart <= TOLERANCE, f"final weights differ by {apart:.1e} of the largest"
    return f"equal to {apart:.1e} of the largest weight"


def main() -> None:
    """Measures, compares and prints."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    print(machine())
    rows, differences = [], []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_sites(work / "sites")
        for threads in (1, 2):
            study = make_study(threads)
            sites, _ = find_sites(work / "sites", study.federation.sites)
            cohorts = [load_cohort((str(site.file.resolve()),), study) for site in sites.values()]
            data = []
            for cohort in cohorts:
                found = cohort.input("image", Images)
                assert found is not None
                images, labels = torch.from_numpy(found.pixels), torch.from_numpy(cohort.labels.astype(np.int64))
                data.append((images, labels, torch.from_numpy(cohort.parts)))
            equal = compare(ours(study, work / "sites", work / "run"), plain_loop(study, data))  # also the warm-up of both
            pairs = paired(partial(timed, ours, study, work / "sites", work / "run"), partial(timed, plain_loop, study, data), repeats)
            rows.append(pairs.row(str(threads)))
            differences.append(f"{equal} with {threads} thread(s)")
    persons = ", ".join(f"{sum(c.count(part) for c in cohorts)} {part}" for part in PARTS)
    head = ("threads", "run_study (s)", "bare loop (s)", "ratio", "range")
    table(f"cnn, {len(ROSTER)} sites, {persons} persons, {ROUNDS} rounds, median of {repeats}", head, rows)
    print(f"\nfinal weights: {', '.join(differences)}")


def timed(work: Callable[..., object], *arguments: object) -> float:
    """Seconds of ``work(*arguments)``."""
    return seconds(lambda: work(*arguments))


if __name__ == "__main__":
    main()
