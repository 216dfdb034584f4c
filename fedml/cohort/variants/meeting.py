"""Which variants several sites have in common, and how each site's alleles map to those that the panel has.

    met = meet({"oslo": keys, "porto": keys}, "position", least=2, checked=["porto"])
    met.keys, met.fits["oslo"]           # the variants; (variants,) numbers of ``Fit``

By position whole columns are compared (a million variants of three sites take two seconds); by rsID, where a variant may have several ids,
one variant at a time.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fedml.cohort.variants.alleles import is_ambiguous
from fedml.cohort.variants.fit import FIT_NAMES, Fit, fit, fit_alleles
from fedml.cohort.variants.keys import Ints, Keys, Variant, columns_of
from fedml.cohort.variants.matching import Match, Places, by_place, places_of, shares_id

_STRAND = {(a, b): int("T" in a + b) for a in "ACGT" for b in "ACGT" if a != b and not is_ambiguous(a, b)}
_MAX_STRAND_DIFFERENCE = 0.05  # share of SNPs that may differ in strand between two files that use the same strand


class Met(NamedTuple):
    """``keys`` (variants,); ``fits``: site -> (variants,) numbers of ``Fit``; ``places``: site -> number of variants that it lists once;
    ``counts``: site -> kind of match -> number of variants, also of those that are not in ``keys``; ``dropped``: reason -> number."""

    keys: Keys
    fits: dict[str, npt.NDArray[np.int8]]
    places: dict[str, int]
    counts: dict[str, Counter[str]]
    dropped: Counter[str]


def meet(sites: Mapping[str, Sequence[Variant]], match: Match, least: int, checked: Collection[str]) -> Met:
    """The variants that at least ``least`` of the sites have, in the order in which they are first listed.

    A variant's alleles are those of the first of the ``checked`` sites. Without such a site, or where it lacks the variant, the strand of
    most sites is used, and the allele order of most of these; at a tie, those of the first site.
    """
    return _by_position(sites, least, checked) if match == "position" else _by_id(sites, match, least, checked)


def _by_position(sites: Mapping[str, Sequence[Variant]], least: int, checked: Collection[str]) -> Met:
    names = list(sites)
    own = [columns_of(keys).short for keys in sites.values()]
    places = [places_of(keys) for keys in own]
    wanted = _candidates(places, union=least < len(names))
    at = np.stack([site.find(wanted) for site in places])
    contigs = {name: number for number, name in enumerate(dict.fromkeys(itertools.chain.from_iterable(k.contigs for k in own)))}
    pairs = {pair: number for number, pair in enumerate(dict.fromkeys(itertools.chain.from_iterable(k.pairs for k in own)))}
    alleles = np.stack([_numbers(keys.pairs, pairs, keys.alleles, where) for keys, where in zip(own, at, strict=True)])
    writers = [names.index(name) for name in names if name in checked][:1] or _on_one_strand(alleles, list(pairs))
    chosen = _writer(alleles, writers, (at >= 0).sum(0) >= least)
    columns = np.arange(len(wanted))
    contig = np.stack([_numbers(keys.contigs, contigs, keys.contig, where) for keys, where in zip(own, at, strict=True)])
    position = np.stack([np.append(keys.position, -1)[where] for keys, where in zip(own, at, strict=True)])
    # Variants that have the same hash and are not the same are as good as absent.
    there = (at >= 0) & (contig == contig[chosen, columns]) & (position == position[chosen, columns])
    spelled = alleles[chosen, columns]
    fits = np.stack([_fits(mine, spelled, has, list(pairs)) for mine, has in zip(alleles, there, strict=True)])
    kept = (fits < Fit.OTHER).sum(0) >= least
    counts = {name: _counted(row[kept | (row >= Fit.OTHER)]) for name, row in zip(names, fits, strict=True)}
    dropped = _lost((fits[:, ~kept] == Fit.ABSENT).any(0))
    rows = chosen[kept]
    keys = Keys(
        tuple(contigs), contig[rows, columns[kept]].astype(np.int32), position[rows, columns[kept]],
        _gathered([keys.ids for keys in own], rows, at[rows, columns[kept]]), tuple(pairs), spelled[kept].astype(np.int32),
    ).short  # fmt: skip
    number = {name: len(site.at) for name, site in zip(names, places, strict=True)}
    return Met(keys, {name: row[kept] for name, row in zip(names, fits, strict=True)}, number, counts, dropped)


def _candidates(places: Sequence[Places], *, union: bool) -> npt.NDArray[np.uint64]:
    """The hashes of the first site's places in its file's order; with ``union``, followed by those that other sites have besides."""
    together = np.concatenate([site.hashes[np.argsort(site.at, kind="stable")] for site in (places if union else places[:1])])
    _, first = np.unique(together, return_index=True)
    return together[np.sort(first)]


def _numbers(values: Sequence[Any], numbers: Mapping[Any, int], column: npt.NDArray[np.int32], where: Ints) -> Ints:
    """(where,): the common number of the value at each index ``where`` of a site's column, -1 where it has none."""
    common = np.array([numbers[value] for value in values], np.int64)[column] if len(column) else np.zeros(0, np.int64)
    return np.append(common, -1)[where]


def _writer(alleles: Ints, writers: Sequence[int], enough: npt.NDArray[np.bool_]) -> Ints:
    """(variants,): the site whose alleles the panel takes. ``alleles`` (sites, variants): numbers of pairs, -1 where a site has none."""
    chosen: Ints = np.argmax(alleles >= 0, axis=0)
    written = alleles[writers]
    has = written >= 0
    first: Ints = np.argmax(has, axis=0)
    usual = written[first, np.arange(written.shape[1])]
    ask = has.any(0) & enough
    chosen[ask] = np.asarray(writers)[first[ask]]
    torn = np.flatnonzero(ask & (has & (written != usual)).any(0))  # the writers differ: most of them decide
    votes = np.stack([(written[:, torn] == row).sum(0) * (row >= 0) for row in written[:, torn]]) if len(torn) else np.zeros((1, 0))
    chosen[torn] = np.asarray(writers)[np.argmax(votes, axis=0)]
    return chosen


def _fits(own: Ints, panel: Ints, there: npt.NDArray[np.bool_], pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.int8]:
    """(variants,): numbers of ``Fit``, from the numbers of the pairs of a site and of the panel."""
    out = np.full(len(own), Fit.ABSENT, np.int8)
    out[there] = fits_of(own[there], panel[there], pairs, pairs)
    return out


def fits_of(
    own: npt.NDArray[np.integer],
    panel: npt.NDArray[np.integer],
    own_pairs: Sequence[tuple[str, str]],
    panel_pairs: Sequence[tuple[str, str]],
) -> npt.NDArray[np.int8]:
    """(variants,): numbers of ``Fit`` of variants whose alleles are given as numbers into lists of pairs; each combination is compared
    once."""
    both, inverse = np.unique(own.astype(np.int64) * max(len(panel_pairs), 1) + panel, return_inverse=True)
    kinds = [fit_alleles(own_pairs[k // len(panel_pairs)], panel_pairs[k % len(panel_pairs)]) for k in both.tolist()]
    return np.array(kinds, np.int8)[inverse] if len(both) else np.zeros(0, np.int8)


def _counted(kinds: npt.NDArray[np.int8]) -> Counter[str]:
    """Kind of match -> number of variants, in the order in which they first occur."""
    found, first, count = np.unique(kinds, return_index=True, return_counts=True)
    return Counter({FIT_NAMES[Fit(int(found[i]))]: int(count[i]) for i in np.argsort(first)})


def _lost(absent: npt.NDArray[np.bool_]) -> Counter[str]:
    """Reason -> number of variants that too few sites have. ``absent`` (variants,): a site lacks it, else all have other alleles there."""
    both = {"not at every site": int(absent.sum()), "other alleles": int((~absent).sum())}
    return Counter({why: both[why] for why in (both if not len(absent) or absent[0] else reversed(both)) if both[why]})


def _gathered(columns: Sequence[pa.Array], rows: Ints, at: Ints) -> pa.Array:
    """(variants,): of each variant the value in the column of the site ``rows``, at the index ``at``."""
    if len(np.unique(rows)) == 1:
        return columns[rows[0]].take(pa.array(at))
    begin = np.cumsum([0, *(len(column) for column in columns)])
    return pa.concat_arrays(list(columns)).take(pa.array(begin[rows] + at))


def _on_one_strand(alleles: Ints, pairs: Sequence[tuple[str, str]]) -> list[int]:
    """The sites on the strand that most sites use, judged by A/C and A/G against their complements G/T and C/T, of the variants that all
    sites have.

    Two files use the same strand if at most 5 % of their SNPs differ. At a tie, the group with more files wholly on the other strand is
    taken (such a group is on one strand, unlike a mixed file), then the group of the first site.
    """
    letters = np.array([_STRAND.get(pair, -1) for pair in pairs] or [-1], np.int8)[alleles[:, (alleles >= 0).all(0)]]
    strand = letters[:, (letters >= 0).all(0)]
    if not strand.shape[1]:
        return list(range(len(alleles)))
    differ = np.array([[float((a != b).mean()) for b in strand] for a in strand])
    same, opposite = differ <= _MAX_STRAND_DIFFERENCE, differ >= 1 - _MAX_STRAND_DIFFERENCE
    best = max(range(len(alleles)), key=lambda i: (same[i].sum(), opposite[i].sum()))  # max returns the first of equal maxima
    return np.flatnonzero(same[best]).tolist()


def _by_id(sites: Mapping[str, Sequence[Variant]], match: Match, least: int, checked: Collection[str]) -> Met:
    index = by_place(sites, match)
    names = list(sites)
    counts = {name: Counter[str]() for name in names}
    dropped = Counter[str]()
    kept: list[Variant] = []
    fits: dict[str, list[Fit]] = {name: [] for name in names}
    shared = [where for where in index[names[0]] if all(where in index[name] for name in names[1:])]
    writers = [name for name in names if name in checked][:1]
    if not writers:
        pairs = dict[tuple[str, str], int]()
        alleles = np.zeros((len(names), len(shared)), np.int64)
        for row, name in zip(alleles, names, strict=True):
            row[:] = [pairs.setdefault(sites[name][index[name][where]][3:], len(pairs)) for where in shared]
        writers = [names[at] for at in _on_one_strand(alleles, list(pairs))]
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
                counts[name][FIT_NAMES[kind]] += 1
        if not enough:
            dropped["not at every site" if Fit.ABSENT in lost else "other alleles"] += 1
            continue
        kept.append(key)
        for name, kind in found.items():
            fits[name].append(kind)
    numbers = {name: np.array(kinds, np.int8) for name, kinds in fits.items()}
    return Met(columns_of(kept), numbers, {name: len(where) for name, where in index.items()}, counts, dropped)


def _most_frequent(spellings: Sequence[Variant]) -> Variant:
    count = Counter((k.ref, k.alt) for k in spellings)
    return max(spellings, key=lambda k: count[k.ref, k.alt])
