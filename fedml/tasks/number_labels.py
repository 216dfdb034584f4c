"""Labels that are a number of each person."""

from __future__ import annotations

import numpy as np

from fedml.study.study import Study
from fedml.tasks.task import Floats, Labels


def number_labels(study: Study) -> Labels:
    """Of a study whose target is a column of numbers; placeholders and canaries are of any sign."""
    target = study.cohort.outcome
    return Labels(
        read=lambda cells: cells.numbers(target),
        cells=lambda labels: {target: labels.tolist()},
        show=lambda label: f"{label:.4g}",
        placeholder=lambda labels, random: random.normal(size=len(labels)),
        canary=_canary,
    )


def _canary(count: int, between: tuple[float, float] | None, random: np.random.Generator) -> Floats:
    """The lowest or the highest plausible value of the target, at random."""
    if between is None:
        raise ValueError("a canary needs the target's stated range, and the study states none")
    low, high = between
    return np.where(random.random(count) < 0.5, low, high)
