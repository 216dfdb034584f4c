"""Survival: the time to an event in intervals of the study's grid (``fedml.tasks.survival_labels``).

The network gives the log-odds of the event in each interval for a person who is at risk in it (discrete time: Gensheimer and Narasimhan
2019, "A scalable discrete-time survival model for neural networks", PeerJ 7:e6257). The loss is a sum over persons, so training over sites
is that of the pooled persons.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fedml.errors import NotBuilt
from fedml.study.study import Study
from fedml.tasks.counts import Counts
from fedml.tasks.drawn import statistic
from fedml.tasks.interval_tools import Interval, Parts, student
from fedml.tasks.measure import Measure
from fedml.tasks.survival_labels import time_labels
from fedml.tasks.task import Answer, Compared, Fields, Result, Task, Words, not_grouped, unchanged

_FIELDS: Fields = dict.fromkeys(("persons", "log_loss_sum", "log_loss_sq_sum"), ("float64", (1,)))
EVALUATION_BATCH = 512  # persons; gradients are not kept


def survival_task(study: Study) -> Task:
    """The task of a study whose target is the time to an event of each person."""
    times, target = study.times, study.cohort.time_to_event
    horizons, places = times.horizons, list(times.places)
    names = [f"survival_{horizon:g}" for horizon in horizons]

    def columns(output: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> dict[str, list[Any]]:
        alive = survival_of(output)[:, places]
        return {name: alive[:, k].tolist() for k, name in enumerate(names)}

    return Task(
        name=study.model.task, traits=study.traits, classes=(), scored={}, outputs=len(times.edges),
        truth=itemgetter("label"), loss=discrete_loss, counts=survival_counts, fields=_FIELDS, coarse=unchanged,
        grouped=not_grouped, spread=unchanged,
        evaluation_batch=EVALUATION_BATCH, measures=MEASURES, watched="log_loss", higher=False, measure="log_loss", risks=False,
        labels=time_labels(study),
        answer=Answer(
            columns=columns, example={name: [0.5] for name in names},
            caption=lambda output: f"P(no {target.names[0]} by {horizons[-1]:g} {times.unit}) = "
            f"{float(survival_of(output[None])[0, places[-1]]):.2f}",
        ),
        compared=Compared(
            values=lambda output, truth: log_losses(output.double(), truth).numpy(),
            statistic=lambda labels, values: statistic("mean", labels, values),
        ),
        linear_score=NotBuilt("log-odds of an event in each interval have no type in a scoring file"),
        words=Words(
            predicts=f"the time to {target.names[0]}, in {len(times.edges)} intervals until {times.until:g} {times.unit}",
            counts="sums of log-losses and of their squares",
            outcome=f'The outcome is the time to {target.names[0]} in {times.unit}, in the columns {" and ".join(target.columns)}.',
            output=f"The model gives the probability of no {target.names[0]} by {', '.join(f'{h:g}' for h in horizons)} {times.unit}.",
            balance=NotBuilt("a time has no classes that could be out of balance"),
            no_prediction="",
            no_classes="The outcome is a time and has no classes.",
            answer=lambda result: _answer(target.names[0], result),
            unknown=(),
            groups="",
        ),
    )  # fmt: skip


def survival_of(output: torch.Tensor) -> torch.Tensor:
    """(persons, intervals) log-odds of an event -> probability of none by the end of each interval, in double precision."""
    return functional.logsigmoid(-output.double()).cumsum(1).exp()


def log_losses(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """(persons,) -log likelihood of each person's intervals: the places ``first`` to ``time`` of a label (place, event[, first])."""
    places = torch.arange(output.shape[1], device=output.device)
    time, event = label[:, 0].long()[:, None], label[:, 1] == 1  # a competing event ends the time at risk, as censoring does
    at_risk = places <= time
    if label.shape[1] == 3:
        at_risk &= places >= label[:, 2].long()[:, None]
    happened = ((places == time) & event[:, None]).to(output.dtype)
    losses = functional.binary_cross_entropy_with_logits(output, happened, reduction="none")
    return (losses * at_risk).sum(1)


def discrete_loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The mean over persons of ``log_losses``."""
    return log_losses(output, label).mean()


def survival_counts(output: torch.Tensor, label: torch.Tensor) -> Counts:
    """Sums over persons, each (1,): of log-losses and of their squares."""
    each = log_losses(output.detach().double(), label).numpy()
    if not np.isfinite(each).all():
        raise FloatingPointError("the model's output is not finite")
    return {k: np.array([float(v)]) for k, v in zip(_FIELDS, (len(each), each.sum(), (each**2).sum()), strict=True)}


def _log_loss(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    return float(counts["log_loss_sum"][0] / counts["persons"][0])


def _interval(parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    return student([(float(p["persons"][0]), float(p["log_loss_sum"][0]), float(p["log_loss_sq_sum"][0])) for p in parts], level)


MEASURES: tuple[Measure, ...] = (
    Measure(
        name="log_loss", of="all", value=_log_loss, interval=_interval, printed="log loss", axis="log loss",
        meaning="minus the logarithm of the probability of what happened, on average", bounds=None, guess=None, counted=False,
        additive=True, brief=True,
    ),
)  # fmt: skip


def _answer(event: str, result: Result) -> list[str]:
    return [f"Of {result.held}, the predicted time to {event} has a log loss of {result.headline}."]
