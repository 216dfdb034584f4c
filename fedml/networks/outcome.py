"""What stands between a network's score of a person and the outcome's distribution: learned numbers that are the same for all persons."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedml.study.study import Study


class Thresholds(nn.Module):
    """(persons, 1) scores -> (persons, classes - 1) log-odds that a person is above each class but the last: score - threshold.

    The first threshold and the softplus of the gaps to the next ones are learned, so thresholds rise: McCullagh 1980, "Regression Models
    for Ordinal Data", JRSS B 42:109 (proportional odds). At first, classes are alike probable at a score of 0.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        share = np.arange(1, classes) / classes
        start = np.log(share / (1 - share))
        self.first = nn.Parameter(torch.tensor(start[:1], dtype=torch.float32))
        self.gaps = nn.Parameter(torch.tensor(np.log(np.expm1(np.diff(start))), dtype=torch.float32)) if classes > 2 else None

    def thresholds(self) -> torch.Tensor:
        """(classes - 1,) ascending."""
        if self.gaps is None:
            return self.first
        return torch.cat([self.first, self.first + functional.softplus(self.gaps).cumsum(0)])

    def forward(self, score: torch.Tensor) -> torch.Tensor:
        return score.float() - self.thresholds()


class Dispersion(nn.Module):
    """(persons, 1) scores -> (persons, 2): the score, and the logarithm of a learned dispersion, 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(1))

    def forward(self, score: torch.Tensor) -> torch.Tensor:
        return torch.cat([score.float(), self.log.expand(len(score), 1)], 1)


class BaselineHazard(nn.Module):
    """(persons, 1) scores -> (persons, 1 + intervals): the score, and a learned log-hazard of each interval, the same for all persons; 0 at
    first."""

    def __init__(self, intervals: int) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(intervals))

    def forward(self, score: torch.Tensor) -> torch.Tensor:
        return torch.cat([score.float(), self.log.expand(len(score), -1)], 1)


def outcome_layer(study: Study) -> nn.Module | None:
    """The layer that a study's task needs after the one score of its network; None: the network gives the task's outputs itself."""
    if study.model.counts == "negative_binomial":
        return Dispersion()
    if study.model.survival == "cox":
        return BaselineHazard(len(study.times.edges))
    if study.traits.label == "ordered":
        return Thresholds(len(study.cohort.classes))
    return None
