"""Codes clinical columns as numbers. The model imputes and standardises them (``fedml.networks.preprocess``).

A numeric value stays a number; a categorical value becomes the index in its declared categories; missing values are NaN. Dates are
numbers before (``fedml.cohort.dates``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedml.cohort.table import NO_LABEL, codes, column, numbers
from fedml.study.cohort_section import ClinicalColumns
from fedml.study.section import normal

if TYPE_CHECKING:
    import pandas as pd


def code_columns(table: pd.DataFrame, spec: ClinicalColumns, path: Path) -> npt.NDArray[np.float64]:
    """(persons, columns): the study's columns of ``table`` in the study's order, NaN where missing.

    Raises:
        InputError: a column is missing, a cell is not a number, or a category is not declared.
    """
    out = np.full((len(table), len(spec.columns)), np.nan)
    for at, name in enumerate(spec.columns):
        values = column(table, name, path, "[cohort.clinical] columns")
        if name in spec.missing and name not in spec.dates:
            declared = {normal(m) for m in spec.missing[name]}
            values = values.astype(object).mask(values.map(normal, na_action="ignore").isin(declared))
        if name in spec.categories:
            index = codes(values, spec.categories[name], f'column "{name}"', path).astype(np.float64)
            index[index == NO_LABEL] = np.nan
            out[:, at] = index
        else:
            out[:, at] = numbers(values, path)
    return out
