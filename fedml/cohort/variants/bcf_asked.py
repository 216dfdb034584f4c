"""Dosages, and thresholds of calls and of imputation quality, of BCF records (VCF 4.5, section 6): as ``vcf_asked.py`` of text.

block = asked_block(keys, records, data, wanted, ids, genotypes)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.expected import Asked, expected
from fedml.cohort.variants.fine import NONE
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import MISSING, Block
from fedml.cohort.variants.records import Wanted
from fedml.cohort.variants.vcf_asked import from_genotypes, kept
from fedml.errors import InputError

Floats = npt.NDArray[np.float64]
Place = tuple[int, int, int]  # type code, values stored for each person, offset
_TYPES = {1: "<i1", 2: "<i2", 3: "<i4", 5: "<f4"}
_FLOAT_END = 0x7F800002  # of a vector shorter than the longest


class Values(NamedTuple):
    """Numbers of calls: ``number`` (values,), ``first`` (calls,) index of each call's first one, ``values`` (calls,): how many it has."""

    number: Floats
    first: npt.NDArray[np.intp]
    values: npt.NDArray[np.intp]


def asked_block(
    keys: Sequence[Variant],
    records: Sequence[Any],
    data: bytes,
    wanted: Wanted,
    ids: Mapping[str, int],
    genotypes: Callable[[], npt.NDArray[np.int8]],
) -> Block | None:
    """The block of ``records`` (``fedml.cohort.variants.bcf``); None if none of their variants is kept.

    Args:
        ids: numbers of the names of FORMAT and INFO fields in the header's dictionary.
        genotypes: (variants, samples of the file), read where no dosages are asked for, or one is missing.

    Raises:
        InputError: a value is no dosage.
        ValueError: the record is damaged.
    """
    lacks, unclear, low, changed, filled = (np.zeros(len(keys), bool) for _ in range(5))
    out: npt.NDArray[Any] = np.full((len(keys), wanted.columns), NONE, np.uint16) if wanted.field else genotypes()
    missing = NONE if wanted.field else MISSING
    least = {name: at for name, at in (("GQ", wanted.selection.min_gq), ("DP", wanted.selection.min_dp)) if at}
    for record in records:
        rows = slice(record.row, record.row + len(record.numbers))
        if wanted.info:
            low[rows] = ~(_of_alleles(record, data, ids[f"INFO/{wanted.info}"]) >= wanted.selection.min_info)
        if wanted.field:
            codes = _codes(record, data, wanted, ids, keys[record.row])
            several = wanted.field == "HDS" and record.alts > 1 and ids["HDS"] in record.fields
            (unclear if several else lacks)[rows] = codes is None
            out[rows] = NONE if codes is None else codes
    if wanted.field:
        filled, lacks = from_genotypes(out, (lacks, unclear), genotypes)
    for record in records if least else ():
        rows = slice(record.row, record.row + len(record.numbers))
        poor = np.zeros(wanted.columns, bool)
        for name, threshold in least.items():
            found = record.fields.get(ids[name])
            number = None if found is None else _values(data, found, wanted.columns)
            poor |= True if number is None else ~(number.number[number.first] >= threshold)
        here = poor & (out[rows] != missing)
        changed[rows] = here.any(1)
        out[rows][here] = missing
    return kept(keys, out, wanted, (lacks, low, changed, filled))


def _codes(record: Any, data: bytes, wanted: Wanted, ids: Mapping[str, int], key: Variant) -> npt.NDArray[np.uint16] | None:
    """(selected ALT alleles, samples of the file); None where the record has no dosages."""
    found, haploid = record.fields.get(ids[wanted.field]), None
    if found is None or not found[1]:
        return None
    if wanted.field == "DS" and record.one_copy:
        if not (record.kind and record.ploidy):
            return None
        haploid = _haploid(record, data, wanted.columns)
    values = _values(data, found, wanted.columns)
    codes, fault = expected(Asked(wanted.field, record.alts, record.numbers, record.one_copy), values, haploid)
    if fault is not None:
        first = values.first[fault.cell]
        shown = ",".join(f"{value:g}" for value in values.number[first : first + values.values[fault.cell]])
        what = f'has {wanted.field} "{shown}" of sample {fault.cell + 1}, {fault.what}'
        raise InputError(f"{wanted.path}: the record at {key.contig}:{key.position} {what}; {fault.advice}.")
    return codes


def _values(data: bytes, place: Place, columns: int) -> Values:
    """The numbers of a field of all samples, nan where missing."""
    kind, each, at = place
    if kind not in _TYPES or not each:
        raise ValueError("a field of numbers is of another type")
    stored = np.frombuffer(data, _TYPES[kind], columns * each, at)
    with np.errstate(invalid="ignore"):  # the mark of a missing number
        number = stored.astype(np.float64)
    if kind == 5:
        ends = stored.view("<u4") == _FLOAT_END
    else:
        smallest = np.iinfo(stored.dtype).min
        ends, number[stored <= smallest + 1] = stored == smallest + 1, np.nan
    if np.isinf(number).any():
        raise ValueError("a number is infinite")
    has = np.maximum(1, each - ends.reshape(columns, each).sum(1))
    return Values(number, np.arange(columns) * each, has)


def _haploid(record: Any, data: bytes, columns: int) -> npt.NDArray[np.int8]:
    """(samples,) 1 where GT is of one allele, 0 where of two, -1 where it does not say."""
    calls = np.frombuffer(data, _TYPES[record.kind], columns * record.ploidy, record.begin).reshape(columns, -1)
    alleles = (calls != np.iinfo(calls.dtype).min + 1).sum(1)
    return np.where((alleles == 0) | ((alleles == 1) & (calls[:, 0] >> 1 == 0)), -1, alleles == 1).astype(np.int8)


def _of_alleles(record: Any, data: bytes, key: int) -> Floats:
    """(selected ALT alleles,) an INFO field, one number for all or one for each; nan where there is none."""
    found = record.infos.get(key)
    if found is None or found[0] not in _TYPES or not found[1]:
        return np.full(len(record.numbers), np.nan)
    number = _values(data, found, 1).number
    return number[[at - 1 for at in record.numbers]] if len(number) == record.alts else np.repeat(number[:1], len(record.numbers))
