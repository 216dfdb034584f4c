"""Counts of a classification: confusion, a histogram of log-odds, and sums, which add over persons and sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedml.tasks.counts import Counts

BINS = 4096
COARSE = 64  # bins: half a unit of log-odds
LOGIT_RANGE = 16.0  # larger log-odds are in the last bin: probabilities within 1.2e-7 of 0 or 1

# The log-odds of each bin; the first and the last bin also contain all values beyond.
MIDPOINTS: npt.NDArray[np.float64] = np.linspace(-LOGIT_RANGE, LOGIT_RANGE, 2 * BINS + 1)[1::2]


def class_fields(classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array of ``class_counts``."""
    sums: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys(("persons", "brier_sum", "log_loss_sum"), ("float64", (1,)))
    return {**sums, "confusion": ("int64", (classes, classes)), "histogram": ("int32", (1 if classes == 2 else classes, 2, BINS))}


def class_counts(output: torch.Tensor, label: torch.Tensor) -> Counts:
    """confusion (true, predicted); histogram (class, other/own, bin) of log-odds, only class 1 if there are two; sums."""
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


def coarse(counts: Mapping[str, npt.NDArray[Any]]) -> Counts:
    """``counts`` with ``COARSE`` bins of the histogram, for subgroups. With all bins, groups of several variables could be linked to
    rows of single persons by bins with only one person."""
    if "histogram" not in counts:
        return dict(counts)
    fine = counts["histogram"]
    out = np.zeros_like(fine)
    out[..., COARSE // 2 :: COARSE] = fine.reshape(*fine.shape[:-1], -1, COARSE).sum(-1)
    return {**counts, "histogram": out}


def noised(counts: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether these are noised counts of a private study (``fedml.privacy.counts``), from which persons cannot be resampled."""
    return "histogram" in counts and "log_loss_sum" not in counts
