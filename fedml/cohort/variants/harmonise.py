"""The variants that several sites share, and how each site's dosages are turned to mean the same: the other half of "the same at every
site".

    draft = draft_panel({"oslo": keys, "porto": keys}, match="position")
    panel, kept = settle(draft, counts)   # counts: site -> (4, variants) persons with 0, 1, 2 ALT alleles, missing; or None
    panel.keys, panel.flips["oslo"]       # 1: this site's dosage counts the other allele

Matched by contig, position and alleles, or by rsID if the study says so. A SNP's alleles may stand in the other order or on the other
strand. An insertion or deletion must stand as it is: the other order is another change (a deletion is not the insertion beside it). A/T
and C/G read the same on both strands: at a site none of whose other SNPs is turned they are believed, at one all of whose other SNPs are
turned they are turned too, and at a mixed one frequencies decide where they can (minor allele below 20 % here and elsewhere), or the
variant is dropped. So they do where frequencies contradict the letters (``doubt``). An insertion and a deletion of the same letters at one
place are dropped where any file does not keep the order of alleles: written the other way round, one reads as the other.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.model import MISSING, Dosages, Variant
from fedml.cohort.variants.normalise import COMPLEMENT, ENOUGH, NOTES, SWAPPED, UNSURE, is_ambiguous, is_plain
from fedml.cohort.variants.packed import Packed
from fedml.study.sections import Variants

Match = Literal["position", "rsid"]
Ints = npt.NDArray[np.int64]
CLEAR_FREQUENCY = 0.2  # below it, and above 1 minus it, a frequency tells which allele is the rare one
MIRRORED = "insertion and deletion of the same letters, and a file that does not keep the order of alleles"
_STRAND = {(a, b): int("T" in a + b) for a in "ACGT" for b in "ACGT" if a != b and not is_ambiguous(a, b)}
_STRAYS = 0.05  # of the SNPs of two files on the same strand may differ in it all the same
_CONTRADICTED = 3  # palindromes whose frequencies contradict their letters, so that no letters are believed


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


def _either(ref: str, alt: str) -> tuple[str, ...]:
    """One spelling of two alleles of one length, whatever their order and strand."""
    return min(tuple(sorted((ref, alt))), tuple(sorted((_complement(ref), _complement(alt)))))


_SNPS = {(ref, alt): _either(ref, alt) for ref in "ACGT" for alt in "ACGT" if ref != alt}


def place(key: Variant, match: Match) -> tuple[Any, ...]:
    """What makes two sites' variants the same one. Of a SNP (or several letters changed for as many) the alleles in either order and on
    either strand; of an insertion or deletion the alleles as they stand."""
    if match == "rsid":
        return (key.id,)
    snp = _SNPS.get((key.ref, key.alt))
    if snp is not None:
        return (key.contig, key.position, snp)
    if len(key.ref) != len(key.alt) or not is_plain(key.ref + key.alt):
        return (key.contig, key.position, key.ref, key.alt)
    return (key.contig, key.position, _either(key.ref, key.alt))


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


def draft_panel(
    sites: Mapping[str, Sequence[Variant]],
    match: Match,
    checked: Collection[str] = (),
    notes: Mapping[str, Sequence[int] | Ints] | None = None,
) -> Panel:
    """The variants that all ``sites`` have, in the first site's order, or by contig and position where that is not sorted.

    Each is written as the first of the ``checked`` sites, whose alleles were held against a reference, writes it. Without one the sites on
    the strand of most write it, with the alleles in the order of most of these; at a tie the first one's strand and order are taken.

    Args:
        notes: what a site did to its file (``fedml.cohort.variants.normalise.NOTES``): whether alleles stood in another order than in its
            reference, and whether it is a file of both strands.
    """
    index = {name: unique(keys, match) for name, keys in sites.items()}
    names, done = list(sites), notes or {}
    counts = {name: Counter[str]() for name in names}
    dropped = Counter[str]()
    kept: list[Variant] = []
    fits: dict[str, list[Fit]] = {name: [] for name in names}
    shared = [where for where in index[names[0]] if all(where in index[name] for name in names[1:])]
    writers = [name for name in names if name in checked][:1] or _on_one_strand({n: [sites[n][index[n][w]] for w in shared] for n in names})
    for where, at in index[names[0]].items():
        own = {name: sites[name][index[name][where]] for name in names if where in index[name]}
        key = _most_written([own[name] for name in writers]) if len(own) == len(names) else sites[names[0]][at]
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
    clear = sum(len(k.ref) == len(k.alt) and is_plain(k.ref + k.alt) for k in kept) - int(palindrome.sum())
    flips, doubtful = {}, {}
    for name in names:
        fitted = np.array(fits[name], dtype=np.int64)
        flip = np.isin(fitted, (Fit.SWAPPED, Fit.STRAND_SWAPPED))
        complemented = int(np.isin(fitted, (Fit.STRAND, Fit.STRAND_SWAPPED)).sum())
        if name in done and done[name][NOTES.index(UNSURE)]:
            doubtful[name] = palindrome
        elif complemented == 0 and (match == "position" or clear >= ENOUGH):
            doubtful[name] = np.zeros(len(kept), dtype=bool)
        elif complemented == 0:  # too few others to tell: by rsID a palindrome is taken as it stands, its other order is not
            doubtful[name] = palindrome & flip
        elif complemented == clear >= ENOUGH:  # the whole file is on the other strand
            doubtful[name] = np.zeros(len(kept), dtype=bool)
            flip = flip ^ palindrome
            counts[name]["palindrome turned"] = int(palindrome.sum())
        else:
            doubtful[name] = palindrome
        flips[name] = flip.astype(np.uint8)
    panel = Panel(tuple(kept), flips, {name: {k: v for k, v in c.items() if v} for name, c in counts.items()}, doubtful, dict(dropped))
    if match == "rsid":
        return panel
    if any(had[NOTES.index(SWAPPED)] for had in done.values()) or any(
        Fit.SWAPPED in own or Fit.STRAND_SWAPPED in own for own in fits.values()
    ):
        panel = _without_mirrors(panel, sites)
    return _sorted(panel)


def _on_one_strand(sites: Mapping[str, Sequence[Variant]]) -> list[str]:
    """Of sites that list the same variants those that are on the strand of most: of A/C and A/G, or of their complements, G/T and C/T.

    Files agree if they differ in at most 5 %. Of equally many that agree, those are taken that have more whole files on the other strand
    (they are on one strand themselves, unlike a mixed file), then those of the first site.
    """
    names = list(sites)
    read = np.array([[_STRAND.get((k.ref, k.alt), -1) for k in own] for own in sites.values()], dtype=np.int8)
    strand = read[:, (read >= 0).all(0)]
    if not strand.shape[1]:
        return names
    differ = np.array([[float((a != b).mean()) for b in strand] for a in strand])
    same, opposite = differ <= _STRAYS, differ >= 1 - _STRAYS
    best = max(range(len(names)), key=lambda i: (same[i].sum(), opposite[i].sum()))  # max keeps the first of equals
    return [name for name, yes in zip(names, same[best], strict=True) if yes]


def _most_written(spellings: Sequence[Variant]) -> Variant:
    most = Counter((k.ref, k.alt) for k in spellings)
    return max(spellings, key=lambda k: most[k.ref, k.alt])


def _without_mirrors(panel: Panel, sites: Mapping[str, Sequence[Variant]]) -> Panel:
    """The panel without indels whose alleles stand in the other order too, at any site: where a file does not keep the order, its deletion
    may be the insertion beside it, written the other way round."""
    there = {(k.contig, k.position, k.ref, k.alt) for keys in sites.values() for k in keys if len(k.ref) != len(k.alt)}
    keep = np.array([(k.contig, k.position, k.alt, k.ref) not in there for k in panel.keys], dtype=bool)
    if keep.all():
        return panel
    return _picked(replace(panel, dropped=panel.dropped | {MIRRORED: int((~keep).sum())}), np.flatnonzero(keep))


def _sorted(panel: Panel) -> Panel:
    """By contig and position, so that a file's order decides nothing; a panel that is sorted stays as it is, at no cost in reading."""

    def rank(key: Variant) -> tuple[int, str, int]:
        return (int(key.contig) if key.contig.isdecimal() else 1000, key.contig, key.position)

    ranks = [rank(key) for key in panel.keys]
    if all(a <= b for a, b in itertools.pairwise(ranks)):
        return panel
    order = sorted(range(len(ranks)), key=lambda i: (ranks[i], panel.keys[i].ref, panel.keys[i].alt))
    return _picked(panel, np.array(order, dtype=np.intp))


def _picked(panel: Panel, at: npt.NDArray[np.intp]) -> Panel:
    """The panel's variants at these places, doubts and all."""
    return replace(
        panel,
        keys=tuple(panel.keys[i] for i in at.tolist()),
        flips={name: flip[at] for name, flip in panel.flips.items()},
        doubtful={name: mask[at] for name, mask in panel.doubtful.items()},
    )


def doubt(draft: Panel, counts: Mapping[str, Ints]) -> Panel:
    """The draft with all palindromes doubtful at a site where frequencies contradict their letters: the rare allele here is the common one
    elsewhere for more than one in ten of those (and three at least) that frequencies tell. A file whose other SNPs were put on the forward
    strand one by one looks so.

    Args:
        counts: as those of ``settle``.
    """
    palindrome = np.array([is_ambiguous(k.ref, k.alt) for k in draft.keys], dtype=bool)
    if not palindrome.any() or len(draft.flips) < 2:
        return draft
    told = {name: _alt_counts(counts[name]) for name in draft.flips}
    doubtful = dict(draft.doubtful)
    for name, mask in draft.doubtful.items():
        others = [told[other] for other in told if other != name and not draft.doubtful[other].any()]
        if mask.any() or not others:
            continue
        against = sides(*told[name])[palindrome] * sides(*(np.sum([o[i] for o in others], axis=0) for i in (0, 1)))[palindrome]
        wrong = int((against < 0).sum())
        if wrong >= _CONTRADICTED and wrong > 0.1 * (against != 0).sum():
            doubtful[name] = palindrome
    return replace(draft, doubtful=doubtful)


def settle(draft: Panel, counts: Mapping[str, Ints] | None) -> tuple[Panel, npt.NDArray[np.bool_]]:
    """The panel without doubts: a palindrome whose strand frequencies tell is turned, one they do not tell is dropped. With it, which of
    the draft's variants (bool) are in it.

    Args:
        counts: site -> (4, variants) persons with 0, 1, 2 ALT alleles of the draft as it is turned there, and missing; a column of -1
            was not told. None: nobody counted, and every doubtful palindrome is dropped.
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


def sides(alt: Ints, total: Ints) -> Ints:
    """(variants,): -1 where ALT is clearly the rare allele, 1 where clearly the common one, 0 where it is not clear or nobody is called."""
    return np.where(total > 0, (alt > (1 - CLEAR_FREQUENCY) * total).astype(np.int64) - (alt < CLEAR_FREQUENCY * total), 0)


def _alt_counts(counts: Ints) -> tuple[Ints, Ints]:
    """ALT alleles and all called alleles, 0 where a site did not tell."""
    told = np.where(counts < 0, 0, counts)
    return told[1] + 2 * told[2], 2 * (told[0] + told[1] + told[2])


def quality(counts: Ints, spec: Variants) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """Which variants meet the study's thresholds (bool), and how many fail each, by the first that they fail.

    Args:
        counts: (4, variants) pooled: persons with 0, 1, 2 ALT alleles, missing. A variant about which no site told anything fails.
    """
    from fedml.cohort.variants.frequency import call_rate, hardy_weinberg_p, minor_allele_frequency

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


def choose(panel: Panel, chosen: slice | npt.NDArray[np.bool_] | Ints) -> Panel:
    """Fewer of the panel's variants: a range of them, a mask (variants,), or indices in ascending order."""
    if isinstance(chosen, slice):
        keys = panel.keys[chosen]
    else:
        keys = tuple(panel.keys[i] for i in (np.flatnonzero(chosen) if chosen.dtype == bool else chosen).tolist())
    flips = {name: flip[chosen] for name, flip in panel.flips.items()}
    return replace(panel, keys=keys, flips=flips, doubtful={name: np.zeros(len(keys), dtype=bool) for name in panel.doubtful})


def align(own: Dosages, panel: Sequence[Variant], flips: npt.NDArray[np.uint8], match: Match) -> Dosages:
    """``own`` in the panel's order, each variant turned where ``flips`` says so; one that is absent here is missing for everybody."""
    if match not in own.places:  # of a million variants it takes seconds, and an analysis asks block by block
        own.places[match] = unique(own.keys, match)
    index = own.places[match]
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
