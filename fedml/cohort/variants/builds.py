"""Recognises a file's genome build by the chromosome lengths in its header.

Lengths: the assembly reports of NCBI36 (hg18), GRCh37 (hg19), GRCh38 (hg38) and T2T-CHM13v2.0, chromosomes 1 to 22, X, Y.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from fedml.errors import InputError
from fedml.study.contigs import canonical_contig

Build = Literal["NCBI36", "GRCh37", "GRCh38", "T2T-CHM13"]
BUILDS: tuple[Build, ...] = get_args(Build)
_NAMES = (*map(str, range(1, 23)), "X", "Y")
_LENGTHS: dict[Build, tuple[int, ...]] = {
    "NCBI36": (
        247249719, 242951149, 199501827, 191273063, 180857866, 170899992, 158821424, 146274826, 140273252, 135374737, 134452384, 132349534,
        114142980, 106368585, 100338915, 88827254, 78774742, 76117153, 63811651, 62435964, 46944323, 49691432, 154913754, 57772954,
    ),
    "GRCh37": (
        249250621, 243199373, 198022430, 191154276, 180915260, 171115067, 159138663, 146364022, 141213431, 135534747, 135006516, 133851895,
        115169878, 107349540, 102531392, 90354753, 81195210, 78077248, 59128983, 63025520, 48129895, 51304566, 155270560, 59373566,
    ),
    "GRCh38": (
        248956422, 242193529, 198295559, 190214555, 181538259, 170805979, 159345973, 145138636, 138394717, 133797422, 135086622, 133275309,
        114364328, 107043718, 101991189, 90338345, 83257441, 80373285, 58617616, 64444167, 46709983, 50818468, 156040895, 57227415,
    ),
    "T2T-CHM13": (
        248387328, 242696752, 201105948, 193574945, 182045439, 172126628, 160567428, 146259331, 150617247, 134758134, 135127769, 133324548,
        113566686, 101161492, 99753195, 96330374, 84276897, 80542538, 61707364, 66210255, 45090682, 51324926, 154259566, 62460029,
    ),
}  # fmt: skip
LENGTHS: dict[Build, dict[str, int]] = {build: dict(zip(_NAMES, lengths, strict=True)) for build, lengths in _LENGTHS.items()}


def build_of(contigs: Mapping[str, int | None]) -> Build | None:
    """The build that has the chromosome lengths in the header; None if the header gives no length of a known build, or lengths of several.
    A length that no build has is no evidence: 1000 Genomes cuts GRCh37's Y before its second pseudoautosomal region."""
    fits = _fits(contigs)
    common = [build for build in BUILDS if all(build in builds for builds in fits.values())]
    return common[0] if fits and len(common) == 1 else None


def mixed(contigs: Mapping[str, int | None]) -> str:
    """Which contigs have lengths of different builds, in words; empty if one build has all known lengths: ``21 as in GRCh37, Y as in
    GRCh38``."""
    fits = _fits(contigs)
    if not fits or set.intersection(*map(set, fits.values())):
        return ""
    shown = {builds: name for name, builds in reversed(fits.items())}
    return ", ".join(f"{name} as in {' or '.join(builds)}" for builds, name in reversed(shown.items()))


def _fits(contigs: Mapping[str, int | None]) -> dict[str, tuple[Build, ...]]:
    """Name in the header -> the builds in which the chromosome has that length, where there is one."""
    found = {
        name: tuple(build for build in BUILDS if length is not None and LENGTHS[build].get(canonical_contig(name)) == length)
        for name, length in contigs.items()
    }
    return {name: builds for name, builds in found.items() if builds}


def check_build(contigs: Mapping[str, int | None], build: Build, where: str) -> Build | None:
    """``build_of``, after a comparison with the ``build`` that the site states.

    Raises:
        InputError: the header's lengths are of several builds, or of another build.
    """
    if text := mixed(contigs):
        raise InputError(
            f"{where}: the contig lengths in the header are of several builds ({text}), so the build of the positions is not known; "
            "give the file the header of its build (bcftools reheader), or lift its parts over to one build."
        )
    found = build_of(contigs)
    if found is not None and found != build:
        raise InputError(f"{where}: the contig lengths are those of {found}, but site.toml says {build}; correct data.variants build.")
    return found


def end_of(contig: str, build: Build) -> int:
    """The last position of a contig, by its canonical name, in that build; 2**62 where the build has no length for it."""
    return LENGTHS[build].get(contig, 2**62)
