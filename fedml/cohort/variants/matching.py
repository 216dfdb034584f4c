"""When variants of two files are one: the same contig, position and alleles, or one id in common.

place(key, "position")                         # equal for two variants that match
unique(keys, "rsid")                           # place -> index in the file
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fedml.cohort.variants.model import Variant
from fedml.cohort.variants.normalise import COMPLEMENT, is_plain

Match = Literal["position", "rsid"]


def complement(alleles: str) -> str:
    return alleles.translate(COMPLEMENT)[::-1]


def _either(ref: str, alt: str) -> tuple[str, ...]:
    """One representation of two alleles of equal length, independent of their order and strand."""
    return min(tuple(sorted((ref, alt))), tuple(sorted((complement(ref), complement(alt)))))


_SNPS = {(ref, alt): _either(ref, alt) for ref in "ACGT" for alt in "ACGT" if ref != alt}


def place(key: Variant, match: Match) -> tuple[Any, ...]:
    """The identity of a variant; two sites' variants match if it is equal. For a SNP (or a substitution of several letters) it does not
    depend on the alleles' order and strand; for an insertion or deletion it contains the alleles as written."""
    if match == "rsid":
        return (key.id,)
    snp = _SNPS.get((key.ref, key.alt))
    if snp is not None:
        return (key.contig, key.position, snp)
    if len(key.ref) != len(key.alt) or not is_plain(key.ref + key.alt):
        return (key.contig, key.position, key.ref, key.alt)
    return (key.contig, key.position, _either(key.ref, key.alt))


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
