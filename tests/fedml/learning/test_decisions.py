"""Thresholds, precision and recall, and net benefit from counts: against scikit-learn and the definitions on the same persons."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import average_precision_score, confusion_matrix, roc_curve

from fedml.learning.decisions import at_risk, average_precision, chosen, net_benefit, precision_recall
from fedml.learning.sample_size import smallest
from fedml.tasks.classification_counts import class_counts
from fedml.tasks.counts import Counts


def persons(seed: int = 0, many: int = 400) -> tuple[np.ndarray, np.ndarray, Counts]:
    """Outcome, risk and counts of persons whose scores are some way apart, so that no bin holds two of them."""
    rng = np.random.default_rng(seed)
    score = rng.permutation(np.linspace(-4, 4, many))
    y = (rng.random(many) < expit(score)).astype(int)
    output = torch.stack([torch.zeros(many), torch.from_numpy(score)], 1)
    return y, expit(score), class_counts(output, torch.from_numpy(y))


@pytest.mark.parametrize("threshold", [0.1, 0.25, 0.5, 0.9])
def test_persons_on_either_side_of_a_threshold_are_those_of_the_scores(threshold: float) -> None:
    y, risk, counts = persons()
    (tn, fp), (fn, tp) = confusion_matrix(y, risk >= threshold)
    assert at_risk(counts, threshold) == (tp, fp, fn, tn)
    odds = threshold / (1 - threshold)
    assert net_benefit(counts, threshold)[0] == pytest.approx(tp / len(y) - odds * fp / len(y), abs=1e-12)
    assert net_benefit(counts, threshold)[1] == pytest.approx(y.mean() - odds * (1 - y.mean()), abs=1e-12)


def test_the_area_under_precision_and_recall_is_that_of_scikit_learn() -> None:
    y, risk, counts = persons(1)
    assert average_precision(counts) == pytest.approx(average_precision_score(y, risk), abs=1e-12)
    recall, precision = precision_recall(counts, points=50)
    assert len(recall) == 50
    assert (np.diff(recall) >= 0).all()
    assert (recall[-1], precision[-1]) == (1.0, pytest.approx(y.mean()))


def test_the_chosen_threshold_has_the_largest_youden_index() -> None:
    y, risk, counts = persons(2)
    wrong, found, _ = roc_curve(y, risk, drop_intermediate=False)
    table = at_risk(counts, chosen(counts))
    youden = table.true_positive / table.cases + table.true_negative / (table.persons - table.cases) - 1
    assert youden == pytest.approx(max(found - wrong), abs=0.01)  # three decimals of the threshold may lose a person
    assert math.isnan(chosen(persons(3, 12)[2], fewest=10))


def test_counts_without_a_class_or_of_three_classes() -> None:
    empty = class_counts(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    assert math.isnan(net_benefit(empty, 0.5)[0])
    assert math.isnan(average_precision(empty))
    assert len(precision_recall(empty)[0]) == 0
    with pytest.raises(ValueError, match="two classes"):
        at_risk(class_counts(torch.zeros(3, 3), torch.arange(3)), 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        net_benefit(persons()[2], 1.0)


def test_the_least_number_of_persons_is_that_of_the_published_example() -> None:
    """Riley et al. 2020, pre-eclampsia: 30 parameters, 5 % with the outcome, Cox-Snell R2 .05 (of at most .33): 5249 persons."""
    most = 1 - math.exp(2 * (0.05 * math.log(0.05) + 0.95 * math.log(0.95)))
    found = smallest(30, 0.05, 0.05 / most)
    assert (found.persons, found.because) == (5249, "shrinkage")
    assert found.cases == 263
    assert smallest(1, 0.5).because in ("shrinkage", "share")
    assert smallest(1, 0.5, 0.9) == (385, "share", 193)  # 1.96^2 * .25 / .05^2
    with pytest.raises(ValueError, match="at least one parameter"):
        smallest(0, 0.5)
