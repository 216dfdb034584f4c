"""A reader of a run is told which numbers are approximate: against the same run with exact counts, on sites of few persons."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedml.tasks.classification_counts import class_counts, grouped, spread
from fedml.tasks.counts import add_counts
from fedml.tasks.few import few_notes, may_be_rounded, withheld
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task
from tests.conftest import make_study


def counts_of(negative: int, positive: int, smallest: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    label = torch.tensor([0] * negative + [1] * positive)
    score = torch.tensor(random.normal(size=len(label)) + label.numpy())
    return spread(grouped(class_counts(torch.stack([torch.zeros_like(score), score], 1), label), smallest))


@pytest.mark.parametrize("seed", range(20))
def test_cells_that_were_changed_are_said_to_be(seed: int) -> None:
    random = np.random.default_rng(seed)
    negative, positive = random.integers(0, 60, 2)
    exact, sent = counts_of(negative, positive, 1, seed), counts_of(negative, positive, 5, seed)
    if not np.array_equal(exact["confusion"], sent["confusion"]):
        assert may_be_rounded(sent)
    assert not may_be_rounded(exact) or exact["histogram"].max() > 1 or not exact["persons"].sum()
    assert withheld(sent) == (0 < min(negative, positive) < 5 or bool(negative + positive and (0 < negative < 5 or 0 < positive < 5)))
    assert not withheld(exact)


def test_large_cells_and_noised_counts_have_no_note() -> None:
    assert few_notes({"a": counts_of(400, 400, 5), "b": counts_of(30, 30, 1)}) == []
    assert few_notes({"a": {k: v for k, v in counts_of(3, 30, 5).items() if k != "log_loss_sum"}}) == []


@pytest.mark.parametrize("seed", range(40))
def test_few_persons_have_limits_around_the_value_or_none(seed: int) -> None:
    """Resampling of two or three persons has draws without any spread: a limit may be infinite, a command must not end because of it."""
    random = np.random.default_rng(seed)
    study = make_study(cohort__classes=["no", "yes"])
    task = make_task(study)
    parts = [counts_of(int(random.integers(0, 4)), int(random.integers(0, 4)), 1, int(random.integers(2**31))) for _ in range(seed % 3 + 1)]
    merged = add_counts(parts)
    if not merged["persons"].sum():
        return
    for name in (m.name for m in task.measures if m.of != "class" and m.name in task.metrics(merged)):
        found, value = interval(parts, task, name, seed=0), task.metrics(merged).get(name, np.nan)
        if found is not None and np.isfinite([found.low, found.high]).all():
            assert found.low - 1e-9 <= value <= found.high + 1e-9 or name == "balanced_accuracy"
