"""Kinship within one site by the KING-robust estimator, for the site itself: pairs of persons never leave it.

    found = related(dosages, rows, above=0.0884)         # Pairs: first, second (indices into rows), kinship; None: too few variants
    left_out(found, keys, persons)                       # (persons,) bool: whom to leave out so that no pair is left
    for line in relative_lines(cohort.ids, dosages): print(line)             # for the site's own screen

KING-robust (Manichaikul et al. 2010, Bioinformatics 26:2867, equation 11, with the smaller number of heterozygotes as in ``plink2
--make-king-table``): over the variants at which both are called, kinship = 1/2 - sum (g_i - g_j)^2 / (4 min(het_i, het_j)). Allele
frequencies have no part in it, so that persons of different populations are not related by them; kinship between populations is below 0.

Variants: autosomal, minor allele frequency of the site's own persons 0.05 or more, call rate 0.95 or more, and of these at most 15,000,
evenly spaced in their order; they are looked for among at most 120,000, also evenly spaced, unless too few of these can be used. Of
unrelated persons the estimate has a standard deviation of about 1 / sqrt(variants) (measured, unlinked variants), so that a kinship above a
limit is told only from ``fewest(limit)`` variants on, where the limit is five of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.genotypes import genotype_counts
from fedml.cohort.variants.harmonise import turned
from fedml.cohort.variants.keys import columns_of
from fedml.cohort.variants.model import Dosages
from fedml.cohort.variants.sex_check import sex_lines
from fedml.study.contigs import canonical_contig

MOST = 15_000  # variants
_LOOKED_AT = 120_000  # variants that are counted to find them
MIN_MAF, MIN_CALL_RATE = 0.05, 0.95
# Least kinship of each degree (Manichaikul et al. 2010, table 1): 2^-1.5, 2^-2.5, ...
DEGREES = (("duplicates or twins", 2**-1.5), ("first degree", 2**-2.5), ("second degree", 2**-3.5), ("third degree", 2**-4.5))
_PERSONS = 512  # in a block of pairs
_VARIANTS = 2048  # in a product: float32 holds its sums, at most 4 x 2,048, exactly
_DEVIATIONS, _DEVIATION = 5, 1.0
_NAMED = 50  # pairs on the screen


class Pairs(NamedTuple):
    """Pairs of persons, each array (pairs,): their indices, ``first`` < ``second``, and their kinship."""

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    kinship: npt.NDArray[np.float64]


def related(own: Dosages, rows: npt.NDArray[np.int64], above: float) -> Pairs | None:
    """The pairs among the persons ``rows`` with a kinship above ``above``; None if there are fewer variants than ``fewest(above)``."""
    at = panel(own, rows)
    if len(at) < fewest(above):
        return None
    table = turned(own.dosage, at, np.zeros(len(at), bool))
    blocks = [rows[start : start + _PERSONS] for start in range(0, len(rows), _PERSONS)]
    found: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []
    for i, one in enumerate(blocks):
        a = np.asarray(table[one])
        for j in range(i, len(blocks)):
            phi = kinship(a, a if i == j else np.asarray(table[blocks[j]]))
            if i == j:
                phi[np.tril_indices(len(phi))] = -np.inf  # a pair once, and nobody with themselves
            x, y = np.nonzero(phi > above)
            found.append((x + i * _PERSONS, y + j * _PERSONS, phi[x, y]))
    first, second, phi = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.lexsort((second, first))
    return Pairs(first[order], second[order], phi[order])


def fewest(above: float) -> int:
    """The least number of variants by which a kinship above ``above`` can be told from none."""
    return 1 if above <= 0 else math.ceil((_DEVIATIONS * _DEVIATION / above) ** 2)


def panel(own: Dosages, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The variants by which kinship is estimated, as indices, ascending."""
    autosomal = np.flatnonzero(columns_of(own.keys).by_contig(lambda name: canonical_contig(name).isdecimal()))
    few = autosomal[_spread(len(autosomal), _LOOKED_AT)]
    if len(usable := _usable(own, rows, few)) < MOST and len(few) < len(autosomal):
        usable = _usable(own, rows, autosomal)
    return usable[_spread(len(usable), MOST)]


def _spread(total: int, most: int) -> npt.NDArray[np.int64]:
    """At most ``most`` of 0 to ``total`` - 1, evenly spaced."""
    return np.linspace(0, total - 1, min(total, most)).round().astype(np.int64)


def _usable(own: Dosages, rows: npt.NDArray[np.int64], at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which of the variants ``at`` are common and called among the persons ``rows``."""
    chosen = replace(own, keys=columns_of(own.keys).take(at), dosage=turned(own.dosage, at, np.zeros(len(at), bool)))
    counts = genotype_counts(chosen, rows)
    called, persons = counts[:3].sum(0), max(len(rows), 1)
    p = (counts[1] + 2 * counts[2]) / np.maximum(2 * called, 1)
    found: npt.NDArray[np.int64] = at[(np.minimum(p, 1 - p) >= MIN_MAF) & (called >= MIN_CALL_RATE * persons)]
    return found


def kinship(a: npt.NDArray[np.int8], b: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
    """(persons of ``a``, persons of ``b``) KING-robust kinship from dosages (persons, variants), -1 where missing; -inf where one of two
    has no heterozygous call among those that both have."""
    apart, het_a, het_b = np.zeros((3, len(a), len(b)))
    for start in range(0, a.shape[1], _VARIANTS):
        x = _parts(a[:, start : start + _VARIANTS])
        y = x if a is b else _parts(b[:, start : start + _VARIANTS])
        het, square = _with_called(x.het, y), _with_called(x.square, y)
        own_het, own_square = (het, square) if a is b else (_with_called(y.het, x), _with_called(y.square, x))
        apart += square + own_square.T - 2 * (x.dosage @ y.dosage.T)
        het_a += het
        het_b += own_het.T
    fewer = np.minimum(het_a, het_b)
    return np.where(fewer > 0, 0.5 - np.divide(apart, 4 * fewer, out=np.zeros_like(apart), where=fewer > 0), -np.inf)


class _Parts(NamedTuple):
    dosage: npt.NDArray[np.float32]
    square: npt.NDArray[np.float32]
    het: npt.NDArray[np.float32]
    called: npt.NDArray[np.float32]


def _with_called(values: npt.NDArray[np.float32], other: _Parts) -> npt.NDArray[np.float32]:
    """(persons, persons of ``other``): each person's sum of ``values`` over the variants that the other's calls have."""
    if other.called.all():
        return np.broadcast_to(values.sum(1)[:, None], (len(values), len(other.called)))
    out: npt.NDArray[np.float32] = values @ other.called.T
    return out


def _parts(dosage: npt.NDArray[np.int8]) -> _Parts:
    called = dosage >= 0
    g = np.where(called, dosage, 0).astype(np.float32)
    return _Parts(g, g * g, (dosage == 1).astype(np.float32), called.astype(np.float32))


def left_out(found: Pairs, keys: Sequence[str], persons: int) -> npt.NDArray[np.bool_]:
    """(persons,) whom to leave out so that none of the pairs is left: as ``plink2 --king-cutoff``, while there are pairs, the only partner
    of a person who has one, else who has most. Ties by a hash of ``keys`` (persons,), so that the order of a table, which may be that of
    an outcome, has no part in it. Deterministic; close to the fewest persons, which are hard to find."""
    partners: dict[int, set[int]] = {}
    for i, j in zip(found.first.tolist(), found.second.tolist(), strict=True):
        partners.setdefault(i, set()).add(j)
        partners.setdefault(j, set()).add(i)
    rank = {at: hashlib.sha256(keys[at].encode()).digest() for at in partners}
    out = np.zeros(persons, bool)
    for family in _families(partners):
        while family:
            single = {next(iter(partners[at])) for at in family if len(partners[at]) == 1}  # of two with only each other, both
            gone = max(single or family, key=lambda at: (len(partners[at]), rank[at]))
            out[gone] = True
            for other in partners.pop(gone):
                partners[other].discard(gone)
            family = {at for at in family if partners.get(at)}
    return out


def _families(partners: dict[int, set[int]]) -> list[set[int]]:
    """The persons who are connected by pairs, in sets."""
    seen, out = set[int](), list[set[int]]()
    for start in partners:
        if start in seen:
            continue
        family, ahead = {start}, [start]
        while ahead:
            new = partners[ahead.pop()] - family
            family |= new
            ahead += new
        seen |= family
        out.append(family)
    return out


def screen_lines(ids: Sequence[str], value: object) -> list[str]:
    """What the site's screen says of its persons' stated sex and of relatives among them; nothing if ``value`` is no genotypes."""
    return [*sex_lines(ids, value), *relative_lines(ids, value)]


def relative_lines(ids: Sequence[str], value: object) -> Iterator[str]:
    """What the site's screen says of relatives among its persons with genotypes; nothing if ``value`` is no genotypes."""
    if not isinstance(value, Dosages):
        return
    rows = np.flatnonzero(value.present)
    degrees = [(name, least) for name, least in DEGREES if fewest(least) <= len(panel(value, rows))]
    found = related(value, rows, degrees[-1][1]) if degrees else None
    if found is None:
        needed = fewest(DEGREES[0][1])
        yield f"relatives: not known, fewer than {needed:,} autosomal variants are common (MAF {MIN_MAF} or more) and called"
        return
    if not len(found.first):
        yield f"relatives: no pair ({degrees[-1][0]} or closer)"
        return
    most = np.inf
    for name, least in degrees:
        chosen = np.flatnonzero((found.kinship > least) & (found.kinship <= most))
        most = least
        if not len(chosen):
            continue
        order = chosen[np.argsort(-found.kinship[chosen], kind="stable")][:_NAMED]
        pairs = ", ".join(f"{ids[rows[found.first[k]]]} and {ids[rows[found.second[k]]]} ({found.kinship[k]:.3f})" for k in order)
        rest = f" and {len(chosen) - _NAMED} more" if len(chosen) > _NAMED else ""
        advice = "; remove one of each if they are one person" if name == DEGREES[0][0] else ""
        yield f"relatives: {len(chosen)} pairs, {name}: {pairs}{rest}{advice}"
