"""Writes the results of tests of genes to the run's folder: ``genes.tsv.gz`` (bgzipped, one row for each gene and mask) and a QQ plot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedml.analytics import sumstats
from fedml.analytics.genetests import SetTests
from fedml.runs.events import Genes
from fedml.runs.log import GENES_TABLE, QQ
from fedml.strategies.gwas.work import Work

_TOP = 10
_P = ("burden", "skat", "skat_o", "acat_v", "combined")


class GeneRow(NamedTuple):
    """A gene with one mask: first and last position of its ``variants``, of them counted ``together`` with others, ``alleles`` that are in
    the test, sites with any of them, and the tests; None where there are too few alleles."""

    gene: str
    mask: str
    contig: str
    start: int
    end: int
    variants: int
    together: int
    columns: int
    alleles: int
    sites: int
    tests: SetTests | None


def write_genes(
    work: Work, rows: Sequence[GeneRow], classes: dict[str, int], persons: dict[str, int], left_out: dict[str, int]
) -> Genes:  # fmt: skip
    """Writes table and plot; returns their summary for the run's record (without ``seconds``)."""
    import pysam

    tested = [(row, row.tests) for row in rows if row.tests is not None]
    names = [
        "gene", "mask", "chromosome", "start", "end", "variants", "together", "columns", "alleles", "sites", "burden_beta",
        "burden_standard_error", *(f"{name}_p" for name in _P), "rho", "method",
    ]  # fmt: skip
    lines = [_cells(row, tests) for row, tests in tested]
    with pysam.BGZFile(str(work.run / GENES_TABLE), "wb") as out:
        for cells in (names, *lines):
            out.write(("\t".join(cells) + "\n").encode())
    log10_p = np.array([tests.combined for _, tests in tested])
    inflation = {mask: _inflation([t for row, t in tested if row.mask == mask]) for mask in dict.fromkeys(row.mask for row, _ in tested)}
    overall = _inflation([tests for _, tests in tested])
    title = f"{work.study.study.name}: combined p of genes"
    sumstats.quantile_quantile(work.run / QQ, log10_p, math.nan if overall is None else overall, title=title, what="tests")
    best = np.argsort(log10_p, kind="stable")[:_TOP]
    top: list[dict[str, Any]] = [dict(zip(names, lines[i], strict=True)) for i in best.tolist()]
    return Genes(
        seconds=0.0, sites=work.traffic.rows, persons=persons, classes=classes,
        genes=len({row.gene for row, _ in tested}), tested=len(tested),
        variants=len(work.keys), inflation=inflation, left_out=left_out, top=top,
        methods=dict(Counter(tests.method for _, tests in tested)),
    )  # fmt: skip


def _cells(row: GeneRow, tests: SetTests) -> list[str]:
    name = "".join(" " if c.isspace() else c for c in row.gene)
    return [
        name, row.mask, row.contig, *(str(n) for n in row[3:10]), f"{tests.beta:.9g}", f"{tests.standard_error:.9g}",
        *(sumstats.p_text(getattr(tests, test)) for test in _P), f"{tests.rho:g}", tests.method,
    ]  # fmt: skip


def _inflation(tests: Sequence[SetTests]) -> float | None:
    return sumstats.genomic_inflation(10.0 ** np.array([one.skat_o for one in tests])) if tests else None
