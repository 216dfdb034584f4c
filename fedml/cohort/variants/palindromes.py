"""Which A/T and C/G variants of a panel are believed only because of their letters, which read the same on both strands.

    unproven(draft, {"oslo": SiteStrand(keys, notes, checked=True), ...})        # (variants,) bool

A file whose other SNPs are all on the forward strand proves nothing: they may have been turned one by one, which palindromes cannot be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.alleles import is_ambiguous, is_plain
from fedml.cohort.variants.harmonise import Panel
from fedml.cohort.variants.keys import Variant, columns_of
from fedml.cohort.variants.normalise import ENOUGH, NOTES, SWAPPED, UNSURE


class SiteStrand(NamedTuple):
    """What a site tells of its file: its variants, the counts of normalisation (``NOTES``), whether REF was compared with a reference."""

    keys: Sequence[Variant]
    notes: Sequence[int] | npt.NDArray[np.int64] | None
    checked: bool


def unproven(draft: Panel, sites: Mapping[str, SiteStrand]) -> npt.NDArray[np.bool_]:
    """(draft variants,): palindromes where a site's strand is not known. None in a panel of one site, whose dosages meet no others."""
    out = columns_of(draft.keys).by_alleles(is_ambiguous)
    if len(draft.flips) < 2 or all(strand_known(site) for site in sites.values()):
        out[:] = False
    return out


def strand_known(site: SiteStrand) -> bool:
    """True if the file's REF was compared with a reference and shows its strand: no SNP had to be complemented while others had not, and
    either no alleles were swapped (on the other strand those of palindromes would seem to be), or other SNPs tell the two apart."""
    if not site.checked or site.notes is None or site.notes[NOTES.index(UNSURE)]:
        return False
    if not site.notes[NOTES.index(SWAPPED)]:
        return True
    return int(columns_of(site.keys).by_alleles(_shows_strand).sum()) >= ENOUGH


def _shows_strand(ref: str, alt: str) -> bool:
    return len(ref) == len(alt) == 1 and is_plain(ref + alt) and not is_ambiguous(ref, alt)
