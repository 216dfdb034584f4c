"""A Flower strategy that a study names by its path: what it puts into a round's messages is obeyed by the sites, or refused by its name.

    strategy = FlowerStrategy(FedAdagrad(), study)
    strategy.configure_train(3, arrays, request, grid)

As in Flower's own loop, the strategy gets the same config in every round and may change it: ``config["lr"] *= 0.5``. It begins with the
study's ``lr``, and ``local_epochs`` or ``local_steps``, and may only lower them, because hospitals approved the study
(``fedml.study.training_round``). What it leaves as it is is not sent.

The strategy chooses among the nodes that take part, in the roster's order, with random numbers from the study's seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedml.errors import InputError, RunError, nearest
from fedml.seeds import derive_seed
from fedml.strategies.algorithms.algorithm import Algorithm
from fedml.study.study import Study
from fedml.study.training_round import CHANGEABLE, change_problem, changeable
from fedml.wire.records import ARRAYS, CONFIG, REQUEST_CONFIG, config_record

_NEVER_CALLED = ("configure_evaluate", "aggregate_evaluate")
_SAMPLED = ("min_train_nodes", "min_available_nodes")


class _Nodes:
    """A grid with only some of its nodes, in this order."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        self._grid, self._nodes = grid, nodes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def get_node_ids(self) -> list[int]:
        return list(self._nodes)


class FlowerStrategy(Strategy):
    """``inner`` as the server part of a study. Final.

    ``nodes``: the nodes that take part, in the roster's order; empty: all of the grid.
    """

    def __init__(self, inner: Strategy, study: Study, algorithm: Algorithm) -> None:
        self.inner, self.study, self.algorithm = inner, study, algorithm
        self.nodes: Sequence[int] = ()
        self.config = ConfigRecord(dict(changeable(study)))

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """The strategy's messages, each with its own config.

        Raises:
            RunError: a message has a key or a record that sites do not take, or a value beyond the study.
        """
        self.config.update(config)
        chosen = cast(Grid, _Nodes(grid, self.nodes)) if self.nodes else grid
        with _seeded(derive_seed("strategy", self.study.study.seed, server_round)):
            messages = list(self.inner.configure_train(server_round, arrays, self.config, chosen))
        for message in messages:
            if set(message.content) != {ARRAYS, CONFIG}:
                more = sorted(set(message.content) ^ {ARRAYS, CONFIG})[0]
                raise RunError(
                    f'round {server_round}: {self._name} sends records other than "{ARRAYS}" and "{CONFIG}" ({more}); leave them.'
                )
            message.content[CONFIG] = ConfigRecord(self._checked(server_round, config_record(message.content, CONFIG)))
        return messages

    @property
    def _name(self) -> str:
        return f"[strategy] {self.study.strategy.name}"

    def _checked(self, number: int, config: ConfigRecord) -> dict[str, Any]:
        """The config without what is as in the study."""
        out, own = dict[str, Any](), changeable(self.study)
        for key, value in config.items():
            if key in CHANGEABLE:
                if key in own and value == own[key]:
                    continue
                if problem := change_problem(self.study, key, value):
                    raise RunError(f"round {number}: {self._name} {problem}.")
                out[key] = CHANGEABLE[key](value)
            elif key in REQUEST_CONFIG or key in self.algorithm.sends.config:
                out[key] = value
            else:
                known = ", ".join(changeable(self.study))
                raise RunError(
                    f'round {number}: {self._name} sets config["{key}"], which sites do not obey{nearest(key, CHANGEABLE)}; it may lower: '
                    f"{known}. State other values in [training]."
                )
        return out

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The strategy's own."""
        return self.inner.aggregate_train(server_round, replies)

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """No messages, because the training message also evaluates."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """None: see ``configure_evaluate``."""
        return None

    def summary(self) -> None:
        """Empty: the plan is printed instead."""


def check_obeyed(kind: type[Strategy], options: dict[str, Any], study: Study) -> None:
    """Refuses what a strategy asks for and the round loop would not do.

    Raises:
        InputError: it overrides a method that is never called; it has options of Flower's evaluation; it would ask fewer sites than the
            quorum, or wait for more.
    """
    name, sites, needed = study.strategy.name, len(study.federation.training), study.federation.needed
    for method in _NEVER_CALLED:
        owner = next(base for base in kind.__mro__ if method in vars(base))
        if not owner.__module__.startswith("flwr."):
            raise InputError(
                f'[strategy] name = "{name}" overrides {method}, which is never called: sites evaluate with each round\'s message, and '
                f"[training] evaluate_every sets how often; remove {method}."
            )
    for key in ("fraction_evaluate", "min_evaluate_nodes"):
        if key in options:
            raise InputError(f"[strategy] {key} has no effect: every site evaluates, [training] evaluate_every sets how often; remove it.")
    for key in _SAMPLED:
        if int(options.get(key, 0)) > needed:
            raise InputError(
                f"[strategy] {key} = {options[key]} waits for more sites than a round needs ({needed}); set a larger [federation] quorum."
            )
    fraction = float(options.get("fraction_train", 1.0))
    if sites > 1 and int(sites * fraction) < needed:
        raise InputError(
            f"[strategy] fraction_train = {fraction:g} asks {int(sites * fraction)} of {sites} sites, but a round needs {needed}; set "
            f"[federation] quorum = {max(int(sites * fraction), 1)} or less, or a larger fraction."
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's own generator, from which Flower draws nodes, starts from ``seed`` within the block."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
