"""A block of a VCF or BCF file where a study asks for more than genotypes: dosages, thresholds of calls or of imputation quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.variants.fine import NONE, SCALE
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import Block
from fedml.cohort.variants.records import FROM_GENOTYPE, LOW_INFO, LOW_QUALITY, NO_DOSAGE, Wanted, chosen
from fedml.cohort.variants.vcf_fields import drop_calls, fill, info_value
from fedml.errors import InputError

Mask = npt.NDArray[np.bool_]


def asked_block(
    keys: list[Variant],
    records: Sequence[Any],
    text: bytes,
    wanted: Wanted,
    genotypes: Callable[[], npt.NDArray[np.int8]],
    error: Callable[[int, Wanted, str, str], InputError],
) -> Block | None:
    """The block of ``records`` of a text; None if none of their variants is kept.

    Args:
        records: of a text (``fedml.cohort.variants.vcf_text``): where each begins, its FORMAT's and its calls' places, its ALT alleles.
        genotypes: (variants, samples of the file), read where no dosages are asked for, or one is missing.
        error: called with the offset of a line, ``wanted``, what is wrong, and an advice.

    Raises:
        InputError: a value is no number, or no dosage.
    """

    def refuse(at: int, what: str, advice: str) -> InputError:
        return error(at, wanted, what, advice)

    low, lacks, changed, filled = (np.zeros(len(keys), bool) for _ in range(4))
    if wanted.info:
        for record in records:
            info = text[record.at : record.begin].split(b"\t", 8)[7]
            values = np.array(info_value(info, wanted.info, record.alts))[[number - 1 for number in record.numbers]]
            low[record.row : record.row + len(record.numbers)] = ~(values >= wanted.selection.min_info)
    if wanted.field:
        out: npt.NDArray[Any] = np.full((len(keys), wanted.columns), NONE, np.uint16)
        filled, lacks = from_genotypes(out, fill(records, text, wanted, out, refuse), genotypes)
    else:
        out = genotypes()
    if wanted.selection.min_gq or wanted.selection.min_dp:
        changed = drop_calls(records, text, wanted, out, refuse)
    return kept(keys, out, wanted, (lacks, low, changed, filled))


def from_genotypes(
    out: npt.NDArray[np.uint16], without: tuple[Mask, Mask], genotypes: Callable[[], npt.NDArray[np.int8]]
) -> tuple[Mask, Mask]:
    """Writes the genotype where a person has one and no dosage: PLINK 2 writes DS and HDS only where they are no whole numbers.

    Args:
        without: (variants,) True where a record has no dosages; and where it has dosages, but not of which ALT allele.

    Returns:
        (variants,) True where that was done; and where the variant has no dosages.
    """
    lacks, unclear = without
    if not (lacks.any() or (out == NONE).any()):
        return np.zeros(len(out), bool), unclear
    copies = genotypes()
    here = ~unclear[:, None] & (out == NONE) & (copies >= 0) & (copies <= 2)
    out[here] = copies[here].astype(np.uint16) * SCALE
    some: Mask = here.any(1)
    return some, unclear | (lacks & ~some)


def kept(keys: Sequence[Variant], out: npt.NDArray[Any], wanted: Wanted, masks: tuple[Mask, Mask, Mask, Mask]) -> Block | None:
    """The block without the variants that lack dosages or are of low imputation quality, which are counted, as are those of which calls
    were set to missing or genotypes used (``masks``, each (variants,), in that order); ``out``: (variants, samples of the file)."""
    lacks, low, changed, filled = masks
    keep = ~lacks & ~low
    for reason, which in ((NO_DOSAGE, lacks), (LOW_INFO, low & ~lacks), (LOW_QUALITY, changed & keep), (FROM_GENOTYPE, filled & keep)):
        if which.any():
            wanted.excluded[reason] += int(which.sum())
    if not keep.any():
        return None
    return Block(tuple(key for key, yes in zip(keys, keep, strict=True) if yes), chosen(out if keep.all() else out[keep], wanted))
