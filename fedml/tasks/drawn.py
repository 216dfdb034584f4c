"""Metrics of persons sampled with replacement, for comparing two models on the same persons (``fedml.learning.differences``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# (draws, persons) number of times each person was sampled -> (draws,) the metric of each draw, NaN if undefined.
Statistic = Callable[[npt.NDArray[Any]], Floats]


def statistic(metric: str, truth: npt.ArrayLike, output: npt.ArrayLike) -> Statistic:
    """The metric by the task's name, as a function of resampled persons.

    Args:
        truth: (persons,) class, or target. output: (persons, classes) probabilities, or (persons,) that of class 1 of two; for rmse, mae
        and bias the predicted targets; for ``mean`` each person's own value, such as Dice (truth is not read), NaN where there is none.

    Raises:
        ValueError: no such metric, or the shapes do not fit.
    """
    if metric == "mean":
        values = np.asarray(output, dtype=np.float64)
        return _mean(np.nan_to_num(values), ~np.isnan(values))
    y, out = np.asarray(truth), np.asarray(output, dtype=np.float64)
    if len(y) != len(out):
        raise ValueError(f"{len(y)} persons have a truth, {len(out)} an output")
    everyone = np.ones(len(y), dtype=bool)
    if metric in ("rmse", "mae", "bias"):
        error = out - y
        mean = _mean({"rmse": error**2, "mae": np.abs(error), "bias": error}[metric], everyone)
        return (lambda drawn: np.sqrt(mean(drawn))) if metric == "rmse" else mean
    p = np.stack([1 - out, out], 1) if out.ndim == 1 else out
    y = y.astype(np.int64)
    classes = p.shape[1]
    if metric == "auroc":
        return _average([_auroc(y == c, p[:, c]) for c in (range(1, 2) if classes == 2 else range(classes))])
    right = (p.argmax(1) == y).astype(np.float64)
    own = np.eye(classes)[y]
    if metric == "accuracy":
        return _mean(right, everyone)
    if metric == "brier":
        return _mean(((p - own) ** 2).sum(1) / (2 if classes == 2 else 1), everyone)
    if metric == "log_loss":
        with np.errstate(divide="ignore"):
            return _mean(-np.log(p[np.arange(len(y)), y]), everyone)
    if metric == "balanced_accuracy":
        return _average([_mean(right, y == c) for c in range(classes)])
    if metric in ("sensitivity", "specificity") and classes == 2:
        return _mean(right, y == (metric == "sensitivity"))
    raise ValueError(f'there is no metric "{metric}" of {classes} classes')


def mean_auroc(truth: Floats, score: Floats) -> Statistic:
    """The mean over labels of the AUROC of the persons who have each.

    Args:
        truth: (persons, labels) 0 or 1, NaN where a person lacks the label. score: (persons, labels).
    """

    def of(k: int) -> Statistic:
        there = ~np.isnan(truth[:, k])
        area = _auroc(truth[there, k] == 1, score[there, k])
        return lambda drawn: area(drawn[:, there])

    return _average([of(k) for k in range(truth.shape[1])])


def _mean(values: Floats, among: npt.NDArray[np.bool_]) -> Statistic:
    """The mean of ``values`` over the drawn persons ``among`` which are in question."""

    def of(drawn: npt.NDArray[Any]) -> Floats:
        n = drawn[:, among].sum(1).astype(np.float64)
        return _divide(drawn[:, among] @ values[among], n)

    return of


def _average(each: Sequence[Statistic]) -> Statistic:
    """Over the classes that have one in a draw."""

    def of(drawn: npt.NDArray[Any]) -> Floats:
        values = np.stack([one(drawn) for one in each])
        there = ~np.isnan(values)
        n = there.sum(0)
        return _divide(np.where(there, values, 0).sum(0), n)

    return of


def _auroc(positive: npt.NDArray[np.bool_], score: Floats) -> Statistic:
    """Mann-Whitney, ties one half, of weighted persons."""
    order = np.argsort(score, kind="stable")
    first = np.flatnonzero(np.diff(score[order], prepend=np.nan) != 0)  # of each run of equal scores

    def of(drawn: npt.NDArray[Any]) -> Floats:
        weight = drawn[:, order].astype(np.float64)
        up, down = (np.add.reduceat(weight * side[order], first, axis=1) for side in (positive, ~positive))
        pairs = up.sum(1) * down.sum(1)
        area = (up * (np.cumsum(down, 1) - down / 2)).sum(1)
        return _divide(area, pairs)

    return of


def _divide(above: Floats, below: npt.NDArray[Any]) -> Floats:
    out: Floats = np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
    return out
