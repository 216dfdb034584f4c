"""Standardisation of tables by a site itself (``[cohort] standardise = "site"``): each number minus the mean of the site's own training
persons, divided by their standard deviation. No moment leaves the site, and none is in the model, whose own constants are then 0 and 1.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from fedml.cohort.inputs import Table
from fedml.cohort.persons import Cohort, with_inputs
from fedml.errors import InputError, Reason, SiteError
from fedml.study.study import Study

Values = npt.NDArray[np.float64]
_BLOCK = 1 << 22  # values at once: 32 MiB


def unscaled(study: Study) -> tuple[str, ...]:
    """The inputs whose numbers keep their units, less the mean of all sites (``[cohort] standardise = "centre"``)."""
    tables = ("clinical", "omics", "radiomics")
    return tuple(name for name in study.cohort.inputs if name in tables) if study.cohort.standardise == "centre" else ()


def standardise_site(cohort: Cohort, study: Study, smallest: int, *, new: bool = False) -> Cohort:
    """``cohort`` with each number of ``study.cohort.by_site`` standardised by its own persons; codes of categories stay.

    The persons are those in the train part. Where nobody is in it, as at a site that only tests, and of a ``new`` site, which is no site of
    the study, they are all persons.

    Raises:
        SiteError: these are fewer than ``smallest`` persons. InputError: an input is not in memory.
    """
    rows = cohort.rows("train")
    if new or not len(rows):
        rows = np.arange(len(cohort))
    spec, inputs = study.cohort.clinical, {}
    for name in study.cohort.by_site:
        table = cohort.inputs.get(name)
        if table is None:
            continue
        if not isinstance(table, Table):  # of another kind, such as one that is not in memory
            raise InputError(
                f'{cohort.site}: {name} is not a table in memory, which [cohort] standardise = "site" needs; use fewer columns.'
            )
        if (persons := int(table.present[rows].sum())) < smallest:
            raise SiteError(
                Reason.TOO_FEW,
                f'[cohort] standardise = "site": {cohort.site} has {name} of {persons} persons, whose mean and SD min_count = {smallest} '
                "does not allow",
            )
        coded = [at for at, column in enumerate(spec.columns) if column in spec.categories] if name == "clinical" and spec else []
        inputs[name] = Table(name, standardised(table.values, rows, smallest, coded), table.present)
    return with_inputs(cohort, **inputs) if inputs else cohort


def standardised(values: Values, rows: npt.NDArray[np.int64], smallest: int, coded: Collection[int] = ()) -> Values:
    """(persons, columns): (x - mean) / SD, both of the persons in ``rows``; NaN stays.

    A column that is constant among them is 0; one of which fewer than ``smallest`` of them have a value is missing for everybody. Columns
    at the places ``coded`` stay as they are.
    """
    out = np.empty(values.shape)
    step = max(1, _BLOCK // max(len(values), 1))
    for start in range(0, values.shape[1], step):
        block = values[:, start : start + step]
        known = block[rows]
        count = (~np.isnan(known)).sum(0)
        mean = np.nansum(known, axis=0) / np.maximum(count, 1)
        spread = np.sqrt(np.nansum((known - mean) ** 2, axis=0) / np.maximum(count, 1))
        constant = spread <= 1e-5 * np.abs(mean)  # what rounding leaves, as in constants_from
        out[:, start : start + step] = np.where(
            np.isnan(block), np.nan, np.where(constant, 0.0, (block - mean) / np.where(constant, 1, spread))
        )
        out[:, start : start + step][:, count < max(smallest, 1)] = np.nan
    for at in coded:
        out[:, at] = values[:, at]
    return out
