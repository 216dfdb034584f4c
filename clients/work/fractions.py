"""Dosages with fractions in an analysis: where a site uses the nearest genotypes, because fractions would be about few persons.

A dosage is a genotype (0, 1, 2) and a rest from -0.5 to 0.5. The rule of few carriers (``fedml.cohort.variants.ploidy.site_table``) counts
genotypes. What the sums tell beyond them is about the rests: if one person's dosage is 0.3 and all others are whole numbers, the sum of
dosages is that person's. So at each variant the rests must be of 0 or at least ``min_count`` effective persons, (sum |r|)^2 / sum r^2 (Kish
1965, "Survey Sampling", section 8.2), among all persons and in each group of them; else the site uses genotypes there, in every step. The
outcome has no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedml.clients.work.people import Analysed
from fedml.cohort.variants.fine import SCALE, Fine
from fedml.cohort.variants.genotypes import person_chunks
from fedml.cohort.variants.model import Dosages

_VARIANTS = 4096  # in a block


def about_few(dosages: Dosages, people: Analysed, min_count: int) -> npt.NDArray[np.bool_]:
    """(variants,): True where in a group of the analysed persons (everyone, the levels of covariates, the sexes) the rests of the dosages
    are of more than 0 and fewer than ``min_count`` effective persons."""
    out = np.zeros(len(dosages.keys), bool)
    if not isinstance(dosages.dosage, Fine) or min_count <= 1:
        return out
    table = replace(dosages.dosage, coarse=None)
    groups = np.vstack([people.groups, people.sexes]).astype(np.float32)
    for start in range(0, len(out), _VARIANTS):
        part = slice(start, min(start + _VARIANTS, len(out)))
        total, squares = np.zeros((2, len(groups), part.stop - start))
        at = 0
        for chunk in person_chunks(people.rows, 8 * (part.stop - start)):
            rest = np.abs(table.fractions(start, part.stop, chunk) - table.block(start, part.stop, chunk))
            mine = groups[:, at : at + len(chunk)]
            total, squares = total + mine @ rest, squares + mine @ (rest * rest)
            at += len(chunk)
        effective = np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0)
        out[part] = ((total > 0) & (effective < min_count)).any(0)
    return out


def without_few(dosages: Dosages, people: Analysed, min_count: int) -> Dosages:
    """``dosages`` with the nearest genotypes at the variants that are ``about_few``."""
    if not isinstance(dosages.dosage, Fine):
        return dosages
    return replace(dosages, dosage=dosages.dosage.rounded(about_few(dosages, people, min_count)))


def whole(sums: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """(variants,): True where the sums of dosages (rows, variants) in a reply may be those of genotypes."""
    out: npt.NDArray[np.bool_] = (sums % SCALE == 0).all(0)
    return out


def values(dosages: Dosages, rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int8] | npt.NDArray[np.float32]]:
    """The persons' dosages of all variants, (persons, variants), with their fractions if they have them, in blocks of bounded memory."""
    table = dosages.dosage
    if isinstance(table, Fine):
        return (table.floats(chunk) for chunk in person_chunks(rows, 4 * len(dosages.keys)))
    return (table[chunk] for chunk in person_chunks(rows, len(dosages.keys)))


def block(dosages: Dosages, start: int, stop: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int8] | npt.NDArray[np.float32]:
    """Variants ``start`` to ``stop`` of the persons ``rows``, (persons, variants), with their fractions if they have them."""
    table = dosages.dosage
    if isinstance(table, np.ndarray):
        return table[rows][:, start:stop]
    return table.fractions(start, stop, rows) if isinstance(table, Fine) else table.block(start, stop, rows)
