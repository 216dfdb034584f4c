"""Canonical names of contigs."""

from __future__ import annotations

from functools import lru_cache

_CONTIGS = {"23": "X", "24": "Y", "25": "PAR", "26": "MT", "M": "MT", "XY": "PAR"}  # numbers of PLINK, M of UCSC


def canonical_contig(name: str) -> str:
    """The canonical name of a contig: ``22`` for ``chr22``; ``MT`` for ``chrM`` and for PLINK's ``26``."""
    bare = name[3:] if name[:3].lower() == "chr" else name
    return _CONTIGS.get(bare.upper(), bare.upper() if len(bare) < 3 else bare)


@lru_cache(maxsize=4096)
def has_one_copy(name: str) -> str:
    """``X``, ``Y`` or ``MT``, of which a person may have one copy; an empty string for every other contig."""
    canonical = canonical_contig(name)
    return canonical if canonical in ("X", "Y", "MT") else ""
