"""Compares the REF of variants with a reference sequence, and left-aligns insertions and deletions (Tan, Abecasis and Kang 2015,
Bioinformatics 31:2202).

    found = compared(keys, open_reference(Path("GRCh38.fa")))
    found.keys, found.kept, found.swapped, found.complemented

Variants of one letter are compared contig by contig, all at once; the others one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.alleles import COMPLEMENT, is_plain, trim
from fedml.cohort.variants.keys import Keys, Variant, columns_of, joined
from fedml.errors import InputError
from fedml.quiet import told
from fedml.study.contigs import canonical_contig

Bools = npt.NDArray[np.bool_]
_MAX_SHIFT = 1000  # bases; an indel is not left-aligned further than this
_NONE = 4  # no orientation of a variant of one letter matches; 0 to 3: as it is, swapped, complemented, both


class Compared(NamedTuple):
    """``keys`` (variants,) with the reference's REF where ``kept``; ``swapped``, ``complemented``, ``moved`` (variants,): what was changed;
    ``lies`` (variants,): it does not match, although the reference has a base there."""

    keys: Keys
    kept: Bools
    swapped: Bools
    complemented: Bools
    moved: Bools
    lies: Bools


def compared(keys: Keys, bases: Callable[[str, int, int], str]) -> Compared:
    """``keys`` compared with the reference; those that do not consist of bases stay as they are.

    Args:
        keys: with canonical contigs, and trimmed alleles in upper case.
        bases: (contig, 1-based position, count) -> letters of the reference, fewer at its end (``open_reference``).
    """
    plain = keys.by_alleles(lambda ref, alt: is_plain(ref + alt))
    single = plain & keys.by_alleles(lambda ref, alt: len(ref) == len(alt) == 1)
    kind, there = np.zeros(len(keys), np.int8), np.zeros(len(keys), bool)
    changed: list[Variant] = []
    where = list[int]()
    for at in np.split(np.argsort(keys.contig, kind="stable"), np.cumsum(np.bincount(keys.contig))[:-1]) if len(keys) else []:
        if not plain[at].any():
            continue
        contig, snps = keys.contigs[keys.contig[at[0]]], at[single[at]]
        kind[snps], there[snps] = _kinds(keys.take(snps).short, bases(contig, 1, 2**62))
        for other in at[plain[at] & ~single[at]].tolist():
            key = keys[other]
            there[other] = bases(contig, key.position, 1) != ""
            if (found := _longer(key, bases)) is None:
                kind[other] = _NONE
            else:
                where.append(other)
                changed.append(found[0])
                kind[other] = int(found[1])
    pairs = [(*pair, *(letter.translate(COMPLEMENT) for letter in pair)) for pair in keys.pairs]
    turned = [pick for ref, alt, low, high in pairs for pick in ((ref, alt), (alt, ref), (low, high), (high, low))]
    alleles = (4 * keys.alleles + np.where(single & (kind < _NONE), kind, 0)).astype(np.int32)
    out = Keys(keys.contigs, keys.contig, keys.position, keys.ids, tuple(turned), alleles)
    moved = np.zeros(len(keys), bool)
    if where:
        own, order = np.asarray(where), np.arange(len(keys))
        order[own] = len(keys) + np.arange(len(own))
        out = joined([out, columns_of(changed)]).take(order)
        moved[own] = out.position[own] != keys.position[own]
    kept = kind < _NONE
    return Compared(out.short, kept, kept & (kind % 2 == 1), kept & (kind >= 2), moved, ~kept & there)


def _kinds(keys: Keys, sequence: str) -> tuple[npt.NDArray[np.int8], Bools]:
    """(variants,) orientations of variants of one letter, on one contig with this ``sequence``; and whether it has a base there."""
    letters = np.frombuffer(sequence.encode(), np.uint8)
    there = (keys.position >= 1) & (keys.position <= len(letters))
    base = np.zeros(len(keys), np.uint8)
    base[there] = letters[keys.position[there] - 1]
    ref, alt = (keys.by_alleles(lambda *pair, k=k: ord(pair[k]), np.uint8) for k in (0, 1))
    other_ref, other_alt = (keys.by_alleles(lambda *pair, k=k: ord(pair[k].translate(COMPLEMENT)), np.uint8) for k in (0, 1))
    kinds = np.select([base == ref, base == alt, base == other_ref, base == other_alt], range(_NONE), _NONE)
    return kinds.astype(np.int8), there


def _longer(key: Variant, bases: Callable[[str, int, int], str]) -> tuple[Variant, bool] | None:
    """A variant of several letters with the reference's REF, and whether its alleles were swapped; None if it does not match."""
    expected = bases(key.contig, key.position, max(len(key.ref), len(key.alt)))
    swap = not expected.startswith(key.ref)
    if swap and not expected.startswith(key.alt):
        return None
    right = key._replace(ref=key.alt, alt=key.ref) if swap else key
    return left_align(right, lambda c, p: bases(c, p, 1)) if len(key.ref) != len(key.alt) else right, swap


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


def open_reference(path: Path) -> Callable[[str, int, int], str]:
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
        raise InputError(
            f"{path}: cannot be read as FASTA with its index ({told(error)}); rebuild the index (samtools faidx {path})."
        ) from error
    names = {canonical_contig(name): name for name in fasta.references}
    loaded: dict[str, str] = {}  # one contig at a time, because variant files are sorted by contig and the longest contig takes 250 MB

    def whole(name: str) -> str:
        try:
            letters: str = fasta.fetch(name).upper()
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: contig {name} cannot be read ({told(error)}); copy the file and its index again.") from error
        if len(letters) != fasta.get_reference_length(name):
            raise InputError(f"{path}: contig {name} is shorter than the index says; copy the file and its index again.")
        return letters

    def bases(contig: str, position: int, count: int) -> str:
        if contig not in loaded:
            loaded.clear()
            loaded[contig] = whole(names[contig]) if contig in names else ""
        return loaded[contig][position - 1 : position - 1 + count]

    return bases
