"""Allele counts of one site's persons by population and sex, and which of them leave the site.

    calls = cell_calls(counts, where)                       # (populations + 1, 3, 5, variants)
    told = site_alleles(calls, sizes, where, groups, hidden, min_count=5)          # at a site: (groups, 4, variants), -1 where withheld
    shown = reveals_few(calls, sizes, where, groups, told, min_count=5)            # the gate's check of it: (variants,)

The cells are disjoint: each population and, last, the persons without a known one; in each of them men, women, and persons whose sex is
not known. For each variant the site chooses blocks, sums of cells, so that in no block 1 to ``min_count`` - 1 persons carry one of the
alleles, and tells sums of whole blocks alone. Whatever is subtracted from whatever else is then a sum of blocks too, each about nobody or
about enough persons (complementary suppression: Hundepool et al. 2012, "Statistical Disclosure Control", section 4.3). A population of
too few carriers stays in the rest; if the rest itself is of few, the smallest population goes into it as well.

Persons with two copies and persons with one are counted apart, because the number of hemizygotes tells the two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.frequency import Counts, few
from fedml.cohort.variants.ploidy import MT, Codes, X, Y

Mask = npt.NDArray[np.bool_]
Group = tuple[int, int]  # (population, sex), -1: all; sex 0: men, 1: women
AC, AN, HOMOZYGOTES, HEMIZYGOTES = range(4)  # rows of what is told
WITHHELD = -1
_SEXES = 3


def cell_calls(counts: Counts, where: Codes | None) -> Counts:
    """(populations + 1, 3, 5, variants): persons of each cell with two copies who have 0, 1, 2 ALT alleles, and persons with one copy who
    have REF, ALT.

    Args:
        counts: (cells, 4, variants) ``fedml.cohort.variants.frequency.group_counts``, cells by population, then men, women, unknown.
    """
    cells = counts.reshape(-1, _SEXES, 4, counts.shape[-1])
    out = np.zeros((*cells.shape[:2], 5, counts.shape[-1]), np.int64)
    out[:, :, :3] = cells[:, :, :3]
    if where is None:
        return out
    for sex, single in enumerate([(where == X) | (where == Y) | (where == MT), where == MT, where == MT]):
        out[:, sex, 3:, single] = out[:, sex, 0:3:2, single]
        out[:, sex, :3, single] = 0
    return out


class Block(NamedTuple):
    """A sum of cells: ``calls`` (5, variants), and how many ``men`` and ``others`` are in it (variants,)."""

    calls: Counts
    men: Counts
    others: Counts

    def alleles(self) -> Counts:
        """(4, variants): AC, AN, homozygotes and hemizygotes of ALT."""
        none, het, hom, ref, alt = self.calls
        return np.stack([het + 2 * hom + alt, 2 * (none + het + hom) + ref + alt, hom, alt])


class Table(NamedTuple):
    """A site's cells: ``calls`` as of ``cell_calls``, ``sizes`` (populations + 1, 3) persons, ``where`` (variants,) or None."""

    calls: Counts
    sizes: npt.NDArray[np.int64]
    where: Codes | None

    def block(self, chosen: Mask) -> Block:
        """The sum of the cells ``chosen`` (populations + 1, 3, variants)."""
        calls = np.einsum("psrm,psm->rm", self.calls, chosen.astype(np.int64))
        persons = np.einsum("ps,psm->sm", self.sizes, chosen.astype(np.int64))
        return Block(calls, persons[0], persons[1:].sum(0))

    def members(self, population: int, sex: int) -> Mask:
        """(populations + 1, 3, variants): the cells of a group; ``population`` or ``sex`` -1: all."""
        out = np.zeros((*self.calls.shape[:2], self.calls.shape[-1]), bool)
        out[slice(None) if population < 0 else population, slice(None) if sex < 0 else sex] = True
        return out

    def unsafe(self, block: Block, min_count: int) -> Mask:
        """(variants,): True where 1 to ``min_count`` - 1 persons of the block with two copies, or with one, carry ALT, or REF; on Y also
        where so few men, or so few others, are in it, because the number of men is about what a count of Y is."""
        none, het, hom, ref, alt = block.calls
        out = few(het + hom, min_count) | few(none + het, min_count) | few(ref, min_count) | few(alt, min_count)
        if self.where is not None:
            out |= (self.where == Y) & (few(block.men, min_count) | few(block.others, min_count))
        return out


def unsafe_genotypes(block: Block, min_count: int) -> Mask:
    """(variants,): True where the number of homozygotes would tell that 1 to ``min_count`` - 1 persons have one of the genotypes: there are
    so few, or so few copies that "not told" could mean one number of them alone."""
    none, het, hom = block.calls[:3]
    out = few(none, min_count) | few(het, min_count) | few(hom, min_count)
    for homozygous in (hom, none):
        copies = het + 2 * homozygous
        out |= (homozygous == 0) & (copies > 0) & (copies < 2 * min_count - 1)
    return out


def _kept(table: Table, able: Mask, unsafe: Callable[[Block], Mask]) -> Mask:
    """(populations, variants): which of the populations that are ``able`` stand alone. None is unsafe, nor is the rest of all persons."""
    kept = able.copy()
    populations = [table.block(table.members(place, -1)) for place in range(len(kept))]
    for place, block in enumerate(populations):
        kept[place] &= ~unsafe(block)
    called = np.stack([block.calls.sum(0) for block in populations]) if populations else np.zeros(kept.shape, np.int64)
    while True:
        bad = unsafe(table.block(_rest(table, kept))) & kept.any(0)
        if not bad.any():
            return kept
        smallest = np.where(kept, called, np.iinfo(np.int64).max).argmin(0)
        kept[smallest[bad], np.flatnonzero(bad)] = False


def _rest(table: Table, kept: Mask, sex: int = -1) -> Mask:
    """The cells of all persons who are in no population that is ``kept`` (populations, variants)."""
    out = table.members(-1, sex)
    out[:-1] &= ~kept[:, None]
    return out


def site_alleles(table: Table, groups: Sequence[Group], hidden: Mask, min_count: int) -> Counts:
    """(groups, 4, variants): AC, AN, homozygotes and hemizygotes of each group, -1 where they do not leave the site.

    Homozygotes are also withheld (-1) where the other three numbers are told.

    Args:
        groups: the first is everyone.
        hidden: (variants,) where nothing about the variant leaves the site.
        min_count: 1 or less hides nothing.
    """
    populations, variants = len(table.sizes) - 1, table.calls.shape[-1]

    def unsafe(block: Block) -> Mask:
        return table.unsafe(block, min_count)

    def unsafe_too(block: Block) -> Mask:
        return unsafe_genotypes(block, min_count)

    everyone = table.block(table.members(-1, -1))
    shown = ~(hidden | unsafe(everyone))
    alone = _kept(table, np.broadcast_to(shown, (populations, variants)), unsafe)
    genotypes = _kept(table, alone, unsafe_too)
    # Each block by sex: the populations that stand alone, and the rest.
    parts = [[table.block(table.members(place, sex)) for sex in range(_SEXES)] for place in range(populations)]
    parts.append([table.block(_rest(table, alone, sex)) for sex in range(_SEXES)])
    split = np.stack([shown & ~np.any([unsafe(cell) for cell in cells], axis=0) for cells in parts])
    by_genotype = np.stack([~np.any([unsafe_too(cell) for cell in cells], axis=0) for cells in parts])
    split[:-1] &= alone
    whole = np.vstack([genotypes, ~unsafe_too(everyone)[None] & (genotypes == alone).all(0)[None]])
    by_genotype &= split & whole
    every_split = (split[:-1] | ~alone).all(0) & split[-1]
    every_genotype = every_split & (by_genotype[:-1] | ~alone).all(0) & by_genotype[-1]
    out = np.full((len(groups), 4, variants), WITHHELD, np.int64)
    for at, (population, sex) in enumerate(groups):
        if population < 0:
            given, too = (shown, shown & ~unsafe_too(everyone)) if sex < 0 else (every_split, every_genotype)
        elif sex < 0:
            given, too = alone[population], genotypes[population]
        else:
            given, too = split[population], by_genotype[population]
        out[at] = np.where(given, table.block(table.members(population, sex)).alleles(), WITHHELD)
        out[at, HOMOZYGOTES] = np.where(given & too, out[at, HOMOZYGOTES], WITHHELD)
    return out


def reveals_few(table: Table, groups: Sequence[Group], told: Counts, min_count: int) -> Mask:
    """(variants,): True where ``told`` (groups, 4, variants) has a wrong number, or tells of 1 to ``min_count`` - 1 persons, itself or by
    subtraction: of a group from one that contains it, of all populations from everyone, of both sexes from a group.

    Written apart from ``site_alleles``, whose result it checks.
    """
    given, too = told[:, AN] >= 0, told[:, HOMOZYGOTES] >= 0
    out: Mask = (too & ~given).any(0) | ((told < 0) & (told != WITHHELD)).any((0, 1))
    for row in (AC, HEMIZYGOTES):
        out |= ((told[:, row] >= 0) != given).any(0)
    members = [table.members(*group) for group in groups]
    for at, cells in enumerate(members):
        true = table.block(cells).alleles()
        out |= given[at] & (told[at] != true)[[AC, AN, HEMIZYGOTES]].any(0)
        out |= too[at] & (told[at, HOMOZYGOTES] != true[HOMOZYGOTES])
        inside = [other for other in range(len(groups)) if other != at and not (members[other] & ~cells).any()]
        for mask, genotypes in ((given, False), (too, True)):
            lefts = [cells, *(cells & ~members[other] for other in inside)]
            both = [mask[at], *(mask[at] & mask[other] for other in inside)]
            for apart in (_of(groups, at, inside, by_population=True), _of(groups, at, inside, by_population=False)):
                left = cells.copy()
                for other in apart:
                    left &= ~(members[other] & mask[other])
                lefts.append(left)
                both.append(mask[at])
            for left, asked in zip(lefts, both, strict=True):
                block = table.block(left)
                out |= asked & (unsafe_genotypes(block, min_count) if genotypes else table.unsafe(block, min_count))
    return out


def _of(groups: Sequence[Group], at: int, inside: Sequence[int], *, by_population: bool) -> list[int]:
    """Of the groups ``inside`` the one ``at``, those of its next level: its populations (of the same sex), or its sexes."""
    population, sex = groups[at]
    if by_population:
        return [other for other in inside if population < 0 and groups[other][0] >= 0 and groups[other][1] == sex]
    return [other for other in inside if sex < 0 and groups[other][0] == population and groups[other][1] >= 0]
