"""Algorithms by name. A new algorithm is a file with a function and a line here; its parameters are its keys in ``[strategy]``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, get_args

from flwr.serverapp.strategy import Strategy
from pydantic import ValidationError

from fedml.errors import InputError, nearest
from fedml.strategies.algorithms.algorithm import Algorithm, Weighting, at_server
from fedml.strategies.algorithms.averaging import Averaging
from fedml.strategies.algorithms.fedavg import fedavg
from fedml.strategies.algorithms.fedopt import fedadagrad, fedadam, fedavgm, fedyogi
from fedml.strategies.algorithms.fedprox import fedprox, flower_fedprox
from fedml.strategies.algorithms.flower_strategy import FlowerStrategy, check_obeyed
from fedml.strategies.algorithms.optimizer_state import keeping_optimizer
from fedml.strategies.algorithms.options import options_of
from fedml.strategies.algorithms.private import private
from fedml.strategies.algorithms.scaffold import scaffold
from fedml.strategies.algorithms.wire_format import in_wire_format
from fedml.study.study import Study

STRATEGIES: dict[str, Callable[..., Algorithm]] = {
    "fedavg": fedavg,
    "fedprox": fedprox,
    "fedadam": fedadam,
    "fedyogi": fedyogi,
    "fedadagrad": fedadagrad,
    "fedavgm": fedavgm,
    "scaffold": scaffold,
}

# Flower strategies with a site part in this project. With any other "module:Class", sites train without hooks and further records.
FLOWER: dict[str, Callable[..., Algorithm]] = {"flwr.serverapp.strategy:FedProx": flower_fedprox}


@lru_cache(maxsize=8)
def algorithm_of(study: Study) -> Algorithm:
    """The study's algorithm, by name; for a Flower strategy (``module:Class``) only the sites' part. Imports no foreign code.

    Raises:
        InputError: an unknown name or option, or the algorithm refuses the study.
    """
    name, options = study.strategy.name, study.strategy.options
    if name in STRATEGIES:
        if study.privacy.unit == "site" and "weighting" in inspect.signature(STRATEGIES[name]).parameters:
            options.setdefault("weighting", "equal")
        _check_options(name, STRATEGIES[name], options)
        try:
            algorithm = STRATEGIES[name](**options)
        except (TypeError, ValueError) as error:
            raise InputError(f"[strategy] {name} refuses its options: {error}.") from error
    elif name in FLOWER:
        known = inspect.signature(FLOWER[name]).parameters
        algorithm = FLOWER[name](**{key: value for key, value in options.items() if key in known})
    elif ":" in name:
        algorithm = at_server(None, f"The next model is computed by {name}.")
    else:
        raise InputError(
            f'[strategy] name "{name}" is not known{nearest(name, STRATEGIES)}; one of {", ".join(STRATEGIES)}, '
            'or a Flower strategy as "module:Class".'
        )
    if study.training.keep_optimizer:
        algorithm = keeping_optimizer(algorithm, study.training)
    if study.federation.wire != "float32":
        algorithm = in_wire_format(algorithm, study.federation.wire)
    if sentence := algorithm.refuses(study):
        raise InputError(f"{sentence}.")
    if study.privacy.unit == "patient" and (algorithm.returns or algorithm.keeps):
        raise InputError(
            f'[strategy] name = "{name}" returns or keeps more than the model, which [privacy] unit = "patient" does not count; '
            'set name = "fedavg".'
        )
    return algorithm


def make_strategy(study: Study) -> Strategy:
    """The study's server part: ``Averaging`` with the algorithm, or the Flower ``Strategy`` of that import path (``module:Class``).

    Raises:
        InputError: as ``algorithm_of``; or the path cannot be imported, or its class does not take an option.
    """
    name, algorithm, sites = study.strategy.name, algorithm_of(study), len(study.federation.training)
    if study.federation.late and algorithm.returns:
        raise InputError(
            f"[federation] late leaves a reply out, and {name} changes what it keeps at the site with each reply, so site and server would "
            "differ; remove late, or choose another strategy."
        )
    if algorithm.server is not None:
        strategy = Averaging(algorithm, sites)
        return private(strategy, study) if study.privacy.unit == "site" else strategy
    make, options = _imported(name), study.strategy.options
    _check_options(name, make, options)
    check_obeyed(make, options, study)
    if study.privacy.unit == "site":
        raise InputError(f'[privacy] unit = "site" needs one of {", ".join(STRATEGIES)}, not {name}; change [strategy] name.')
    known = inspect.signature(make).parameters
    # Flower's samplers wait forever for this number of nodes, and the roster may have only one site.
    floors = {k: study.federation.needed for k in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes") if k in known}
    try:
        return FlowerStrategy(make(**{**floors, **options}), study, algorithm)
    except (TypeError, ValueError) as error:
        raise InputError(f"[strategy] {name} refuses its options: {error}.") from error


def _check_options(name: str, make: Callable[..., Any], options: dict[str, Any]) -> None:
    known = inspect.signature(make).parameters
    for key, value in options.items():
        if key not in known:
            takes = ", ".join(k for k in known) if name in STRATEGIES else f"see {name}"
            raise InputError(f"[strategy] {key} is not a key of {name}{nearest(key, known)}; it takes: {takes}.")
        if key == "weighting" and value not in get_args(Weighting):
            raise InputError(f"[strategy] weighting must be one of {', '.join(get_args(Weighting))}, not {value!r}.")
        if name in STRATEGIES and key != "weighting" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"[strategy] {key} must be a number, not {value!r}.")
    if name in STRATEGIES:
        try:
            options_of(name, make)(**options)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            expected = first["msg"].removeprefix("Input should be ")
            raise InputError(f"[strategy] {first['loc'][0]} is {first['input']:g}; it must be {expected}.") from None


def _imported(path: str) -> type[Strategy]:
    module, _, name = path.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f'[strategy] name "{path}" cannot be imported ({error}); write "module:Class" of what is installed or in PYTHONPATH.'
        ) from error
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise InputError(f'[strategy] name "{path}" is not a flwr.serverapp.strategy.Strategy; name a class that is.')
    return found
