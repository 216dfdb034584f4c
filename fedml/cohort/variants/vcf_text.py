"""Parses VCF text into dosages, many lines at a time.

    for block in parse(text, Wanted(...)): ...

A call such as ``0|1`` and the byte after it form one 32-bit word: at a fixed stride where a line contains only three-letter calls, after
each tab otherwise. The words are compared with the most frequent call, homozygous reference; only words that differ are decoded. A line
with a call other than ``a/b``, ``a|b`` or ``a`` with one-digit alleles is parsed call by call (VCF 4.5, section 1.6.2).
"""

from __future__ import annotations

import re
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import MISSING, Block
from fedml.cohort.variants.records import Head, Wanted, chosen, passes, take
from fedml.cohort.variants.vcf_asked import asked_block
from fedml.errors import InputError
from fedml.study.contigs import has_one_copy

_HEAD = re.compile(rb"([^\t\n]++)\t(\d{1,10})\t([^\t\n]*+)\t([^\t\n]++)\t([^\t\n]++)\t[^\t\n]*+\t([^\t\n]*+)\t[^\t\n]*+\t([^\t\n]++)\t")
_CALL = re.compile(rb"[/|]?(?:\.|\d+)(?:[/|](?:\.|\d+))*")  # a separator before the first allele: VCF 4.4
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


class _Record(NamedTuple):
    """A record with selected ALT alleles."""

    row: int  # of its first selected ALT allele in the block
    numbers: tuple[int, ...]  # of the selected ALT alleles
    alts: int  # ALT alleles in the record
    begin: int  # offset of its calls in the text
    end: int  # offset after its calls
    at: int  # offset of the line
    gt: int  # index of GT in FORMAT, -1 if FORMAT lacks GT
    colons: int  # in FORMAT; a call has at most as many
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
    if wanted.selection.asked:
        block = asked_block(keys, records, text, wanted, lambda: _genotypes(len(keys), records, text, wanted), partial(_error, text))
        return _advance(block, lines, wanted)
    return _advance(Block(tuple(keys), chosen(_genotypes(len(keys), records, text, wanted), wanted)), lines, wanted)


def _genotypes(variants: int, records: list[_Record], text: bytes, wanted: Wanted) -> npt.NDArray[np.int8]:
    """(variants, samples of the file) genotypes of the records."""
    out = np.empty((variants, wanted.columns), dtype=np.int8)
    groups: dict[tuple[tuple[int, ...], int, bool, int, bool], list[_Record]] = {}
    for record in records:
        if record.gt:
            _call_by_call([record], text, wanted, out)
        else:
            fixed = record.end - record.begin == 4 * wanted.columns - 1
            groups.setdefault((record.numbers, record.alts, fixed, record.colons, record.one_copy), []).append(record)
    for (_, _, fixed, _, _), group in groups.items():
        for part in _slices(group):
            rest = part
            for read in (_fixed, _after_tabs) if fixed else (_after_tabs,):
                rest = read(rest, text, wanted, out) if rest and wanted.fast else rest
            _call_by_call(rest, text, wanted, out)
    return out


def _advance(block: Block | None, lines: int, wanted: Wanted) -> Block | None:
    wanted.line = None if wanted.line is None else wanted.line + lines
    return block


def _records(text: bytes, wanted: Wanted, keys: list[Variant]) -> tuple[list[_Record], int]:
    """The selected records of ``text``, and its number of lines; appends the records' variants to ``keys``."""
    records = []
    lines, cut = 0, False
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
            cut = True
        start, at = at, end + 1
        if found is None:
            raise _invalid_record(text, start, end, wanted)
        contig_, position_, id_, ref_, alt_, filter_, format_ = found.groups()
        position = int(position_)
        try:
            contig = contigs.get(contig_) or contigs.setdefault(contig_, contig_.decode())
            if in_region is not None and not in_region(contig, position):
                continue
            gt = formats.get(format_)
            if gt is None:
                gt = formats[format_] = _gt_index(format_, text, start, wanted)
            row, alts = len(keys), [] if alt_ == b"." else alt_.split(b",")
            head = Head(contig, position, id_, ref_, alts, passes(filter_))
            numbers = take(head, wanted, keys, partial(_error, text, start, wanted))
            if not numbers:
                if not wanted.selection.listed:  # left out: a line that lost its middle may look so, with words of others in FILTER
                    _check_columns(_Record(row, (), 0, found.end(), end, start, gt, 0, one_copy=False), text, wanted)
                continue
        except UnicodeDecodeError as error:
            raise _error(text, start, wanted, "is not UTF-8", "save the file as UTF-8") from error
        if text[end - 1] == 13:
            end -= 1
        records.append(_Record(row, numbers, len(alts), found.end(), end, start, gt, format_.count(b":"), bool(has_one_copy(contig))))
    if cut and records and records[-1].at == start:
        if wanted.selection.asked:  # a number may have lost digits
            raise _error(text, start, wanted, "has no line end", "if the file is truncated, copy it again; else add it")
        _check_end(records[-1], text, wanted)
    return records, lines


def _gt_index(format_: bytes, text: bytes, at: int, wanted: Wanted) -> int:
    """The index of GT in FORMAT, -1 without it."""
    parts = format_.split(b":")
    if parts.count(b"GT") > 1:
        raise _error(text, at, wanted, "has GT twice in FORMAT", "keep one of the two in FORMAT and in every sample")
    if b"GT" in parts:
        return parts.index(b"GT")
    if not wanted.declared:
        raise _error(text, at, wanted, "has no GT in FORMAT, and the header declares none", "give a file with genotypes")
    return -1


def _check_end(record: _Record, text: bytes, wanted: Wanted) -> None:
    """Refuses the last line without a line end if its last call may be the beginning of a longer one: one allele where
    another person has two, or a number to which a digit may be missing. Nothing else that may be missing is read."""
    _check_columns(record, text, wanted)
    calls = [(cell.split(b":") + [b""] * record.colons)[record.gt] for cell in text[record.begin : record.end].split(b"\t")]
    longest = max(len(re.findall(rb"[.\d]+", call)) for call in calls)
    follows = text[: record.end].rpartition(b"\t")[2].count(b":") > record.gt
    complete = record.gt < 0 or follows or (record.alts < 10 and len(re.findall(rb"[.\d]+", calls[-1])) == longest and longest > 1)
    haploid = longest == 1 and wanted.columns > 1 and record.alts < 10 and calls[-1] != b""
    if not (complete or haploid):
        raise _error(text, record.at, wanted, "has no line end after its last call", "if the file is truncated, copy it again; else add it")


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
    _check_values(records, joined, tabs, text, wanted)
    words = np.ndarray((len(joined) - 4,), dtype="<u4", buffer=joined, offset=1, strides=(1,))[tabs[:-1]]
    separator = text[records[0].begin + 1]
    at = np.flatnonzero((words != _plain(separator, 58)) & (words != _plain(separator, 9)))
    return _write(records, at, words[at], np.zeros(len(at), dtype=bool), n, out)


def _check_values(records: list[_Record], joined: bytes, tabs: npt.NDArray[np.intp], text: bytes, wanted: Wanted) -> None:
    """Raises if a call has more values than FORMAT names. ``joined``: the calls of records with equally many names, a tab before each."""
    most = records[0].colons
    if not most and b":" not in joined:
        return
    colons = np.flatnonzero(np.frombuffer(joined, dtype=np.uint8) == 58)
    calls = len(tabs) - 1
    if len(colons) == calls * most:  # the usual case: every call has all values
        last = colons.reshape(calls, most)
        if (last[:, 0] > tabs[:-1]).all() and (last[:, -1] < tabs[1:]).all():
            return
    count = np.bincount(np.searchsorted(tabs, colons) - 1, minlength=calls)
    if (count > most).any():
        at = int(np.argmax(count > most))
        raise _too_many(records[at // wanted.columns], at % wanted.columns, int(count[at]) + 1, text, wanted)


def _too_many(record: _Record, column: int, values: int, text: bytes, wanted: Wanted) -> InputError:
    what = f"has {values} values in column {10 + column} where FORMAT names {record.colons + 1}"
    return _error(text, record.at, wanted, what, "correct FORMAT or the sample, or delete the record")


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
        most = record.colons
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
                if cell.count(b":") > most:
                    raise _too_many(record, column + k, cell.count(b":") + 1, text, wanted)
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
    if text.startswith(b"#", start):
        what = "is a header line among the records"
        return _error(text, start, wanted, what, "if two files were joined, join them with bcftools concat; else delete the line")
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
