"""Memory while a VCF of many gigabytes is read as a stream: it stays under the budget, whatever the file's size.

    python -m experiments.bench.vcf_stream [--gigabytes 20] [--memory-mb 64] [--format GT]

The file is a header and one run of bgzip blocks, repeated: 20 GB of text are some hundred MB on disk (``--format GT:AD:DP:GQ``: some GB). A
row of the table is one reading of a whole file, of growing size; what is read is counted and held against what was written. The peak is
resident memory above that before the file was opened. One thread.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from experiments.bench.timing import PeakMemory, machine, seconds, table
from experiments.bench.vcf_read import write_vcf
from fedml.cohort.bgzf import inflated
from fedml.cohort.variants import Selection, open_source


def repeat(path: Path, size: int, samples: int, rich: bool) -> tuple[int, int, int]:
    """Makes a bgzipped VCF of at least ``size`` bytes of text; returns its bytes of text, variants, and the sum of its dosages."""
    records = 1000
    once = path.with_name("once.vcf.gz")
    truth = write_vcf(once, records, samples, rich)
    text = b"".join(inflated(once))
    header, body = (path.with_name(name) for name in ("header.vcf", "body.vcf"))
    begin = text.index(b"\n22\t") + 1
    header.write_bytes(text[:begin])
    body.write_bytes(text[begin:])
    blocks = [_blocks(part) for part in (header, body)]
    times = -(-(size - begin) // (len(text) - begin))
    with path.open("wb") as file:
        file.write(blocks[0])
        for _ in range(times):
            file.write(blocks[1])
        file.write(bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000"))
    return begin + times * (len(text) - begin), times * records, times * int(truth.sum(dtype=np.int64))


def _blocks(path: Path) -> bytes:
    """The file as bgzip, without the empty block at the end."""
    import pysam

    out = path.with_suffix(".gz")
    pysam.tabix_compress(str(path), str(out), force=True)
    return out.read_bytes()[:-28]


def read(path: Path, memory_mb: int) -> tuple[int, int]:
    """How many variants, and the sum of the dosages; no block is kept."""
    source = open_source(path)
    variants = total = 0
    for block in source.blocks(range(len(source.samples)), Selection(), memory_mb):
        variants += len(block.keys)
        total += int(block.dosage.sum(dtype=np.int64))
    return variants, total


def main() -> None:
    """Prints one row a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--memory-mb", type=int, default=64)
    parser.add_argument("--samples", type=int, default=2504)
    parser.add_argument("--format", default="GT", choices=("GT", "GT:AD:DP:GQ"))
    given = parser.parse_args()
    print(machine())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.vcf.gz"
        repeat(path, 0, given.samples, given.format != "GT")
        read(path, given.memory_mb)  # what is imported or made once is no part of a file's cost
        for share in (0.01, 0.1, 1):
            size, variants, total = repeat(path, int(given.gigabytes * share * 1e9), given.samples, given.format != "GT")
            found: list[tuple[int, int]] = []
            with PeakMemory(every=0.01) as memory:
                took = seconds(lambda: found.append(read(path, given.memory_mb)))
            assert found == [(variants, total)], (found, variants, total)
            on_disk = path.stat().st_size / 1e6
            rows.append(
                (
                    f"{size / 1e9:.2f} GB",
                    f"{on_disk:,.0f}",
                    f"{variants:,}",
                    f"{took:.1f}",
                    f"{size / 1e6 / took:,.0f}",
                    f"{memory.extra_mb:.0f}",
                )
            )
            assert memory.extra_mb < given.memory_mb, f"{memory.extra_mb:.0f} MB of {given.memory_mb}"
    title = f"FORMAT {given.format}, {given.samples:,} samples, memory_mb = {given.memory_mb}"
    table(title, ("text", "MB on disk", "variants", "seconds", "MB/s of text", "peak MB"), rows)


if __name__ == "__main__":
    main()
