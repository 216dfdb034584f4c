"""Genotypes of persons, independent of the file format: one interface (``Source``), one file per format (``vcf.py``, ``plink.py``).

    source = open_source(Path("cohort.vcf.gz"))          # header only: samples, contigs
    for block in source.blocks(range(100), Selection(regions=("22:17000000-18000000",)), memory_mb=256):
        block.keys, block.dosage                         # (variants,), (variants, 100) int8

A dosage is the number of ALT alleles that a person carries (0, 1, 2; more only where ploidy is above 2), or -1 where any of the person's
alleles is missing. On X, Y and MT a haploid call is 0 or 2, as PLINK writes it (``ploidy.py``); elsewhere, where nobody should have one, it
is 0 or 1. In PLINK files A1 is taken as ALT. A record with several ALT alleles is split into one variant per
ALT allele.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.inputs import Rows, content_of
from fedml.cohort.variants.keys import Variant, columns_of, to_text
from fedml.errors import InputError
from fedml.study.contigs import canonical_contig

if TYPE_CHECKING:
    import torch

    from fedml.cohort.variants.fine import Fine
    from fedml.cohort.variants.packed import Packed

MISSING = -1
LONGEST_ALLELE = 1000  # letters; variants with a longer REF or ALT are excluded and counted: their keys would be too long to exchange


# Only names with an asterisk, those of HLA alleles, have colons: 22:17000000 lacks an end, and is no contig.
_REGION = re.compile(r"([A-Za-z0-9._-]+|[A-Za-z0-9._-]+\*[A-Za-z0-9._:*-]*?)(?::([\d,]+)-([\d,]+))?")


class Block(NamedTuple):
    """Consecutive variants of a file: ``keys`` (variants,) and ``dosage`` (variants, samples) int8, C-contiguous (variant-major); uint16
    codes of dosages (``fedml.cohort.variants.fine``) where the selection asks for them."""

    keys: Sequence[Variant]
    dosage: npt.NDArray[np.int8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Selection:
    """Selects all variants, the variants in ``regions``, or the ``listed`` variants; with both, the intersection.

    ``regions``: ``22`` or ``22:17000000-18000000``, 1-based, both ends included, contigs by their canonical name. ``listed``: an rsID, or
    ``contig:position:ref:alt`` with the canonical contig. ``passed``: only records of a VCF or BCF file whose FILTER is PASS or missing.
    ``dosage``: "hard": genotypes; "nearest": of formats that hold dosages the nearest genotypes; "DS", "HDS" or "GP": dosages, of a VCF or
    BCF file from that field; "any": from the first of these that it declares. ``min_gq``, ``min_dp``: calls with a lower GQ or DP, or
    without it, are missing; ``min_info``: variants imputed with a lower quality are excluded.
    """

    regions: tuple[str, ...] = ()
    listed: frozenset[str] = frozenset()
    passed: bool = True
    dosage: str = "hard"
    min_gq: int = 0
    min_dp: int = 0
    min_info: float = 0.0

    @property
    def fractions(self) -> bool:
        """True if dosages have fractions."""
        return self.dosage not in ("hard", "nearest")

    @property
    def asked(self) -> list[object]:
        """What is asked for beyond genotypes, for a cache's key; empty for all genotypes of any quality."""
        beyond = [self.dosage, self.min_gq, self.min_dp, self.min_info]
        return beyond if beyond != ["hard", 0, 0, 0.0] else []

    def __bool__(self) -> bool:
        return bool(self.regions or self.listed)

    def spans(self) -> list[tuple[str, int, int]]:
        """(canonical contig, first, last) of each region; last is 2**31 - 1 where the region gives no end.

        Raises:
            InputError: a region is not of the form ``22`` or ``22:17000000-18000000``, or ends before it begins.
        """
        out = []
        for text in self.regions:
            found = _REGION.fullmatch(text)
            if found is None:
                raise InputError(f'region "{text}" is not of the form 22 or 22:17000000-18000000; correct [cohort.variants] regions.')
            contig, first, last = found.groups()
            begin, end = (int(n.replace(",", "")) for n in (first or "1", last or str(2**31 - 1)))
            if begin > end:
                raise InputError(f'region "{text}" ends before it begins; correct [cohort.variants] regions.')
            out.append((canonical_contig(contig), begin, end))
        return out

    def names(self, id_: str) -> bool:
        """True if one of the ids in ``id_``, such as ``rs1;rs2``, is listed."""
        return id_ in self.listed or (";" in id_ and not self.listed.isdisjoint(id_.split(";")))

    def wants(self, key: Variant) -> bool:
        """True if ``key`` is listed, or if nothing is listed. The readers apply ``regions`` and ``passed``."""
        if not self.listed:
            return True
        return self.names(key.id) or f"{canonical_contig(key.contig)}:{key.position}:{key.ref}:{key.alt}" in self.listed


class Source(ABC):
    """An opened genotype file: the header has been read, the genotypes have not. ``excluded`` counts excluded variants by reason; it is
    complete once ``blocks`` has been read to the end."""

    path: Path
    samples: tuple[str, ...]
    contigs: dict[str, int | None]  # name in the header -> length in bases, None where the header gives no length
    excluded: dict[str, int]
    sex: npt.NDArray[np.int8] | None = None  # (samples,) 1 man, 2 woman, 0 unknown, where the format has it

    def check_persons(self, persons: Sequence[str]) -> None:  # noqa: B027 - most formats name a person in one way
        """Raises ``InputError`` if an id of the persons table may be that of several samples."""

    @abstractmethod
    def blocks(self, samples: Sequence[int], selection: Selection, memory_mb: int) -> Iterator[Block]:
        """The selected variants of the samples with these indices, in that order, as blocks in file order.

        Args:
            memory_mb: approximate memory limit for reading, in MB, independent of the file's size.

        Raises:
            InputError: the file is damaged, has no index although a region is selected, or lacks a region's contig.
        """


@dataclass(frozen=True)
class Dosages:
    """``dosage`` (persons, variants) int8, an array or a packed table, or a table with fractions, with ``keys`` (variants,); ``present``
    (persons,) is True where the person has a genotype row.

    ``notes``: counts of variants by what normalisation did to them (``fedml.cohort.variants.normalise.NOTES``); ``build``: genome build of
    the positions; ``checked``: REF was compared with a reference sequence. ``where`` (variants,): how many copies men and women have
    (``fedml.cohort.variants.ploidy.places``); None: two; ``sex`` (persons,): 1 man, 2 woman, 0 unknown; None: not known.
    """

    keys: Sequence[Variant]
    dosage: npt.NDArray[np.int8] | Packed | Fine
    present: npt.NDArray[np.bool_]
    notes: npt.NDArray[np.int64] | None = None
    build: str = ""
    checked: bool = False
    where: npt.NDArray[np.int8] | None = None
    sex: npt.NDArray[np.int8] | None = None
    places: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # cache of ``harmonise.align``

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
        return replace(self, dosage=dosage, present=self.present[rows], sex=None if self.sex is None else self.sex[rows])

    def content(self) -> dict[str, bytes]:
        """Dosages, and the keys of the variants as text."""
        return {"variants": content_of(self.dosage), "variant_keys": to_text(self.keys)}


def stated_keys(stated: Iterable[tuple[str, int, str, str]]) -> tuple[Variant, ...]:
    """Keys of variants that a study states by (contig, position, REF, ALT)."""
    return tuple(Variant(contig, position, ".", ref, alt) for contig, position, ref, alt in stated)


def blocks_of(keys: Sequence[Variant], size: int) -> list[slice]:
    """The blocks of variants in the order of the genome: at most ``size`` consecutive ones of a chromosome."""
    contig = columns_of(keys).contig
    ends = [*(np.flatnonzero(contig[1:] != contig[:-1]) + 1).tolist(), len(contig)]
    return [slice(at, min(at + size, end)) for start, end in zip([0, *ends], ends, strict=False) for at in range(start, end, size)]
