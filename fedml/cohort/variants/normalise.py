"""What a site's variants mean, brought to one spelling before anything of them is compared: the site's half of "the same at every site".

    own = fingerprint(keys, contigs, "GRCh38", reference=Path("GRCh38.fa"))
    own.keys, own.columns, own.flip, own.notes

Contigs get their canonical name, alleles are trimmed to the fewest letters and, where a reference FASTA is given, indels are moved to the
left as far as they go (Tan, Abecasis and Kang 2015, Bioinformatics 31:2202) and every REF is held against the reference: a SNP whose ALT is
the reference's base has its alleles the other way round, one that fits on the other strand is complemented, and one that does not fit is
left out. A/T and C/G fit on both strands: they are complemented where all other SNPs are; where only some are, their strand is told to be
unknown. What was done is counted, and the counts go to the server (``NOTES``), where sites are compared
(``fedml.cohort.variants.harmonise``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.builds import Build, beyond_end, build_of
from fedml.cohort.variants.model import Variant
from fedml.errors import InputError
from fedml.study.contigs import canonical_contig

COMPLEMENT = str.maketrans("ACGT", "TGCA")
SWAPPED, COMPLEMENTED, UNSURE = "alleles swapped to the reference", "strand turned to the reference", "A/T or C/G in a file of both strands"
# Counts of variants (never of persons) that a site tells about its file, in this order on the wire.
NOTES = (
    "read", "contig renamed", "trimmed", "left-aligned", SWAPPED, COMPLEMENTED,
    "reference mismatch", UNSURE, "not plain alleles", "no ALT", "allele too long", "allele unknown", "ploidy above 2", "other",
)  # fmt: skip
ENOUGH = 20  # SNPs that are no palindromes, to tell on which strand a site's file is
_MISFITS = 10  # variants that do not fit the reference, before that says anything of the file
_WINDOW = 1000  # bases that an indel may be moved to the left


@dataclass(frozen=True)
class Fingerprint:
    """A site's variants in canonical spelling: ``columns`` (variants,) where each stands in the file, ``flip`` (variants,) whether its
    dosage counts the other allele there. ``build``: as the header says, else as the manifest states it."""

    keys: tuple[Variant, ...]
    columns: npt.NDArray[np.int64]
    flip: npt.NDArray[np.bool_]
    notes: dict[str, int]
    build: str


def is_plain(alleles: str) -> bool:
    """Only A, C, G, T: an allele that can be compared, unlike ``<DEL>``, ``*`` or a breakend."""
    return not alleles.strip("ACGT")


def is_ambiguous(ref: str, alt: str) -> bool:
    """A/T and C/G (of several letters, such as AC/GT) read the same on both strands."""
    return _complement(ref) == alt


def fingerprint(
    keys: Sequence[Variant],
    contigs: Mapping[str, int | None],
    build: Build,
    *,
    where: str,
    reference: Path | None = None,
    left_out: Mapping[str, int] | None = None,
) -> Fingerprint:
    """The site's variants in canonical spelling.

    Args:
        contigs: as the file's header names them, with their lengths.
        build: what the manifest states.
        where: names the file in errors.
        left_out: what the reader passed over, by reason.

    Raises:
        InputError: the header's lengths, or positions, are those of another build, or the reference cannot be read or does not fit.
    """
    found = build_of(contigs)
    if found is not None and found != build:
        raise InputError(f"{where}: its contig lengths are those of {found}, but site.toml says {build}; correct data.variants build.")
    notes = dict.fromkeys(NOTES, 0) | {"read": len(keys)}
    for reason, count in (left_out or {}).items():
        notes[reason if reason in notes else "other"] += count
    bases = _reference(reference) if reference is not None else None
    kept: list[Variant] = []
    columns: list[int] = []
    flip: list[bool] = []
    # SNPs that fit on the forward strand; variants that do not fit the reference where it has a base, and that fit but might not have.
    forward, misfits, no_misfits = 0, 0, 0
    names: dict[str, str] = {}
    for at, key in enumerate(keys):
        contig = names.get(key.contig) or names.setdefault(key.contig, canonical_contig(key.contig))
        if beyond_end(contig, key.position, build):
            raise InputError(
                f"{where}: position {key.contig}:{key.position} lies beyond the end of that chromosome in {build}; "
                "correct data.variants build in site.toml."
            )
        notes["contig renamed"] += contig != key.contig
        made = key if contig == key.contig else key._replace(contig=contig)
        turned = False
        ref, alt = made.ref.upper(), made.alt.upper()
        if not (is_plain(ref) and is_plain(alt)):
            notes["not plain alleles"] += 1
        else:
            if (ref, alt) != (made.ref, made.alt):
                made = made._replace(ref=ref, alt=alt)
            if len(ref) > 1 or len(alt) > 1:
                made = trim(made)
                notes["trimmed"] += (made.ref, made.alt) != (ref, alt)
            if bases is not None:
                single = len(made.ref) == len(made.alt) == 1
                sure = single and not is_ambiguous(made.ref, made.alt)
                checked = _against(made, bases)
                if checked is None:
                    notes["reference mismatch"] += 1
                    misfits += bases(contig, made.position, 1) != ""
                    continue
                fit, turned, complemented = checked
                notes["left-aligned"] += fit.position != made.position
                notes[SWAPPED] += turned
                notes[COMPLEMENTED] += complemented
                forward += sure and not complemented
                no_misfits += not sure
                made = fit
        kept.append(made)
        columns.append(at)
        flip.append(turned)
    # The letters of a SNP, but for A/T and C/G, fit any base on one strand or the other: that they do is no evidence.
    if notes["reference mismatch"] > 0.5 * len(keys) or (misfits >= _MISFITS and misfits > 0.25 * (misfits + no_misfits)):
        raise InputError(
            f"{where}: {notes['reference mismatch']} of {len(keys)} variants do not fit {reference}; "
            "one of the two is of another build, correct data.variants reference or build in site.toml."
        )
    if notes[COMPLEMENTED]:
        _settle_strand(kept, flip, notes, whole=forward == 0 and notes[COMPLEMENTED] >= ENOUGH)
    return Fingerprint(tuple(kept), np.array(columns, dtype=np.int64), np.array(flip, dtype=bool), notes, found or build)


def _settle_strand(kept: Sequence[Variant], flip: list[bool], notes: dict[str, int], *, whole: bool) -> None:
    """Other SNPs were complemented. If that is the ``whole`` file's strand, what was taken for the other order of an A/T or C/G was the
    other strand; else nobody knows. Changes ``flip`` and ``notes``."""
    palindromes = [at for at, key in enumerate(kept) if is_ambiguous(key.ref, key.alt)]
    if not whole:
        notes[UNSURE] = len(palindromes)
        return
    notes[COMPLEMENTED] += len(palindromes)
    for at in palindromes:
        notes[SWAPPED] += -1 if flip[at] else 1
        flip[at] = not flip[at]


def _complement(alleles: str) -> str:
    return alleles.translate(COMPLEMENT)[::-1]


def trim(key: Variant) -> Variant:
    """The same change with the fewest letters: a shared end goes first, then a shared beginning; each allele keeps one letter."""
    ref, alt, position = key.ref, key.alt, key.position
    while min(len(ref), len(alt)) > 1 and ref[-1] == alt[-1]:
        ref, alt = ref[:-1], alt[:-1]
    while min(len(ref), len(alt)) > 1 and ref[0] == alt[0]:
        ref, alt, position = ref[1:], alt[1:], position + 1
    return key._replace(position=position, ref=ref, alt=alt)


def left_align(key: Variant, base_at: Callable[[str, int], str]) -> Variant:
    """An indel moved to the left as far as it stays the same change. ``base_at``: contig and 1-based position -> base."""
    ref, alt, position = key.ref, key.alt, key.position
    for _ in range(_WINDOW):
        if ref and alt and ref[-1] == alt[-1]:
            ref, alt = ref[:-1], alt[:-1]
        elif ref and alt:
            break
        if not ref or not alt:
            if position == 1:  # nothing stands before the first base: the one after the change is the anchor
                base = base_at(key.contig, position + len(ref))
                return key._replace(position=position, ref=ref + base, alt=alt + base)
            position -= 1
            base = base_at(key.contig, position)
            ref, alt = base + ref, base + alt
    return trim(key._replace(position=position, ref=ref, alt=alt))


def _against(key: Variant, bases: Callable[[str, int, int], str]) -> tuple[Variant, bool, bool] | None:
    """(variant as the reference has it, alleles swapped?, strand turned?), or None where it does not fit the reference."""
    ref, alt = key.ref, key.alt
    there = bases(key.contig, key.position, max(len(ref), len(alt)))
    if there.startswith(ref):
        return left_align(key, lambda c, p: bases(c, p, 1)) if len(ref) != len(alt) else key, False, False
    if there.startswith(alt):
        made = key._replace(ref=alt, alt=ref)
        return left_align(made, lambda c, p: bases(c, p, 1)) if len(ref) != len(alt) else made, True, False
    if len(ref) == len(alt) == 1:
        other = key._replace(ref=ref.translate(COMPLEMENT), alt=alt.translate(COMPLEMENT))
        if there == other.ref:
            return other, False, True
        if there == other.alt:
            return other._replace(ref=other.alt, alt=other.ref), True, True
    return None


def _reference(path: Path) -> Callable[[str, int, int], str]:
    """(contig, 1-based position, letters) -> bases in capitals, fewer at a contig's end; none for a contig that it lacks."""
    import pysam

    if not path.exists():
        raise InputError(f"{path}: no such file; correct data.variants reference in site.toml.")
    if not path.with_name(path.name + ".fai").exists():  # pysam would write one, unasked, beside a file that many share
        raise InputError(f"{path}: has no index ({path.name}.fai); make one with samtools faidx.")
    try:
        fasta = pysam.FastaFile(str(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as FASTA with its index ({error}); make one with samtools faidx.") from error
    names = {canonical_contig(name): name for name in fasta.references}
    held: dict[str, str] = {}  # one contig at a time: files are sorted by it, and the longest is 250 MB

    def whole(name: str) -> str:
        try:
            letters: str = fasta.fetch(name).upper()
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: contig {name} cannot be read ({error}); copy the file anew, and its index.") from error
        if len(letters) != fasta.get_reference_length(name):
            raise InputError(f"{path}: contig {name} is shorter than the index says; copy the file anew, and its index.")
        return letters

    def bases(contig: str, position: int, count: int) -> str:
        if contig not in held:
            held.clear()
            held[contig] = whole(names[contig]) if contig in names else ""
        return held[contig][position - 1 : position - 1 + count]

    return bases
