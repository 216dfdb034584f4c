"""What a round says of its sites."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedml.strategies.rounds import metrics_of
from fedml.tasks.registry import make_task
from tests.conftest import make_study


def test_the_worst_site_is_the_one_with_the_lowest_auroc_or_the_highest_error() -> None:
    """Site a classifies all persons correctly, b most, c few."""
    truth = torch.tensor([0, 1] * 20)
    wrong = {"a": 0, "b": 8, "c": 30}
    study = make_study(sites="abc")
    counts = {}
    for site, count in wrong.items():
        label = torch.where(torch.arange(40) < count, 1 - truth, truth)
        own = make_task(study).counts(torch.stack([-label, label], 1).double(), truth)
        counts[site] = {f"test/{key}": value for key, value in own.items()}
    found = metrics_of(study, counts)
    assert found.keys() == {"test"}
    assert found["test"]["worst"] == "c"
    assert [found["test"]["sites"][site]["accuracy"] for site in "abc"] == pytest.approx([1, 0.8, 0.25])
    assert found["test"]["all"]["accuracy"] == pytest.approx(82 / 120)

    study = make_study(sites="abc", model__task="regression")
    counts = {}
    for site, error in {"a": 0.1, "b": 5.0, "c": 1.0}.items():
        own = make_task(study).counts(torch.linspace(0, 10, 40)[:, None] + error, torch.linspace(0, 10, 40))
        counts[site] = {f"test/{key}": np.asarray(value) for key, value in own.items()}
    assert metrics_of(study, counts)["test"]["worst"] == "b"
