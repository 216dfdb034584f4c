"""When variants of two files are one: the same contig, position and alleles, or one id in common.

place(key, "position")                         # equal for two variants that match
unique(keys, "rsid")                           # place -> index in the file
places_of(keys).find(place_hashes(panel))      # the same by position, for millions: (panel,) index in the file, or -1
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.alleles import complement, is_plain
from fedml.cohort.variants.keys import Ints, Keys, Variant

Match = Literal["position", "rsid"]
Hashes = npt.NDArray[np.uint64]


def _either(ref: str, alt: str) -> tuple[str, ...]:
    """One representation of two alleles of equal length, independent of their order and strand."""
    return min(tuple(sorted((ref, alt))), tuple(sorted((complement(ref), complement(alt)))))


_SNPS = {(ref, alt): _either(ref, alt) for ref in "ACGT" for alt in "ACGT" if ref != alt}


def place(key: Variant, match: Match) -> tuple[Any, ...]:
    """The identity of a variant; two sites' variants match if it is equal. For a SNP (or a substitution of several letters) it does not
    depend on the alleles' order and strand; for an insertion or deletion it contains the alleles as written."""
    if match == "rsid":
        return (key.id,)
    return (key.contig, key.position, *_of_alleles(key.ref, key.alt))


def _of_alleles(ref: str, alt: str) -> tuple[Any, ...]:
    """The alleles' part of ``place``."""
    snp = _SNPS.get((ref, alt))
    if snp is not None:
        return (snp,)
    return (ref, alt) if len(ref) != len(alt) or not is_plain(ref + alt) else (_either(ref, alt),)


class Places(NamedTuple):
    """Where a file's variants are by position, without those that it lists twice. ``hashes`` (variants,) of their places, ascending;
    ``at`` (variants,): their indices in the file."""

    hashes: Hashes
    at: Ints

    def find(self, wanted: Hashes) -> Ints:
        """(wanted,): index in the file, or -1. Different places have the same hash once in 10^7 panels of a million, so who needs certainty
        compares the variants found."""
        if not len(self.hashes):
            return np.full(len(wanted), -1, np.int64)
        near = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[near] == wanted, self.at[near], -1)


def places_of(keys: Keys) -> Places:
    """``unique`` of ``keys`` by position."""
    hashes = place_hashes(keys)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    same = ordered[1:] == ordered[:-1]
    alone = ~(np.append(same, False) | np.append(False, same)) if len(ordered) else np.zeros(0, bool)
    return Places(ordered[alone], order[alone])


def place_hashes(keys: Keys, *, mirrored: bool = False) -> Hashes:
    """(variants,): a number for each variant's ``place`` by position. ``mirrored``: with REF and ALT exchanged, as an insertion or
    deletion would be read from a file that does not keep the order of alleles."""

    def alleles(ref: str, alt: str) -> int:
        return _number(*(_of_alleles(alt, ref) if mirrored else _of_alleles(ref, alt)))

    contig, pair = keys.by_contig(_number, np.uint64), keys.by_alleles(alleles, np.uint64)
    return _mixed(_mixed(_mixed(contig) ^ keys.position.astype(np.uint64)) ^ pair)


def _number(*parts: Any) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest())


def _mixed(x: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014, OOPSLA): every bit depends on every bit of ``x``."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def unique(keys: Sequence[Variant], match: Match) -> dict[tuple[Any, ...], int]:
    """``place`` -> index of the variant. Excludes a variant that a site lists twice, because it is ambiguous, and one without an rsID. By
    rsID, a variant with several ids (``rs1;rs2``) has several places, and none of them may be another variant's."""
    if match == "rsid":
        names = [tuple(dict.fromkeys(key.id.split(";"))) for key in keys]
        uses = Counter(itertools.chain.from_iterable(names))
        return {(n,): at for at, own in enumerate(names) if all(uses[n] == 1 for n in own) for n in own if n != "."}
    places = [place(key, match) for key in keys]
    count = Counter(places)
    return {where: at for at, where in enumerate(places) if count[where] == 1 and where != (".",)}


def by_place(sites: Mapping[str, Sequence[Variant]], match: Match) -> dict[str, dict[tuple[Any, ...], int]]:
    """Site -> ``unique``, with one place for each variant also where it has several ids: those that any site lists together are one."""
    if match == "position" or not any(";" in key.id for keys in sites.values() for key in keys):
        return {name: unique(keys, match) for name, keys in sites.items()}
    parent: dict[str, str] = {}

    def first(name: str) -> str:
        while (above := parent.setdefault(name, name)) != name:
            name = above
        return name

    for key in itertools.chain.from_iterable(sites.values()):
        for name in key.id.split(";"):
            parent[first(name)] = first(key.id.split(";")[0])
    one = {name: [key._replace(id=first(key.id.split(";")[0])) for key in keys] for name, keys in sites.items()}
    return {name: unique(keys, match) for name, keys in one.items()}


def shares_id(own: Variant, panel: Variant, match: Match) -> bool:
    """False if the two are matched by their rsIDs and have none in common: a third variant lists them together."""
    return match == "position" or own.id == panel.id or not set(own.id.split(";")).isdisjoint(panel.id.split(";"))
