"""The variants that several sites share, and how each site's dosages are turned to mean the same: the other half of "the same at every
site".

    draft = draft_panel({"oslo": keys, "porto": keys}, match="position")
    panel, kept = settle(draft, counts)   # counts: site -> (4, variants) persons with 0, 1, 2 ALT alleles, missing; or None
    panel.keys, panel.flips["oslo"]       # 1: this site's dosage counts the other allele

Matched by contig, position and alleles, or by rsID if the study says so. A SNP's alleles may stand in the other order or on the other
strand. An insertion or deletion must stand as it is: the other order is another change (a deletion is not the insertion beside it). A/T
and C/G read the same on both strands: at a site none of whose other SNPs is turned they are believed, at one all of whose other SNPs are
turned they are turned too, and at a mixed one frequencies decide where they can (minor allele below 20 % here and elsewhere), or the
variant is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedml.cohort.fingerprint import COMPLEMENT, is_ambiguous, is_plain
from fedml.cohort.packed import Packed
from fedml.cohort.variants import MISSING, Dosages, Variant
from fedml.study import Variants

Match = Literal["position", "rsid"]
Ints = npt.NDArray[np.int64]
CLEAR_FREQUENCY = 0.2  # below it, and above 1 minus it, a frequency tells which allele is the rare one
ENOUGH = 20  # SNPs that are no palindromes, to tell on which strand a site's file is


class Fit(IntEnum):
    """How a site's alleles become the panel's."""

    SAME = 0
    SWAPPED = 1
    STRAND = 2
    STRAND_SWAPPED = 3
    OTHER = 4  # other alleles at that place: another variant
    ABSENT = 5


TOLD = {Fit.SAME: "same", Fit.SWAPPED: "swapped", Fit.STRAND: "strand", Fit.STRAND_SWAPPED: "strand-swapped", Fit.OTHER: "none",
        Fit.ABSENT: "absent"}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """``keys`` (variants,), and for each site ``flips`` (variants,) uint8: 1 where its dosage counts the other allele.

    ``doubtful`` (variants,) bool a site: palindromes whose strand nobody knows yet. ``matching``: site -> what was done -> variants.
    ``dropped``: reason -> variants that some site has and the panel lacks for it.
    """

    keys: tuple[Variant, ...]
    flips: dict[str, npt.NDArray[np.uint8]]
    matching: dict[str, dict[str, int]]
    doubtful: dict[str, npt.NDArray[np.bool_]]
    dropped: dict[str, int]


def _complement(alleles: str) -> str:
    return alleles.translate(COMPLEMENT)[::-1]


def place(key: Variant, match: Match) -> tuple[Any, ...]:
    """What makes two sites' variants the same one. Of a SNP (or several letters changed for as many) the alleles in either order and on
    either strand; of an insertion or deletion the alleles as they stand."""
    if match == "rsid":
        return (key.id,)
    if len(key.ref) != len(key.alt) or not is_plain(key.ref + key.alt):
        return (key.contig, key.position, key.ref, key.alt)
    own, turned = sorted((key.ref, key.alt)), sorted((_complement(key.ref), _complement(key.alt)))
    return (key.contig, key.position, *min(own, turned))


def fit(own: Variant, panel: Variant) -> Fit:
    """How ``own`` alleles become those of ``panel``; a palindrome in the other order is ``SWAPPED`` (or the strand: letters cannot
    tell)."""
    mine, theirs = (own.ref, own.alt), (panel.ref, panel.alt)
    if mine == theirs:
        return Fit.SAME
    if len(own.ref) != len(own.alt) or not is_plain(own.ref + own.alt):
        return Fit.OTHER
    if mine[::-1] == theirs:
        return Fit.SWAPPED
    turned = (_complement(own.ref), _complement(own.alt))
    if turned == theirs:
        return Fit.STRAND
    return Fit.STRAND_SWAPPED if turned[::-1] == theirs else Fit.OTHER


def unique(keys: Sequence[Variant], match: Match) -> dict[tuple[Any, ...], int]:
    """Index of each place that stands once; a place that stands twice at a site is ambiguous and left out, and so is a missing rsID."""
    places = [place(key, match) for key in keys]
    count = Counter(places)
    return {where: at for at, where in enumerate(places) if count[where] == 1 and where != (".",)}


def draft_panel(sites: Mapping[str, Sequence[Variant]], match: Match, checked: Collection[str] = ()) -> Panel:
    """The variants that all ``sites`` have, in the first site's order. Each is written as the first of the ``checked`` sites, whose alleles
    were held against a reference, writes it; without one as most sites do, at a tie as the first does."""
    index = {name: unique(keys, match) for name, keys in sites.items()}
    names = list(sites)
    counts = {name: Counter[str]() for name in names}
    dropped = Counter[str]()
    kept: list[Variant] = []
    fits: dict[str, list[Fit]] = {name: [] for name in names}
    for where, at in index[names[0]].items():
        own = {name: sites[name][index[name][where]] for name in names if where in index[name]}
        key = _written(own, checked) if len(own) == len(names) else sites[names[0]][at]
        found = {name: fit(own[name], key) if name in own else Fit.ABSENT for name in names}
        lost = {how for how in found.values() if how in (Fit.ABSENT, Fit.OTHER)}
        for name, how in found.items():
            if not lost or how in lost:
                counts[name][TOLD[how]] += 1
        if lost:
            dropped["not at every site" if Fit.ABSENT in lost else "other alleles"] += 1
            continue
        kept.append(key)
        for name, how in found.items():
            fits[name].append(how)
    for name, keys in sites.items():
        counts[name]["twice"] = len(keys) - len(index[name]) - (sum(k.id == "." for k in keys) if match == "rsid" else 0)
        counts[name]["only here or not everywhere"] = len(index[name]) - len(kept)
    palindrome = np.array([is_ambiguous(k.ref, k.alt) for k in kept], dtype=bool)
    flips, doubtful = {}, {}
    for name in names:
        fitted = np.array(fits[name], dtype=np.int64)
        flip = np.isin(fitted, (Fit.SWAPPED, Fit.STRAND_SWAPPED))
        turned = int(np.isin(fitted, (Fit.STRAND, Fit.STRAND_SWAPPED)).sum())
        clear = int((~palindrome).sum())
        if turned == 0 and (match == "position" or clear >= ENOUGH):
            doubtful[name] = np.zeros(len(kept), dtype=bool)
        elif turned == 0:  # too few others to tell: by rsID a palindrome is taken as it stands, its other order is not
            doubtful[name] = palindrome & flip
        elif turned == clear >= ENOUGH:  # the whole file is on the other strand
            doubtful[name] = np.zeros(len(kept), dtype=bool)
            flip = flip ^ palindrome
            counts[name]["palindrome turned"] = int(palindrome.sum())
        else:
            doubtful[name] = palindrome
        flips[name] = flip.astype(np.uint8)
    return Panel(tuple(kept), flips, {name: {k: v for k, v in c.items() if v} for name, c in counts.items()}, doubtful, dict(dropped))


def _written(own: Mapping[str, Variant], checked: Collection[str]) -> Variant:
    sure = [key for name, key in own.items() if name in checked]
    spellings = sure[:1] or list(own.values())
    most = Counter((k.ref, k.alt) for k in spellings)
    return max(spellings, key=lambda k: most[k.ref, k.alt])  # max keeps the first of equals


def settle(draft: Panel, counts: Mapping[str, Ints] | None) -> tuple[Panel, npt.NDArray[np.bool_]]:
    """The panel without doubts: a palindrome whose strand frequencies tell is turned, one they do not tell is dropped. With it, which of
    the draft's variants (bool) are in it.

    Args:
        counts: site -> (4, variants) persons with 0, 1, 2 ALT alleles of the draft as it is turned there, and missing; a column of -1 was
        not
            told. None: nobody counted, and every doubtful palindrome is dropped.
    """
    doubtful = np.zeros(len(draft.keys), dtype=bool)
    for mask in draft.doubtful.values():
        doubtful |= mask
    if not doubtful.any():
        return draft, np.ones(len(draft.keys), dtype=bool)
    keep, flips = ~doubtful, {name: flip.copy() for name, flip in draft.flips.items()}
    if counts is not None:
        known = {name: _alt_counts(counts[name]) for name in draft.flips}
        for at in np.flatnonzero(doubtful):
            sure = [name for name in draft.flips if not draft.doubtful[name][at]]
            alt, total = (sum(known[name][i][at] for name in sure) for i in (0, 1))
            here = alt / total if total else np.nan
            keep[at] = True
            for name in draft.flips:
                if name in sure:
                    continue
                own = known[name][0][at] / known[name][1][at] if known[name][1][at] else np.nan
                if _side(here) == 0 or _side(own) == 0:
                    keep[at] = False
                elif _side(here) != _side(own):
                    flips[name][at] ^= 1
    dropped = dict(draft.dropped)
    if lost := int((~keep).sum()):
        dropped["A/T or C/G of unknown strand"] = lost
    return choose(replace(draft, flips=flips, dropped=dropped), keep), keep


def _side(frequency: float) -> int:
    """-1 clearly the rare allele, 1 clearly the common one, 0 not clear."""
    return -1 if frequency < CLEAR_FREQUENCY else 1 if frequency > 1 - CLEAR_FREQUENCY else 0


def _alt_counts(counts: Ints) -> tuple[Ints, Ints]:
    """ALT alleles and all called alleles, 0 where a site did not tell."""
    told = np.where(counts < 0, 0, counts)
    return told[1] + 2 * told[2], 2 * (told[0] + told[1] + told[2])


def quality(counts: Ints, spec: Variants) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """Which variants meet the study's thresholds (bool), and how many fail each, by the first that they fail.

    Args:
        counts: (4, variants) pooled: persons with 0, 1, 2 ALT alleles, missing. A variant about which no site told anything fails.
    """
    from fedml.analytics.frequency import call_rate, hardy_weinberg_p, minor_allele_frequency

    called = counts[:3].sum(0) > 0
    keep, failed = called.copy(), {"nothing told (too few persons in a cell, or none called)": int((~called).sum())}
    tests: list[tuple[str, float, Any]] = [
        (f"call rate below {spec.min_call_rate:g}", spec.min_call_rate, lambda: call_rate(counts)),
        (f"minor allele frequency below {spec.min_maf:g}", spec.min_maf, lambda: minor_allele_frequency(counts)),
        (f"Hardy-Weinberg p below {spec.min_hwe_p:g}", spec.min_hwe_p, lambda: hardy_weinberg_p(counts[0], counts[1], counts[2])),
    ]
    for name, threshold, value in tests:
        if threshold:
            fails = keep & ~(np.nan_to_num(value(), nan=0.0) >= threshold)
            failed[name] = int(fails.sum())
            keep &= ~fails
    return keep, {name: n for name, n in failed.items() if n}


def choose(panel: Panel, keep: npt.NDArray[np.bool_]) -> Panel:
    """The panel's variants where ``keep`` (variants,) is True."""
    return replace(
        panel,
        keys=tuple(key for key, yes in zip(panel.keys, keep, strict=True) if yes),
        flips={name: flip[keep] for name, flip in panel.flips.items()},
        doubtful={name: np.zeros(int(keep.sum()), dtype=bool) for name in panel.doubtful},
    )


def align(own: Dosages, panel: Sequence[Variant], flips: npt.NDArray[np.uint8], match: Match) -> Dosages:
    """``own`` in the panel's order, each variant turned where ``flips`` says so; one that is absent here is missing for everybody."""
    index = unique(own.keys, match)
    columns = np.array([index.get(place(key, match), -1) for key in panel], dtype=np.int64)
    # The server says how to turn; whether the alleles are those of the panel at all is seen to here.
    for at in np.flatnonzero(columns >= 0).tolist():
        if fit(own.keys[columns[at]], panel[at]) is Fit.OTHER:
            columns[at] = -1
    return replace(own, keys=tuple(panel), dosage=turned(own.dosage, columns, flips.astype(bool)))


def turned(dosage: npt.NDArray[np.int8] | Packed, columns: Ints, flip: npt.NDArray[np.bool_]) -> npt.NDArray[np.int8] | Packed:
    """``dosage`` (persons, variants), an array or a packed table, with its columns in another order (-1: missing) and orientation."""
    if not isinstance(dosage, np.ndarray):
        return dosage.aligned(columns, flip)
    out = dosage[:, np.maximum(columns, 0)] if dosage.shape[1] else np.full((len(dosage), len(columns)), MISSING, np.int8)
    out = np.where((out != MISSING) & flip, 2 - out, out).astype(np.int8)
    out[:, columns < 0] = MISSING
    return out


def panel_of(keys: Sequence[Variant], sites: Mapping[str, Sequence[Variant]], match: Match) -> Panel:
    """A panel that is given (a trained model's), and how each of ``sites`` has to be turned for it; what a site lacks is missing there."""
    at = {key: i for i, key in enumerate(keys)}
    flips = {}
    for name, own in sites.items():
        both = draft_panel({"": keys, name: own}, match, checked=[""])
        flips[name] = np.zeros(len(keys), dtype=np.uint8)
        flips[name][[at[key] for key in both.keys]] = both.flips[name]
    return Panel(tuple(keys), flips, {}, {name: np.zeros(len(keys), dtype=bool) for name in sites}, {})
