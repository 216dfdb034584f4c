"""The model that a run gives: the last round's, the best round's by validation metrics, or a moving average of all rounds' models.

The metrics of a round are of the model as it arrived, so those of the model after round n are known with round n + 1; the model after the
last round is not compared, because it is evaluated together with the test persons.

The moving average is taken at the server: sites go on from the round's own model, so control variates, momenta and epsilon are those of the
study without it, and no message changes. It follows from released models alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from fedml.errors import RunError
from fedml.runs.events import Round
from fedml.study.study import Study
from fedml.tasks.registry import make_task

Arrays = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Chosen:
    """``best``: the round in which the best model so far arrived, 0 for none; ``score``: its watched metric. ``arrays``: the model that is
    the result; None: the last round's."""

    best: int = 0
    score: float = math.nan
    arrays: Arrays | None = None


def chosen_after(study: Study, chosen: Chosen, event: Round, arrived: Arrays | None = None, following: Arrays | None = None) -> Chosen:
    """``chosen`` after a round.

    Args:
        arrived: the model as it arrived in the round. following: the next one. None: only ``best`` and ``score`` are of interest.

    Raises:
        RunError: the study compares validation metrics, and no site sent any.
    """
    plan = study.training
    if plan.ema and following is not None:
        chosen = replace(chosen, arrays=_averaged(chosen.arrays, following, plan.ema))
    if plan.keep != "best" and not plan.patience:
        return chosen
    if (event.round - 1) % plan.evaluate_every:
        return chosen
    if "val" not in event.metrics:
        raise RunError(
            f"round {event.round}: no site sent metrics of validation persons, which [training] keep and patience compare; set [cohort] "
            "split with a val part, such as { train = 0.7, val = 0.1, test = 0.2 }."
        )
    task = make_task(study)
    found = event.metrics["val"]["all"].get(task.watched)
    score = math.nan if found is None else float(found)
    better = not math.isnan(score) and (math.isnan(chosen.score) or (score > chosen.score if task.higher else score < chosen.score))
    if event.round == 1 or not better:  # the first weights are no result
        return chosen
    return replace(chosen, best=event.round, score=score, arrays=arrived if plan.keep == "best" else chosen.arrays)


def ended(study: Study, chosen: Chosen, number: int) -> bool:
    """Whether the run ends after round ``number``, because ``patience`` rounds brought no better model."""
    patience = study.training.patience
    return number >= study.federation.rounds or bool(patience and chosen.best and number - chosen.best >= patience)


def kept_round(study: Study, chosen: Chosen) -> int | None:
    """The round after which the result was the model, if it was chosen by metrics."""
    return chosen.best - 1 if study.training.keep == "best" and chosen.best else None


def planned(study: Study, rounds: Iterable[Round]) -> tuple[int, int | None]:
    """(number of rounds, ``kept_round``) of a run whose rounds had these events."""
    chosen, number = Chosen(), 0
    for event in rounds:
        chosen, number = chosen_after(study, chosen, event), event.round
        if ended(study, chosen, number):
            return number, kept_round(study, chosen)
    return study.federation.rounds, kept_round(study, chosen)


def _averaged(average: Arrays | None, following: Arrays, decay: float) -> Arrays:
    """decay * average + (1 - decay) * following; the first model itself. Batch norm's statistics are averaged alike."""
    return following if average is None else {name: torch.lerp(average[name], value, 1 - decay) for name, value in following.items()}
