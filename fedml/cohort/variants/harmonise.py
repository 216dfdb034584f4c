"""Finds the variants that several sites share (the panel) and the orientation of each site's dosages, so that a dosage counts the same
allele at every site.

    draft = draft_panel({"oslo": keys, "porto": keys}, match="position")
    panel, kept = settle(draft, counts)   # counts: site -> (4, variants) persons with 0, 1, 2 ALT alleles, missing; or None
    panel.keys, panel.flips["oslo"]       # 1: this site's dosage counts the other allele

Variants are matched by contig, position and alleles, or by rsID if the study says so. A SNP's alleles may be swapped or on the other strand
at a site. The alleles of an insertion or deletion must be equal at all sites, because swapped alleles are a different variant (a deletion
instead of an insertion). Palindromes (A/T, C/G) read the same on both strands. At a site where no other SNP is complemented, palindromes
are taken as written; where all other SNPs are complemented, palindromes are complemented too; where some are, allele frequencies decide if
they are clear (minor allele below 20 % at the site and at the others), otherwise the variant is dropped. The same rule applies where
frequencies contradict the letters (``doubt``). An insertion and a deletion of the same letters at one position are dropped if any file does
not keep the order of alleles, because with swapped alleles one reads as the other.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.fine import Fine
from fedml.cohort.variants.frequency import alleles, call_rate, minor_allele_frequency
from fedml.cohort.variants.matching import Match, by_place, complement, place, shares_id, unique
from fedml.cohort.variants.model import MISSING, Dosages, Variant
from fedml.cohort.variants.normalise import ENOUGH, NOTES, SWAPPED, UNSURE, is_ambiguous, is_plain
from fedml.cohort.variants.packed import Packed
from fedml.study.cohort_section import Variants

Ints = npt.NDArray[np.int64]
CLEAR_FREQUENCY = 0.2  # a frequency below it, or above 1 minus it, shows which allele is the minor allele
EVEN = "A/T or C/G, strand not checked, minor allele frequency"
MIRRORED = "insertion and deletion of the same letters, and a file that does not keep the order of alleles"
_STRAND = {(a, b): int("T" in a + b) for a in "ACGT" for b in "ACGT" if a != b and not is_ambiguous(a, b)}
_MAX_STRAND_DIFFERENCE = 0.05  # share of SNPs that may differ in strand between two files that use the same strand
_MIN_CONTRADICTED = 3  # palindromes whose frequencies contradict their letters; from this number on, a file's palindromes are in doubt


class Fit(IntEnum):
    """How a site's alleles map to the panel's alleles."""

    SAME = 0
    SWAPPED = 1
    STRAND = 2
    STRAND_SWAPPED = 3
    OTHER = 4  # other alleles at that position: another variant
    ABSENT = 5


_FIT_NAMES = {Fit.SAME: "same", Fit.SWAPPED: "swapped", Fit.STRAND: "strand", Fit.STRAND_SWAPPED: "strand-swapped", Fit.OTHER: "none",
              Fit.ABSENT: "absent"}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """``keys`` (variants,), and for each site ``flips`` (variants,) uint8: 1 where the site's dosage counts the other allele.

    ``doubtful``: site -> (variants,) bool, palindromes of unknown strand. ``matching``: site -> kind of match -> number of variants.
    ``dropped``: reason -> number of variants that some site has and the panel lacks. ``absent``: site -> (variants,) bool, the variants
    that the site lacks, or has with other alleles; none where every site must have every variant.
    """

    keys: tuple[Variant, ...]
    flips: dict[str, npt.NDArray[np.uint8]]
    matching: dict[str, dict[str, int]]
    doubtful: dict[str, npt.NDArray[np.bool_]]
    dropped: dict[str, int]
    absent: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)

    def lacks(self, site: str) -> npt.NDArray[np.bool_]:
        """(variants,): the variants that ``site`` lacks."""
        return self.absent.get(site, np.zeros(len(self.keys), dtype=bool))


def fit(own: Variant, panel: Variant) -> Fit:
    """How the alleles of ``own`` map to those of ``panel``; a palindrome with swapped alleles is ``SWAPPED``, although it may be
    complemented instead: the letters are the same."""
    mine, theirs = (own.ref, own.alt), (panel.ref, panel.alt)
    if mine == theirs:
        return Fit.SAME
    if len(own.ref) != len(own.alt) or not is_plain(own.ref + own.alt):
        return Fit.OTHER
    if mine[::-1] == theirs:
        return Fit.SWAPPED
    complemented = (complement(own.ref), complement(own.alt))
    if complemented == theirs:
        return Fit.STRAND
    return Fit.STRAND_SWAPPED if complemented[::-1] == theirs else Fit.OTHER


def draft_panel(
    sites: Mapping[str, Sequence[Variant]],
    match: Match,
    checked: Collection[str] = (),
    notes: Mapping[str, Sequence[int] | Ints] | None = None,
    min_sites: int = 0,
) -> Panel:
    """The panel of variants that all ``sites`` have, or at least ``min_sites`` of them (0: all), in the first site's order, or sorted by
    contig and position if that is not sorted.

    A variant's alleles are those of the first of the ``checked`` sites, which compared their alleles with a reference. Without such a site
    the strand of most sites is used, and the allele order of most of these; at a tie, those of the first site.

    Args:
        notes: site -> counts (``fedml.cohort.variants.normalise.NOTES``): whether alleles were swapped against the site's reference, and
            whether the file uses both strands.
    """
    index = by_place(sites, match)
    names, reported = list(sites), notes or {}
    counts = {name: Counter[str]() for name in names}
    dropped = Counter[str]()
    kept: list[Variant] = []
    fits: dict[str, list[Fit]] = {name: [] for name in names}
    least = min(min_sites or len(names), len(names))
    shared = [where for where in index[names[0]] if all(where in index[name] for name in names[1:])]
    writers = [name for name in names if name in checked][:1] or _on_one_strand({n: [sites[n][index[n][w]] for w in shared] for n in names})
    for where in dict.fromkeys(itertools.chain.from_iterable(index[name] for name in (names if least < len(names) else names[:1]))):
        variants = {name: sites[name][index[name][where]] for name in names if where in index[name]}
        spelled = [variants[name] for name in writers if name in variants] if len(variants) >= least else []
        key = _most_frequent(spelled) if spelled else next(iter(variants.values()))
        there = {name for name, variant in variants.items() if shares_id(variant, key, match)}
        found = {name: fit(variants[name], key) if name in there else Fit.ABSENT for name in names}
        lost = {kind for kind in found.values() if kind in (Fit.ABSENT, Fit.OTHER)}
        enough = sum(kind not in (Fit.ABSENT, Fit.OTHER) for kind in found.values()) >= least
        for name, kind in found.items():
            if enough or kind in lost:
                counts[name][_FIT_NAMES[kind]] += 1
        if not enough:
            dropped["not at every site" if Fit.ABSENT in lost else "other alleles"] += 1
            continue
        kept.append(key)
        for name, kind in found.items():
            fits[name].append(kind)
    for name, keys in sites.items():
        counts[name]["twice"] = len(keys) - len(index[name]) - (sum(k.id == "." for k in keys) if match == "rsid" else 0)
        counts[name]["only here or not everywhere"] = len(index[name]) - len(kept) + sum(kind is Fit.ABSENT for kind in fits[name])
    palindrome = np.array([is_ambiguous(k.ref, k.alt) for k in kept], dtype=bool)
    decides = np.array([len(k.ref) == len(k.alt) and is_plain(k.ref + k.alt) for k in kept], dtype=bool) & ~palindrome
    flips, doubtful, absent = {}, {}, {}
    for name in names:
        fitted = np.array(fits[name], dtype=np.int64)
        absent[name] = np.isin(fitted, (Fit.ABSENT, Fit.OTHER))
        clear = int((decides & ~absent[name]).sum())
        flip = np.isin(fitted, (Fit.SWAPPED, Fit.STRAND_SWAPPED))
        complemented = int(np.isin(fitted, (Fit.STRAND, Fit.STRAND_SWAPPED)).sum())
        if name in reported and reported[name][NOTES.index(UNSURE)]:
            doubtful[name] = palindrome
        elif complemented == 0 and (match == "position" or clear >= ENOUGH):
            doubtful[name] = np.zeros(len(kept), dtype=bool)
        elif complemented == 0:  # too few other SNPs to decide: by rsID, a palindrome is taken as written unless its alleles are swapped
            doubtful[name] = palindrome & flip
        elif complemented == clear >= ENOUGH:  # the whole file is on the other strand
            doubtful[name] = np.zeros(len(kept), dtype=bool)
            flip = flip ^ palindrome
            counts[name]["palindrome turned"] = int(palindrome.sum())
        else:
            doubtful[name] = palindrome
        flips[name] = (flip & ~absent[name]).astype(np.uint8)
        doubtful[name] = doubtful[name] & ~absent[name]
    matching = {name: {k: v for k, v in c.items() if v} for name, c in counts.items()}
    panel = Panel(tuple(kept), flips, matching, doubtful, dict(dropped), absent)
    if match == "rsid":
        return panel
    if any(site[NOTES.index(SWAPPED)] for site in reported.values()) or any(
        Fit.SWAPPED in kinds or Fit.STRAND_SWAPPED in kinds for kinds in fits.values()
    ):
        panel = _without_mirrors(panel, sites)
    return _sorted(panel)


def _on_one_strand(sites: Mapping[str, Sequence[Variant]]) -> list[str]:
    """The sites on the strand that most sites use, judged by A/C and A/G against their complements G/T and C/T; all sites list the same
    variants.

    Two files use the same strand if at most 5 % of their SNPs differ. At a tie, the group with more files wholly on the other strand is
    taken (such a group is on one strand, unlike a mixed file), then the group of the first site.
    """
    names = list(sites)
    letters = np.array([[_STRAND.get((k.ref, k.alt), -1) for k in keys] for keys in sites.values()], dtype=np.int8)
    strand = letters[:, (letters >= 0).all(0)]
    if not strand.shape[1]:
        return names
    differ = np.array([[float((a != b).mean()) for b in strand] for a in strand])
    same, opposite = differ <= _MAX_STRAND_DIFFERENCE, differ >= 1 - _MAX_STRAND_DIFFERENCE
    best = max(range(len(names)), key=lambda i: (same[i].sum(), opposite[i].sum()))  # max returns the first of equal maxima
    return [name for name, yes in zip(names, same[best], strict=True) if yes]


def _most_frequent(spellings: Sequence[Variant]) -> Variant:
    count = Counter((k.ref, k.alt) for k in spellings)
    return max(spellings, key=lambda k: count[k.ref, k.alt])


def _without_mirrors(panel: Panel, sites: Mapping[str, Sequence[Variant]]) -> Panel:
    """The panel without indels that any site also lists with swapped alleles: in a file that does not keep the order of alleles, a deletion
    may be the insertion with swapped alleles."""
    indels = {(k.contig, k.position, k.ref, k.alt) for keys in sites.values() for k in keys if len(k.ref) != len(k.alt)}
    keep = np.array([(k.contig, k.position, k.alt, k.ref) not in indels for k in panel.keys], dtype=bool)
    if keep.all():
        return panel
    return _picked(replace(panel, dropped=panel.dropped | {MIRRORED: int((~keep).sum())}), np.flatnonzero(keep))


def _sorted(panel: Panel) -> Panel:
    """The panel sorted by contig and position, independent of file order; a sorted panel is returned unchanged, which keeps reading
    fast."""

    def rank(key: Variant) -> tuple[int, str, int]:
        return (int(key.contig) if key.contig.isdecimal() else 1000, key.contig, key.position)

    ranks = [rank(key) for key in panel.keys]
    if all(a <= b for a, b in itertools.pairwise(ranks)):
        return panel
    order = sorted(range(len(ranks)), key=lambda i: (ranks[i], panel.keys[i].ref, panel.keys[i].alt))
    return _picked(panel, np.array(order, dtype=np.intp))


def _picked(panel: Panel, at: npt.NDArray[np.intp]) -> Panel:
    """The panel's variants at the indices ``at``, with their flips and doubts."""
    return replace(
        panel,
        keys=tuple(panel.keys[i] for i in at.tolist()),
        flips={name: flip[at] for name, flip in panel.flips.items()},
        doubtful={name: mask[at] for name, mask in panel.doubtful.items()},
        absent={name: mask[at] for name, mask in panel.absent.items()},
    )


def doubt(draft: Panel, counts: Mapping[str, Ints]) -> Panel:
    """The draft with all palindromes doubtful at a site whose allele frequencies contradict their letters: the minor allele at the site is
    the major allele at the other sites for more than one in ten, and at least three, of the palindromes with a clear frequency. This occurs
    if the file's other SNPs were put on the forward strand one by one.

    Args:
        counts: as in ``settle``.
    """
    palindrome = np.array([is_ambiguous(k.ref, k.alt) for k in draft.keys], dtype=bool)
    if not palindrome.any() or len(draft.flips) < 2:
        return draft
    alleles = {name: _alt_counts(counts[name]) for name in draft.flips}
    doubtful = dict(draft.doubtful)
    for name, mask in draft.doubtful.items():
        others = [alleles[other] for other in alleles if other != name and not draft.doubtful[other].any()]
        if mask.any() or not others:
            continue
        agreement = sides(*alleles[name])[palindrome] * sides(*(np.sum([o[i] for o in others], axis=0) for i in (0, 1)))[palindrome]
        wrong = int((agreement < 0).sum())
        if wrong >= _MIN_CONTRADICTED and wrong > 0.1 * (agreement != 0).sum():
            doubtful[name] = palindrome & ~draft.lacks(name)
    return replace(draft, doubtful=doubtful)


def settle(
    draft: Panel, counts: Mapping[str, Ints] | None, unproven: npt.NDArray[np.bool_] | None = None, most: float = 0.5
) -> tuple[Panel, npt.NDArray[np.bool_]]:
    """The panel without doubtful palindromes, and a mask (draft variants,) bool of the variants that it keeps. A doubtful palindrome is
    oriented if the sites' frequencies decide its strand, otherwise dropped.

    Args:
        counts: site -> (4, variants) persons with 0, 1, 2 ALT alleles in the draft's orientation, and missing; a column of -1 was withheld
            by the site. None: no counts, every doubtful palindrome is dropped.
        unproven: (variants,) palindromes whose strand nothing but the letters shows (``palindromes.unproven``); dropped where the minor
            allele frequency over all sites is above ``most``, because there frequencies could not contradict the letters either.
    """
    even = np.zeros(len(draft.keys), dtype=bool)
    if counts is not None and unproven is not None and most < 0.5:
        alt_, total_ = (np.sum([_alt_counts(c)[i] for c in counts.values()], axis=0) for i in (0, 1))
        even = unproven & (np.minimum(alt_, total_ - alt_) > most * total_)
    doubtful = np.zeros(len(draft.keys), dtype=bool)
    for mask in draft.doubtful.values():
        doubtful |= mask
    even &= ~doubtful
    if not (doubtful | even).any():
        return draft, np.ones(len(draft.keys), dtype=bool)
    keep, flips = ~doubtful, {name: flip.copy() for name, flip in draft.flips.items()}
    if counts is not None:
        known = {name: _alt_counts(counts[name]) for name in draft.flips}
        for at in np.flatnonzero(doubtful):
            sure = [name for name in draft.flips if not draft.doubtful[name][at]]
            alt, total = (sum(known[name][i][at] for name in sure) for i in (0, 1))
            reference = alt / total if total else np.nan
            keep[at] = True
            for name in draft.flips:
                if name in sure:
                    continue
                local = known[name][0][at] / known[name][1][at] if known[name][1][at] else np.nan
                if _side(reference) == 0 or _side(local) == 0:
                    keep[at] = False
                elif _side(reference) != _side(local):
                    flips[name][at] ^= 1
    dropped = dict(draft.dropped)
    if lost := int((~keep).sum()):
        dropped["A/T or C/G of unknown strand"] = lost
    if lost := int(even.sum()):
        dropped[f"{EVEN} above {most:g}"] = lost
    keep &= ~even
    return choose(replace(draft, flips=flips, dropped=dropped), keep), keep


def _side(frequency: float) -> int:
    """-1: clearly the minor allele, 1: clearly the major allele, 0: not clear."""
    return -1 if frequency < CLEAR_FREQUENCY else 1 if frequency > 1 - CLEAR_FREQUENCY else 0


def sides(alt: Ints, total: Ints) -> Ints:
    """(variants,): -1 where ALT is clearly the minor allele, 1 where it is clearly the major allele, 0 where unclear or without a call."""
    return np.where(total > 0, (alt > (1 - CLEAR_FREQUENCY) * total).astype(np.int64) - (alt < CLEAR_FREQUENCY * total), 0)


def _alt_counts(counts: Ints) -> tuple[Ints, Ints]:
    """(variants,) ALT alleles and (variants,) all called alleles; 0 where the site withheld its counts."""
    return alleles(np.where(counts < 0, 0, counts))


def quality(counts: Ints, spec: Variants) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """(variants,) bool: the variants that meet the study's thresholds; and threshold -> number of variants that fail it first.

    Args:
        counts: (7, variants) pooled: persons with 0, 1, 2 ALT alleles, missing, the number of sites at which the variant is not in
            Hardy-Weinberg equilibrium, and persons with one copy (``alleles``). A variant without any reported count fails.
    """
    called = counts[:3].sum(0) > 0
    keep, failed = called.copy(), {"no counts reported (too few carriers, or none called)": int((~called).sum())}
    tests: list[tuple[str, float, Any]] = [
        (f"call rate below {spec.min_call_rate:g}", spec.min_call_rate, lambda: call_rate(counts)),
        (f"minor allele frequency below {spec.min_maf:g}", spec.min_maf, lambda: minor_allele_frequency(counts)),
        (f"Hardy-Weinberg p below {spec.min_hwe_p:g} at a site", spec.min_hwe_p, lambda: (counts[4] == 0).astype(float)),
    ]
    for name, threshold, value in tests:
        if threshold:
            fails = keep & ~(np.nan_to_num(value(), nan=0.0) >= threshold)
            failed[name] = int(fails.sum())
            keep &= ~fails
    return keep, {name: n for name, n in failed.items() if n}


def choose(panel: Panel, chosen: slice | npt.NDArray[np.bool_] | Ints) -> Panel:
    """The panel reduced to ``chosen``: a slice, a mask (variants,), or indices in ascending order."""
    if isinstance(chosen, slice):
        keys = panel.keys[chosen]
    else:
        keys = tuple(panel.keys[i] for i in (np.flatnonzero(chosen) if chosen.dtype == bool else chosen).tolist())
    flips = {name: flip[chosen] for name, flip in panel.flips.items()}
    absent = {name: mask[chosen] for name, mask in panel.absent.items()}
    doubtful = {name: np.zeros(len(keys), dtype=bool) for name in panel.doubtful}
    return replace(panel, keys=keys, flips=flips, doubtful=doubtful, absent=absent)


def align(own: Dosages, panel: Sequence[Variant], flips: npt.NDArray[np.uint8], match: Match) -> Dosages:
    """``own`` in the panel's order, with 2 - dosage where ``flips`` is 1; a variant absent at the site is missing for every person."""
    if match not in own.places:  # takes seconds for a million variants, and an analysis calls this for every block
        own.places[match] = unique(own.keys, match)
    index = own.places[match]
    if match == "rsid":
        wanted = [next((index[n,] for n in key.id.split(";") if (n,) in index), -1) for key in panel]
    else:
        wanted = [index.get(place(key, match), -1) for key in panel]
    columns = np.array(wanted, dtype=np.int64)
    # The server decides which allele each site counts, so that all count the same; here only the alleles are compared.
    for at in np.flatnonzero(columns >= 0).tolist():
        if fit(own.keys[columns[at]], panel[at]) is Fit.OTHER:
            columns[at] = -1
    where = None if own.where is None else np.where(columns < 0, MISSING, own.where[columns]).astype(np.int8)
    return replace(own, keys=tuple(panel), dosage=turned(own.dosage, columns, flips.astype(bool)), where=where)


def turned(
    dosage: npt.NDArray[np.int8] | Packed | Fine, columns: Ints, flip: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int8] | Packed | Fine:
    """``dosage`` (persons, variants), an array or a packed table, reordered by ``columns`` (-1: missing), with 2 - dosage where
    ``flip``."""
    if not isinstance(dosage, np.ndarray):
        return dosage.aligned(columns, flip)
    out = dosage[:, np.maximum(columns, 0)] if dosage.shape[1] else np.full((len(dosage), len(columns)), MISSING, np.int8)
    out = np.where((out != MISSING) & flip, 2 - out, out).astype(np.int8)
    out[:, columns < 0] = MISSING
    return out


def panel_of(keys: Sequence[Variant], sites: Mapping[str, Sequence[Variant]], match: Match) -> Panel:
    """A panel of given ``keys`` (a trained model's) with the flips of each of ``sites``; a variant that a site lacks is missing there."""
    at = {key: i for i, key in enumerate(keys)}
    flips = {}
    for name, own in sites.items():
        both = draft_panel({"": keys, name: own}, match, checked=[""])
        flips[name] = np.zeros(len(keys), dtype=np.uint8)
        flips[name][[at[key] for key in both.keys]] = both.flips[name]
    return Panel(tuple(keys), flips, {}, {name: np.zeros(len(keys), dtype=bool) for name in sites}, {})
