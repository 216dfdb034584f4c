"""Omics of persons: a matrix of persons x features in a CSV, TSV or Parquet file, as numbers.

The column ``id`` holds the persons' ids, every other column a feature; an empty cell is a missing value. Standardisation is the model's
(``fedml.networks.preprocess``).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedml.cohort.inputs import Table
from fedml.cohort.table import column, read_table, separator
from fedml.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def read_omics(path: Path, columns: Sequence[str], persons: Sequence[str]) -> Table:
    """The ``columns`` of ``persons``, both in that order. A person without a row, or with a row without a number, is not present.

    Raises:
        InputError: the file cannot be read as a table, lacks a column or has it twice, or holds something else than finite numbers.
    """
    table = read_table(path)
    names = table.columns.tolist() if path.suffix == ".parquet" else _header(path)
    values = numbers_of(table, columns, path, names).reindex(list(persons)).to_numpy(np.float64)
    return Table("omics", values, np.isfinite(values).any(axis=1))


def numbers_of(table: pd.DataFrame, columns: Sequence[str], path: Path, names: Sequence[str] = ()) -> pd.DataFrame:
    """The ``columns`` of ``table`` as finite float64, NaN where missing. ``names``: of the columns as the file has them.

    Raises:
        InputError: as ``read_omics``.
    """
    import pandas as pd

    for name in columns:
        column(table, name, path, "[cohort.omics] columns")
    wanted = set(columns)
    repeated = [name for name in names if name in wanted]
    if len(repeated) != len(set(repeated)):
        name = next(name for name in repeated if repeated.count(name) > 1)
        raise InputError(f'{path}: has the column "{name}" {repeated.count(name)} times; keep one column a feature.')
    chosen = table[list(columns)]
    found: pd.DataFrame = chosen.apply(pd.to_numeric, errors="coerce").astype(np.float64)
    wrong = ((found.isna() & chosen.notna()) | np.isinf(found) | _true_or_false(chosen)).to_numpy()
    if wrong.any():
        at = int(np.flatnonzero(wrong.any(axis=0))[0])
        text = f'{path}: column "{columns[at]}" holds no finite number for {int(wrong[:, at].sum())} person(s); '
        raise InputError(text + "correct the cell or leave it empty.")
    return found


def _true_or_false(values: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """(columns,): columns of true and false, which a measurement is not."""
    return np.array([str(kind) in ("bool", "boolean") for kind in values.dtypes], dtype=bool)


def _header(path: Path) -> list[str]:
    """The names of a text file's columns as they stand there: pandas renames a name that comes twice."""
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file, delimiter=separator(path)), [])
