"""VCF text into dosages, many lines at a time.

    for block in parse(text, Wanted(...)): ...

A call such as ``0|1`` and the byte after it are one 32-bit word: at a fixed stride where a line holds nothing but three-letter calls, after
each tab otherwise. The words are compared with the commonest call, homozygous reference; only those that differ are looked at more closely.
A line with a call that is neither ``a/b``, ``a|b`` nor ``a`` with alleles of one digit is read call by call (VCF 4.5, section 1.6.2).
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

_HEAD = re.compile(rb"([^\t\n]++)\t(\d{1,10})\t([^\t\n]*+)\t([^\t\n]++)\t([^\t\n]++)\t[^\t\n]*+\t[^\t\n]*+\t[^\t\n]*+\t([^\t\n]++)\t")
_CALL = re.compile(rb"[/|]?(?:\.|\d+)(?:[/|](?:\.|\d+))*")  # a separator before the first allele: VCF 4.4
_WHOLE_END = re.compile(rb"\t[.\d][/|][.\d](?::[^\t\n]*)?\Z")
_PAD = b"\t\0\0\0\0"
_CELLS = 2**14  # columns that are split at a time
_SLICE = 2**20  # bytes of calls that are looked at together: they stay in the processor's cache
_NONE, _ODD, _HAPLOID, _NOBODY = 11, 15, 16, 255  # codes of an allele beside 0 to 9; 10 is a missing one
_FIRST = np.full(2**16, _ODD, dtype=np.uint8)  # of an allele and the byte after it
_SECOND = np.full(2**16, _ODD, dtype=np.uint8)
for _code, _letter in enumerate(b"0123456789."):
    for _next in b"/|":
        _FIRST[_letter + 256 * _next] = _code
    for _next in b"\t:":
        _FIRST[_letter + 256 * _next] = _code + _HAPLOID
        _SECOND[_letter + 256 * _next] = _code


@dataclass
class Wanted:
    """What is read of a file: its columns, which of them, which records; and what was passed over so far.

    ``in_region``: is a record there wanted? Called with the contig as written, and the position. ``fast``: False reads every line call by
    call; only tests ask for it. ``line``: the number of the line that is parsed next, None where it is not known.
    """

    path: Path
    columns: int  # samples in the file
    samples: npt.NDArray[np.intp] | None  # None: all of them, in their order
    selection: Selection
    in_region: Callable[[str, int], bool] | None
    left_out: Counter[str] = field(default_factory=Counter)
    fast: bool = True
    line: int | None = None


class _Record(NamedTuple):
    """A record with wanted ALT alleles: the first of their rows in the block, their numbers, how many ALT alleles there are, where its
    calls begin and end in the text, where the line begins."""

    row: int
    numbers: tuple[int, ...]
    alts: int
    begin: int
    end: int
    at: int
    gt: int  # GT's place in FORMAT, -1 where it is not there


def parse(text: bytes, wanted: Wanted) -> Block | None:
    """The wanted variants of these whole lines; ``wanted.line`` is then what follows them.

    Returns:
        dosage (variants, wanted.samples); None where there is no wanted variant.

    Raises:
        InputError: a line is no VCF record, has too few or too many columns, or a call that is none; the sentence names the line.
    """
    keys: list[Variant] = []
    records, lines = _records(text, wanted, keys)
    if not keys:
        return _passed(None, lines, wanted)
    out = np.empty((len(keys), wanted.columns), dtype=np.int8)
    groups: dict[tuple[tuple[int, ...], int, bool], list[_Record]] = {}
    for record in records:
        if record.gt:
            _call_by_call([record], text, wanted, out)
        else:
            fixed = record.end - record.begin == 4 * wanted.columns - 1
            groups.setdefault((record.numbers, record.alts, fixed), []).append(record)
    for (_, _, fixed), group in groups.items():
        for some in _slices(group):
            rest = some
            for read in (_fixed, _after_tabs) if fixed else (_after_tabs,):
                rest = read(rest, text, wanted, out) if rest and wanted.fast else rest
            _call_by_call(rest, text, wanted, out)
    return _passed(Block(tuple(keys), chosen(out, wanted)), lines, wanted)


def _passed(block: Block | None, lines: int, wanted: Wanted) -> Block | None:
    wanted.line = None if wanted.line is None else wanted.line + lines
    return block


def _records(text: bytes, wanted: Wanted, keys: list[Variant]) -> tuple[list[_Record], int]:
    """The records of ``text`` that are wanted, and how many lines it has; their variants are appended to ``keys``."""
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
                raise _error(text, at, wanted, "has no line end after its last call", "if the file is cut short, copy it anew")
        start, at = at, end + 1
        if found is None:
            raise _no_record(text, start, end, wanted)
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
            raise _error(text, start, wanted, "has letters that are not UTF-8", "write it anew in UTF-8") from error
        if text[end - 1] == 13:
            end -= 1
        records.append(_Record(row, numbers, alts, found.end(), end, start, gt))
    return records, lines


def take_alleles(
    contig: str, position: int, id_: bytes, ref: bytes, alts: Sequence[bytes], wanted: Wanted, keys: list[Variant]
) -> tuple[tuple[int, ...], int]:
    """Appends a record's wanted variants to ``keys``; those without a key are counted as left out.

    Returns:
        the numbers of the wanted ALT alleles, and how many the record has.

    Raises:
        UnicodeDecodeError: a name is not UTF-8.
    """
    name, selection = id_.decode() or ".", wanted.selection
    if len(alts) == 1 and len(ref) <= LONGEST_ALLELE and len(alts[0]) <= LONGEST_ALLELE:  # as nearly always
        key = Variant(contig, position, name, ref.decode(), alts[0].decode())
        if selection.listed and not selection.wants(key):
            return (), 1
        keys.append(key)
        return (1,), 1
    named = not selection.listed or name in selection.listed
    wanted.left_out["no ALT"] += named and not alts
    numbers = []
    for number, alt in enumerate(alts, start=1):
        if max(len(ref), len(alt)) > LONGEST_ALLELE:
            wanted.left_out["allele too long"] += named
            continue
        key = Variant(contig, position, name, ref.decode(), alt.decode())
        if selection.wants(key):
            numbers.append(number)
            keys.append(key)
    return tuple(numbers), len(alts)


def chosen(dosage: npt.NDArray[np.int8], wanted: Wanted) -> npt.NDArray[np.int8]:
    """The columns of the wanted samples."""
    return dosage if wanted.samples is None else np.take(dosage, wanted.samples, axis=1)


def put_rows(dosage: npt.NDArray[np.int8], rows: npt.NDArray[np.intp], out: npt.NDArray[np.int8]) -> None:
    """``out[rows] = dosage``; faster where the ascending ``rows`` are neighbours, as nearly always."""
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
    """Lines of nothing but three-letter calls: words at a stride of four bytes. Returns the records that turned out not to be so."""
    view = memoryview(text)
    words = np.frombuffer(b"\t".join([*(view[r.begin : r.end] for r in records), b""]), dtype="<u4")
    at = np.flatnonzero(words != _plain(text[records[0].begin + 1], 9))
    found = words[at]
    letters = found.view(np.uint8)
    odd = (letters[3::4] != 9) | (letters[1::4] == 9) | (letters[1::4] == 58)  # a tab too early or too late: not one column a word
    return _write(records, at, found, odd, wanted.columns, out)


def _after_tabs(records: list[_Record], text: bytes, wanted: Wanted, out: npt.NDArray[np.int8]) -> list[_Record]:
    """Lines whose calls stand first in each column: words after each tab. Returns the records with a call that is not of the common kind.

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
    """The word of a homozygous reference call."""
    return np.uint32(int.from_bytes(bytes((48, separator if separator in b"/|" else 47, 48, last)), "little"))


def _write(
    records: list[_Record],
    at: npt.NDArray[np.intp],
    words: npt.NDArray[np.uint32],
    odd: npt.NDArray[np.bool_],
    columns: int,
    out: npt.NDArray[np.int8],
) -> list[_Record]:
    """Dosages of records with the same ALT alleles, from those words (``at`` in records x columns) that are not the plain call."""
    halves = words.view("<u2")
    first, second = _FIRST.take(halves[0::2]), _SECOND.take(halves[1::2])
    haploid = first >= _HAPLOID  # _ODD is not
    second[haploid] = _NONE
    first &= _HAPLOID - 1
    alts = records[0].alts
    for code in (first, second):
        odd |= (code == _ODD) | ((code > alts) & (code < 10))
    missing = (first == 10) | (second == 10)
    rows = np.array([record.row for record in records])
    dosage = np.zeros(len(records) * columns, dtype=np.int8)
    for k, allele in enumerate(records[0].numbers):
        digit = allele if allele < 10 else _NOBODY  # above 9 begin the codes of what is no allele
        count = (first == digit).view(np.int8) + (second == digit).view(np.int8)
        count[missing] = MISSING
        dosage[at] = count
        put_rows(dosage.reshape(-1, columns), rows + k, out)
    return [records[i] for i in np.unique(at[odd] // columns)] if odd.any() else []


def _call_by_call(records: list[_Record], text: bytes, wanted: Wanted, out: npt.NDArray[np.int8]) -> None:
    """Any record, by its letters: any ploidy, any allele number, GT anywhere or nowhere in FORMAT.

    Raises:
        InputError: too few or too many columns, a call that is none, or one that names an ALT allele which the record lacks.
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
                call = parts[place] if len(parts) > place else b"."  # fields at the end may be dropped
                found = known.get(call)
                if found is None:
                    found = known[call] = _counts(call, record, text, wanted)
                counts[k] = found
            rows[:, column : column + len(cells)] = counts.T
            column += len(cells)


def _counts(call: bytes, record: _Record, text: bytes, wanted: Wanted) -> list[int]:
    """Copies of each wanted ALT allele in one call."""
    if not _CALL.fullmatch(call):
        shown = call[:20].decode(errors="replace")
        raise _error(text, record.at, wanted, f'has a genotype "{shown}" that is none', "correct it, or leave the record out")
    alleles = re.findall(rb"[.\d]+", call)
    if b"." in alleles:
        return [MISSING] * len(record.numbers)
    numbers = [int(a[:10]) for a in alleles]
    if max(numbers) > record.alts:
        what = f"has allele {max(numbers)} in a genotype but {record.alts} in ALT"
        raise _error(text, record.at, wanted, what, "correct it, or leave the record out")
    return [min(numbers.count(k), 127) for k in record.numbers]


def _check_columns(record: _Record, text: bytes, wanted: Wanted) -> None:
    columns = 9 + text.count(b"\t", record.begin, record.end) + 1
    if columns != 9 + wanted.columns:
        what = f"has {columns} columns where the header has {9 + wanted.columns}"
        raise _error(text, record.at, wanted, what, "if the file is cut short, copy it anew")


def _no_record(text: bytes, start: int, end: int, wanted: Wanted) -> InputError:
    """Why a line's first nine columns are not those of a record."""
    fields = text[start : min(end, start + 10**6)].split(b"\t", 9)
    length = end - start
    if not length:
        return _error(text, start, wanted, "is empty", "delete it")
    if len(fields) > 1 and not (fields[1].isdigit() and len(fields[1]) < 11):
        shown = fields[1][:20].decode(errors="replace")
        return _error(text, start, wanted, f'has POS "{shown}", which is no position', "correct it, or leave the record out")
    if text.count(b"\t", start, end) < 9:
        columns = text.count(b"\t", start, end) + 1
        what = f"has {columns} columns in {length:,} bytes where the header has {9 + wanted.columns}"
        return _error(text, start, wanted, what, "if the file is cut short, copy it anew")
    return _error(text, start, wanted, "has an empty CHROM, REF, ALT or FORMAT", "correct it, or leave the record out")


def _error(text: bytes, at: int, wanted: Wanted, what: str, mend: str) -> InputError:
    """The sentence about the line that begins at ``at``."""
    if wanted.line is None:
        fields = text[at : at + 1000].split(b"\t", 2)
        where = "the record at " + ":".join(f[:30].decode(errors="replace") for f in fields[:2]).split("\n")[0]
    else:
        where = f"line {wanted.line + text.count(10, 0, at)}"
    return InputError(f"{wanted.path}: {where} {what}; {mend}.")
