"""Dates of clinical columns as numbers, by the study's rules (``[cohort.clinical] dates``): years at another date, or days since one.

    dates = { birth = "age_at:visit", diagnosis = "days_since:birth", relapse = "days_since:2000-01-01" }

A date is text as YYYY-MM-DD (a time after it is ignored), or a date or timestamp of Parquet. A year has 365.25 days, so an age is exact at
every fourth birthday and within 0.003 years at the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.sheet import MISSING_WORDS, place_of
from fedml.cohort.table import column
from fedml.errors import InputError
from fedml.study.cohort_section import ClinicalColumns
from fedml.study.date_rules import AGE, DAYS_PER_YEAR, rule_of

if TYPE_CHECKING:
    import pandas as pd

Days = npt.NDArray[np.float64]
_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?( ?(Z|[+-]\d\d(:?\d\d)?))?)?", re.ASCII)
_FIRST = date(1970, 1, 1).toordinal()


def with_dates(table: pd.DataFrame, spec: ClinicalColumns, path: Path, id_column: str) -> pd.DataFrame:
    """``table`` as read from ``path``, with the study's date columns as numbers, NaN where one of the two dates is missing.

    Raises:
        InputError: a column is not there, a cell is no date, or a birth is after the date of the age; the message has the place, no cell.
    """
    if not spec.dates:
        return table
    rules = {name: rule_of(text) for name, text in spec.dates.items()}
    days = {}
    for name in dict.fromkeys([*rules, *(reference for _, reference in rules.values() if isinstance(reference, str))]):
        days[name] = _days(column(table, name, path, "[cohort.clinical] dates"), spec.missing.get(name, ()), path, id_column)
    found = {}
    for name, (kind, reference) in rules.items():
        other = days[reference] if isinstance(reference, str) else np.float64(reference.toordinal() - _FIRST)
        found[name] = (other - days[name]) / DAYS_PER_YEAR if kind == AGE else days[name] - other
        if kind == AGE and (found[name] < 0).any():
            where = _place(path, id_column, found[name] < 0, table)
            raise InputError(
                f'{path}: {where}: column "{name}" is after the date at which the age is asked ({reference}); correct the cells.'
            )
    return table.assign(**found)


def _days(values: pd.Series[Any], missing: tuple[Any, ...], path: Path, id_column: str) -> Days:
    """(persons,) days since 1970-01-01, NaN where missing."""
    import pandas as pd

    codes = {str(code).strip() for code in missing}
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        values = values.dt.tz_localize(None).astype(object)
    elif pd.api.types.is_numeric_dtype(values.dtype):
        raise InputError(f'{path}: column "{values.name}" has numbers, and [cohort.clinical] dates names it; take it out of dates.')
    known = {value: _day(value, codes) for value in values.dropna().unique()}
    wrong = values.isin([value for value, day in known.items() if day is None]).to_numpy()
    if wrong.any():
        where = _place(path, id_column, wrong, values)
        raise InputError(
            f'{path}: {where}: column "{values.name}" is no date as YYYY-MM-DD ({int(wrong.sum())} person(s)); correct the cell, leave it '
            "empty, or list it under [cohort.clinical] missing if it stands for a missing date."
        )
    return values.map(known).to_numpy(dtype=np.float64, na_value=np.nan)


def _place(path: Path, id_column: str, wrong: npt.NDArray[np.bool_], rows: pd.DataFrame | pd.Series[Any]) -> str:
    """The place in the file of the first row that is ``wrong``."""
    at = int(np.flatnonzero(wrong)[0])
    return place_of(path, id_column, at, str(rows.index[at]))


def _day(value: Any, codes: set[str]) -> float | None:
    """Days since 1970-01-01 of a cell, NaN for a missing one, None for what is no date."""
    if isinstance(value, date):  # a timestamp of pandas is one too
        return float("nan") if value.isoformat()[:10] in codes else float(value.toordinal() - _FIRST)
    text = str(value).strip()
    if text in codes or text in MISSING_WORDS:
        return float("nan")
    parts = _ISO.fullmatch(text)
    try:
        return float(date(int(parts[1]), int(parts[2]), int(parts[3])).toordinal() - _FIRST) if parts else None
    except ValueError:
        return None


def as_dates(numbers: Mapping[str, npt.NDArray[np.float64]], spec: ClinicalColumns) -> dict[str, list[str]]:
    """Dates, as text of a table, from which ``with_dates`` computes ``numbers`` (of ages to the day): the inverse, for artificial persons.

    Args:
        numbers: clinical column -> (persons,) values. Columns of references that are none are among the result.
    """
    rules, done = {name: rule_of(text) for name, text in spec.dates.items()}, dict[str, Days]()
    persons = len(next(iter(numbers.values())))

    def days_of(name: str | date) -> Days:
        if isinstance(name, date):
            return np.full(persons, float(name.toordinal() - _FIRST))
        if name not in done:
            if name not in rules:
                return done.setdefault(name, np.full(persons, float(date(2000, 1, 1).toordinal() - _FIRST)))
            kind, reference = rules[name]
            other = days_of(reference)
            own = np.maximum(numbers[name], 0) * DAYS_PER_YEAR if kind == AGE else numbers[name]  # nobody is younger than 0
            done[name] = np.round(other - own if kind == AGE else other + own)
        return done[name]

    for name in rules:
        days_of(name)
    low, high = date.min.toordinal(), date.max.toordinal()
    return {
        name: ["" if day != day else date.fromordinal(int(np.clip(day + _FIRST, low, high))).isoformat() for day in days.tolist()]
        for name, days in done.items()
    }
