"""The persons table: one row per person, with label and part (train, val, test).

A person's part is ``part_of(id, key, split)``, a keyed hash of the id: no person changes part as the cohort grows, and a person with the
same id at two sites is in the same part at both. A file (columns ``id,part``) may fix the parts instead.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.ids import check_ids
from fedml.cohort.sheet import MISSING_WORDS, read_table
from fedml.errors import InputError, nearest
from fedml.study.section import PARTS, normal
from fedml.study.split import Split
from fedml.tasks.task import Task
from fedml.text import printable

if TYPE_CHECKING:
    import pandas as pd

NO_LABEL = -1
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def column(table: pd.DataFrame, name: str, path: Path, asked_by: str) -> pd.Series[Any]:
    """Column ``name`` of the table.

    Raises:
        InputError: the table has no such column; the message names the file, the study's key ``asked_by`` and the nearest column name.
    """
    try:
        place = table.columns.get_loc(name)
    except KeyError:
        raise InputError(f'{path}: has no column "{name}"{nearest(name, table.columns)}; {asked_by} needs it.') from None
    if not isinstance(place, int):
        raise InputError(f'{path}: has the column "{name}" {int((table.columns == name).sum())} times; keep one.')
    return table.iloc[:, place]


def codes(values: pd.Series[Any], known: tuple[Any, ...], what: str, path: Path) -> npt.NDArray[np.int64]:
    """(persons,) index of each value in ``known``, ``NO_LABEL`` where the value is missing.

    A cell is the value that is written as the cell is, or else the one that is the same number (1 is 1.0); what is left and is a word for
    a missing value is missing, and ``true`` and ``false`` are 1 and 0.

    Raises:
        InputError: a value is not among ``known``; the message starts with ``path`` and names ``what``.
    """
    exact = {str(k).strip(): i for i, k in enumerate(known)}
    alike = Counter(normal(k) for k in known)
    numbers_of = {normal(k): i for i, k in enumerate(known) if alike[normal(k)] == 1}
    words = {text.lower(): i for text, i in exact.items()} | {normal(k).lower(): i for k, i in numbers_of.items()}

    def index(value: Any) -> int | None:
        text = normal(value) if isinstance(value, float) else str(value).strip()
        if text in exact:
            return exact[text]
        number = normal(text) if _NUMBER.fullmatch(text) else text
        if number in numbers_of:
            return numbers_of[number]
        if text.lower() in ("true", "false"):
            return words.get(text.lower(), words.get("1" if text.lower() == "true" else "0"))
        return NO_LABEL if text in MISSING_WORDS else None

    different = {value: index(value) for value in values.dropna().unique()}
    strange = [value for value, found in different.items() if found is None]
    if strange:
        expected, cell = ", ".join(map(str, known)), printable(str(strange[0])[:60])
        count = int((values == strange[0]).sum())
        expected = f"{expected}{nearest(cell, exact)}; correct the cell, or what the study lists"
        raise InputError(f'{path}: {what} is "{cell}" for {count} person(s), not one of: {expected}.')
    return np.asarray(values.map(different).fillna(NO_LABEL), dtype=np.int64)


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

    def numbers(self, name: str, asked_by: str = "[cohort] target") -> npt.NDArray[np.float64]:
        """(persons,) the cells of column ``name`` as numbers, NaN where they are empty. ``asked_by``: the study's key that names it."""
        return numbers(column(self.table, name, self.path, asked_by), self.path)


def read_labels(table: pd.DataFrame, path: Path, task: Task) -> npt.NDArray[np.float64]:
    """Each person's label as the task has it (``fedml.tasks.task.Labels``); NaN where it is missing.

    Raises:
        InputError: the column does not exist, a label is not a declared class, or a cell has text where a number is expected.
    """
    return task.labels.read(TargetCells(table, path))


def numbers(values: pd.Series[Any], path: Path, *, booleans: bool = True) -> npt.NDArray[np.float64]:
    """(persons,) numbers of a column, NaN where missing. With ``booleans`` a column of true and false is one of 1 and 0.

    Raises:
        InputError: a cell contains something other than a finite number.
    """
    import pandas as pd

    boolean = pd.api.types.is_bool_dtype(values.dtype)
    if pd.api.types.is_numeric_dtype(values.dtype) and (booleans or not boolean):  # of Parquet, or of a caller's own table
        found = values.to_numpy(dtype=np.float64, na_value=np.nan)
        strange = values[np.isinf(found)] if np.isinf(found).any() else values[:0]
    elif boolean or values.dtype == object or pd.api.types.is_string_dtype(values.dtype):
        different = {value: _number(value) for value in values.dropna().unique()}
        cells: set[str] = set()
        if booleans and None in different.values():  # true and false are no numbers
            cells = {str(value).strip().lower() for value in different if str(value).strip() not in MISSING_WORDS}
        if cells and cells <= {"true", "false"}:
            different |= {value: float(str(value).strip().lower() == "true") for value in different if str(value).strip().lower() in cells}
        found = values.map(different).to_numpy(dtype=np.float64, na_value=np.nan)
        wrong = [value for value, number in different.items() if number is None]
        strange = values[values.isin(wrong)] if wrong else values[:0]
    else:
        found, strange = np.empty(0), values[values.notna()]
    if len(strange):
        raise InputError(
            f'{path}: column "{values.name}" has no finite number for {len(strange)} person(s){_kind(strange.iloc[0], booleans)}.'
        )
    return found


def _number(value: Any) -> float | None:
    """The number of a cell, NaN for a missing one, None for neither."""
    if isinstance(value, str):
        text = value.strip()
        number = float(text) if _NUMBER.fullmatch(text) else math.nan if text in MISSING_WORDS else None
        return None if number is not None and math.isinf(number) else number
    if isinstance(value, int | float | np.integer | np.floating | Decimal):
        return None if math.isinf(value) else float(value)
    return None


def _kind(value: Any, clinical: bool) -> str:
    """What a cell is that is no number, and what to write."""
    text = printable(str(value)[:40])
    if isinstance(value, str):
        if re.fullmatch(r"[+-]?[\d.]*,[\d.,]*\d", value):
            return f', such as "{text}"; write numbers with a decimal point and without separators of thousands'
        if re.match(r"\d{4}-\d\d?-\d\d?|\d\d?[./]\d\d?[./]\d{2,4}", value):
            rule = ", or give the column a rule under [cohort.clinical] dates" if clinical else ""
            return f', but a date such as "{text}"; write a number in its place, such as an age in years or a number of days{rule}'
        fix = "correct the cell or leave it empty"
        fix += ", list it under [cohort.clinical] missing, or declare the column under categories" if clinical else ""
        return f', such as "{text}"; {fix}'
    if isinstance(value, date | timedelta | np.datetime64 | np.timedelta64):
        rule = ", or give dates a rule under [cohort.clinical] dates" if clinical else ""
        return f", but dates or durations such as {text}; write a number in its place, such as an age in years or a number of days{rule}"
    return f", such as {text}; correct the cell or leave it empty"


def part_of(person: str, key: str, split: Split) -> int:
    """0 train, 1 val, 2 test: the keyed BLAKE2b hash of the id, as a fraction in [0, 1), compared with the cumulative split fractions.

    With ``folds``, the hash tells the one fold in which the person is tested; in the others a second hash parts train and val.
    """
    place = _hashed(person, key)
    if split.folds:
        if (place * split.folds >> 64) + 1 == split.fold:
            return 2
        return int(_hashed(person, f"{key}/val") / 2**64 >= split.train / (split.train + split.val))
    at = place / 2**64
    return 0 if at < split.train else 1 if at < split.train + split.val else 2


def _hashed(person: str, key: str) -> int:
    """The keyed BLAKE2b hash of an id, of 64 bits."""
    return int.from_bytes(hashlib.blake2b(person.encode(), digest_size=8, key=hashlib.sha256(key.encode()).digest()).digest(), "big")


def read_parts(path: Path, persons: pd.Index[str], id_column: str = "id") -> npt.NDArray[np.int8]:
    """(persons,) parts from a file, 0 train, 1 val, 2 test, in the order of ``persons``.

    Raises:
        InputError: a person has no part, or a part is not train, val or test.
    """
    table = read_table(path, id_column)
    check_ids([str(person) for person in persons], table.index, str(path))
    parts = column(table, "part", path, "data.split of site.toml")
    absent = persons.difference(table.index)
    if len(absent):
        raise InputError(f"{path}: {len(absent)} person(s) of the persons table have no part; give each one of train, val, test.")
    found = codes(parts.reindex(persons), PARTS, 'column "part"', path)
    if (found == NO_LABEL).any():
        raise InputError(f"{path}: {int((found == NO_LABEL).sum())} person(s) have an empty part; give each one of train, val, test.")
    return found.astype(np.int8)
