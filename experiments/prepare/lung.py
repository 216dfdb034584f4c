"""TCGA lung cancer: somatic mutations, expression and copy number of adenocarcinoma (LUAD) and squamous cell carcinoma (LUSC).

Source: The Cancer Genome Atlas, open access (NCI Genomic Data Commons), as the tables of Chen et al., "Pan-cancer integrative
histology-genomic analysis via multimodal deep learning", Cancer Cell 2022, https://doi.org/10.1016/j.ccell.2022.07.004. Expression are
z-scores of each cancer by itself, so that most differences in level between the two are not in the data.

Sites: characters 6-7 of a case are the code of the place that gave the tissue. A code belongs to one cancer, a centre has a code for each:
IGC's are 55 (LUAD) and 56 (LUSC). So codes are joined by centre. A centre of at least ``LARGE`` persons is a site; the others are joined in
the order of their names into sites of at least ``JOINT`` persons, ``joint-1`` and so on.
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections import Counter
from pathlib import Path

from fedml.errors import InputError
from fedml.experiments.prepare.source import Dataset, Say, Source, write_manifest, write_table

FILES = {"LUAD": "tcga_luad_all_clean.csv.zip", "LUSC": "tcga_lusc_all_clean.csv.zip"}
SHA256 = {
    "LUAD": "75da300c70de2c3aa59ecf03bcf3ed66bae2a96731413c4188b24a5314259403",
    "LUSC": "fbbdf5e3c9b467084e216ca9cc4a8bedc4c6e6f5493d3c1b7b17ae38418a478d",
}
# Names of the Genomic Data Commons' table of tissue source sites, shortened.
CENTRES = {
    "igc": ("55", "56"), "asterand": ("85", "86"), "prince-charles": ("77", "78"), "indivumed": ("05", "66"), "christiana": ("43", "44"),
    "abs-iupui": ("90", "91"), "alabama": ("98", "99"), "albert-einstein": ("S2", "XC"), "baylor": ("MN",), "calgb": ("O1", "O2"),
    "candler": ("L9", "LA"), "chi-penrose": ("83",), "chuv": ("NC",), "cleveland-clinic": ("68", "69"), "cureline": ("35", "37"),
    "emory": ("94", "95"), "fox-chase": ("21", "64"), "gundersen": ("L3", "L4"), "heidelberg": ("58", "62"), "ilsbio": ("70", "71"),
    "johns-hopkins": ("33", "49"), "lahey": ("J1", "J2"), "mary-bird-perkins": ("4B",), "mayo": ("22", "MP"), "miami": ("52", "53"),
    "minnesota": ("MF",), "mskcc": ("39",), "nyu": ("96", "97"), "ontario": ("63", "75", "80"), "pittsburgh": ("34", "50"),
    "princess-margaret": ("18",), "roswell-park": ("60", "73"), "rush": ("NJ", "NK"), "st-josephs": ("46", "67"),
    "unc": ("38", "51"), "washington": ("92", "93"),
}  # fmt: skip
CENTRE_OF = {code: centre for centre, codes in CENTRES.items() for code in codes}
LARGE, JOINT = 60, 100  # persons
FAR = 10.0  # z-scores beyond are written as this: single cells reach 11,573, which would be all that a mean and a deviation see
TARGET = "EGFR_mut"
_BYTES = 32 << 20  # of a table, unpacked; it has 8 MB
_OWN = ("case_id", "age", "survival_months", "censorship", "is_female")
_KINDS = ("_rnaseq", "_mut", "_cnv")


Persons = dict[str, dict[str, str]]  # case -> column -> cell


def read(path: Path) -> Persons:
    """The persons of a file: the columns ``_OWN`` and those of genes, cells as text, "" where missing.

    A person has a row for each slide, which differ in the slide alone. Expression is written within ``FAR``.

    Raises:
        InputError: the file is not such a table, or two rows of a person differ.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            member = packed.infolist()[0]
            if member.file_size > _BYTES:
                raise InputError(f"{path}: unpacks to {member.file_size:,} bytes, not to 8 MB; get the original file again")
            names, *rows = csv.reader(io.StringIO(packed.read(member).decode(), newline=""))
    except (zipfile.BadZipFile, IndexError, ValueError, NotImplementedError, csv.Error) as error:
        raise InputError(f"{path}: not a packed CSV table ({error}); get the original file again") from error
    lacking = [name for name in _OWN if name not in names]
    if lacking:
        raise InputError(f'{path}: has no column "{lacking[0]}"; get the original file again')
    kept = [at for at, name in enumerate(names) if name in _OWN or name.endswith(_KINDS)]
    persons: Persons = {}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise InputError(f"{path}: row {number} has {len(row)} cells, not {len(names)}; get the original file again")
        person = {names[at]: row[at] for at in kept}
        case = person.pop("case_id")
        if case[5:7] not in CENTRE_OF:
            raise InputError(f"{path}: row {number}: {case!r} is of no known tissue source site; get the original file again")
        if persons.setdefault(case, person) != person:
            raise InputError(f"{path}: the rows of case {case} differ; get the original file again")
    return persons


def limit(persons: Persons, path: Path) -> int:
    """Writes expressions beyond ``FAR`` as ``FAR``, other cells stay; returns how many.

    Raises:
        InputError: an expression is not a number.
    """
    count = 0
    for case, person in persons.items():
        for name, cell in person.items():
            if name.endswith("_rnaseq") and cell:
                try:
                    value = float(cell)
                except ValueError as error:
                    raise InputError(f"{path}: case {case}: {name} is {cell!r}, not a number; get the original file again") from error
                if abs(value) > FAR:
                    person[name] = f"{math.copysign(FAR, value):g}"
                    count += 1
    return count


def sites_of(cases: list[str]) -> dict[str, list[str]]:
    """Site -> centres, by the rule of this module, of cases such as "TCGA-05-4249"."""
    persons = Counter(CENTRE_OF[case[5:7]] for case in cases)
    sites = {centre: [centre] for centre, count in sorted(persons.items()) if count >= LARGE}
    joint: list[list[str]] = [[]]
    for centre in sorted(set(persons) - set(sites)):
        if sum(persons[c] for c in joint[-1]) >= JOINT:
            joint.append([])
        joint[-1].append(centre)
    if len(joint) > 1 and sum(persons[c] for c in joint[-1]) < JOINT:
        last = joint.pop()
        joint[-1] += last
    return sites | {f"joint-{i}": centres for i, centres in enumerate(joint, start=1) if centres}


def build(files: dict[str, Path], out: Path, seed: int, say: Say) -> None:
    """Writes one folder for each site. ``seed`` has no effect.

    The matrix has the genes of LUAD; where LUSC's file has no such column, its persons' cells are empty. A study of both cancers must not
    list these, because their absence tells the cancer. The mutation of EGFR is in ``persons.csv`` alone.

    Raises:
        InputError: from ``read``.
    """
    both: Persons = {}
    genes: list[str] = []
    for cancer, name in FILES.items():
        persons = read(files[name])
        far = limit(persons, files[name])
        say(f"{cancer}: {len(persons)} persons; {far} expressions beyond {FAR:g} standard deviations, written as {FAR:g}")
        columns = list(next(iter(persons.values()), {}))
        if cancer == "LUAD" and TARGET not in columns:
            raise InputError(f'{files[name]}: has no column "{TARGET}"; get the original file again')
        genes = genes or [column for column in columns if column not in (*_OWN, TARGET)]
        both |= {case: person | {"subtype": cancer} for case, person in persons.items()}
    for site, centres in sites_of(list(both)).items():
        chosen = {case: both[case] for case in sorted(both) if CENTRE_OF[case[5:7]] in centres}
        folder = out / site
        folder.mkdir()
        people = [(case, p["subtype"], p.get(TARGET, ""), p["survival_months"], _died(p["censorship"])) for case, p in chosen.items()]
        write_table(folder / "persons.csv", ("id", "subtype", "egfr", "months", "died"), people)
        clinical = ((case, _whole(p["age"]), _whole(p["is_female"])) for case, p in chosen.items())
        write_table(folder / "clinical.csv", ("id", "age", "female"), clinical)
        write_table(folder / "omics.csv", ("id", *genes), ((case, *(p.get(g, "") for g in genes)) for case, p in chosen.items()))
        write_manifest(
            folder, "TCGA lung cancer, open access (GDC)", 'clinical = { path = "clinical.csv" }', 'omics = { path = "omics.csv" }'
        )
        squamous, mutated = sum(p[1] == "LUSC" for p in people), sum(p[2] == "1" for p in people)
        say(f"{site}: {len(people)} persons, {squamous / len(people):.1%} LUSC, {mutated} with mutated EGFR; from {', '.join(centres)}")


def _died(censored: str) -> str:
    """ "1" for a death, "0" for a time that ends without one."""
    return "" if not censored else str(int(float(censored) == 0))


def _whole(cell: str) -> str:
    """ "67.0" as "67"."""
    return cell.removesuffix(".0")


DATASET = Dataset(
    name="lung",
    about="TCGA lung cancer, 903 persons of 36 centres, mutations, expression and copy number of genes",
    homepage="https://github.com/mahmoodlab/PORPOISE, from https://portal.gdc.cancer.gov",
    licence="TCGA open access (cite https://doi.org/10.1016/j.ccell.2022.07.004)",
    sources=tuple(
        Source(
            name=name,
            folder="tcga_lung_genomics",
            url=f"https://raw.githubusercontent.com/mahmoodlab/PORPOISE/master/datasets_csv/{name}",
            sha256=(SHA256[cancer],),
            max_bytes=8 << 20,
        )
        for cancer, name in FILES.items()
    ),
    build=build,
)
