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

from fedml.cohort.scores.scoring_file import ADDITIVE, DOMINANT, RECESSIVE, Floats, Integers, Scoring, known_build
from fedml.cohort.variants.fine import Fine
from fedml.cohort.variants.model import Variant
from fedml.cohort.variants.packed import Packed
from fedml.errors import InputError
from fedml.study.contigs import canonical_contig

_COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}
_TABLE = 2**26  # genotypes unpacked at once
_CELLS = 2**17  # genotypes converted to float at once, sized for the processor's cache


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
    places = _places(scoring, keys, by)
    found: dict[tuple[int, bool, int], int] = {}  # (panel variant, effect allele is REF, model) -> row
    counts = dict.fromkeys(("matched", "swapped", "strand", "ambiguous", "differ", "duplicate", "absent"), 0)
    for row, (place, model) in enumerate(zip(_wanted(scoring, by), scoring.model.tolist(), strict=True)):
        here = places.get(place, ()) if place else ()
        fits = [(_fit(scoring.effect[row], scoring.other[row], keys[at], forward, len(here)), at) for at in here]
        fit, at = min(fits, default=("z", -1))
        if at < 0:
            counts["absent"] += 1
        elif fit in ("x ambiguous", "y differ"):
            counts[fit[2:]] += 1
        elif found.setdefault((at, fit.endswith("ref"), model), row) != row:
            counts["duplicate"] += 1
        else:
            counts["matched"] += 1
            counts["swapped"] += fit.endswith("ref")
            counts["strand"] += fit.startswith("strand")
    ordered = sorted(found, key=lambda key: key[0])  # in the panel's memory order
    rows = np.array([found[key] for key in ordered], dtype=np.int64)
    return Matched(
        row=rows,
        at=np.array([at for at, _, _ in ordered], dtype=np.int64),
        swapped=np.array([swapped for _, swapped, _ in ordered], dtype=bool),
        weight=scoring.weight[rows],
        frequency=scoring.frequency[rows],
        model=scoring.model[rows],
        intercept=scoring.intercept,
        counts=counts,
    )


def _wanted(scoring: Scoring, by: str) -> list[str | tuple[str, int] | None]:
    """The place of each row (rsID, or contig and position), None if the row has none."""
    if by == "rsid":
        return [rsid or None for rsid in scoring.rsid]
    return [(contig, at) if at else None for contig, at in zip(scoring.contig, scoring.position.tolist(), strict=True)]


def _places(scoring: Scoring, keys: Sequence[Variant], by: str) -> dict[str | tuple[str, int], list[int]]:
    """Place -> indices of the panel variants there, for the places in the scoring file."""
    out: dict[str | tuple[str, int], list[int]] = {place: [] for place in _wanted(scoring, by) if place is not None}
    contigs: dict[str, str] = {}
    for at, key in enumerate(keys):
        if by == "rsid":
            names: Sequence[str | tuple[str, int]] = key.id.split(";")
        else:
            if key.contig not in contigs:
                contigs[key.contig] = canonical_contig(key.contig)
            names = [(contigs[key.contig], key.position)]
        for name in names:
            if name in out:
                out[name].append(at)
    return out


def _fit(effect: str, other: str, key: Variant, forward: bool, here: int) -> str:
    """The effect allele: ``same alt``, ``same ref``, ``strand alt``, ``strand ref``, ``x ambiguous`` or ``y differ``; of several, the first
    in alphabetical order is best. ``here``: number of panel variants at the place."""
    ref, alt = key.ref.upper(), key.alt.upper()
    # Without an other allele, REF at a multi-allelic site does not match: its copies are not 2 minus the copies of one ALT.
    side = _side(effect, other, ref, alt) if other else "alt" if effect == alt else "ref" if effect == ref and here == 1 else ""
    if side:
        return f"same {side}" if forward or _COMPLEMENT.get(ref) != alt else "x ambiguous"
    complemented = _side(_COMPLEMENT.get(effect), _COMPLEMENT.get(other), ref, alt)
    return f"strand {complemented}" if complemented else "y differ"


def _side(effect: str | None, other: str | None, ref: str, alt: str) -> str:
    return "alt" if (effect, other) == (alt, ref) else "ref" if (effect, other) == (ref, alt) else ""


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
    total, used = np.full(persons, matched.intercept), np.zeros(persons, dtype=np.int64)
    table, cached = (max(1, cells // max(persons, 1)) for cells in (_TABLE, _CELLS))
    for begin in range(0, len(matched.at), table):
        copies = _columns(dosage, matched.at[begin : begin + table])
        for at in range(0, copies.shape[1], cached):
            _add(total, used, copies[:, at : at + cached], matched, begin + at, frequency)
    return Scores(total, used)


def _add(total: Floats, used: Integers, copies: Any, matched: Matched, begin: int, frequency: Floats | None) -> None:
    """Adds the contribution of the matched weights from ``begin`` on to ``total`` and ``used``; ``copies`` (persons, weights): ALT
    alleles."""
    persons, part = len(copies), slice(begin, begin + copies.shape[1])
    at, swapped, weight, model = matched.at[part], matched.swapped[part], matched.weight[part], matched.model[part]
    if copies.size and copies.max() > 2:
        which = at[copies.max(0).argmax()]
        raise InputError(f"variant {which + 1} of the file: a person has more than two ALT alleles; delete the variant from the file.")
    number = copies.astype(np.float64)  # -1 where missing, corrected below
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
