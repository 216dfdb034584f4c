"""Names of a genome build and of its chromosomes, as a client of a Beacon may write them.

RefSeq accessions: NCBI Assembly, GCF_000001405.25 (GRCh37.p13) and GCF_000001405.40 (GRCh38.p14).
"""

from __future__ import annotations

import re

from fedml.study.contigs import canonical_contig

_VERSIONS = {  # of NC_000001 to NC_000024
    "GRCh37": (10, 11, 11, 11, 9, 11, 13, 10, 11, 10, 9, 11, 10, 8, 9, 9, 10, 9, 9, 10, 8, 10, 10, 9),
    "GRCh38": (11, 12, 12, 12, 10, 12, 14, 11, 12, 11, 10, 12, 11, 9, 10, 10, 11, 10, 10, 11, 9, 11, 11, 10),
}
_NAMES = (*map(str, range(1, 23)), "X", "Y")
_BUILDS = {
    "NCBI36": r"ncbi36|hg18",
    "GRCh37": r"grch37(\.p\d+)?|hg19|b37|hs37(d5)?|gcf_000001405\.(1[3-9]|2[0-5])",
    "GRCh38": r"grch38(\.p\d+)?|hg38|gcf_000001405\.(2[6-9]|3\d|40)",
    "T2T-CHM13": r"t2t-chm13(v2(\.0)?)?|chm13v2(\.0)?|hs1|gcf_009914755\.1",
}
_NAME = re.compile(r"[A-Za-z0-9_.]{1,40}")


def build_named(name: str) -> str | None:
    """The build of an ``assemblyId``: ``GRCh38`` for ``hg38``, ``GRCh38.p13``, ``GCF_000001405.39``; None if it is not known."""
    return next((build for build, names in _BUILDS.items() if re.fullmatch(names, name.strip().lower())), None)


def sequence_id(build: str, chromosome: str) -> str:
    """A chromosome as a CURIE: ``refseq:NC_000022.11``; of a build whose accessions are not listed here, ``T2T-CHM13:22``."""
    if chromosome == "MT" and build in _VERSIONS:
        return "refseq:NC_012920.1"
    if build in _VERSIONS and chromosome in _NAMES:
        place = _NAMES.index(chromosome)
        return f"refseq:NC_{place + 1:06d}.{_VERSIONS[build][place]}"
    return f"{build}:{chromosome}"


def chromosome_named(name: str, build: str) -> str | None:
    """The table's name of ``referenceName``; None if it is no name of a sequence, or an accession of another build."""
    bare = name.strip().removeprefix("refseq:")
    if not _NAME.fullmatch(bare):
        return None
    chromosome = canonical_contig(bare)
    if bare.startswith("NC_") and sequence_id(build, chromosome) != f"refseq:{bare}":
        return None
    return "X" if chromosome == "PAR" else chromosome
