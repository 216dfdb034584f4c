"""Parses VCF text into dosages, many lines at a time.

    for block in parse(text, Wanted(...)): ...

A call such as ``0|1`` and the byte after it form one 32-bit word: at a fixed stride where a line contains only three-letter calls, after
each tab otherwise. The words are compared with the most frequent call, homozygous reference; only words that differ are decoded. A line
with a call other than ``a/b``, ``a|b`` or ``a`` with one-digit alleles is parsed call by call (VCF 4.5, section 1.6.2).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.model import LONGEST_ALLELE, MISSING, Block, Selection, Variant
from fedml.errors import InputError
from fedml.study.contigs import has_one_copy

_HEAD = re.compile(rb"([^\t\n]++)\t(\d{1,10})\t([^\t\n]*+)\t([^\t\n]++)\t([^\t\n]++)\t[^\t\n]*+\t[^\t\n]*+\t[^\t\n]*+\t([^\t\n]++)\t")
_CALL = re.compile(rb"[/|]?(?:\.|\d+)(?:[/|](?:\.|\d+))*")  # a separator before the first allele: VCF 4.4
_WHOLE_END = re.compile(rb"\t[.\d][/|][.\d](?::[^\t\n]*)?\Z")
_PAD = b"\t\0\0\0\0"
_CELLS = 2**14  # columns split at a time
_SLICE = 2**20  # bytes of calls decoded together, sized for the processor's cache
_NO_ALLELE, _ODD, _HAPLOID, _UNUSED_CODE = 11, 15, 16, 255  # allele codes after 0 to 9 (the allele's number) and 10 (missing)
_FIRST = np.full(2**16, _ODD, dtype=np.uint8)  # [allele letter + 256 * next letter]: code of a call's first allele
_SECOND = np.full(2**16, _ODD, dtype=np.uint8)  # the same of its second allele
for _code, _letter in enumerate(b"0123456789."):
    for _next in b"/|":
        _FIRST[_letter + 256 * _next] = _code
    for _next in b"\t:":
        _FIRST[_letter + 256 * _next] = _code + _HAPLOID
        _SECOND[_letter + 256 * _next] = _code


@dataclass
class Wanted:
    """The part of a file to read: which samples and which records, with counts of the variants excluded so far.

    ``in_region`` is called with the contig as written and the position, and returns True if the record is selected. ``fast``: if False,
    every line is parsed call by call (for tests). ``line``: number of the next line to parse, None where it is not known.
    """

    path: Path
    columns: int  # samples in the file
    samples: npt.NDArray[np.intp] | None  # None: all samples in file order
    selection: Selection
    in_region: Callable[[str, int], bool] | None
    excluded: Counter[str] = field(default_factory=Counter)
    fast: bool = True
    line: int | None = None


class _Record(NamedTuple):
    """A record with selected ALT alleles."""

    row: int  # of its first selected ALT allele in the block
    numbers: tuple[int, ...]  # of the selected ALT alleles
    alts: int  # ALT alleles in the record
    begin: int  # offset of its calls in the text
    end: int  # offset after its calls
    at: int  # offset of the line
    gt: int  # index of GT in FORMAT, -1 if FORMAT lacks GT
    one_copy: bool  # on a contig of which a person may have one copy: a haploid ALT counts as 2


def parse(text: bytes, wanted: Wanted) -> Block | None:
    """The selected variants of these complete lines; advances ``wanted.line`` past them.

    Returns:
        a block with dosage (variants, wanted.samples), or None if no variant is selected.

    Raises:
        InputError: a line is not a VCF record, has too few or too many columns, or has an invalid genotype; the message names the line.
    """
    keys: list[Variant] = []
    records, lines = _records(text, wanted, keys)
    if not keys:
        return _advance(None, lines, wanted)
    out = np.empty((len(keys), wanted.columns), dtype=np.int8)
    groups: dict[tuple[tuple[int, ...], int, bool, bool], list[_Record]] = {}
    for record in records:
        if record.gt:
            _call_by_call([record], text, wanted, out)
        else:
            fixed = record.end - record.begin == 4 * wanted.columns - 1
            groups.setdefault((record.numbers, record.alts, fixed, record.one_copy), []).append(record)
    for (_, _, fixed, _), group in groups.items():
        for part in _slices(group):
            rest = part
            for read in (_fixed, _after_tabs) if fixed else (_after_tabs,):
                rest = read(rest, text, wanted, out) if rest and wanted.fast else rest
            _call_by_call(rest, text, wanted, out)
    return _advance(Block(tuple(keys), chosen(out, wanted)), lines, wanted)


def _advance(block: Block | None, lines: int, wanted: Wanted) -> Block | None:
    wanted.line = None if wanted.line is None else wanted.line + lines
    return block


def _records(text: bytes, wanted: Wanted, keys: list[Variant]) -> tuple[list[_Record], int]:
    """The selected records of ``text``, and its number of lines; appends the records' variants to ``keys``."""
    records = []
    lines = 0
    contigs: dict[bytes, str] = {}
    formats: dict[bytes, int] = {b"GT": 0}
    in_region = wanted.in_region
    at, size = 0, len(text)
    while at < size:
        lines += 1
        found = _HEAD.match(text, at)
        end = text.find(b"\n", at if found is None else found.end())
        if end < 0:
            end = size
            if not _WHOLE_END.search(text, max(at, size - 2**16)):
                raise _error(text, at, wanted, "has no line end after its last call", "if the file is truncated, copy it again")
        start, at = at, end + 1
        if found is None:
            raise _invalid_record(text, start, end, wanted)
        contig_, position_, id_, ref_, alt_, format_ = found.groups()
        position = int(position_)
        try:
            contig = contigs.get(contig_) or contigs.setdefault(contig_, contig_.decode())
            if in_region is not None and not in_region(contig, position):
                continue
            gt = formats.get(format_)
            if gt is None:
                parts = format_.split(b":")
                gt = formats[format_] = parts.index(b"GT") if b"GT" in parts else -1
            row = len(keys)
            numbers, alts = take_alleles(contig, position, id_, ref_, [] if alt_ == b"." else alt_.split(b","), wanted, keys)
            if not numbers:
                continue
        except UnicodeDecodeError as error:
            raise _error(text, start, wanted, "is not UTF-8", "save the file as UTF-8") from error
        if text[end - 1] == 13:
            end -= 1
        records.append(_Record(row, numbers, alts, found.end(), end, start, gt, bool(has_one_copy(contig))))
    return records, lines


def take_alleles(
    contig: str, position: int, id_: bytes, ref: bytes, alts: Sequence[bytes], wanted: Wanted, keys: list[Variant]
) -> tuple[tuple[int, ...], int]:
    """Appends a record's selected variants to ``keys``; counts variants without a usable key in ``wanted.excluded``.

    Returns:
        the numbers of the selected ALT alleles, and the record's number of ALT alleles.

    Raises:
        UnicodeDecodeError: a name is not UTF-8.
    """
    name, selection = id_.decode() or ".", wanted.selection
    if len(alts) == 1 and len(ref) <= LONGEST_ALLELE and len(alts[0]) <= LONGEST_ALLELE:  # the usual case
        key = Variant(contig, position, name, ref.decode(), alts[0].decode())
        if selection.listed and not selection.wants(key):
            return (), 1
        keys.append(key)
        return (1,), 1
    named = not selection.listed or name in selection.listed
    wanted.excluded["no ALT"] += named and not alts
    numbers = []
    for number, alt in enumerate(alts, start=1):
        if max(len(ref), len(alt)) > LONGEST_ALLELE:
            wanted.excluded["allele too long"] += named
            continue
        key = Variant(contig, position, name, ref.decode(), alt.decode())
        if selection.wants(key):
            numbers.append(number)
            keys.append(key)
    return tuple(numbers), len(alts)


def chosen(dosage: npt.NDArray[np.int8], wanted: Wanted) -> npt.NDArray[np.int8]:
    """(variants, selected samples): the columns of ``dosage`` (variants, samples of the file) for the selected samples."""
    return dosage if wanted.samples is None else np.take(dosage, wanted.samples, axis=1)


def put_rows(dosage: npt.NDArray[np.int8], rows: npt.NDArray[np.intp], out: npt.NDArray[np.int8]) -> None:
    """``out[rows] = dosage``; faster where the ascending ``rows`` are consecutive, the usual case."""
    if len(rows) == rows[-1] - rows[0] + 1:
        out[rows[0] : rows[-1] + 1] = dosage
    else:
        out[rows] = dosage


def _slices(group: list[_Record]) -> list[list[_Record]]:
    """The group in runs of about ``_SLICE`` bytes of calls."""
    out: list[list[_Record]] = [[]]
    size = 0
    for record in group:
        if size > _SLICE:
            out.append([])
            size = 0
        out[-1].append(record)
        size += record.end - record.begin
    return out


def _fixed(records: list[_Record], text: bytes, wanted: Wanted, out: npt.NDArray[np.int8]) -> list[_Record]:
    """Decodes lines that contain only three-letter calls: words at a stride of four bytes. Returns the records with any other call."""
    view = memoryview(text)
    words = np.frombuffer(b"\t".join([*(view[r.begin : r.end] for r in records), b""]), dtype="<u4")
    at = np.flatnonzero(words != _plain(text[records[0].begin + 1], 9))
    found = words[at]
    letters = found.view(np.uint8)
    odd = (letters[3::4] != 9) | (letters[1::4] == 9) | (letters[1::4] == 58)  # the tab is not the fourth byte: a word is not one column
    return _write(records, at, found, odd, wanted.columns, out)


def _after_tabs(records: list[_Record], text: bytes, wanted: Wanted, out: npt.NDArray[np.int8]) -> list[_Record]:
    """Decodes lines with GT as the first FORMAT field: words after each tab. Returns the records with a call of another form.

    Raises:
        InputError: a line has too few or too many columns.
    """
    view, n = memoryview(text), wanted.columns
    joined = b"\t".join([b"", *(view[r.begin : r.end] for r in records), _PAD[1:]])
    tabs = np.flatnonzero(np.frombuffer(joined, dtype=np.uint8) == 9)
    starts = np.cumsum([0, *(r.end - r.begin + 1 for r in records)])
    if len(tabs) != n * len(records) + 1 or not np.array_equal(tabs[::n], starts):
        for record in records:
            _check_columns(record, text, wanted)
    words = np.ndarray((len(joined) - 4,), dtype="<u4", buffer=joined, offset=1, strides=(1,))[tabs[:-1]]
    separator = text[records[0].begin + 1]
    at = np.flatnonzero((words != _plain(separator, 58)) & (words != _plain(separator, 9)))
    return _write(records, at, words[at], np.zeros(len(at), dtype=bool), n, out)


def _plain(separator: int, last: int) -> np.uint32:
    """The 32-bit word of a homozygous reference call followed by the byte ``last``."""
    return np.uint32(int.from_bytes(bytes((48, separator if separator in b"/|" else 47, 48, last)), "little"))


def _write(
    records: list[_Record],
    at: npt.NDArray[np.intp],
    words: npt.NDArray[np.uint32],
    odd: npt.NDArray[np.bool_],
    columns: int,
    out: npt.NDArray[np.int8],
) -> list[_Record]:
    """Writes dosages of records with equal ALT numbers, from the words that differ from the homozygous reference call (``at``: their flat
    indices in records x columns). Returns the records with a word of another form."""
    halves = words.view("<u2")
    first, second = _FIRST.take(halves[0::2]), _SECOND.take(halves[1::2])
    haploid = first >= _HAPLOID  # _ODD is below _HAPLOID
    second[haploid] = _NO_ALLELE
    first &= _HAPLOID - 1
    alts = records[0].alts
    for code in (first, second):
        odd |= (code == _ODD) | ((code > alts) & (code < 10))
    missing = (first == 10) | (second == 10)
    rows = np.array([record.row for record in records])
    dosage = np.zeros(len(records) * columns, dtype=np.int8)
    for k, allele in enumerate(records[0].numbers):
        digit = allele if allele < 10 else _UNUSED_CODE  # codes above 9 do not stand for alleles
        count = (first == digit).view(np.int8) + (second == digit).view(np.int8)
        if records[0].one_copy:
            count[haploid] *= 2
        count[missing] = MISSING
        dosage[at] = count
        put_rows(dosage.reshape(-1, columns), rows + k, out)
    return [records[i] for i in np.unique(at[odd] // columns)] if odd.any() else []


def _call_by_call(records: list[_Record], text: bytes, wanted: Wanted, out: npt.NDArray[np.int8]) -> None:
    """Parses any record: any ploidy, any allele number, GT at any index of FORMAT or absent from FORMAT.

    Raises:
        InputError: too few or too many columns, an invalid genotype, or a genotype with an allele number above the record's ALT alleles.
    """
    for record in records:
        rows = out[record.row : record.row + len(record.numbers)]
        _check_columns(record, text, wanted)
        if record.gt < 0:
            rows[:] = MISSING
            continue
        known: dict[bytes, list[int]] = {}
        place, column, rest = record.gt, 0, text[record.begin : record.end]
        for _ in range(0, wanted.columns, _CELLS):
            cells = rest.split(b"\t", _CELLS)
            rest = cells.pop() if len(cells) > _CELLS else b""
            counts = np.empty((len(cells), len(rows)), dtype=np.int8)
            for k, cell in enumerate(cells):
                parts = cell.split(b":", place + 1)
                call = parts[place] if len(parts) > place else b"."  # VCF allows trailing fields to be omitted
                found = known.get(call)
                if found is None:
                    found = known[call] = _counts(call, record, text, wanted)
                counts[k] = found
            rows[:, column : column + len(cells)] = counts.T
            column += len(cells)


def _counts(call: bytes, record: _Record, text: bytes, wanted: Wanted) -> list[int]:
    """Copies of each selected ALT allele in one call."""
    if not _CALL.fullmatch(call):
        shown = call[:20].decode(errors="replace")
        raise _error(text, record.at, wanted, f'has the invalid genotype "{shown}"', "correct the genotype or delete the record")
    alleles = re.findall(rb"[.\d]+", call)
    if b"." in alleles:
        return [MISSING] * len(record.numbers)
    numbers = [int(a[:10]) for a in alleles]
    if max(numbers) > record.alts:
        what = f"has allele {max(numbers)} in a genotype but {record.alts} in ALT"
        raise _error(text, record.at, wanted, what, "correct the genotype or delete the record")
    each = 2 if record.one_copy and len(numbers) == 1 else 1
    return [min(each * numbers.count(k), 127) for k in record.numbers]


def _check_columns(record: _Record, text: bytes, wanted: Wanted) -> None:
    columns = 9 + text.count(b"\t", record.begin, record.end) + 1
    if columns != 9 + wanted.columns:
        what = f"has {columns} columns where the header has {9 + wanted.columns}"
        raise _error(text, record.at, wanted, what, "if the file is truncated, copy it again")


def _invalid_record(text: bytes, start: int, end: int, wanted: Wanted) -> InputError:
    """The error that says why a line's first nine columns are not a VCF record."""
    fields = text[start : min(end, start + 10**6)].split(b"\t", 9)
    length = end - start
    if not length:
        return _error(text, start, wanted, "is empty", "delete it")
    if len(fields) > 1 and not (fields[1].isdigit() and len(fields[1]) < 11):
        shown = fields[1][:20].decode(errors="replace")
        return _error(text, start, wanted, f'has POS "{shown}", which is not a position', "correct POS or delete the record")
    if text.count(b"\t", start, end) < 9:
        columns = text.count(b"\t", start, end) + 1
        what = f"has {columns} columns in {length:,} bytes where the header has {9 + wanted.columns}"
        return _error(text, start, wanted, what, "if the file is truncated, copy it again")
    return _error(text, start, wanted, "has an empty CHROM, REF, ALT or FORMAT", "fill the field or delete the record")


def _error(text: bytes, at: int, wanted: Wanted, what: str, advice: str) -> InputError:
    """An error about the line that begins at ``at``; names the line's number, or its contig and position."""
    if wanted.line is None:
        fields = text[at : at + 1000].split(b"\t", 2)
        where = "the record at " + ":".join(f[:30].decode(errors="replace") for f in fields[:2]).split("\n")[0]
    else:
        where = f"line {wanted.line + text.count(10, 0, at)}"
    return InputError(f"{wanted.path}: {where} {what}; {advice}.")
