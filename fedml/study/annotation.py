"""The annotation of variants with genes and consequences: a file next to the study, of which the study holds the SHA-256.

    sha256 = provide(Path("annotation.tsv"))             # when the study is read; the file is checked, and known in this process
    write_annotation(study, run)                         # into the run's folder, for the ServerApp
    rows = annotation_of(study, run)                     # [Effect("rs1", "BRCA2", {"stop_gained"}), ...]

A table has the columns variant (rsID or contig:position:ref:alt), gene and consequence (several joined by ``&`` or ``,``); a variant may
have several rows. A VCF file has them in INFO: ``CSQ`` of Ensembl's VEP, or ``ANN`` of SnpEff (Annotation 1.0 of 2015). Both may be gzip.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fedml.errors import InputError
from fedml.study.contigs import canonical_contig
from fedml.study.study import Study
from fedml.text import numbered_lines

FILE = "annotation"  # in a run's folder
LARGEST = 2**32  # bytes, unpacked
_COLUMNS = ("variant", "gene", "consequence")
_ANN = ("Allele", "Annotation", "Annotation_Impact", "Gene_Name")
_FORMAT = re.compile(r"Format: ([\w|. /-]+)")
_KNOWN: dict[str, Path] = {}  # SHA-256 -> file


class Effect(NamedTuple):
    """One variant (an rsID, or ``contig:position:ref:alt`` with the canonical contig) in one gene."""

    variant: str
    gene: str
    consequences: frozenset[str]


def provide(path: Path) -> str:
    """The SHA-256 of the annotation ``path``; this process knows the file from now on.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); [gwas.genes] file gives its path.") from error
    _KNOWN[digest] = path.resolve()
    return digest


def write_annotation(study: Study, run: Path) -> None:
    """Copies the annotation of the study, if it has one, into the folder ``run``.

    Raises:
        InputError: the file is not here, or has changed since the study was read.
    """
    if study.gwas is None or study.gwas.genes is None:
        return
    sha256 = study.gwas.genes.sha256
    if sha256 not in _KNOWN:
        raise InputError(
            f"the annotation with SHA-256 {sha256[:12]}.. is not here; put it beside the study, and give its name as [gwas.genes] file."
        )
    shutil.copyfile(_KNOWN[sha256], run / FILE)
    _check(run / FILE, sha256)


def annotation_of(study: Study, run: Path) -> list[Effect]:
    """The effects in the annotation of the study, from the folder ``run``, in the file's order.

    Raises:
        InputError: the file is not there, is another one, or cannot be read as an annotation.
    """
    assert study.gwas is not None and study.gwas.genes is not None  # noqa: S101, PT018 - the command has checked
    _check(run / FILE, study.gwas.genes.sha256)
    return list(read_annotation(run / FILE))


def _check(path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); the run's folder holds the study's annotation.") from error
    if found != sha256:
        raise InputError(f"{path}: has SHA-256 {found[:12]}.., the study's annotation has {sha256[:12]}..; start the run again.")


def read_annotation(path: Path) -> Iterator[Effect]:
    """The effects of a file, in its order.

    Raises:
        InputError: the file is no table with the three columns and no VCF file with CSQ or ANN, or a line is not of its form.
    """
    lines = numbered_lines(path, LARGEST)
    _, first = next(lines, (0, ""))
    yield from _vcf(path, lines) if first.startswith("##fileformat=VCF") else _table(path, first, lines)


def _table(path: Path, header: str, lines: Iterator[tuple[int, str]]) -> Iterator[Effect]:
    names = header.removeprefix("#").split("\t")
    if any(name not in names for name in _COLUMNS):
        raise InputError(
            f"{path}: the first line has the columns {', '.join(names[:8])}; an annotation has {', '.join(_COLUMNS)}, separated by tabs, "
            "or is a VCF file with CSQ or ANN."
        )
    at = [names.index(name) for name in _COLUMNS]
    for number, line in lines:
        cells = line.split("\t")
        if not line.strip():
            continue
        if len(cells) != len(names) or not all(cells[i].strip() for i in at):
            raise InputError(f"{path}, line {number}: variant, gene or consequence is missing; correct the line.")
        variant, gene, consequence = (cells[i].strip() for i in at)
        yield Effect(_variant(path, number, variant), gene, frozenset(re.split("[&,]", consequence)))


def _variant(path: Path, number: int, text: str) -> str:
    parts = text.split(":")
    if len(parts) == 1:
        return text
    if len(parts) != 4 or not parts[1].isdecimal():
        raise InputError(f'{path}, line {number}: variant "{text[:80]}" is no rsID and not contig:position:ref:alt; correct it.')
    return f"{canonical_contig(parts[0])}:{int(parts[1])}:{parts[2].upper()}:{parts[3].upper()}"


class _Fields(NamedTuple):
    """Places in an entry of CSQ or ANN; ``number``: of the ALT allele, from 1; -1 where there is none."""

    key: str
    allele: int
    consequence: int
    gene: int
    number: int


def _fields(path: Path, header: list[str]) -> _Fields:
    for line in header:
        if line.startswith("##INFO=<ID=ANN,"):
            return _Fields("ANN", 0, 1, 3, -1)
        if line.startswith("##INFO=<ID=CSQ,") and (found := _FORMAT.search(line)):
            names = found[1].split("|")
            gene = "SYMBOL" if "SYMBOL" in names else "Gene"
            if {"Allele", "Consequence", gene} <= set(names):
                number = names.index("ALLELE_NUM") if "ALLELE_NUM" in names else -1
                return _Fields("CSQ", names.index("Allele"), names.index("Consequence"), names.index(gene), number)
    raise InputError(f"{path}: its header declares neither CSQ with Allele, Consequence and SYMBOL or Gene (VEP), nor ANN (SnpEff).")


def _vcf(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[Effect]:
    header, fields = list[str](), None
    for number, line in lines:
        if line.startswith("#"):
            header.append(line)
            continue
        fields = fields or _fields(path, header)
        cells = line.split("\t")
        if len(cells) < 8 or not cells[1].isdecimal():
            raise InputError(
                f"{path}, line {number}: has {len(cells)} columns, a record of a VCF file has at least eight; correct the line."
            )
        contig, position, ref, alts = canonical_contig(cells[0]), int(cells[1]), cells[3].upper(), cells[4].upper().split(",")
        text = next((part[4:] for part in cells[7].split(";") if part.startswith(f"{fields.key}=")), "")
        for entry in filter(None, text.split(",")):
            values = entry.split("|")
            if len(values) <= max(fields.allele, fields.consequence, fields.gene, fields.number):
                raise InputError(
                    f"{path}, line {number}: an entry of {fields.key} has {len(values)} fields, too few; annotate the file anew."
                )
            alt = _alt(fields, values, alts)
            if alt is None:
                raise InputError(
                    f"{path}, line {number}: the entry of {fields.key} for allele {values[fields.allele][:40]} could be of several "
                    "ALT alleles; split such records before annotation (bcftools norm -m-), or give VEP --allele_number."
                )
            if values[fields.gene]:
                consequences = frozenset(values[fields.consequence].split("&"))
                yield Effect(f"{contig}:{position}:{ref}:{alt}", values[fields.gene], consequences)


def _alt(fields: _Fields, values: list[str], alts: list[str]) -> str | None:
    """The ALT allele that an entry is about; None if it cannot be told."""
    if len(alts) == 1:
        return alts[0]
    if fields.number >= 0 and values[fields.number].isdecimal() and 1 <= int(values[fields.number]) <= len(alts):
        return alts[int(values[fields.number]) - 1]
    allele = values[fields.allele].upper()
    return allele if allele in alts and len({len(alt) for alt in alts}) == 1 else None
