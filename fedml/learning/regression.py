"""Regression: squared error, and metrics from sums that add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fedml.learning.task import Counts


def _squared_error(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(output[:, 0], label)


def _regression_counts(output: torch.Tensor, label: torch.Tensor) -> Counts:
    y = label.double().numpy()
    error = output.detach().double().numpy()[:, 0] - y
    sums = {"persons": float(len(y)), "y_sum": y.sum(), "y2_sum": (y**2).sum(), "e_sum": error.sum()}
    sums |= {"e2_sum": (error**2).sum(), "abs_sum": np.abs(error).sum()}
    return {k: np.array([float(v)]) for k, v in sums.items()}


def regression_metrics(counts: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """Metrics of a regression, of all persons in ``counts``, in units of the target (r2: none)."""
    s = {k: float(v[0]) for k, v in counts.items()}
    n = s["persons"]
    if not n:
        return {"persons": 0.0}
    spread = s["y2_sum"] - s["y_sum"] ** 2 / n
    return {
        "persons": n,
        "rmse": float(np.sqrt(s["e2_sum"] / n)),
        "mae": s["abs_sum"] / n,
        "bias": s["e_sum"] / n,
        "r2": 1 - s["e2_sum"] / spread if spread > 1e-12 * s["y2_sum"] else float("nan"),
    }
