"""Regression: squared error on a standardised target, and metrics from sums that add, in units of the target (r2: none)."""

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
from fedml.tasks.number_labels import number_labels
from fedml.tasks.task import Answer, Compared, Fields, LinearScore, Result, Task, Words, not_grouped, unchanged

_FIELDS: Fields = dict.fromkeys(("persons", "y_sum", "y2_sum", "e_sum", "e2_sum", "abs_sum"), ("float64", (1,)))
_NO_SPREAD = NotBuilt("the spread of squared errors is not in the counts")
EVALUATION_BATCH = 512  # persons; gradients are not kept


def regression_task(study: Study) -> Task:
    """The task of a study whose target is a number of each person."""
    target = study.cohort.outcome
    return Task(
        name=study.model.task, traits=study.traits, classes=(), scored={}, outputs=1,
        truth=itemgetter("label"), loss=squared_error, counts=regression_counts, fields=_FIELDS, coarse=unchanged,
        grouped=not_grouped, spread=unchanged,
        evaluation_batch=EVALUATION_BATCH, measures=MEASURES, watched="rmse", higher=False, measure="mae", risks=False, over_time=None,
        labels=number_labels(study),
        answer=Answer(
            columns=lambda output, batch: {"predicted": output[:, 0].double().tolist()},
            example={"predicted": [0.0]},
            caption=lambda output: f"predicted {float(output[0]):.4g}",
        ),
        compared=Compared(
            values=lambda output, truth: output[:, 0].double().numpy(), statistic=lambda labels, values: statistic("rmse", labels, values)
        ),
        linear_score=LinearScore("beta", f"{target} in its unit"),
        words=Words(
            predicts="a number",
            counts="sums of errors and of their squares",
            outcome=f'The outcome is the column "{target}", a number.',
            output="The model gives a number in the unit of the outcome.",
            balance=NotBuilt("a number has no classes that could be out of balance"),
            no_prediction="",
            no_classes="The outcome is a number and has no classes.",
            answer=lambda result: _answer(target, result),
            unknown=(),
            groups="",
        ),
    )  # fmt: skip


def squared_error(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The mean over persons."""
    return functional.mse_loss(output[:, 0], label)


def regression_counts(output: torch.Tensor, label: torch.Tensor) -> Counts:
    """Sums over persons, each (1,): of the target, of errors, of absolute errors, and of squares."""
    y = label.double().numpy()
    error = output.detach().double().numpy()[:, 0] - y
    sums = {"persons": float(len(y)), "y_sum": y.sum(), "y2_sum": (y**2).sum(), "e_sum": error.sum()}
    sums |= {"e2_sum": (error**2).sum(), "abs_sum": np.abs(error).sum()}
    return {k: np.array([float(v)]) for k, v in sums.items()}


def _sum(counts: Mapping[str, npt.NDArray[Any]], key: str) -> float:
    return float(counts[key][0])


def _rmse(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    return float(np.sqrt(_sum(counts, "e2_sum") / _sum(counts, "persons")))


def _mae(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    return _sum(counts, "abs_sum") / _sum(counts, "persons")


def _bias(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    return _sum(counts, "e_sum") / _sum(counts, "persons")


def _r2(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    spread = _sum(counts, "y2_sum") - _sum(counts, "y_sum") ** 2 / _sum(counts, "persons")
    return 1 - _sum(counts, "e2_sum") / spread if spread > 1e-12 * _sum(counts, "y2_sum") else float("nan")


def _mae_interval(parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    found = student([(_sum(p, "persons"), _sum(p, "abs_sum"), _sum(p, "e2_sum")) for p in parts], level)
    return Interval(found.value, max(found.low, 0.0), found.high, level, found.method)


def _bias_interval(parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    return student([(_sum(p, "persons"), _sum(p, "e_sum"), _sum(p, "e2_sum")) for p in parts], level)


MEASURES: tuple[Measure, ...] = (
    Measure(
        name="rmse", of="all", value=_rmse, interval=_NO_SPREAD, printed="RMSE", axis="RMSE",
        meaning="root of the mean squared error: as the mean absolute error, with large errors counting more",
        bounds=None, guess=None, counted=False, additive=False, brief=True,
    ),
    Measure(
        name="mae", of="all", value=_mae, interval=_mae_interval, printed="mean absolute error", axis="mean absolute error",
        meaning="how far the prediction is off, on average", bounds=None, guess=None, counted=False, additive=True, brief=True,
    ),
    Measure(
        name="bias", of="all", value=_bias, interval=_bias_interval, printed="bias", axis="bias",
        meaning="how much too high the prediction is, on average", bounds=None, guess=None, counted=False, additive=True, brief=False,
    ),
    Measure(
        name="r2", of="all", value=_r2, interval=_NO_SPREAD, printed="R²", axis="R²",
        meaning="the share of the outcome's variance that the prediction explains",
        bounds=None, guess=None, counted=False, additive=False, brief=True,
    ),
)  # fmt: skip


def _answer(target: str, result: Result) -> list[str]:
    off = f"Of {result.held}, the predicted {target} is off by {result.headline} on average"
    r2 = result.estimates["r2"]["value"]
    better = f"it explains {result.percent('r2')} of the outcome's variance" if r2 is None or r2 > 0 else "the mean of all would be closer"
    return [f"{off}; {better} (R² {result.number(r2)}). {_higher(result)}"]


def _higher(result: Result) -> str:
    bias = result.estimates["bias"]
    if bias["low"] is None or bias["low"] <= 0 <= bias["high"]:
        return "There is no evidence that it is too high or too low on average."
    return f"On average it is too {'high' if bias['value'] > 0 else 'low'}, by {result.say({**bias, 'value': abs(bias['value'])})}."
