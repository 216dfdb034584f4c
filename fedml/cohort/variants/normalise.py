"""Normalises a site's variants to one representation, so that the server can compare variants between sites.

    own = fingerprint(keys, contigs, "GRCh38", reference=Path("GRCh38.fa"))
    own.keys, own.columns, own.flip, own.notes

Contigs get their canonical name and alleles are trimmed to the fewest letters. If a reference FASTA is given, indels are left-aligned (Tan,
Abecasis and Kang 2015, Bioinformatics 31:2202) and every REF is compared with the reference: a SNP whose ALT is the reference's base has
its alleles swapped, a SNP that matches on the reverse strand is complemented, and a variant that does not match is excluded. A/T and C/G
match on both strands: they are complemented if all other SNPs of the file are; if only some are, their strand is unknown. The site counts
each of these steps and sends the counts to the server (``NOTES``), which compares the sites (``fedml.cohort.variants.harmonise``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedml.cohort.variants.alleles import is_ambiguous, is_plain, trimmed
from fedml.cohort.variants.builds import Build, check_build, end_of
from fedml.cohort.variants.keys import Keys, Variant, columns_of
from fedml.cohort.variants.records import (
    AMBIGUOUS,
    FILTERED,
    FROM_GENOTYPE,
    LOW_INFO,
    LOW_QUALITY,
    NO_ALT,
    NO_DOSAGE,
    SAME,
    TELOMERE,
    TOO_LONG,
    UNKNOWN,
)
from fedml.cohort.variants.reference import compared, open_reference
from fedml.errors import InputError
from fedml.study.contigs import canonical_contig

_RS = re.compile(r"rs\d+")
SEX_UNKNOWN, HET_HAPLOID = "on X or Y, sex not known", "heterozygous calls of one copy set to missing"
SWAPPED, COMPLEMENTED, UNSURE = "alleles swapped to the reference", "strand turned to the reference", "A/T or C/G in a file of both strands"
# Counts of variants (not of persons) that a site reports about its file, in this order on the wire.
NOTES = (
    "read", "contig renamed", "trimmed", "left-aligned", SWAPPED, COMPLEMENTED,
    "reference mismatch", UNSURE, "not plain alleles", NO_ALT, TOO_LONG, UNKNOWN, "ploidy above 2", FILTERED, SAME, AMBIGUOUS, TELOMERE,
    SEX_UNKNOWN, HET_HAPLOID, FROM_GENOTYPE, NO_DOSAGE, LOW_QUALITY, LOW_INFO, "other",
)  # fmt: skip
ENOUGH = 20  # non-palindromic SNPs needed to decide which strand a site's file uses
_MIN_MISMATCHES = 10  # reference mismatches below this number are no evidence of a wrong build


@dataclass(frozen=True)
class Fingerprint:
    """A site's normalised variants. ``columns`` (variants,): index of each variant in the file; ``flip`` (variants,): True where the file's
    dosage counts the other allele; ``build``: from the header, or else from the manifest."""

    keys: Sequence[Variant]
    columns: npt.NDArray[np.int64]
    flip: npt.NDArray[np.bool_]
    notes: dict[str, int]
    build: str


def fingerprint(
    keys: Sequence[Variant],
    contigs: Mapping[str, int | None],
    build: Build,
    *,
    where: str,
    reference: Path | None = None,
    excluded: Mapping[str, int] | None = None,
) -> Fingerprint:
    """The site's variants in normalised form.

    Args:
        contigs: contigs in the file's header, with their lengths in bases.
        build: the build that the manifest states.
        where: the file's name in error messages.
        excluded: counts of variants that the reader excluded, by reason.

    Raises:
        InputError: the header's lengths or the positions belong to another build, or the reference cannot be read or does not match.
    """
    found = check_build(contigs, build, where)
    notes = dict.fromkeys(NOTES, 0) | {"read": len(keys)}
    for reason, count in (excluded or {}).items():
        notes[reason if reason in notes else "other"] += count
    own = _as_written(columns_of(keys), build, where, notes)
    if reference is None:
        return Fingerprint(own.keys, own.columns, np.zeros(len(own.keys), bool), notes, found or build)
    match = compared(own.keys, open_reference(reference))
    notes["reference mismatch"] = int((~match.kept).sum())
    notes["left-aligned"] = int(match.moved.sum())
    notes[SWAPPED], notes[COMPLEMENTED] = int(match.swapped.sum()), int(match.complemented.sum())
    plain = own.keys.by_alleles(lambda ref, alt: is_plain(ref + alt))
    sure = own.keys.by_alleles(lambda ref, alt: is_plain(ref + alt) and len(ref) == len(alt) == 1 and not is_ambiguous(ref, alt))
    # SNPs that match on the forward strand; variants that mismatch where the reference has a base; matches that could have been mismatches.
    forward, mismatches = int((sure & match.kept & ~match.complemented).sum()), int(match.lies.sum())
    matches = int((plain & match.kept & ~sure).sum())
    # A SNP other than A/T and C/G matches every base on one strand or the other, so a match of it is no evidence of the right build.
    if notes["reference mismatch"] > 0.5 * len(keys) or (mismatches >= _MIN_MISMATCHES and mismatches > 0.25 * (mismatches + matches)):
        raise InputError(
            f"{where}: {notes['reference mismatch']} of {len(keys)} variants do not match {reference}; "
            "the two files are of different builds, correct data.variants reference or build in site.toml."
        )
    kept, flip = match.keys.take(match.kept), match.swapped[match.kept]
    if notes[COMPLEMENTED]:
        _settle_strand(kept.by_alleles(is_ambiguous), flip, notes, whole=forward == 0 and notes[COMPLEMENTED] >= ENOUGH)
    return Fingerprint(kept, own.columns[match.kept], flip, notes, found or build)


class _Written(NamedTuple):
    keys: Keys
    columns: npt.NDArray[np.int64]


def _as_written(keys: Keys, build: Build, where: str, notes: dict[str, int]) -> _Written:
    """The variants with canonical contigs and trimmed alleles, and their indices in the file; counts what it changed in ``notes``."""
    canonical = tuple(map(canonical_contig, keys.contigs))
    past = keys.position - keys.by_contig(lambda name: end_of(canonical_contig(name), build), np.int64)
    telomere = (past == 1) & ~keys.by_alleles(lambda ref, alt: is_plain(ref + alt))
    if (wrong := np.flatnonzero((past > 0) & ~telomere)).size:
        raise _past_end(keys[int(wrong[0])], build, where)
    notes[TELOMERE] += int(telomere.sum())
    columns = np.flatnonzero(~telomere)
    keys = keys.take(columns) if telomere.any() else keys
    notes["contig renamed"] += int(keys.by_contig(lambda name: canonical_contig(name) != name).sum())
    upper = [(ref.upper(), alt.upper()) for ref, alt in keys.pairs]
    plain = [is_plain(ref + alt) for ref, alt in upper]
    short = [trimmed(*big) if yes else (*pair, 0) for pair, big, yes in zip(keys.pairs, upper, plain, strict=True)]
    cut = [yes and new[:2] != big for new, big, yes in zip(short, upper, plain, strict=True)]
    notes["not plain alleles"] += int((~_looked_up(plain, keys)).sum())
    notes["trimmed"] += int(_looked_up(cut, keys).sum())
    moved = _looked_up([shift for _, _, shift in short], keys)
    ids = keys.ids
    if keys.by_id(lambda ids: pc.match_substring(ids, ";")).any():
        ids = pa.array([public_id(name) if ";" in name else name for name in ids.to_pylist()], pa.large_string())
    normal = Keys(canonical, keys.contig, keys.position + moved, ids, tuple((ref, alt) for ref, alt, _ in short), keys.alleles).short
    return _Written(normal, columns)


def _looked_up(values: Sequence[Any], keys: Keys) -> npt.NDArray[Any]:
    """(variants,): of each variant the value of its pair of alleles."""
    return np.array(values)[keys.alleles] if len(keys) else np.zeros(0, type(values[0]) if values else bool)


def _past_end(key: Variant, build: Build, where: str) -> InputError:
    return InputError(
        f"{where}: position {key.contig}:{key.position} is past the end of that chromosome in {build}; "
        "correct data.variants build in site.toml."
    )


def _settle_strand(palindromes: npt.NDArray[np.bool_], flip: npt.NDArray[np.bool_], notes: dict[str, int], *, whole: bool) -> None:
    """Decides the strand of palindromes (A/T, C/G) after other SNPs were complemented. If the ``whole`` file is on the reverse strand, a
    palindrome that looked swapped is complemented and the reverse; otherwise its strand is unknown. Changes ``flip`` and ``notes``."""
    count = int(palindromes.sum())
    if not whole:
        notes[UNSURE] = count
        return
    notes[COMPLEMENTED] += count
    notes[SWAPPED] += count - 2 * int((palindromes & flip).sum())
    flip ^= palindromes


def public_id(text: str) -> str:
    """The rsIDs of a list of ids such as ``rs1;rs2;own:7``, which other sites may know; the text where it has none."""
    found = [name for name in text.split(";") if _RS.fullmatch(name)]
    return ";".join(dict.fromkeys(found)) or text
