"""Which variants of the sites' panel are tested together: the columns of each gene, from the study's annotation and the pooled counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.frequency import alleles
from fedml.cohort.variants.keys import Variant
from fedml.strategies.gwas.work import Work
from fedml.study.annotation import Effect
from fedml.study.contigs import canonical_contig, has_one_copy
from fedml.study.genes_section import Genes

Ints = npt.NDArray[np.int64]


class Column(NamedTuple):
    """``variants``: places in the panel; more than one are counted together. ``masks``: which masks of the study have them."""

    variants: tuple[int, ...]
    masks: tuple[bool, ...]


class GeneSet(NamedTuple):
    """A gene of the annotation and its columns."""

    name: str
    columns: tuple[Column, ...]

    @property
    def variants(self) -> list[int]:
        """Places in the panel, ascending."""
        return sorted(at for column in self.columns for at in column.variants)


class Sets(NamedTuple):
    """``genes``, in the order of their first variants, and how many variants of the annotation are in none of them, by reason."""

    genes: tuple[GeneSet, ...]
    left_out: dict[str, int]


def make_sets(work: Work, plan: Genes, effects: Iterable[Effect]) -> Sets:
    """The columns of each gene. A variant is in one gene only: of several, in that where most masks have it, then the first of the file.

    A variant is a column of its own if every site that has it tells how many persons carry it, and more than ``collapse`` ALT alleles were
    found; the others of a gene are counted together, those of different masks apart. No outcome has a part in this.
    """
    names, reasons = list(plan.masks), Counter[str]()
    best: dict[int, tuple[tuple[bool, ...], str]] = {}
    index, kinds = _index(work.keys), [frozenset(consequences) for consequences in plan.masks.values()]
    merged: dict[tuple[int, str], set[str]] = {}
    for effect in effects:
        at = index.get(effect.variant, -1)
        if at >= 0:
            merged.setdefault((at, effect.gene), set()).update(effect.consequences)
        else:
            reasons["not among the variants that all sites share, or with another ALT"] += 1
    for (at, gene), consequences in merged.items():
        masks = tuple(bool(kind & consequences) for kind in kinds)
        if not any(masks):
            continue
        if at in best:
            reasons["in several genes, tested in one"] += 1
        if at not in best or sum(masks) > sum(best[at][0]):
            best[at] = masks, gene
    alone, rare = _told(work, plan)
    genes: dict[str, dict[tuple[bool, ...], tuple[list[int], list[int]]]] = {}
    for at in sorted(best):
        if has_one_copy(work.keys[at].contig):
            reasons["on X, Y or MT"] += 1
        elif not rare[at]:
            reasons[f"no ALT allele, or a frequency of ALT above {plan.max_maf:g}"] += 1
        else:
            masks, gene = best[at]
            together = genes.setdefault(gene, {}).setdefault(masks, ([], []))
            together[0 if alone[at] else 1].append(at)
    made = [GeneSet(gene, tuple(_columns(kinds_of))) for gene, kinds_of in genes.items()]
    assert all(len(column.masks) == len(names) for gene in made for column in gene.columns)  # noqa: S101 - by construction
    return Sets(tuple(sorted(made, key=lambda gene: gene.variants[0])), dict(reasons))


def _columns(kinds: dict[tuple[bool, ...], tuple[list[int], list[int]]]) -> Iterable[Column]:
    for masks, (alone, together) in kinds.items():
        yield from (Column((at,), masks) for at in alone)
        if together:
            yield Column(tuple(together), masks)


def _told(work: Work, plan: Genes) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """(variants,) which are columns of their own, and (variants,) which are rare as far as the sites tell."""
    withheld = np.any([table[0] < 0 for table in work.counts.values()], axis=0)
    alt, called = alleles(work.pooled)
    rare = (withheld | (alt > 0)) & (alt <= plan.max_maf * called)
    return ~withheld & (alt > plan.collapse), rare


def _index(keys: Sequence[Variant]) -> dict[str, int]:
    """Name as in an annotation -> place in the panel."""
    found: dict[str, int] = {}
    for at, key in enumerate(keys):
        found[f"{canonical_contig(key.contig)}:{key.position}:{key.ref}:{key.alt}"] = at
        for name in key.id.split(";") if key.id != "." else ():
            found.setdefault(name, at)
    return found


def asked(genes: Sequence[GeneSet]) -> tuple[Ints, Ints, Ints]:
    """Of a request about ``genes``: places of its variants in the panel, ascending; the column of each; the gene of each column."""
    of, gene = dict[int, int](), list[int]()
    for number, one in enumerate(genes):
        for column in one.columns:
            of.update(dict.fromkeys(column.variants, len(gene)))
            gene.append(number)
    chosen = np.array(sorted(of), np.int64)
    return chosen, np.array([of[at] for at in chosen.tolist()], np.int64), np.array(gene, np.int64)
