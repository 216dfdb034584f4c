"""BGEN files (version 1.2 and 1.3: layout 2, probabilities of 1 to 32 bits, zlib, zstd or none) as a source of variants.

    source = BgenSource(Path("cohort.bgen"))            # with the .sample file of the same name, if the ids are not in the file
    for block in source.blocks(range(100), Selection(dosage="any"), memory_mb=256): ...

The format: Band and Marchini 2018, "BGEN: a binary file format for imputed genotype and haplotype data" (bioRxiv 308296), and
https://www.well.ox.ac.uk/~gav/bgen_format. The first allele is taken as REF, the others as ALT (plink2 --export bgen-1.2 ref-first); a site
with a reference sequence, or whose alleles another site has in the other order, is oriented as any other file. Of a person with one copy
on X, Y or MT the number is doubled.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, final

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.model import Block, Selection, Source
from fedml.cohort.variants.probable import Expected, Rows
from fedml.cohort.variants.records import Head, Wanted
from fedml.cohort.variants.regions import Inside, check_contigs, merged
from fedml.errors import InputError
from fedml.study.contigs import has_one_copy

Floats = npt.NDArray[np.float64]
_LONGEST = 1 << 30  # bytes of a variant's probabilities
_LONGEST_ALLELE = 1 << 24


class _Variant(NamedTuple):
    """A variant before its probabilities: ``size`` bytes at ``at``, which take ``whole`` bytes uncompressed."""

    contig: str
    position: int
    name: str
    alleles: tuple[bytes, ...]
    at: int
    size: int
    whole: int


@final
class BgenSource(Source):
    """The ``.bgen`` at ``path``.

    Raises:
        InputError: it is not BGEN of layout 2, is truncated, or its samples have no ids, are named twice or are not those of ``.sample``.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.excluded = path, dict[str, int]()
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(24)
            if len(start) < 24 or start[16:20] not in (b"bgen", b"\0\0\0\0"):
                raise InputError(f"{path}: is not a BGEN file; export it again (plink2 --export bgen-1.2).")
            offset, header, self.variants, count = struct.unpack_from("<IIII", start)
            file.seek(4 + header - 4)
            flags = struct.unpack("<I", _take(file, 4, path))[0]
            self.compression, layout = flags & 3, (flags >> 2) & 15
            if layout != 2 or self.compression > 2:
                raise InputError(
                    f"{path}: is BGEN of layout {layout}, and layout 2 (version 1.2 or 1.3) is read; convert it (qctool, plink2)."
                )
            self.first = 4 + offset
            if self.first > size:
                raise InputError(f"{path}: is truncated within its header; copy the file again.")
            ids = _ids(file, path, count) if flags >> 31 else None
        sample = path.with_suffix(".sample")
        listed = _sample_file(sample) if sample.exists() else None
        if ids is None and listed is None:
            raise InputError(f"{path}: names no samples; put {sample.name} with their ids in the same folder.")
        if listed is not None and len(listed[0]) != count:
            raise InputError(f"{sample}: has {len(listed[0]):,} samples where {path.name} has {count:,}; copy both files again.")
        if ids is not None and listed is not None and ids != listed[0]:
            raise InputError(f"{sample}: names other samples than {path.name}, or in another order; copy both files again, or remove it.")
        self.samples = ids if ids is not None else listed[0] if listed is not None else ()
        twice = next((name for name, number in Counter(self.samples).items() if number > 1), None)
        if twice is not None:
            raise InputError(f'{sample if ids is None else path}: names the sample "{twice}" twice; name each person once.')
        self.sex = None if listed is None else listed[1]
        self.contigs: dict[str, int | None] = {}  # the header names none

    def blocks(self, samples: Sequence[int], selection: Selection, memory_mb: int) -> Iterator[Block]:
        """As ``Source.blocks``. Regions are found by reading the file from start to end, without the probabilities of other variants."""
        excluded: Counter[str] = Counter()
        self.excluded = excluded
        if selection.dosage == "hard":
            raise InputError(
                f'{self.path}: BGEN has probabilities; set [cohort.variants] dosage = "any" in the study for dosages, or "nearest" for the '
                "nearest genotypes."
            )
        if selection.min_gq or selection.min_dp:
            raise InputError(f"{self.path}: BGEN has no GQ or DP; remove min_gq and min_dp from [cohort.variants].")
        people = np.fromiter(samples, dtype=np.intp, count=len(samples))
        columns = None if np.array_equal(people, np.arange(len(self.samples))) else people
        spans = merged(selection)
        inside = Inside(spans)
        wanted = Wanted(self.path, len(self.samples), columns, selection, inside if spans else None, excluded)
        rows = Rows(wanted, len(self.samples), max(1, min((memory_mb << 20) // 16, 2**23) // (2 * len(self.samples) + 500)))
        with self.path.open("rb") as file:
            for variant in self._variants(file):
                if wanted.in_region is not None and not wanted.in_region(variant.contig, variant.position):
                    continue
                damaged = partial(_damaged, self.path, variant)
                ref, *alts = variant.alleles
                read = lru_cache(maxsize=1)(partial(self._probabilities, file, variant))
                head = Head(variant.contig, variant.position, variant.name.encode(), ref, alts, passed=True)
                yield from rows.add(head, damaged, partial(_expected, read, bool(has_one_copy(variant.contig))))
        yield from rows.last()
        if spans:
            check_contigs(spans, inside.seen, self.path)

    def _variants(self, file: BinaryIO) -> Iterator[_Variant]:
        """The variants without their probabilities, over which this seeks."""
        at = self.first
        for number in range(self.variants):
            file.seek(at)
            try:
                _, name, contig = (_text(file, self.path) for _ in range(3))
                position, count = struct.unpack("<IH", _take(file, 6, self.path))
                alleles = tuple(_allele(file, self.path) for _ in range(count))
                size = struct.unpack("<I", _take(file, 4, self.path))[0]
                whole = size
                if self.compression:
                    whole, size = struct.unpack("<I", _take(file, 4, self.path))[0], size - 4
                if max(size, whole) > _LONGEST or size < 0 or count < 2:
                    raise ValueError(f"{count} alleles, {whole} bytes")
            except (ValueError, struct.error) as error:
                raise InputError(f"{self.path}: is damaged at variant {number + 1} ({error}); copy the file again.") from error
            contig = contig.lstrip("0") or contig  # UK Biobank writes 01
            found = _Variant(contig, position, name or ".", alleles, file.tell(), size, whole)
            at = found.at + size
            yield found

    def _probabilities(self, file: BinaryIO, variant: _Variant) -> _Probabilities | None:
        """The variant's probabilities; None where a person has more than two copies."""
        file.seek(variant.at)
        data = _take(file, variant.size, self.path)
        try:
            if self.compression == 1:
                data = zlib.decompressobj().decompress(data, variant.whole + 1)
            elif self.compression == 2:
                import pyarrow as pa

                data = pa.decompress(data, decompressed_size=variant.whole, codec="zstd", asbytes=True)
            if len(data) != variant.whole:
                raise ValueError(f"{len(data)} bytes where {variant.whole} are stated")
            return _parsed(data, len(self.samples), len(variant.alleles))
        except (ValueError, zlib.error, OSError, struct.error, IndexError) as error:
            raise _damaged(self.path, variant, f"is damaged ({error})", "copy the file again") from error


class _Probabilities(NamedTuple):
    """Of a variant of ``alleles``: ``missing`` (samples,); ``phased``: of the alleles of each haplotype, else of genotypes; ``parts``: a
    ploidy, its samples, and their probabilities (samples, numbers) without the last ones, which follow from the others."""

    alleles: int
    missing: npt.NDArray[np.bool_]
    phased: bool
    parts: tuple[tuple[int, Any, Floats], ...]


def _parsed(data: bytes, samples: int, alleles: int) -> _Probabilities | None:
    count, k, least, most = struct.unpack_from("<IHBB", data)
    if (count, k) != (samples, alleles):
        raise ValueError(f"{count} samples and {k} alleles where the header has {samples} and {alleles}")
    if most > 2:
        return None
    each = np.frombuffer(data, np.uint8, samples, 8)
    ploidy, missing = each & 63, each >= 128
    if samples and not least <= ploidy.min() <= ploidy.max() <= most:
        raise ValueError("a sample has another ploidy than the variant states")
    phased, bits = data[8 + samples], data[9 + samples]
    if phased > 1 or not 1 <= bits <= 32:
        raise ValueError(f"{bits} bits")
    unphased = np.array([0, k - 1, k * (k + 1) // 2 - 1])[ploidy]
    numbers = ploidy.astype(np.int64) * (k - 1) if phased else unphased
    whole = _unpacked(data[10 + samples :], bits, int(numbers.sum())) / float(2**bits - 1)
    first, parts = np.cumsum(numbers) - numbers, []
    for copies in (0, 1, 2):
        rows = np.flatnonzero(ploidy == copies)
        if len(rows):
            many = int(numbers[rows[0]])
            chosen = whole.reshape(samples, many) if len(rows) == samples else whole[first[rows][:, None] + np.arange(many)]
            parts.append((copies, rows, chosen))
    return _Probabilities(k, missing | (ploidy == 0), bool(phased), tuple(parts))


def _unpacked(data: bytes, bits: int, count: int) -> npt.NDArray[Any]:
    """(count,) unsigned integers of ``bits`` bits, the lowest bit first."""
    if len(data) != -(-count * bits // 8):
        raise ValueError(f"{len(data)} bytes of probabilities where {count} numbers of {bits} bits are expected")
    if bits in (8, 16, 32):
        return np.frombuffer(data, f"<u{bits // 8}", count)
    flat = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little").reshape(count, bits)
    return flat @ (1 << np.arange(bits, dtype=np.int64))


def _expected(read: Callable[[], _Probabilities | None], one_copy: bool, number: int) -> Expected | None:
    """ALT allele ``number`` of each sample: the expected copies, and their variance; None where a person has more than two copies."""
    found = read()
    if found is None:
        return None
    dosage, variance = np.full(len(found.missing), np.nan), np.full(len(found.missing), np.nan)
    for copies, rows, p in found.parts:
        if not copies:
            continue
        each = 2 if one_copy and copies == 1 else 1
        if found.phased or copies == 1:
            first = p.reshape(len(rows), copies, found.alleles - 1)
            allele = first[:, :, number] if number < found.alleles - 1 else 1 - first.sum(2)
            mean, spread = allele.sum(1), (allele * (1 - allele)).sum(1)
        else:
            counts = np.array([(j == number) + (k == number) for k in range(found.alleles) for j in range(k + 1)], float)
            last = counts[-1]
            mean, square = last + p @ (counts[:-1] - last), last**2 + p @ (counts[:-1] ** 2 - last**2)
            spread = square - mean**2
        dosage[rows], variance[rows] = each * mean, each**2 * spread
    dosage[found.missing] = np.nan
    if np.nanmin(dosage, initial=0.0) < -1e-9 or np.nanmax(dosage, initial=0.0) > 2 + 1e-9:
        return Expected(dosage)  # refused where it is stored
    return Expected(np.clip(dosage, 0.0, 2.0), variance)


def _ids(file: BinaryIO, path: Path, count: int) -> tuple[str, ...]:
    """The samples' ids, in the file's sample block."""
    _, there = struct.unpack("<II", _take(file, 8, path))
    if there != count:
        raise InputError(f"{path}: names {there:,} samples where its header has {count:,}; copy the file again.")
    return tuple(_text(file, path) for _ in range(count))


def _sample_file(path: Path) -> tuple[tuple[str, ...], Any]:
    """The ids (second column) and sexes (column ``sex``) of a ``.sample`` file, which has two header lines."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8; save it as UTF-8.") from error
    if len(lines) < 2 or len(lines[0]) < 3 or lines[1][0] != "0" or any(len(line) != len(lines[0]) for line in lines):
        raise InputError(
            f"{path}: is not a .sample file: two header lines (ID_1 ID_2 missing ..., 0 0 0 ...), then a line for each sample."
        )
    names = [name.lower() for name in lines[0]]
    sexes = [line[names.index("sex")] for line in lines[2:]] if "sex" in names else ["0"] * (len(lines) - 2)
    return tuple(line[1] for line in lines[2:]), np.array([{"1": 1, "2": 2}.get(sex, 0) for sex in sexes], np.int8)


def _text(file: BinaryIO, path: Path) -> str:
    try:
        return _take(file, struct.unpack("<H", _take(file, 2, path))[0], path).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: has a name that is not UTF-8; export the file again.") from error


def _allele(file: BinaryIO, path: Path) -> bytes:
    size = struct.unpack("<I", _take(file, 4, path))[0]
    if size > _LONGEST_ALLELE:
        raise ValueError(f"an allele of {size:,} letters")
    return _take(file, size, path)


def _take(file: BinaryIO, size: int, path: Path) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise InputError(f"{path}: is truncated; copy the file again.")
    return data


def _damaged(path: Path, variant: _Variant, what: str, advice: str) -> InputError:
    return InputError(f"{path}: the variant at {variant.contig}:{variant.position} {what}; {advice}.")
