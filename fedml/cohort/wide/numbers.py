"""Whether a matrix has the columns that are asked for, once each, and whether its numbers are finite, also in single precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.wide.stored import Floats
from fedml.errors import InputError


def once(names: Sequence[str], columns: Sequence[str], path: Path) -> None:
    """Nothing, if ``names`` has each of ``columns`` once.

    Raises:
        InputError: one is missing, or there twice; the message gives the nearest name.
    """
    count = Counter(names)
    if wrong := [name for name in columns if count[name] != 1]:
        import pandas as pd

        from fedml.cohort.table import column  # here, because it loads torch: 150 MB in a process that does not need it

        column(pd.DataFrame(columns=pd.Index(names)), wrong[0], path, "[cohort.omics] columns")  # raises


def single(values: npt.NDArray[Any], columns: Sequence[str], path: Path, row: int | None = None) -> Floats:
    """``values`` (rows, columns) as float32.

    Args:
        row: the file's number of the first row, for the error; None: the error gives the count of persons.

    Raises:
        InputError: a number is infinite, or beyond the range of float32; the message names the column.
    """
    with np.errstate(over="ignore"):
        out: Floats = values.astype(np.float32, copy=False)
    wrong = np.isinf(out)
    if wrong.any():
        at = int(np.flatnonzero(wrong.any(0))[0])
        places = np.flatnonzero(wrong[:, at])
        cell = float(values[places[0], at])
        who = f"{len(places)} person(s)" if row is None else f"the person in row {row + int(places[0])}"
        why = "; in a matrix of this size numbers are of single precision, up to 3.4e38" if np.isfinite(cell) else ""
        raise InputError(
            f'{path}: column "{columns[at]}" has no finite number for {who}, such as {cell:g}; correct the cell or leave it empty{why}.'
        )
    return out
