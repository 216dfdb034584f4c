"""Writes genotypes as a VCF in which every field that a study may ask for is declared, and quality is the best: for rehearsals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedml.cohort.variants.model import Dosages

_CALLS = {-1: "./.", 0: "0/0", 1: "0/1", 2: "1/1"}
_BEST = "1000:100000"  # GQ and DP, the largest thresholds that a study may set
_FORMATS = (("GT", "1", "String"), ("DS", "A", "Float"), ("HDS", ".", "Float"), ("GP", "G", "Float"), ("GQ", "1", "Integer"),
            ("DP", "1", "Integer"))  # fmt: skip


def write_vcf(path: Path, value: Dosages, ids: Sequence[str]) -> None:
    """The genotypes of the persons who have some, ``ids`` in the order of ``value``. Dosages are not written: a reader takes a person's
    genotype where there is none."""
    present = np.flatnonzero(value.present)
    lines = ["##fileformat=VCFv4.3", '##FILTER=<ID=PASS,Description="">', '##INFO=<ID=R2,Number=1,Type=Float,Description="">']
    lines += [f'##FORMAT=<ID={name},Number={number},Type={kind},Description="">' for name, number, kind in _FORMATS]
    lines.append(
        "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *(ids[row] for row in present.tolist())])
    )
    dosage = np.asarray(value.dosage[present])
    with path.open("w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
        for at, key in enumerate(value.keys):
            calls = [f"{_CALLS[int(copies)]}:{_BEST}" for copies in dosage[:, at]]
            file.write("\t".join([key.contig, str(key.position), key.id, key.ref, key.alt, ".", "PASS", "R2=1", "GT:GQ:DP", *calls]) + "\n")
