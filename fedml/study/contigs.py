"""One spelling for each contig."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


_CONTIGS = {"23": "X", "24": "Y", "25": "PAR", "26": "MT", "M": "MT", "XY": "PAR"}  # PLINK's numbers, UCSC's M


def canonical_contig(name: str) -> str:
    """``chr22`` and ``22`` are one contig, so are ``chrM``, ``MT`` and PLINK's ``26``."""
    bare = name[3:] if name[:3].lower() == "chr" else name
    return _CONTIGS.get(bare.upper(), bare.upper() if len(bare) < 3 else bare)
