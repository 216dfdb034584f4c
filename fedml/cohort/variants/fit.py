"""How the alleles of one file's variant map to those of another's at the same place."""

from __future__ import annotations

from enum import IntEnum

from fedml.cohort.variants.alleles import complement, is_plain
from fedml.cohort.variants.keys import Variant


class Fit(IntEnum):
    """How a site's alleles map to the panel's alleles."""

    SAME = 0
    SWAPPED = 1
    STRAND = 2
    STRAND_SWAPPED = 3
    OTHER = 4  # other alleles at that position: another variant
    ABSENT = 5


FIT_NAMES = {Fit.SAME: "same", Fit.SWAPPED: "swapped", Fit.STRAND: "strand", Fit.STRAND_SWAPPED: "strand-swapped", Fit.OTHER: "none",
             Fit.ABSENT: "absent"}  # fmt: skip


def fit(own: Variant, panel: Variant) -> Fit:
    """How the alleles of ``own`` map to those of ``panel``; a palindrome with swapped alleles is ``SWAPPED``, although it may be
    complemented instead: the letters are the same."""
    return fit_alleles((own.ref, own.alt), (panel.ref, panel.alt))


def fit_alleles(own: tuple[str, str], panel: tuple[str, str]) -> Fit:
    """``fit`` of two pairs of REF and ALT."""
    if own == panel:
        return Fit.SAME
    if len(own[0]) != len(own[1]) or not is_plain(own[0] + own[1]):
        return Fit.OTHER
    if own[::-1] == panel:
        return Fit.SWAPPED
    complemented = (complement(own[0]), complement(own[1]))
    if complemented == panel:
        return Fit.STRAND
    return Fit.STRAND_SWAPPED if complemented[::-1] == panel else Fit.OTHER
