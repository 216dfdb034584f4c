"""The persons table: one row per person, with label and part (train, val, test).

A person's part is ``part_of(id, key, split)``, a keyed hash of the id: no person changes part as the cohort grows, and a person with the
same id at two sites is in the same part at both. A file (columns ``id,part``) may fix the parts instead.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.errors import InputError, nearest
from fedml.study.cohort_section import Split
from fedml.study.section import PARTS, normal
from fedml.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

MISSING_WORDS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?", ".")
NO_LABEL = -1


def separator(path: Path) -> str:
    """What separates the cells of a text table, by the file's ending."""
    return "\t" if path.suffix == ".tsv" else ","


def read_table(path: Path) -> pd.DataFrame:
    """A CSV, TSV or Parquet file as text and numbers, indexed by its column ``id`` (text, so that leading zeros survive).

    Raises:
        InputError: the file is missing or unreadable, has no column ``id``, an empty id, or an id twice.
    """
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with more fields than the header would shift its values
                table = pd.read_csv(
                    path, sep=separator(path), dtype={"id": str}, index_col=False, na_values=list(MISSING_WORDS), keep_default_na=False,
                    encoding="utf-8",
                )  # fmt: skip
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; correct the path in site.toml.") from error
    except (OSError, ValueError, pd.errors.ParserWarning) as error:  # pandas' and pyarrow's parse errors are ValueErrors
        raise InputError(f"{path}: cannot be read as a table ({_first_line(error)}); save it as CSV (UTF-8) or Parquet.") from error
    if "id" not in table.columns:
        raise InputError(f'{path}: has no column "id"{nearest("id", table.columns)}; add a column "id" with each person\'s id.')
    absent = table["id"].isna().to_numpy(copy=True)
    table["id"] = table["id"].astype(str).str.strip()
    absent |= (table["id"] == "").to_numpy()
    if absent.any():
        raise InputError(f"{path}: line {int(np.flatnonzero(absent)[0]) + 2} has no id; give every row a person's id.")
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise InputError(f'{path}: person "{twice.iloc[0]}" has {int((table["id"] == twice.iloc[0]).sum())} rows; keep one row a person.')
    return table.set_index("id")


def column(table: pd.DataFrame, name: str, path: Path, asked_by: str) -> pd.Series[Any]:
    """Column ``name`` of the table.

    Raises:
        InputError: the table has no such column; the message names the file, the study's key ``asked_by`` and the nearest column name.
    """
    if name not in table.columns:
        raise InputError(f'{path}: has no column "{name}"{nearest(name, table.columns)}; {asked_by} needs it.')
    return table[name]


def codes(values: pd.Series[Any], known: tuple[Any, ...], what: str, path: Path) -> npt.NDArray[np.int64]:
    """(persons,) index of each value in ``known``, ``NO_LABEL`` where the value is missing.

    Raises:
        InputError: a value is not among ``known``; the message starts with ``path`` and names ``what``.
    """
    index = {normal(k): i for i, k in enumerate(known)}
    named = {k.lower(): k for k in index}

    # pandas reads True, TRUE and true as booleans: a boolean matches the study's "true" or "false" by name, or else 1 or 0.
    def spelling(value: Any) -> str:
        return named.get(str(value).lower(), normal(value)) if isinstance(value, bool | np.bool_) else normal(value)

    texts = values.map(spelling, na_action="ignore")
    found = texts.map(index, na_action="ignore")
    strange = texts[found.isna() & texts.notna()]
    if len(strange):
        expected = ", ".join(index)
        raise InputError(f'{path}: {what} is "{strange.iloc[0]}" for {len(strange)} person(s), not one of: {expected}.')
    return np.asarray(found.fillna(NO_LABEL), dtype=np.int64)


@dataclass(frozen=True)
class TargetCells:
    """The cells of a persons table as a task reads its labels from them (``fedml.tasks.task.Cells``)."""

    table: pd.DataFrame
    path: Path

    def __len__(self) -> int:
        return len(self.table)

    def codes(self, name: str, known: tuple[Any, ...]) -> npt.NDArray[np.float64]:
        """(persons,) place of each cell of column ``name`` among ``known``, NaN where it is empty."""
        values = column(self.table, name, self.path, "[cohort] target")
        index = codes(values, known, f'the label in column "{name}"', self.path).astype(np.float64)
        index[index == NO_LABEL] = np.nan
        return index

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """(persons,) the cells of column ``name`` as numbers, NaN where they are empty."""
        return numbers(column(self.table, name, self.path, "[cohort] target"), self.path)


def read_labels(table: pd.DataFrame, path: Path, task: Task) -> npt.NDArray[np.float64]:
    """Each person's label as the task has it; NaN where it is missing. Shape (persons,).

    Raises:
        InputError: the column does not exist, a label is not a declared class, or a cell has text where a number is expected.
    """
    return task.labels.read(TargetCells(table, path))


def numbers(values: pd.Series[Any], path: Path) -> npt.NDArray[np.float64]:
    """(persons,) numbers of a column, NaN where missing.

    Raises:
        InputError: a cell contains something other than a finite number.
    """
    import pandas as pd

    out = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
    wrong = (np.isnan(out) & values.notna().to_numpy()) | np.isinf(out)
    if wrong.any():
        raise InputError(
            f'{path}: column "{values.name}" has no finite number for {int(wrong.sum())} person(s); '
            "correct the cell, leave it empty, or declare the column under [cohort.clinical] categories."
        )
    return out


def part_of(person: str, key: str, split: Split) -> int:
    """0 train, 1 val, 2 test: the keyed BLAKE2b hash of the id, as a fraction in [0, 1), compared with the cumulative split fractions."""
    digest = hashlib.blake2b(person.encode(), digest_size=8, key=hashlib.sha256(key.encode()).digest()).digest()
    at = int.from_bytes(digest, "big") / 2**64
    return 0 if at < split.train else 1 if at < split.train + split.val else 2


def read_parts(path: Path, persons: pd.Index[str]) -> npt.NDArray[np.int8]:
    """(persons,) parts from a file, 0 train, 1 val, 2 test, in the order of ``persons``.

    Raises:
        InputError: a person has no part, or a part is not train, val or test.
    """
    table = read_table(path)
    parts = column(table, "part", path, "data.split of site.toml")
    absent = persons.difference(table.index)
    if len(absent):
        raise InputError(f"{path}: {len(absent)} person(s) of the persons table have no part; give each one of train, val, test.")
    found = codes(parts.reindex(persons), PARTS, 'column "part"', path)
    if (found == NO_LABEL).any():
        raise InputError(f"{path}: {int((found == NO_LABEL).sum())} person(s) have an empty part; give each one of train, val, test.")
    return found.astype(np.int8)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
