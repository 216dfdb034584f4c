"""Which panel variants are at the place of each weight of a scoring file, and whether their alleles fit, for all weights at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from fedml.cohort.scores.scoring_file import Integers, Scoring
from fedml.cohort.variants.keys import Variant
from fedml.study.contigs import canonical_contig

# How alleles fit, the best first: the effect allele is ALT, or REF; on the other strand; or the strand cannot be known; or they differ.
SAME, STRAND, AMBIGUOUS, DIFFER = 0, 2, 4, 5
_COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}
_BITS = 40  # of a position in a number that joins contig and position


class Pairs(NamedTuple):
    """Weights and panel variants at one place, each (pairs,): ``row`` of the weight, ``at`` in the panel, variants ``here``."""

    row: Integers
    at: Integers
    here: Integers


def candidates(scoring: Scoring, keys: Sequence[Variant], by: Literal["position", "rsid"]) -> Pairs:
    """All pairs of a weight and a panel variant at its place: of its contig and position, or with its rsID."""
    if by == "rsid":
        wanted = {name: code for code, name in enumerate(dict.fromkeys(filter(None, scoring.rsid)))}
        places = np.array([wanted.get(name, -1) for name in scoring.rsid], np.int64)
        listed = [(wanted[name], at) for at, key in enumerate(keys) for name in key.id.split(";") if name in wanted]
        panel, index = np.array(listed, np.int64).reshape(-1, 2).T
    else:
        contigs: dict[str, int] = {}
        codes = _codes(scoring.contig, contigs)
        places = np.where(scoring.position > 0, (codes << _BITS) + scoring.position, -1)
        raw: dict[str, int] = {}
        spelled = _codes([key.contig for key in keys], raw)
        number = np.array([contigs.setdefault(canonical_contig(name), len(contigs)) for name in raw], np.int64)
        panel = (number[spelled] << _BITS) + np.array([key.position for key in keys], np.int64) if len(keys) else spelled
        index = np.arange(len(keys))
    order = np.argsort(panel, kind="stable")
    panel, index = panel[order], index[order]
    begin, end = np.searchsorted(panel, places), np.searchsorted(panel, places, side="right")
    here = np.where(places < 0, 0, end - begin)
    row = np.repeat(np.arange(len(places)), here)
    offset = np.arange(len(row)) - np.repeat(np.cumsum(here) - here, here)
    return Pairs(row, index[np.repeat(begin, here) + offset], here[row])


def _codes(names: Sequence[str], known: dict[str, int]) -> Integers:
    """The number of each name; a new name gets the next, in ``known``."""
    for name in dict.fromkeys(names):
        known.setdefault(name, len(known))
    return np.fromiter(map(known.__getitem__, names), np.int64, len(names))


def fits(scoring: Scoring, keys: Sequence[Variant], pairs: Pairs, forward: bool) -> Integers:
    """(pairs,) how the alleles fit: ``SAME`` or ``STRAND``, one more where the effect allele is REF, ``AMBIGUOUS`` or ``DIFFER``.

    Single letters may be on the other strand; where they are each other's complement, that is known only if both are ``forward``. A weight
    without an other allele fits by its effect allele, on the same strand; REF at a multi-allelic site does not, because its copies are not
    2 minus the copies of one ALT.
    """
    known = {"": 0}
    row, there = pairs.row.tolist(), [keys[at] for at in pairs.at.tolist()]
    effect, other = _codes([scoring.effect[r] for r in row], known), _codes([scoring.other[r] for r in row], known)
    ref, alt = _codes([key.ref.upper() for key in there], known), _codes([key.alt.upper() for key in there], known)
    turned = np.array([known.get(_COMPLEMENT[name], -1) if name in _COMPLEMENT else -1 for name in known], np.int64)

    def side(first: Integers, second: Integers) -> Integers:
        """0 where the alleles are ALT and REF, 1 where REF and ALT, -1 where neither."""
        return np.where((first == alt) & (second == ref), 0, np.where((first == ref) & (second == alt), 1, -1))

    alone = np.where(effect == alt, 0, np.where((effect == ref) & (pairs.here == 1), 1, -1))
    same = np.where(other > 0, side(effect, other), alone)
    strand = side(turned[effect], turned[other])
    clear = forward | (turned[ref] != alt)
    return np.where(same >= 0, np.where(clear, SAME + same, AMBIGUOUS), np.where(strand >= 0, STRAND + strand, DIFFER))
