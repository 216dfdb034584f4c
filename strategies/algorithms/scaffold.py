"""SCAFFOLD: control variates remove the sites' drift from local steps. Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging
for Federated Learning", algorithm 1 with option II.

With x the round's model, y a site's trained model, K its local steps, eta its learning rate, N the sites of the roster, S those that
answered, c the server's control variate and c_i the site's (all zero at first):

    site      each step:   gradient + c - c_i
              afterwards:  c_i' = c_i - c + (x - y) / (K eta);  returns y and c_i' - c_i;  keeps c_i'
    server    x' = x + server_lr (mean of y over S - x);  c' = c + |S| / N (mean of c_i' - c_i over S)

Each site has the same weight, as in the paper: the minimum is that of the mean of the sites' losses. Batch norm's statistics are averaged.
A site that takes no step keeps its c_i and returns zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedml.errors import InputError
from fedml.strategies.algorithms.algorithm import (
    BUFFERS,
    Algorithm,
    Arrays,
    Folded,
    Received,
    Sends,
    Server,
    SiteEnd,
    SiteWork,
    StepState,
    Words,
    parameters,
)
from fedml.strategies.algorithms.options import ServerLr
from fedml.study.study import Study

CONTROL, CHANGE = "control", "control-change"  # c to the site, c_i at the site; c_i' - c_i back


def scaffold(server_lr: ServerLr = 1.0) -> Algorithm:
    """SCAFFOLD with the server's learning rate ``server_lr``; with 1 the next model is the mean of the sites' models.

    Raises:
        InputError: server_lr is not positive.
    """
    if not server_lr > 0:
        raise InputError(f"[strategy] server_lr is {server_lr:g}; it must be more than 0.")

    def step(state: StepState, folded: Folded) -> tuple[StepState, Arrays]:
        change, share = folded.extra[CHANGE], folded.answered / folded.sites
        before = state.get(CONTROL, {name: torch.zeros_like(value) for name, value in change.items()})
        control = {name: value + share * change[name] for name, value in before.items()}
        following = dict(folded.mean)
        for name, value in folded.current.items():
            if not name.endswith(BUFFERS):
                following[name] = value + server_lr * (folded.mean[name] - value)
        return {CONTROL: control}, following

    words = Words(
        gets=" and the server's control variate",
        leaves="the change of the site's control variate (one number for each number of the model)",
        keeps="the site's control variate (SCAFFOLD), until the run ends",
        report="The next model is the mean of the sites' models, each site with the same weight; control variates remove the difference "
        "between the sites' gradients from each local step (SCAFFOLD).",
    )
    records = {CONTROL: parameters}
    server = Server(step, "equal", {}, lambda longest, weights: server_lr * longest)
    return Algorithm(server, _site, Sends({}, records, {}), {CHANGE: parameters}, records, _refuses, words)


def _site(received: Received) -> SiteWork:
    server = received.records[CONTROL]
    local = received.kept.get(CONTROL) or {name: torch.zeros_like(value) for name, value in server.items()}
    correction = {name: value - local[name] for name, value in server.items()}

    def hook(network: Mapping[str, nn.Parameter]) -> None:
        with torch.no_grad():
            for name, p in network.items():
                shift = correction[name].to(p.device)
                # A parameter without a gradient (an input that the site lacks) still moves by the correction.
                p.grad = shift.clone() if p.grad is None else p.grad.add_(shift)

    def finish(trained: Mapping[str, torch.Tensor], steps: int) -> SiteEnd:
        if not steps:
            return SiteEnd({CHANGE: {name: torch.zeros_like(value) for name, value in local.items()}}, {CONTROL: local}, None)
        change, following = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
        for name, before in local.items():
            gradient = (received.start[name].double() - trained[name].double()) / (steps * received.training.lr)
            following[name] = (gradient - correction[name].double()).float()  # double precision, because the two models are almost equal
            change[name] = following[name] - before
        return SiteEnd({CHANGE: change}, {CONTROL: following}, None)

    return SiteWork((hook,), finish, None)


def _refuses(study: Study) -> str:
    plan = study.training
    if study.privacy.unit != "none":
        return (
            f'[strategy] name = "scaffold" is not proven for [privacy] unit = "{study.privacy.unit}": control variates carry gradients '
            'from round to round, which epsilon does not count; set unit = "none" or name = "fedavg"'
        )
    if plan.optimizer != "sgd" or plan.momentum:
        return (
            '[strategy] name = "scaffold" takes control variates from plain steps of gradient descent; set [training] optimizer = "sgd" '
            "without momentum"
        )
    if plan.max_norm:
        return '[strategy] name = "scaffold" takes control variates from unclipped gradients; remove [training] max_norm'
    if plan.precision == "float16":
        return '[strategy] name = "scaffold" counts every local step, and float16 skips some; set [training] precision = "float32"'
    if study.model.variants.l1:
        return '[strategy] name = "scaffold" is not built for [model] variants l1; set l1 = 0 or name = "fedavg"'
    return ""
