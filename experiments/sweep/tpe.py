"""Combinations found by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization")."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

from fedml.errors import InputError
from fedml.experiments.sweep.values import Point, Range, Space
from fedml.seeds import derive_seed


def require_optuna() -> Any:
    """The module ``optuna``. Raises ``InputError``: it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            '--optuna needs the package optuna, which is not installed: pip install "fedml-cohorts[optuna]"; or use --random N.'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def suggested(space: Space, count: int, seed: int, higher: bool) -> Generator[Point, float]:
    """``count`` combinations; each is sent its validation metric, NaN if it has none. The same metrics give the same combinations.

    Args:
        seed: the study's. higher: whether a higher metric is better.
    """
    optuna = require_optuna()
    study = optuna.create_study(
        direction="maximize" if higher else "minimize", sampler=optuna.samplers.TPESampler(seed=derive_seed("optuna", seed) % 2**32)
    )
    kinds = {key: _distribution(optuna.distributions, values) for key, values in space.items()}
    for _ in range(count):
        trial = study.ask(kinds)
        values = {key: trial.params[key] for key in space}
        score = yield {key: _value(of, values[key]) for key, of in space.items()}
        if math.isfinite(score):
            study.tell(trial, score)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _distribution(kinds: Any, values: Any) -> Any:
    if not isinstance(values, Range):
        return kinds.CategoricalDistribution(range(len(values)))  # places, because a value may be a list
    if values.whole:
        return kinds.IntDistribution(int(values.low), int(values.high), log=values.log)
    return kinds.FloatDistribution(values.low, values.high, log=values.log)


def _value(values: Any, drawn: Any) -> Any:
    return values.rounded(drawn) if isinstance(values, Range) else values[drawn]
