"""Expected copies of an ALT allele from the numbers that imputation programs write: DS, HDS and GP of VCF 4.5.

    codes, fault = expected(Asked("GP", alts=1, numbers=(1,), one_copy=False), values, None)

DS is the expected number of copies of each ALT allele, HDS that of each haplotype, GP the probability of each genotype. Of a call of one
allele on X, Y or MT the number is doubled (``fedml.cohort.variants.ploidy``: one coding, 0 to 2).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.fine import NONE, SCALE

TOLERANCE = 1e-3  # beyond 0 and 2, as decimals are rounded
SUM_TOLERANCE = 0.02  # of probabilities with two decimals, whose sum is rounded three times
Floats = npt.NDArray[np.float64]


class Values(Protocol):
    """Numbers of calls: ``number`` (values,), ``first`` (calls,) index of each call's first one, ``values`` (calls,): how
    many it has."""

    @property
    def number(self) -> Floats: ...
    @property
    def first(self) -> npt.NDArray[Any]: ...
    @property
    def values(self) -> npt.NDArray[Any]: ...


class Asked(NamedTuple):
    """What is read of some records: ``field``, the ``numbers`` of the selected ALT alleles among ``alts``; ``one_copy``: on a contig of
    which a person may have one copy."""

    field: str
    alts: int
    numbers: tuple[int, ...]
    one_copy: bool


class Fault(NamedTuple):
    """The first call whose numbers are no dosage."""

    cell: int
    what: str
    advice: str


def expected(asked: Asked, values: Values, haploid: npt.NDArray[np.int8] | None) -> tuple[npt.NDArray[np.uint16] | None, Fault | None]:
    """(selected ALT alleles, calls) codes (``fedml.cohort.variants.fine``), and what is wrong with the numbers; no codes where the field
    cannot say which ALT allele is meant.

    Args:
        haploid: (calls,) of DS on such a contig: 1 where GT is of one allele, 0 where of two, -1 where it does not say.
    """
    if asked.field == "HDS" and asked.alts > 1:
        return None, None
    read = {"DS": _ds, "HDS": _hds, "GP": _gp}[asked.field]
    dosage, fault = read(asked, values, haploid)
    if fault is not None:
        return None, fault
    return _codes(dosage), None


def _codes(dosage: Floats) -> npt.NDArray[np.uint16]:
    missing = np.isnan(dosage)
    code = np.floor(np.clip(np.where(missing, 0.0, dosage), 0.0, 2.0) * SCALE + 0.5)
    return np.where(missing, NONE, code).astype(np.uint16)


def _ds(asked: Asked, values: Values, haploid: npt.NDArray[np.int8] | None) -> tuple[Floats, Fault | None]:
    missing = _absent(values)
    wrong = ~missing & (values.values != asked.alts)
    if wrong.any():
        return _fault(wrong, f"where ALT has {asked.alts}", "write one value for each ALT allele")
    dosage = np.stack([_at(values, number - 1, ~missing) for number in asked.numbers])
    most = 2.0 if haploid is None else np.where(haploid == 1, 1.0, 2.0)
    wrong = np.asarray(((dosage < -TOLERANCE) | (dosage > most + TOLERANCE)).any(0))
    if wrong.any():
        limit = "which is not from 0 to 2" if haploid is None else "which is not from 0 to the copies that GT has"
        return _fault(wrong, limit, "correct the value or delete the record")
    if haploid is not None:
        dosage = np.where(haploid < 0, np.nan, np.where(haploid == 1, 2 * dosage, dosage))
    return dosage, None


def _hds(asked: Asked, values: Values, _: npt.NDArray[np.int8] | None) -> tuple[Floats, Fault | None]:
    missing = _absent(values)
    if (wrong := ~missing & (values.values > 2)).any():
        return _fault(wrong, "which is not of one or two haplotypes", "correct the value or delete the record")
    first, second = _at(values, 0, ~missing), _at(values, 1, ~missing & (values.values == 2))
    two = values.values == 2
    with np.errstate(invalid="ignore"):
        outside = [(x < -TOLERANCE) | (x > 1 + TOLERANCE) for x in (first, second)]
    if (wrong := outside[0] | outside[1]).any():
        return _fault(wrong, "which is not from 0 to 1", "correct the value or delete the record")
    return np.where(two, first + second, first * (2 if asked.one_copy else 1))[None], None


def _gp(asked: Asked, values: Values, _: npt.NDArray[np.int8] | None) -> tuple[Floats, Fault | None]:
    missing, alleles = _absent(values), asked.alts + 1
    pairs = [(j, k) for k in range(alleles) for j in range(k + 1)]  # the order of genotypes (VCF 4.5, section 1.6.2: GL)
    one, two = ~missing & (values.values == alleles), ~missing & (values.values == len(pairs))
    if (wrong := ~(missing | one | two)).any():
        what = f"where {asked.alts} ALT alleles have {len(pairs)} genotypes, or {alleles} of one copy"
        return _fault(wrong, what, "write the probability of each genotype")
    total, weighted = np.zeros(len(missing)), np.zeros((len(asked.numbers), len(missing)))
    wrong = np.zeros(len(missing), bool)
    for here, genotypes in ((two, pairs), (one, [(k,) for k in range(alleles)])):
        each = 2 if asked.one_copy and genotypes[0] == (0,) else 1
        for place, genotype in enumerate(genotypes):
            p = np.where(here, _at(values, place, here), 0.0)
            wrong |= (p < -TOLERANCE) | (p > 1 + SUM_TOLERANCE)
            total += p
            for k, number in enumerate(asked.numbers):
                weighted[k] += each * genotype.count(number) * p
    nothing = missing | (total == 0) | np.isnan(total)  # three zeros: no call, as in files of Oxford formats
    wrong |= ~nothing & (np.abs(total - 1) > SUM_TOLERANCE)
    if wrong.any():
        return _fault(wrong, "which do not sum to 1", "write probabilities of genotypes")
    return np.where(nothing, np.nan, weighted / np.where(nothing, 1.0, total)), None


def _absent(values: Values) -> npt.NDArray[np.bool_]:
    """(calls,) True where the only value is missing."""
    out: npt.NDArray[np.bool_] = (values.values == 1) & np.isnan(values.number[values.first])
    return out


def _at(values: Values, place: int, where: npt.NDArray[np.bool_]) -> Floats:
    """(calls,) each call's value number ``place``; nan where not ``where``."""
    at = np.where(where, values.first + place, 0)
    out: Floats = np.where(where, values.number[at], np.nan)
    return out


def _fault(wrong: npt.NDArray[np.bool_], what: str, advice: str) -> tuple[Floats, Fault]:
    return np.zeros((0, 0)), Fault(int(np.argmax(wrong)), what, advice)
