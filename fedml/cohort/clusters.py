"""Persons who belong together (``[cohort] cluster``): a family, or several rows of one person. Names of clusters stay where they are read.

names = cluster_names(table, study.cohort.cluster, path)        # of each person; the id of a person alone
numbers = cluster_numbers(names, parts, path)                   # (persons,) and none of them in two parts
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedml.cohort.sheet import MISSING_WORDS
from fedml.cohort.table import column
from fedml.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def cluster_names(table: pd.DataFrame, name: str, path: Path) -> list[str]:
    """The cell of column ``name`` of each person, or the person's id where it is empty or a word for a missing value.

    Raises:
        InputError: the table has no such column.
    """
    cells = ["" if value is None or value != value else str(value).strip() for value in column(table, name, path, "[cohort] cluster")]
    return [str(person) if cell in MISSING_WORDS else cell for person, cell in zip(table.index, cells, strict=True)]


def cluster_numbers(names: Sequence[str], parts: npt.NDArray[np.int8], path: Path) -> npt.NDArray[np.int64]:
    """(persons,) number of each person's cluster, by the order of their names.

    Raises:
        InputError: persons of a cluster are in two parts, so that a model would be tested on persons who belong to those it was trained on.
    """
    numbers: npt.NDArray[np.int64] = np.unique(np.asarray(names), return_inverse=True)[1].ravel().astype(np.int64)
    pairs = np.unique(np.stack([numbers, parts.astype(np.int64)], 1), axis=0)
    split = int((np.bincount(pairs[:, 0]) > 1).sum()) if len(pairs) else 0
    if split:
        raise InputError(
            f"{path}: the split file has persons of one cluster in two parts, in {split} clusters ([cohort] "
            "cluster); put each cluster in one part."
        )
    return numbers


def pooled_clusters(many: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Numbers of clusters of several sites together; no cluster is in two sites."""
    out, first = [], 0
    for numbers in many:
        out.append(numbers + first)
        first += int(numbers.max(initial=-1)) + 1
    return np.concatenate(out)
