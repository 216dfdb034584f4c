"""BCF records into dosages (VCF 4.5, section 6): the genotypes lie there as integers, (allele + 1) * 2 + phased.

header_text(...)                                    # the VCF header inside
for block in parse(path, header, wanted, spans, size, longest): ...
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.bgzf import find_index, inflated
from fedml.cohort.variants.csi import read_csi
from fedml.cohort.variants.model import MISSING, Block, Variant
from fedml.cohort.variants.regions import Spans
from fedml.cohort.variants.vcf_text import Wanted, chosen, put_rows, take_alleles
from fedml.errors import InputError
from fedml.study.contigs import canonical_contig

_SIZES = {0: 0, 1: 1, 2: 2, 3: 4, 5: 4, 7: 1}  # bytes of a value: none, integers, float, letter (section 6.3.3)
_BEYOND = 127


def header_text(start: bytes, pieces: Iterator[bytes], path: Path) -> bytes:
    """The header of a BCF whose first piece is ``start``.

    Raises:
        InputError: it is not of version 2, or ends within the header.
    """
    while len(start) < 9 and (piece := next(pieces, b"")):
        start += piece
    if start[:4] != b"BCF\2" or len(start) < 9:
        raise InputError(f"{path}: is not BCF 2; write it anew (bcftools view -Ob).")
    length = int.from_bytes(start[5:9], "little")
    parts, size = [start[9:]], len(start) - 9
    while size < length:
        piece = next(pieces, b"")
        if not piece:
            raise InputError(f"{path}: ends within its header; copy it anew.")
        parts.append(piece)
        size += len(piece)
    return b"".join(parts)[:length].rstrip(b"\0")


class _Record(NamedTuple):
    """A record with wanted ALT alleles: their first row in the block, their numbers, how many ALT alleles there are, where its genotypes
    begin and their integer type (0: it has none), the ploidy they are padded to."""

    row: int
    numbers: tuple[int, ...]
    alts: int
    begin: int
    kind: int
    ploidy: int


def parse(path: Path, header: Any, wanted: Wanted, spans: Spans, size: int, longest: int) -> Iterator[Block | None]:
    """Blocks of about ``size`` bytes of records; with ``spans`` (canonical contig -> (first, last)) only their part of the file is read.

    Raises:
        InputError: the file is damaged, or a record is longer than ``longest`` bytes.
    """
    names = {header.contigs[name].id: name for name in header.contigs}
    gt = header.formats["GT"].id
    if not spans:
        pieces = inflated(path)
        start = next(pieces, b"")
        skip = 9 + int.from_bytes(start[5:9], "little")
        for data, offsets in _frames(_after(skip, start, pieces), path, size, longest):
            yield _block(data, offsets, wanted, names, gt, None)
        return
    index = read_csi(find_index(path, ".csi"))
    for number, name in sorted(names.items()):
        for first, last in spans.get(canonical_contig(name), ()):
            begin = index.start(number, first - 1, last)
            if begin is None:
                continue
            for data, offsets in _frames(inflated(path, begin), path, size, longest):
                yield _block(data, offsets, wanted, names, gt, (number, first, last))
                contig, position = struct.unpack_from("<ii", data, offsets[-1] + 8)
                if contig != number or position >= last:
                    break


def _after(skip: int, start: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces without their first ``skip`` bytes."""
    for piece in itertools.chain([start], pieces):
        if skip < len(piece):
            yield piece[skip:]
        skip = max(0, skip - len(piece))


def _frames(pieces: Iterator[bytes], path: Path, size: int, longest: int) -> Iterator[tuple[bytes, list[int]]]:
    """Runs of whole records, about ``size`` bytes each, and where in them the records begin."""
    held: list[bytes] = []
    have, need, count = 0, size, 0
    for piece in itertools.chain(pieces, [b""]):
        held.append(piece)
        have += len(piece)
        if piece and have < need:
            continue
        data = b"".join(held)
        offsets: list[int] = []
        at, need = 0, size
        while at + 8 <= len(data):
            length = 8 + sum(struct.unpack_from("<II", data, at))
            if length > longest:
                raise InputError(
                    f"{path}: record {count + len(offsets) + 1} has {length:,} bytes, more than the {longest:,} for which there is memory; "
                    "raise data.variants.memory_mb in site.toml (or the file is damaged)."
                )
            if at + length > len(data):
                need = max(size, length)
                break
            offsets.append(at)
            at += length
        if offsets:
            count += len(offsets)
            yield data, offsets
        held = [data[at:]]
        have = len(held[0])
    if have:
        raise InputError(f"{path}: is cut short, its last record does not end; copy it anew.")


def _block(
    data: bytes, offsets: list[int], wanted: Wanted, names: dict[int, str], gt: int, place: tuple[int, int, int] | None
) -> Block | None:
    """The wanted variants of the records at ``offsets``, of those in ``place`` (contig's number, first, last)."""
    keys: list[Variant] = []
    records = []
    try:
        for at in offsets:
            record = _record(data, at, wanted, names, gt, place, keys)
            if record is not None:
                records.append(record)
        if not keys:
            return None
        out = np.empty((len(keys), wanted.columns), dtype=np.int8)
        groups: dict[tuple[tuple[int, ...], int, int, int], list[_Record]] = {}
        for record in records:
            groups.setdefault((record.numbers, record.alts, record.kind, record.ploidy), []).append(record)
        for group in groups.values():
            _write(group, data, wanted, keys, out)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{wanted.path}: is damaged, a record is not as BCF has it; write it anew (bcftools view -Ob).") from error
    return Block(tuple(keys), chosen(out, wanted))


def _record(
    data: bytes, at: int, wanted: Wanted, names: dict[int, str], gt: int, place: tuple[int, int, int] | None, keys: list[Variant]
) -> _Record | None:
    """The record at ``at`` if it is wanted; its variants are appended to ``keys``."""
    shared, own, contig_, position, _, _, allele_info, format_sample = struct.unpack_from("<IIiiifII", data, at)
    position += 1
    if place is not None and not (contig_ == place[0] and place[1] <= position <= place[2]):
        return None
    if format_sample & 0xFFFFFF != wanted.columns and format_sample >> 24:
        raise ValueError("another number of samples")
    here, end = at + 32, at + 8 + shared
    texts = []
    for _ in range(1 + (allele_info >> 16)):
        _, length, here = _typed(data, here)
        texts.append(data[here : here + length])
        here += length
        if here > end:
            raise ValueError("alleles beyond the record's end")
    numbers, alts = take_alleles(names[contig_], position, texts[0], texts[1], texts[2:], wanted, keys)
    if not numbers:
        return None
    here, end = end, end + own
    kind = ploidy = 0
    for _ in range(format_sample >> 24):
        key_kind, _, here = _typed(data, here)
        key = int.from_bytes(data[here : here + _SIZES[key_kind]], "little")
        kind, ploidy, here = _typed(data, here + _SIZES[key_kind])
        if key == gt:
            break
        here += wanted.columns * ploidy * _SIZES[kind]
    else:
        kind = ploidy = 0
    if here + wanted.columns * ploidy * _SIZES[kind] > end or kind not in (0, 1, 2, 3):
        raise ValueError("genotypes beyond the record's end")
    return _Record(len(keys) - len(numbers), numbers, alts, here, kind if ploidy else 0, ploidy)


def _typed(data: bytes, at: int) -> tuple[int, int, int]:
    """Type, count and where the values begin (section 6.3.3)."""
    kind, count = data[at] & 15, data[at] >> 4
    if count < 15:
        return kind, count, at + 1
    size = _SIZES[data[at + 1] & 15]
    return kind, int.from_bytes(data[at + 2 : at + 2 + size], "little"), at + 2 + size


def _write(group: list[_Record], data: bytes, wanted: Wanted, keys: list[Variant], out: npt.NDArray[np.int8]) -> None:
    """Dosages of records of one shape."""
    _, numbers, alts, _, kind, ploidy = group[0]
    rows = np.array([record.row for record in group])
    if not kind:
        for k in range(len(numbers)):
            out[rows + k] = MISSING
        return
    size = wanted.columns * ploidy * _SIZES[kind]
    calls = np.frombuffer(b"".join([data[r.begin : r.begin + size] for r in group]), dtype=f"<i{_SIZES[kind]}")
    dosage = np.zeros(len(group) * wanted.columns, dtype=np.int8)
    for k, number in enumerate(numbers):
        if ploidy == 2 and kind == 1:  # as nearly always: only calls that differ from the commonest one are looked at, in a table
            pairs = calls.view("<u2")
            at = np.flatnonzero((pairs != 0x0202) & (pairs != 0x0302))  # 0/0, 0|0
            dosage[at] = _of_pairs(number, alts).take(pairs[at])
        else:
            dosage = _count(calls.reshape(-1, ploidy), number, alts)
        beyond = dosage == _BEYOND
        if beyond.any():
            first = int(np.argmax(beyond))
            key = keys[group[first // wanted.columns].row]
            what = f"has allele {(calls.reshape(-1, ploidy)[first].max() >> 1) - 1} in a genotype but {alts} in ALT"
            raise InputError(f"{wanted.path}: the record at {key.contig}:{key.position} {what}; correct it, or leave the record out.")
        put_rows(dosage.reshape(-1, wanted.columns), rows + k, out)


def _count(calls: npt.NDArray[np.signedinteger[Any]], number: int, alts: int) -> npt.NDArray[np.int8]:
    """Copies of ALT allele ``number`` in calls (persons, ploidy) as BCF has them; ``_BEYOND`` where an allele is not in ALT."""
    count = np.zeros(len(calls), dtype=np.int8)
    beyond, absent, padded = np.zeros(len(calls), dtype=bool), np.zeros(len(calls), dtype=bool), np.ones(len(calls), dtype=bool)
    for column in calls.T:  # a pass over all calls for each allele: a reduction over so short an axis is many times slower
        padding = column == np.iinfo(calls.dtype).min + 1
        allele = (column >> 1) - 1
        beyond |= allele > alts
        absent |= (allele < 0) & ~padding
        padded &= padding
        count += allele == number
    count[absent | padded] = MISSING
    count[beyond] = _BEYOND
    return count


@lru_cache(maxsize=256)
def _of_pairs(number: int, alts: int) -> npt.NDArray[np.int8]:
    """``_count`` of every diploid call in 8-bit integers, by its two bytes as a number."""
    return _count(np.arange(2**16, dtype="<u2").view(np.int8).reshape(-1, 2), number, alts)
