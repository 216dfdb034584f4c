"""Blocks of variants of formats that hold dosages (BGEN, PGEN): as codes or as genotypes, with the imputation quality of each variant.

    rows = Rows(wanted, samples=1000, at_once=256)
    for block in rows.add(head, damaged, read): ...     # read(number) is the dosage of that ALT allele
    for block in rows.last(): ...

Imputation quality, where the file does not state it, is computed from all samples of the file: IMPUTE's info (Marchini and Howie 2010, Nat
Rev Genet 11:499) where each person's variance is known, else MaCH's r2 (Li et al. 2010, Genet Epidemiol 34:816). On X, Y and MT neither
is defined, and a threshold leaves a variant out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.fine import codes
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import MISSING, Block
from fedml.cohort.variants.records import LOW_INFO, Damaged, Head, Wanted, chosen, take
from fedml.study.contigs import has_one_copy

Floats = npt.NDArray[np.float64]


class Expected(NamedTuple):
    """ALT alleles of the file's samples, (samples,): ``dosage`` from 0 to 2, nan where missing; ``variance`` of each person's number, None
    where it is not known; ``stated``: imputation quality in the file, nan where it states none."""

    dosage: Floats
    variance: Floats | None = None
    stated: float = float("nan")


@final
class Rows:
    """Collects variants until a block is full."""

    def __init__(self, wanted: Wanted, samples: int, at_once: int) -> None:
        self.wanted, self.fine = wanted, wanted.selection.fractions
        self._values: npt.NDArray[Any] = np.empty((at_once, samples), np.uint16 if self.fine else np.int8)
        self._keys: list[Variant] = []

    def add(self, head: Head, damaged: Damaged, read: Callable[[int], Expected | None]) -> Iterator[Block]:
        """Adds the selected ALT alleles of a record; yields a block when there are enough.

        Raises:
            InputError: the record is damaged, as ``damaged`` says it, or a dosage is not from 0 to 2.
        """
        taken: list[Variant] = []
        numbers = take(head, self.wanted, taken, damaged)
        for key, number in zip(taken, numbers, strict=True):
            found = read(number)
            if found is None:
                self.wanted.excluded["ploidy above 2"] += 1
                continue
            if self.wanted.selection.min_info and not quality(key, found) >= self.wanted.selection.min_info:
                self.wanted.excluded[LOW_INFO] += 1
                continue
            if self.fine:
                try:
                    self._values[len(self._keys)] = codes(found.dosage)
                except ValueError as error:
                    raise damaged("has a dosage that is not from 0 to 2", "write the file again") from error
            else:
                missing = np.isnan(found.dosage)
                nearest = np.floor(np.where(missing, 0, found.dosage) + 0.5)
                self._values[len(self._keys)] = np.where(missing, MISSING, nearest)
            self._keys.append(key)
            if len(self._keys) == len(self._values):
                yield from self.last()

    def last(self) -> Iterator[Block]:
        """The variants that are left, if any."""
        if self._keys:
            yield Block(tuple(self._keys), chosen(self._values[: len(self._keys)].copy(), self.wanted))
        self._keys = []


def quality(key: Variant, found: Expected) -> float:
    """Imputation quality, as stated or computed; nan on X, Y and MT, or where all dosages are equal."""
    if not np.isnan(found.stated):
        return found.stated
    known = ~np.isnan(found.dosage)
    dosage = found.dosage[known]
    p = float(dosage.mean()) / 2 if dosage.size else 0.0
    if has_one_copy(key.contig) or not 0 < p < 1:
        return float("nan")
    if found.variance is not None:
        return 1 - float(found.variance[known].mean()) / (2 * p * (1 - p))
    return float(dosage.var()) / (2 * p * (1 - p))
