"""TCGA breast cancer (BRCA): 39 clinical features and the time to death, at six regions; FLamby's Fed-TCGA-BRCA.

Source: The Cancer Genome Atlas, open access (NCI Genomic Data Commons), as the table and the split of Ogier du Terrail et al. 2022,
"FLamby", arXiv:2210.04620, https://github.com/owkin/FLamby, whose features are those of Andreux et al. 2020, arXiv:2006.08997.

A region joins the places that gave the tissue (characters 6-7 of a case). Eight persons of the table are in no part of the split. Twelve
more have a time of 0 and no event: they were not observed and are left out; no risk set and no comparable pair has them.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from fedml.errors import InputError
from fedml.experiments.prepare.source import Dataset, Say, Source, write_manifest, write_table

REGIONS = ("northeast", "south", "west", "midwest", "europe", "canada")  # by the number in FLamby's split
TABLE, SPLIT = "brca.csv", "train_test_split.csv"
SHA256 = {
    TABLE: "07cb53423f7d579d33cfdbf2cba57b2aee75318b85866c68ce39a75b1f1ba020",
    SPLIT: "1249c6543a4060ff0fdaf8510fc37017755836db6c9fc5e6af96057c36510990",
}
FEATURES = 39
_URL = "https://raw.githubusercontent.com/owkin/FLamby/main/flamby/datasets/fed_tcga_brca"


def _rows(path: Path, needed: tuple[str, ...]) -> tuple[list[str], list[dict[str, str]]]:
    """Names of the columns, and the rows by name.

    Raises:
        InputError: the file is not a table with the columns ``needed``.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), list(reader.fieldnames or ())
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV table ({error}); get the original file again") from error
    if lacking := [name for name in needed if name not in names]:
        raise InputError(f'{path}: has no column "{lacking[0]}"; get the original file again')
    if any(None in row or None in row.values() for row in rows):
        raise InputError(f"{path}: a row has another number of cells than the header; get the original file again")
    return names, rows


def _number(path: Path, row: dict[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise InputError(f"{path}: case {row['pid']}: {name} is {row[name]!r}, not a number from 0; get the original file again")
    return value


def build(files: dict[str, Path], out: Path, seed: int, say: Say) -> None:
    """Writes one folder for each region, with FLamby's training and test persons. ``seed`` has no effect.

    Raises:
        InputError: a file is not the table or the split of FLamby.
    """
    names, people = _rows(files[TABLE], ("pid", "E", "T"))
    part = {row["pid"]: row["fold2"] for row in _rows(files[SPLIT], ("pid", "fold2"))[1]}
    features = [name for name in names if name not in ("pid", "E", "T")]
    if len(features) != FEATURES:
        raise InputError(f"{files[TABLE]}: has {len(features)} features, not {FEATURES}; get the original file again")
    sites: dict[str, list[tuple[str, dict[str, str]]]] = {region: [] for region in REGIONS}
    unseen = unknown = 0
    for row in sorted(people, key=lambda row: row["pid"]):
        if row["pid"] not in part:
            unknown += 1
            continue
        kind, _, number = part[row["pid"]].partition("_")
        if kind not in ("train", "test") or number not in map(str, range(len(REGIONS))):
            raise InputError(f"{files[SPLIT]}: case {row['pid']} has no part of a region; get the original file again")
        time, event = _number(files[TABLE], row, "T"), _number(files[TABLE], row, "E")
        if not time and not event:
            unseen += 1
            continue
        sites[REGIONS[int(number)]].append((kind, row))
    say(f"{len(people)} persons; left out: {unknown} who are not in the split, {unseen} whose time is 0")
    if empty := [region for region, rows in sites.items() if not rows]:
        raise InputError(f"{files[SPLIT]}: no person of the table is of {empty[0]}; get the original file again")
    for region, rows in sites.items():
        folder = out / region
        folder.mkdir()
        whole = [(row["pid"], f"{float(row['T']):g}", f"{float(row['E']):g}") for _, row in rows]
        write_table(folder / "persons.csv", ("id", "days", "died"), whole)
        write_table(folder / "clinical.csv", ("id", *features), ((row["pid"], *(row[name] for name in features)) for _, row in rows))
        write_table(folder / "split.csv", ("id", "part"), ((row["pid"], kind) for kind, row in rows))
        write_manifest(folder, "TCGA breast cancer, open access (GDC)", 'clinical = { path = "clinical.csv" }', 'split = "split.csv"')
        died = sum(event == "1" for _, _, event in whole)
        say(f"{region}: {len(rows)} persons, {sum(kind == 'test' for kind, _ in rows)} of them tested, {died} died")


DATASET = Dataset(
    name="brca",
    about="TCGA breast cancer, 1,076 persons of six regions, 39 clinical features and the time to death",
    homepage="https://github.com/owkin/FLamby, from https://portal.gdc.cancer.gov",
    licence="TCGA open access; the table MIT (cite https://arxiv.org/abs/2210.04620)",
    sources=(
        Source(name=TABLE, folder="fed_tcga_brca", url=f"{_URL}/{TABLE}", sha256=(SHA256[TABLE],)),
        Source(name=SPLIT, folder="fed_tcga_brca", url=f"{_URL}/dataset_creation_scripts/{SPLIT}", sha256=(SHA256[SPLIT],)),
    ),
    build=build,
)
