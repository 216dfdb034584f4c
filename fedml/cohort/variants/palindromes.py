"""Which A/T and C/G variants of a panel are believed only because of their letters, which read the same on both strands.

    unproven(draft, {"oslo": SiteStrand(keys, notes, checked=True), ...})        # (variants,) bool

A file whose other SNPs are all on the forward strand proves nothing: they may have been turned one by one, which palindromes cannot be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.harmonise import Panel
from fedml.cohort.variants.model import Variant
from fedml.cohort.variants.normalise import ENOUGH, NOTES, SWAPPED, UNSURE, is_ambiguous, is_plain


class SiteStrand(NamedTuple):
    """What a site tells of its file: its variants, the counts of normalisation (``NOTES``), whether REF was compared with a reference."""

    keys: Sequence[Variant]
    notes: Sequence[int] | npt.NDArray[np.int64] | None
    checked: bool


def unproven(draft: Panel, sites: Mapping[str, SiteStrand]) -> npt.NDArray[np.bool_]:
    """(draft variants,): palindromes where a site's strand is not known. None in a panel of one site, whose dosages meet no others."""
    out = np.array([is_ambiguous(key.ref, key.alt) for key in draft.keys], dtype=bool)
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
    plain = (key for key in site.keys if len(key.ref) == len(key.alt) == 1 and is_plain(key.ref + key.alt))
    return sum(not is_ambiguous(key.ref, key.alt) for key in plain) >= ENOUGH
