"""Pairs within sites, and the sample of sites: equal to sums over pairs, statsmodels, and the restricted likelihood's maximum."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from statsmodels.stats.meta_analysis import combine_effects

from fedml.tasks.across_sites import (
    auroc_variance,
    dersimonian_laird,
    further_site,
    plain,
    random_effects,
    recorded,
    reml,
    summary_of,
    within_sites,
)
from fedml.tasks.counts import Counts
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task
from tests.conftest import make_study

TWO, THREE = make_task(make_study()), make_task(make_study(cohort__classes=["a", "b", "c"]))


def counts_of(logit: Any, y: Any) -> Counts:
    z = torch.as_tensor(np.asarray(logit, dtype=np.float64))
    return TWO.counts(torch.stack([torch.zeros_like(z), z], 1), torch.as_tensor(np.asarray(y, dtype=np.float32)))


def persons(seed: int, sizes: tuple[int, ...], *, tied: bool = False) -> dict[str, tuple[Any, Any]]:
    rng, out = np.random.default_rng(seed), {}
    for k, n in enumerate(sizes):
        y = rng.random(n) < (0.15, 0.4, 0.7, 0.3)[k % 4]
        z = rng.normal(0.8 * (k % 4), 1, n) + y
        out[f"s{k}"] = (np.round(z) if tied else z, y)
    return out


def psi(z: Any, y: Any) -> Any:
    """(cases, others): 1 where the case is above, one half where they are equal."""
    return (z[y][:, None] > z[~y]) + 0.5 * (z[y][:, None] == z[~y])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.lists(st.integers(1, 40), min_size=2, max_size=4))
def test_only_pairs_of_one_site_are_compared(seed: int, sizes: list[int]) -> None:
    found = persons(seed, tuple(sizes), tied=True)
    got = within_sites({s: counts_of(*own) for s, own in found.items()})
    inside = [psi(*own) for own in found.values()]
    own = sum(p.size for p in inside)
    if not own:
        assert got is None
        return
    assert got is not None
    y = np.concatenate([y for _, y in found.values()])
    assert got.auroc.value == pytest.approx(sum(p.sum() for p in inside) / own, abs=1e-12)
    assert got.pairs == int(y.sum()) * int((~y).sum())
    assert got.crossing == pytest.approx(1 - own / got.pairs, abs=1e-12)
    share = np.concatenate([np.full(len(y), y.mean()) for _, y in found.values()])
    assert got.site_alone == pytest.approx(sk.roc_auc_score(y, share), abs=1e-12)
    if not math.isnan(got.auroc.low):
        assert got.auroc.low <= got.auroc.value <= got.auroc.high


def test_the_interval_is_delongs_at_each_site() -> None:
    found = persons(3, (60, 80, 90), tied=True)
    variance, weights = [], []
    for z, y in found.values():
        p = psi(z, y)
        exact = p.mean(1).var(ddof=1) / p.shape[0] + p.mean(0).var(ddof=1) / p.shape[1]
        assert auroc_variance(counts_of(z, y)["histogram"][0], float(p.mean())) == pytest.approx(exact, rel=1e-12)
        variance.append(exact)
        weights.append(p.size)
    w = np.array(weights) / np.sum(weights)
    got = within_sites({s: counts_of(*own) for s, own in found.items()})
    assert got is not None
    a = got.auroc.value
    half = 1.959963984540054 * math.sqrt(float(w**2 @ variance)) / (a * (1 - a))
    limits = [1 / (1 + math.exp(-(math.log(a / (1 - a)) + sign * half))) for sign in (-1, 1)]
    assert (got.auroc.low, got.auroc.high) == pytest.approx(limits, abs=1e-12)
    assert got.auroc.method == "DeLong at each site, logit scale"


def test_a_model_that_only_knows_the_site_is_a_guess_within_sites() -> None:
    found = {s: (np.full(len(y), y.mean()), y) for s, (_, y) in persons(5, (100, 120, 90)).items()}
    parts = {s: counts_of(*own) for s, own in found.items()}
    got = within_sites(parts)
    assert got is not None
    assert got.auroc.value == pytest.approx(0.5, abs=1e-15)
    merged = interval(list(parts.values()), TWO, "auroc", seed=1)
    assert merged.value == pytest.approx(got.site_alone, abs=1e-12)
    assert merged.low > 0.6


def test_where_there_is_nothing_to_compare() -> None:
    two = persons(1, (40, 50))
    one = counts_of(*two["s0"])
    assert within_sites({"s0": one}) is None
    apart = {"s0": counts_of(two["s0"][0], np.zeros(40)), "s1": counts_of(two["s1"][0], np.ones(50))}
    assert within_sites(apart) is None, "no site has a pair"
    noisy = {s: {k: v for k, v in counts_of(*own).items() if k != "log_loss_sum"} for s, own in two.items()}
    assert within_sites(noisy) is None
    few = {s: counts_of(z, np.arange(len(z)) < 2) for s, (z, _) in two.items()}
    got = within_sites(few)
    assert got is not None
    assert got.auroc.method.startswith("none: fewer than 5 persons of a class")
    sure = within_sites({s: counts_of(np.arange(20.0), np.arange(20) >= 10) for s in "ab"})
    assert sure is not None
    assert (sure.auroc.value, sure.auroc.method[:4]) == (1.0, "none")


def test_of_several_classes_it_is_the_mean() -> None:
    rng, parts, direct = np.random.default_rng(2), {}, []
    raw = []
    for s in "ab":
        y = rng.integers(0, 3, 60)
        z = rng.normal(0, 1, (60, 3)) + np.eye(3)[y]
        raw.append((z, y))
        parts[s] = THREE.counts(torch.from_numpy(z), torch.from_numpy(y.astype(np.float32)))
    for c in range(3):
        inside = [psi(z[:, c] - np.logaddexp.reduce(np.delete(z, c, 1), axis=1), y == c) for z, y in raw]
        direct.append(sum(p.sum() for p in inside) / sum(p.size for p in inside))
    got = within_sites(parts)
    assert got is not None
    assert got.auroc.value == pytest.approx(np.mean(direct), abs=2e-3)  # of a histogram


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(0.05, 0.8)), min_size=3, max_size=9))
def test_moments_with_hartung_and_knapp_are_statsmodels(sites: list[tuple[float, float]]) -> None:
    y, error = (np.array(v) for v in zip(*sites, strict=True))
    got = random_effects(y, error, "identity", tau2=dersimonian_laird)
    with warnings.catch_warnings(action="ignore"):  # of the sites' own intervals, which are not compared
        exact = combine_effects(y, error**2, method_re="dl", use_t=True)
    assert got.tau2 == pytest.approx(max(exact.tau2, 0.0), abs=1e-10)
    if exact.tau2 < 0:  # which statsmodels keeps
        return
    frame = exact.summary_frame().loc["random effect wls"]
    assert (got.mean, got.low, got.high) == pytest.approx((frame["eff"], frame["ci_low"], frame["ci_upp"]), abs=1e-9)


def test_a_further_site_is_predicted_over_every_variance_between_sites() -> None:
    """By draws: a chi-square, the tau² at which the generalised Q equals it, and a t about the mean there."""
    rng = np.random.default_rng(3)
    y, v = np.array([0.9, 1.4, 0.3, 1.1, 0.8, 1.9]), np.array([0.04, 0.09, 0.05, 0.02, 0.1, 0.03])

    def q(tau2: float) -> float:
        w = 1 / (v + tau2)
        return float(w @ (y - w @ y / w.sum()) ** 2)

    drawn = []
    for wanted in rng.chisquare(5, 3000):
        tau2 = 0.0 if q(0.0) <= wanted else brentq(lambda x, wanted=wanted: q(x) - wanted, 0, 1e4)
        w = 1 / (v + tau2)
        drawn += (w @ y / w.sum() + math.sqrt(tau2 + q(tau2) / (5 * w.sum())) * rng.standard_t(5, 20)).tolist()
    exact = np.quantile(drawn, [0.025, 0.975])
    assert further_site(y, v, 0.95) == pytest.approx(exact, abs=0.05 * (exact[1] - exact[0]))
    got = random_effects(y, np.sqrt(v), "identity")
    assert (got.prediction_low, got.prediction_high) == further_site(y, v, 0.95)
    alike = random_effects(np.full(5, 0.7) + np.array([0, 1e-3, -1e-3, 0, 1e-3]), np.full(5, 0.2), "identity")
    assert alike.tau2 == 0
    assert alike.prediction_low == pytest.approx(alike.low, abs=1e-6)
    assert alike.low < 0.7 < alike.high
    same = random_effects(np.full(5, 0.7), np.full(5, 0.2), "identity")
    assert same.prediction_low == pytest.approx(0.7)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(0.05, 0.8)), min_size=3, max_size=9))
def test_the_variance_between_sites_maximises_the_restricted_likelihood(sites: list[tuple[float, float]]) -> None:
    y, error = (np.array(v) for v in zip(*sites, strict=True))
    v = error**2

    def against(tau2: float) -> float:
        w = 1 / (v + tau2)
        return float(np.log(v + tau2).sum() + math.log(w.sum()) + w @ (y - w @ y / w.sum()) ** 2) / 2

    best = minimize_scalar(against, bounds=(0, 20), method="bounded", options={"xatol": 1e-11})
    assert against(reml(y, v)) <= min(best.fun, against(0.0)) + 1e-7


def test_a_summary_of_sites_is_of_their_own_intervals() -> None:
    parts = {s: counts_of(*own) for s, own in persons(8, (80, 90, 70, 60)).items()}
    parts["few"] = counts_of([0.1, 0.4, 0.2], [0, 1, 0])
    found = [interval([parts[f"s{k}"]], TWO, "auroc", seed=4) for k in range(4)]
    to = np.vectorize(lambda p: math.log(p / (1 - p)))
    errors = (to([f.high for f in found]) - to([f.low for f in found])) / (2 * 1.959963984540054)
    exact = random_effects(to([f.value for f in found]), errors, "logit")
    got = summary_of(TWO, parts, seed=4)
    assert got is not None
    assert (got.mean, got.low, got.prediction_high) == pytest.approx((exact.mean, exact.low, exact.prediction_high), abs=1e-9)
    assert (got.sites, got.left_out) == (4, ("few",))
    assert got.prediction_low < got.low < got.mean < got.high < got.prediction_high
    shown = plain(TWO, parts, seed=4)
    assert shown["further"]["low"] == got.prediction_low
    assert recorded(shown, "test")["test/auroc_within"] == shown["within"]["value"]
    assert "mean" not in plain(TWO, {s: parts[s] for s in ("s0", "s1")}, seed=4), "two sites are no sample"


def test_perfect_sites_are_not_left_out() -> None:
    sure = counts_of(np.r_[np.linspace(-3, -1, 20), np.linspace(1, 3, 20)], np.arange(40) >= 20)
    parts = {"sure": sure} | {s: counts_of(*own) for s, own in persons(8, (80, 90)).items()}
    got = summary_of(TWO, parts, seed=1)
    assert got is not None
    assert (got.sites, got.left_out) == (3, ())


def test_too_few_sites_or_no_error_is_refused() -> None:
    for values, errors in (([0.1], [0.2]), ([0.1, 0.2], [0.1, 0.0]), ([0.1, 0.2, 0.3], [0.1, 0.2])):
        with pytest.raises(ValueError, match="no summary"):
            random_effects(values, errors, "identity")
