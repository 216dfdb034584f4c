"""Canonical names of contigs."""

from __future__ import annotations

import re
from functools import lru_cache

# Numbers of PLINK 1, M of UCSC, names of the pseudoautosomal regions in PLINK 1, PLINK 2 and UCSC.
_CONTIGS = {"23": "X", "24": "Y", "25": "PAR", "26": "MT", "M": "MT", "XY": "PAR"}
_PAR = re.compile(r"(XY?_?)?PAR_?[12]?", re.IGNORECASE)
_REFSEQ = re.compile(r"NC_0000(0[1-9]|1\d|2[0-4])\.\d+|NC_(012920)\.\d+")


def canonical_contig(name: str) -> str:
    """The canonical name of a contig: ``22`` for ``chr22`` and ``NC_000022.11``; ``MT`` for ``chrM`` and for PLINK's ``26``; ``PAR`` for
    the pseudoautosomal regions (``XY``, ``PAR1``, ``chrX_par2``), whose positions are those of X."""
    bare = name[3:] if name[:3].lower() == "chr" else name
    if refseq := _REFSEQ.fullmatch(bare):
        bare = "MT" if refseq[2] else str(int(refseq[1]))
    elif _PAR.fullmatch(bare):
        return "PAR"
    return _CONTIGS.get(bare.upper(), bare.upper() if len(bare) < 3 else bare)


@lru_cache(maxsize=4096)
def has_one_copy(name: str) -> str:
    """``X``, ``Y`` or ``MT``, of which a person may have one copy; an empty string for every other contig."""
    canonical = canonical_contig(name)
    return canonical if canonical in ("X", "Y", "MT") else ""
