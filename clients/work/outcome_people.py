"""The persons of an analysis of outcomes at a site: their covariates, groups, and times or labels; and the cells that must not be small.

They are those of the cohort who have every column that the study's analysis needs, so all its parts are about the same persons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedml.analytics import outcome_forms
from fedml.analytics.cox import STEPS
from fedml.analytics.grid import Cells
from fedml.clients.site.read import load_cohort
from fedml.clients.work.request import Request, read_site_once
from fedml.cohort.inputs import Table
from fedml.cohort.persons import Cohort
from fedml.study.study import Study
from fedml.tasks.survival_labels import Times, times_of
from fedml.wire.records import Phase

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
CURVES, COX, TREATED = 0, 1, 2  # whose grid a request is about
# A number with at most so many values is held to what holds for levels: sums of its powers, of which a regression sends four, are solved
# for how many persons have each value.
FEW_VALUES = 5


@dataclass(frozen=True, eq=False)
class Persons:
    """``rows`` of the cohort; raw ``x`` (persons, C); ``levels`` (levels, persons): of categories and columns of few values; ``groups``
    (groups, persons), of a comparison of treatments control and treated; ``times`` of a study of survival, else ``y`` (persons,) and, of
    counts, ``offset`` (persons,); case ``weights`` (persons,) of a Cox model that has them."""

    rows: Ints
    x: Floats
    levels: Bools
    groups: Bools
    times: Times | None
    y: Floats
    offset: Floats | None
    weights: Floats | None


def grid_model(phase: Phase) -> int:
    """Whose cells the intervals of a request's grid must fill."""
    return {Phase.TIMES: CURVES, Phase.TREATED: TREATED}.get(phase, COX)


def column_of(cohort: Cohort, study: Study, name: str) -> Floats:
    """(persons of the cohort,) a column of the clinical table, codes of a category; NaN where it is missing."""
    spec, clinical = study.cohort.clinical, cohort.input("clinical", Table)
    if clinical is None or spec is None:
        return np.full(len(cohort), np.nan)
    return clinical.values[:, spec.columns.index(name)].astype(np.float64)


@lru_cache(maxsize=32)
def analysed(manifests: tuple[str, ...], study: Study) -> Persons:
    """The persons of the analysis at the site with these ``manifests``."""
    cohort, spec = load_cohort(manifests, study), study.cohort.clinical
    everyone = np.ones(len(cohort), bool)
    design, masks, known = list[Floats](), list[Bools](), everyone
    for name in outcome_forms.covariates(study):
        values = column_of(cohort, study, name)
        known = known & np.isfinite(values)
        own = np.unique(values[np.isfinite(values)])
        category = spec is not None and name in spec.categories
        if category and spec is not None:
            design += [(values == code).astype(np.float64) for code in range(1, len(spec.categories[name]))]
        else:
            design.append(values)
        if category or len(own) <= FEW_VALUES:
            masks += [values == code for code in own]
    cox = outcome_forms.section(study, "survival.cox")
    weights = None if cox is None or cox.weights is None else column_of(cohort, study, cox.weights)
    if weights is not None:
        known = known & np.isfinite(weights)
        masks += _of_weights(weights)
    groups = [everyone]
    if (curves := outcome_forms.section(study, "survival.curves")) is not None and curves.groups is not None:
        values = column_of(cohort, study, curves.groups)
        known = known & np.isfinite(values)
        groups = [values == code for code in range(len(outcome_forms.groups_of(study, "survival.curves")))]
    if study.treatment is not None:
        values = column_of(cohort, study, study.treatment.column)
        groups = [values == code for code in outcome_forms.arms_of(study)]
        known = known & np.any(groups, axis=0)
    labels = cohort.labels.reshape(len(cohort), -1)
    rows = np.flatnonzero(known & np.isfinite(labels).all(1))
    x = np.stack(design, 1)[rows] if design else np.zeros((len(rows), 0))
    levels = np.stack([everyone, *masks])[1:, rows]
    times = times_of(labels[rows]) if study.survival is not None else None
    counted = study.cohort.exposure is not None
    offset = np.log(labels[rows, 1]) if counted else None
    return Persons(rows, x.astype(np.float64), levels, np.stack(groups)[:, rows], times, labels[rows, 0], offset,
                   None if weights is None else weights[rows])  # fmt: skip


def _of_weights(weights: Floats) -> list[Bools]:
    """Who has each case weight, if there are few; else who has the most common one and who has another, if most have it. A weighted sum
    less a multiple of the same sum without weights is about those whose weight differs from that multiple."""
    known = np.isfinite(weights)
    own, counts = np.unique(weights[known], return_counts=True)
    if len(own) <= FEW_VALUES:
        return [weights == value for value in own]
    common = own[counts.argmax()]
    return [weights == common, known & (weights != common)] if 2 * counts.max() >= counts.sum() else []


def _with_weights(weights: Floats | None, floor: int) -> int:
    """Fewest persons in an interval whose weighted sum is about at least ``floor`` effective persons, (sum a)^2 / sum a^2, whatever their
    weights: with the ratio r of largest to smallest, n persons are about at least 4 r n / (1 + r)^2 (Kantorovich's inequality)."""
    if weights is None or floor <= 1 or not len(weights) or weights.min() <= 0:
        return floor
    ratio = float(weights.max() / weights.min())
    return math.ceil(floor * (1 + ratio) ** 2 / (4 * ratio) - 1e-9)


def floor_of(request: Request) -> int:
    """Fewest persons in a number that is sent: the largest min_count of study and sites; 1 where all sites declare their data public."""
    sites = [read_site_once(m).manifest for m in request.manifests]
    if all(site.data.public for site in sites):
        return 1
    return max(request.study.policy.min_count, *(site.policy.min_count for site in sites))


def cells_of(request: Request, model: int) -> Cells:
    """What is counted in an interval of the study's grid at this site, and the fewest persons of each cell.

    Of curves: who enters, has each event, leaves, in each group. Of a Cox model, of everyone and in each level of a covariate: who enters
    and leaves; with ties by Efron also who has the event and who leaves without, because sums over both are sent; with ties by Breslow
    the number of events alone. Of everyone there must be so many that they have more values than the steps of an analysis send about
    them: at each step a sum over who is at risk, and at the last one a sum of each column.
    """
    people, study, floor = analysed(request.manifests, request.study), request.study, floor_of(request)
    assert people.times is not None  # noqa: S101 - the form of the request was checked
    time, first, event = people.times.time, people.times.first, people.times.event
    least, everyone = floor, np.ones((1, len(people.rows)), bool)
    if model == CURVES:
        masks, kinds = people.groups, [event == code for code in range(1, len(study.cohort.time_to_event.codes))]
        split = np.ones(len(masks), bool)
    elif model == TREATED:
        masks = np.stack([arm & level for arm in people.groups for level in (everyone[0], *people.levels)])
        kinds = [event == code for code in range(len(study.cohort.time_to_event.codes))]
        split = np.ones(len(masks), bool)
    else:
        plan = outcome_forms.section(study, "survival.cox")
        masks, kinds = np.vstack([everyone, people.levels]), [event == 1]
        stay = plan.hazard == "subdistribution"
        kinds += [event == 0, *(event == code for code in range(2, len(study.cohort.time_to_event.codes)))] if stay else []
        kinds += [event != 1] if plan.ties == "efron" and not stay else []
        split = np.array([True, *[stay or plan.ties == "efron"] * len(people.levels)])
        floor = _with_weights(people.weights, floor)
        if floor > 1:
            most = max(read_site_once(m).manifest.policy.max_analyses for m in request.manifests)
            least = max(floor, math.ceil(STEPS * most / max(people.x.shape[1], 1)) + 1)

    def counted(chosen: Bools, places: Ints) -> Ints:
        return np.bincount(places[chosen], minlength=len(study.times.edges)).astype(np.int64)

    cells, fewest = [], []
    for number, mask in enumerate(masks):
        of_all = model == COX and number == 0
        rows = [mask, *((mask & kind for kind in kinds) if split[number] else [])]
        cells += [counted(row, time) for row in rows]
        fewest += [least if of_all else floor] * len(rows)
        if first is not None:
            cells.append(counted(mask, first))
            fewest.append(least if of_all else floor)
    enter, leave = (np.stack([counted(mask, places) for mask in masks]) for places in (people.times.at_risk_from(), time))
    return Cells(np.stack(cells), np.array(fewest, np.int64), enter, leave, floor)


def forget() -> None:
    """Reads everything anew from now on."""
    analysed.cache_clear()
