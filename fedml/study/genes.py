"""Reads genes as intervals from GFF3, GTF or BED files.

GFF3: github.com/The-Sequence-Ontology/Specifications, version 1.26. GTF: version 2.2 as written by Ensembl and GENCODE. BED: GA4GH BED
v1.0, with 0-based starts. Files may be gzip or bgzip. The genome build must be that of the variants; the files do not state their build.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from fedml.errors import InputError
from fedml.study import limits
from fedml.study.contigs import canonical_contig
from fedml.text import numbered_lines

BETWEEN = "between genes"


_PAIR = re.compile(r'\s*([\w.-]+)\s+(?:"([^"]*)"|([^\s;"]+))\s*(?:;|$)')


_NAMES = ("Name", "gene_name", "gene", "gene_id", "ID")  # the first attribute that is present is the gene's name


_BIOTYPES = ("gene_biotype", "gene_type", "biotype")


_GENES = frozenset({"gene", "ncRNA_gene", "pseudogene"})  # Sequence Ontology terms for genes, as used by Ensembl and NCBI


_REFSEQ = re.compile(r"NC_0000(\d\d)\.\d+")


_MITOCHONDRION = "NC_012920"


_SHIFT = 33  # positions are below 2^33: contig number x 2^33 + position orders all contigs at once


class Interval(NamedTuple):
    """A gene from ``start`` to ``end``, both 1-based and inclusive, on the canonical contig."""

    contig: str
    start: int
    end: int
    name: str


def read_genes(path: Path, biotype: str = "") -> tuple[Interval, ...]:
    """The genes of a GFF3, GTF or BED file, sorted by contig, start and end.

    GFF3 and GTF: gene features; in a GTF without gene features (UCSC), the span of all features with one gene_id on a contig. BED: every
    line, named by its fourth column.

    Args:
        biotype: only genes of this biotype (``protein_coding``); "": all genes.

    Raises:
        InputError: the file cannot be read, its extension is unknown, a line is invalid, or the file has no such gene.
    """
    ending = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    readers: dict[str, Callable[[Path, str], Iterable[Interval]]] = {"gff3": _gff3, "gff": _gff3, "gtf": _gtf, "bed": _bed}
    if ending not in readers:
        raise InputError(f"{path}: unknown extension; genes are read from .gff3, .gtf or .bed, plain or .gz: rename or convert the file.")
    found = list(islice(readers[ending](path, biotype), limits.GENES + 1))
    if len(found) > limits.GENES:
        raise InputError(f"{path}: has more than {limits.GENES:,} genes, the limit of a study; give a file with fewer.")
    genes = tuple(sorted(found))
    if not genes:
        raise InputError(f"{path}: has no gene{f' of the biotype {biotype}' if biotype else ''}; give a gene annotation.")
    return genes


def _contig(name: str) -> str:
    """The canonical contig, also for NCBI's accessions of chromosomes."""
    accession = _REFSEQ.fullmatch(name)
    return canonical_contig(str(int(accession[1])) if accession else "MT" if name.startswith(_MITOCHONDRION) else name)


def _interval(path: Path, number: int, contig: str, start: str, end: str, name: str, shift: int = 0) -> Interval:
    """The interval of a line; ``shift``: added to its start to make it 1-based."""
    if not (start.isdecimal() and end.isdecimal() and 1 <= int(start) + shift <= int(end) < 2**_SHIFT and contig and name):
        raise InputError(
            f'{path}, line {number}: "{contig} {start} {end} {name}" is not a valid interval with a name; correct or delete the line.'
        )
    return Interval(_contig(contig), int(start) + shift, int(end), name)


def _bed(path: Path, biotype: str) -> Iterable[Interval]:
    if biotype:
        raise InputError(f"{path}: a BED file does not state biotypes; give a GFF3 or GTF file to select genes by biotype.")
    for number, line in numbered_lines(path, limits.GENE_BYTES):
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) < 3:
            raise InputError(f"{path}, line {number}: has {len(cells)} columns, a BED line has at least three; correct or delete the line.")
        contig, start, end = cells[:3]
        yield _interval(path, number, contig, start, end, cells[3].strip() if len(cells) > 3 else f"{contig}:{start}-{end}", 1)


def _features(path: Path) -> Iterable[tuple[int, list[str]]]:
    """(line number, the nine columns) of each line of a GFF3 or GTF, up to a FASTA section."""
    for number, line in numbered_lines(path, limits.GENE_BYTES):
        if line.startswith("##FASTA"):
            return
        if not line.strip() or line.startswith("#"):
            continue
        cells = line.split("\t")
        if len(cells) != 9:
            raise InputError(
                f"{path}, line {number}: has {len(cells)} columns, GFF3 and GTF have nine, separated by tabs; correct the line."
            )
        yield number, cells


def _first(attributes: dict[str, str], names: Sequence[str]) -> str:
    return next((attributes[name] for name in names if attributes.get(name)), "")


def _gff3(path: Path, biotype: str) -> Iterable[Interval]:
    for number, cells in _features(path):
        if cells[2] not in _GENES:
            continue
        pairs = (pair.partition("=") for pair in cells[8].split(";"))
        attributes = {key.strip(): unquote(value.strip()) for key, _, value in pairs}
        if not biotype or _first(attributes, _BIOTYPES) == biotype:
            name = _first(attributes, _NAMES).removeprefix("gene:")
            yield _interval(path, number, unquote(cells[0]), cells[3], cells[4], name)


def _gtf(path: Path, biotype: str) -> Iterable[Interval]:
    spans: dict[tuple[str, str], Interval] = {}
    genes, whole = list[Interval](), False
    for number, cells in _features(path):
        is_gene = cells[2] == "gene"
        if whole and not is_gene:
            continue
        whole |= is_gene
        attributes = {key: quoted or bare for key, quoted, bare in _PAIR.findall(cells[8])}
        if biotype and _first(attributes, _BIOTYPES) != biotype:
            continue
        found = _interval(path, number, cells[0], cells[3], cells[4], _first(attributes, _NAMES[1:]))
        if is_gene:
            genes.append(found)
        else:
            key = found.contig, attributes.get("gene_id", found.name)
            before = spans.get(key, found)
            spans[key] = found._replace(start=min(before.start, found.start), end=max(before.end, found.end))
    return genes if whole else spans.values()
