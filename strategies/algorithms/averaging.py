"""Averaging with a server step: the only Flower ``Strategy`` of this project; it runs the server part of any ``Algorithm``.

    strategy = Averaging(fedadam(server_lr=0.1), sites=3)

Replies are added as they arrive and then dropped, so memory does not grow with the number of sites.
FedAvg: McMahan et al. 2017, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedml.strategies.algorithms.algorithm import Algorithm, Arrays, Folded, StepState, sent
from fedml.wire.records import (
    ARRAYS,
    CONFIG,
    COUNTED_ROUND,
    METRICS,
    NUM_EXAMPLES,
    Phase,
    array_record,
    metric_record,
    pack,
    unpack_tensors,
)


class Fold:
    """A running weighted sum of array dictionaries; ``mean()`` divides it. Memory: one model, for any number of additions."""

    def __init__(self) -> None:
        self.total: Arrays = {}
        self.weight = 0.0

    def add(self, arrays: Mapping[str, torch.Tensor], weight: float) -> None:
        """Adds ``weight`` times ``arrays``.

        Raises:
            ValueError: names or shapes differ from earlier ones.
        """
        with _one_thread():
            self._add(arrays, weight)

    def _add(self, arrays: Mapping[str, torch.Tensor], weight: float) -> None:
        if not self.total:
            self.total = {k: torch.mul(v, weight) for k, v in arrays.items()}
        else:
            if arrays.keys() != self.total.keys() or any(v.shape != self.total[k].shape for k, v in arrays.items()):
                raise ValueError("a reply's arrays differ in name or shape from the others'")
            for key, value in arrays.items():
                self.total[key].add_(value, alpha=weight)
        self.weight += weight

    def mean(self) -> Arrays:
        """The weighted mean; call once, after the last ``add``."""
        with _one_thread():
            return {k: v.div_(self.weight) for k, v in self.total.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, because addition is limited by memory bandwidth, and threads wait for each other for seconds if a core is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Collector(Protocol):
    """Adds the sites' models one by one and returns their mean: ``Fold``, or the clipped and noised sum of
    ``fedml.strategies.algorithms.private``."""

    weight: float

    def add(self, arrays: Mapping[str, torch.Tensor], weight: float) -> None: ...

    def mean(self) -> Arrays: ...


class Averaging(Strategy):
    """The averaging strategy. Final: a new algorithm is a new ``Algorithm``, not a subclass.

    ``collect`` creates the collector of a round from the round's model and the state; the collector's ``state`` is kept.

    Args:
        algorithm: with a server part. sites: number of sites in the roster.

    Raises:
        ValueError: the algorithm has no server part.
    """

    def __init__(self, algorithm: Algorithm, sites: int) -> None:
        if algorithm.server is None:
            raise ValueError("the server part of this algorithm is a Flower strategy")
        self.algorithm, self.sites = algorithm, sites
        self.step, self.weighting, self.config = algorithm.server.step, algorithm.server.weighting, algorithm.server.config
        self.state: StepState = {}
        self.current: Arrays = {}
        self.collect: Callable[[Arrays, StepState], Collector] = lambda current, state: Fold()

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """The same message to every node of the grid; if sites keep state, with the last round in which the node's reply was counted."""
        self.current = unpack_tensors(arrays)
        shapes = {name: tuple(value.shape) for name, value in self.current.items()}
        records = {
            name: pack(self.state.get(name) or {key: torch.zeros(shape) for key, shape in wanted.items()})
            for name, wanted in sent(self.algorithm, Phase.ROUND, shapes).records.items()
        }
        shared = {**config, "server-round": server_round, **self.config}
        content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord(shared), **records})
        if not self.algorithm.keeps:
            return [Message(content, node, "train") for node in grid.get_node_ids()]
        counted = self.state.get(COUNTED_ROUND, {})
        return [
            Message(RecordDict({**content, CONFIG: ConfigRecord({**shared, COUNTED_ROUND: int(counted.get(str(node), 0))})}), node, "train")
            for node in grid.get_node_ids()
        ]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combines ``replies`` (an iterator is read once, one reply at a time) and takes the server step."""
        fold, extra = self.collect(self.current, self.state), {name: Fold() for name in self.algorithm.returns}
        counted = dict(self.state.get(COUNTED_ROUND, {}))
        answered = 0
        for reply in replies:
            if reply.has_error():
                continue
            weight = 1.0 if self.weighting == "equal" else float(_number(metric_record(reply.content, METRICS)[NUM_EXAMPLES]))
            if weight > 0:
                fold.add(unpack_tensors(array_record(reply.content, ARRAYS)), weight)
                for name, total in extra.items():
                    total.add(unpack_tensors(array_record(reply.content, name)), weight)
                counted[str(reply.metadata.src_node_id)] = torch.tensor(server_round)
                answered += 1
            del reply  # before the next reply is created
        if not fold.weight:
            return None, None
        folded = Folded(self.current, fold.mean(), {name: total.mean() for name, total in extra.items()}, answered, self.sites)
        self.state, following = self.step(self.state, folded)
        self.state = {**self.state, **getattr(fold, "state", {}), **({COUNTED_ROUND: counted} if self.algorithm.keeps else {})}
        return pack(following), MetricRecord({NUM_EXAMPLES: fold.weight})

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """No messages, because the training message also evaluates."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """None: see ``configure_evaluate``."""
        return None

    def summary(self) -> None:
        """Empty: Flower would log this in its own loop; here the plan is printed instead."""


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise ValueError(f"{NUM_EXAMPLES} is not a number")
    return value
