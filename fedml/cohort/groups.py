"""Subgroups of persons that a study names (``[evaluation]``): their members, and which groups are large enough to be reported.

    codes = read_groups(study.evaluation, [(persons, path), (clinical, path)])    # {"sex": [0, 1, -1, ...]}: index of the label, -1 unknown
    for label, rows in reportable_groups(codes, study.evaluation, rows, min_count=5): ...     # "sex:0", rows of its persons

Small groups are suppressed. A larger group is suppressed too if subtraction would reveal a small one: from the total, or between nested
groups of two variables (complementary suppression: Hundepool et al. 2012, "Statistical Disclosure Control", section 4.3). Disclosure
through sums of several groups of several variables is not checked: name few variables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedml.cohort.table import codes, column, numbers
from fedml.study.frequencies_section import Frequencies
from fedml.study.sections import Evaluation
from fedml.study.sex_section import Sex

if TYPE_CHECKING:
    import pandas as pd

Codes = dict[str, npt.NDArray[np.int16]]
POPULATION = "[frequencies] population"  # name of its codes among the groups of a cohort; no variable of [evaluation] can have it


def read_groups(plan: Evaluation, tables: Sequence[tuple[pd.DataFrame, Path]]) -> Codes:
    """Variable -> (persons,) int16 index of each person's label, -1 if unknown, from the first table that has the column.

    Args:
        tables: the persons table, then others with the same index.

    Raises:
        InputError: no table has the column, or a cell contains a value that the study does not name.
    """
    found: Codes = {}
    for name in plan.labels():
        table, path = next(((t, p) for t, p in tables if name in t.columns), tables[0])
        values = column(table, name, path, "[evaluation]")
        if name in plan.subgroups:
            found[name] = codes(values, plan.subgroups[name], f'column "{name}"', path).astype(np.int16)
        else:
            number = numbers(values, path)
            found[name] = np.where(np.isnan(number), -1, np.searchsorted(plan.bands[name], number, side="right")).astype(np.int16)
    return found


def read_sex(spec: Sex, tables: Sequence[tuple[pd.DataFrame, Path]]) -> npt.NDArray[np.int8]:
    """(persons,) 1 man, 2 woman, 0 unknown (an empty cell), from the first of ``tables`` that has the column; as ``read_groups``.

    Raises:
        InputError: no table has the column, or a cell has another value than the two of the study.
    """
    table, path = next(((t, p) for t, p in tables if spec.column in t.columns), tables[0])
    values = column(table, spec.column, path, "[cohort.variants] sex")
    return (codes(values, (spec.male, spec.female), f'[cohort.variants] sex, column "{spec.column}"', path) + 1).astype(np.int8)


def read_population(spec: Frequencies, tables: Sequence[tuple[pd.DataFrame, Path]]) -> npt.NDArray[np.int16]:
    """(persons,) place of each person's population among those of the study, -1 if unknown (an empty cell); as ``read_groups``.

    Raises:
        InputError: no table has the column, or a cell has a value that the study does not name.
    """
    table, path = next(((t, p) for t, p in tables if spec.population in t.columns), tables[0])
    values = column(table, spec.population, path, "[frequencies] population")
    return codes(values, spec.populations, f'[frequencies] population, column "{spec.population}"', path).astype(np.int16)


def reportable_groups(
    groups: Mapping[str, npt.NDArray[np.int16]], plan: Evaluation, rows: npt.NDArray[np.int64], min_count: int
) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """(label, the group's members among ``rows``) of each group that may be reported; subtraction between the reported groups and all
    ``rows`` reveals no group of fewer than ``min_count`` persons."""
    kept: list[npt.NDArray[np.bool_]] = []
    for name, labels in plan.labels().items():
        codes_of = groups[name][rows]
        sizes = np.bincount(codes_of[codes_of >= 0], minlength=len(labels))
        places = reportable_indices(sizes, len(rows), min_count)
        while any(_within(codes_of == place, other, min_count) for place in places for other in kept):
            nested = next(p for p in places if any(_within(codes_of == p, other, min_count) for other in kept))
            sizes[nested] = 0
            places = reportable_indices(sizes, len(rows), min_count)  # suppressing a group can make another one follow by subtraction
        kept += [codes_of == place for place in places]
        for place in places:
            yield labels[place], rows[codes_of == place]


def _within(group: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], min_count: int) -> bool:
    """True if one group contains the other and has 1 to ``min_count`` - 1 persons more."""
    return any(not (b & ~a).any() and 0 < int((a & ~b).sum()) < min_count for a, b in ((group, other), (other, group)))


def reportable_indices(sizes: npt.NDArray[np.int64], persons: int, min_count: int) -> list[int]:
    """Indices of the groups of one variable that may be reported.

    Each has at least ``min_count`` persons; the persons outside all of them are none or at least ``min_count``.

    Args:
        sizes: (groups,) number of persons in each group; the groups are disjoint.
        persons: number of all persons, those in no group included.
    """
    kept = [place for place in np.argsort(-sizes, kind="stable").tolist() if sizes[place] >= max(min_count, 1)]
    while kept and 0 < persons - int(sizes[kept].sum()) < min_count:
        kept.pop()  # the smallest remaining group
    return sorted(kept)
