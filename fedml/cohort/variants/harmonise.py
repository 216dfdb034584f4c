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

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.alleles import is_ambiguous, is_plain
from fedml.cohort.variants.fine import Fine
from fedml.cohort.variants.fit import Fit, fit
from fedml.cohort.variants.frequency import alleles, call_rate, minor_allele_frequency
from fedml.cohort.variants.keys import Ints, Keys, Variant, columns_of
from fedml.cohort.variants.matching import Match, Places, place_hashes, places_of, unique
from fedml.cohort.variants.meeting import fits_of, meet
from fedml.cohort.variants.model import MISSING, Dosages
from fedml.cohort.variants.normalise import ENOUGH, NOTES, SWAPPED, UNSURE
from fedml.cohort.variants.packed import Packed
from fedml.study.cohort_section import Variants

CLEAR_FREQUENCY = 0.2  # a frequency below it, or above 1 minus it, shows which allele is the minor allele
EVEN = "A/T or C/G, strand not checked, minor allele frequency"
MIRRORED = "insertion and deletion of the same letters, and a file that does not keep the order of alleles"
_MIN_CONTRADICTED = 3  # palindromes whose frequencies contradict their letters; from this number on, a file's palindromes are in doubt


@dataclass(frozen=True)
class Panel:
    """``keys`` (variants,), and for each site ``flips`` (variants,) uint8: 1 where the site's dosage counts the other allele.

    ``doubtful``: site -> (variants,) bool, palindromes of unknown strand. ``matching``: site -> kind of match -> number of variants.
    ``dropped``: reason -> number of variants that some site has and the panel lacks. ``absent``: site -> (variants,) bool, the variants
    that the site lacks, or has with other alleles; none where every site must have every variant.
    """

    keys: Sequence[Variant]
    flips: dict[str, npt.NDArray[np.uint8]]
    matching: dict[str, dict[str, int]]
    doubtful: dict[str, npt.NDArray[np.bool_]]
    dropped: dict[str, int]
    absent: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)

    def lacks(self, site: str) -> npt.NDArray[np.bool_]:
        """(variants,): the variants that ``site`` lacks."""
        return self.absent.get(site, np.zeros(len(self.keys), dtype=bool))


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
    names, reported = list(sites), notes or {}
    met = meet(sites, match, min(min_sites or len(names), len(names)), checked)
    kept, counts = met.keys, met.counts
    for name, keys in sites.items():
        counts[name]["twice"] = len(keys) - met.places[name] - (_without_id(keys) if match == "rsid" else 0)
        counts[name]["only here or not everywhere"] = met.places[name] - len(kept) + int((met.fits[name] == Fit.ABSENT).sum())
    palindrome = kept.by_alleles(is_ambiguous)
    decides = kept.by_alleles(lambda ref, alt: len(ref) == len(alt) and is_plain(ref + alt)) & ~palindrome
    flips, doubtful, absent = {}, {}, {}
    for name in names:
        fitted = met.fits[name]
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
    panel = Panel(kept, flips, matching, doubtful, dict(met.dropped), absent)
    if match == "rsid":
        return panel
    if any(site[NOTES.index(SWAPPED)] for site in reported.values()) or any(
        np.isin((Fit.SWAPPED, Fit.STRAND_SWAPPED), kinds).any() for kinds in met.fits.values()
    ):
        panel = _without_mirrors(panel, sites)
    return _sorted(panel)


def _without_id(keys: Sequence[Variant]) -> int:
    return sum(key.id == "." for key in keys)


def _without_mirrors(panel: Panel, sites: Mapping[str, Sequence[Variant]]) -> Panel:
    """The panel without indels that any site also lists with swapped alleles: in a file that does not keep the order of alleles, a deletion
    may be the insertion with swapped alleles."""
    others = [keys.take(_indels(keys)) for keys in map(columns_of, sites.values())]
    keep, own = np.ones(len(panel.keys), dtype=bool), columns_of(panel.keys)
    at = np.flatnonzero(_indels(own))
    keep[at] = ~np.isin(place_hashes(own.take(at), mirrored=True), np.concatenate([place_hashes(keys) for keys in others]))
    if keep.all():
        return panel
    return _picked(replace(panel, dropped=panel.dropped | {MIRRORED: int((~keep).sum())}), np.flatnonzero(keep))


def _indels(keys: Keys) -> npt.NDArray[np.bool_]:
    return keys.by_alleles(lambda ref, alt: len(ref) != len(alt))


def _sorted(panel: Panel) -> Panel:
    """The panel sorted by contig and position, independent of file order; a sorted panel is returned unchanged, which keeps reading
    fast."""
    keys = columns_of(panel.keys)
    names = sorted(keys.contigs, key=lambda name: (int(name) if name.isdecimal() else 1000, name))
    contig, position = keys.by_contig({name: at for at, name in enumerate(names)}.__getitem__, np.int64), keys.position
    step = np.diff(contig)
    if ((step > 0) | ((step == 0) & (np.diff(position) >= 0))).all():
        return panel
    spelled = {pair: at for at, pair in enumerate(sorted(keys.pairs))}
    return _picked(panel, np.lexsort((keys.by_alleles(lambda *pair: spelled[pair], np.int64), position, contig)))


def _picked(panel: Panel, at: npt.NDArray[np.intp]) -> Panel:
    """The panel's variants at the indices ``at``, with their flips and doubts."""
    return replace(
        panel,
        keys=columns_of(panel.keys).take(at),
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
    palindrome = columns_of(draft.keys).by_alleles(is_ambiguous)
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
    own = columns_of(panel.keys)
    keys = own[chosen] if isinstance(chosen, slice) else own.take(chosen)
    flips = {name: flip[chosen] for name, flip in panel.flips.items()}
    absent = {name: mask[chosen] for name, mask in panel.absent.items()}
    doubtful = {name: np.zeros(len(keys), dtype=bool) for name in panel.doubtful}
    return replace(panel, keys=keys, flips=flips, doubtful=doubtful, absent=absent)


def align(own: Dosages, panel: Sequence[Variant], flips: npt.NDArray[np.uint8], match: Match) -> Dosages:
    """``own`` in the panel's order, with 2 - dosage where ``flips`` is 1; a variant absent at the site is missing for every person."""
    wanted = columns_of(panel)
    columns = _by_position(own, wanted) if match == "position" else _by_id(own, panel)
    where = None if own.where is None else np.where(columns < 0, MISSING, own.where[columns]).astype(np.int8)
    return replace(own, keys=wanted, dosage=turned(own.dosage, columns, flips.astype(bool)), where=where)


# The server decides which allele each site counts, so that all count the same; a site only compares the alleles.
def _by_position(own: Dosages, panel: Keys) -> Ints:
    """(panel,): index of the site's variant, or -1."""
    keys = columns_of(own.keys)
    if "position" not in own.places:  # an analysis asks this of every block of the panel
        own.places["position"] = places_of(keys)
    places: Places = own.places["position"]
    columns = places.find(place_hashes(panel))
    found = np.flatnonzero(columns >= 0)
    mine, theirs = keys.take(columns[found]), panel.take(found)
    numbers = {name: at for at, name in enumerate(dict.fromkeys([*mine.contigs, *theirs.contigs]))}
    same = mine.by_contig(numbers.__getitem__, np.int64) == theirs.by_contig(numbers.__getitem__, np.int64)
    same &= mine.position == theirs.position
    same &= fits_of(mine.alleles, theirs.alleles, mine.pairs, theirs.pairs) != Fit.OTHER
    columns[found[~same]] = -1
    return columns


def _by_id(own: Dosages, panel: Sequence[Variant]) -> Ints:
    """(panel,): index of the site's variant that has one of the ids, or -1."""
    if "rsid" not in own.places:
        own.places["rsid"] = unique(own.keys, "rsid")
    index = own.places["rsid"]
    columns = np.array([next((index[n,] for n in key.id.split(";") if (n,) in index), -1) for key in panel], dtype=np.int64)
    for at in np.flatnonzero(columns >= 0).tolist():
        if fit(own.keys[columns[at]], panel[at]) is Fit.OTHER:
            columns[at] = -1
    return columns


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
    return Panel(columns_of(keys), flips, {}, {name: np.zeros(len(keys), dtype=bool) for name in sites}, {})
