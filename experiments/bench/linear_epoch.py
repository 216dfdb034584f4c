"""Benchmark: an epoch of a linear model on variants (the project's preprocessing, a layer of 2 outputs, SGD, batches of 64) with batches
from the memory-mapped packed cache, against the same epoch from memory: int8 (4 times the size of the cache) and float32 (16 times). 1,000
persons x 200,000 variants; one torch thread. The final weights of all must be bitwise equal.

    .venv/bin/python experiments/bench/linear_epoch.py [REPEATS] [PERSONS] [VARIANTS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedml.cohort.variants.cache import cached
from fedml.cohort.variants.model import Selection
from fedml.cohort.variants.open import open_source
from fedml.experiments.bench.cached_batches import all_ids, write_cohort
from fedml.experiments.bench.timing import Pairs, machine, seconds, table
from fedml.learning.training import batches
from fedml.models.fusion import digest
from fedml.networks.preprocess import VariantPreprocess

BATCH = 64
Read = Callable[[npt.NDArray[np.int64]], torch.Tensor]


def make_model(mean: torch.Tensor, std: torch.Tensor) -> nn.Sequential:
    """The model, with the same initial weights each time."""
    first = VariantPreprocess(len(mean))
    first.mean.copy_(mean)
    first.std.copy_(std)
    last = nn.Linear(len(mean), 2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        last.weight.normal_(0, 1e-3, generator=generator)
        last.bias.zero_()
    return nn.Sequential(first, last)


def epoch(model: nn.Module, read: Read, labels: torch.Tensor) -> None:
    """One pass over all persons in a fixed random order."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for rows in batches(np.arange(len(labels)), BATCH, torch.Generator().manual_seed(1)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(read(rows)), labels[torch.from_numpy(rows)]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def main() -> None:
    """Measures, compares and prints."""
    repeats, persons, variants = (*map(int, sys.argv[1:4]), *(5, 1000, 200_000)[len(sys.argv[1:4]) :])
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory(prefix="fedml-bench-") as name:
        path = Path(name) / "cohort.bed"
        write_cohort(path, persons, variants)
        packed = cached(Path(name) / "cache", open_source(path), all_ids(persons), Selection(), 512).table
        small = torch.from_numpy(packed[:])
        large = small.float()
        called = (small >= 0).sum(0)
        mean = small.clamp_min(0).sum(0) / called
        std = ((small.clamp_min(0).square().sum(0) / called) - mean.square()).clamp_min(0).sqrt()
        labels = torch.from_numpy(np.random.default_rng(2).integers(0, 2, persons))
        ways: dict[str, Read] = {
            "cache, int8": lambda rows: torch.from_numpy(packed[rows]),
            "cache, float32": lambda rows: torch.from_numpy(packed.floats(rows)),
            "memory, int8": lambda rows: small[torch.from_numpy(rows)],
            "memory, float32": lambda rows: large[torch.from_numpy(rows)],
        }

        def once(read: Read) -> tuple[float, float]:
            model, began = make_model(mean, std), time.process_time()
            took = seconds(lambda: epoch(model, read, labels))
            used = time.process_time() - began
            found.append(digest(model.state_dict()))
            return took, used

        found: list[str] = []
        wall: list[tuple[str, ...]] = []
        cpu: list[tuple[str, ...]] = []
        for peer in ("memory, int8", "memory, float32"):
            for ours in ("cache, int8", "cache, float32"):
                pairs = [(once(ways[ours]), once(ways[peer])) for _ in range(repeats + 1)][1:]  # the first is the warm-up
                for lines, which in ((wall, 0), (cpu, 1)):
                    lines.append(Pairs([a[which] for a, _ in pairs], [b[which] for _, b in pairs]).row(f"{ours}; {peer}"))
    assert len(set(found)) == 1, "the final weights differ"
    for clock, lines in (("wall", wall), ("CPU", cpu)):  # CPU time depends less on other processes
        title = f"an epoch, {persons:,} persons x {variants:,} variants, batches of {BATCH}, {clock} time, median of {repeats}"
        table(title, ("ours; peer", "ours (s)", "peer (s)", "ratio", "range"), lines)
    print(f"\nfinal weights of all {len(found)} epochs are bitwise equal: SHA-256 {found[0][:16]}")


if __name__ == "__main__":
    main()
