"""Counts of held-out persons with noise, for ``[privacy] metrics = "private"``; metrics are computed from these counts.

A person adds 1 to one cell of the confusion matrix, 1 to one bin of each histogram (of 32 wide bins, because noise in 4,096 narrow bins
would hide the curve), and at most 2 to the sum of Brier scores. So one person changes the vector by at most sqrt(1 + histograms + 4) in L2
norm. The sum of log-losses is unbounded and is excluded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedml.privacy.noise import add_gaussian
from fedml.privacy.releases import metrics_multiplier
from fedml.study.study import Study

COARSE_BINS = 32
_BRIER_BOUND = 2.0


def sensitivity(histograms: int) -> float:
    """L2 sensitivity of one evaluation's counts when a person is added or removed."""
    return math.sqrt(1 + histograms + _BRIER_BOUND**2)


def noised(counts: Mapping[str, npt.NDArray[Any]], study: Study) -> dict[str, npt.NDArray[Any]]:
    """Counts of one part at one site, as ``fedml.tasks.classification_counts`` made them, with noise; types and shapes stay.

    Counts may become negative. They are not clipped, because clipping would bias their sum over sites.
    """
    if not study.traits.private_metrics:
        raise ValueError(f'[model] task = "{study.model.task}": noised counts are not built')
    histogram = counts["histogram"]
    classes, sides, bins = histogram.shape
    std = metrics_multiplier(study) * sensitivity(classes)

    def noise(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        out: npt.NDArray[np.float64] = add_gaussian(torch.from_numpy(values.astype(np.float64)), std).double().numpy()
        return out

    coarse = noise(histogram.reshape(classes, sides, COARSE_BINS, bins // COARSE_BINS).sum(-1))
    spread = np.zeros_like(histogram)
    width = bins // COARSE_BINS
    spread[:, :, width // 2 :: width] = coarse.round()
    confusion = noise(counts["confusion"]).round().astype(np.int64)
    return {
        "persons": np.array([float(confusion.sum())]),
        "confusion": confusion,
        "histogram": spread,
        "brier_sum": noise(counts["brier_sum"]),
    }
