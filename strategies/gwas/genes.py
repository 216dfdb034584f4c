"""The server's part of tests of genes over sites: columns of each gene -> sums of the sites -> burden, SKAT, SKAT-O, ACAT-V -> table.

The null model, covariates, components and intercepts are those of ``fedml gwas``. A site's sums are about its own columns of a gene
(``fedml.clients.site.carriers``); where it leaves one out, nobody there carries it, as far as the test knows.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid

from fedml.analytics import forms, linear
from fedml.analytics.genetests import SetTests, beta_weight, set_tests
from fedml.analytics.unbalanced import widened
from fedml.errors import RunError
from fedml.runs.log import GENES_TABLE, emit
from fedml.strategies.agreement.step import BySite, Traffic, take
from fedml.strategies.gwas.gene_table import GeneRow, write_genes
from fedml.strategies.gwas.run import _asked, _components, _null_model, _scale, _step, _total
from fedml.strategies.gwas.sets import GeneSet, asked, make_sets
from fedml.strategies.gwas.work import Floats, Work, begin
from fedml.study.annotation import annotation_of
from fedml.study.genes_section import Genes
from fedml.study.study import Study
from fedml.wire.records import Phase

_LOG_EVERY_SECONDS = 5.0


class Null(NamedTuple):
    """The model without variants: what a request holds (``given``), the generalised inverse of X'WX (width, width), X'r (width,), the
    residual variance, the number of persons, and how many alleles one counts as: 1, or of two unequal classes fewer."""

    given: dict[str, Any]
    inverse: Floats
    residual: Floats
    variance: float
    persons: int
    balance: float
    classes: dict[str, int]


class Sums(NamedTuple):
    """Of the columns of genes, over all sites: ``xg`` (width, columns), the others (columns,); ``gram``: a matrix for each gene; ``used``
    (sites, columns)."""

    xg: Floats
    score: Floats
    third: Floats
    alleles: npt.NDArray[np.int64]
    gram: list[Floats]
    used: npt.NDArray[np.bool_]


def test_genes(study: Study, grid: Grid, run: Path) -> Path:
    """Runs the whole analysis and writes the table to the folder ``run``; returns the table's path.

    Raises:
        RunError: the sites' variants cannot be harmonised, a site stopped answering, or no gene has enough rare alleles.
        InputError: the annotation cannot be read.
    """
    assert study.gwas is not None and study.gwas.genes is not None  # noqa: S101, PT018 - the command has checked
    began, plan = time.monotonic(), study.gwas.genes
    effects = annotation_of(study, run)
    work = begin(study, grid, run, Traffic())
    sets = make_sets(work, plan, effects)
    if not sets.genes:
        raise RunError(
            f"no gene has a rare variant that a mask of [gwas.genes] names ({_words(sets.left_out)}); "
            "correct the annotation, masks or max_maf."
        )
    design, persons = _scale(work)
    if work.plan.components:
        design |= _components(work, persons)[0]
    null = _null(work, design)
    rows, few = list[GeneRow](), Counter[str]()
    for genes, sums in _blocks(work, null, sets.genes, plan.block):
        for row in _tested(work, plan, null, genes, sums):
            if row.tests is None:
                few[row.mask] += 1
            else:
                rows.append(row)
    found = write_genes(work, rows, null.classes, persons, {**sets.left_out, **_few(plan, few)})
    emit(run, replace(found, seconds=time.monotonic() - began))
    return run / GENES_TABLE


def _words(reasons: dict[str, int]) -> str:
    return ", ".join(f"{why}: {count}" for why, count in reasons.items()) or "the annotation is empty"


def _few(plan: Genes, few: Counter[str]) -> dict[str, int]:
    return {f"genes with fewer than {plan.min_alleles:g} rare alleles in mask {mask}": count for mask, count in few.items()}


def _null(work: Work, design: dict[str, Any]) -> Null:
    """The null model; of a binary outcome at its maximum likelihood."""
    places, empty = work.intercepts, work.agreement.part(slice(0, 0))
    if forms.kind(work.study) == "logistic":
        theta, sums, persons = _null_model(work, design)
        total = _total(sums)
        information = np.zeros((places.width, places.width))
        information[np.triu_indices(places.width)] = total.information[:, 0]
        information += np.triu(information, 1).T
        n, cases = int(total.n[0]), persons["cases"]
        given = {**design, "theta": _asked(work, theta[:, 0])}
        classes = {"cases": cases, "controls": n - cases}
        return Null(given, _inverse(information)[0], total.gradient[:, 0], 1.0, n, 4 * cases * (n - cases) / n**2, classes)
    given = {**design, "theta": BySite({site: np.zeros(places.columns) for site in work.sites})}
    local = work.take(empty, Phase.NULL, given)
    sums = [
        linear.NullSums(places.matrix(s["xx"], at), places.vector(s["xy"], at), float(s["yy"][0]), int(s["n"][0]))
        for at, s in enumerate(local.values())
    ]
    total = _total(sums)
    inverse, rank = _inverse(total.xx)
    degrees = total.n - rank
    if degrees <= 0:
        raise RunError(f"{total.n} persons are too few for {rank} coefficients; lower [gwas] components, or remove covariates.")
    variance = (total.yy - total.xy @ inverse @ total.xy) / degrees
    return Null(given, inverse, total.xy, variance, total.n, 1.0, {})


def _inverse(matrix: Floats) -> tuple[Floats, int]:
    inverse, _, rank = linear.invert(matrix[..., None])
    return inverse[..., 0], int(rank[0])


def _blocks(work: Work, null: Null, genes: Sequence[GeneSet], block: int) -> Iterator[tuple[Sequence[GeneSet], Sums]]:
    """The sums of each block of genes; emits progress events."""
    last = time.monotonic()
    for number, start in enumerate(range(0, len(genes), block)):
        some = genes[start : start + block]
        chosen, column, gene = asked(some)
        given = {**null.given, "column": column, "gene": gene}
        local = take(work.study, work.grid, work.agreement.part(chosen), Phase.GENES, number, given, work.traffic)
        yield some, _summed(work, some, list(local.values()))
        now, done = time.monotonic(), start + len(some)
        _step(work, f"genes {done} of {len(genes)}", done, len(genes), log=now - last > _LOG_EVERY_SECONDS)
        last = now if now - last > _LOG_EVERY_SECONDS else last


def _summed(work: Work, genes: Sequence[GeneSet], local: Sequence[dict[str, Any]]) -> Sums:
    xg = np.sum([work.intercepts.vector(sums["xg"], at) for at, sums in enumerate(local)], axis=0)
    score, third, alleles, triangles = (np.sum([s[name] for s in local], axis=0) for name in ("score", "third", "alleles", "gram"))
    gram, place = [], 0
    for gene in genes:
        size = len(gene.columns)
        matrix, upper = np.zeros((size, size)), np.triu_indices(size)
        matrix[upper] = matrix[upper[::-1]] = triangles[place : place + len(upper[0])]
        gram.append(matrix)
        place += len(upper[0])
    return Sums(xg, score, third, alleles, gram, np.stack([s["used"].astype(bool) for s in local]))


def _tested(work: Work, plan: Genes, null: Null, genes: Sequence[GeneSet], sums: Sums) -> Iterator[GeneRow]:
    """A row for each gene and mask with a rare allele; without tests where the alleles are too few."""
    start = 0
    for gene, gram in zip(genes, sums.gram, strict=True):
        own = slice(start, start := start + len(gene.columns))
        xg = sums.xg[:, own]
        projected = null.inverse @ xg
        covariance = (gram - xg.T @ projected) * null.variance
        score = sums.score[own] - null.residual @ projected
        alleles = sums.alleles[own]
        frequency = alleles / (2 * null.persons)
        weight = beta_weight(frequency) if plan.weights == "beta" else np.ones(len(alleles))
        for number, mask in enumerate(plan.masks):
            at = np.array([i for i, column in enumerate(gene.columns) if column.masks[number] and alleles[i] > 0], np.int64)
            if not len(at):
                continue
            tests = None
            if alleles[at].sum() * null.balance >= plan.min_alleles:
                plain = cover = covariance[np.ix_(at, at)]
                if null.classes:
                    cover = widened(score[at], cover, weight[at], np.diag(gram)[at], sums.third[own][at])
                tests = set_tests(score[at], cover, weight[at], frequency[at], plain)
            yield _row(work, gene, mask, at, int(alleles[at].sum()), sums.used[:, own][:, at], tests)


def _row(
    work: Work, gene: GeneSet, mask: str, at: npt.NDArray[np.int64], alleles: int, used: npt.NDArray[np.bool_], tests: SetTests | None
) -> GeneRow:
    columns = [gene.columns[i] for i in at.tolist()]
    places = sorted(v for column in columns for v in column.variants)
    keys = [work.keys[v] for v in places]
    together = sum(len(column.variants) for column in columns if len(column.variants) > 1)
    return GeneRow(
        gene.name, mask, keys[0].contig, min(k.position for k in keys), max(k.position for k in keys), len(keys), together, len(columns),
        alleles, int(used.any(1).sum()), tests,
    )  # fmt: skip
