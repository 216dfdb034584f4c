"""``[training]`` in one round.

training_of_round(study, 7).lr     # the learning rate of round 7, from the study alone: no message carries it
"""

from __future__ import annotations

from functools import lru_cache

from fedml.study.study import Study
from fedml.study.training_section import Training


@lru_cache(maxsize=1024)
def training_of_round(study: Study, number: int) -> Training:
    """``[training]`` with the learning rate of round ``number`` (from 1)."""
    plan = study.training
    if plan.schedule is None:
        return plan
    return plan.model_copy(update={"lr": plan.lr * plan.schedule.share(number, study.federation.rounds)})
