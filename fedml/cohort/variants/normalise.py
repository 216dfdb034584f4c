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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.builds import Build, beyond_end, check_build
from fedml.cohort.variants.model import Variant
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
from fedml.errors import InputError
from fedml.study.contigs import canonical_contig

_RS = re.compile(r"rs\d+")
COMPLEMENT = str.maketrans("ACGT", "TGCA")
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
_MAX_SHIFT = 1000  # bases; an indel is not left-aligned further than this


@dataclass(frozen=True)
class Fingerprint:
    """A site's normalised variants. ``columns`` (variants,): index of each variant in the file; ``flip`` (variants,): True where the file's
    dosage counts the other allele; ``build``: from the header, or else from the manifest."""

    keys: tuple[Variant, ...]
    columns: npt.NDArray[np.int64]
    flip: npt.NDArray[np.bool_]
    notes: dict[str, int]
    build: str


def is_plain(alleles: str) -> bool:
    """True if the alleles consist of A, C, G and T, unlike ``<DEL>``, ``*`` or a breakend."""
    return not alleles.strip("ACGT")


def is_ambiguous(ref: str, alt: str) -> bool:
    """True for palindromic alleles, which read the same on both strands: A/T, C/G, or several letters such as AC/GT."""
    return _complement(ref) == alt


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
    bases = _reference(reference) if reference is not None else None
    kept: list[Variant] = []
    columns: list[int] = []
    flip: list[bool] = []
    # SNPs that match on the forward strand; variants that mismatch where the reference has a base; matches that could have been mismatches.
    forward, mismatches, matches = 0, 0, 0
    names: dict[str, str] = {}
    for at, key in enumerate(keys):
        contig = names.get(key.contig) or names.setdefault(key.contig, canonical_contig(key.contig))
        if beyond_end(contig, key.position, build):
            if not beyond_end(contig, key.position - 1, build) and not is_plain(key.ref + key.alt):
                notes[TELOMERE] += 1
                continue
            raise InputError(
                f"{where}: position {key.contig}:{key.position} is past the end of that chromosome in {build}; "
                "correct data.variants build in site.toml."
            )
        notes["contig renamed"] += contig != key.contig
        normal = key if contig == key.contig else key._replace(contig=contig)
        if ";" in key.id:
            normal = normal._replace(id=public_id(key.id))
        swapped = False
        ref, alt = normal.ref.upper(), normal.alt.upper()
        if not (is_plain(ref) and is_plain(alt)):
            notes["not plain alleles"] += 1
        else:
            if (ref, alt) != (normal.ref, normal.alt):
                normal = normal._replace(ref=ref, alt=alt)
            if len(ref) > 1 or len(alt) > 1:
                normal = trim(normal)
                notes["trimmed"] += (normal.ref, normal.alt) != (ref, alt)
            if bases is not None:
                single = len(normal.ref) == len(normal.alt) == 1
                unambiguous = single and not is_ambiguous(normal.ref, normal.alt)
                matched = _match_reference(normal, bases)
                if matched is None:
                    notes["reference mismatch"] += 1
                    mismatches += bases(contig, normal.position, 1) != ""
                    continue
                fit, swapped, complemented = matched
                notes["left-aligned"] += fit.position != normal.position
                notes[SWAPPED] += swapped
                notes[COMPLEMENTED] += complemented
                forward += unambiguous and not complemented
                matches += not unambiguous
                normal = fit
        kept.append(normal)
        columns.append(at)
        flip.append(swapped)
    # A SNP other than A/T and C/G matches every base on one strand or the other, so a match of it is no evidence of the right build.
    if notes["reference mismatch"] > 0.5 * len(keys) or (mismatches >= _MIN_MISMATCHES and mismatches > 0.25 * (mismatches + matches)):
        raise InputError(
            f"{where}: {notes['reference mismatch']} of {len(keys)} variants do not match {reference}; "
            "the two files are of different builds, correct data.variants reference or build in site.toml."
        )
    if notes[COMPLEMENTED]:
        _settle_strand(kept, flip, notes, whole=forward == 0 and notes[COMPLEMENTED] >= ENOUGH)
    return Fingerprint(tuple(kept), np.array(columns, dtype=np.int64), np.array(flip, dtype=bool), notes, found or build)


def _settle_strand(kept: Sequence[Variant], flip: list[bool], notes: dict[str, int], *, whole: bool) -> None:
    """Decides the strand of palindromes (A/T, C/G) after other SNPs were complemented. If the ``whole`` file is on the reverse strand, a
    palindrome that looked swapped is complemented and the reverse; otherwise its strand is unknown. Changes ``flip`` and ``notes``."""
    palindromes = [at for at, key in enumerate(kept) if is_ambiguous(key.ref, key.alt)]
    if not whole:
        notes[UNSURE] = len(palindromes)
        return
    notes[COMPLEMENTED] += len(palindromes)
    for at in palindromes:
        notes[SWAPPED] += -1 if flip[at] else 1
        flip[at] = not flip[at]


def public_id(text: str) -> str:
    """The rsIDs of a list of ids such as ``rs1;rs2;own:7``, which other sites may know; the text where it has none."""
    found = [name for name in text.split(";") if _RS.fullmatch(name)]
    return ";".join(dict.fromkeys(found)) or text


def _complement(alleles: str) -> str:
    return alleles.translate(COMPLEMENT)[::-1]


def trim(key: Variant) -> Variant:
    """The variant with its shared suffix, then its shared prefix removed; each allele keeps at least one letter."""
    ref, alt, position = key.ref, key.alt, key.position
    while min(len(ref), len(alt)) > 1 and ref[-1] == alt[-1]:
        ref, alt = ref[:-1], alt[:-1]
    while min(len(ref), len(alt)) > 1 and ref[0] == alt[0]:
        ref, alt, position = ref[1:], alt[1:], position + 1
    return key._replace(position=position, ref=ref, alt=alt)


def left_align(key: Variant, base_at: Callable[[str, int], str]) -> Variant:
    """The left-aligned indel, at most ``_MAX_SHIFT`` bases from its position. ``base_at``: (contig, 1-based position) -> base."""
    ref, alt, position = key.ref, key.alt, key.position
    for _ in range(_MAX_SHIFT):
        if ref and alt and ref[-1] == alt[-1]:
            ref, alt = ref[:-1], alt[:-1]
        elif ref and alt:
            break
        if not ref or not alt:
            if position == 1:  # no base before the first one: the base after the indel becomes the anchor
                base = base_at(key.contig, position + len(ref))
                return key._replace(position=position, ref=ref + base, alt=alt + base)
            position -= 1
            base = base_at(key.contig, position)
            ref, alt = base + ref, base + alt
    return trim(key._replace(position=position, ref=ref, alt=alt))


def _match_reference(key: Variant, bases: Callable[[str, int, int], str]) -> tuple[Variant, bool, bool] | None:
    """(variant with the reference's REF, alleles swapped, complemented), or None if no orientation of the variant matches the reference."""
    ref, alt = key.ref, key.alt
    expected = bases(key.contig, key.position, max(len(ref), len(alt)))
    if expected.startswith(ref):
        return left_align(key, lambda c, p: bases(c, p, 1)) if len(ref) != len(alt) else key, False, False
    if expected.startswith(alt):
        swapped = key._replace(ref=alt, alt=ref)
        return left_align(swapped, lambda c, p: bases(c, p, 1)) if len(ref) != len(alt) else swapped, True, False
    if len(ref) == len(alt) == 1:
        other = key._replace(ref=ref.translate(COMPLEMENT), alt=alt.translate(COMPLEMENT))
        if expected == other.ref:
            return other, False, True
        if expected == other.alt:
            return other._replace(ref=other.alt, alt=other.ref), True, True
    return None


def _reference(path: Path) -> Callable[[str, int, int], str]:
    """A function (contig, 1-based position, count) -> upper-case bases: fewer at a contig's end, none for a contig missing from the FASTA.

    Raises:
        InputError: the FASTA or its index is missing or cannot be read; the returned function raises it for a damaged contig.
    """
    import pysam

    if not path.exists():
        raise InputError(f"{path}: no such file; correct data.variants reference in site.toml.")
    if not path.with_name(path.name + ".fai").exists():  # otherwise pysam writes an index next to a file that other users share
        raise InputError(f"{path}: has no index ({path.name}.fai); create it (samtools faidx {path}).")
    try:
        fasta = pysam.FastaFile(str(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as FASTA with its index ({error}); rebuild the index (samtools faidx {path}).") from error
    names = {canonical_contig(name): name for name in fasta.references}
    loaded: dict[str, str] = {}  # one contig at a time, because variant files are sorted by contig and the longest contig takes 250 MB

    def whole(name: str) -> str:
        try:
            letters: str = fasta.fetch(name).upper()
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: contig {name} cannot be read ({error}); copy the file and its index again.") from error
        if len(letters) != fasta.get_reference_length(name):
            raise InputError(f"{path}: contig {name} is shorter than the index says; copy the file and its index again.")
        return letters

    def bases(contig: str, position: int, count: int) -> str:
        if contig not in loaded:
            loaded.clear()
            loaded[contig] = whole(names[contig]) if contig in names else ""
        return loaded[contig][position - 1 : position - 1 + count]

    return bases
