"""VCF (bgzip or plain text) and BCF files as a source of variants, read in blocks with bounded memory.

    source = open_vcf(Path("cohort.vcf.gz"))
    for block in source.blocks(range(100), Selection(regions=("22:17000000-18000000",)), memory_mb=256): ...

``vcf_text.py`` parses text, ``bcf.py`` parses BCF; htslib (pysam) reads headers and finds regions of text through the index. A record
belongs to a region if its POS lies within the region; a record that begins before the region and overlaps it does not.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, final

import numpy as np

from fedml.cohort.variants import bcf, vcf_text
from fedml.cohort.variants.bgzf import check_whole, find_index, inflated, whole_lines
from fedml.cohort.variants.model import Block, Selection, Source
from fedml.cohort.variants.records import Wanted
from fedml.cohort.variants.regions import TO_THE_END, Inside, Spans, check_contigs, merged
from fedml.cohort.variants.stale import check_index
from fedml.cohort.variants.vcf_fields import FIELDS, check_declared, dosage_field
from fedml.errors import InputError
from fedml.quiet import told
from fedml.study.contigs import canonical_contig


@final
class VcfSource(Source):
    """A VCF or BCF file whose header is ``header`` (pysam). ``fast``: if False, text genotypes are parsed call by call (for tests)."""

    def __init__(self, path: Path, header: Any, binary: bool, bgzip: bool, lines: int) -> None:
        self.path, self.header, self.binary, self.bgzip, self.lines = path, header, binary, bgzip, lines
        self.samples = tuple(header.samples)
        self.contigs = {name: header.contigs[name].length for name in header.contigs}
        self.excluded: dict[str, int] = {}
        self.fast = True

    def blocks(self, samples: Sequence[int], selection: Selection, memory_mb: int) -> Iterator[Block]:
        """As ``Source.blocks``. Regions of a bgzip or BCF file need its index; a plain text file is read from start to end.

        Raises:
            InputError: as ``Source.blocks``, or a line is longer than an eighth of ``memory_mb``.
        """
        spans = merged(selection)
        inside = Inside(spans)
        field, info, formats = "", "", self.header.formats
        if selection.asked:
            field = dosage_field(selection.dosage, formats, self.path) if selection.fractions else ""
            info = check_declared(selection, formats, self.header.info, self.path)
        if self.binary and not field and "GT" not in formats:  # in text FORMAT names it too
            raise InputError(f"{self.path}: the header declares no FORMAT field GT; give a file with genotypes.")
        if self.bgzip and spans:
            check_contigs(spans, [*self.contigs, *self._index_contigs()], self.path)
        excluded: Counter[str] = Counter()
        self.excluded = excluded
        chosen = np.fromiter(samples, dtype=np.intp, count=len(samples))
        columns = None if np.array_equal(chosen, np.arange(len(self.samples))) else chosen
        size = min(2**20, (memory_mb << 20) // 32)
        wanted = Wanted(
            self.path, len(self.samples), columns, selection, inside if spans else None, excluded, self.contigs,
            fast=self.fast, declared=bool(field) or "GT" in self.header.formats, field=field, info=info,
        )  # fmt: skip
        parts = self._parts(wanted, spans, size, (memory_mb << 20) // 8)
        yield from (block for block in parts if block is not None)
        if spans and not self.bgzip:
            check_contigs(spans, [*self.contigs, *inside.seen], self.path)

    def _parts(self, wanted: Wanted, spans: Spans, size: int, longest: int) -> Iterator[Block | None]:
        if self.binary:
            yield from bcf.parse(self.path, self.header, wanted, spans, size, longest)
        elif self.bgzip and spans:
            for text in self._indexed_text(spans, size):
                yield vcf_text.parse(text, wanted)
        else:
            header, wanted.line = self.lines, self.lines + 1
            for text in whole_lines(inflated(self.path), self.path, size, longest):
                at = 0
                while header and at < len(text):
                    at = text.find(b"\n", at) + 1 or len(text)
                    header -= 1
                yield vcf_text.parse(text[at:] if at else text, wanted)

    def _index_contigs(self) -> list[str]:
        """The contigs in the index, in file order. Raises if the index is another file's."""
        if self.binary:
            names = {header.id: header.name.encode() for header in self.header.contigs.values()}
            check_index(self.path, find_index(self.path, ".csi"), names)
            return []  # a BCF header lists every contig
        check_index(self.path, find_index(self.path, ".tbi", ".csi"), None)
        with _tabix(self.path) as index:
            return list(index.contigs)

    def _indexed_text(self, spans: Spans, size: int) -> Iterator[bytes]:
        """Lines whose POS lies in the spans, found through the index, in runs of about ``size`` bytes."""
        with _tabix(self.path) as index:
            try:
                buffer: list[bytes] = []
                length = 0
                for contig in index.contigs:
                    for first, last in spans.get(canonical_contig(contig), ()):
                        for line in index.fetch(contig, first - 1, None if last >= TO_THE_END else last):
                            if not first <= int(line.split("\t", 2)[1]) <= last:
                                continue  # begins before the span and overlaps it: it could be returned for two spans
                            buffer.append(line.encode("latin-1"))
                            length += len(line)
                            if length >= size:
                                yield b"\n".join([*buffer, b""])
                                buffer, length = [], 0
                if buffer:
                    yield b"\n".join([*buffer, b""])
            except (OSError, ValueError) as error:
                what = f"is damaged, or its index belongs to another file ({told(error)})"
                raise InputError(f"{self.path}: {what}; copy the file again and index it (bcftools index).") from error


def open_vcf(path: Path) -> VcfSource:
    """The source of a VCF (``.vcf``, bgzipped or not) or BCF file; the content decides which of them it is.

    Raises:
        InputError: the file is truncated, is gzip but not bgzip, has no valid header or two of them, or names no sample or a sample
            twice; or a BCF file declares no GT.
    """
    import pysam

    pysam.set_verbosity(0)  # otherwise htslib writes to stderr what the InputError already says
    bgzip = check_whole(path)
    pieces = inflated(path)
    start = next(pieces, b"")
    binary = start[:3] == b"BCF"
    text = bcf.header_text(start, pieces, path) if binary else _header_text(start, pieces, path)
    names = text.rstrip(b"\r\n").rpartition(b"\n")[2].rstrip(b"\r")
    if not text.startswith(b"##fileformat=VCF") or not names.startswith(b"#CHROM\t"):
        raise InputError(_no_header(path, binary))
    if text.count(b"\n#CHROM\t") > 1:
        number = text[: text.rindex(b"\n#CHROM\t")].count(b"\n") + 2
        raise InputError(f"{path}: line {number} is a second header line (#CHROM); join two files with bcftools concat, else delete it.")
    samples = names.split(b"\t")[9:]
    if not samples:
        raise InputError(f"{path}: the header names no sample; give a file with genotypes.")
    twice = next((name for name, count in Counter(samples).items() if count > 1), None)
    if twice is not None:
        raise InputError(f'{path}: the header names the sample "{twice.decode(errors="replace")}" twice; name each person once.')
    try:
        with pysam.VariantFile(str(path)) as file:
            header = file.header
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise InputError(_no_header(path, binary)) from error
    if binary and not {"GT", *FIELDS} & set(header.formats):
        raise InputError(f"{path}: the header declares no FORMAT field GT; give a file with genotypes.")
    return VcfSource(path, header, binary, bgzip, len(text.splitlines()))


def _no_header(path: Path, binary: bool) -> str:
    """The error of a file without a valid header. bcftools, with ``reheader`` too, refuses such a file, so the header is put before it."""
    if binary:
        return f"{path}: has no valid BCF header; export the file again."
    return (
        f"{path}: has no valid VCF header, and bcftools cannot read the file either; put the header of another file of the same samples, "
        f"in the same order, before its records: (bcftools view -h OTHER.vcf.gz; zgrep -v '^#' {quote(str(path))}) | bgzip > NEW.vcf.gz, "
        "where OTHER.vcf.gz is that file."
    )


def _header_text(start: bytes, pieces: Iterator[bytes], path: Path) -> bytes:
    """The header lines of a VCF, which begin with ``#``."""
    text, end = bytearray(), 0  # end: offset after the last complete header line
    for piece in itertools.chain([start], pieces):
        text += piece
        while text.startswith(b"#", end) and (stop := text.find(b"\n", end)) >= 0:
            end = stop + 1
        if not text.startswith(b"#", end) and end < len(text):
            return bytes(text[:end])
    return bytes(text)


def _tabix(path: Path) -> Any:
    """The opened index of a bgzipped VCF; a context manager.

    Raises:
        InputError: the index is missing or cannot be read.
    """
    import pysam

    index = find_index(path, ".tbi", ".csi")
    try:
        return pysam.TabixFile(str(path), index=str(index), encoding="latin-1")
    except (OSError, ValueError) as error:
        raise InputError(f"{index}: cannot be read as an index; rebuild it (bcftools index -f {path}).") from error
