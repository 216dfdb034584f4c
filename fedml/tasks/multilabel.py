"""Several labels of a person at once, each yes or no: binary cross-entropy of each label, and metrics from counts of each label that add.

A person counts for the labels that it has: the loss is the mean over persons of the sum over the person's own labels, divided by the number
of all labels, so each label of a linear model is a logistic regression of the persons who have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fedml.errors import NotBuilt
from fedml.study.section import normal
from fedml.study.study import Study
from fedml.tasks.classification_counts import BEYOND, BINS, COARSE, COARSE_STEP, coarse, place_of, spread
from fedml.tasks.classification_counts import grouped as grouped_of_one
from fedml.tasks.classification_measures import f1_by_class, f1_interval_of, measure_of_classes
from fedml.tasks.counts import Counts, add_counts
from fedml.tasks.drawn import mean_auroc
from fedml.tasks.interval_tools import Interval, Parts, mean_of, no_interval, wilson
from fedml.tasks.measure import Measure, Value
from fedml.tasks.task import Answer, Compared, Fields, Floats, Labels, Result, Task, Words

TABLES = "tables"  # (labels, true, predicted) persons
OfTable = Callable[[npt.NDArray[Any], float], Interval]  # (true, predicted) persons, level
EVALUATION_BATCH = 512  # persons; gradients are not kept


def multilabel_task(study: Study) -> Task:
    """The task of a study whose target is several columns with two levels each."""
    names, levels = study.cohort.targets, tuple(normal(c) for c in study.cohort.classes)
    return Task(
        name=study.model.task, traits=study.traits, classes=names, scored=dict(enumerate(names)), outputs=len(names),
        truth=itemgetter("label"), loss=multilabel_loss, counts=multilabel_counts, fields=_fields(len(names)), coarse=coarse,
        grouped=_grouped, spread=spread,
        evaluation_batch=EVALUATION_BATCH, measures=MEASURES, watched="auroc", higher=True, measure="auroc", risks=False, over_time=None,
        labels=_labels(study), answer=_answer(names, levels),
        compared=Compared(values=lambda output, truth: output.double().numpy(), statistic=mean_auroc),
        linear_score=NotBuilt("a scoring file holds weights of one outcome"),
        words=Words(
            predicts=f"{levels[1]} or {levels[0]} for each of {len(names)} columns",
            counts="counts of right and wrong answers and of scores (a histogram) of each label",
            outcome=f"The outcome is {len(names)} columns, {', '.join(names)}, each with levels {' and '.join(levels)}; a person counts "
            "for those columns in which it has a value.",
            output=f"The model gives a probability of {levels[1]} for each of {len(names)} labels; a label is predicted above one half.",
            balance="All training persons of a site have the same weight in the loss of a label that they have.",
            no_prediction="",
            no_classes="The outcome is several labels of a person, which exclude no other.",
            answer=lambda result: _sentences(names, result),
            unknown=("It does not state the risk at which a person would be treated, so benefit and harm are not assessed.",),
            groups=f"Scores of a group are released in {COARSE} steps, {COARSE_STEP:.2f} of log-odds wide at 0 and wider beyond, so "
            "its AUROC is less exact than that of all.",
        ),
    )  # fmt: skip


def _labels(study: Study) -> Labels:
    """(persons, labels) 0 or 1, NaN where a person lacks a label."""
    names, levels = study.cohort.targets, study.cohort.classes

    def cells(labels: Floats) -> dict[str, list[Any]]:
        return {name: [None if np.isnan(v) else levels[int(v)] for v in labels[:, k]] for k, name in enumerate(names)}

    return Labels(
        read=lambda cells: np.stack([cells.codes(name, levels) for name in names], 1),
        cells=cells,
        show=lambda label: _shown([name for name, value in zip(names, label, strict=True) if value == 1]),
        placeholder=lambda labels, random: labels,
        canary=NotBuilt("no audit of several labels is built"),
    )


def _shown(names: Sequence[str]) -> str:
    return " and ".join(names) or "none"


# --- loss and counts


def multilabel_loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy summed over the labels that a person has, by the number of all labels; the mean over persons."""
    there = ~torch.isnan(label)
    each = functional.binary_cross_entropy_with_logits(output, torch.where(there, label, 0.0).to(output.dtype), reduction="none")
    return (each * there).mean(1).mean()


def _fields(labels: int) -> Fields:
    return {
        "persons": ("float64", (1,)), TABLES: ("int64", (labels, 2, 2)), "histogram": ("int32", (labels, 2, BINS)),
        "log_loss_sum": ("float64", (labels,)), BEYOND: ("float64", (labels,)),
    }  # fmt: skip


def multilabel_counts(output: torch.Tensor, label: torch.Tensor) -> Counts:
    """Of each label, over the persons who have it: tables (true, predicted), a histogram (no/yes, bin) of log-odds, sums of log-losses."""
    z, y = output.detach().double().numpy(), label.double().numpy()
    if not np.isfinite(z).all():
        raise FloatingPointError("the model's output is not finite")
    labels = z.shape[1]
    tables, lost = np.zeros((labels, 2, 2), dtype=np.int64), np.zeros(labels)
    histogram = np.zeros((labels, 2, BINS), dtype=np.int32)
    for k in range(labels):
        there = ~np.isnan(y[:, k])
        own, score = y[there, k].astype(np.int64), z[there, k]
        tables[k] = np.bincount(2 * own + (score > 0), minlength=4).reshape(2, 2)
        place = place_of(score)
        for side in (0, 1):
            histogram[k, side] = np.bincount(place[own == side], minlength=BINS)
        lost[k] = np.logaddexp(0, np.where(own == 1, -score, score)).sum()
    return {
        "persons": np.array([float(len(z))]), TABLES: tables, "histogram": histogram, "log_loss_sum": lost, BEYOND: np.zeros(labels)
    }  # fmt: skip


def _grouped(counts: Mapping[str, npt.NDArray[Any]], smallest: int) -> Counts:
    """``counts`` with the tables and the histogram of each label grouped as those of a classification. Nothing is sent of a label that
    fewer than ``smallest`` persons have, or that fewer lack, because their number would follow from that of all."""
    if smallest <= 1 or TABLES not in counts:
        return dict(counts)
    out: Counts = {name: value.copy() for name, value in counts.items()}
    for k, table in enumerate(counts[TABLES]):
        persons = int(table.sum())
        if persons < smallest or 0 < int(counts["persons"][0]) - persons < smallest:
            for name in (TABLES, "histogram", "log_loss_sum"):
                out[name][k] = 0
            continue
        one = grouped_of_one({"confusion": table, "histogram": counts["histogram"][k : k + 1]}, smallest)
        out[TABLES][k], out["histogram"][k], out[BEYOND][k] = one["confusion"], one["histogram"][0], one[BEYOND][0]
    return out


# --- measures


def _each(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> list[int]:
    """Label ``one``, or all labels that a person has."""
    return [one] if one is not None else [k for k, table in enumerate(counts[TABLES]) if table.sum()]


def _mean(value: Value, counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    """Of label ``one``, or the mean over labels that have a value."""
    values = [v for v in (value(counts, k) for k in _each(counts, one)) if v is not None and not np.isnan(v)]
    return float(np.mean(values)) if values else float("nan")


def _accuracy_of(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    table = counts[TABLES][one]
    return float(np.trace(table) / table.sum()) if table.sum() else float("nan")


def _f1_of(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    return float(f1_by_class(counts[TABLES][one])[1])


def _log_loss_of(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    persons = counts[TABLES][one].sum()
    return float(counts["log_loss_sum"][one] / persons) if persons else float("nan")


def _interval(
    of_table: Callable[[npt.NDArray[Any], float], Interval], parts: Parts, one: int | None, level: float, by: tuple[int, int]
) -> Interval:
    """Of label ``one``, or the mean over labels."""
    total = add_counts(parts)
    each = [found for k in _each(total, one) if not np.isnan((found := of_table(total[TABLES][k], level)).value)]
    return mean_of(each, level) if each else no_interval(float("nan"), level, "no person has the label")


def _accuracy_interval(table: npt.NDArray[Any], level: float) -> Interval:
    hits, persons = float(np.trace(table)), float(table.sum())
    if not persons:
        return no_interval(float("nan"), level, "no person has the label")
    low, high = wilson(hits, persons, level)
    return Interval(hits / persons, float(low), float(high), level, "Wilson")


def _f1_interval(table: npt.NDArray[Any], level: float) -> Interval:
    return f1_interval_of(table, 1, level)


MEASURES: tuple[Measure, ...] = (
    replace(
        measure_of_classes("auroc"),
        meaning="the share of pairs, one person with the label and one without, in which the model gives the higher risk to the right one: "
        "0.5 is a guess, 1 is perfect; of all, the mean over labels",
    ),
    Measure(
        name="f1", of="both", value=partial(_mean, _f1_of), interval=partial(_interval, _f1_interval), printed="F1", axis="F1",
        meaning="twice the persons who have the label and are predicted to, by those who have it plus those predicted to: 0 none is found, "
        "1 is perfect; of all, the mean over labels", bounds=(0.0, 1.0), guess=None, counted=False, additive=False, brief=True,
    ),
    Measure(
        name="accuracy", of="both", value=partial(_mean, _accuracy_of), interval=partial(_interval, _accuracy_interval),
        printed="accuracy", axis="accuracy", meaning="the share of persons in whom the label is predicted rightly; of all, the mean over "
        "labels", bounds=(0.0, 1.0), guess=None, counted=False, additive=False, brief=True,
    ),
    Measure(
        name="log_loss", of="both", value=partial(_mean, _log_loss_of),
        interval=NotBuilt("labels of one person hang together, which is not in the counts"), printed="log loss", axis="log loss",
        meaning="minus the logarithm of the probability of the true value of the label, on average; of all, the mean over labels",
        bounds=None, guess=None, counted=False, additive=False, brief=False,
    ),
)  # fmt: skip


# --- answers and sentences


def _answer(names: tuple[str, ...], levels: tuple[str, ...]) -> Answer:
    def columns(p: Floats) -> dict[str, list[Any]]:
        risks = {f"probability_{name}": p[:, k].tolist() for k, name in enumerate(names)}
        return risks | {f"predicted_{name}": [levels[int(v > 0.5)] for v in p[:, k]] for k, name in enumerate(names)}

    return Answer(
        columns=lambda output, batch: columns(torch.sigmoid(output.double()).numpy()),
        example=columns(np.full((1, len(names)), 0.5)),
        caption=lambda output: "predicted " + _shown([name for name, value in zip(names, output.tolist(), strict=True) if value > 0]),
    )


def _sentences(names: tuple[str, ...], result: Result) -> list[str]:
    each = [f"{name} {result.say(result.estimates.get(f'auroc/{name}'))}" for name in names]
    out = [f"Measured on {result.held}: AUROC {result.headline}, the mean over {len(names)} labels ({'; '.join(each)})."]
    return [*out, f"F1 is {result.say(result.estimates.get('f1'))} on average over the labels."]
