"""Batches of 64 random persons as float32: from the packed cache, mapped from disk, against bed-reader reading the same persons from a
PLINK file of the same cohort (2,000 persons x 200,000 variants, 100 MB either way, both in the page cache).

bed-reader is taken in each of its ways (C or Fortran order; int8 made float32 by torch) with one thread and with its own choice, and the
fastest is the peer. It marks missing by NaN (int8: -127), we by -1.0; with that said the batches must be equal. Ours runs on one thread.

    .venv/bin/python experiments/bench/cached_batches.py [REPEATS] [PERSONS] [VARIANTS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from bed_reader import open_bed

from fedml.cohort.variants.cache import cached
from fedml.cohort.variants.model import Selection
from fedml.cohort.variants.open import open_source
from fedml.cohort.variants.packed import Packed
from fedml.experiments.bench.timing import Pairs, machine, paired, seconds, table

BATCH = 64
BATCHES = 4  # a measurement, so that none is shorter than the clock's noise
Rows = npt.NDArray[np.int64]
Read = Callable[[Rows], torch.Tensor]


def write_cohort(path: Path, persons: int, variants: int) -> None:
    """A PLINK file of every kind of byte: 0, 1, 2 and missing are equally likely. What dosages are costs neither reader anything."""
    generator = np.random.default_rng(0)
    each = -(-persons // 4)
    with path.open("wb") as file:
        file.write(b"\x6c\x1b\x01")
        for begin in range(0, variants, 10_000):
            data = generator.integers(0, 256, (min(10_000, variants - begin), each), dtype=np.uint8)
            if persons % 4:
                data[:, -1] &= (1 << 2 * (persons % 4)) - 1
            file.write(data.tobytes())
    path.with_suffix(".bim").write_text("".join(f"1\trs{i}\t0\t{i + 1}\tA\tC\n" for i in range(variants)))
    path.with_suffix(".fam").write_text("".join(f"p{i} p{i} 0 0 0 -9\n" for i in range(persons)))


def from_bed(bed: Any, threads: int | None, kind: str, order: str) -> Read:
    """bed-reader's way to a batch."""

    def read(rows: Rows) -> torch.Tensor:
        values = torch.from_numpy(bed.read(index=(rows, slice(None)), dtype=kind, order=order, num_threads=threads))
        return values.float() if kind == "int8" else values

    return read


def ours_fresh(packed: Packed) -> Read:
    """Into new memory."""
    return lambda rows: torch.from_numpy(packed.floats(rows))


def ours_reused(packed: Packed) -> Read:
    """Into the memory of the batch before."""
    out = np.empty((BATCH, packed.shape[1]), np.float32)
    return lambda rows: torch.from_numpy(packed.floats(rows, out))


def check(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal, whatever missing is called."""
    theirs = torch.where(torch.isnan(theirs) | (theirs < 0), torch.full_like(theirs, -1.0), theirs)
    assert torch.equal(mine, theirs)


def main() -> None:
    """Measures, compares, prints."""
    repeats, persons, variants = (*map(int, sys.argv[1:4]), *(7, 2000, 200_000)[len(sys.argv[1:4]) :])
    torch.set_num_threads(1)
    generator = np.random.default_rng(1)
    print(machine())
    with tempfile.TemporaryDirectory(prefix="fedml-bench-") as name:
        path = Path(name) / "cohort.bed"
        write_cohort(path, persons, variants)
        made: list[Any] = []
        took = seconds(lambda: made.append(cached(Path(name) / "cache", open_source(path), everybody(persons), Selection(), 512)))
        again = seconds(lambda: made.append(cached(Path(name) / "cache", open_source(path), everybody(persons), Selection(), 512)))
        packed: Packed = made[-1].table
        print(f"\ncache of {packed.shape[0]:,} persons x {packed.shape[1]:,} variants: made in {took:.2f} s, opened again in {again:.2f} s")
        batches = [generator.choice(persons, BATCH, replace=False) for _ in range(BATCHES)]

        def measure(read: Read) -> Callable[[], float]:
            return lambda: seconds(lambda: [read(rows) for rows in batches])

        with open_bed(path) as bed:
            rows = []
            for threads in (1, None):
                ways = {(k, o): from_bed(bed, threads, k, o) for k, o in (("float32", "C"), ("float32", "F"), ("int8", "C"), ("int8", "F"))}
                for read in ways.values():
                    check(ours_fresh(packed)(batches[0]), read(batches[0]))
                timed = {way: statistics.median(measure(read)() for _ in range(3)) for way, read in ways.items()}
                best = min(timed, key=lambda way: timed[way])
                peer = f"bed-reader {best[0]} {best[1]}, {threads or 'default'} thread(s)"
                for what, mine in (("new memory", ours_fresh(packed)), ("memory of the last batch", ours_reused(packed))):
                    pairs: Pairs = paired(measure(mine), measure(ways[best]), repeats)
                    rows.append((*pairs.row(f"{what}, against {peer}", 1e3 / BATCHES), f"{1 / pairs.ratio:.1f}"))
    head = ("", "ours (ms)", "peer (ms)", "ratio", "range", "ours is x faster")
    table(f"a batch of {BATCH} persons x {variants:,} variants as float32, median of {repeats} x {BATCHES}", head, rows)


def everybody(persons: int) -> list[str]:
    """The ids in the file's order."""
    return [f"p{i}" for i in range(persons)]


if __name__ == "__main__":
    main()
