"""The site's part of tests of genes: for each gene the scores and the covariance of its columns (``fedml.clients.site.carriers``).

A request says which variant is in which column, and nothing else about genotypes: weights are applied by the server to the sums, so a
centre has no number by which it could weigh persons. Of the coefficients of a logistic model, which weigh persons, a column needs enough
carriers whose weights are alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.analytics import forms
from fedml.clients.site.carriers import Bools, Counts, counted, gathered, objections
from fedml.clients.work.people import Analysed, Floats
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import Dosages
from fedml.errors import Reason, SiteError
from fedml.seeds import derive_seed
from fedml.study.contigs import has_one_copy
from fedml.study.study import Study
from fedml.wire.records import Phase

MOST_UNEQUAL = 20.0  # a carrier whose weight p (1 - p) is smaller by this factor than the largest does not count as one


class Gene(NamedTuple):
    """One gene of a request: places of its ``variants`` in the panel, of its ``columns`` in the request, and the column of each variant."""

    variants: Counts
    columns: slice
    column: Counts


def genes_of(given: Mapping[str, Any]) -> Iterator[Gene]:
    """The genes of a request, after ``check_columns``."""
    column, gene = given["column"], given["gene"]
    order = np.argsort(column, kind="stable")
    first = np.searchsorted(column[order], np.arange(len(gene) + 1))
    starts = np.flatnonzero(np.diff(gene, prepend=-1))
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(gene)], strict=True):
        variants = np.sort(order[first[start] : first[stop]])
        yield Gene(variants, slice(start, stop), column[variants] - start)


def check_columns(study: Study, keys: Sequence[Variant], given: Mapping[str, Any]) -> list[int]:
    """Numbers that stand for the variants of a request about genes; a variant stands for the same number in every request.

    Raises:
        SiteError: a variant is there twice, is not on an autosome, or a column or gene is not of the declared form.
    """
    column, gene = given["column"], given["gene"]
    if not np.array_equal(np.unique(column), np.arange(len(gene))) or (np.diff(gene, prepend=-1) < 0).any():
        raise SiteError(Reason.UNDECLARED, "the columns of genes are not numbered in order, or one has no variant")
    if any(has_one_copy(key.contig) for key in keys):
        raise SiteError(Reason.OFF_PLAN, "genes are tested on autosomes only")
    by_name = study.cohort.variants.match == "rsid"
    named = [key.id if by_name else f"{key.contig}:{key.position}:{':'.join(sorted((key.ref, key.alt)))}" for key in keys]
    if by_name:
        named = [part for name in named for part in name.split(";")]
    if len(set(named)) != len(named):
        raise SiteError(Reason.OFF_PLAN, "a variant is in two columns: their difference would be about few persons")
    return [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") for name in named]


class Site(NamedTuple):
    """What the rules of a site need: who is analysed, their rows in the dosages, which variants the site does not tell of alone
    (variants,), the smallest number of persons, and an order of the persons."""

    people: Analysed
    dosages: Dosages
    hidden: Bools
    fewest: int
    rank: Counts


def order_of(study: Study, site: str, persons: int) -> Counts:
    """(persons,) an order that neither the file nor the outcome decides."""
    return np.random.default_rng(derive_seed("carriers", study.study.seed, site)).permutation(persons)


def columns_of(site: Site, gene: Gene, study: Study) -> Counts:
    """(persons, columns) alleles that are counted of one gene."""
    assert study.gwas is not None and study.gwas.genes is not None  # noqa: S101, PT018 - the gate has checked
    table, rows = site.dosages.dosage, site.people.rows
    low, high = int(gene.variants[0]), int(gene.variants[-1]) + 1
    dosage = table[np.ix_(rows, gene.variants)] if isinstance(table, np.ndarray) else table.block(low, high, rows)[:, gene.variants - low]
    hidden = site.hidden[gene.variants]
    alt = np.maximum(dosage, 0).sum(0, dtype=np.int64)
    # Of a variant that is not told the server cannot know that ALT is rare.
    common = hidden & (alt > max(2 * site.fewest, 2 * study.gwas.genes.max_maf * len(rows)))
    dosage = np.where(common, np.int8(0), dosage)
    return counted(gathered(dosage, gene.column, hidden, site.people.groups, site.fewest), site.people.groups, site.rank, site.fewest)


def gene_sums(study: Study, site: Site, x: Floats, y: Floats, given: Mapping[str, Any]) -> dict[str, Any]:
    """The reply: sums over the persons, and which columns are ``used`` at this site.

    Of a logistic model ``score`` is G'(y - p), the others are weighted by p (1 - p), and ``third`` is the third cumulant of the score if G
    is given; of a linear one the outcome y is centred, the weights are 1, and ``third`` is 0.
    """
    logistic = forms.kind(study) == "logistic"
    p = 1 / (1 + np.exp(-np.clip(x @ given["theta"], -700, 700))) if logistic else np.zeros(len(y))
    weight = p * (1 - p) if logistic else np.ones(len(y))
    shapes = forms.reply_shapes(study, Phase.GENES, len(site.dosages.keys), given)
    out: dict[str, Any] = {name: np.zeros(shape, forms.REPLY_TYPES[name]) for name, shape in shapes.items()}
    place = 0
    for gene in genes_of(given):
        columns = _alike(columns_of(site, gene, study), weight, site.fewest)
        some = np.flatnonzero(columns.any(1))
        g: npt.NDArray[np.float64] = columns[some].astype(np.float64)
        weighted = g * weight[some, None]
        out["used"][gene.columns] = columns.any(0)
        out["alleles"][gene.columns] = columns.sum(0)
        out["xg"][:, gene.columns] = x[some].T @ weighted
        out["score"][gene.columns] = (y[some] - p[some]) @ g
        if logistic:
            out["third"][gene.columns] = (weight[some] * (1 - 2 * p[some])) @ g**3
        gram = g.T @ weighted
        upper = np.triu_indices(len(gram))
        out["gram"][place : place + len(upper[0])] = gram[upper]
        place += len(upper[0])
    return out


def _alike(columns: Counts, weight: Floats, fewest: int) -> Counts:
    """``columns`` without those in which fewer than ``fewest`` carriers have a weight near the largest."""
    if fewest <= 1:
        return columns
    carried = columns > 0
    most = np.where(carried, weight[:, None], 0).max(0, initial=0)
    enough = (carried & (weight[:, None] * MOST_UNEQUAL >= most)).sum(0) >= fewest
    return np.where(enough, columns, 0)


def check_sums(study: Study, site: Site, given: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raises ``SiteError`` if sums in a reply are about few persons, counted by other means than those that made the reply."""
    for gene in genes_of(given):
        used = values["used"][gene.columns].astype(bool)
        columns = np.where(used, columns_of(site, gene, study), 0)
        for problem in objections(columns, site.people.groups, site.fewest) if site.fewest > 1 else ():
            raise SiteError(Reason.TOO_FEW, f"genes: {problem}")
        if not np.array_equal(columns.sum(0), values["alleles"][gene.columns]):
            raise SiteError(Reason.TOO_FEW, "genes: the sums are about other carriers than those who may be counted")
        left_out = ~used
        for name in ("xg", "score", "third"):
            if values[name][..., gene.columns][..., left_out].any():
                raise SiteError(Reason.TOO_FEW, f"genes: {name} of a column that is left out")
