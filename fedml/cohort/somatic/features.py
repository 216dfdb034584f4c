"""Names of features of genes, such as ``TP53_mut``: a gene's symbol and what of it, so that a name means the same at every site.

    feature_of("TP53_truncating")         # Feature(gene="TP53", kind="truncating")
    CLASSES["mut"]                        # the values of Variant_Classification that count

Values of Variant_Classification: GDC MAF format 1.0 and vcf2maf. ``mut`` has the classes that maftools calls non-silent (Mayakonda et al.
2018, Genome Research 28:1747). Levels of copy number are those of GISTIC 2.0 (Mermel et al. 2011, Genome Biology 12:R41) in cBioPortal's
files: -2 deep deletion, -1 loss, 0, 1 gain, 2 amplification.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.errors import InputError
from fedml.text import printable

_TRUNCATING = frozenset({"Frame_Shift_Del", "Frame_Shift_Ins", "Nonsense_Mutation", "Splice_Site"})
_INFRAME = frozenset({"In_Frame_Del", "In_Frame_Ins"})
_NONSILENT = _TRUNCATING | _INFRAME | {"Missense_Mutation", "Nonstop_Mutation", "Translation_Start_Site"}
CLASSES = {
    "mut": _NONSILENT,
    "truncating": _TRUNCATING,
    "missense": frozenset({"Missense_Mutation"}),
    "inframe": _INFRAME,
    "promoter": frozenset({"5'Flank"}),
}
SILENT = frozenset({
    "Silent", "Splice_Region", "3'UTR", "5'UTR", "3'Flank", "5'Flank", "IGR", "Intron", "RNA", "Targeted_Region", "lincRNA",
    "Intergenic", "upstream_gene_variant",
})  # fmt: skip
KNOWN = _NONSILENT | SILENT
LEVELS = (-2.0, -1.5, -1.0, 0.0, 1.0, 2.0)  # -1.5: cBioPortal's deep loss that may be of both copies
COPIES = ("cnv", "amplified", "deleted", "gained", "lost")
_DAMAGED = re.compile(r"^(?:(\d{1,2})-(mar|sept?|dec|apr|oct|nov|feb)|(mar|sept?|dec|apr|oct|nov|feb)-(\d{1,2}))$", re.IGNORECASE)
_DATE = re.compile(r"^(?:\d{4}-(\d\d)-(\d\d)(?: 00:00:00)?|(\d{1,2})[/.](\d{1,2})[/.]\d{2,4})$")
_NUMBER = re.compile(r"^\d+(?:\.\d+)?(?:E[+-]?\d+)?$", re.IGNORECASE)
_AFFECTED = re.compile(r"^(MARCH|MARCHF|MARC|MTARC|SEPT|SEPTIN|DEC|DELEC)(\d+)$")
_MONTHS = {"mar": ("MARCH", "MARCHF", "MARC", "MTARC"), "sep": ("SEPT", "SEPTIN"), "dec": ("DEC", "DELEC")}


class Feature(NamedTuple):
    """One feature: the ``gene``'s symbol, and its ``kind``: a key of ``CLASSES``, or of ``COPIES``."""

    gene: str
    kind: str


def feature_of(name: str, where: str) -> Feature:
    """The gene and the kind of a feature's name.

    Raises:
        InputError: the name has no kind, or its gene is a date that a spreadsheet made; the message begins with ``where``.
    """
    gene, _, kind = name.rpartition("_")
    if not gene or kind not in (*CLASSES, *COPIES):
        text = f'column "{printable(name)}" does not say what of a gene; from these files there are GENE_KIND with the kinds'
        raise InputError(f"{where}: {text} {', '.join((*CLASSES, *COPIES))}, such as TP53_mut or ERBB2_cnv.")
    if damaged(gene):
        raise InputError(
            f'{where}: column "{printable(name)}": a spreadsheet made a date or a number of this gene\'s symbol; write the symbol.'
        )
    return Feature(gene, kind)


def counted(kind: str, levels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The feature of levels of copy number, NaN where missing: the level itself (``cnv``), or 1 where it is so, else 0."""
    yes = {"amplified": levels == 2, "deleted": levels == -2, "gained": levels >= 1, "lost": levels <= -1}
    return levels if kind == "cnv" else np.where(np.isnan(levels), np.nan, yes[kind])


def damaged(symbol: str) -> bool:
    """Whether a spreadsheet made a date or a number of a symbol, such as ``1-Mar`` of MARCH1, MARCHF1 or MTARC1, or 44256."""
    return bool(_DAMAGED.match(symbol) or _DATE.match(symbol) or _NUMBER.match(symbol))


def check_damaged(symbols: Collection[str], genes: Collection[str], where: str) -> None:
    """Raises ``InputError`` if a damaged symbol among ``symbols`` may be one of ``genes``; others cannot change what is read."""
    affected = {gene: found for gene in genes if (found := _AFFECTED.match(gene))}
    for symbol in symbols if affected else ():
        for gene, found in affected.items():
            if _may_be(symbol, found.group(1), found.group(2)):
                text = f'has the gene "{printable(symbol)}", which a spreadsheet made of a symbol and which may be {gene}'
                raise InputError(f"{where}: {text}, a gene of the study; export the file again without a spreadsheet.")


def _may_be(symbol: str, family: str, number: str) -> bool:
    if day := _DAMAGED.match(symbol):
        month, digits = (day.group(2) or day.group(3)).lower()[:3], day.group(1) or day.group(4)
        return family in _MONTHS.get(month, ()) and int(digits) == int(number)
    return damaged(symbol)
