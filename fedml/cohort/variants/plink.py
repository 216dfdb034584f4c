"""PLINK 1 files (``.bed`` with ``.bim`` and ``.fam``) as a source of variants.

    source = PlinkSource(Path("cohort.bed"))
    for block in source.blocks(range(100), Selection(regions=("22",)), memory_mb=256): ...

A1 is taken as ALT and counted, A2 as REF (PLINK 1 writes the minor allele as A1 unless --keep-allele-order is given). Samples are the
individual ids of the ``.fam``; an id that several families have is written with the family's, ``FID_IID``, as PLINK writes VCF samples.
The sixth column of the ``.fam`` is not read, so its -9 is no phenotype. bed-reader reads the genotypes.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.keys import Keys, Variant, columns_of, read_columns
from fedml.cohort.variants.model import LONGEST_ALLELE, MISSING, Block, Selection, Source
from fedml.cohort.variants.records import AMBIGUOUS, SAME, TOO_LONG, UNKNOWN, kind_of
from fedml.cohort.variants.regions import Inside, check_contigs, merged
from fedml.errors import InputError

NO_POSITION = "no position"
_BIM = ("contig", "id", "distance", "position", "alt", "ref")
_PIECE = 1 << 24  # bytes of a .bim at a time
_OTHER_BLANKS = (b"\t\t", b"\n\t", b"\t\n", *(bytes([code]) for code in (11, 12, 13, 28, 29, 30, 31, 32)))
_MAGIC = b"\x6c\x1b\x01"  # third byte 1: variant-major


@final
class PlinkSource(Source):
    """The ``.bed`` at ``path`` with the ``.bim`` and ``.fam`` in the same folder.

    Raises:
        InputError: the ``.bim`` or ``.fam`` is missing or has an invalid line, the ``.fam`` names an individual of a family twice, or the
            length of the ``.bed`` does not match their numbers of lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.excluded: dict[str, int] = {}
        for ending in (".bim", ".fam"):
            if not path.with_suffix(ending).exists():
                raise InputError(f"{path.with_suffix(ending)}: no such file; put the .bim and .fam of a .bed in the same folder.")
        self.families: dict[str, list[str]] = {}  # individual id -> the families that have it
        self.samples = _samples(path.with_suffix(".fam"), self.families)
        sexes = [fields[4] for _, fields in _lines(path.with_suffix(".fam"))]
        self.sex = np.array([int(sex) if sex in ("1", "2") else 0 for sex in sexes], np.int8)
        self.contigs: dict[str, int | None] = {}
        self.variants = 0
        for keys in _variants(path.with_suffix(".bim")):
            self.contigs |= dict.fromkeys(keys.contigs)
            self.variants += len(keys)
        with path.open("rb") as file:
            start = file.read(3)
        size, expected = path.stat().st_size, 3 + self.variants * -(-len(self.samples) // 4)
        if start != _MAGIC:
            raise InputError(f"{path}: is not a variant-major PLINK 1 .bed file; convert it (plink2 --make-bed).")
        if size != expected:
            counts = f"{len(self.samples):,} individuals and {self.variants:,} variants"
            what = f"it has {size:,} bytes where {counts} take {expected:,}"
            raise InputError(f"{path}: does not match its .bim and .fam, {what}; copy the three files again.")

    def check_persons(self, persons: Sequence[str]) -> None:
        """As ``Source.check_persons``: an individual id of several families does not say whose genotypes are meant."""
        for person in persons:
            if len(families := self.families.get(person, [])) > 1 and person not in self.samples:
                where, first = self.path.with_suffix(".fam"), f"{families[0]}_{person}"
                raise InputError(
                    f'{where}: has the individual "{person}" in {len(families)} families, and the persons table does not say which '
                    f'is meant; write the family before the id there, such as "{first}".'
                )

    def blocks(self, samples: Sequence[int], selection: Selection, memory_mb: int) -> Iterator[Block]:
        """As ``Source.blocks``. Regions are found by reading the whole ``.bim``."""
        from bed_reader import open_bed

        if selection.fractions or selection.min_gq or selection.min_dp or selection.min_info:
            raise InputError(
                f"{self.path}: a PLINK 1 .bed file has genotypes only, and the study asks for dosages or for their quality; give the "
                'imputed file, or set [cohort.variants] dosage = "hard" without min_gq, min_dp and min_info.'
            )
        excluded: Counter[str] = Counter()
        self.excluded = excluded
        if not self.samples:
            return
        persons = np.fromiter(samples, dtype=np.intp, count=len(samples))
        which = slice(None) if np.array_equal(persons, np.arange(len(self.samples))) else persons
        rows = max(1, min((memory_mb << 20) // 8, 2**23) // (len(self.samples) + 500))  # 500: bytes of a key in memory, approximately
        with open_bed(self.path, iid_count=len(self.samples), sid_count=self.variants, skip_format_check=True, num_threads=1) as bed:
            for places, keys in self._wanted(selection, excluded, rows):
                yield Block(keys, self._read(bed, which, places))

    def _read(self, bed: Any, samples: npt.NDArray[np.intp] | slice, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
        """(places, samples) int8 dosages."""
        columns = slice(int(places[0]), int(places[-1]) + 1) if len(places) == places[-1] - places[0] + 1 else places
        try:
            dosage = bed.read(index=(samples, columns), dtype="int8", order="F")  # counts A1; missing is -127
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: cannot be read as a PLINK .bed file ({error}); copy the file again.") from error
        dosage[dosage < 0] = MISSING
        return np.ascontiguousarray(dosage.T)

    def _wanted(self, selection: Selection, excluded: Counter[str], rows: int) -> Iterator[tuple[npt.NDArray[np.int64], Keys]]:
        """Indices in the file and keys of the selected variants, at most ``rows`` at a time."""
        spans = merged(selection)
        check_contigs(spans, self.contigs, self.path)
        inside, begin = Inside(spans), 0
        for keys in _variants(self.path.with_suffix(".bim")):
            chosen = np.ones(len(keys), bool)
            if spans:
                chosen &= [inside(keys.contigs[c], p) for c, p in zip(keys.contig.tolist(), keys.position.tolist(), strict=True)]
            if selection.listed:
                at = np.flatnonzero(chosen)
                chosen[at] = [selection.wants(key) for key in keys.take(at)]
            flaws = np.where(keys.position < 0, NO_POSITION, keys.by_alleles(_flaw, object))
            for flaw in flaws[chosen]:
                if flaw:
                    excluded[flaw] += 1
            at = np.flatnonzero(chosen & (flaws == ""))
            for some in np.split(at, range(rows, len(at), rows)):
                if len(some):
                    yield begin + some, keys.take(some)
            begin += len(keys)


def _flaw(ref: str, alt: str) -> str:
    """The reason to exclude a variant with these alleles, or an empty string."""
    if max(len(ref), len(alt)) > LONGEST_ALLELE:
        return TOO_LONG
    kinds = {kind_of(ref.encode()), kind_of(alt.encode())}
    if kinds & {"unknown", "invalid"}:
        return UNKNOWN  # 0 for an allele that no genotype in the file has; 1 and 2, or I and D, which name no letters
    if "codes" in kinds:
        return AMBIGUOUS
    return SAME if ref.upper() == alt.upper() else ""


def _samples(path: Path, families: dict[str, list[str]]) -> tuple[str, ...]:
    """The name of each individual: its id, or ``FID_IID`` where several families have that id. Fills ``families``."""
    read = [(fields[0], fields[1]) for _, fields in _lines(path)]
    for family, name in read:
        if family in families.setdefault(name, []):
            raise InputError(f'{path}: names the individual "{name}" twice (family {family}); name each person once.')
        families[name].append(family)
    samples = tuple(name if len(families[name]) == 1 else f"{family}_{name}" for family, name in read)
    twice = next((name for name, count in Counter(samples).items() if count > 1), None)
    if twice is not None:
        raise InputError(f'{path}: "{twice}" may be two persons, by the second column or by both; give one of them another id.')
    return samples


def _variants(path: Path) -> Iterator[Keys]:
    """The variants of a ``.bim``, a piece of the file at a time.

    Raises:
        InputError: a line has fewer or more fields, no number as its position, or is not UTF-8.
    """
    width, number = 0, 0
    for piece in _pieces(path):
        first = piece[: piece.find(b"\n")].split()
        width = width or (5 if len(first) == 5 else 6)
        keys = _tabs(piece, _BIM if width == 6 else _BIM[:2] + _BIM[3:])
        if keys is None:  # spaces, another alphabet, or an invalid line
            rows = list(_fields(io.TextIOWrapper(io.BytesIO(piece), encoding="utf-8"), path, number, width))
            keys = columns_of([_variant(path, at, fields) for at, fields in rows])
        number += len(keys)
        yield keys


def _pieces(path: Path) -> Iterator[bytes]:
    """The bytes of a file, in pieces of whole lines."""
    rest = b""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            end = piece.rfind(b"\n") + 1
            if end:
                yield rest + piece[:end]
                rest = piece[end:]
            else:
                rest += piece
    if rest:
        yield rest


def _tabs(piece: bytes, names: Sequence[str]) -> Keys | None:
    """The variants of lines with a tab between two fields, or None if they are not so."""
    if not piece.isascii() or any(blank in piece for blank in _OTHER_BLANKS) or piece.startswith(b"\t"):
        return None
    try:
        return read_columns(piece, names)
    except ValueError:
        return None


def _variant(path: Path, number: int, fields: Sequence[str]) -> Variant:
    contig, name, *_, position, alt, ref = fields
    if not position.lstrip("-").isdecimal() or len(position) > 18:
        raise InputError(f'{path}: line {number} has the invalid position "{position[:20]}"; correct column 4.')
    return Variant(contig, int(position), name, ref, alt)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and the six fields of each line of a ``.fam``.

    Raises:
        InputError: a line has fewer or more fields, or is not UTF-8.
    """
    with path.open(encoding="utf-8") as file:
        yield from _fields(file, path, 0, 6)


def _fields(lines: Iterable[str], path: Path, before: int, width: int) -> Iterator[tuple[int, list[str]]]:
    try:
        for number, line in enumerate(lines, start=before + 1):
            fields = line.split()
            if len(fields) != width:
                why = f"a {path.suffix} file has six" if width == 6 else "the first line has five"
                raise InputError(f"{path}: line {number} has {len(fields)} fields where {why}; copy the file again.")
            yield number, fields
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8; save it as UTF-8.") from error
