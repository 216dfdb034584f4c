"""Cells that are numbers but hardly values: codes for a missing value (-999), and slips of 1,000 times the spread of a column.

One such cell moves a column's mean and standard deviation so far that the model learns nothing from the column, and nobody is told.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedml.errors import InputError

Values = npt.NDArray[np.float64]
CODES = (-9, -99, -999, -9999, -99999, 999, 9999, 99999, 999999, 888, 8888, 777, 7777)
_FAR = 1000  # interquartile ranges from the median; laboratory values with long tails (ferritin, NT-proBNP) reach some hundreds
_FEWEST = 10  # values without which a column has no spread to judge by


def check_wild(values: Values, names: Sequence[str], path: Path, believed: Collection[str] = (), *, clinical: bool = True) -> None:
    """Raises ``InputError`` for the first column with such cells.

    Args:
        values: (persons, columns), NaN where missing. names: of the columns, "" for one that is not judged (categories).
        believed: columns whose extreme cells were checked and are right.
        clinical: the study can list codes of these columns; else they are of the persons table, where a missing value is an empty cell.
    """
    for at, name in enumerate(names):
        column = values[:, at][np.isfinite(values[:, at])]
        found = None if not name or name in believed else wild(column)
        if found is not None:
            value, count, low, high = found
            fix = "list it under [cohort.clinical] missing if it is a code for a missing value, or leave the cell empty"
            code = "-9 is PLINK's code for a missing phenotype: " if value == -9 else ""
            if not clinical:
                fix = "leave the cell empty, or write NA, if it is a code for a missing value"
            raise InputError(
                f'{path}: column "{name}" is {value:g} for {count} of {len(column)} persons, far from the others ({low:g} to {high:g}); '
                f"{code}{fix}; "
                f'if the cells are right, write extremes = ["{name}"] in [data] of site.toml.'
            )


def wild(column: Values) -> tuple[float, int, float, float] | None:
    """(value, how many have it, lowest and highest of the others) of the most extreme such cell; None without one."""
    coded = np.isin(column, CODES)
    others = column[~coded]
    if len(others) >= _FEWEST and coded.any():
        low, high = float(others.min()), float(others.max())
        reach = high - low
        for value in np.unique(column[coded]):
            # Below, half the reach is far: no value of its own is as low as -9 beside others of -3.5 to 3.5, but results may be as high.
            if value < low - reach / 2 or value > high + reach or (value < 0 <= low):
                return float(value), int((column == value).sum()), low, high
    if len(column) < _FEWEST:
        return None
    low, middle, high = np.quantile(column, [0.25, 0.5, 0.75])
    spread = high - low or float(np.subtract(*np.quantile(column, [0.95, 0.05])))
    far = np.abs(column - middle)
    if not spread or far.max() <= _FAR * spread:
        return None
    value = float(column[far.argmax()])
    rest = column[far <= _FAR * spread]
    return value, int((column == value).sum()), float(rest.min()), float(rest.max())
