"""Metrics: from counts that add, equal to scikit-learn's on all persons together."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedml.tasks.counts import add_counts
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task
from tests.conftest import make_study

TWO, THREE = make_task(make_study()), make_task(make_study(cohort__classes=["a", "b", "c"]))
NUMBER = make_task(make_study(model__task="regression"))


def scores(persons: int, classes: int, seed: int, spread: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that know something of the labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, persons)
    z = rng.normal(0, spread, (persons, classes)) + 1.5 * np.eye(classes)[y]
    return torch.from_numpy(z), torch.from_numpy(y.astype(np.float32))


@st.composite
def split_persons(draw: st.DrawFn) -> tuple[int, int, int, list[int]]:
    persons = draw(st.integers(0, 60))
    return draw(st.sampled_from([1, 2, 3, 5])), persons, draw(st.integers(0, 999)), draw(st.lists(st.integers(0, persons), max_size=5))


@given(split_persons())
def test_counts_of_sites_add_up_to_those_of_all_persons(made: tuple[int, int, int, list[int]]) -> None:
    """Exact where counts are whole numbers, to rounding where they are sums; sites may be empty."""
    classes, persons, seed, cuts = made
    z, y = scores(persons, classes, seed)
    task = NUMBER if classes == 1 else make_task(make_study(cohort__classes=list(range(classes))))
    if classes == 1:
        y = torch.from_numpy(np.random.default_rng(seed).normal(50, 9, persons).astype(np.float32))
    edges = [0, *sorted(cuts), persons]
    together = task.counts(z, y)
    added = add_counts(task.counts(z[a:b], y[a:b]) for a, b in pairwise(edges))
    assert added.keys() == together.keys()
    for key, value in together.items():
        if value.dtype.kind == "i":
            np.testing.assert_array_equal(added[key], value)
        else:
            np.testing.assert_allclose(added[key], value, rtol=1e-12, atol=1e-12)
    for key, number in task.metrics(together).items():
        np.testing.assert_allclose(task.metrics(added)[key], number, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("task", "classes"), [(TWO, 2), (THREE, 3)])
def test_classification_metrics_equal_sklearns(task: Any, classes: int, seed: int) -> None:
    z, y = scores(2000, classes, seed)
    m = task.metrics(task.counts(z, y))
    p, truth = torch.softmax(z, 1).numpy(), y.numpy().astype(int)
    guess = p.argmax(1)
    assert m["persons"] == 2000
    assert m["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess), abs=1e-12)
    assert m["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, guess), abs=1e-12)
    assert m["log_loss"] == pytest.approx(sk.log_loss(truth, p), abs=1e-12)
    assert m["f1_macro"] == pytest.approx(sk.f1_score(truth, guess, average="macro"), abs=1e-12)
    if classes == 2:
        assert m["f1"] == pytest.approx(sk.f1_score(truth, guess), abs=1e-12)
        assert m["brier"] == pytest.approx(sk.brier_score_loss(truth, p[:, 1]), abs=1e-12)
        assert m["sensitivity"] == pytest.approx(sk.recall_score(truth, guess), abs=1e-12)
        assert m["specificity"] == pytest.approx(sk.recall_score(truth, guess, pos_label=0), abs=1e-12)
        assert m["auroc"] == pytest.approx(sk.roc_auc_score(truth, p[:, 1]), abs=1e-3)
    else:
        assert m["brier"] == pytest.approx(((p - np.eye(3)[truth]) ** 2).sum(1).mean(), abs=1e-12)
        assert m["auroc"] == pytest.approx(sk.roc_auc_score(truth, p, multi_class="ovr", average="macro"), abs=1e-3)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_macro_f1_equals_sklearns_where_classes_lack(persons: list[tuple[int, int]]) -> None:
    """A class that neither occurs nor is predicted is left out of the mean; one that is never found counts as 0."""
    task = make_task(make_study(cohort__classes=[0, 1, 2, 3]))
    truth, guess = (np.array(side) for side in zip(*persons, strict=True))
    m = task.metrics(task.counts(torch.from_numpy(5.0 * np.eye(4)[guess]), torch.from_numpy(truth.astype(np.float32))))
    assert m["f1_macro"] == pytest.approx(sk.f1_score(truth, guess, average="macro", zero_division=0), abs=1e-12)
    assert "f1" not in m


@given(st.integers(2, 300), st.integers(0, 999), st.floats(0.05, 6))
def test_auroc_is_near_sklearns_at_any_size_and_scale(persons: int, seed: int, spread: float) -> None:
    """The histogram counts a pair in one bin as a half; the exact one may count it as 0 or 1."""
    z, y = scores(persons, 2, seed, spread)
    logit, truth = (z[:, 1] - z[:, 0]).numpy(), y.numpy()
    found = TWO.metrics(TWO.counts(z, y))["auroc"]
    if len(set(truth)) < 2:
        assert math.isnan(found)
        return
    edge = np.arcsinh(1000.0)
    place = np.clip(np.floor((np.arcsinh(logit) + edge) * (2048 / edge)), 0, 4095)
    shared = (place[truth == 1][:, None] == place[truth == 0][None, :]).mean()
    assert abs(found - sk.roc_auc_score(truth, logit)) <= shared / 2 + 1e-12
    assert found == pytest.approx(sk.roc_auc_score(truth, place), abs=1e-12)


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, 0.0), (0, 0.5)])
def test_auroc_of_perfect_opposite_and_constant_scores(sign: int, expected: float) -> None:
    y = torch.tensor([0.0, 1] * 20)
    z = torch.stack([torch.zeros(40), sign * (2 * y - 1) * 3], 1)
    assert TWO.metrics(TWO.counts(z, y))["auroc"] == expected
    y3 = torch.arange(39) % 3
    z3 = sign * torch.eye(3)[y3] * 5
    assert THREE.metrics(THREE.counts(z3, y3.float()))["auroc"] == expected


def test_scores_beyond_the_histogram_are_kept_in_its_ends() -> None:
    z = torch.tensor([[0, -800.0], [0, 800], [3e4, 0], [0, 3e4]])
    m = TWO.metrics(TWO.counts(z, torch.tensor([0.0, 1, 0, 1])))
    assert (m["auroc"], m["accuracy"], m["brier"]) == (1, 1, 0)
    assert 0 <= m["log_loss"] < 1e-100


def test_noised_counts_of_a_site_whose_persons_noise_made_0_are_in_the_value_of_all() -> None:
    """A run logs the sums of all sites; a report left such a site out, about once in 160 runs of few persons."""
    parts = [{n: v for n, v in TWO.counts(*scores(40, 2, seed)).items() if "log_loss" not in n} for seed in (1, 2)]
    parts[1] = {**parts[1], "persons": np.zeros(1)}
    assert interval(parts, TWO, "brier", seed=1).value == pytest.approx(TWO.metrics(add_counts(parts))["brier"], rel=1e-12)
    assert interval(parts, TWO, "brier", seed=1).value != pytest.approx(TWO.metrics(parts[0])["brier"], rel=1e-3)


def test_an_empty_part_has_no_metrics() -> None:
    for task, classes in ((TWO, 2), (THREE, 3), (NUMBER, 1)):
        assert task.metrics(task.counts(torch.zeros(0, classes), torch.zeros(0))) == {"persons": 0.0}
    assert add_counts([]) == {}


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_only_has_no_auroc_and_nothing_crashes(label: float) -> None:
    z, _ = scores(30, 2, 1)
    y = torch.full((30,), label)
    m = TWO.metrics(TWO.counts(z, y))
    assert math.isnan(m["auroc"])
    assert m["balanced_accuracy"] == m["accuracy"]
    assert math.isnan(m["sensitivity" if label == 0 else "specificity"])
    m = THREE.metrics(THREE.counts(torch.zeros(30, 3), y))
    assert math.isnan(m["auroc"])


def test_a_class_that_no_person_has_is_not_in_the_mean() -> None:
    z, y = scores(400, 3, 2)
    y = torch.where(y == 2, torch.zeros(()), y)
    m = THREE.metrics(THREE.counts(z, y))
    p = torch.softmax(z, 1).numpy()
    each = [sk.roc_auc_score(y.numpy() == c, p[:, c]) for c in (0, 1)]
    assert m["auroc"] == pytest.approx(np.mean(each), abs=1e-3)


@pytest.mark.parametrize("shift", [0.0, 70.0, 3000.0])
def test_regression_metrics_equal_sklearns(shift: float) -> None:
    rng = np.random.default_rng(0)
    y = torch.from_numpy((rng.normal(0, 12, 500) + shift).astype(np.float32))
    guess = y[:, None] + torch.from_numpy(rng.normal(1, 5, (500, 1)).astype(np.float32))
    m = NUMBER.metrics(NUMBER.counts(guess, y))
    truth, predicted = y.double().numpy(), guess[:, 0].double().numpy()
    assert m["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, predicted), rel=1e-12)
    assert m["mae"] == pytest.approx(sk.mean_absolute_error(truth, predicted), rel=1e-12)
    assert m["bias"] == pytest.approx((predicted - truth).mean(), rel=1e-10)
    assert m["r2"] == pytest.approx(sk.r2_score(truth, predicted), rel=1e-9)


def test_the_spread_of_a_single_value_has_no_r2() -> None:
    m = NUMBER.metrics(NUMBER.counts(torch.zeros(4, 1), torch.full((4,), 3.0)))
    assert math.isnan(m["r2"])
    assert (m["rmse"], m["mae"], m["bias"]) == (3, 3, -3)


@pytest.mark.parametrize(("value", "persons"), [(932760.3125, 7)])
def test_a_constant_target_has_no_r2_whatever_its_value(value: float, persons: int) -> None:
    m = NUMBER.metrics(NUMBER.counts(torch.zeros(persons, 1), torch.full((persons,), value)))
    assert math.isnan(m["r2"])


def test_losses_are_the_means_over_persons() -> None:
    z, y = scores(50, 3, 3)
    m = THREE.metrics(THREE.counts(z, y))
    assert float(THREE.loss(z, y)) == pytest.approx(m["log_loss"], rel=1e-12)
    n = NUMBER.metrics(NUMBER.counts(z[:, :1], y.double()))
    assert float(NUMBER.loss(z[:, :1], y.double())) == pytest.approx(n["rmse"] ** 2, rel=1e-12)


def test_what_a_site_sends_hides_each_small_cell_and_keeps_its_auroc() -> None:
    """The cells of a class cannot be had from its total, which the histogram has; the site's own AUROC is as before."""
    rng = np.random.default_rng(3)
    y = torch.tensor([0.0] * 48 + [1.0] * 32)
    logit = np.concatenate([rng.uniform(-3, -0.5, 48), rng.uniform(0.5, 3, 31), [-1.0]])
    z = torch.from_numpy(np.stack([np.zeros(80), logit], 1))
    counts = TWO.counts(z, y)
    sent = TWO.grouped(counts, 5)
    assert counts["confusion"].tolist() == [[48, 0], [1, 31]]
    assert sent["confusion"].tolist() == [[48, 0], [0, 32]]
    cells = sent["histogram"][sent["histogram"] > 0]
    assert cells.min() >= 5
    assert sent["histogram"].sum(-1).tolist() == [[48, 32]]
    assert TWO.metrics(TWO.spread(sent))["auroc"] == pytest.approx(TWO.metrics(counts)["auroc"], abs=1e-12)
    few = TWO.grouped(TWO.counts(z[:51], y[:51]), 5)
    assert not few["histogram"].any(), "three persons of a class would follow from the other class and all"
    assert few["confusion"].sum() == 51
    assert ((few["confusion"] == 0) | (few["confusion"] >= 5)).all()
