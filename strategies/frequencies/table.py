"""``frequencies.tsv.gz``: allele counts and frequencies of each variant, by population and sex; bgzipped, with a tabix index.

Lines that begin with ``##`` say what the table is of; the line of columns begins with ``#chrom``. Positions are 1-based, alleles as in the
panel; ``AC``, ``AN``, ``AF``, ``nhomalt``, ``nhemi`` as gnomAD names them. ``sites`` and ``withheld``: how many sites' numbers are in the
sum, and how many have the variant and withhold the group's. ``.``: not told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.cells import AC, AN, HEMIZYGOTES, HOMOZYGOTES
from fedml.cohort.variants.frequency import Counts
from fedml.cohort.variants.keys import Variant
from fedml.study.contigs import canonical_contig
from fedml.study.study import Study
from fedml.text import printable

FIXED = ("chrom", "pos", "rsid", "ref", "alt")
NUMBERS = ("AC", "AN", "AF", "nhomalt", "nhemi", "sites", "withheld")
VERSION = 1
_RANK = {name: rank for rank, name in enumerate([*map(str, range(1, 23)), "X", "PAR", "Y", "MT"])}


class Rows(NamedTuple):
    """Of variants: ``counts`` (groups, 4, variants), and over how many ``sites`` each is, and at how many it is ``withheld`` (groups,
    variants)."""

    counts: Counts
    sites: npt.NDArray[np.int64]
    withheld: npt.NDArray[np.int64]

    def of(self, kept: npt.NDArray[np.bool_]) -> Rows:
        """The variants ``kept`` (variants,)."""
        return Rows(self.counts[..., kept], self.sites[:, kept], self.withheld[:, kept])


def chromosome(contig: str) -> str:
    """The name of a contig in the table; the pseudoautosomal regions have positions of X."""
    name = canonical_contig(contig)
    return "X" if name == "PAR" else name


def table_order(keys: Sequence[Variant]) -> npt.NDArray[np.int64]:
    """(variants,): the variants by chromosome, position and alleles."""

    def place(at: int) -> tuple[int, str, int, str, str]:
        key = keys[at]
        name = chromosome(key.contig)
        return _RANK.get(name, len(_RANK)), name, key.position, key.ref, key.alt

    return np.array(sorted(range(len(keys)), key=place), np.int64)


class Writer:
    """Writes the table row by row; the finished file and its index appear together when it is closed without an error. Final."""

    def __init__(self, path: Path, study: Study, build: str, sites: Sequence[str]) -> None:
        import pysam

        assert study.frequencies is not None  # noqa: S101
        self.path, self._part = path, path.with_name(f".{path.name}.part.gz")
        names = study.frequencies.names()
        about = {
            "fedml_frequencies": VERSION, "build": build, "study": study.study.name, "study_sha256": study.sha256,
            "question": study.study.question, "sites": list(sites), "groups": names, "population": study.frequencies.population,
        }  # fmt: skip
        self._file = pysam.BGZFile(str(self._part), "wb")
        columns = [*FIXED, *(f"{number}{name}" for name in names for number in NUMBERS)]
        lines = [f"##{key}={json.dumps(value)}" for key, value in about.items()]
        self._file.write(("\n".join([*lines, "#" + "\t".join(columns)]) + "\n").encode())

    def write(self, keys: Sequence[Variant], rows: Rows) -> None:
        """Adds the rows of ``keys``, in the table's order."""
        frequency = rows.counts[:, AC] / np.maximum(rows.counts[:, AN], 1)
        lines = []
        for at, key in enumerate(keys):
            cells = [
                chromosome(key.contig),
                str(key.position),
                printable(key.id).replace(" ", "_") or ".",
                key.ref.upper(),
                key.alt.upper(),
            ]
            for group in range(len(rows.counts)):
                counts, sites, withheld = rows.counts[group, :, at], rows.sites[group, at], rows.withheld[group, at]
                if sites:
                    homozygotes = "." if counts[HOMOZYGOTES] < 0 else str(counts[HOMOZYGOTES])
                    own = [str(counts[AC]), str(counts[AN]), f"{frequency[group, at]:.6g}", homozygotes, str(counts[HEMIZYGOTES])]
                else:
                    own = ["."] * 5
                cells += [*own, str(sites), str(withheld)]
            lines.append("\t".join(cells))
        if lines:
            self._file.write(("\n".join(lines) + "\n").encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import pysam

        self._file.close()
        if kind is not None:
            self._part.unlink(missing_ok=True)
            return
        pysam.tabix_index(str(self._part), force=True, seq_col=0, start_col=1, end_col=1, meta_char="#")
        os.replace(f"{self._part}.tbi", f"{self.path}.tbi")
        os.replace(self._part, self.path)
