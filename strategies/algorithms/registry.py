"""Strategies by name. A new one is a file with a function, and a line here; its parameters are its keys in ``[strategy]``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, get_args

from flwr.serverapp.strategy import Strategy

from fedml.errors import InputError, nearest
from fedml.strategies.algorithms.averaging import Averaging, Weighting
from fedml.strategies.algorithms.fedopt import fedadagrad, fedadam, fedavgm, fedyogi
from fedml.strategies.algorithms.fedprox import fedprox
from fedml.strategies.algorithms.private import private
from fedml.study.study import Study


def fedavg(weighting: Weighting = "persons") -> Averaging:
    """The mean of the sites' models, weighted by their training persons or equally."""
    return Averaging(weighting=weighting)


STRATEGIES: dict[str, Callable[..., Averaging]] = {
    "fedavg": fedavg,
    "fedprox": fedprox,
    "fedadam": fedadam,
    "fedyogi": fedyogi,
    "fedadagrad": fedadagrad,
    "fedavgm": fedavgm,
}


def make_strategy(study: Study) -> Strategy:
    """The study's strategy: ours by name, or any Flower ``Strategy`` by its import path (``module:Class``).

    Raises:
        InputError: no such strategy, or an option that it does not take.
    """
    name, options = study.strategy.name, study.strategy.options
    if name in STRATEGIES:
        make: Callable[..., Strategy] = STRATEGIES[name]
    elif ":" in name:
        make = _imported(name)
    else:
        raise InputError(
            f'[strategy] name "{name}" is not known{nearest(name, STRATEGIES)}; one of {", ".join(STRATEGIES)}, '
            'or a Flower strategy as "module:Class".'
        )
    known = inspect.signature(make).parameters
    for key, value in options.items():
        if key not in known:
            takes = ", ".join(k for k in known) if name in STRATEGIES else f"see {name}"
            raise InputError(f"[strategy] {key} is not a key of {name}{nearest(key, known)}; it takes: {takes}.")
        if key == "weighting" and value not in get_args(Weighting):
            raise InputError(f"[strategy] weighting must be one of {', '.join(get_args(Weighting))}, not {value!r}.")
        if name in STRATEGIES and key != "weighting" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"[strategy] {key} must be a number, not {value!r}.")
    if name not in STRATEGIES:
        # Flower's samplers wait for ever when fewer nodes are there than these, and the roster may have one site.
        floors = {k: study.federation.needed for k in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes") if k in known}
        options = {**floors, **options}
    if study.privacy.unit == "site":
        if name not in STRATEGIES:
            raise InputError(f'[privacy] unit = "site" needs a strategy of ours ({", ".join(STRATEGIES)}), not {name}.')
        options.setdefault("weighting", "equal")
    try:
        made = make(**options)
        return private(made, study) if isinstance(made, Averaging) and study.privacy.unit == "site" else made
    except (TypeError, ValueError) as error:
        raise InputError(f"[strategy] {name} refuses its options: {error}.") from error


def _imported(path: str) -> Callable[..., Strategy]:
    module, _, name = path.partition(":")
    try:
        made: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f'[strategy] name "{path}" cannot be imported ({error}); write "module:Class".') from error
    if not (isinstance(made, type) and issubclass(made, Strategy)):
        raise InputError(f'[strategy] name "{path}" is not a flwr.serverapp.strategy.Strategy; name a class that is.')
    return made
