"""Classification: cross-entropy, and metrics from counts that add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fedml.learning.task import Counts

BINS = 4096


COARSE = 64  # bins: half a unit of log-odds


LOGIT_RANGE = 16.0  # log-odds beyond it share the last bin: probabilities within 1.2e-7 of 0 or 1


def coarse(counts: Mapping[str, npt.NDArray[Any]]) -> Counts:
    """``counts`` with their histogram in ``COARSE`` bins at a time, each told at its middle: what is told of a subgroup. With all bins the
    groups of several variables could be joined into rows of single persons by the bin that only one person is in."""
    if "histogram" not in counts:
        return dict(counts)
    fine = counts["histogram"]
    out = np.zeros_like(fine)
    out[..., COARSE // 2 :: COARSE] = fine.reshape(*fine.shape[:-1], -1, COARSE).sum(-1)
    return {**counts, "histogram": out}


def _cross_entropy(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output, label.long())


def _class_counts(output: torch.Tensor, label: torch.Tensor) -> Counts:
    """confusion (true, predicted); histogram (class, other/own, bin) of log-odds, class 1 alone when there are two; sums."""
    z = output.detach().double().numpy()
    if not np.isfinite(z).all():
        raise FloatingPointError("the model's output is not finite")
    y = label.long().numpy()
    persons, classes = z.shape
    logp = z - np.logaddexp.reduce(z, axis=1, keepdims=True) if persons else z
    p = np.exp(logp)
    confusion = np.bincount(y * classes + z.argmax(1), minlength=classes * classes).reshape(classes, classes)
    own = np.eye(classes)[y]
    ranked = range(1, 2) if classes == 2 else range(classes)
    histogram = np.zeros((len(ranked), 2, BINS), dtype=np.int32)
    for at, c in enumerate(ranked):
        others = np.delete(z, c, axis=1)
        logit = z[:, c] - np.logaddexp.reduce(others, axis=1)
        place = np.clip((logit + LOGIT_RANGE) * (BINS / (2 * LOGIT_RANGE)), 0, BINS - 1).astype(np.int64)
        for side in (0, 1):
            histogram[at, side] = np.bincount(place[(y == c) == bool(side)], minlength=BINS)
    return {
        "persons": np.array([float(persons)]),
        "confusion": confusion.astype(np.int64),
        "histogram": histogram,
        "brier_sum": np.array([((p - own) ** 2).sum()]),
        "log_loss_sum": np.array([-logp[np.arange(persons), y].sum()]),
    }


def histogram_auroc(histogram: npt.NDArray[Any]) -> float:
    """AUROC of one (2, bins) histogram, row 0 the negatives; NaN where a side is empty."""
    negative, positive = histogram.astype(np.float64)
    below = np.cumsum(negative) - negative
    pairs = negative.sum() * positive.sum()
    return float((positive * (below + negative / 2)).sum() / pairs) if pairs else float("nan")


def class_metrics(counts: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """Metrics of a classification, of all persons in ``counts``; NaN where a class is missing that one needs."""
    n = float(counts["persons"][0])
    confusion = counts["confusion"]
    if n <= 0:
        return {"persons": 0.0}
    truly = confusion.sum(1)
    recall = np.divide(np.diag(confusion), truly, out=np.full(len(truly), np.nan), where=truly > 0)
    # A class that nobody has (or everybody) has no AUROC: the mean is over the classes that have one.
    auroc = [a for a in map(histogram_auroc, counts["histogram"]) if not np.isnan(a)]
    out = {
        "persons": n,
        "accuracy": float(np.trace(confusion) / n),
        "balanced_accuracy": float(np.nanmean(recall)),
        "auroc": float(np.mean(auroc)) if auroc else float("nan"),
        # Two classes: the usual (p1 - y)^2, half of the sum over both.
        "brier": float(counts["brier_sum"][0] / n / (2 if len(confusion) == 2 else 1)),
    }
    if "log_loss_sum" in counts:  # it has no bound, so noised counts are without it
        out["log_loss"] = float(counts["log_loss_sum"][0] / n)
    if len(confusion) == 2:
        out["specificity"], out["sensitivity"] = float(recall[0]), float(recall[1])
    return out
