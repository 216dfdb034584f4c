"""Clumping of summary statistics: of variants in linkage disequilibrium (LD), the one with the smallest p is kept.

    first = clump(Ranked(contig, position, log10_p), genotypes, Rule(kb=250, r2=0.1))     # (variants,) True: the index of a clump

LD is r2 between haplotypes, estimated by maximum likelihood from unphased genotypes (Hill 1974, Heredity 33:229): the one root of a cubic
with the largest likelihood, as PLINK 1.9's ``--clump``. The algorithm: Purcell et al. 2007, Am J Hum Genet 81:559. Every person is taken as
diploid.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_BLOCK = 1 << 25  # genotypes that are compared with one variant's at once


class Ranked(NamedTuple):
    """The variants, each (variants,): contig, base position, and log10 of p. Of equal p the first position comes first."""

    contig: npt.NDArray[np.str_]
    position: npt.NDArray[np.int64]
    log10_p: Floats


class Rule(NamedTuple):
    """``kb``: largest distance in a clump, thousands of bases. ``r2``: LD above which two variants are of one clump; 0 and no genotypes:
    all within the distance are."""

    kb: float = 250.0
    r2: float = 0.1


def clump(found: Ranked, genotypes: npt.NDArray[np.int8] | None, rule: Rule) -> npt.NDArray[np.bool_]:
    """(variants,) True for the first of each clump.

    From the smallest p on, a variant that is in no clump yet is the index of a new one, with all variants within ``kb`` that are in none
    and whose r2 with the index is above the rule's.

    Args:
        genotypes: (variants, persons) int8 copies of either allele, -1 where missing; None: by distance alone.
    """
    place = np.lexsort((found.position, found.contig))
    contig, position = found.contig[place], found.position[place]
    starts = np.concatenate([[0], np.flatnonzero(contig[1:] != contig[:-1]) + 1, [len(place)]])
    part = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    taken, first = np.zeros(len(place), bool), np.zeros(len(place), bool)
    reach = rule.kb * 1000
    for at in np.argsort(found.log10_p[place], kind="stable").tolist():
        if taken[at]:
            continue
        taken[at] = first[place[at]] = True
        begin, end = starts[part[at]], starts[part[at] + 1]
        low = begin + np.searchsorted(position[begin:end], position[at] - reach)
        high = begin + np.searchsorted(position[begin:end], position[at] + reach, side="right")
        near = low + np.flatnonzero(~taken[low:high])
        if genotypes is None:
            taken[near] = True
            continue
        step = max(1, _BLOCK // max(genotypes.shape[1], 1))
        for some in range(0, len(near), step):
            chosen = near[some : some + step]
            taken[chosen[haplotype_r2(genotypes[place[at]], genotypes[place[chosen]]) > rule.r2]] = True
    return first


def haplotype_r2(one: npt.NDArray[np.int8], others: npt.NDArray[np.int8]) -> Floats:
    """(k,) r2 of haplotypes of the variant ``one`` (persons,) with each of ``others`` (k, persons), among persons with both calls; 0 where
    one of the two does not vary among them."""
    masks = np.stack([one == copies for copies in range(3)], axis=1).astype(np.float32)
    # (k, 3, 3) persons by copies of the other and of the one; exact in float32 below 2^24 persons.
    table = np.stack([(others == copies).astype(np.float32) @ masks for copies in range(3)], axis=1).astype(np.float64)
    both = table[:, 1, 1]  # heterozygous at both: their two haplotypes are not known
    k11 = 2 * table[:, 2, 2] + table[:, 2, 1] + table[:, 1, 2]
    k12 = 2 * table[:, 2, 0] + table[:, 2, 1] + table[:, 1, 0]
    k21 = 2 * table[:, 0, 2] + table[:, 0, 1] + table[:, 1, 2]
    k22 = 2 * table[:, 0, 0] + table[:, 0, 1] + table[:, 1, 0]
    total = k11 + k12 + k21 + k22 + 2 * both
    known = np.stack([k11, k12, k21, k22])
    x = _coupled(known, both)
    with np.errstate(invalid="ignore", divide="ignore"):
        f11, f12, f21, f22 = (known + np.stack([x, both - x, both - x, x])) / total
        p, q = f11 + f12, f11 + f21
        r2 = (f11 * f22 - f12 * f21) ** 2 / (p * (1 - p) * q * (1 - q))
    found: Floats = np.where(np.isfinite(r2), r2, 0.0)
    return found


def _coupled(known: Floats, both: Floats) -> Floats:
    """(k,) of the persons ``both`` the number, not whole, with the haplotypes 11 and 22, of the largest likelihood.

    ``known`` (4, k): haplotypes 11, 12, 21, 22 of all others. At the maximum x / (both - x) = f11 f22 / (f12 f21), a cubic in x.
    """
    k11, k12, k21, k22 = known
    a, b, d, e = k12 + both, k21 + both, k11 * k22, k11 + k22
    square, linear, constant = (e - a - b - both) / 2, (a * b - both * e + d) / 2, -both * d / 2
    companion = np.zeros((len(both), 3, 3))
    companion[:, 0, 0], companion[:, 0, 1], companion[:, 0, 2] = -square, -linear, -constant
    companion[:, 1, 0] = companion[:, 2, 1] = 1
    roots = np.linalg.eigvals(companion)
    real = np.where(np.abs(roots.imag) <= 1e-6 * np.maximum(np.abs(roots.real), 1), roots.real, np.nan)
    real = np.clip(real, 0, both[:, None])
    counts = known[:, :, None] + np.stack([real, both[:, None] - real, both[:, None] - real, real])
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = [np.where(n[:, None] > 0, n[:, None] * np.log(c), 0.0) for n, c in zip(known, counts, strict=True)]
        pairs = np.where(both[:, None] > 0, both[:, None] * np.log(counts[0] * counts[3] + counts[1] * counts[2]), 0.0)
    likelihood = np.where(np.isnan(real), -np.inf, np.nan_to_num(sum(logs) + pairs, nan=-np.inf))
    chosen: Floats = np.take_along_axis(real, likelihood.argmax(1)[:, None], 1)[:, 0]
    return np.where(both > 0, np.nan_to_num(chosen), 0.0)
