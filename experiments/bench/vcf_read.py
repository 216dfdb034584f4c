"""Benchmark: reading ALT dosages from a VCF file: fedml against pysam's records and cyvcf2, with equal results.

    python -m fedml.experiments.bench.vcf_read [--records 4000] [--samples 2504] [--repeats 7]

Two files of the same simulated persons: FORMAT ``GT`` only, as in 1000 Genomes, and ``GT:AD:DP:GQ``, as a variant caller writes. Allele
frequencies are those of a neutral population (the number of variants with k copies is proportional to 1/k, Fu 1995), so most variants are
rare. Each reader opens the file, reads all genotypes and returns the same (variants, samples) int8 array, -1 for missing. cyvcf2 is
measured with ``gt_types`` (``gts012=True``) and with ``genotype.array()``; the faster counts. BCF and PLINK files of the same genotypes are
measured too. Each reader has one thread.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.model import Selection
from fedml.cohort.variants.open import open_source
from fedml.experiments.bench.timing import machine, paired, seconds, table

Dosage = npt.NDArray[np.int8]
_HEADER = "##fileformat=VCFv4.2\n##contig=<ID=22,length=51304566>\n" + "".join(
    f'##FORMAT=<ID={name},Number={count},Type={kind},Description="{name}">\n'
    for name, count, kind in (("GT", 1, "String"), ("AD", "R", "Integer"), ("DP", 1, "Integer"), ("GQ", 1, "Integer"))
)


def write_vcf(path: Path, records: int, samples: int, rich: bool, seed: int = 0) -> Dosage:
    """Writes a bgzipped VCF file; returns its dosages (records, samples). One call in a thousand is missing in the rich file, none in the
    other."""
    import pysam

    rng = np.random.default_rng(seed)
    calls = np.array([b"0|0", b"0|1", b"1|0", b"1|1"] if not rich else [b"0/0", b"0/1", b"0/1", b"1/1", b"./."])
    copies = np.arange(1, 2 * samples)
    counts = rng.choice(copies, records, p=(1 / copies) / (1 / copies).sum())
    out = np.empty((records, samples), dtype=np.int8)
    plain = path.with_suffix("")
    with plain.open("wb") as file:
        file.write(_HEADER.encode() + b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t")
        file.write(b"\t".join(b"HG%05d" % k for k in range(samples)) + b"\n")
        for k, count in enumerate(counts):
            alleles = rng.permutation(np.arange(2 * samples) < count).reshape(samples, 2)
            kind = 2 * alleles[:, 0] + alleles[:, 1]
            if rich:
                kind[rng.random(samples) < 0.001] = 4
            out[k] = np.array([0, 1, 1, 2, -1])[kind]
            cells: list[bytes] = calls[kind].tolist()
            if rich:
                depth = rng.poisson(30, samples)
                other = rng.binomial(depth, np.maximum(out[k], 0) / 2)
                quality = rng.integers(20, 100, samples)
                each = zip(cells, (depth - other).tolist(), other.tolist(), depth.tolist(), quality.tolist(), strict=True)
                cells = [b"%s:%d,%d:%d:%d" % cell for cell in each]
            fields = b"22\t%d\trs%d\tA\tG\t100\tPASS\t.\t%s\t" % (16_000_000 + 30 * k, k, b"GT:AD:DP:GQ" if rich else b"GT")
            file.write(fields + b"\t".join(cells) + b"\n")
    pysam.tabix_compress(str(plain), str(path), force=True)
    plain.unlink()
    return out


def ours(path: Path) -> Dosage:
    """fedml: all blocks as one array."""
    source = open_source(path)
    return np.concatenate([block.dosage for block in source.blocks(range(len(source.samples)), Selection(), 512)])


def by_pysam(path: Path) -> Dosage:
    """pysam: the usual loop over records and samples."""
    import pysam

    rows = []
    with pysam.VariantFile(str(path)) as file:
        for record in file:
            alleles = [call.allele_indices or (None,) for call in record.samples.values()]
            rows.append(np.array([-1 if None in a else a.count(1) for a in alleles], dtype=np.int8))
    return np.array(rows)


def by_cyvcf2_types(path: Path) -> Dosage:
    """cyvcf2's ``gt_types``: 0, 1, 2, and 3 for missing; the array must be copied at each record."""
    import cyvcf2

    out = np.array([record.gt_types.astype(np.int8) for record in cyvcf2.VCF(str(path), gts012=True)])
    out[out == 3] = -1
    return out


def by_cyvcf2_array(path: Path) -> Dosage:
    """cyvcf2's ``genotype.array()``: two alleles and a phase for each person."""
    import cyvcf2

    rows = []
    for record in cyvcf2.VCF(str(path)):
        alleles = record.genotype.array()
        first, second = alleles[:, 0], alleles[:, 1]
        dosage = (first == 1).astype(np.int8) + (second == 1)
        dosage[(first < 0) | (second < 0)] = -1
        rows.append(dosage)
    return np.array(rows)


def by_bed_reader(path: Path) -> Dosage:
    """bed-reader: the whole file at once."""
    from bed_reader import open_bed

    with open_bed(path, num_threads=1) as bed:
        dosage: Any = bed.read(dtype="int8", order="F").T
        list(zip(bed.chromosome, bed.bp_position, bed.sid, bed.allele_2, bed.allele_1, strict=True))
    dosage[dosage < 0] = -1
    return np.ascontiguousarray(dosage)


def main() -> None:
    """Prints one table for each file."""
    import pysam.bcftools

    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("records", 4000), ("samples", 2504), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    pysam.set_verbosity(0)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        for name, rich in (("GT", False), ("GT:AD:DP:GQ", True)):
            path = Path(folder) / "c.vcf.gz"
            truth = write_vcf(path, given.records, given.samples, rich)
            bcf = path.with_name("c.bcf")
            pysam.bcftools.view("-Ob", "-o", str(bcf), str(path), catch_stdout=False)
            peers: list[tuple[str, Path, Callable[[Path], Dosage]]] = [
                ("pysam records", path, by_pysam),
                ("cyvcf2 gt_types", path, by_cyvcf2_types),
                ("cyvcf2 genotype.array()", path, by_cyvcf2_array),
                ("BCF, cyvcf2 genotype.array()", bcf, by_cyvcf2_array),
            ]
            if not rich:
                peers.append(("PLINK bed, bed-reader", write_bed(path.with_name("c.bed"), truth), by_bed_reader))
            rows = [row(peer, file, read, truth, given.repeats) for peer, file, read in peers]
            title = f"{given.records:,} records, {given.samples:,} samples, FORMAT {name}, {path.stat().st_size / 2**20:.1f} MB bgzip"
            table(title, ("peer", "ours ms", "peer ms", "peer / ours", "range"), rows)


def row(name: str, path: Path, read: Callable[[Path], Dosage], truth: Dosage, repeats: int) -> tuple[str, ...]:
    """Times both readers in turn, after a check that their results equal the written genotypes."""
    for reader in (ours, read):
        np.testing.assert_array_equal(reader(path), truth)
    pairs = paired(lambda: seconds(lambda: read(path)), lambda: seconds(lambda: ours(path)), repeats)
    label, peer, our_time, ratio, span = pairs.row(name, 1000, 0)
    return label, our_time, peer, ratio, span


def write_bed(path: Path, dosage: Dosage) -> Path:
    """Writes the same genotypes as PLINK 1 files; returns the path of the .bed file."""
    from bed_reader import to_bed

    names = [f"rs{k}" for k in range(len(dosage))]
    properties = {"sid": names, "chromosome": ["22"] * len(dosage), "bp_position": [16_000_000 + 30 * k for k in range(len(dosage))]}
    properties |= {"allele_1": ["G"] * len(dosage), "allele_2": ["A"] * len(dosage), "iid": [f"HG{k:05d}" for k in range(dosage.shape[1])]}
    to_bed(path, np.where(dosage < 0, -127, dosage).T, properties=properties)
    return path


if __name__ == "__main__":
    main()
