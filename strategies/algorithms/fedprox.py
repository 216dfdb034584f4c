"""FedProx: a proximal term mu/2 ||w - w_round||^2 in each site's loss. Li et al. 2020, "Federated Optimization in Heterogeneous
Networks", equation 2. The server sends mu, the site adds the term's gradient in the training loop's hook."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedml.errors import InputError
from fedml.learning.training import GradientHook
from fedml.strategies.algorithms.algorithm import (
    Algorithm,
    Received,
    Sends,
    Server,
    SiteWork,
    Words,
    as_far,
    by_weight,
    keep_mean,
    no_objection,
    nothing_more,
)
from fedml.strategies.algorithms.options import ByWeighting, Mu

# The key of Flower's FedProx, so that this site part works with both servers.
MU = "proximal-mu"


def fedprox(mu: Mu = 0.01, weighting: ByWeighting = "persons") -> Algorithm:
    """FedAvg whose sites stay near the round's model; mu = 0 is FedAvg.

    Raises:
        InputError: mu is negative.
    """
    if mu < 0:
        raise InputError(f"[strategy] mu is {mu:g}; it must be 0 or more.")
    step = f"The next model is the mean of the sites' models, {by_weight(weighting)}"
    return _proximal(Server(keep_mean, weighting, {MU: float(mu)}, as_far), step, mu)


def flower_fedprox(proximal_mu: float = 0.0) -> Algorithm:
    """The site part for ``flwr.serverapp.strategy:FedProx``, with its option; the server part is Flower's."""
    return _proximal(None, "The next model is computed by Flower's FedProx", proximal_mu)


def _proximal(server: Server | None, step: str, mu: float) -> Algorithm:
    report = f"{step}; a proximal term keeps each site's training close to the round's model."
    return Algorithm(server, _site, Sends({MU: float}, {}, {MU: float(mu)}), {}, {}, no_objection, Words("", "", "", report))


def _site(received: Received) -> SiteWork:
    mu = float(received.config[MU])
    return SiteWork((proximal_hook(mu, received.start),) if mu else (), nothing_more, None)


def proximal_hook(mu: float, start: Mapping[str, torch.Tensor]) -> GradientHook:
    """Adds mu (w - w_round) to every gradient; ``start`` is copied."""
    anchor = {name: p.detach().clone() for name, p in start.items()}

    def hook(parameters: Mapping[str, nn.Parameter]) -> None:
        with torch.no_grad():
            for name, p in parameters.items():
                if p.grad is not None:
                    p.grad.add_(p - anchor[name].to(p.device), alpha=mu)

    return hook
