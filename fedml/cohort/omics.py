"""Omics of persons: a matrix of persons x features in a CSV, TSV or Parquet file, as numbers.

The column ``id`` holds the persons' ids, every other column a feature; an empty cell is a missing value. Standardisation is the model's
(``fedml.networks.preprocess``).

A matrix of at most ``LARGEST`` bytes is in memory, in float64. A larger one is converted once to float32 in the site's cache and is read
from there row by row (``fedml.cohort.wide``), so that the site's memory does not grow with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedml.cohort.ids import check_ids
from fedml.cohort.inputs import Table
from fedml.cohort.sheet import read_table
from fedml.cohort.table import column, numbers
from fedml.cohort.wide.cache import open_rows
from fedml.cohort.wide.matrix import Matrix, matrix_of

if TYPE_CHECKING:
    import pandas as pd

LARGEST = 256 * 2**20  # bytes of persons x features x 8


def read_features(path: Path, columns: Sequence[str], persons: Sequence[str], id_column: str, cache: Path) -> Table | Matrix:
    """The ``columns`` of ``persons``, both in that order: in memory (``read_omics``), or above ``LARGEST`` from the ``cache``.

    Raises:
        InputError: as ``read_omics``, or the cache's folder cannot be written.
    """
    if len(persons) * len(columns) * 8 <= LARGEST:
        return read_omics(path, columns, persons, id_column)
    return matrix_of("omics", open_rows(cache, path, columns, persons, id_column))


def read_omics(path: Path, columns: Sequence[str], persons: Sequence[str], id_column: str = "id") -> Table:
    """The ``columns`` of ``persons``, both in that order. A person without a row, or with a row without a number, is not present.

    Raises:
        InputError: the file cannot be read as a table, lacks a column or has it twice, or holds something else than finite numbers.
    """
    table = read_table(path, id_column, set(columns), numeric=True)
    check_ids(persons, table.index, str(path))
    values = numbers_of(table, columns, path).reindex(list(persons)).to_numpy(np.float64)
    return Table("omics", values, np.isfinite(values).any(axis=1))


def numbers_of(table: pd.DataFrame, columns: Sequence[str], path: Path) -> pd.DataFrame:
    """The ``columns`` of ``table`` as finite float64, NaN where missing.

    Raises:
        InputError: as ``read_omics``.
    """
    import pandas as pd

    if table.columns.is_unique and table.columns.isin(columns).sum() == len(columns) and (table.dtypes == np.float64).all():
        chosen = table[list(columns)]
        if not np.isinf(chosen.to_numpy()).any():
            return chosen
    found = {}
    for name in columns:
        values = column(table, name, path, "[cohort.omics] columns")
        found[name] = numbers(values, path, booleans=False)
    return pd.DataFrame(found, index=table.index, dtype=np.float64)
