"""The site's part of the table of persons: counts, sums and histograms of each group, with small cells hidden.

A hidden count is -1; its column's sums are 0. Of a category, further levels are hidden until the hidden persons are enough, because the
total would tell a single one. Of a number with 1 to ``min_count`` - 1 missing values, or as few known ones, nothing is told; nor of one
with few values of which one is as rare.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.analytics import outcome_forms
from fedml.analytics.outcome_forms import BINS
from fedml.clients.site.read import load_cohort
from fedml.clients.work.outcome_people import FEW_VALUES, column_of
from fedml.clients.work.request import Request
from fedml.errors import Reason, SiteError

HIDDEN = -1.0
Floats = npt.NDArray[np.float64]


def _groups(request: Request) -> list[npt.NDArray[np.bool_]]:
    """(persons of the cohort,) of each group of the table."""
    cohort, study = load_cohort(request.manifests, request.study), request.study
    plan = study.describe
    if plan is None or plan.groups is None:
        return [np.ones(len(cohort), bool)]
    values = column_of(cohort, study, plan.groups)
    return [values == code for code in range(len(outcome_forms.groups_of(study, "describe")))]


def person_sets(request: Request) -> list[npt.NDArray[np.int64]]:
    """Rows of the cohort in each group, and of all groups."""
    masks = _groups(request)
    return [np.flatnonzero(np.any(masks, axis=0)), *(np.flatnonzero(mask) for mask in masks)]


def _columns(request: Request) -> tuple[list[str], list[tuple[str, int]]]:
    """The numbers of the table, and its categories with how many levels each has."""
    study = request.study
    spec, plan = study.cohort.clinical, study.describe
    assert spec is not None and plan is not None  # noqa: S101, PT018 - the form of the request was checked
    names = list(plan.columns or spec.columns)
    numbers = [name for name in names if name not in spec.categories]
    return numbers, [(name, len(spec.categories[name])) for name in names if name in spec.categories]


def numbers_told(request: Request, floor: int) -> list[tuple[npt.NDArray[np.int64], Floats]]:
    """Rows of the cohort and values of each column of numbers of which the table tells sums."""
    cohort, out = load_cohort(request.manifests, request.study), list[tuple[npt.NDArray[np.int64], Floats]]()
    for name in _columns(request)[0]:
        values = column_of(cohort, request.study, name)
        rows = np.flatnonzero(np.isfinite(values))
        if not few_of_a_value(values[rows], floor):
            out.append((rows, values[rows]))
    return out


def check_groups(request: Request, floor: int) -> None:
    """Raises ``SiteError`` if a group has few persons."""
    if any(0 < int(mask.sum()) < floor for mask in _groups(request)):
        raise SiteError(Reason.TOO_FEW, f"a group of the table has fewer than {floor} persons (min_count)")


def answer(request: Request, given: Mapping[str, Any], floor: int) -> dict[str, Any]:
    """``table`` (G, R) and ``bins`` (G, numbers, BINS); ``check_groups`` was asked before."""
    cohort, study = load_cohort(request.manifests, request.study), request.study
    numbers, categories = _columns(request)
    table, bins = [], []
    for mask in _groups(request):
        persons = int(mask.sum())
        row, counted = [float(persons)], np.zeros((len(numbers), BINS), np.int64)
        for at, name in enumerate(numbers):
            values = column_of(cohort, study, name)[mask]
            known = values[np.isfinite(values)]
            if 0 < len(known) < floor or 0 < persons - len(known) < floor or few_of_a_value(known, floor):
                row += [HIDDEN, 0.0, 0.0]
                continue
            row += [float(len(known)), float(known.sum()), float((known**2).sum())]
            counted[at] = histogram(known, given["limits"][:, at], floor)
        for name, levels in categories:
            values = column_of(cohort, study, name)[mask]
            counts = np.array([(values == code).sum() for code in range(levels)] + [np.isnan(values).sum()], np.float64)
            row += hide(counts, floor)[:-1].tolist()
        table.append(row)
        bins.append(counted)
    return {"table": np.array(table), "bins": np.stack(bins)}


def told_sets(request: Request, floor: int) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """What a count of the table is of, and the rows of the cohort that it counts: of each group, who has a level that is told, and who has
    a value of a number that is told. A table without groups, less that with groups, would give the cells that are hidden there."""
    cohort, study = load_cohort(request.manifests, request.study), request.study
    numbers, categories = _columns(request)
    out = list[tuple[str, npt.NDArray[np.int64]]]()
    for mask in _groups(request):
        for name in numbers:
            values = column_of(cohort, study, name)
            known = mask & np.isfinite(values)
            if floor <= known.sum() and not 0 < (mask & ~known).sum() < floor and not few_of_a_value(values[known], floor):
                out.append((f"{name} of ", np.flatnonzero(known)))
        for name, levels in categories:
            values = column_of(cohort, study, name)
            cells = [mask & (values == code) for code in range(levels)] + [mask & np.isnan(values)]
            shown = hide(np.array([cell.sum() for cell in cells], np.float64), floor)
            out += [(f"{name}={code} of ", np.flatnonzero(cell)) for code, cell in enumerate(cells) if shown[code] > 0]
    return out


def few_of_a_value(known: Floats, floor: int) -> bool:
    """Whether the count, the sum and the sum of squares of ``known`` tell how many persons have each value, and one of these is small."""
    counts = np.unique(known, return_counts=True)[1]
    return len(counts) <= FEW_VALUES and bool((counts < floor).any())


def hide(counts: Floats, floor: int) -> Floats:
    """(levels,) counts, -1 where one is too small, and for as many others, the smallest first, as are needed to hide it."""
    out, hidden = counts.copy(), (counts > 0) & (counts < floor)
    if hidden.any():
        for place in np.argsort(counts, kind="stable"):
            if counts[hidden].sum() >= floor and hidden.sum() > 1:
                break
            hidden[place] |= counts[place] > 0
    out[hidden] = HIDDEN
    return out


def histogram(values: Floats, limits: Floats, floor: int) -> npt.NDArray[np.int64]:
    """(BINS,) counts between ``limits``; a bin of few persons is added to the next, and the last of few to the one before."""
    low, high = float(limits[0]), float(limits[1])
    out = np.zeros(BINS, np.int64)
    if not high > low or not len(values):
        return out
    place = np.clip(((values - low) / (high - low) * BINS).astype(np.int64), 0, BINS - 1)
    waiting, last = 0, -1
    for at, count in enumerate(np.bincount(place, minlength=BINS)):
        waiting += int(count)
        if waiting >= floor:
            out[at], waiting, last = waiting, 0, at
    if waiting and last >= 0:
        out[last] += waiting
    return out


def check_small(request: Request, reply: Mapping[str, Any], min_count: int) -> None:
    """Raises ``SiteError`` if a count of ``reply`` is 1 to ``min_count`` - 1, or if the others tell one that is hidden."""
    numbers, categories = _columns(request)
    table, text = reply["table"], f"a cell of the table has fewer than {min_count} persons (min_count)"
    whole = [0, *(1 + 3 * at for at in range(len(numbers))), *range(1 + 3 * len(numbers), table.shape[1])]
    counts = table[:, whole]
    few = ((counts > 0) & (counts < min_count)).any() or ((reply["bins"] > 0) & (reply["bins"] < min_count)).any()
    missing = table[:, :1] - table[:, 1 : 1 + 3 * len(numbers) : 3]
    told = table[:, 1 : 1 + 3 * len(numbers) : 3] >= 0
    few |= (told & (missing > 0) & (missing < min_count)).any()
    start = 1 + 3 * len(numbers)
    for _, levels in categories:
        part = table[:, start : start + levels]
        rest = table[:, 0] - np.maximum(part, 0).sum(1)  # hidden levels and missing values together
        few |= bool(((rest > 0) & (rest < min_count)).any())
        start += levels
    if few:
        raise SiteError(Reason.TOO_FEW, text)
