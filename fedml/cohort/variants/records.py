"""Decides which variants of a VCF or BCF record are read: a damaged record is refused, an unusable variant is left out and counted.

    numbers = take(Head("1", 100, b"rs1", b"A", [b"G"], passed=True), wanted, keys, damaged)

Damaged is what no caller writes: a letter that is no base, a position past the end that the header states, a contig that it does not
declare (VCF 4.5, sections 1.4 and 1.6). Unusable is what VCF allows but no study can compare: an ambiguity code, REF as ALT, a telomere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import LONGEST_ALLELE, Selection
from fedml.errors import InputError

NO_ALT, TOO_LONG, UNKNOWN, FILTERED = "no ALT", "allele too long", "allele unknown", "FILTER not PASS"
FROM_GENOTYPE = "genotypes where a dosage is missing"
NO_DOSAGE, LOW_QUALITY, LOW_INFO = "no dosage in the record", "calls of low GQ or DP set to missing", "imputation quality below min_info"
SAME, AMBIGUOUS, TELOMERE = "ALT is REF", "allele of several bases (IUPAC code)", "position of a telomere"
_REF, _BREAKEND = r"[ACGTNacgtn]+", r"[ACGTNacgtn.]*[\[\]][^\[\]\s,]+[\[\]][ACGTNacgtn.]*"
_BASES = re.compile(rb"[ACGTNacgtn]+")
_CODES = re.compile(rb"[ACGTNRYSWKMBDHVUacgtnryswkmbdhvu]+")
_SYMBOLIC = re.compile(rf"\*|<[^<>\s,]+>|{_BREAKEND}|\.{_REF}|{_REF}\.".encode())
Kind = Literal["bases", "symbolic", "codes", "unknown", "invalid"]
Damaged = Callable[[str, str], InputError]  # (what is wrong with the record, advice) -> the error, which names the record


@dataclass
class Wanted:
    """The part of a file to read: which samples and which records, with counts of the variants excluded so far.

    ``in_region`` is called with the contig as written and the position, and returns True if the record is selected. ``contigs``: those that
    the header declares, with their lengths in bases; empty: it declares none. ``fast``: if False, every line is parsed call by call (for
    tests). ``line``: number of the next line to parse, None where it is not known. ``declared``: the header declares GT. ``field``: FORMAT
    field of dosages, empty: genotypes; ``info``: INFO field of imputation quality, empty: no threshold.
    """

    path: Path
    columns: int  # samples in the file
    samples: npt.NDArray[np.intp] | None  # None: all samples in file order
    selection: Selection
    in_region: Callable[[str, int], bool] | None
    excluded: Counter[str] = field(default_factory=Counter)
    contigs: Mapping[str, int | None] = field(default_factory=dict)
    fast: bool = True
    line: int | None = None
    declared: bool = True
    field: str = ""
    info: str = ""


class Head(NamedTuple):
    """A record without its genotypes. ``passed``: FILTER is PASS or missing."""

    contig: str
    position: int
    id: bytes
    ref: bytes
    alts: Sequence[bytes]
    passed: bool


@lru_cache(maxsize=2**14)
def kind_of(allele: bytes) -> Kind:
    """What an allele consists of. ``codes``: bases and IUPAC codes of several bases; ``unknown``: ``.``, which names no allele."""
    if _BASES.fullmatch(allele):
        return "bases"
    if allele == b".":
        return "unknown"
    return "codes" if _CODES.fullmatch(allele) else "symbolic" if _SYMBOLIC.fullmatch(allele) else "invalid"


def take(head: Head, wanted: Wanted, keys: list[Variant], damaged: Damaged) -> tuple[int, ...]:
    """Appends a record's selected variants to ``keys``; counts variants that cannot be used in ``wanted.excluded``.

    Returns:
        the numbers of the selected ALT alleles.

    Raises:
        InputError: the record is damaged, as ``damaged`` says it.
        UnicodeDecodeError: a name is not UTF-8.
    """
    contig, position, _, ref, alts, passed = head
    telomere = _at_telomere(head, wanted, damaged)
    name, selection = head.id.decode() or ".", wanted.selection
    named = not selection.listed or selection.names(name)
    if not alts:
        wanted.excluded[NO_ALT] += named
    numbers = []
    for number, alt in enumerate(alts, start=1):
        reason = _flaw(ref, alt, damaged)
        if reason is None and telomere:
            reason = TELOMERE
        if reason is None and selection.passed and not passed:
            reason = FILTERED
        if reason is not None:
            wanted.excluded[reason] += named
            continue
        key = Variant(contig, position, name, ref.decode(), alt.decode())
        if not selection.listed or selection.wants(key):
            numbers.append(number)
            keys.append(key)
    return tuple(numbers)


def _flaw(ref: bytes, alt: bytes, damaged: Damaged) -> str | None:
    """The reason to leave the variant out, or None. Raises if an allele is none."""
    if max(len(ref), len(alt)) > LONGEST_ALLELE:
        return TOO_LONG
    first, second = kind_of(ref), kind_of(alt)
    if first == second == "bases":
        return SAME if ref == alt or ref.upper() == alt.upper() else None
    for field_, allele, kind in (("REF", ref, first), ("ALT", alt, second)):
        if kind == "invalid" or (field_ == "REF" and kind == "symbolic"):
            shown = allele[:20].decode(errors="replace")
            raise damaged(f'has {field_} "{shown}", which is no allele', "write bases (A, C, G, T, N), or delete the record")
    if "unknown" in (first, second):
        return UNKNOWN
    return AMBIGUOUS if "codes" in (first, second) else None


def _at_telomere(head: Head, wanted: Wanted, damaged: Damaged) -> bool:
    """True at position 0 or one base past the contig's end, which stand for a telomere (VCF 4.5, section 1.6.1: POS). Raises if the header
    declares contigs but not the record's, or if the position is further past its end."""
    contig, position, declared = head.contig, head.position, wanted.contigs
    if position < 0:
        raise damaged(f"has POS {position}, which is not a position", "correct POS or delete the record")
    length = declared.get(contig)
    if length is None and declared and contig not in declared:
        names = ", ".join(list(declared)[:5]) + (", ..." if len(declared) > 5 else "")
        what = f'is on contig "{contig[:40]}", which the header does not declare ({names})'
        raise damaged(what, f"correct CHROM, or add ##contig=<ID={contig[:40]}> to the header (bcftools reheader)")
    if length is not None and position > length + 1:
        what = f"has POS {position}, past the end of contig {contig[:40]} in the header ({length} bases)"
        raise damaged(what, "correct POS, or the header if it is of another build")
    return position == 0 or (length is not None and position > length)


def passes(filter_: bytes) -> bool:
    """True if FILTER is ``PASS``, or missing: no filter was applied."""
    return filter_ in (b"PASS", b".", b"")


def chosen(dosage: npt.NDArray[Any], wanted: Wanted) -> npt.NDArray[Any]:
    """(variants, selected samples): the columns of ``dosage`` (variants, samples of the file) for the selected samples."""
    return dosage if wanted.samples is None else np.take(dosage, wanted.samples, axis=1)
