"""Persons whose calls on X and Y contradict their stated sex, for the site's own screen: nothing of this leaves it.

    for line in sex_lines(ids, dosages): print(line)

As PLINK's ``--check-sex``: F = 1 - heterozygous calls / expected ones on X outside the pseudoautosomal regions is near 1 in men and near 0
in women. A stated man's heterozygous calls are missing (``ploidy.py``), so his are the missing calls beyond those of most men. A man
without calls on Y where most men have them contradicts his sex too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.genotypes import person_chunks
from fedml.cohort.variants.model import Dosages
from fedml.cohort.variants.ploidy import X, Y, sexes

FEWEST = 50  # variants on X of which a person's share of heterozygous calls says something
FEWEST_Y = 20
_COMMON = 0.05  # least minor allele frequency
_LOW, _HIGH = 0.2, 0.8  # PLINK's limits of F


def sex_lines(ids: Sequence[str], value: object) -> list[str]:
    """What the site's screen says of the stated sex; nothing if ``value`` is no genotypes, or has too few variants on X to tell."""
    wrong = contradictions(value) if isinstance(value, Dosages) else None
    if wrong is None or not wrong.any():
        return [] if wrong is None else ["sex: no person's calls on X and Y contradict it"]
    names = ", ".join(ids[row] for row in np.flatnonzero(wrong).tolist())
    return [f"sex: calls on X and Y contradict it, or are poor, of {int(wrong.sum())} persons: {names}; correct their sex or their samples"]


def contradictions(own: Dosages) -> npt.NDArray[np.bool_] | None:
    """(persons,) whose calls contradict the stated sex; None if fewer than ``FEWEST`` variants on X are common, or no sex is known."""
    if own.where is None or own.sex is None:
        return None
    men, women = sexes(own.sex, len(own.present)) & own.present
    alleles, copies = np.zeros((2, int((own.where == X).sum())))
    for rows, block in _blocks(own, np.flatnonzero(own.where == X)):
        called, each = block >= 0, np.where(men[rows], 1, 2)[:, None]
        alleles, copies = alleles + (np.where(called, block, 0) * each / 2).sum(0), copies + (called * each).sum(0)
    p = np.divide(alleles, copies, out=np.zeros_like(alleles), where=copies > 0)
    common = np.minimum(p, 1 - p) >= _COMMON
    if common.sum() < FEWEST:
        return None
    het, expected, missing = np.zeros((3, len(own.present)))
    for rows, block in _blocks(own, np.flatnonzero(own.where == X)[common]):
        mixed = 2 * (p * (1 - p))[common]
        het[rows], expected[rows] = (block == 1).sum(1), (block >= 0) @ mixed
        missing[rows] = (block < 0).mean(1)
    usual = float(np.median(missing[men])) if men.any() else 0.0
    share = float((2 * p * (1 - p))[common].mean()) * (1 - usual)
    like_men = 1 - np.divide(het, expected, out=np.ones_like(het), where=expected > 0) > _HIGH
    like_women = 1 - (missing - usual) / max(share, 1e-9) < _LOW
    return np.asarray((women & like_men) | (men & (like_women | _without_y(own, men))))


def _without_y(own: Dosages, men: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(persons,) with calls at few variants on Y, where most men have them."""
    called, at = np.zeros(len(men)), np.flatnonzero(own.where == Y)
    if len(at) < FEWEST_Y or not men.any():
        return np.zeros(len(men), bool)
    for rows, block in _blocks(own, at):
        called[rows] = (block >= 0).mean(1)
    return called < _LOW if np.median(called[men]) > _HIGH else np.zeros(len(men), bool)


def _blocks(own: Dosages, at: npt.NDArray[np.intp]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]]:
    """(rows, dosages of the variants ``at``) in chunks of the persons with genotypes."""
    table = own.dosage[:, at] if isinstance(own.dosage, np.ndarray) else own.dosage.aligned(at, np.zeros(len(at), bool))
    return ((rows, np.asarray(table[rows])) for rows in person_chunks(np.flatnonzero(own.present), len(at)))
