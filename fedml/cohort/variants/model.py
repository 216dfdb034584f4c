"""Variants of persons, whatever file they are in: one interface, a format a file (``vcf.py``, ``plink.py``).

    source = open_source(Path("cohort.vcf.gz"))          # header only: samples, contigs
    for block in source.blocks(range(100), Selection(regions=("22:17000000-18000000",)), memory_mb=256):
        block.keys, block.dosage                         # (variants,), (variants, 100) int8

A dosage is the number of ALT alleles that a person carries (0, 1, 2; a haploid call 0 or 1; more only where ploidy is above 2), -1 where
any of the person's alleles is missing. In PLINK files A1 is taken as ALT. A record with several ALT alleles becomes as many variants.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.inputs import Rows, content_of
from fedml.errors import InputError
from fedml.study.contigs import canonical_contig

if TYPE_CHECKING:
    import torch

    from fedml.cohort.variants.packed import Packed

MISSING = -1
LONGEST_ALLELE = 1000  # letters; a longer REF or ALT is left out and counted: it cannot be compared between sites in a key


class Variant(NamedTuple):
    """One ALT allele at one place. ``position`` is 1-based; ``contig`` as in the file, or canonical (``canonical_contig``)."""

    contig: str
    position: int
    id: str
    ref: str
    alt: str


class Block(NamedTuple):
    """Neighbouring variants of a file: ``keys`` (variants,) and ``dosage`` (variants, samples) int8, variant after variant in memory."""

    keys: tuple[Variant, ...]
    dosage: npt.NDArray[np.int8]


@dataclass(frozen=True)
class Selection:
    """Which variants are wanted: all of them, those in ``regions``, those ``listed``; with both, those that are in both.

    ``regions``: ``22`` or ``22:17000000-18000000``, 1-based, both ends included, contigs by their canonical name. ``listed``: an rsID, or
    ``contig:position:ref:alt`` with the canonical contig.
    """

    regions: tuple[str, ...] = ()
    listed: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.regions or self.listed)

    def spans(self) -> list[tuple[str, int, int]]:
        """(canonical contig, first, last) of each region; last is 2**31 - 1 where none is given.

        Raises:
            InputError: a region is not of that form.
        """
        out = []
        for text in self.regions:
            found = re.fullmatch(r"([A-Za-z0-9._-]+)(?::([\d,]+)-([\d,]+))?", text)
            if found is None:
                raise InputError(f'region "{text}" is not of the form 22 or 22:17000000-18000000; correct [cohort.variants] regions.')
            contig, first, last = found.groups()
            begin, end = (int(n.replace(",", "")) for n in (first or "1", last or str(2**31 - 1)))
            if begin > end:
                raise InputError(f'region "{text}" ends before it begins; correct [cohort.variants] regions.')
            out.append((canonical_contig(contig), begin, end))
        return out

    def wants(self, key: Variant) -> bool:
        """Is ``key`` among those listed (or is nothing listed)? Regions are the reader's work."""
        if not self.listed:
            return True
        return key.id in self.listed or f"{canonical_contig(key.contig)}:{key.position}:{key.ref}:{key.alt}" in self.listed


class Source(ABC):
    """A genotype file, opened: its header is read, its genotypes are not. ``left_out`` counts variants that were passed over, by reason,
    once ``blocks`` has been read."""

    path: Path
    samples: tuple[str, ...]
    contigs: dict[str, int | None]  # as the header names them, with their length where it says so
    left_out: dict[str, int]

    @abstractmethod
    def blocks(self, samples: Sequence[int], selection: Selection, memory_mb: int) -> Iterator[Block]:
        """The wanted variants of the samples with these indices, in that order, block by block in the file's order.

        Args:
            memory_mb: about how much memory reading may take, whatever the file's size.

        Raises:
            InputError: the file is damaged, has no index where a region is asked for, or lacks a region's contig.
        """


@dataclass(frozen=True)
class Dosages:
    """``dosage`` (persons, variants) int8, an array or a packed table, with ``keys`` (variants); ``present`` (persons,): has the person any
    genotype row?

    ``notes``: what was done to the file's variants (``fedml.cohort.variants.normalise.NOTES``); ``build`` of the positions; ``checked``:
    their REF was held against a reference.
    """

    keys: tuple[Variant, ...]
    dosage: npt.NDArray[np.int8] | Packed
    present: npt.NDArray[np.bool_]
    notes: npt.NDArray[np.int64] | None = None
    build: str = ""
    checked: bool = False
    places: dict[str, dict[Any, int]] = field(default_factory=dict, init=False, repr=False, compare=False)  # kept by ``panel.align``

    def has(self, persons: int) -> npt.NDArray[np.bool_]:
        """(persons,): who has genotypes."""
        return self.present

    def tensors(self, rows: Rows, draw: torch.Generator | None) -> dict[str, Any]:
        """``variants``: (persons, variants) ALT dosages, int8 or float32, -1 where missing."""
        import torch

        return {"variants": torch.from_numpy(self.dosage[rows] if isinstance(self.dosage, np.ndarray) else self.dosage.floats(rows))}

    def select(self, rows: Rows) -> Dosages:
        """The dosages of the persons in ``rows`` (ascending)."""
        dosage = self.dosage[rows] if isinstance(self.dosage, np.ndarray) else self.dosage.take(rows)
        return replace(self, dosage=dosage, present=self.present[rows])

    def content(self) -> dict[str, bytes]:
        """Dosages, and the keys of the variants as text."""
        return {"variants": content_of(self.dosage), "variant_keys": to_text(self.keys)}


def to_text(keys: Sequence[Variant]) -> bytes:
    """Keys as tab-separated lines, as they cross the wire and stand beside a saved model."""
    return "".join(f"{k.contig}\t{k.position}\t{k.id}\t{k.ref}\t{k.alt}\n" for k in keys).encode()


def from_text(text: bytes) -> tuple[Variant, ...]:
    """The inverse of ``to_text``.

    Raises:
        ValueError: a line does not have the five fields, or the position is no number.
    """
    lines = text.decode().removesuffix("\n").split("\n") if text else []  # not splitlines: an id may hold what it takes for a line's end
    fields = (line.split("\t") for line in lines)
    return tuple(Variant(intern(contig), int(position), id_, ref, alt) for contig, position, id_, ref, alt in fields)
