"""``[training]`` in one round.

    training_of_round(study, 7).lr                       # the learning rate of round 7, from the study alone: no message carries it
    training_of_round(study, 7, {"lr": 0.01}).lr         # as a Flower strategy lowered it

A Flower strategy may lower the learning rate and the length of a round. Longer rounds, or larger steps, would need another approval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from fedml.study.study import Study
from fedml.study.training_section import Training

CHANGEABLE: dict[str, type] = {"lr": float, "local_epochs": int, "local_steps": int}  # config keys of a round


def changeable(study: Study) -> dict[str, float]:
    """The keys that a strategy may lower, with the study's values."""
    plan = study.training
    length = {"local_steps": plan.local_steps} if plan.local_steps else {"local_epochs": plan.local_epochs}
    return {**({} if plan.schedule is not None else {"lr": plan.lr}), **({} if study.privacy.unit == "patient" else length)}


def change_problem(study: Study, key: str, value: Any) -> str:
    """What is wrong with a value that a strategy sets for a round; "" if nothing is."""
    own = changeable(study)
    if key not in own:
        return f'sets config["{key}"], but {_why_not(study, key)}'
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (key == "lr" and isinstance(value, float) and math.isfinite(value))):
        return f'sets config["{key}"] to {value!r}, which is no {"number" if key == "lr" else "whole number"}'
    if value > own[key] or value < 0 or (value == 0 and key != "local_epochs"):
        return f'sets config["{key}"] to {value:g}, which is not between 0 and the approved [training] {key} = {own[key]:g}'
    return ""


def _why_not(study: Study, key: str) -> str:
    plan = study.training
    if key == "lr":
        return "the study's [training.schedule] sets the learning rate"
    if study.privacy.unit == "patient":
        return 'with [privacy] unit = "patient" epsilon counts the steps of the study'
    return f"the study has {'local_steps' if plan.local_steps else 'local_epochs'}"


@lru_cache(maxsize=1024)
def _planned(study: Study, number: int) -> Training:
    plan = study.training
    if plan.schedule is None:
        return plan
    return plan.model_copy(update={"lr": plan.lr * plan.schedule.share(number, study.federation.rounds)})


def training_of_round(study: Study, number: int, config: Mapping[str, Any] | None = None) -> Training:
    """``[training]`` with the learning rate of round ``number`` (from 1).

    Args:
        config: of the message, with what a strategy lowered.

    Raises:
        ValueError: a value of ``config`` is beyond the study.
    """
    plan, changes = _planned(study, number), {key: value for key, value in (config or {}).items() if key in CHANGEABLE}
    for key, value in changes.items():
        if problem := change_problem(study, key, value):
            raise ValueError(problem)
    return plan.model_copy(update=changes) if changes else plan
