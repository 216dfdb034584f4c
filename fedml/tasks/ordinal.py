"""Ordinal regression: ordered classes by proportional odds (McCullagh 1980, JRSS B 42:109), and metrics from a confusion matrix that adds.

The model gives log P(above k) / P(not above k) for each class k but the last, falling in k (``fedml.networks.outcome.Thresholds``).
Quadratic-weighted kappa: Cohen 1968, Psychol Bull 70:213. Ranks are the places of classes in ``[cohort] classes``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fedml.errors import NotBuilt
from fedml.study.section import normal
from fedml.study.study import Study
from fedml.tasks.classification import balance, class_labels, class_prediction
from fedml.tasks.classification_measures import measure_of_classes
from fedml.tasks.counts import Counts, add_counts, rounded_confusion
from fedml.tasks.drawn import Statistic
from fedml.tasks.interval_tools import Floats, Interval, Parts, no_interval, quantile, resampled, strata, student
from fedml.tasks.measure import Measure
from fedml.tasks.task import Answer, Compared, Fields, Result, Task, Words, unchanged

EVALUATION_BATCH = 512  # persons; gradients are not kept


def ordinal_task(study: Study) -> Task:
    """The task of a study whose target is one of several ordered classes of each person."""
    target, names = study.cohort.outcome, tuple(normal(c) for c in study.cohort.classes)
    order = " < ".join(names)
    return Task(
        name=study.model.task, traits=study.traits, classes=names, scored={}, outputs=len(names) - 1,
        truth=itemgetter("label"), loss=ordinal_loss, counts=ordinal_counts, fields=_fields(len(names)), coarse=unchanged,
        grouped=_grouped, spread=unchanged,
        evaluation_batch=EVALUATION_BATCH, measures=MEASURES, watched="kappa_quadratic", higher=True, measure="kappa_quadratic",
        risks=False, over_time=None, labels=replace(class_labels(study), canary=NotBuilt("no audit of ordered classes is built")),
        answer=_answer(names),
        compared=Compared(
            values=lambda output, truth: log_probabilities(output.double()).argmax(1).double().numpy(),
            statistic=lambda labels, values: _drawn_kappa(labels, values, len(names)),
        ),
        linear_score=NotBuilt("the log-odds of ordered classes have no type in a scoring file"),
        words=Words(
            predicts=f"one of {order}, in this order",
            counts="counts of true by predicted class and a sum of log-losses",
            outcome=f'The outcome is the column "{target}", with ordered classes {order}.',
            output=f"The model gives a probability for each of {len(names)} ordered classes (proportional odds); the predicted class is "
            "the most probable one.",
            balance=balance(study.training, names),
            no_prediction="",
            no_classes="",
            answer=lambda result: _sentences(target, result),
            unknown=("It does not test whether the effects are alike at all thresholds (proportional odds).",),
            groups="",
        ),
    )  # fmt: skip


def log_probabilities(output: torch.Tensor) -> torch.Tensor:
    """(persons, classes) of (persons, classes - 1) log-odds of being above each class; a difference of probabilities without cancellation:
    s(u) - s(v) = s(u) s(-v) (1 - exp(v - u))."""
    none = torch.zeros_like(output[:, :1])
    gap = (output[:, :-1] - output[:, 1:]).clamp_min(torch.finfo(output.dtype).tiny)
    above, below = functional.logsigmoid(output), functional.logsigmoid(-output)
    between = torch.log(-torch.expm1(-gap))
    return torch.cat([none, above], 1) + torch.cat([below, none], 1) + torch.cat([none, between, none], 1)


def ordinal_loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """-log P(the person's class), the mean over persons."""
    return functional.nll_loss(log_probabilities(output), label.long())


# --- counts


def _fields(classes: int) -> Fields:
    return {"persons": ("float64", (1,)), "log_loss_sum": ("float64", (1,)), "confusion": ("int64", (classes, classes))}


def ordinal_counts(output: torch.Tensor, label: torch.Tensor) -> Counts:
    """confusion (true, most probable), and the sum of log-losses."""
    z, y = output.detach().double(), label.long().numpy()
    if not bool(torch.isfinite(z).all()):
        raise FloatingPointError("the model's output is not finite")
    log_p = log_probabilities(z).numpy()
    persons, classes = log_p.shape
    confusion = np.bincount(y * classes + log_p.argmax(1), minlength=classes * classes).reshape(classes, classes)
    lost = -log_p[np.arange(persons), y].sum()
    return {"persons": np.array([float(persons)]), "log_loss_sum": np.array([lost]), "confusion": confusion.astype(np.int64)}


def _grouped(counts: Mapping[str, npt.NDArray[Any]], smallest: int) -> Counts:
    """Small cells of the confusion matrix are rounded within the persons of their class."""
    if "confusion" not in counts:
        return dict(counts)
    return {**counts, "confusion": rounded_confusion(counts["confusion"], smallest)}


# --- measures


def _apart(classes: int) -> npt.NDArray[np.int64]:
    """(classes, classes) ranks between two classes."""
    rank = np.arange(classes)
    return np.asarray(np.abs(rank[:, None] - rank[None, :]), dtype=np.int64)


def _kappas(confusion: npt.NDArray[Any]) -> Floats:
    """(...,) of (..., classes, classes); NaN where all persons are, and are predicted, of one class."""
    table = confusion.astype(np.float64)
    weight = _apart(table.shape[-1]) ** 2
    persons, seen = table.sum((-1, -2)), (table * weight).sum((-1, -2))
    expected = np.einsum("...i,...j,ij->...", table.sum(-1), table.sum(-2), weight.astype(np.float64))
    out: Floats = 1 - np.divide(seen * persons, expected, out=np.full(np.shape(seen), np.nan), where=expected > 0)
    return out


def _kappa(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    return float(_kappas(counts["confusion"]))


def _mae(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    confusion = counts["confusion"]
    return float((confusion * _apart(len(confusion))).sum() / counts["persons"][0])


def _log_loss(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    return float(counts["log_loss_sum"][0] / counts["persons"][0])


def _kappa_interval(parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    """Normal limits on Fisher's z scale, from bootstrap samples of the cells of each stratum."""
    value = _kappa(add_counts(parts), None)
    if math.isnan(value) or abs(value) == 1:
        return no_interval(value, level, "all persons are of one class" if math.isnan(value) else "every person is predicted alike well")
    tables = [part["confusion"] for part in strata(parts)]
    drawn = np.concatenate([_kappas(draw.reshape(-1, *tables[0].shape)) for draw in resampled([t.ravel() for t in tables], *by)])
    persons = float(sum(t.sum() for t in tables))
    edge = 1 - 1 / (persons + 1)  # a sample in which all are right has no z
    half = quantile(level) * float(np.std(np.arctanh(np.clip(drawn[~np.isnan(drawn)], -edge, edge)), ddof=1))
    middle = math.atanh(min(max(value, -edge), edge))
    low, high = min(math.tanh(middle - half), value), max(math.tanh(middle + half), value)
    return Interval(value, low, high, level, "bootstrap, Fisher's z scale")


def _mae_interval(parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    each = [(float(p["persons"][0]), p["confusion"], _apart(len(p["confusion"]))) for p in parts]
    found = student([(n, float((table * d).sum()), float((table * d**2).sum())) for n, table, d in each], level)
    return replace(found, low=max(found.low, 0.0))


MEASURES: tuple[Measure, ...] = (
    Measure(
        name="kappa_quadratic", of="all", value=_kappa, interval=_kappa_interval, printed="quadratic-weighted kappa", axis="kappa",
        meaning="agreement of predicted and true class beyond chance, where an error counts by the square of its ranks: 1 is perfect",
        bounds=(-1.0, 1.0), guess=0.0, counted=False, additive=False, brief=True,
    ),
    measure_of_classes("accuracy"),
    Measure(
        name="mae_ranks", of="all", value=_mae, interval=_mae_interval, printed="mean absolute error in ranks", axis="error in ranks",
        meaning="by how many classes the prediction is off, on average", bounds=None, guess=None, counted=False, additive=True, brief=True,
    ),
    Measure(
        name="log_loss", of="all", value=_log_loss, interval=NotBuilt("the spread of log-losses is not in the counts"), printed="log loss",
        axis="log loss", meaning="minus the logarithm of the probability of the true class, on average", bounds=None, guess=None,
        counted=False, additive=True, brief=False,
    ),
)  # fmt: skip


# --- answers, comparisons, sentences


def _drawn_kappa(labels: Floats, values: Floats, classes: int) -> Statistic:
    """Kappa of persons drawn with replacement, from their true and predicted classes."""
    cell = np.eye(classes * classes)[(labels * classes + values).astype(np.int64)]
    return lambda drawn: _kappas((drawn @ cell).reshape(-1, classes, classes))


def _answer(names: tuple[str, ...]) -> Answer:
    def caption(output: torch.Tensor) -> str:
        p = log_probabilities(output[None].double())[0].exp()
        return f"predicted {names[int(p.argmax())]} ({float(p.max()):.2f})"

    return Answer(
        columns=lambda output, batch: class_prediction(names, log_probabilities(output.double()).exp().numpy()),
        example=class_prediction(names, np.full((1, len(names)), 1 / len(names))),
        caption=caption,
    )


def _sentences(target: str, result: Result) -> list[str]:
    off = result.estimates["mae_ranks"]
    out = [f"Measured on {result.held}: predicted and true {target} agree with a quadratic-weighted kappa of {result.headline}."]
    main = result.estimates["kappa_quadratic"]
    if main["low"] is not None and main["low"] <= 0:
        out += ["The model is not shown to be better than chance."]
    right = f"The most probable class is correct in {result.percent('accuracy')} of persons"
    return [*out, f"{right}, and off by {result.say(off)} ranks on average."]
