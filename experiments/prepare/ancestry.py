"""HapMap3 and 1000 Genomes phase 1: two studies with the same 14,079 variants and 564 persons in common.

Sources: HapMap3 release 2 (The International HapMap 3 Consortium, Nature 467, 2010) and 1000 Genomes phase 1 release 3
(The 1000 Genomes Project Consortium, Nature 491, 2012), thinned to shared autosomal variants by the authors of flashpca
(https://github.com/gabraham/flashpca, folder HapMap3, described in its README). Licence: both projects publish these data
openly; the thinned files state no licence. Positions are of different genome builds (HapMap3: NCBI36, 1000 Genomes:
GRCh37), so variants must be matched by rsID.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from fedml.errors import InputError
from fedml.experiments.prepare.source import Dataset, Say, Source, text_lines, write_manifest, write_table

CONTINENT = {
    **dict.fromkeys(("ASW", "LWK", "MKK", "YRI"), "AFR"),
    **dict.fromkeys(("CEU", "TSI"), "EUR"),
    **dict.fromkeys(("CHB", "CHD", "JPT"), "EAS"),
    "GIH": "SAS",
    "MEX": "AMR",
}
RELATIONSHIPS = "relationships_w_pops_121708.txt"
PANEL = "integrated_call_samples_v3.20130502.ALL.panel"
STEMS = {
    "hapmap3": "HM3_thinned_autosomal_overlap",
    "kg1": "1kg.ref.phase1_release_v3.20101123_thinned_autosomal_overlap",
}
BUILDS = {"hapmap3": "NCBI36", "kg1": "GRCh37"}
TITLES = {"hapmap3": "HapMap3", "kg1": "1000 Genomes phase 1"}


def column(path: Path, *names: str) -> list[tuple[str, ...]]:
    """The columns ``names`` of a tab-separated file with a header, as rows.

    Raises:
        InputError: a column is missing, or a row is too short.
    """
    lines = text_lines(path)
    header = lines[0].split("\t")
    absent = [name for name in names if name not in header]
    if absent:
        raise InputError(f"{path}: the header has no column {absent[0]!r}; get the original file again")
    where = [header.index(name) for name in names]
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if not line.strip():
            continue
        if len(cells) <= max(where):
            raise InputError(f"{path}: line {number} has {len(cells)} columns, too few; get the original file again")
        rows.append(tuple(cells[i].strip() for i in where))
    return rows


def hapmap_populations(path: Path) -> dict[str, tuple[str, str]]:
    """Person -> population, continent, from HapMap3's list of relationships.

    Raises:
        InputError: from ``column``.
    """
    return {iid: (pop, CONTINENT[pop]) for iid, pop in column(path, "IID", "population") if pop in CONTINENT}


def panel_populations(path: Path) -> dict[str, tuple[str, str]]:
    """Person -> population, continent, from the sample panel of 1000 Genomes.

    Raises:
        InputError: from ``column``.
    """
    return {iid: (pop, continent) for iid, pop, continent in column(path, "sample", "pop", "super_pop") if pop and continent}


def fam_ids(path: Path) -> list[str]:
    """The ids of a PLINK ``.fam`` file (second column), in the order of the genotypes.

    Raises:
        InputError: a row does not have six columns, or an id is in the file twice.
    """
    ids = []
    for number, line in enumerate(text_lines(path), start=1):
        cells = line.split()
        if len(cells) != 6:
            raise InputError(f"{path}: line {number} has {len(cells)} columns, not 6; get the original file again")
        ids.append(cells[1])
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise InputError(f"{path}: {twice} is in the file twice; get the original file again")
    return ids


def check_bed(bed: Path, persons: int, variants: int) -> None:
    """Checks that the ``.bed`` file is variant-major and has the size that its ``.bim`` and ``.fam`` imply.

    Raises:
        InputError: one of the two is not the case.
    """
    with bed.open("rb") as file:
        magic = file.read(3)
    if magic != b"\x6c\x1b\x01":
        raise InputError(f"{bed}: not a variant-major PLINK .bed file; get the original file again")
    size = 3 + variants * ((persons + 3) // 4)
    if bed.stat().st_size != size:
        raise InputError(
            f"{bed}: has {bed.stat().st_size} bytes, {variants} variants (.bim) and {persons} persons (.fam) "
            f"need {size}; get the three files from one source"
        )


def build(files: dict[str, Path], out: Path, seed: int, say: Say) -> None:
    """Writes one folder for each study. ``seed`` has no effect.

    Raises:
        InputError: a file is malformed, or no person has a known population.
    """
    known = {"hapmap3": hapmap_populations(files[RELATIONSHIPS]), "kg1": panel_populations(files[PANEL])}
    genotyped: dict[str, set[str]] = {}
    for site, stem in STEMS.items():
        bed, bim, fam = (files[f"{stem}.{ending}"] for ending in ("bed", "bim", "fam"))
        ids = fam_ids(fam)
        variants = len(text_lines(bim))
        check_bed(bed, len(ids), variants)
        persons = [(person, *known[site][person]) for person in ids if person in known[site]]
        if not persons:
            raise InputError(f"{fam}: no person has a known population; get the file of this study")
        _write(out / site, site, (bed, bim, fam), persons)
        genotyped[site] = set(ids)
        say(f"{site}: {len(persons)} persons, {variants} variants; excluded without a known population: {len(ids) - len(persons)}")
    both = genotyped["hapmap3"] & genotyped["kg1"]
    labelled = sum(person in known["hapmap3"] and person in known["kg1"] for person in both)
    say(
        f"persons at both sites, under the same id: {len(both)} genotyped, {labelled} of them with a population at both; "
        "the study's split is a keyed hash of the id, so each is in the same part at both"
    )


def _write(folder: Path, site: str, plink: Sequence[Path], persons: list[tuple[str, str, str]]) -> None:
    folder.mkdir()
    for path in plink:
        shutil.copyfile(path, folder / f"genotypes{path.suffix}")
    write_table(folder / "persons.csv", ("id", "population", "ancestry"), persons)
    write_manifest(
        folder,
        f"{TITLES[site]}, thinned by the authors of flashpca, public data (no licence stated); match by rsID",
        f'variants = {{ path = "genotypes.bed", build = "{BUILDS[site]}" }}',
    )


# The commit whose README describes these files. The SHA-256 were measured on copies, not on a download from this address; a download that
# differs is refused.
FLASHPCA = "https://raw.githubusercontent.com/gabraham/flashpca/00ff29106e9e67eabe473f2d15886fce2332e3c7/HapMap3"
PLINK_SHA256 = {
    "HM3_thinned_autosomal_overlap.bed": "4e7cbb58b47c05026bce109db4e425f852382ac597735dc32ebfc29e7f84efb8",
    "HM3_thinned_autosomal_overlap.bim": "7db221e0612a19bffcc53fef5c73b7592e425de431221c1985a6fbeecadea26c",
    "HM3_thinned_autosomal_overlap.fam": "d70ddafd3caed0b974e5029f550817a822a8afafe277920633c28766069ec509",
    "1kg.ref.phase1_release_v3.20101123_thinned_autosomal_overlap.bed": (
        "fb6559281a206abb3a552f8dcd6078d069b48bb364b54eea4694d16c1ca67b66"
    ),
    "1kg.ref.phase1_release_v3.20101123_thinned_autosomal_overlap.bim": (
        "ded8b5e781b9941722498eb8972efa705b87ab9e4b37cd6cd51652cc7a300ca4"
    ),
    "1kg.ref.phase1_release_v3.20101123_thinned_autosomal_overlap.fam": (
        "3403df66dca6a3241e75c371ebfe9ac98e5c3a130b6ae21eae343909aca5a3e1"
    ),
}
DATASET = Dataset(
    name="ancestry",
    about="HapMap3 and 1000 Genomes phase 1, the same 14,079 variants, population and continental ancestry",
    homepage="https://github.com/gabraham/flashpca (genotypes), https://www.internationalgenome.org (panel)",
    licence="public data of the HapMap and 1000 Genomes projects; the thinned files state no licence",
    sources=(
        *(
            Source(name=name, folder="genotypes_hapmap3_1kg", url=f"{FLASHPCA}/{name}", sha256=(sha256,))
            for name, sha256 in PLINK_SHA256.items()
        ),
        Source(
            name=RELATIONSHIPS,
            folder="genotypes_hapmap3_1kg",
            url=f"https://ftp.ncbi.nlm.nih.gov/hapmap/genotypes/2009-01_phaseIII/plink_format/{RELATIONSHIPS}",
            sha256=("2f109108a43a4115d7e696a469470999858bfd177df51dc5bf5331bcc7205691",),
            max_bytes=1 << 20,
        ),
        Source(
            name=PANEL,
            folder="vcf_1kg_chr21",
            url=f"https://ftp.1000genomes.ebi.ac.uk/vol1/ftp/release/20130502/{PANEL}",
            # Two panels have this name. The first has 2,535 persons; its checksum was measured. The second has the 2,504 of the phase 3
            # call set; its checksum was measured on the first without the other 31, whose MD5 is that publicly stated for the official
            # file (7ee5675553088230530a7fe88c22f201). The second lists 14 fewer persons of phase 1.
            sha256=(
                "f064a70d2d4eadad9d0b8e03ac6e490988c64f8b6f01b576c4d42207e1c5d4f2",
                "b4023dc6ee2d62ee89c8d4d347db4d348e65518d66d346574cdae7a4bbd76858",
            ),
            max_bytes=1 << 20,
        ),
    ),
    build=build,
)
