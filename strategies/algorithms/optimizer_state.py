"""The optimiser's state (Adam's moments, SGD's momentum) kept at each site between the rounds of a run: ``[training] keep_optimizer``.

It is site state as SCAFFOLD's is: for one run, of the last round in which the site's reply was counted. It stays there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fedml.contract.extras import Shapes
from fedml.errors import InputError
from fedml.learning.training import OptimizerState
from fedml.strategies.algorithms.algorithm import Algorithm, Received, SiteEnd, SiteWork, parameters
from fedml.study.training_section import Training

OPTIMIZER = "optimizer-state"


def keeping_optimizer(algorithm: Algorithm, plan: Training) -> Algorithm:
    """``algorithm`` whose sites' optimisers go on from their states of the last round.

    Raises:
        InputError: its server's part is a Flower strategy, which does not tell a site which of its rounds counted.
    """
    if algorithm.server is None:
        raise InputError("[training] keep_optimizer is not built for Flower's strategies; set [strategy] name to one of this project's.")

    def site(received: Received) -> SiteWork:
        inner, state = algorithm.site(received), OptimizerState(dict(received.kept.get(OPTIMIZER, {})))

        def finish(trained: Mapping[str, torch.Tensor], steps: int) -> SiteEnd:
            end = inner.finish(trained, steps)
            return replace(end, keeps={**end.keeps, OPTIMIZER: state.arrays})

        return replace(inner, finish=finish, optimizer=state)

    def shapes(model: Shapes) -> Shapes:
        return {f"{key}/{name}": () if key == "step" else shape for key in _keys(plan) for name, shape in parameters(model).items()}

    keeps = " and ".join(filter(None, [algorithm.words.keeps, "the optimiser's state, until the run ends"]))
    words = replace(algorithm.words, keeps=keeps)
    return replace(algorithm, site=site, keeps={**algorithm.keeps, OPTIMIZER: shapes}, words=words)


def _keys(plan: Training) -> list[str]:
    """The names of torch's state for each weight."""
    if plan.optimizer in ("adam", "adamw"):
        return ["step", "exp_avg", "exp_avg_sq"]
    momentum = ["momentum_buffer"] if plan.momentum else []
    return momentum if plan.optimizer == "sgd" else ["step", "square_avg", *momentum]
