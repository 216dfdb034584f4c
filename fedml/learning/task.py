"""A task is a loss and metrics. Metrics are computed from counts that add: sites' counts sum to those of all persons together,
so a federated metric is the metric on the pooled persons.

    task = make_task(study)
    counts = task.counts(output, label)            # numpy arrays by name
    task.metrics(add_counts([counts, other]))      # {"auroc": ..., "accuracy": ...}

AUROC is the Mann-Whitney statistic on a histogram of the log-odds, ties counting one half (Hanley and McNeil 1982); with 4,096
bins from -16 to 16 it differs from the exact one by the pairs that share a bin. Brier score: Brier 1950, over all classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy.typing as npt
import torch

Counts = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """Loss (mean over persons), counts of a batch, metrics of counts, and the metric that is watched (higher is better if ``higher``)."""

    name: str
    loss: Callable[[torch.Tensor, Any], torch.Tensor]
    counts: Callable[[torch.Tensor, Any], Counts]
    metrics: Callable[[Mapping[str, npt.NDArray[Any]]], dict[str, float]]
    watched: str
    higher: bool
    truth: Callable[[Mapping[str, torch.Tensor]], Any] = itemgetter("label")  # what loss and counts take, from a batch


def add_counts(many: Iterable[Mapping[str, npt.NDArray[Any]]]) -> Counts:
    """Sums by name, in the order given."""
    total: Counts = {}
    for counts in many:
        for key, value in counts.items():
            total[key] = total[key] + value if key in total else value.copy()
    return total
