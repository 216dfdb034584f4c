"""Numbers of the fields of a VCF's samples (DS, HDS, GP, GQ, DP), many records at a time, and of INFO: dosages and filters of calls.

    chosen = dosage_field("any", header.formats, path)  # DS, HDS or GP
    fill(records, text, wanted, codes)                  # dosages of the records, as codes of fedml.cohort.variants.fine
    drop_calls(records, text, wanted, dosage)           # calls of low GQ or DP become missing

A field's values lie between colons; where they are and what they are is computed for all calls of some records together.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.expected import Asked, expected
from fedml.cohort.variants.fine import NONE
from fedml.cohort.variants.model import MISSING, Selection
from fedml.cohort.variants.records import NO_DOSAGE, Wanted
from fedml.errors import InputError

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
FIELDS = ("DS", "HDS", "GP")
INFO_FIELDS = ("R2", "DR2", "INFO")
_SLICE = 2**21  # bytes of calls at a time
_LONGEST = 15  # digits that an int64 and a power of ten hold exactly


Refusal = Callable[[int, str, str], InputError]  # (offset of the line, what is wrong, advice) -> the error


class _Group(NamedTuple):
    """Records with the same FORMAT, ``names``; ``data``: their calls, a tab before each; ``tabs`` (calls + 1,): where the tabs are."""

    records: list[Any]
    names: tuple[bytes, ...]
    data: npt.NDArray[np.uint8]
    tabs: Index


def dosage_field(asked: str, declared: Container[str], path: Path) -> str:
    """The FORMAT field with the dosages.

    Raises:
        InputError: the header declares no such field.
    """
    found = next((name for name in (FIELDS if asked == "any" else (asked,)) if name in declared), None)
    if found is None:
        what = "none of DS, HDS and GP" if asked == "any" else f"no {asked}"
        raise InputError(
            f"{path}: the header declares {what} in FORMAT, from which the study reads dosages; give the imputed file with that field, or "
            'set [cohort.variants] dosage = "hard" in the study for genotypes.'
        )
    return found


def check_declared(selection: Selection, formats: Container[str], infos: Container[str], path: Path) -> str:
    """The INFO field of imputation quality, empty if no threshold is asked for.

    Raises:
        InputError: the header does not declare a field that a threshold of the study needs.
    """
    for key, field, threshold in (("min_gq", "GQ", selection.min_gq), ("min_dp", "DP", selection.min_dp)):
        if threshold and field not in formats:
            what = f"the header declares no {field} in FORMAT, which [cohort.variants] {key} = {threshold} needs"
            raise InputError(f"{path}: {what}; give a file with {field}, or remove {key} from the study.")
    found = next((name for name in INFO_FIELDS if name in infos), "")
    if selection.min_info and not found:
        what = f"the header declares none of R2, DR2 and INFO in INFO, which [cohort.variants] min_info = {selection.min_info:g} needs"
        raise InputError(f"{path}: {what}; give a file with imputation quality, or remove min_info from the study.")
    return found if selection.min_info else ""


def info_value(info: bytes, field: str, alts: int) -> list[float]:
    """(alts,) the numbers of an INFO column's ``field``, one for all ALT alleles or one for each; nan where there is none."""
    for entry in info.split(b";"):
        if entry.startswith(field.encode() + b"="):
            parts = entry.partition(b"=")[2].split(b",")
            try:
                values = [float("nan") if part == b"." else float(part) for part in parts]
            except ValueError:
                return [float("nan")] * alts
            return values if len(values) == alts else values[:1] * alts
    return [float("nan")] * alts


def fill(
    records: Sequence[Any], text: bytes, wanted: Wanted, out: npt.NDArray[np.uint16], refuse: Refusal
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Writes the dosages of ``records`` as codes into ``out`` (variants, samples of the file).

    Returns:
        (variants,) True where the record has no dosages: FORMAT lacks the field, or it does not say whether a call is of one copy; and
        where it has dosages, but not of which ALT allele.

    Raises:
        InputError: a value is no number, or no dosage.
    """
    lacks, unclear = np.zeros(len(out), bool), np.zeros(len(out), bool)
    name = wanted.field.encode()
    for group in _groups(records, text, wanted, refuse):
        field = group.names.index(name) if name in group.names else -1
        ploidy = _haploid(group) if wanted.field == "DS" and group.records[0].one_copy else None
        if field < 0 or (wanted.field == "DS" and group.records[0].one_copy and ploidy is None):
            for record in group.records:
                lacks[record.row : record.row + len(record.numbers)] = True
            continue
        start, end = _spans(group, field)
        values = _values(group, start, end, _error_at(group, text, wanted, wanted.field, refuse))
        for numbers, alts, one_copy, at in _alike(group.records):
            cells = (at[:, None] * wanted.columns + np.arange(wanted.columns)).ravel()
            asked = Asked(wanted.field, alts, numbers, one_copy)
            codes, fault = expected(asked, _part(values, cells), None if ploidy is None else ploidy[cells])
            if fault is not None:
                cell = int(cells[fault.cell])
                record = group.records[cell // wanted.columns]
                raise refuse(
                    record.at,
                    f"has {wanted.field} {_shown(group, start, end, cell)} in column {10 + cell % wanted.columns}, {fault.what}",
                    fault.advice,
                )
            for k in range(len(numbers)):
                rows = np.array([group.records[i].row + k for i in at])
                if codes is None:
                    unclear[rows] = True
                else:
                    out[rows] = codes[k].reshape(len(at), -1)
    return lacks, unclear


def drop_calls(records: Sequence[Any], text: bytes, wanted: Wanted, out: npt.NDArray[Any], refuse: Refusal) -> npt.NDArray[np.bool_]:
    """Sets calls of ``out`` (variants, samples of the file) with a GQ or DP below the thresholds, or without one, to missing.

    Returns:
        (variants,) True where a call was set to missing.

    Raises:
        InputError: a value is no number.
    """
    changed, missing = np.zeros(len(out), bool), NONE if out.dtype == np.uint16 else MISSING
    thresholds = [(name, least) for name, least in ((b"GQ", wanted.selection.min_gq), (b"DP", wanted.selection.min_dp)) if least]
    for group in _groups(records, text, wanted, refuse):
        low = np.zeros(len(group.tabs) - 1, bool)
        for name, least in thresholds:
            if name not in group.names:
                low[:] = True
                continue
            start, end = _spans(group, group.names.index(name))
            number = _decimals(group.data, start, end, _error_at(group, text, wanted, name.decode(), refuse))
            low |= ~(number >= least)
        for at, cells in enumerate(low.reshape(len(group.records), -1)):
            for row in range(group.records[at].row, group.records[at].row + len(group.records[at].numbers)):
                here = cells & (out[row] != missing)
                changed[row] = here.any()
                out[row][here] = missing
    return changed


def _groups(records: Sequence[Any], text: bytes, wanted: Wanted, refuse: Refusal) -> Iterator[_Group]:
    """The records by FORMAT (and whether persons may have one copy), some MB at a time. Raises if a call has other columns or values."""
    by_format: dict[tuple[bytes, bool], list[Any]] = {}
    for record in records:
        form = text[text.rfind(b"\t", record.at, record.begin - 1) + 1 : record.begin - 1]
        by_format.setdefault((form, record.one_copy), []).append(record)
    for (form, _), same in by_format.items():
        names = tuple(form.split(b":"))
        step = max(1, _SLICE // max(1, max(r.end - r.begin for r in same)))
        for begin in range(0, len(same), step):
            part = same[begin : begin + step]
            data = np.frombuffer(b"\t".join([b"", *(text[r.begin : r.end] for r in part), b""]), np.uint8)
            tabs = np.flatnonzero(data == 9)
            starts = np.cumsum([0, *(r.end - r.begin + 1 for r in part)])
            if len(tabs) != wanted.columns * len(part) + 1 or not np.array_equal(tabs[:: wanted.columns], starts):
                for record in part:
                    columns = text.count(b"\t", record.begin, record.end) + 1
                    if columns != wanted.columns:
                        what = f"has {9 + columns} columns where the header has {9 + wanted.columns}"
                        raise refuse(record.at, what, "if the file is truncated, copy it again")
            group = _Group(list(part), names, data, tabs)
            _check_count(group, wanted, refuse)
            yield group


def _check_count(group: _Group, wanted: Wanted, refuse: Refusal) -> None:
    colons = np.flatnonzero(group.data == 58)
    count = np.searchsorted(colons, group.tabs[1:]) - np.searchsorted(colons, group.tabs[:-1])
    if count.size and count.max() >= len(group.names):
        cell = int(np.argmax(count >= len(group.names)))
        what = f"has {count[cell] + 1} values in column {10 + cell % wanted.columns} where FORMAT names {len(group.names)}"
        raise refuse(group.records[cell // wanted.columns].at, what, "correct FORMAT or the sample, or delete the record")


def _spans(group: _Group, field: int) -> tuple[Index, Index]:
    """(calls,) where the field begins and ends; both the call's end where it has no such field (VCF allows trailing ones to be omitted)."""
    colons = np.flatnonzero(group.data == 58)
    first, after = np.searchsorted(colons, group.tabs[:-1]), group.tabs[1:]
    count = np.searchsorted(colons, after) - first
    padded = np.append(colons, 0)
    start = group.tabs[:-1] + 1 if field == 0 else np.where(count >= field, padded[np.minimum(first + field - 1, len(colons))] + 1, after)
    end = np.where(count > field, padded[np.minimum(first + field, len(colons))], after)
    return start, end


class Values(NamedTuple):
    """Numbers of calls: ``number`` (values,), ``first`` (calls,) index of each call's first one, ``values`` (calls,): how
    many it has."""

    number: Floats
    first: Index
    values: Index


def _part(values: Values, cells: Index) -> Values:
    return Values(values.number, values.first[cells], values.values[cells])


def _values(group: _Group, start: Index, end: Index, wrong: Callable[[int], InputError]) -> Values:
    """The numbers, between commas, of the fields from ``start`` to ``end``; nan where missing."""
    commas = np.flatnonzero(group.data == 44)
    call = np.searchsorted(group.tabs, commas) - 1
    commas, call = (x[(commas >= start[call]) & (commas < end[call])] for x in (commas, call))
    count = np.bincount(call, minlength=len(start)) + 1
    begins, ends = np.sort(np.concatenate([start, commas + 1])), np.sort(np.concatenate([end, commas]))
    owner = np.repeat(np.arange(len(start)), count)
    return Values(_decimals(group.data, begins, ends, lambda at: wrong(int(owner[at]))), np.cumsum(count) - count, count)


def _decimals(data: npt.NDArray[np.uint8], start: Index, end: Index, wrong: Callable[[int], InputError]) -> Floats:
    """The decimal numbers from ``start`` to ``end``, correctly rounded; nan where there is nothing or a dot; raises where it is none."""
    length = end - start
    missing = (length <= 0) | ((length == 1) & (data[np.minimum(start, len(data) - 1)] == 46))
    mantissa, places = np.zeros(len(start), np.int64), np.zeros(len(start), np.int64)
    dot, odd = np.zeros(len(start), bool), length > _LONGEST
    for at in range(int(min(length.max(initial=0), _LONGEST))):
        live = at < length
        letter = data[np.minimum(start + at, len(data) - 1)]
        digit = letter - np.uint8(48)
        number = live & (digit < 10)
        np.copyto(mantissa, mantissa * 10 + digit, where=number)
        places += number & dot
        point = live & (letter == 46)
        odd |= (live & ~number & ~point) | (point & dot)
        dot |= point
    out: Floats = np.where(missing, np.nan, mantissa / 10.0**places)
    for at in np.flatnonzero(odd & ~missing).tolist():
        try:
            out[at] = float(data[start[at] : end[at]].tobytes())
        except ValueError as error:
            raise wrong(at) from error
        if not np.isfinite(out[at]):
            raise wrong(at)
    return out


def _haploid(group: _Group) -> npt.NDArray[np.int8] | None:
    """(calls,) 1 where GT is of one allele, 0 where of two, -1 where it does not say; None without GT."""
    if b"GT" not in group.names:
        return None
    start, end = _spans(group, group.names.index(b"GT"))
    separators = np.flatnonzero((group.data == 47) | (group.data == 124))
    many = np.searchsorted(separators, end) - np.searchsorted(separators, start + 1)
    nothing = (end <= start) | ((end - start == 1) & (group.data[np.minimum(start, len(group.data) - 1)] == 46))
    return np.where(nothing, -1, many == 0).astype(np.int8)


def _alike(records: Sequence[Any]) -> Iterator[tuple[tuple[int, ...], int, bool, Index]]:
    """Indices of records with the same selected ALT alleles of equally many."""
    found: dict[tuple[tuple[int, ...], int, bool], list[int]] = {}
    for at, record in enumerate(records):
        found.setdefault((record.numbers, record.alts, record.one_copy), []).append(at)
    return ((*same, np.array(at, np.intp)) for same, at in found.items())


def _shown(group: _Group, start: Index, end: Index, cell: int) -> str:
    return '"' + group.data[start[cell] : min(end[cell], start[cell] + 30)].tobytes().decode(errors="replace") + '"'


def _error_at(group: _Group, text: bytes, wanted: Wanted, name: str, refuse: Refusal) -> Callable[[int], InputError]:
    def wrong(cell: int) -> InputError:
        start, end = _spans(group, group.names.index(name.encode()))
        what = f"has {name} {_shown(group, start, end, cell)} in column {10 + cell % wanted.columns}, which is no number"
        return refuse(group.records[cell // wanted.columns].at, what, "correct the value or delete the record")

    return wrong


__all__ = ["FIELDS", "NO_DOSAGE", "check_declared", "dosage_field", "drop_calls", "fill", "info_value"]
