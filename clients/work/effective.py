"""How many persons a weighted sum is about."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedml.clients.work.people import Floats

FEWEST_SHARE = 0.1  # of the persons, by their weights in a logistic model


def effective_persons(weights: Floats) -> Floats:
    """(sum w)^2 / sum w^2 over the first axis: how many persons a weighted sum is about (Kish 1965, "Survey Sampling", section 8.2)."""
    total, squares = weights.sum(0), (weights**2).sum(0)
    out: Floats = np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0)
    return out


def few_effective(eta: Floats, smallest: int) -> Any:
    """Whether a logistic model's sums are about too few persons. ``eta`` (persons, ...): log-odds at the coefficients of the request. With
    coefficients of a centre's choice the weights p (1 - p) can vanish in all persons but one."""
    small = np.exp(-np.abs(eta))
    return effective_persons(small / (1 + small) ** 2) < max(smallest, FEWEST_SHARE * len(eta))
