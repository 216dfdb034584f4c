"""Server optimisers: FedAdam, FedYogi, FedAdagrad and FedAvgM. The mean of the sites' models minus the current one is the
gradient of the server step. Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2; FedAvgM: Hsu et al. 2019.

Batch norm's running statistics are not parameters; they are averaged, as in FedAvg.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fedml.errors import InputError
from fedml.strategies.algorithms.algorithm import (
    BUFFERS,
    Algorithm,
    Arrays,
    Folded,
    Server,
    ServerStep,
    StepState,
    Weighting,
    at_server,
    by_weight,
)
from fedml.strategies.algorithms.options import Adaptivity, ByWeighting, FirstDecay, SecondDecay, ServerLr, ServerMomentum

_MOST = 3.0  # of m / sqrt(v), after a gradient that grew
_SecondMoment = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _adaptive(lr: float, beta_1: float, tau: float, second: _SecondMoment) -> ServerStep:
    """m = b1 m + (1 - b1) d;  v = second(v, d^2);  w + lr m / (sqrt(v) + tau). v starts at tau^2, as in the paper's algorithm 2."""

    if not tau > 0:
        raise InputError(f"[strategy] tau is {tau:g}; it must be more than 0.")

    def step(state: StepState, folded: Folded) -> tuple[StepState, Arrays]:
        current, mean = folded.current, folded.mean
        m_before, v_before = state.get("m", {}), state.get("v", {})
        m, v, following = dict[str, torch.Tensor](), dict[str, torch.Tensor](), dict(mean)
        for key in current:
            if key.endswith(BUFFERS):
                continue
            delta = mean[key] - current[key]
            m[key] = beta_1 * m_before.get(key, torch.zeros_like(delta)) + (1 - beta_1) * delta
            v[key] = second(v_before.get(key, torch.full_like(delta, tau**2)), delta**2)
            following[key] = current[key] + lr * m[key] / (v[key].sqrt() + tau)
        return {"m": m, "v": v}, following

    return step


def _made(name: str, step: ServerStep, weighting: Weighting, reach: Callable[[float, int], float]) -> Algorithm:
    report = f"The next model is a step of {name} from the current one towards the mean of the sites' models, {by_weight(weighting)}."
    return at_server(Server(step, weighting, {}, reach), report)


def _each_weight(lr: float) -> Callable[[float, int], float]:
    """``reach`` of an adaptive step: a weight moves by about the learning rate, and by at most a few times it."""
    return lambda longest, weights: _MOST * lr * math.sqrt(weights)


def fedadam(
    server_lr: ServerLr = 0.01,
    beta_1: FirstDecay = 0.9,
    beta_2: SecondDecay = 0.99,
    tau: Adaptivity = 1e-3,
    weighting: ByWeighting = "persons",
) -> Algorithm:
    """Adam at the server."""
    return _made(
        "Adam", _adaptive(server_lr, beta_1, tau, lambda v, d2: beta_2 * v + (1 - beta_2) * d2), weighting, _each_weight(server_lr)
    )


def fedyogi(
    server_lr: ServerLr = 0.01,
    beta_1: FirstDecay = 0.9,
    beta_2: SecondDecay = 0.99,
    tau: Adaptivity = 1e-3,
    weighting: ByWeighting = "persons",
) -> Algorithm:
    """Yogi at the server: the second moment moves by a bounded amount."""
    return _made(
        "Yogi",
        _adaptive(server_lr, beta_1, tau, lambda v, d2: v - (1 - beta_2) * d2 * torch.sign(v - d2)),
        weighting,
        _each_weight(server_lr),
    )


def fedadagrad(
    server_lr: ServerLr = 0.01, beta_1: FirstDecay = 0.0, tau: Adaptivity = 1e-3, weighting: ByWeighting = "persons"
) -> Algorithm:
    """Adagrad at the server."""
    return _made("Adagrad", _adaptive(server_lr, beta_1, tau, lambda v, d2: v + d2), weighting, _each_weight(server_lr))


def fedavgm(server_lr: ServerLr = 1.0, momentum: ServerMomentum = 0.9, weighting: ByWeighting = "persons") -> Algorithm:
    """Momentum at the server; momentum 0 and server_lr 1 is FedAvg."""

    def step(state: StepState, folded: Folded) -> tuple[StepState, Arrays]:
        current, mean = folded.current, folded.mean
        before = state.get("velocity", {})
        velocity, following = dict[str, torch.Tensor](), dict(mean)
        for key in current:
            if key.endswith(BUFFERS):
                continue
            delta = mean[key] - current[key]
            velocity[key] = momentum * before[key] + delta if key in before else delta
            following[key] = current[key] + server_lr * velocity[key]
        return {"velocity": velocity}, following

    return _made("momentum", step, weighting, lambda longest, weights: server_lr / max(1 - momentum, 1e-3) * longest)
