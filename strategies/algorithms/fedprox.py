"""FedProx: a proximal term mu/2 ||w - w_round||^2 in each site's loss. Li et al. 2020, "Federated Optimization in Heterogeneous
Networks", equation 2. Both halves: the server tells mu, the client adds the term's gradient in the training loop's hook."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedml.errors import InputError
from fedml.learning.training import GradientHook
from fedml.strategies.algorithms.averaging import Averaging, Weighting

# Flower's own FedProx tells its clients mu under this key, so either server works with our client half.
MU = "proximal-mu"


def fedprox(mu: float = 0.01, weighting: Weighting = "persons") -> Averaging:
    """FedAvg whose sites stay near the round's model; mu = 0 is FedAvg.

    Raises:
        InputError: mu is negative.
    """
    if mu < 0:
        raise InputError(f"[strategy] mu is {mu:g}; it must be 0 or more.")
    return Averaging(client={MU: mu}, weighting=weighting)


def proximal_hook(mu: float, start: Mapping[str, nn.Parameter]) -> GradientHook:
    """Adds mu (w - w_round) to every gradient; ``start`` is copied."""
    anchor = {name: p.detach().clone() for name, p in start.items()}

    def hook(parameters: Mapping[str, nn.Parameter]) -> None:
        with torch.no_grad():
            for name, p in parameters.items():
                if p.grad is not None:
                    p.grad.add_(p - anchor[name].to(p.device), alpha=mu)

    return hook
