"""Parses BCF records into dosages (VCF 4.5, section 6). BCF stores an allele of a genotype as the integer (allele + 1) * 2 + phased.

header_text(...)                                    # the VCF header in the file
for block in parse(path, header, wanted, spans, size, longest): ...
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.bcf_asked import asked_block
from fedml.cohort.variants.bgzf import find_index, inflated
from fedml.cohort.variants.csi import read_index
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import MISSING, Block
from fedml.cohort.variants.records import Head, Wanted, chosen, take
from fedml.cohort.variants.regions import Spans
from fedml.cohort.variants.vcf_fields import FIELDS, INFO_FIELDS
from fedml.cohort.variants.vcf_text import put_rows
from fedml.errors import InputError
from fedml.study.contigs import canonical_contig, has_one_copy

_SIZES = {0: 0, 1: 1, 2: 2, 3: 4, 5: 4, 7: 1}  # type code -> bytes of a value: missing, three integers, float, character (section 6.3.3)
_BEYOND = 127  # dosage that marks a genotype with an allele number above the record's ALT alleles


def header_text(start: bytes, pieces: Iterator[bytes], path: Path) -> bytes:
    """The VCF header text of a BCF file; ``start`` is the file's first piece, ``pieces`` the rest.

    Raises:
        InputError: the file is not BCF version 2, or ends within the header.
    """
    while len(start) < 9 and (piece := next(pieces, b"")):
        start += piece
    if start[:4] != b"BCF\2" or len(start) < 9:
        raise InputError(f"{path}: is not BCF version 2; convert it (bcftools view -Ob).")
    length = int.from_bytes(start[5:9], "little")
    parts, size = [start[9:]], len(start) - 9
    while size < length:
        piece = next(pieces, b"")
        if not piece:
            raise InputError(f"{path}: is truncated within its header; copy the file again.")
        parts.append(piece)
        size += len(piece)
    return b"".join(parts)[:length].rstrip(b"\0")


class _Record(NamedTuple):
    """A record with selected ALT alleles."""

    row: int  # of its first selected ALT allele in the block
    numbers: tuple[int, ...]  # of the selected ALT alleles
    alts: int  # ALT alleles in the record
    begin: int  # offset of its genotypes
    kind: int  # integer type of its genotypes, 0 if it has none
    ploidy: int  # alleles stored per person; genotypes of lower ploidy are padded
    one_copy: bool  # on a contig of which a person may have one copy: a haploid ALT counts as 2
    fields: dict[int, tuple[int, int, int]]  # FORMAT field -> type, values of a person, offset; read where more than genotypes is asked for
    infos: dict[int, tuple[int, int, int]]  # INFO field -> the same


def parse(path: Path, header: Any, wanted: Wanted, spans: Spans, size: int, longest: int) -> Iterator[Block | None]:
    """Blocks of about ``size`` bytes of records; with ``spans`` (canonical contig -> (first, last)) only that part of the file is read.

    Raises:
        InputError: the file is damaged, or a record is longer than ``longest`` bytes.
    """
    names = {header.contigs[name].id: name for name in header.contigs}
    gt = header.formats["GT"].id if "GT" in header.formats else -1
    ids = {name: header.formats[name].id for name in (*FIELDS, "GQ", "DP") if name in header.formats}
    ids |= {f"INFO/{name}": header.info[name].id for name in INFO_FIELDS if name in header.info}
    if not spans:
        pieces = inflated(path)
        start = next(pieces, b"")
        skip = 9 + int.from_bytes(start[5:9], "little")
        for data, offsets in _frames(_after(skip, start, pieces), path, size, longest):
            yield _block(data, offsets, wanted, names, (gt, ids), None)
        return
    index = read_index(find_index(path, ".csi"))
    for number, name in sorted(names.items()):
        for first, last in spans.get(canonical_contig(name), ()):
            begin = index.start(number, first - 1, last)
            if begin is None:
                continue
            for data, offsets in _frames(inflated(path, begin), path, size, longest):
                yield _block(data, offsets, wanted, names, (gt, ids), (number, first, last))
                contig, position = struct.unpack_from("<ii", data, offsets[-1] + 8)
                if contig != number or position >= last:
                    break


def _after(skip: int, start: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """``start`` and ``pieces`` without their first ``skip`` bytes."""
    for piece in itertools.chain([start], pieces):
        if skip < len(piece):
            yield piece[skip:]
        skip = max(0, skip - len(piece))


def _frames(pieces: Iterator[bytes], path: Path, size: int, longest: int) -> Iterator[tuple[bytes, list[int]]]:
    """Runs of complete records, about ``size`` bytes each, and the offsets of the records in each run."""
    buffer: list[bytes] = []
    have, need, count = 0, size, 0
    for piece in itertools.chain(pieces, [b""]):
        buffer.append(piece)
        have += len(piece)
        if piece and have < need:
            continue
        data = b"".join(buffer)
        offsets: list[int] = []
        at, need = 0, size
        while at + 8 <= len(data):
            length = 8 + sum(struct.unpack_from("<II", data, at))
            if length > longest:
                raise InputError(
                    f"{path}: record {count + len(offsets) + 1} has {length:,} bytes, more than the memory limit of {longest:,} bytes; "
                    "raise data.variants.memory_mb in site.toml, or copy the file again if it is damaged."
                )
            if at + length > len(data):
                need = max(size, length)
                break
            offsets.append(at)
            at += length
        if offsets:
            count += len(offsets)
            yield data, offsets
        buffer = [data[at:]]
        have = len(buffer[0])
    if have:
        raise InputError(f"{path}: is truncated within its last record; copy the file again.")


def _block(
    data: bytes,
    offsets: list[int],
    wanted: Wanted,
    names: dict[int, str],
    numbers: tuple[int, dict[str, int]],
    place: tuple[int, int, int] | None,
) -> Block | None:
    """The selected variants of the records at ``offsets``; with ``place`` (contig number, first, last), only of records within it.
    ``numbers``: of GT in the header's dictionary, and of other fields that may be read."""
    gt, ids = numbers
    keys: list[Variant] = []
    records = []
    try:
        for at in offsets:
            record = _record(data, at, wanted, names, gt, place, keys)
            if record is not None:
                records.append(record)
        if not keys:
            return None
        if wanted.selection.asked:
            return asked_block(keys, records, data, wanted, ids, lambda: _genotypes(keys, records, data, wanted))
        out = _genotypes(keys, records, data, wanted)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{wanted.path}: is damaged, a record is not valid BCF; write the file again (bcftools view -Ob).") from error
    return Block(tuple(keys), chosen(out, wanted))


def _genotypes(keys: list[Variant], records: list[_Record], data: bytes, wanted: Wanted) -> npt.NDArray[np.int8]:
    """(variants, samples of the file) genotypes of the records."""
    out = np.empty((len(keys), wanted.columns), dtype=np.int8)
    groups: dict[tuple[tuple[int, ...], int, int, int, bool], list[_Record]] = {}
    for record in records:
        groups.setdefault((record.numbers, record.alts, record.kind, record.ploidy, record.one_copy), []).append(record)
    for group in groups.values():
        _write(group, data, wanted, keys, out)
    return out


def _record(
    data: bytes, at: int, wanted: Wanted, names: dict[int, str], gt: int, place: tuple[int, int, int] | None, keys: list[Variant]
) -> _Record | None:
    """The record at ``at`` if it is selected, else None; appends its variants to ``keys``."""
    shared, individual, contig_, position, _, _, allele_info, format_sample = struct.unpack_from("<IIiiifII", data, at)
    position += 1
    if place is not None and not (contig_ == place[0] and place[1] <= position <= place[2]):
        return None
    if format_sample & 0xFFFFFF != wanted.columns and format_sample >> 24:
        raise ValueError("number of samples differs from the header")
    here, end = at + 32, at + 8 + shared
    texts = []
    for _ in range(1 + (allele_info >> 16)):
        _, length, here = _typed(data, here)
        texts.append(data[here : here + length])
        here += length
        if here > end:
            raise ValueError("alleles extend past the record's end")
    kind_, count, here = _typed(data, here)
    filters = data[here : here + count * _SIZES[kind_]]
    here += count * _SIZES[kind_]
    damaged = partial(_damaged, wanted.path, names[contig_], position)
    # No filter at all is FILTER "."; PASS is always number 0 of the header's dictionary (section 6.2.1).
    head = Head(names[contig_], position, texts[0], texts[1], texts[2:], not filters or (count == 1 and not any(filters)))
    numbers = take(head, wanted, keys, damaged)
    if not numbers:
        return None
    infos = _infos(data, here, allele_info & 0xFFFF, end) if wanted.info else {}
    here, end = end, end + individual
    fields: dict[int, tuple[int, int, int]] = {}
    found: tuple[int, int, int] | None = None  # type, ploidy, offset
    for _ in range(format_sample >> 24):
        key_kind, _, here = _typed(data, here)
        key = int.from_bytes(data[here : here + _SIZES[key_kind]], "little")
        kind, ploidy, here = _typed(data, here + _SIZES[key_kind])
        if key == gt:
            if found is not None:
                raise damaged("has GT twice in FORMAT", "delete the record")
            found = (kind, ploidy, here)
        elif wanted.selection.asked:
            fields[key] = (kind, ploidy, here)
        here += wanted.columns * ploidy * _SIZES[kind]
        if here > end:
            raise ValueError("genotypes extend past the record's end")
    kind, ploidy, here = found or (0, 0, end)
    if kind not in (0, 1, 2, 3):
        raise ValueError("genotypes are no integers")
    return _Record(
        len(keys) - len(numbers), numbers, len(texts) - 2, here, kind if ploidy else 0, ploidy, bool(has_one_copy(names[contig_])),
        fields, infos,
    )  # fmt: skip


def _infos(data: bytes, here: int, count: int, end: int) -> dict[int, tuple[int, int, int]]:
    """INFO field -> type, number of values and offset, of a record whose INFO is from ``here`` to ``end``."""
    out = {}
    for _ in range(count):
        key_kind, _, here = _typed(data, here)
        key = int.from_bytes(data[here : here + _SIZES[key_kind]], "little")
        kind, values, here = _typed(data, here + _SIZES[key_kind])
        out[key] = (kind, values, here)
        here += values * _SIZES[kind]
        if here > end:
            raise ValueError("INFO extends past its end")
    return out


def _damaged(path: Path, contig: str, position: int, what: str, advice: str) -> InputError:
    return InputError(f"{path}: the record at {contig}:{position} {what}; {advice}.")


def _typed(data: bytes, at: int) -> tuple[int, int, int]:
    """Type, count and offset of the values that are described at ``at`` (section 6.3.3)."""
    kind, count = data[at] & 15, data[at] >> 4
    if count < 15:
        return kind, count, at + 1
    size = _SIZES[data[at + 1] & 15]
    return kind, int.from_bytes(data[at + 2 : at + 2 + size], "little"), at + 2 + size


def _write(group: list[_Record], data: bytes, wanted: Wanted, keys: list[Variant], out: npt.NDArray[np.int8]) -> None:
    """Writes dosages of records with equal ALT numbers, integer type and ploidy."""
    _, numbers, alts, _, kind, ploidy, one_copy, _, _ = group[0]
    rows = np.array([record.row for record in group])
    if not kind:
        for k in range(len(numbers)):
            out[rows + k] = MISSING
        return
    size = wanted.columns * ploidy * _SIZES[kind]
    calls = np.frombuffer(b"".join([data[r.begin : r.begin + size] for r in group]), dtype=f"<i{_SIZES[kind]}")
    dosage = np.zeros(len(group) * wanted.columns, dtype=np.int8)
    for k, number in enumerate(numbers):
        if ploidy == 2 and kind == 1:  # the usual case: a table decodes the calls that differ from homozygous reference
            pairs = calls.view("<u2")
            at = np.flatnonzero((pairs != 0x0202) & (pairs != 0x0302))  # 0/0, 0|0
            dosage[at] = _of_pairs(number, alts, one_copy).take(pairs[at])
        else:
            dosage = _count(calls.reshape(-1, ploidy), number, alts, one_copy)
        beyond = dosage == _BEYOND
        if beyond.any():
            first = int(np.argmax(beyond))
            key = keys[group[first // wanted.columns].row]
            what = f"has allele {(calls.reshape(-1, ploidy)[first].max() >> 1) - 1} in a genotype but {alts} in ALT"
            raise InputError(f"{wanted.path}: the record at {key.contig}:{key.position} {what}; correct or delete the record.")
        put_rows(dosage.reshape(-1, wanted.columns), rows + k, out)


def _count(calls: npt.NDArray[np.signedinteger[Any]], number: int, alts: int, one_copy: bool) -> npt.NDArray[np.int8]:
    """Copies of ALT allele ``number`` in BCF calls (persons, ploidy); ``_BEYOND`` where an allele number is above ``alts``. With
    ``one_copy`` a haploid call counts twice."""
    count = np.zeros(len(calls), dtype=np.int8)
    beyond, absent, padded = np.zeros(len(calls), dtype=bool), np.zeros(len(calls), dtype=bool), np.ones(len(calls), dtype=bool)
    for column in calls.T:  # one pass per allele: a NumPy reduction over the short ploidy axis is many times slower
        padding = column == np.iinfo(calls.dtype).min + 1
        allele = (column >> 1) - 1
        beyond |= allele > alts
        absent |= (allele < 0) & ~padding
        padded &= padding
        count += allele == number
    if one_copy:
        count[(calls != np.iinfo(calls.dtype).min + 1).sum(1) == 1] *= 2
    count[absent | padded] = MISSING
    count[beyond] = _BEYOND
    return count


@lru_cache(maxsize=256)
def _of_pairs(number: int, alts: int, one_copy: bool) -> npt.NDArray[np.int8]:
    """(65,536,): ``_count`` of every diploid call of 8-bit integers, indexed by its two bytes as a little-endian number."""
    return _count(np.arange(2**16, dtype="<u2").view(np.int8).reshape(-1, 2), number, alts, one_copy)
