"""The letters of a variant's two alleles."""

from __future__ import annotations

from fedml.cohort.variants.keys import Variant

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def is_plain(alleles: str) -> bool:
    """True if the alleles consist of A, C, G and T, unlike ``<DEL>``, ``*`` or a breakend."""
    return not alleles.strip("ACGT")


def is_ambiguous(ref: str, alt: str) -> bool:
    """True for palindromic alleles, which read the same on both strands: A/T, C/G, or several letters such as AC/GT."""
    return complement(ref) == alt


def complement(alleles: str) -> str:
    """The letters of the other strand, in its direction."""
    return alleles.translate(COMPLEMENT)[::-1]


def trimmed(ref: str, alt: str) -> tuple[str, str, int]:
    """The alleles without their shared suffix, then without their shared prefix, of which each keeps at least one letter; and by how many
    bases the variant's position increases."""
    shift = 0
    while min(len(ref), len(alt)) > 1 and ref[-1] == alt[-1]:
        ref, alt = ref[:-1], alt[:-1]
    while min(len(ref), len(alt)) > 1 and ref[0] == alt[0]:
        ref, alt, shift = ref[1:], alt[1:], shift + 1
    return ref, alt, shift


def trim(key: Variant) -> Variant:
    """The variant with ``trimmed`` alleles."""
    ref, alt, shift = trimmed(key.ref, key.alt)
    return key._replace(position=key.position + shift, ref=ref, alt=alt)
