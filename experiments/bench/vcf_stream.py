"""Benchmark: memory while a VCF file of many gigabytes is read as a stream: the peak stays below the budget for every file size.

    python -m fedml.experiments.bench.vcf_stream [--gigabytes 20] [--memory-mb 64] [--format GT]

The file is a header and one sequence of bgzip blocks, repeated: 20 GB of text are some hundred MB on disk (``--format GT:AD:DP:GQ``: some
GB). Each row of the table is one reading of a complete file, of growing size; the counts of variants and alleles must equal those written.
The peak is the resident memory minus that before the file was opened. One thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fedml.cohort.variants.bgzf import inflated
from fedml.cohort.variants.model import Selection
from fedml.cohort.variants.open import open_source
from fedml.experiments.bench.timing import PeakMemory, machine, table
from fedml.experiments.bench.vcf_read import write_vcf


def repeat(path: Path, size: int, samples: int, rich: bool) -> tuple[int, int, int]:
    """Writes a bgzipped VCF file of at least ``size`` bytes of text; returns its bytes of text, variants and ALT alleles."""
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
    return begin + times * (len(text) - begin), times * records, times * int(np.maximum(truth, 0).sum(dtype=np.int64))


def _blocks(path: Path) -> bytes:
    """The bytes of the file as bgzip, without the empty block at the end."""
    import pysam

    out = path.with_suffix(".gz")
    pysam.tabix_compress(str(path), str(out), force=True)
    return out.read_bytes()[:-28]


def read(path: Path, memory_mb: int) -> dict[str, float]:
    """Number of variants, sum of the dosages, seconds, and the peak of memory minus that at the start in MB; no block is kept."""
    variants = total = 0
    began = time.perf_counter()
    with PeakMemory(every=0.005) as memory:
        source = open_source(path)
        for block in source.blocks(range(len(source.samples)), Selection(), memory_mb):
            variants += len(block.keys)
            total += int(np.count_nonzero(block.dosage == 1) + 2 * np.count_nonzero(block.dosage == 2))
    return {"variants": variants, "total": total, "seconds": time.perf_counter() - began, "peak_mb": memory.extra_mb}


def read_alone(path: Path, memory_mb: int) -> dict[str, float]:
    """``read`` in a separate process that first reads a small file, so that imports are not counted."""
    code = "import json, sys; from pathlib import Path; from fedml.experiments.bench.vcf_stream import read; a = sys.argv; "
    code += "read(Path(a[1]), 1); "
    code += "print(json.dumps(read(Path(a[2]), int(a[3]))))"
    small = path.with_name("small.vcf.gz")
    write_vcf(small, 3, 3, False)
    done = subprocess.run([sys.executable, "-c", code, str(small), str(path), str(memory_mb)], check=True, stdout=subprocess.PIPE)
    out: dict[str, float] = json.loads(done.stdout)
    return out


def main() -> None:
    """Prints one row for each size."""
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
        for share in (0.01, 0.1, 1):
            size, variants, total = repeat(path, int(given.gigabytes * share * 1e9), given.samples, given.format != "GT")
            got = read_alone(path, given.memory_mb)
            assert (got["variants"], got["total"]) == (variants, total), (got, variants, total)
            assert got["peak_mb"] < given.memory_mb, f"{got['peak_mb']:.0f} MB of {given.memory_mb}"
            took = got["seconds"]
            texts = (f"{size / 1e9:.2f} GB", f"{path.stat().st_size / 1e6:,.0f}", f"{variants:,}")
            rows.append((*texts, f"{took:.1f}", f"{size / 1e6 / took:,.0f}", f"{got['peak_mb']:.0f}"))
    title = f"FORMAT {given.format}, {given.samples:,} samples, memory_mb = {given.memory_mb}"
    table(title, ("text", "MB on disk", "variants", "seconds", "MB/s of text", "peak MB"), rows)


if __name__ == "__main__":
    main()
