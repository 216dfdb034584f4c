"""Calibration, reliability and ROC curves from merged counts: as scikit-learn and statsmodels find them on all persons' own predictions."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import statsmodels.api as sm
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.calibration import calibration_curve

from fedml.learning.calibration import Calibration, calibration, reliability, roc
from fedml.tasks.classification_counts import BINS, MIDPOINTS
from fedml.tasks.counts import Counts, add_counts
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task
from tests.conftest import make_study

TWO, THREE = make_task(make_study()), make_task(make_study(cohort__classes=["a", "b", "c"]))


def place_of(logit: Any) -> Any:
    """The bin of each log-odds: 4,096 equally wide in asinh up to 1,000."""
    edge = np.arcsinh(1000.0)
    return np.clip(np.floor((np.arcsinh(logit) + edge) * (2048 / edge)), 0, BINS - 1)


def counts_of(logit: Any, y: Any) -> Counts:
    z = torch.as_tensor(np.asarray(logit, dtype=np.float64))
    return TWO.counts(torch.stack([torch.zeros_like(z), z], 1), torch.as_tensor(np.asarray(y, dtype=np.float32)))


def cohort(persons: int, seed: int, slope: float = 1.4, shift: float = 0.3) -> tuple[Any, Any]:
    """Log-odds that are too extreme by ``slope`` and too high by ``shift``, and outcomes."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-0.8, 1.3, persons)
    return slope * true + shift, (rng.random(persons) < expit(true)).astype(int)


def merged(logit: Any, y: Any, sites: int = 4) -> Counts:
    return add_counts(counts_of(a, b) for a, b in zip(np.array_split(logit, sites), np.array_split(y, sites), strict=True))


def limits(got: Any) -> tuple[float, float, float]:
    return got.value, got.low, got.high


@pytest.mark.parametrize("seed", range(3))
def test_merged_counts_equal_scikit_learn_and_statsmodels_on_pooled_predictions(seed: int) -> None:
    logit, y = cohort(3000, seed)
    counts, p = merged(logit, y), expit(logit)
    metrics = TWO.metrics(counts)
    assert metrics["auroc"] == pytest.approx(sk.roc_auc_score(y, p), abs=1e-3)
    assert metrics["brier"] == pytest.approx(sk.brier_score_loss(y, p), abs=1e-12)
    assert interval(counts, TWO, "brier", seed=1).value == pytest.approx(sk.brier_score_loss(y, p), abs=1e-12)
    # The histogram, from which the spread is computed, is within 1e-3 of the sum.
    risk = expit(MIDPOINTS)
    assert (counts["histogram"][0] * np.stack([risk**2, (1 - risk) ** 2])).sum() / 3000 == pytest.approx(metrics["brier"], abs=1e-3)

    got = calibration(counts)
    joint = sm.Logit(y, sm.add_constant(logit)).fit(disp=0)
    large = sm.GLM(y, np.ones(3000), family=sm.families.Binomial(), offset=logit).fit()
    assert limits(got.slope) == pytest.approx((joint.params[1], *joint.conf_int()[1]), abs=1e-3)
    assert limits(got.intercept) == pytest.approx((joint.params[0], *joint.conf_int()[0]), abs=1e-3)
    assert limits(got.in_the_large) == pytest.approx((large.params[0], *large.conf_int()[0]), abs=1e-3)
    assert got.expected_observed.value == pytest.approx(p.sum() / y.sum(), abs=1e-3)
    assert (got.persons, got.cases, got.saturated) == (3000, y.sum(), 0)
    assert 0.6 < got.slope.value < 0.85


def test_the_fit_is_statsmodels_own_where_every_person_is_at_the_middle_of_a_bin() -> None:
    logit, y = cohort(400, 7)
    logit = MIDPOINTS[np.searchsorted(MIDPOINTS, logit)]
    got = calibration(merged(logit, y))
    joint = sm.Logit(y, sm.add_constant(logit)).fit(disp=0, tol=1e-14)
    large = sm.GLM(y, np.ones(400), family=sm.families.Binomial(), offset=logit).fit(tol=1e-14)
    assert limits(got.slope) == pytest.approx((joint.params[1], *joint.conf_int()[1]), abs=1e-8)
    assert limits(got.intercept) == pytest.approx((joint.params[0], *joint.conf_int()[0]), abs=1e-8)
    assert limits(got.in_the_large) == pytest.approx((large.params[0], *large.conf_int()[0]), abs=1e-8)
    assert got.expected_observed.value == pytest.approx(expit(logit).sum() / y.sum(), rel=1e-12)
    observed, predicted = calibration_curve(y, expit(logit), n_bins=10, strategy="uniform")
    curve = reliability(merged(logit, y), by="width")
    np.testing.assert_allclose(curve.predicted, predicted, rtol=1e-12)
    np.testing.assert_allclose(curve.observed, observed, rtol=1e-12)
    assert got.error == pytest.approx(curve.persons @ np.abs(observed - predicted) / 400, rel=1e-12)


@given(st.integers(1, 400), st.integers(0, 999), st.floats(0.1, 5), st.floats(-3, 3), st.integers(1, 12))
def test_groups_of_the_reliability_curve_hold_every_person_once(persons: int, seed: int, slope: float, shift: float, groups: int) -> None:
    logit, y = cohort(persons, seed, slope, shift)
    counts = counts_of(logit, y)
    largest = counts["histogram"].sum((0, 1)).max()
    for by in ("persons", "width"):
        curve = reliability(counts, groups=groups, by=by)  # type: ignore[arg-type]
        assert curve.persons.sum() == persons
        assert len(curve.persons) <= groups
        assert (curve.persons * curve.observed).sum() == pytest.approx(y.sum(), abs=1e-9)
        assert (curve.persons * curve.predicted).sum() == pytest.approx(expit(logit).sum(), abs=1e-3 * persons)
        assert (np.diff(curve.predicted) > 0).all()
        assert (curve.low <= curve.observed).all()
        assert (curve.observed <= curve.high).all()
        if by == "persons":
            assert (np.abs(curve.persons - persons / groups) <= largest + 1).all()


def test_deciles_are_those_of_the_persons_themselves() -> None:
    logit, y = cohort(5000, 11)
    curve = reliability(merged(logit, y))
    order = np.argsort(logit)
    for k, own in enumerate(np.array_split(order, 10)):
        assert curve.persons[k] == pytest.approx(500, abs=15)
        assert curve.predicted[k] == pytest.approx(expit(logit[own]).mean(), abs=3e-3)
        assert curve.observed[k] == pytest.approx(y[own].mean(), abs=0.02)


@given(st.integers(2, 600), st.integers(0, 999), st.floats(0.02, 6), st.integers(3, 200))
def test_the_roc_curve_is_scikit_learns_where_it_has_a_point(persons: int, seed: int, slope: float, points: int) -> None:
    logit, y = cohort(persons, seed, slope)
    x, sensitivity = roc(counts_of(logit, y), points=points)
    if len(set(y)) < 2:
        assert len(x) == 0
        return
    assert len(x) <= points
    assert (x[0], sensitivity[0], x[-1], sensitivity[-1]) == (0, 0, 1, 1)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(sensitivity) >= 0).all()
    place = place_of(logit)
    exact = set(zip(*(np.round(v, 12) for v in sk.roc_curve(y, place, drop_intermediate=False)[:2]), strict=True))
    assert set(zip(np.round(x, 12), np.round(sensitivity, 12), strict=True)) <= exact
    assert np.trapezoid(sensitivity, x) == pytest.approx(sk.roc_auc_score(y, place), abs=1 / (points - 2))


def test_both_ends_of_a_jump_are_points_of_the_curve() -> None:
    """Half of all persons in one bin, in the midst of many small steps."""
    rng = np.random.default_rng(1)
    logit = np.concatenate([rng.uniform(-8, 8, 3000), np.full(3000, 1.234)])
    y = np.concatenate([rng.random(3000) < expit(logit[:3000]), rng.random(3000) < 0.5]).astype(int)
    x, sensitivity = roc(counts_of(logit, y), points=20)
    jump = np.argmax(np.diff(x + sensitivity))
    place, at = place_of(logit), place_of(np.array(1.234))
    for end, above in ((jump, place > at), (jump + 1, place >= at)):
        assert (x[end], sensitivity[end]) == pytest.approx((above[y == 0].mean(), above[y == 1].mean()), abs=1e-12)


@pytest.mark.filterwarnings("ignore:The Log link function")
def test_expected_over_observed_has_the_interval_of_a_share() -> None:
    """With the risks as given, its logarithm has the standard error of the logarithm of a binomial share."""
    logit, y = cohort(700, 3)
    got, share = calibration(counts_of(logit, y)).expected_observed, y.mean()
    fit = sm.GLM(y, np.ones(700), family=sm.families.Binomial(sm.families.links.Log())).fit()
    assert math.log(got.high / got.low) == pytest.approx(2 * 1.959964 * fit.bse[0], rel=1e-4)
    assert got.value == pytest.approx(expit(logit).mean() / share, abs=1e-3)


def test_200_points_draw_a_large_cohorts_curve() -> None:
    logit, y = cohort(20_000, 3)
    x, sensitivity = roc(merged(logit, y))
    assert 100 <= len(x) <= 200
    assert np.trapezoid(sensitivity, x) == pytest.approx(sk.roc_auc_score(y, logit), abs=2e-4)


def test_one_class_of_several_is_against_the_rest_and_of_two_the_other_is_the_mirror() -> None:
    rng = np.random.default_rng(5)
    y = rng.integers(0, 3, 900)
    z = rng.normal(0, 1, (900, 3)) + 1.5 * np.eye(3)[y]
    counts = THREE.counts(torch.from_numpy(z), torch.from_numpy(y.astype(np.float32)))
    for c in range(3):
        others = np.delete(z, c, axis=1)
        logit = z[:, c] - np.logaddexp(others[:, 0], others[:, 1])
        joint = sm.Logit((y == c).astype(int), sm.add_constant(logit)).fit(disp=0)
        got = calibration(counts, c)
        assert (got.intercept.value, got.slope.value) == pytest.approx(tuple(joint.params), abs=2e-3)
        assert np.trapezoid(*roc(counts, c)[::-1]) == pytest.approx(sk.roc_auc_score(y == c, logit), abs=2e-3)
    logit, truth = cohort(500, 1)
    one, other = calibration(counts_of(logit, truth), 1), calibration(counts_of(logit, truth), 0)
    assert other.slope.value == pytest.approx(one.slope.value, rel=1e-9)
    assert other.intercept.value == pytest.approx(-one.intercept.value, rel=1e-9)
    assert other.in_the_large.value == pytest.approx(-one.in_the_large.value, rel=1e-9)
    assert other.cases == 500 - one.cases
    assert limits(calibration(counts_of(-logit, 1 - truth), 1).slope) == pytest.approx(limits(other.slope), abs=1e-3)
    with pytest.raises(ValueError, match="class 3"):
        calibration(counts, 3)


@pytest.mark.long
def test_calibration_intervals_cover_on_500_cohorts(capsys: pytest.CaptureFixture[str]) -> None:
    """The truth is known by construction: slope 1 / 1.4, intercept -0.3 / 1.4."""
    inside: dict[str, list[bool]] = {"slope": [], "intercept": []}
    rng = np.random.default_rng(0)
    for k in range(500):
        got = calibration(merged(*cohort(int(rng.integers(80, 600)), 10_000 + k)))
        for name, truth in (("slope", 1 / 1.4), ("intercept", -0.3 / 1.4)):
            inside[name].append(getattr(got, name).low <= truth <= getattr(got, name).high)
    share = {name: float(np.mean(v)) for name, v in inside.items()}
    with capsys.disabled():
        print(f"\ncalibration: {share}", end="")
    assert all(0.93 <= s <= 0.97 for s in share.values()), share


# --- edges


def nothing(got: Calibration) -> bool:
    return all(math.isnan(v) for i in (got.slope, got.intercept, got.in_the_large, got.expected_observed) for v in limits(i))


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("persons", [0, 1, 30])
def test_one_class_only_has_no_calibration_but_a_curve(y: int, persons: int) -> None:
    counts = counts_of(np.linspace(-2, 2, persons), np.full(persons, y))
    got = calibration(counts)
    assert nothing(got)
    assert got.slope.method.startswith("none: ")
    assert math.isnan(got.error) == (persons == 0)
    curve = reliability(counts)
    assert curve.persons.sum() == persons
    assert (curve.observed == y).all()
    assert roc(counts)[0].size == 0


def test_every_person_in_one_bin_has_a_level_but_no_slope() -> None:
    y = np.array([1] * 12 + [0] * 28)
    got = calibration(counts_of(np.full(40, 0.3), y))
    assert math.isnan(got.slope.value)
    assert "do not overlap" in got.slope.method
    assert got.in_the_large.value == pytest.approx(math.log(12 / 28) - 0.3, abs=4e-3)
    assert got.error == pytest.approx(expit(0.3) - 0.3, abs=1e-3)
    curve = reliability(counts_of(np.full(40, 0.3), y))
    assert (curve.persons.tolist(), curve.observed.tolist()) == ([40], [0.3])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("touching", [False, True])
def test_separated_classes_have_no_slope(sign: int, touching: bool) -> None:
    y = np.arange(40) % 2
    logit = sign * (2 * y - 1) * 1.0
    if touching:  # one of each in the same bin between them: the likelihood still has no maximum
        logit[:2] = 0.0
    got = calibration(counts_of(logit, y))
    assert math.isnan(got.slope.value)
    assert "do not overlap" in got.slope.method
    assert not math.isnan(got.in_the_large.value)


def test_log_odds_beyond_the_histogram_are_counted_and_do_not_break_the_fit() -> None:
    logit, y = cohort(300, 2, slope=1.0, shift=0.0)
    logit[:4], y[:4] = [-90_000, 4_000, 1_001, -1_000.5], [0, 1, 0, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = calibration(counts_of(logit, y))
        far = calibration(counts_of(np.where(y == 1, 5000.0, -5000.0), 1 - y))
    assert got.saturated == 4
    assert 0 < got.slope.value < 1
    clipped = np.clip(logit, MIDPOINTS[0], MIDPOINTS[-1])
    joint = sm.Logit(y, sm.add_constant(clipped)).fit(disp=0)
    assert got.slope.value == pytest.approx(joint.params[1], abs=1e-3)
    assert (far.saturated, far.error) == (300, pytest.approx(1, abs=1e-6))


@given(st.integers(4, 60), st.integers(0, 9999), st.floats(0.01, 12), st.floats(-9, 9))
def test_any_counts_have_the_maximum_of_the_likelihood_or_say_that_there_is_none(
    persons: int, seed: int, slope: float, shift: float
) -> None:
    rng = np.random.default_rng(seed)
    logit, y = slope * rng.normal(0, 1, persons) + shift, rng.integers(0, 2, persons)
    counts = counts_of(logit, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = calibration(counts)
    if math.isnan(got.slope.value):
        assert got.slope.method.startswith("none: ")
        return
    x = MIDPOINTS[place_of(logit).astype(int)]
    residual = y - expit(got.intercept.value + got.slope.value * x)
    assert abs(residual.sum()) < 1e-6 * persons
    assert abs((residual * x).sum()) < 1e-6 * persons * 110
    assert abs((y - expit(got.in_the_large.value + x)).sum()) < 1e-6 * persons
