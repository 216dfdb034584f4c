"""Polygenic scores: assigns the weights of a scoring file to panel variants and computes each person's score.

    scoring = read_scoring(Path("PGS000018_hmPOS_GRCh38.txt.gz"))    # fedml.cohort.scores.scoring_file
    matched = match(scoring, dosages.keys, build="GRCh38")           # matched.counts: number of weights by result
    score(dosages.dosage, matched).total                             # (persons,) float64: sum of weight x copies of the effect allele

A missing genotype counts as the mean number of copies, and dominant and recessive weights follow PLINK's rules: the sums equal those of
``plink2 --score``. Every person is treated as diploid: the number of REF copies is 2 - dosage.

At most 64 MB of a packed table (``fedml.cohort.variants.packed``) are unpacked at once, so the table may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.scores.fits import AMBIGUOUS, DIFFER, STRAND, candidates, fits
from fedml.cohort.scores.scoring_file import ADDITIVE, DOMINANT, RECESSIVE, Floats, Integers, Scoring, known_build
from fedml.cohort.variants.fine import Fine
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.packed import Packed
from fedml.errors import InputError

_TABLE = 2**26  # genotypes unpacked at once
_CELLS = 2**18  # genotypes converted to float at once, sized for the processor's cache


@dataclass(frozen=True, eq=False)
class Matched:
    """The weights that match a panel variant, all (matched,), in the panel's order: ``row`` in the scoring file, index ``at`` in the panel,
    ``swapped`` where the effect allele is REF. ``counts`` of all rows: ``matched`` (of these ``swapped`` and, on the other strand,
    ``strand``), ``ambiguous``, ``differ`` (other alleles), ``duplicate``, ``absent``.
    """

    row: Integers
    at: Integers
    swapped: npt.NDArray[np.bool_]
    weight: Floats
    frequency: Floats
    model: npt.NDArray[np.int8]
    intercept: float
    counts: dict[str, int]

    def alt_frequency(self, variants: int) -> Floats:
        """(variants,) ALT frequencies from the scoring file, NaN where the file states none."""
        out = np.full(variants, np.nan)
        out[self.at] = np.where(self.swapped, 1 - self.frequency, self.frequency)
        return out


class Scores(NamedTuple):
    """``total`` (persons,) float64; ``used`` (persons,): weights for which the person has a genotype."""

    total: Floats
    used: Integers


def match(scoring: Scoring, keys: Sequence[Variant], build: str | None = None, by: Literal["position", "rsid"] = "position") -> Matched:
    """The panel variant of each weight, and whether its effect allele is ALT or REF there.

    Single-letter alleles may be on the other strand. For A/T and C/G the strand cannot be recognised: such a variant is excluded as
    ambiguous unless it is matched by position and both sides state the same ``build``, whose forward strand both then use. A weight without
    an other allele is matched by its effect allele, on the same strand only. Of duplicate variants or weights the first is taken.

    Raises:
        InputError: by position, the builds differ or the file has no positions; by rsID, the file has no rsIDs.
    """
    same_build = known_build(build or "")
    if by == "position" and scoring.build and same_build and scoring.build != same_build:
        raise InputError(
            f"scoring file {scoring.name}: the positions are of {scoring.build}, the cohort's of {same_build}; "
            f"use the file harmonised to {same_build}, or match by rsid (--by rsid)."
        )
    if not (scoring.position.any() if by == "position" else any(scoring.rsid)):
        have, lack = ("rsID", "positions") if by == "position" else ("positions", "rsIDs")
        raise InputError(f"scoring file {scoring.name}: has no {lack}; match by {have.lower().removesuffix('s')}.")
    forward = by == "position" and bool(same_build) and scoring.build == same_build
    pairs = candidates(scoring, keys, by)
    fit = fits(scoring, keys, pairs, forward)
    best = np.lexsort((pairs.at, fit, pairs.row))
    best = best[np.concatenate([[True], np.diff(pairs.row[best]) > 0]).astype(bool)] if len(best) else best  # one of each row
    row, at, fit = pairs.row[best], pairs.at[best], fit[best]
    counts = dict.fromkeys(("matched", "swapped", "strand", "ambiguous", "differ", "duplicate", "absent"), 0)
    counts |= {"absent": len(scoring) - len(row), "ambiguous": int((fit == AMBIGUOUS).sum()), "differ": int((fit == DIFFER).sum())}
    use = fit < AMBIGUOUS
    row, at, fit = row[use], at[use], fit[use]
    # Of weights of one variant, allele and model the first counts.
    first = np.unique((at * 2 + fit % 2) * 3 + scoring.model[row], return_index=True)[1]
    counts |= {"matched": len(first), "duplicate": len(row) - len(first)}
    row, at, fit = row[first], at[first], fit[first]
    counts |= {"swapped": int((fit % 2).sum()), "strand": int((fit >= STRAND).sum())}
    ordered = np.lexsort((row, at))  # in the panel's memory order
    rows = row[ordered]
    return Matched(
        row=rows,
        at=at[ordered],
        swapped=fit[ordered] % 2 == 1,
        weight=scoring.weight[rows],
        frequency=scoring.frequency[rows],
        model=scoring.model[rows],
        intercept=scoring.intercept,
        counts=counts,
    )


def score(dosage: npt.NDArray[np.int8] | Packed | Fine, matched: Matched, frequency: Floats | None = None) -> Scores:
    """Each person's score: the intercept plus the sum of weight x copies of the effect allele over all matched weights.

    A dominant weight counts once for one or two copies, a recessive weight once for two copies. A missing genotype counts as 2 x the effect
    allele's frequency, with a dominant or recessive weight as 1 x, as in PLINK 2; if the frequency is unknown too, it adds nothing.

    Args:
        dosage: (persons, variants) in the order of the matched panel, -1 where missing.
        frequency: (variants,) of ALT; where it is NaN or not given, the frequency among the persons in ``dosage`` is used.

    Raises:
        InputError: a genotype has more than two ALT alleles.
    """
    persons = len(dosage)
    sums = Scores(np.full(persons, matched.intercept), np.zeros(persons, dtype=np.int64))
    table, cached = (max(1, cells // max(persons, 1)) for cells in (_TABLE, _CELLS))
    room = np.empty(persons * min(cached, max(len(matched.at), 1)))
    for begin in range(0, len(matched.at), table):
        copies = _columns(dosage, matched.at[begin : begin + table])
        for at in range(0, copies.shape[1], cached):
            _add(sums, copies[:, at : at + cached], matched, begin + at, frequency, room)
    return sums


def _add(sums: Scores, copies: Any, matched: Matched, begin: int, frequency: Floats | None, room: Floats) -> None:
    """Adds the contribution of the matched weights from ``begin`` on to ``sums``; ``copies`` (persons, weights): ALT alleles. ``room``: at
    least as many numbers, which are overwritten: new memory for each part takes longer than the sums."""
    total, used = sums
    persons, part = len(copies), slice(begin, begin + copies.shape[1])
    at, swapped, weight, model = matched.at[part], matched.swapped[part], matched.weight[part], matched.model[part]
    if copies.size and copies.max() > 2:
        which = at[copies.max(0).argmax()]
        raise InputError(f"variant {which + 1} of the file: a person has more than two ALT alleles; delete the variant from the file.")
    number = np.ndarray(copies.shape, np.float64, room, order="F" if copies.flags.f_contiguous else "C")
    np.copyto(number, copies)  # -1 where missing, corrected below
    # For every model, a weight is a constant, a slope, and a remainder for two copies of ALT: matrix products without a temporary table.
    zero, single, double = (weight * _counted(np.where(swapped, 2.0 - d, d), model) for d in (0.0, 1.0, 2.0))
    slope, rest = single - zero, double - 2 * single + zero
    total += zero.sum() + number @ slope
    if rest.any():
        total += (copies == 2 if copies.dtype == np.int8 else np.maximum(copies - 1.0, 0.0)) @ rest
    used += len(at)
    person, variant = _missing(copies)
    if len(person):
        lacking = np.bincount(variant, minlength=len(at))
        with np.errstate(invalid="ignore"):
            observed = (np.ones(persons) @ number + lacking) / (persons - lacking) / 2
        alt = observed if frequency is None else np.where(np.isnan(frequency[at]), observed, frequency[at])
        mean = weight * np.where(swapped, 1 - alt, alt) * np.where(model == ADDITIVE, 2, 1)
        correction = np.where(np.isnan(mean), 0.0, mean) - zero + slope
        total += np.bincount(person, correction[variant], persons)
        used -= np.bincount(person, minlength=persons)


def _columns(dosage: npt.NDArray[np.int8] | Packed | Fine, at: Integers) -> Any:
    """(persons, len(at)) int8, or float32 of dosages with fractions."""
    if isinstance(dosage, Fine):
        return dosage.aligned(at, np.zeros(len(at), bool)).floats(slice(None))
    if isinstance(dosage, Packed):
        return dosage.aligned(at, np.zeros(len(at), bool))[:]
    run = len(at) and at[-1] - at[0] + 1 == len(at) and bool((np.diff(at) == 1).all())
    found: npt.NDArray[np.int8] = dosage[:, at[0] : at[-1] + 1] if run else dosage[:, at]
    return found


def _missing(copies: Any) -> tuple[Integers, Integers]:
    """(person, variant) indices of each missing genotype, searched in memory order."""
    by_variant = copies.flags.f_contiguous
    flat = np.flatnonzero((copies.T if by_variant else copies).ravel() < 0)
    first, second = np.divmod(flat, len(copies) if by_variant else copies.shape[1])
    return (second, first) if by_variant else (first, second)


def _counted(copies: Floats, model: npt.NDArray[np.int8]) -> Floats:
    """Copies of the effect allele, counted by the weight's model (additive, dominant or recessive)."""
    capped: Floats = np.where(model == DOMINANT, np.minimum(copies, 1.0), copies)
    return np.where(model == RECESSIVE, np.maximum(copies - 1.0, 0.0), capped)
