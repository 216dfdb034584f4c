"""The value ``Algorithm``: server part and site part of a federated algorithm, its additional records, its state, and what it refuses.

    algorithm = algorithm_of(study)                      # fedml.strategies.algorithms.registry
    algorithm.server.step(state, folded)                 # server: (next state, next model)
    algorithm.site(received).hooks                       # site: hooks of the training loop; finish() after it

An algorithm is one file of this folder with a function that returns an ``Algorithm``, and one line in ``registry.py``. The gate, the
contract, the plan, the round loop and the client read this value; none of them has code for a single algorithm. All fields are required, so
that the type checker finds a missing part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fedml.contract.extras import NO_EXTRAS, Extras, Shapes
from fedml.learning.training import GradientHook, OptimizerState
from fedml.study.study import Study
from fedml.study.training_round import CHANGEABLE
from fedml.study.training_section import Training
from fedml.wire.records import COUNTED_ROUND, Phase

Arrays = dict[str, torch.Tensor]
StepState = Mapping[str, Arrays]
Weighting = Literal["persons", "equal"]
ShapesOf = Callable[[Shapes], Shapes]  # the shapes of a record's arrays, from those of the model's arrays
BUFFERS = ("running_mean", "running_var")  # batch norm's statistics: arrays of the model that are not parameters


@dataclass(frozen=True)
class Folded:
    """The input of the server step: one combined round.

    ``current``: the model that was sent. ``mean``: the mean of the sites' models. ``extra``: the mean of each record that the algorithm
    ``returns``, with the same weights. ``answered``: sites in the means. ``sites``: of the roster.
    """

    current: Arrays
    mean: Arrays
    extra: Mapping[str, Arrays]
    answered: int
    sites: int


ServerStep = Callable[[StepState, Folded], tuple[StepState, Arrays]]


@dataclass(frozen=True)
class Server:
    """The server's part. ``step`` is pure: (state, folded) -> (next state, next model).

    ``config``: values of the config keys that the algorithm ``sends``. A record that it sends is the state's entry of that name, zeros
    before the first step. ``reach``: (length, number of weights) -> how far one step can move the model if no site's update is longer.
    """

    step: ServerStep
    weighting: Weighting
    config: Mapping[str, float]
    reach: Callable[[float, int], float]


@dataclass(frozen=True)
class Received:
    """The input of a site's part of a round.

    ``config``, ``records``: as the algorithm ``sends`` them. ``kept``: the site's state from the last round in which its reply was counted;
    empty before the first. ``start``: the received arrays of the model, read only.
    """

    config: Mapping[str, Any]
    records: Mapping[str, Arrays]
    kept: Mapping[str, Arrays]
    start: Arrays
    training: Training


@dataclass(frozen=True)
class SiteEnd:
    """The result of a site's part of a round: the records for the server, and the state for the next round. ``update``: what is sent in
    place of the trained arrays (``wire_format``); None: these."""

    returns: Mapping[str, Arrays]
    keeps: Mapping[str, Arrays]
    update: Arrays | None


@dataclass(frozen=True)
class SiteWork:
    """One round at a site: ``hooks`` change gradients between backward and step; ``finish`` takes (trained arrays, steps taken).
    ``optimizer``: the state from which the optimiser goes on; None: it starts anew in each round.

    Under privacy of one patient ``finish`` is not called: algorithms that return or keep records are refused.
    """

    hooks: Sequence[GradientHook]
    finish: Callable[[Mapping[str, torch.Tensor], int], SiteEnd]
    optimizer: OptimizerState | None


@dataclass(frozen=True)
class Sends:
    """Sent to every site with the model: config keys with their types, and records of float32 arrays. ``values``: of the config keys that
    follow from the study alone; a site answers no other."""

    config: Mapping[str, type]
    records: Mapping[str, ShapesOf]
    values: Mapping[str, float]


@dataclass(frozen=True)
class Words:
    """Texts. ``gets`` and ``leaves`` continue the plan's sentences about a round, ``keeps`` names the state that stays at the site between
    rounds ("": none), ``report`` is one sentence on the computation of the next model."""

    gets: str
    leaves: str
    keeps: str
    report: str


@dataclass(frozen=True)
class Algorithm:
    """An algorithm; see the module's docstring.

    ``server`` is None if the server's part is a Flower strategy that the study names by its path. ``returns``: records that a site
    returns in addition to the model. ``keeps``: records that a site keeps between the rounds of one run. ``refuses``: takes the study and
    returns the reason why the algorithm does not support it, "" if it does.
    """

    server: Server | None
    site: Callable[[Received], SiteWork]
    sends: Sends
    returns: Mapping[str, ShapesOf]
    keeps: Mapping[str, ShapesOf]
    refuses: Callable[[Study], str]
    words: Words


def sent(algorithm: Algorithm, phase: Phase, model: Shapes) -> Extras:
    """The additional content of a message of ``phase`` to a site for ``algorithm``, with a model of these shapes."""
    if phase is not Phase.ROUND:
        return NO_EXTRAS
    counted: dict[str, type] = {COUNTED_ROUND: int} if algorithm.keeps else {}
    optional = CHANGEABLE if algorithm.server is None else {}  # a Flower strategy may lower them
    return Extras({**algorithm.sends.config, **counted}, _resolved(algorithm.sends.records, model), optional)


def returned(algorithm: Algorithm, phase: Phase, model: Shapes) -> Extras:
    """The additional content of a reply of ``phase`` for ``algorithm``, with a model of these shapes."""
    return Extras({}, _resolved(algorithm.returns, model)) if phase is Phase.ROUND else NO_EXTRAS


def _resolved(records: Mapping[str, ShapesOf], model: Shapes) -> dict[str, Shapes]:
    return {name: shapes(model) for name, shapes in records.items()}


def parameters(model: Shapes) -> Shapes:
    """The shapes of a model's parameters: all arrays except batch norm's statistics."""
    return {name: shape for name, shape in model.items() if not name.endswith(BUFFERS)}


def as_far(longest: float, weights: int) -> float:
    """``reach`` of a mean: no farther than the longest update."""
    return longest


def keep_mean(state: StepState, folded: Folded) -> tuple[StepState, Arrays]:
    """FedAvg's server step: the mean is the next model."""
    return state, folded.mean


def nothing_more(trained: Mapping[str, torch.Tensor], steps: int) -> SiteEnd:
    """``finish`` of a site's part without returned records and state."""
    return SiteEnd({}, {}, None)


def plain_site(received: Received) -> SiteWork:
    """The site's part of an algorithm without hooks."""
    return SiteWork((), nothing_more, None)


def no_objection(study: Study) -> str:
    """``refuses`` of an algorithm that supports every study."""
    return ""


def at_server(server: Server | None, report: str) -> Algorithm:
    """An algorithm with only a server part: sites train without hooks, and only the model is exchanged."""
    return Algorithm(server, plain_site, Sends({}, {}, {}), {}, {}, no_objection, Words("", "", "", report))


def by_weight(weighting: Weighting) -> str:
    """The weights of a mean, as text."""
    return "weighted by their training persons" if weighting == "persons" else "each site with the same weight"
