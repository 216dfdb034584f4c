"""Copies of a chromosome by contig, position, build and sex: one coding of calls on X, Y and MT, whatever the file wrote.

    where = places(keys, "GRCh38")                      # (variants,) DIPLOID, X, Y or MT; None: all are diploid
    keys, dosage = Coding("GRCh38", sex).coded(keys, dosage, notes)     # while a file is read: dosage (variants, samples)
    told, hidden = site_table(groups, men_and_women, where, min_count=5)                 # at a site: what may leave it

A person with one copy has 0 or 2 ALT alleles, as in PLINK 2's ``--glm`` on X (``--xchr-model 2``; on Y and MT it takes 0 and 1, so that its
estimates are twice those of this coding, with the same p). A heterozygous call of such a person is no genotype and is missing (PLINK:
``--set-hh-missing``, ``--set-mixed-mt-missing``), and so is a woman's call on Y. Pseudoautosomal
regions are diploid in everybody. Outside them X and Y need each person's sex: without it their variants are left out.

Pseudoautosomal regions: GRCh37 and GRCh38 as in the assembly reports of the Genome Reference Consortium (NCBI, GCF_000001405.25 and .40);
NCBI36 as at the UCSC Genome Browser (hg18: chrX:1-2709520 and 154584238-154913754, chrY:1-2709520 and 57443438-57772954); T2T-CHM13 as in
chm13v2.0_PAR.bed of the T2T consortium. What lies between a region and the chromosome's end belongs to it, as in PLINK.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.builds import Build
from fedml.cohort.variants.fine import NONE, SCALE, Uint16s, one_copy
from fedml.cohort.variants.frequency import Counts, carried_by_few, few, folded, withheld
from fedml.cohort.variants.keys import Variant, columns_of
from fedml.cohort.variants.model import MISSING, Selection
from fedml.cohort.variants.normalise import HET_HAPLOID, SEX_UNKNOWN
from fedml.study.contigs import canonical_contig, has_one_copy

Codes = npt.NDArray[np.int8]
DIPLOID, X, Y, MT = np.arange(4, dtype=np.int8)  # copies: two; men one; men one and women none; everybody one
ABSENT = np.int8(-1)  # not in the site's file
UNKNOWN, MAN, WOMAN = np.arange(3, dtype=np.int8)  # the codes of a .fam
_BETWEEN: dict[str, dict[str, tuple[int, int]]] = {  # last position of PAR1, first position of PAR2
    "NCBI36": {"X": (2_709_520, 154_584_238), "Y": (2_709_520, 57_443_438)},
    "GRCh37": {"X": (2_699_520, 154_931_044), "Y": (2_649_520, 59_034_050)},
    "GRCh38": {"X": (2_781_479, 155_701_383), "Y": (2_781_479, 56_887_903)},
    "T2T-CHM13": {"X": (2_394_410, 153_925_835), "Y": (2_458_320, 62_122_810)},
}


def place(contig: str, position: int, build: str) -> np.int8:
    """``DIPLOID``, ``X``, ``Y`` or ``MT``; ``contig`` by its canonical name."""
    if contig == "MT":
        return MT
    if contig not in ("X", "Y"):
        return DIPLOID
    first, last = _BETWEEN[build][contig]
    return DIPLOID if position <= first or position >= last else X if contig == "X" else Y


def places(keys: Sequence[Variant], build: str) -> Codes | None:
    """(variants,): ``place`` of each; None if all are diploid, the usual case. Contigs may have any name."""
    own = columns_of(keys)
    out = np.zeros(len(own), np.int8)
    for at in np.flatnonzero(own.by_contig(has_one_copy, object) != "").tolist():
        out[at] = place(has_one_copy(own.contigs[own.contig[at]]), int(own.position[at]), build)
    return out if out.any() else None


class Coding(NamedTuple):
    """What the coding of a file's calls depends on: ``build`` of its positions, and ``sex`` (samples,) of those that are read, None where
    nobody's is known. ``strict``: variants that need a sex are left out without it; else they are coded as far as the file tells."""

    build: Build
    sex: Codes | None = None
    strict: bool = True

    def coded(self, keys: Sequence[Variant], dosage: Codes, notes: Counter[str]) -> tuple[Sequence[Variant], Codes]:
        """The variants and ``dosage`` (variants, samples) in the coding above; counts variants in ``notes`` by what happened to them."""
        where = places(keys, self.build)
        if where is None:
            return keys, dosage
        keys, dosage, where = self._known(keys, dosage, where, notes)
        dosage = dosage.copy()
        for at in np.flatnonzero(where):
            one, none = self._samples(where[at])
            row = dosage[at]  # a view
            mixed = one & (row == 1)
            notes[HET_HAPLOID] += bool(mixed.any())
            row[mixed | none] = MISSING
        return keys, dosage

    def coded_fractions(self, keys: Sequence[Variant], codes: Uint16s, notes: Counter[str]) -> tuple[Sequence[Variant], Uint16s]:
        """The same of dosages with fractions (``fedml.cohort.variants.fine``): of a person with one copy, exactly 1 is no dosage, as a
        heterozygous call is no genotype; any other number is twice the probability of ALT."""
        where = places(keys, self.build)
        if where is None:
            return keys, codes
        keys, codes, where = self._known(keys, codes, where, notes)
        codes = codes.copy()
        for at in np.flatnonzero(where):
            one, none = self._samples(where[at])
            mixed = one & (codes[at] == SCALE)
            notes[HET_HAPLOID] += bool(mixed.any())
            codes[at] = np.where(mixed | none, NONE, np.where(one, one_copy(codes[at]), codes[at]))
        return keys, codes

    def _known(self, keys: Sequence[Variant], values: Any, where: Codes, notes: Counter[str]) -> tuple[Sequence[Variant], Any, Codes]:
        """Without the variants whose coding needs a sex, where nobody's is known and ``strict``; counts them."""
        if self.sex is not None or not self.strict:
            return keys, values, where
        kept = (where == DIPLOID) | (where == MT)
        notes[SEX_UNKNOWN] += int((~kept).sum())
        return columns_of(keys).take(kept), values[kept], where[kept]

    def described(self, contigs: Iterable[str], selection: Selection) -> list[object]:
        """What the coded dosages depend on, for a cache's key: the same for every sex if no variant on X or Y can be among them.

        Args:
            contigs: all that the file has; none if that is not known, because a VCF header need not name every contig.
        """
        named = {canonical_contig(name) for name in contigs}
        chosen = {contig for contig, _, _ in selection.spans()}
        if (named and not {"X", "Y"} & named) or (chosen and not {"X", "Y"} & chosen):
            return []
        return [self.build, self.strict, None if self.sex is None else self.sex.tolist()]

    def _samples(self, where: np.int8) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """(samples,) who have one copy, and who have no genotype there: no copy, or an unknown number."""
        if where == MT:
            return np.array(True), np.array(False)
        if self.sex is None:
            return np.array(False), np.array(False)
        return self.sex == MAN, self.sex != MAN if where == Y else self.sex == UNKNOWN


def sexes(sex: Codes | None, persons: int) -> npt.NDArray[np.bool_]:
    """(2, persons): men, women."""
    if sex is None:
        return np.zeros((2, persons), bool)
    return np.stack([sex == MAN, sex == WOMAN])


def two_copies(counts: Counts, women: Counts, where: Codes | None) -> Counts:
    """(4, variants): of ``counts`` those of persons with two copies: everybody, on X the ``women``, on Y and MT nobody."""
    return counts if where is None else np.where(where == DIPLOID, counts, np.where(where == X, women, 0))


def site_table(
    groups: Counts, by_sex: Counts, where: Codes | None, min_count: int, fewest_men: int = 0
) -> tuple[Counts, npt.NDArray[np.bool_]]:
    """What a site tells of its persons, and where it tells nothing.

    Args:
        groups: (groups, 4, variants), ``group_counts`` of all persons, and of the levels of covariates.
        by_sex: (2, 4, variants), of men and of women.
        where: (variants,) ``places``.
        fewest_men: of fewer men no sums leave the site, so nothing about Y.

    Returns:
        (6, variants): persons with 0, 1 and 2 ALT alleles and with a missing call, of those who can have a call (on Y, the men); then the
        persons with one copy, with REF and with ALT, who are also among the first rows. And (variants,) True where the variant's numbers
        do not leave the site.
    """
    out = np.zeros((6, groups.shape[2]), np.int64)
    out[:4], hidden = folded(groups[0], min_count), withheld(groups, min_count)
    if where is None:
        return out, hidden
    men, women = by_sex
    on_x, on_y, on_mt = where == X, where == Y, where == MT
    # Women follow by subtraction of the men: their homozygotes are told as those of everybody elsewhere, and each sex has enough carriers.
    told = folded(women, min_count)
    out[:4, on_x] = (groups[0] - women + told)[:, on_x]
    out[:4, on_y] = men[:, on_y]
    out[:4, on_mt] = groups[0][:, on_mt]
    out[4:, on_x | on_y], out[4:, on_mt] = men[0:3:2, on_x | on_y], groups[0][0:3:2, on_mt]
    few_on_x = carried_by_few(by_sex, min_count) | few(told[:3], min_count).any(0)
    # On Y the men, called or not, are told in number, and so are the others by subtraction from all persons.
    others = groups[0].sum(0) - men.sum(0)
    few_on_y = carried_by_few(men[None], min_count) | few(men.sum(0), max(min_count, fewest_men)) | few(others, min_count)
    hidden = np.where(on_x, carried_by_few(groups, min_count) | few_on_x, hidden)
    return out, np.where(on_y, carried_by_few(groups, min_count) | few_on_y, hidden)
