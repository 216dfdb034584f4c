"""Subgroups of persons that a study names (``[evaluation]``): who is in which, and which of them are large enough to be told of.

    codes = read_groups(study.evaluation, [(persons, path), (clinical, path)])    # {"sex": [0, 1, -1, ...]}: place of the label, -1 unknown
    for label, rows in shown(codes, study.evaluation, rows, min_count=5): ...     # "sex:0", rows of its persons

Small groups are hidden, and with them a larger one where the hidden persons could be had by subtraction: from all, or of a group of one
variable that lies within a group of another (complementary suppression: Hundepool et al. 2012, "Statistical Disclosure Control", section
4.3). What follows from sums of several groups of several variables is not looked for: name few variables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedml.cohort.table import codes, column, numbers
from fedml.study.sections import Evaluation

if TYPE_CHECKING:
    import pandas as pd

Codes = dict[str, npt.NDArray[np.int16]]


def read_groups(plan: Evaluation, tables: Sequence[tuple[pd.DataFrame, Path]]) -> Codes:
    """For each variable of ``plan`` the place of each person's label, -1 where it is not known; of the first table that has the column.

    Args:
        tables: the persons table, then others with the same index.

    Raises:
        InputError: no table has the column, or a cell holds something else than the study names.
    """
    found: Codes = {}
    for name in plan.labels():
        table, path = next(((t, p) for t, p in tables if name in t.columns), tables[0])
        values = column(table, name, path, "[evaluation]")
        if name in plan.subgroups:
            found[name] = codes(values, plan.subgroups[name], f'column "{name}"', path).astype(np.int16)
        else:
            own = numbers(values, path)
            found[name] = np.where(np.isnan(own), -1, np.searchsorted(plan.bands[name], own, side="right")).astype(np.int16)
    return found


def shown(
    groups: Mapping[str, npt.NDArray[np.int16]], plan: Evaluation, rows: npt.NDArray[np.int64], min_count: int
) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """(label, those of ``rows`` in it) of each group that may be told: nobody's numbers follow from it and those of all ``rows``."""
    kept: list[npt.NDArray[np.bool_]] = []
    for name, labels in plan.labels().items():
        own = groups[name][rows]
        sizes = np.bincount(own[own >= 0], minlength=len(labels))
        places = told(sizes, len(rows), min_count)
        while any(_within(own == place, other, min_count) for place in places for other in kept):
            nested = next(p for p in places if any(_within(own == p, other, min_count) for other in kept))
            sizes[nested] = 0
            places = told(sizes, len(rows), min_count)  # without it, another may follow by subtraction
        kept += [own == place for place in places]
        for place in places:
            yield labels[place], rows[own == place]


def _within(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], min_count: int) -> bool:
    """Is one group inside the other, but for some persons fewer than ``min_count``?"""
    return any(not (b & ~a).any() and 0 < int((a & ~b).sum()) < min_count for a, b in ((one, other), (other, one)))


def told(sizes: npt.NDArray[np.int64], persons: int, min_count: int) -> list[int]:
    """Places of the groups that may be told, of ``persons`` who fall into groups of these ``sizes`` or into none.

    A group has at least ``min_count`` persons, and so has whoever is in none that is told, or nobody is.
    """
    kept = [place for place in np.argsort(-sizes, kind="stable").tolist() if sizes[place] >= max(min_count, 1)]
    while kept and 0 < persons - int(sizes[kept].sum()) < min_count:
        kept.pop()  # the smallest that is left
    return sorted(kept)
