"""UCI heart disease: four hospitals, 13 clinical columns and the outcome: narrowing of a coronary vessel.

Source: Janosi, Steinbrunn, Pfisterer and Detrano, Heart Disease, UCI Machine Learning Repository, 1989,
https://doi.org/10.24432/C52P4X. Licence: CC BY 4.0, as stated there.
"""

from __future__ import annotations

import math
from pathlib import Path

from fedml.errors import InputError
from fedml.experiments.prepare.source import Dataset, Say, Source, text_lines, write_manifest, write_table

COLUMNS = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg"),
    *("thalach", "exang", "oldpeak", "slope", "ca", "thal"),
)
MISSING = {"", "?", "nan"}
SITES = {
    "cleveland": "processed.cleveland.data",
    "budapest": "processed.hungarian.data",
    "zurich-basel": "processed.switzerland.data",
    "long-beach": "processed.va.data",
}
# Two forms of each file exist: with missing values as "NaN" (first checksum, measured) and as "?". Replacing "NaN" by "?" in the first
# gives the second checksum, which several public projects state for UCI's file.
SHA256 = {
    "processed.cleveland.data": (
        "0ad84ed1809abe7206420c0c45d77153fb82b85bbb20a2de3d34c6be1696915c",
        "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    ),
    "processed.hungarian.data": (
        "b7e2781a582917c782f906d079efd9d8994fbbfaa8bd50cce0dbdfc529502551",
        "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    ),
    "processed.switzerland.data": (
        "75fa4ed7943b891bc232fd36363c83a00d52c7cd3edaffae17ec99036d7021a5",
        "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    ),
    "processed.va.data": (
        "9a439dc875370c855c1b9c4f8f53f07a4356534f309648948d4f5d0425b5b0c4",
        "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
    ),
}


def read(path: Path) -> tuple[list[list[str]], list[int]]:
    """The 13 clinical cells of every row, "" if missing, and 1 if the last column is above 0 (disease), else 0.

    Numbers are written uniformly: "1.0" at one hospital and "1" at another are the same level of a category. Other values are unchanged: a
    cholesterol of 0 is kept, because the study declares its meaning.

    Raises:
        InputError: a row does not have 14 columns, a cell is not a number, or the outcome is missing.
    """
    clinical, disease = [], []
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(COLUMNS) + 1:
            raise InputError(f"{path}: line {number} has {len(cells)} columns, not 14; get the original file again")
        values = [_number(cell, path, number) for cell in cells]
        if values[-1] not in {"0", "1", "2", "3", "4"}:
            raise InputError(f"{path}: line {number}: the last column must be 0 to 4, not {cells[-1]!r}; get the original file again")
        clinical.append(values[:-1])
        disease.append(int(values[-1] != "0"))
    return clinical, disease


def _number(cell: str, path: Path, line: int) -> str:
    if cell.lower() in MISSING:
        return ""
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise InputError(f"{path}: line {line}: {cell!r} is not a number; get the original file again")
    return str(int(value)) if value.is_integer() else repr(value)


def build(files: dict[str, Path], out: Path, seed: int, say: Say) -> None:
    """Writes one folder for each hospital. ``seed`` has no effect.

    Raises:
        InputError: from ``read``.
    """
    for site, name in SITES.items():
        clinical, disease = read(files[name])
        folder = out / site
        folder.mkdir()
        ids = [f"{site}-{i:03d}" for i in range(1, len(disease) + 1)]
        write_table(folder / "persons.csv", ("id", "disease"), zip(ids, disease, strict=True))
        rows = ((person, *cells) for person, cells in zip(ids, clinical, strict=True))
        write_table(folder / "clinical.csv", ("id", *COLUMNS), rows)
        write_manifest(folder, "UCI heart disease, CC BY 4.0", 'clinical = { path = "clinical.csv" }')
        zeros = sum(cells[COLUMNS.index("chol")] == "0" for cells in clinical)
        say(f"{site}: {len(ids)} persons, {sum(disease) / len(ids):.1%} with disease, cholesterol 0 in {zeros}")


DATASET = Dataset(
    name="heart",
    about="UCI heart disease, four hospitals, 13 clinical columns",
    homepage="https://archive.ics.uci.edu/dataset/45/heart+disease",
    licence="CC BY 4.0 (cite https://doi.org/10.24432/C52P4X)",
    sources=tuple(
        Source(
            name=name,
            folder="uci_heart",
            url=f"https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/{name}",
            sha256=SHA256[name],
            max_bytes=1 << 20,
        )
        for name in SITES.values()
    ),
    build=build,
)
