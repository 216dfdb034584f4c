"""PLINK 2 files (``.pgen`` with ``.pvar`` or ``.pvar.zst``, and ``.psam``) as a source of variants; pgenlib reads the genotypes.

    source = PgenSource(Path("cohort.pgen"))
    for block in source.blocks(range(100), Selection(dosage="any"), memory_mb=256): ...

Dosages are whole numbers of 1/16384, and are kept exactly. On X a man has 0 to 2, as PLINK writes it.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np

from fedml.cohort.variants.companions import companions
from fedml.cohort.variants.model import Block, Selection, Source
from fedml.cohort.variants.probable import Expected, Rows
from fedml.cohort.variants.records import Head, Wanted, passes
from fedml.cohort.variants.regions import Inside, check_contigs, merged
from fedml.cohort.variants.vcf_fields import INFO_FIELDS, info_value
from fedml.errors import InputError

_MAGIC = b"\x6c\x1b"
_COLUMNS = ("#CHROM", "POS", "ID", "REF", "ALT")


@final
class PgenSource(Source):
    """The ``.pgen`` at ``path`` with the other two files in the same folder.

    Raises:
        InputError: one of them is missing, has no header or an invalid line, or the ``.psam`` names a person twice; there is no pgenlib.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.excluded = path, dict[str, int]()
        self.pvar, self.psam = companions(path)
        for file in (self.pvar, self.psam):
            if not file.exists():
                raise InputError(f"{file}: no such file; put the .pvar (or .pvar.zst) and the .psam of a .pgen in the same folder.")
        with path.open("rb") as opened:
            if opened.read(2) != _MAGIC:
                raise InputError(f"{path}: is not a .pgen file; convert it (plink2 --make-pgen).")
        self.samples, self.sex = _persons(self.psam)
        self.header = _Header(self.pvar)
        self.contigs = dict(self.header.contigs)
        self.alleles = [0]  # alleles before each variant, and after the last
        for _, fields in self.header.lines():
            self.contigs.setdefault(fields[0], None)
            self.alleles.append(self.alleles[-1] + fields[4].count(",") + 2)
        _pgenlib(path)

    def blocks(self, samples: Sequence[int], selection: Selection, memory_mb: int) -> Iterator[Block]:
        """As ``Source.blocks``. Regions are found by reading the whole ``.pvar``."""
        excluded: Counter[str] = Counter()
        self.excluded = excluded
        if selection.min_gq or selection.min_dp:
            raise InputError(f"{self.path}: a .pgen file has no GQ or DP; remove min_gq and min_dp from [cohort.variants].")
        people = np.fromiter(samples, dtype=np.intp, count=len(samples))
        columns = None if np.array_equal(people, np.arange(len(self.samples))) else people
        spans = merged(selection)
        check_contigs(spans, self.contigs, self.path)
        wanted = Wanted(self.path, len(self.samples), columns, selection, Inside(spans) if spans else None, excluded, self.header.contigs)
        rows = Rows(wanted, len(self.samples), max(1, min((memory_mb << 20) // 16, 2**23) // (2 * len(self.samples) + 500)))
        reader = self._reader()
        try:
            for number, fields in self.header.lines():
                if wanted.in_region is not None and not wanted.in_region(fields[0], int(fields[1])):
                    continue
                alts = [] if fields[4] == "." else fields[4].encode().split(b",")
                head = Head(fields[0], int(fields[1]), fields[2].encode(), fields[3].encode(), alts, passes(self.header.filter(fields)))
                damaged = partial(_damaged, self.pvar, fields)
                yield from rows.add(head, damaged, partial(self._read, reader, number, self.header.info(fields), len(alts), selection))
            yield from rows.last()
        finally:
            reader.close()

    def _reader(self) -> Any:
        offsets = np.array(self.alleles, np.uintp)
        several = {} if len(offsets) < 2 or (np.diff(offsets) == 2).all() else {"allele_idx_offsets": offsets}
        try:
            return _pgenlib(self.path).PgenReader(str(self.path).encode(), len(self.samples), len(self.alleles) - 1, **several)
        except RuntimeError as error:
            counts = f"{len(self.samples):,} persons in the .psam and {len(self.alleles) - 1:,} variants in the .pvar"
            what = f"cannot be read with {counts} ({str(error).strip()})"
            raise InputError(f"{self.path}: {what}; copy the three files again.") from error

    def _read(self, reader: Any, variant: int, info: bytes | None, alts: int, selection: Selection, number: int) -> Expected:
        found = np.empty(len(self.samples), np.float32)
        try:
            reader.read_dosages(variant, found, number)
            if selection.dosage == "hard":
                genotypes = np.empty(len(self.samples), np.int8)
                reader.read(variant, genotypes, number)
        except RuntimeError as error:
            raise InputError(f"{self.path}: is damaged at variant {variant + 1} ({str(error).strip()}); copy the file again.") from error
        if selection.dosage == "hard" and not np.array_equal(genotypes, found):
            raise InputError(
                f'{self.path}: has dosages with fractions; set [cohort.variants] dosage = "any" in the study for them, or "nearest" for '
                "the nearest genotypes."
            )
        stated = (
            float("nan") if info is None else next((v for name in INFO_FIELDS if (v := info_value(info, name, alts)[number - 1]) == v), 0.0)
        )
        return Expected(np.where(found < 0, np.nan, found).astype(np.float64), None, stated)


class _Header:
    """The header of a ``.pvar``: contigs with lengths, and the columns of FILTER and INFO."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.contigs: dict[str, int | None] = {}
        self.names: list[str] = []
        self.states_quality = False
        for line in _lines(path):
            if line.startswith("##contig=<"):
                entries = dict(part.partition("=")[::2] for part in line[10:].rstrip().rstrip(">").split(","))
                length = entries.get("length", "")
                self.contigs[entries.get("ID", "")] = int(length) if length.isdecimal() else None
            elif line.startswith("##INFO=<ID="):
                self.states_quality |= line[11:].split(",")[0] in INFO_FIELDS
            elif not line.startswith("##"):
                self.names = line.rstrip("\r\n").split("\t")
                break
        if tuple(self.names[:5]) != _COLUMNS:
            raise InputError(f"{path}: has no header line with #CHROM, POS, ID, REF and ALT; write the file again (plink2 --make-pgen).")

    def lines(self) -> Iterator[tuple[int, list[str]]]:
        """Number, from 0, and columns of each variant."""
        number = 0
        for line in _lines(self.path):
            if line.startswith("#"):
                continue
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) != len(self.names) or not fields[1].isdecimal():
                what = f"variant {number + 1} has {len(fields)} columns where the header has {len(self.names)}, or no position"
                raise InputError(f"{self.path}: {what}; copy the file again.")
            yield number, fields
            number += 1

    def filter(self, fields: list[str]) -> bytes:
        """FILTER of a variant; empty without the column."""
        return fields[self.names.index("FILTER")].encode() if "FILTER" in self.names else b""

    def info(self, fields: list[str]) -> bytes | None:
        """INFO of a variant; None where the header declares no imputation quality."""
        return fields[self.names.index("INFO")].encode() if self.states_quality and "INFO" in self.names else None


def _persons(path: Path) -> tuple[tuple[str, ...], Any]:
    """The ids (IID) and sexes of a ``.psam``."""
    names: list[str] = []
    people: list[list[str]] = []
    for line in _lines(path):
        if line.startswith(("#FID", "#IID")):
            names = line.lstrip("#").split()
        elif not line.startswith("#") and line.strip():
            people.append(line.split())
    if "IID" not in names or any(len(fields) < len(names) for fields in people):
        raise InputError(
            f"{path}: has no header line that begins with #FID or #IID, or a line with fewer columns; name each person by IID."
        )
    ids = [fields[names.index("IID")] for fields in people]
    twice = next((name for name, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise InputError(f'{path}: names the person "{twice}" twice; name each person once.')
    if not ids:
        raise InputError(f"{path}: names no person; copy the file again.")
    sexes = [fields[names.index("SEX")] for fields in people] if "SEX" in names else ["0"] * len(ids)
    return tuple(ids), np.array([{"1": 1, "M": 1, "2": 2, "F": 2}.get(sex, 0) for sex in sexes], np.int8)


def _lines(path: Path) -> Iterator[str]:
    try:
        if path.suffix != ".zst":
            with path.open(encoding="utf-8") as file:
                yield from file
            return
        import pyarrow as pa

        with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
            yield from io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8; save it as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); copy the file again.") from error


def _pgenlib(path: Path) -> Any:
    try:
        import pgenlib
    except ImportError as error:
        raise InputError(f'{path}: .pgen files need pgenlib, which is not installed; run pip install "fedml-cohorts[pgen]".') from error
    return pgenlib


def _damaged(path: Path, fields: list[str], what: str, advice: str) -> InputError:
    return InputError(f"{path}: the variant at {fields[0]}:{fields[1]} {what}; {advice}.")
