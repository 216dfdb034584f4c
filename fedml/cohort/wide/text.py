"""The rows of a CSV or TSV file of many columns, some at a time, as ``fedml.cohort.sheet`` reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedml.cohort.ids import check_ids
from fedml.cohort.sheet import DECIMAL, GROUPED, batches_of, first_line, header, indexed
from fedml.cohort.wide.numbers import once, single
from fedml.cohort.wide.stored import Floats
from fedml.errors import InputError
from fedml.text import printable

_WRONG = re.compile(r"column #(\d+):(?: Row #(\d+):)? .*invalid value '(.*)'", re.DOTALL)


def text_rows(
    path: Path, columns: Sequence[str], persons: Sequence[str], id_column: str, folder: Path, found: list[str]
) -> Iterator[Floats]:
    """The ``columns`` of those ``persons`` whom the file has, in the file's order: float32 (some rows, columns). ``found``: gets their ids.

    The decimal sign is a point, or where the separator is no comma, a comma, if the file begins with such numbers: in all columns alike.

    Raises:
        InputError: the file is no table, lacks a column, or holds something else than finite numbers; the message names the row.
    """
    names: list[str] = []
    try:
        names, separator = header(path, id_column)
        if not any(names):
            raise ValueError("it is empty")
        wanted = _places(names, columns, path, id_column)
        point = "," if separator != "," and _begins_with_commas(path, separator, names, wanted) else "."
        row, people, seen = 2, set(persons), set[str]()
        for batch in batches_of(path, separator, len(names), wanted, point=point):
            ids = [str(cell).strip() for cell in batch.column(0).to_pylist()]
            numbers = batch.select(list(range(1, batch.num_columns))).to_tensor(null_to_nan=True).to_numpy()
            values = single(numbers, columns, path, row)
            kept = _kept(ids, values, path, row, people, seen)
            found += [ids[at] for at in kept.tolist()]
            if len(kept):
                yield np.ascontiguousarray(values[kept])
            row += len(ids)
        check_ids(persons, seen, str(path))
    except (OSError, ValueError) as error:  # pyarrow's errors are of these types
        if not (said := _WRONG.search(str(error))):
            raise InputError(f"{path}: cannot be read as a table ({first_line(error)}); save it as CSV (UTF-8) or Parquet.") from error
        at, line, cell = said.groups()
        where = f"row {int(line):,}" if line else "a row"
        text = f'column "{names[int(at)]}" has no finite number for the person in {where}, such as "{printable(cell[:40])}"'
        raise InputError(f"{path}: {text}; correct the cell or leave it empty.") from error


def _places(names: Sequence[str], columns: Sequence[str], path: Path, id_column: str) -> list[int]:
    """The places of the column of ids and of ``columns``. ``InputError``: one is missing, or there twice."""
    import pandas as pd

    if names.count(id_column) != 1:
        indexed(pd.DataFrame(columns=pd.Index(names)), id_column, path)  # raises
    once(names, columns, path)
    place = {name: at for at, name in enumerate(names)}
    return [place[id_column], *(place[name] for name in columns)]


def _begins_with_commas(path: Path, separator: str, names: Sequence[str], wanted: Sequence[int]) -> bool:
    """Whether the first number that is none with a point is one with a comma; not if the comma may group thousands."""
    try:
        next(batches_of(path, separator, len(names), wanted), None)
    except ValueError as error:
        said = _WRONG.search(str(error))
        cell = said.group(3).strip() if said else ""
        return bool(re.match(DECIMAL, cell)) and not re.match(GROUPED, cell)
    return False


def _kept(ids: Sequence[str], values: Floats, path: Path, row: int, people: Set[str], seen: set[str]) -> npt.NDArray[np.int64]:
    """Which rows are of ``people``; all ids get into ``seen``. An empty row is left out.

    Raises:
        InputError: an id is empty in a row with numbers, or there twice.
    """
    for at, person in enumerate(ids):
        if not person and not np.isnan(values[at]).all():
            raise InputError(f"{path}: row {row + at} has no id; give every row a person's id (row 1 is the header).")
        if person in seen:
            raise InputError(f'{path}: person "{person}" has more than one row; keep one row a person.')
        if person:
            seen.add(person)
    return np.flatnonzero([person in people for person in ids])
