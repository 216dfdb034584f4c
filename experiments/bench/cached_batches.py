"""Benchmark: batches of 64 random persons as float32 from the memory-mapped packed cache, against bed-reader on a PLINK file of the same
cohort (2,000 persons x 200,000 variants, 100 MB in both formats, both in the page cache).

The peer is the fastest of bed-reader's options (C or Fortran order; float32, or int8 converted by torch), with one thread and with its
default number of threads. bed-reader codes missing as NaN (int8: -127), fedml as -1.0; apart from this code the batches must be equal.
fedml runs on one thread.

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
BATCHES = 4  # in each measurement, so that it is long compared with the noise of the clock
Rows = npt.NDArray[np.int64]
Read = Callable[[Rows], torch.Tensor]


def write_cohort(path: Path, persons: int, variants: int) -> None:
    """Writes a PLINK file in which 0, 1, 2 and missing are equally likely. The values do not affect the time of either reader."""
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
    """A function that reads a batch by bed-reader with these options."""

    def read(rows: Rows) -> torch.Tensor:
        values = torch.from_numpy(bed.read(index=(rows, slice(None)), dtype=kind, order=order, num_threads=threads))
        return values.float() if kind == "int8" else values

    return read


def ours_fresh(packed: Packed) -> Read:
    """A function that reads a batch from the packed cache to new memory."""
    return lambda rows: torch.from_numpy(packed.floats(rows))


def ours_reused(packed: Packed) -> Read:
    """A function that reads a batch from the packed cache to the memory of the previous batch."""
    out = np.empty((BATCH, packed.shape[1]), np.float32)
    return lambda rows: torch.from_numpy(packed.floats(rows, out))


def check(our: torch.Tensor, theirs: torch.Tensor) -> None:
    """Asserts that two batches are equal after missing values are coded alike."""
    theirs = torch.where(torch.isnan(theirs) | (theirs < 0), torch.full_like(theirs, -1.0), theirs)
    assert torch.equal(our, theirs)


def main() -> None:
    """Measures, compares and prints."""
    repeats, persons, variants = (*map(int, sys.argv[1:4]), *(7, 2000, 200_000)[len(sys.argv[1:4]) :])
    torch.set_num_threads(1)
    generator = np.random.default_rng(1)
    print(machine())
    with tempfile.TemporaryDirectory(prefix="fedml-bench-") as name:
        path = Path(name) / "cohort.bed"
        write_cohort(path, persons, variants)
        caches: list[Any] = []
        took = seconds(lambda: caches.append(cached(Path(name) / "cache", open_source(path), all_ids(persons), Selection(), 512)))
        again = seconds(lambda: caches.append(cached(Path(name) / "cache", open_source(path), all_ids(persons), Selection(), 512)))
        packed: Packed = caches[-1].table
        print(f"\ncache of {packed.shape[0]:,} persons x {packed.shape[1]:,} variants: built in {took:.2f} s, reopened in {again:.2f} s")
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
                for what, our in (("new memory", ours_fresh(packed)), ("memory of the last batch", ours_reused(packed))):
                    pairs: Pairs = paired(measure(our), measure(ways[best]), repeats)
                    rows.append((*pairs.row(f"{what}, against {peer}", 1e3 / BATCHES), f"{1 / pairs.ratio:.1f}"))
    head = ("", "ours (ms)", "peer (ms)", "ratio", "range", "ours is x faster")
    table(f"a batch of {BATCH} persons x {variants:,} variants as float32, median of {repeats} x {BATCHES}", head, rows)


def all_ids(persons: int) -> list[str]:
    """The ids in the order of the file."""
    return [f"p{i}" for i in range(persons)]


if __name__ == "__main__":
    main()
