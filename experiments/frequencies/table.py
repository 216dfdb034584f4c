"""Reads a table of allele frequencies (``fedml.strategies.frequencies.table``) through its index, a region at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedml.errors import InputError
from fedml.runs.log import FREQUENCIES_TABLE
from fedml.strategies.frequencies.table import FIXED, NUMBERS, VERSION

_SHOWN = {"": "Total", "XY": "XY", "XX": "XX"}
LONGEST_ALLELE = 1_000  # letters; longer ones are not read at the sites


class Counts(NamedTuple):
    """One group's numbers of one variant; ``homozygotes`` None: not told."""

    population: str
    ac: int
    an: int
    af: float
    homozygotes: int | None
    hemizygotes: int


class Row(NamedTuple):
    """One variant. ``position`` is 1-based; ``groups``: of those whose numbers are told."""

    chromosome: str
    position: int
    rsid: str
    ref: str
    alt: str
    groups: tuple[Counts, ...]


@dataclass(frozen=True)
class Table:
    """An open table: what its header says, and its rows by region. ``chromosomes``: those that it has."""

    about: dict[str, Any]
    groups: tuple[str, ...]
    chromosomes: frozenset[str]
    file: Any

    @property
    def build(self) -> str:
        """Of its positions."""
        return str(self.about["build"])

    def rows(self, chromosome: str, start: int, end: int) -> Iterator[Row]:
        """The variants whose first base, or a base of whose REF, may be in the 0-based half-open interval; also some beside it."""
        if chromosome not in self.chromosomes:
            return
        for line in self.file.fetch(chromosome, max(0, start - LONGEST_ALLELE), max(end, start) + 1):
            yield self._row(line)

    def _row(self, line: str) -> Row:
        cells = line.split("\t")
        chromosome, position, rsid, ref, alt = cells[: len(FIXED)]
        found, width = [], len(NUMBERS)
        for place, name in enumerate(self.groups):
            ac, an, af, homozygotes, hemizygotes, _, _ = cells[len(FIXED) + place * width : len(FIXED) + (place + 1) * width]
            if ac != ".":
                known = None if homozygotes == "." else int(homozygotes)
                found.append(Counts(shown(name), int(ac), int(an), float(af), known, int(hemizygotes)))
        return Row(chromosome, int(position), rsid, ref, alt, tuple(found))


def shown(name: str) -> str:
    """A group's name for a reader, from the ending of its columns: ``Total``, ``XX``, ``AFR``, ``AFR_XX``."""
    bare = name.removeprefix("_")
    return _SHOWN.get(bare, bare)


def open_table(path: Path) -> Table:
    """The table of a run's folder, or the file itself.

    Raises:
        InputError: it is not there, has no index, or is not such a table.
    """
    import pysam

    file = path / FREQUENCIES_TABLE if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: is not there; give the folder of a run of `fedml frequencies`, or its {FREQUENCIES_TABLE}.")
    if not file.with_name(file.name + ".tbi").is_file():
        raise InputError(f"{file}: has no index {file.name}.tbi; run fedml frequencies again, or tabix -s 1 -b 2 -e 2 {file.name}.")
    try:
        opened = pysam.TabixFile(str(file))
        header = list(opened.header)
        about = dict(line.removeprefix("##").split("=", 1) for line in header if line.startswith("##"))
        values = {key: json.loads(value) for key, value in about.items()}
        groups = tuple(str(name) for name in values["groups"])
        columns = header[-1].removeprefix("#").split("\t")
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{file}: is not a table of fedml frequencies ({type(error).__name__}); run fedml frequencies.") from error
    wanted = [*FIXED, *(f"{number}{name}" for name in groups for number in NUMBERS)]
    if values.get("fedml_frequencies") != VERSION or columns != wanted:
        raise InputError(f"{file}: is a table of another version, or not of fedml frequencies; run fedml frequencies again.")
    return Table(values, groups, frozenset(opened.contigs), opened)
