"""Differential privacy of one site, at the server: clip each site's update, add them, add noise, divide by the roster's size.

    strategy = private(Averaging(fedavgm(), sites), study)       # any algorithm; its server step follows the noise

McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models", with a fixed denominator: a site that drops out counts as
an update of zero, so adding or removing a site changes the sum by at most the clipping norm C and the released mean by C / n. The noise
on the mean has standard deviation z C / n. Weights by persons would make a site's influence depend on its size, and are refused.

Adaptive clipping: Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping", algorithm 1: C follows a quantile of the
norms, estimated from a noised count (standard deviation sigma_b) of how many were not clipped. The update's noise grows so that both
together have the cost of z: z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2). The paper's sigma_b = n / 20 has no solution where n <= 10 z; the
larger of it and z is taken, for which z_delta <= 1.155 z always.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from fedml.errors import InputError
from fedml.privacy.noise import add_gaussian
from fedml.privacy.releases import noise_multiplier
from fedml.strategies.algorithms.algorithm import Arrays, StepState
from fedml.strategies.algorithms.averaging import Averaging, Collector
from fedml.study.study import Study

_QUANTILE_LR = 0.2  # Andrew et al. 2021, section 3
CLIPPING = "clipping"


def private(strategy: Averaging, study: Study) -> Averaging:
    """``strategy`` with the study's privacy of one site; the same object.

    Raises:
        InputError: weighting by persons, records in addition to the model, or no noise multiplier achieves the study's epsilon.
    """
    if strategy.algorithm.returns or strategy.algorithm.keeps:
        raise InputError(
            f'[strategy] name = "{study.strategy.name}" returns or keeps more than the model, which is not clipped; with [privacy] unit = '
            '"site" set name = "fedavg".'
        )
    if strategy.weighting != "equal":
        raise InputError(
            '[strategy] weighting = "persons" lets a site\'s influence grow with its size; with [privacy] set weighting = "equal".'
        )
    z, sites = noise_multiplier(study, ""), len(study.federation.training)
    plan = study.privacy

    def collect(current: Arrays, state: StepState) -> Collector:
        kept = state.get(CLIPPING, {})
        norm = float(kept["norm"]) if "norm" in kept else plan.clipping_norm
        return ClippedSum(current, sites, norm, z, plan.quantile if plan.clipping == "adaptive" else None)

    strategy.collect = collect
    return strategy


def quantile_noise(sites: int, noise_multiplier: float) -> tuple[float, float]:
    """(sigma_b, z_delta): the noise on the count of unclipped sites, and the update's own multiplier; see the module's docstring."""
    sigma_b = max(sites / 20, noise_multiplier)
    return sigma_b, (noise_multiplier**-2 - (2 * sigma_b) ** -2) ** -0.5


class ClippedSum:
    """The collector of one round. Final.

    Args:
        current: the round's model; a site's update is its model minus this one.
        sites: number of sites in the roster: the denominator, independent of how many answer.
        norm: C, over all arrays together.
        quantile: None for a fixed norm.
    """

    def __init__(self, current: Arrays, sites: int, norm: float, noise_multiplier: float, quantile: float | None = None) -> None:
        self.current, self.sites, self.norm, self.quantile = current, sites, norm, quantile
        self.sigma_b, self.z = quantile_noise(sites, noise_multiplier) if quantile is not None else (0.0, noise_multiplier)
        self.total = {key: torch.zeros(value.shape, dtype=torch.float64) for key, value in current.items()}
        self.weight = float(sites)  # noise is released even without answers, because its absence would reveal that no site answered
        self.unclipped = self.counted = 0
        self.answered = 0
        self.state: StepState = {}

    def add(self, arrays: Mapping[str, torch.Tensor], weight: float) -> None:
        """Adds one site's clipped update. The weight is ignored; an update that is not finite counts as zero.

        Raises:
            ValueError: names or shapes differ from the model's, or there are more sites than the roster has.
        """
        if arrays.keys() != self.current.keys() or any(v.shape != self.current[k].shape for k, v in arrays.items()):
            raise ValueError("a reply's arrays differ in name or shape from the model's")
        self.answered += 1
        if self.answered > self.sites:
            raise ValueError(f"more replies than the roster's {self.sites} sites")
        update = {key: value.double() - self.current[key].double() for key, value in arrays.items()}
        length = math.sqrt(sum(float((u * u).sum()) for u in update.values()))
        if not math.isfinite(length):
            return
        self.counted += 1
        self.unclipped += length <= self.norm
        factor = min(1.0, self.norm / length) if length else 1.0
        for key, value in update.items():
            self.total[key].add_(value, alpha=factor)

    def mean(self) -> Arrays:
        """The next mean: the round's model plus the noised sum of updates / the roster's size."""
        noised = {key: add_gaussian(value, self.z * self.norm) for key, value in self.total.items()}
        if self.quantile is not None:
            # Each site counts as plus or minus a half, an absent one as nothing: one more changes the sum by a half (section 3.1).
            centred = torch.tensor([self.unclipped - self.counted / 2], dtype=torch.float64)
            share = float(add_gaussian(centred, self.sigma_b)) / self.sites + 0.5
            self.state = {CLIPPING: {"norm": torch.tensor(self.norm * math.exp(-_QUANTILE_LR * (share - self.quantile)))}}
        return {key: self.current[key] + noised[key] / self.sites for key in self.current}
