"""Genotype counts and the small-cell rule of a site, and allele frequency, call rate and Hardy-Weinberg test of pooled counts.

    counts = genotype_counts(dosage)                     # at a site: (4, variants), adds up over sites and over chunks of persons
    hidden = withheld(group_counts(dosage, groups), min_count=5)          # at the site: True where the variant's numbers do not leave it
    told = folded(counts, min_count=5)                   # the same alleles and calls, and no genotype of few persons
    frequency = allele_frequency(total)                  # at the server, on the sum of the sites' counts
    p = hardy_weinberg_p(*total[:3])

Dosages are int8 (persons, variants): 0, 1 or 2 ALT alleles, -1 where the call is missing, in either memory order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.fine import SCALE

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Dosage = npt.NDArray[np.int8] | npt.NDArray[np.float32]  # genotypes, or dosages with fractions; -1 where missing

_WORKING = 1 << 22  # elements of a temporary float array (32 MB in float64)
_TOGETHER = 4096  # variants per batch of exact tests, sized for the processor's cache
_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)  # of Stirling's error, in 1/x, 1/x^3, ...


def chunks(persons: int, variants: int, elements: int = _WORKING) -> Iterator[slice]:
    """Ranges of variants such that persons x range is at most about ``elements``."""
    width = max(1, elements // max(1, persons))
    return (slice(at, min(at + width, variants)) for at in range(0, variants, width))


def genotype_counts(dosage: Dosage) -> Counts:
    """(4, variants): persons with 0, 1 and 2 ALT alleles, and with a missing call."""
    persons, variants = dosage.shape
    out = np.empty((4, variants), np.int64)
    for part in chunks(persons, variants):
        block = dosage[:, part]
        for copies in range(3):
            out[copies, part] = np.count_nonzero(block == copies, axis=0)
    out[3] = persons - out[:3].sum(0)
    return out


def group_counts(dosage: Dosage, groups: npt.NDArray[np.bool_]) -> Counts:
    """(groups, 4, variants): ``genotype_counts`` within each of ``groups`` (groups, persons). Additive over chunks of a site's persons."""
    persons, variants = dosage.shape
    out = np.empty((len(groups), 4, variants), np.int64)
    members = [np.flatnonzero(group) for group in groups]
    for part in chunks(persons, variants, _WORKING // 4):
        block: Any = dosage[:, part]
        for of_group, rows in zip(out, members, strict=True):
            of_group[:, part] = genotype_counts(block if len(rows) == persons else np.take(block, rows, axis=0))
    return out


def withheld(counts: Counts, min_count: int) -> npt.NDArray[np.bool_]:
    """(variants,): True where the variant's numbers do not leave the site: in a group, 1 to ``min_count`` - 1 persons carry ALT, or REF, or
    the counts cannot be ``folded``.

    The outcome has no part in it. Where a site is left out because few of its *cases* carry an allele, sites are chosen by their outcome,
    and of variants without an effect too many are called significant (six sites of 300, a fifth of them cases: 7.3 % of p below .05).
    That nobody carries an allele is not about few persons. Missing calls are not counted: whether the laboratory made a call is not a
    trait of a person.

    Args:
        counts: (groups, 4, variants), a site's whole ``group_counts``; the first group is all persons, others the levels of covariates.
        min_count: 1 or less hides nothing.
    """
    return carried_by_few(counts, min_count) | few(folded(counts[0], min_count)[:3], min_count).any(0)


def carried_by_few(counts: Counts, min_count: int) -> npt.NDArray[np.bool_]:
    """(variants,): True where in one of the groups (groups, 4, variants) 1 to ``min_count`` - 1 persons carry ALT, or REF."""
    carriers = np.stack([counts[:, 1] + counts[:, 2], counts[:, 0] + counts[:, 1]])
    return np.asarray(few(carriers, min_count).any((0, 1)))


def folded(counts: Counts, min_count: int) -> Counts:
    """(4, variants) ``counts`` in which homozygotes of 1 to ``min_count`` - 1 persons are told as the same number of alleles in
    heterozygotes: allele frequency and call rate stay exact, Hardy-Weinberg equilibrium does not. Unchanged where there are too few persons
    for it."""
    out = counts.copy()
    for fewer, many in ((2, 0), (0, 2)):
        moved = np.where(few(out[fewer], min_count) & (out[many] >= out[fewer]), out[fewer], 0)
        out[fewer] -= moved
        out[many] -= moved
        out[1] += 2 * moved
    return out


def reported(counts: Counts) -> npt.NDArray[np.bool_]:
    """(variants,): True where a site's ``counts`` (at least 4, variants) take part in sums: they are told (not -1), and a genotype is
    called."""
    out: npt.NDArray[np.bool_] = (counts[0] >= 0) & (counts[:3].sum(0) > 0)
    return out


def pooled_counts(counts: Mapping[str, Counts]) -> Counts:
    """(rows, variants): the sites' counts, summed over the sites that have ``reported`` the variant."""
    total: Counts = np.sum([np.where(reported(table), table, 0) for table in counts.values()], axis=0, dtype=np.int64)
    return total


def few(persons: Counts, min_count: int) -> npt.NDArray[np.bool_]:
    """Where a number of persons is from 1 to ``min_count`` - 1."""
    out: npt.NDArray[np.bool_] = (persons > 0) & (persons < min_count)
    return out


def centred(dosage: Dosage, frequency: Array) -> Array:
    """(persons, variants): dosage minus 2 x ``frequency``; 0 where missing, which equals imputing 2 x frequency."""
    out: Array = dosage - 2.0 * frequency
    np.copyto(out, 0.0, where=dosage < 0)
    return out


def alleles(counts: Counts) -> tuple[Any, Counts]:
    """(variants,) ALT alleles and (variants,) called alleles, from counts of genotypes: (4, variants), or (7, variants) as they leave a
    site, whose rows 5 and 6 are the persons with one copy, with REF and with ALT, who are also among those with 0 and with 2. Of dosages
    with fractions (9, variants): rows 7 and 8 are their sums, of all persons and of those with one copy, in 1/16384 (``fine.SCALE``)."""
    alt, called = counts[1] + 2 * counts[2], 2 * counts[:3].sum(0)
    if len(counts) > 7:
        alt = (counts[7] - counts[8] / 2) / SCALE
        return alt, called - counts[5] - counts[6]
    return (alt - counts[6], called - counts[5] - counts[6]) if len(counts) > 5 else (alt, called)


def allele_frequency(counts: Counts) -> Array:
    """(variants,): frequency of ALT among called alleles (``alleles``), from pooled counts; nan where no genotype is called."""
    alt, called = alleles(counts)
    with np.errstate(invalid="ignore"):
        out: Array = alt / called
    return out


def minor_allele_frequency(counts: Counts) -> Array:
    """(variants,): frequency of the minor allele; nan where no genotype is called."""
    frequency = allele_frequency(counts)
    return np.minimum(frequency, 1 - frequency)


def call_rate(counts: Counts) -> Array:
    """(variants,): share of persons with a called genotype; nan without persons."""
    with np.errstate(invalid="ignore"):
        out: Array = counts[:3].sum(0) / counts[:4].sum(0)
    return out


def hardy_weinberg_p(n_hom_ref: npt.ArrayLike, n_het: npt.ArrayLike, n_hom_alt: npt.ArrayLike, *, mid_p: bool = False) -> Array:
    """(variants,): p value of the exact test of Hardy-Weinberg equilibrium; nan where no genotype is called.

    The p value is the sum of the probabilities, given the allele counts, of all numbers of heterozygotes that are at most as likely as the
    observed number (Wigginton, Cutler and Abecasis 2005, Am J Hum Genet 76:887). ``mid_p``: numbers exactly as likely count half
    (Graffelman and Moreno 2013, Stat Appl Genet Mol Biol 12:433). On chromosome X, count women only.

    The probability of the observed number is computed in the saddle-point form of Loader (2000, "Fast and accurate computation of binomial
    probabilities"), those of neighbouring numbers from ratios, which is fast and accurate for hundreds of thousands of persons.
    """
    hom_ref, het, hom_alt = (np.atleast_1d(np.asarray(n, np.int64)) for n in (n_hom_ref, n_het, n_hom_alt))
    out = np.full(het.shape, np.nan)
    called = np.flatnonzero(hom_ref + het + hom_alt > 0)
    for at in range(0, len(called), _TOGETHER):
        rows = called[at : at + _TOGETHER]
        out[rows] = _exact_test(hom_ref[rows], het[rows], hom_alt[rows], mid_p)
    return out


def rarer_than(n_hom_ref: npt.ArrayLike, n_het: npt.ArrayLike, n_hom_alt: npt.ArrayLike, p: float) -> npt.NDArray[np.bool_]:
    """(variants,): True where ``hardy_weinberg_p`` is below ``p``. The test itself is made only where the observed number of heterozygotes
    is less likely than ``p``: its probability is a part of the p value."""
    counts = np.stack([np.atleast_1d(np.asarray(n, np.int64)) for n in (n_hom_ref, n_het, n_hom_alt)])
    out = np.zeros(counts.shape[1], bool)
    if not (persons := int(counts.sum(0).max(initial=0))):
        return out
    if persons > 2_000_000:  # three counts of so many are no one number
        return np.asarray(np.nan_to_num(hardy_weinberg_p(*counts), nan=1.0) < p)
    # Of few persons many variants have the same counts.
    names, which = np.unique((counts[0] * (persons + 1) + counts[1]) * (persons + 1) + counts[2], return_inverse=True)
    each = np.stack([names // (persons + 1) ** 2, names // (persons + 1) % (persons + 1), names % (persons + 1)])
    fails = np.zeros(len(names), bool)
    called = np.flatnonzero(each.sum(0) > 0)
    for at in range(0, len(called), _TOGETHER):
        rows = called[at : at + _TOGETHER]
        ref, het, alt = each[:, rows]
        likely = np.exp(_log_probability(het, ref + het + alt, np.stack([2 * ref + het, 2 * alt + het])))
        unlikely = rows[likely < p * (1 + 1e-9)]
        fails[unlikely] = hardy_weinberg_p(*each[:, unlikely]) < p
    return np.asarray(fails[which])


def _exact_test(hom_ref: Counts, het: Counts, hom_alt: Counts, mid_p: bool) -> Array:
    persons, alleles = hom_ref + het + hom_alt, np.stack([2 * hom_ref + het, 2 * hom_alt + het])
    # The probability decreases from h to h + 2 heterozygotes where 4 x (homozygotes' product) < (h + 1)(h + 2); the first such h is the
    # mode.
    mode = (alleles[0] * alleles[1] - 2) // (2 * persons + 3) + 1
    mode += (mode - het) & 1
    upper = np.where(het >= mode, 1, -1)
    observed = _log_probability(het, persons, alleles)
    # The other tail begins at the first number past the mode that is at most as likely as the observed number; found by bisection.
    begin = np.where(upper > 0, mode - 2, mode)
    most = alleles.min(0)
    low, high = np.zeros_like(het), np.where(upper > 0, (mode - (het & 1)) // 2, (most - mode) // 2 + 1)
    beyond = high.copy()
    while np.any(low < high):
        middle = (low + high) // 2
        inside = np.clip(begin - 2 * upper * middle, het & 1, most)
        rare = _log_probability(inside, persons, alleles) <= observed + 1e-10
        high, low = np.where(rare, middle, high), np.where(rare, low, np.minimum(middle + 1, high))
    first = np.clip(begin - 2 * upper * low, het & 1, most)
    probability = np.exp(observed)
    other = np.where(low < beyond, np.exp(_log_probability(first, persons, alleles)), 0.0)
    total = probability * _tail(het, alleles, upper) + other * _tail(first, alleles, -upper)
    if mid_p:
        total -= 0.5 * probability * np.where((other > 0) & (np.abs(other / probability - 1) < 1e-9), 2, 1)
    return np.minimum(total, 1.0)


def _tail(het: Counts, alleles: Counts, direction: Counts) -> Array:
    """Sum of the probabilities from ``het`` outwards (``direction`` 1 or -1), as multiples of that of ``het``."""
    out = np.ones(len(het))
    rows, term, h, up = np.arange(len(het)), np.ones(len(het)), het.astype(np.float64), direction > 0
    homozygotes: Array = (alleles - het) / 2.0
    first, second = homozygotes
    step = 2.0 * direction
    while len(rows):
        with np.errstate(divide="ignore", invalid="ignore"):  # the branch that np.where discards may divide by zero
            ratio = np.where(up, 4 * first * second / ((h + 1) * (h + 2)), h * (h - 1) / (4 * (first + 1) * (second + 1)))
        term = term * ratio
        out[rows] += term
        h, first, second = h + step, first - step / 2, second - step / 2
        going = term > 1e-18 * out[rows]
        if np.count_nonzero(going) < 0.8 * len(rows):  # finished rows are removed only occasionally, because removal costs a copy
            rows, term, h, up, first, second, step = (x[going] for x in (rows, term, h, up, first, second, step))
    return out


def _log_probability(het: Counts, persons: Counts, alleles: Counts) -> Array:
    """Log probability of ``het`` heterozygotes given allele counts (2, variants): a multinomial over a binomial, both in Loader's form."""
    both: Array = alleles.astype(np.float64)
    first, second = both
    expected = np.stack([first**2, 2 * first * second, second**2]) / (4.0 * persons)
    genotypes: Array = np.stack([(alleles[0] - het) // 2, het, (alleles[1] - het) // 2]).astype(np.float64)
    n: Array = persons.astype(np.float64)
    multinomial = _half(n) - (_half(genotypes) + _deviance(genotypes, expected)).sum(0)
    out: Array = multinomial - _half(2 * n) + _half(first) + _half(second)
    return out


def _half(x: Array) -> Array:
    """log x! - (x log x - x), 0 at 0. The result is small, so that differences of such terms keep their digits."""
    from scipy.special import gammaln

    safe = np.maximum(x, 1.0)
    inverse = 1 / safe
    square = inverse * inverse
    series = np.zeros_like(safe)
    for coefficient in reversed(_SERIES):
        series = series * square + coefficient
    large = 0.5 * np.log(2 * np.pi * safe) + series * inverse
    if (small := safe < 16).any():
        low = safe[small]
        large[small] = gammaln(low + 1) - low * np.log(low) + low
    return np.where(x > 0, large, 0.0)


def _deviance(x: Array, mean: Array) -> Array:
    """x log(x / mean) + mean - x, without cancellation where x is close to mean."""
    from scipy.special import xlogy

    v = (x - mean) / np.maximum(x + mean, 1e-100)
    square = v * v
    series = np.zeros_like(v)
    for j in range(9, 0, -1):
        series = (series + 1 / (2 * j + 1)) * square
    near = (x - mean) * v + 2 * x * v * series
    out: Array = np.where(np.abs(v) < 0.1, near, xlogy(x, x / np.maximum(mean, 1e-100)) + mean - x)
    return out
