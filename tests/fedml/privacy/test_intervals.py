"""Intervals from counts: they cover the truth as often as they say, for pooled and for several sites; differences of two models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, logit
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from fedml.learning.differences import People, holm, over_seeds, paired_bootstrap, unpaired
from fedml.privacy.counts import noised as add_noise
from fedml.tasks.classification_counts import noised
from fedml.tasks.counts import Counts, add_counts
from fedml.tasks.drawn import statistic
from fedml.tasks.interval_tools import STRATUM, Interval, resampled, strata, wilson
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task
from fedml.tasks.segmentation_counts import Truth
from tests.conftest import make_study
from tests.delong import delong

TWO, THREE = make_task(make_study()), make_task(make_study(cohort__classes=["a", "b", "c"]))
NUMBER = make_task(make_study(model__task="regression"))
METRICS = ("auroc", "brier", "log_loss", "accuracy", "sensitivity", "specificity", "balanced_accuracy", "f1", "f1_macro")


def counts_of(logit: npt.ArrayLike, y: npt.ArrayLike) -> Counts:
    z = torch.as_tensor(np.asarray(logit, dtype=np.float64))
    return TWO.counts(torch.stack([torch.zeros_like(z), z], 1), torch.as_tensor(np.asarray(y, dtype=np.float32)))


def classes_of(persons: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, persons)
    return torch.from_numpy(rng.normal(0, 1, (persons, 3)) + 1.2 * np.eye(3)[y]), torch.from_numpy(y.astype(np.float32))


# --- coverage


class Cohort:
    """Persons of one kind: normal scores in both classes; the model's log-odds are right, or too extreme."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.auroc, self.share = rng.uniform(0.6, 0.95), rng.choice([0.1, 0.2, 0.35, 0.5, 0.8])
        self.spread, self.slope = rng.choice([0.7, 1.0, 1.5]), rng.choice([1.0, 1.6])
        self.shift = stats.norm.ppf(self.auroc) * math.sqrt(1 + self.spread**2)

    def draw(self, persons: int, rng: np.random.Generator) -> tuple[Any, Any]:
        y = rng.random(persons) < self.share
        x = rng.normal(0, 1, persons) * np.where(y, self.spread, 1) + self.shift * y
        return self.slope * (x * self.shift - self.shift**2 / 2 + math.log(self.share / (1 - self.share))), y

    def truth(self) -> dict[str, float]:
        """Metrics of all such persons: integrals over the scores of either class."""
        grid = np.linspace(-9, 9, 4001)
        weight = stats.norm.pdf(grid) * (grid[1] - grid[0])
        out = {"auroc": float(self.auroc)}
        score = [grid, grid * self.spread + self.shift]
        logit = [self.slope * (x * self.shift - self.shift**2 / 2 + math.log(self.share / (1 - self.share))) for x in score]
        share = [1 - self.share, self.share]
        at = (self.shift**2 / 2 - math.log(self.share / (1 - self.share))) / self.shift  # where the log-odds are 0
        right = [stats.norm.cdf(at), stats.norm.sf((at - self.shift) / self.spread)]
        out["specificity"], out["sensitivity"] = right
        out["accuracy"] = share[0] * right[0] + share[1] * right[1]
        out["balanced_accuracy"] = sum(right) / 2
        hits = [share[k] * right[k] for k in (0, 1)]
        each = [2 * hits[k] / (share[k] + hits[k] + share[1 - k] - hits[1 - k]) for k in (0, 1)]  # those of it, and those predicted so
        out["f1"], out["f1_macro"] = each[1], sum(each) / 2
        out["brier"] = sum(s * float(weight @ (expit(z) - k) ** 2) for k, (s, z) in enumerate(zip(share, logit, strict=True)))
        out["log_loss"] = sum(
            s * float(weight @ np.logaddexp(0, (1 - 2 * k) * z)) for k, (s, z) in enumerate(zip(share, logit, strict=True))
        )
        return out


def coverage(cohorts: int, seed: int, draws: int, sites: int = 1) -> dict[str, tuple[float, float, float]]:
    """By metric: the share of intervals that hold the truth, that lie above it, and below."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[bool, bool]]] = {m: [] for m in METRICS}
    for k in range(cohorts):
        cohort, persons = Cohort(rng), int(np.exp(rng.uniform(np.log(60), np.log(600))))
        logit, y = cohort.draw(persons, rng)
        cuts = np.array_split(np.arange(persons), sites)
        parts = [counts_of(logit[cut], y[cut]) for cut in cuts]
        truth = cohort.truth()
        for metric in METRICS:
            got = interval(parts, TWO, metric, seed=k, draws=draws)
            if not math.isnan(got.low):
                found[metric].append((got.low > truth[metric], got.high < truth[metric]))
    assert all(len(v) > 0.98 * cohorts for v in found.values())
    return {m: (1 - np.mean([a or b for a, b in v]), *np.mean(v, axis=0)) for m, v in found.items()}


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Of 100 cohorts: a right interval of 95 % is outside these bounds once in some thousand tries."""
    for metric, (inside, _, _) in coverage(100, seed=1, draws=300).items():
        assert inside >= 0.87, metric


@pytest.mark.long
@pytest.mark.parametrize("sites", [1, 3])
def test_coverage_of_500_cohorts(sites: int, capsys: pytest.CaptureFixture[str]) -> None:
    measured = coverage(500, seed=2026 + sites, draws=2000, sites=sites)
    with capsys.disabled():
        for metric, (inside, above, below) in measured.items():
            print(
                f"\n{sites} sites, {metric}: {100 * inside:.1f} % (above the truth {100 * above:.1f} %, below {100 * below:.1f} %)", end=""
            )
    for metric, (inside, above, below) in measured.items():
        assert 0.93 <= inside <= 0.97, (metric, inside)
        assert max(above, below) < 0.05, (metric, above, below)


@pytest.mark.long
def test_sites_that_differ_are_covered_too() -> None:
    """Two sites of fixed size, one with sicker persons than the other: the truth is of that mixture."""
    rng = np.random.default_rng(5)

    def draw(n: int, share: float, shift: float) -> tuple[Any, Any]:
        y = rng.random(n) < share
        return rng.normal(shift, 1, n) + 1.2 * y, y

    def both(n: int) -> list[tuple[Any, Any]]:
        return [draw(n, 0.15, 0.0), draw(2 * n, 0.6, 1.0)]

    big = both(400_000)
    truth = sk.roc_auc_score(np.concatenate([y for _, y in big]), np.concatenate([z for z, _ in big]))
    inside = [
        got.low <= truth <= got.high
        for k in range(500)
        for got in [interval([counts_of(*p) for p in both(60)], TWO, "auroc", seed=k, draws=500)]
    ]
    assert 0.93 <= np.mean(inside) <= 0.97


@pytest.mark.parametrize("sites", [1, 3])
def test_the_limits_of_a_mean_cover_it(sites: int) -> None:
    rng = np.random.default_rng(sites)
    inside: dict[str, list[bool]] = {"mae": [], "bias": []}
    for k in range(400):
        y = rng.normal(0, 3, 45)
        guess = y + rng.normal(1, 2, 45)
        parts = [
            NUMBER.counts(torch.from_numpy(g[:, None]), torch.from_numpy(t))
            for g, t in zip(np.array_split(guess, sites), np.array_split(y, sites), strict=True)
        ]
        truth = {"bias": 1.0, "mae": stats.foldnorm.mean(0.5, scale=2)}
        for metric, values in inside.items():
            got = interval(parts, NUMBER, metric, seed=k)
            values.append(got.low <= truth[metric] <= got.high)
    for metric, values in inside.items():
        assert 0.91 <= np.mean(values) <= 0.985, metric


# --- what an interval is


@pytest.mark.parametrize("metric", METRICS)
def test_the_value_is_the_metrics_own_and_lies_between_the_limits(metric: str) -> None:
    rng = np.random.default_rng(3)
    y = rng.random(300) < 0.3
    counts = counts_of(rng.normal(0, 1.5, 300) + y, y)
    got = interval(counts, TWO, metric, seed=1)
    assert got.value == pytest.approx(TWO.metrics(counts)[metric], rel=1e-12)
    assert got.low < got.value < got.high
    wide = interval(counts, TWO, metric, seed=1, level=0.99)
    assert wide.low < got.low < got.high < wide.high
    again = interval({k: v.copy() for k, v in counts.items()}, TWO, metric, seed=1)
    assert again == got
    if "bootstrap" in got.method:
        assert interval(counts, TWO, metric, seed=2) != got


@pytest.mark.long
def test_the_bootstrap_is_that_of_persons() -> None:
    """Its spread equals that of samples of persons themselves, metric by metric, and of samples within sites."""
    rng = np.random.default_rng(4)
    y = rng.random(240) < 0.4
    logit = rng.normal(0, 1, 240) + 1.4 * y
    site = np.repeat([0, 1, 2], [40, 80, 120])
    logit += site
    parts = [counts_of(logit[site == s], y[site == s]) for s in range(3)]
    own: dict[str, list[float]] = {"auroc": [], "brier": [], "log_loss": [], "f1_macro": []}
    rows = [np.flatnonzero(site == s) for s in range(3)]
    for _ in range(3000):
        at = np.concatenate([rng.choice(row, len(row)) for row in rows])
        z, t = logit[at], y[at]
        auroc = stats.mannwhitneyu(z[t], z[~t], method="asymptotic").statistic / (t.sum() * (~t).sum())
        own["auroc"].append(math.log(auroc / (1 - auroc)))
        own["brier"].append(math.log(((expit(z) - t) ** 2).mean()))
        own["log_loss"].append(math.log(np.logaddexp(0, np.where(t, -z, z)).mean()))
        f1 = np.mean([2 * (t & (z > 0)).sum() / (t.sum() + (z > 0).sum()), 2 * (~t & (z <= 0)).sum() / ((~t).sum() + (z <= 0).sum())])
        own["f1_macro"].append(math.log(f1 / (1 - f1)))
    for metric, values in own.items():
        got = interval(parts, TWO, metric, seed=9, draws=4000)
        scale: Callable[[float], float] = (lambda v: math.log(v / (1 - v))) if metric in ("auroc", "f1_macro") else math.log
        assert (scale(got.high) - scale(got.low)) / 2 / 1.959964 == pytest.approx(np.std(values), rel=0.08), metric
    merged = interval(add_counts(parts), TWO, "auroc", seed=9)
    assert merged.value == interval(parts, TWO, "auroc", seed=9).value


def test_tied_scores_have_the_spread_of_delong() -> None:
    rng = np.random.default_rng(8)
    y = (rng.random(500) < 0.4).astype(int)
    score = np.round(rng.normal(0, 1, 500) + 0.8 * y)
    value, variance = direct_delong(y, score, np.zeros(500))
    got = interval(counts_of(score, y), TWO, "auroc", seed=1, draws=4000)
    assert got.value == pytest.approx(value + 0.5, abs=1e-12)
    assert got.high - got.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.06)


def test_what_differs_between_sites_of_fixed_size_is_no_chance() -> None:
    """Good predictions at one site, bad ones at the other: within sites there is little spread of the Brier score, over both much."""
    good, bad = counts_of(np.tile([-3.0, 3], 50), np.tile([0, 1], 50)), counts_of(np.tile([2.9, -3], 50), np.tile([0, 1], 50))
    by_site = interval([good, bad], TWO, "brier", seed=1)
    together = interval(add_counts([good, bad]), TWO, "brier", seed=1)
    assert by_site.value == together.value
    assert by_site.high - by_site.low < 0.05 * (together.high - together.low)


@given(st.lists(st.lists(st.integers(0, 9), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 40), st.integers(0, 99))
def test_every_draw_keeps_each_sites_number_and_only_what_was_seen(tables: list[list[int]], draws: int, seed: int) -> None:
    cells = [np.array(t) for t in tables]
    # Each stratum in cells of its own, so that the sum over strata still shows them.
    apart = [np.concatenate([t if k == j else np.zeros(6, dtype=int) for j in range(len(cells))]) for k, t in enumerate(cells)]
    got = np.concatenate(list(resampled(apart, seed, draws)))
    assert got.shape == (draws, 6 * len(cells))
    for k, table in enumerate(cells):
        own = got[:, 6 * k : 6 * k + 6]
        assert (own.sum(1) == table.sum()).all()
        assert (own[:, table == 0] == 0).all()


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12))
def test_strata_hold_every_person_once_and_large_sites_alone(sizes: list[int]) -> None:
    parts = [{"persons": np.array([float(n)]), "who": np.eye(len(sizes))[k] * n} for k, n in enumerate(sizes)]
    groups = strata(parts)
    np.testing.assert_array_equal(np.sum([g["who"] for g in groups], axis=0), sizes)
    held = [float(g["persons"][0]) for g in groups]
    assert sum(n < STRATUM for n in held) <= (1 if sum(sizes) >= STRATUM else len(sizes))
    if min(sizes) >= STRATUM:
        assert len(groups) == len(sizes)


@given(st.integers(0, 50), st.integers(0, 50), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_statsmodels(hits: int, misses: int, level: float) -> None:
    low, high = wilson(hits, hits + misses, level)
    if not hits + misses:
        assert math.isnan(low)
        assert math.isnan(high)
        return
    assert (low, high) == pytest.approx(proportion_confint(hits, hits + misses, 1 - level, "wilson"), abs=1e-12)


def test_a_wide_histogram_is_drawn_from_in_pieces() -> None:
    """The same samples, whatever fits in memory at a time; 50,000 persons in some thousand bins."""
    rng = np.random.default_rng(0)
    y = rng.random(50_000) < 0.2
    got = interval(counts_of(rng.normal(-1, 2.5, 50_000) + 1.5 * y, y), TWO, "auroc", seed=1)
    assert got.high - got.low < 0.015


# --- edges


def test_one_class_only_has_no_auroc() -> None:
    counts = counts_of(np.linspace(-3, 3, 40), np.ones(40))
    for metric in METRICS:
        got = interval(counts, TWO, metric, seed=1)
        if metric in ("auroc", "specificity"):
            assert math.isnan(got.value)
            assert math.isnan(got.low)
            assert got.method.startswith("none: ")
        else:
            assert got.low < got.value < got.high


@pytest.mark.parametrize("sign", [1, -1])
def test_separated_classes_leave_room_on_one_side_only(sign: int) -> None:
    y = np.arange(40) % 2
    got = interval(counts_of(sign * (2 * y - 1) * 2.0, y), TWO, "auroc", seed=1)
    assert (got.value, got.low if sign < 0 else got.high) == (float(sign > 0),) * 2
    assert 0.05 < got.high - got.low < 0.25
    got = interval(counts_of(sign * (2 * y - 1) * 2.0, y), TWO, "accuracy", seed=1)
    assert (got.value, got.low if sign < 0 else got.high) == (float(sign > 0),) * 2
    assert 0.05 < got.high - got.low < 0.25


def test_every_person_in_one_bin_is_a_half() -> None:
    got = interval(counts_of(np.full(50, 0.3), np.arange(50) % 2), TWO, "auroc", seed=1)
    assert got.low <= got.value == 0.5 <= got.high


@pytest.mark.parametrize("y", [0, 1])
def test_one_person_and_no_person_have_no_interval_and_nothing_crashes(y: int) -> None:
    for metric in METRICS:
        for persons in (1, 0):
            got = interval(counts_of([0.4] * persons, [y] * persons), TWO, metric, seed=1)
            assert got.low <= got.value <= got.high or got.method.startswith("none: ")
            if metric in ("auroc", "brier", "log_loss") or not persons:
                assert math.isnan(got.low)


def test_log_odds_beyond_the_histogram_have_a_brier_score_but_no_spread_of_the_log_loss() -> None:
    logit, y = np.array([-4000.0, 6000, -1001, 2200, 30_000, *np.linspace(-2, 2, 30)]), np.array([0, 1, 1, 1, 0] + [0, 1] * 15)
    counts = counts_of(logit, y)
    p = expit(logit)
    got = interval(counts, TWO, "brier", seed=1)
    assert got.value == pytest.approx(sk.brier_score_loss(y, p), abs=1e-12)
    assert got.low < got.value < got.high
    assert "more than 1000" in interval(counts, TWO, "log_loss", seed=1).method
    right = counts_of(np.array([-4000.0, 6000, *np.linspace(-2, 2, 30)]), [0, 1, *([0, 1] * 15)])
    assert interval(right, TWO, "log_loss", seed=1).low > 0


def test_noised_counts_have_no_interval() -> None:
    reported = {
        "unit": "patient",
        "epsilon": 3.0,
        "delta": 1e-4,
        "persons": {"a": 140, "b": 90},
        "ranges": {c: [0, 1] for c in ("x1", "x2", "x3")},
    }
    study = make_study(privacy=reported | {"metrics": "private"})
    counts = counts_of(np.linspace(-3, 3, 40), np.arange(40) % 2)
    assert not noised(counts)
    noisy = add_noise(counts, study)
    assert noised(noisy)
    for metric in METRICS:
        got = interval([noisy, noisy], TWO, metric, seed=1)
        assert math.isnan(got.low)
        assert "noised" in got.method


def test_what_a_task_has_not_is_refused() -> None:
    counts = counts_of([0.1, 0.2], [0, 1])
    for task, metric in ((TWO, "dice"), (TWO, "auroc/z"), (TWO, "accuracy/1"), (NUMBER, "auroc")):
        with pytest.raises(ValueError, match=r"has no metric|is not one of the classes"):
            interval(counts, task, metric, seed=1)
    with pytest.raises(ValueError, match="no metric"):
        interval(THREE.counts(*classes_of(9, 1)), THREE, "sensitivity", seed=1)
    with pytest.raises(ValueError, match="level"):
        interval(counts, TWO, "auroc", seed=1, level=1.0)


# --- several classes, segmentation, regression


def test_the_mean_over_classes_is_wider_than_a_bootstrap_of_persons_but_not_by_much() -> None:
    z, y = classes_of(400, 1)
    counts = THREE.counts(z, y)
    p, truth = torch.softmax(z, 1).numpy(), y.numpy().astype(int)
    for metric in ("auroc", "brier", "log_loss"):
        got = interval(counts, THREE, metric, seed=1)
        assert got.value == pytest.approx(THREE.metrics(counts)[metric], rel=1e-12)
        of = statistic(metric, truth, p)
        exact = np.concatenate([of(w) for w in resampled([np.ones(400, dtype=int)], 1, 2000)])
        assert 0.97 < (got.high - got.low) / (2 * 1.96 * exact.std()) < 2.0, metric
    one = interval(counts, THREE, "auroc/b", seed=1)
    assert one.value == pytest.approx(sk.roc_auc_score(truth == 1, z[:, 1] - np.logaddexp(z[:, 0], z[:, 2])), abs=1e-3)


def test_dice_has_students_interval_on_the_logit_scale() -> None:
    task = make_task(
        make_study(
            ("image",), model__task="segmentation", cohort__classes=["background", "one", "two"], model__segmentation={"distances": False}
        )
    )
    rng = np.random.default_rng(2)
    mask = torch.from_numpy(rng.integers(0, 3, (24, 9, 9)).astype(np.uint8))
    noise = torch.from_numpy(rng.normal(0, 1, (24, 3, 9, 9)) * rng.uniform(0.3, 1.5, (24, 1, 1, 1)))
    logits = torch.movedim(torch.nn.functional.one_hot(mask.long(), 3), -1, 1) * 1.5 + noise
    mask[:2][mask[:2] == 2] = 0
    logits[:2, 2] = -9  # class 2 is in neither mask of two persons
    whole = task.counts(logits, Truth(mask, torch.arange(24)))
    guess = logits.argmax(1)
    for at, name in enumerate(("one", "two"), start=1):
        each = np.array(
            [sk.f1_score(m.ravel() == at, g.ravel() == at) for m, g in zip(mask, guess, strict=True) if ((m == at) | (g == at)).any()]
        )
        assert len(each) == (24 if at == 1 else 22)
        assert whole["dice_sq_sum"][at - 1] == pytest.approx((each**2).sum(), rel=1e-12)
        got = interval(whole, task, f"dice_mean_person/{name}", seed=1)
        # The delta method: the logit's derivative is 1 / (mean (1 - mean)).
        half = stats.t.ppf(0.975, len(each) - 1) * stats.sem(each) / (each.mean() * (1 - each.mean()))
        exact = expit(logit(each.mean()) + half * np.array([-1, 1]))
        assert (got.value, got.low, got.high) == pytest.approx((each.mean(), *exact), rel=1e-9)
    parts = [task.counts(logits[a:b], Truth(mask[a:b], torch.arange(b - a))) for a, b in ((0, 10), (10, 24))]
    mean, apart = interval(whole, task, "dice_mean_person", seed=1), interval(parts, task, "dice_mean_person", seed=1)
    assert mean.value == pytest.approx(task.metrics(whole)["dice_mean_person"], rel=1e-12)
    assert mean.value == pytest.approx(apart.value, rel=1e-12)
    assert 0.7 < (apart.high - apart.low) / (mean.high - mean.low) < 1.3
    assert math.isnan(interval(whole, task, "dice", seed=1).low)


def test_the_median_of_hd95_lies_between_order_statistics() -> None:
    from fedml.tasks.segmentation_counts import DISTANCE_BINS, _place

    task = make_task(make_study(("image",), model__task="segmentation", cohort__classes=["", "x"]))
    rng = np.random.default_rng(1)
    inside = []
    for k in range(300):
        distance = rng.lognormal(1, 1, 37)
        histogram = np.bincount(_place(distance), minlength=DISTANCE_BINS).astype(np.int32)[None]
        counts = {
            k: np.ones(1, dtype=np.int64) * 37 for k in ("intersection", "predicted", "true", "occurs", "scored", "spaced", "hd95_persons")
        }
        counts |= {
            "persons": np.array([37.0]),
            "dice_sum": np.array([30.0]),
            "dice_sq_sum": np.array([28.0]),
            "hd95_sum": np.array([distance.sum()]),
        }
        got = interval({**counts, "hd95_histogram": histogram}, task, "hd95_median_mm/x", seed=k)
        assert got.value == pytest.approx(np.median(distance), rel=0.01)
        inside.append(got.low * 0.99 <= math.exp(1) <= got.high * 1.01)
    assert np.mean(inside) >= 0.93


def test_errors_of_a_regression_have_students_interval_and_the_rmse_none() -> None:
    rng = np.random.default_rng(6)
    y = rng.normal(60, 10, 50)
    error = rng.normal(2, 4, 50)
    counts = NUMBER.counts(torch.from_numpy((y + error)[:, None]), torch.from_numpy(y))
    for metric, values in (("bias", error), ("mae", np.abs(error))):
        got = interval(counts, NUMBER, metric, seed=1)
        exact = stats.t.interval(0.95, 49, values.mean(), stats.sem(values))
        assert (got.value, got.low, got.high) == pytest.approx((values.mean(), *exact), rel=1e-9)
    for metric in ("rmse", "r2"):
        got = interval(counts, NUMBER, metric, seed=1)
        assert got.value == NUMBER.metrics(counts)[metric]
        assert math.isnan(got.low)
        assert "not in the counts" in got.method


# --- differences


def two_models(persons: int, seed: int, better: float = 0.0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    y = rng.random(persons) < 0.4
    common = rng.normal(0, 1, persons) + y
    return y.astype(int), common + rng.normal(0, 0.7, persons) + better * y, common + rng.normal(0, 0.7, persons)


def direct_delong(y: Any, a: Any, b: Any) -> tuple[float, float]:
    """The paper's own sums over all pairs."""
    psi = [np.where(s[y == 1][:, None] > s[y == 0], 1.0, np.where(s[y == 1][:, None] == s[y == 0], 0.5, 0.0)) for s in (a, b)]
    d = psi[0] - psi[1]
    return float(d.mean()), float(d.mean(1).var(ddof=1) / d.shape[0] + d.mean(0).var(ddof=1) / d.shape[1])


@given(st.integers(8, 60), st.integers(0, 999), st.booleans())
def test_delong_equals_the_papers_sums(persons: int, seed: int, ties: bool) -> None:
    y, a, b = two_models(persons, seed)
    y[:4] = [0, 0, 1, 1]
    a, b = (np.round(a), np.round(b)) if ties else (a, b)
    got, (value, variance) = delong(y, a, b), direct_delong(y, a, b)
    assert got.value == pytest.approx(value, abs=1e-12)
    assert got.value == pytest.approx(sk.roc_auc_score(y, a) - sk.roc_auc_score(y, b), abs=1e-12)
    assert got.high - got.low == pytest.approx(2 * 1.959963984540054 * math.sqrt(variance), abs=1e-9)
    if variance > 1e-12:
        assert got.p == pytest.approx(2 * stats.norm.sf(abs(value) / math.sqrt(variance)), abs=1e-9)
    turned = delong(y, b, a)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-got.value, -got.high, -got.low), abs=1e-12)


def test_the_paired_interval_is_narrower_than_the_unpaired_and_agrees_with_delong() -> None:
    y, a, b = two_models(400, 3, better=0.5)
    site = np.repeat([0, 1, 2, 3], [190, 200, 6, 4])
    paired = paired_bootstrap(statistic("auroc", y, expit(a)), statistic("auroc", y, expit(b)), 400, site=site, seed=1)
    exact = delong(y, a, b)
    apart = unpaired(*(interval(counts_of(s, y), TWO, "auroc", seed=1) for s in (a, b)))
    assert paired.value == pytest.approx(exact.value, abs=1e-12)
    assert apart.value == pytest.approx(exact.value, abs=2e-3)
    assert (paired.low, paired.high) == pytest.approx((exact.low, exact.high), abs=0.1 * (exact.high - exact.low))
    weaker, other = two_models(400, 4, better=0.05)[:2], two_models(400, 4)[2]
    p = paired_bootstrap(statistic("auroc", weaker[0], expit(weaker[1])), statistic("auroc", weaker[0], expit(other)), 400, seed=2).p
    assert 0.1 < p == pytest.approx(delong(weaker[0], weaker[1], other).p, rel=0.2)
    assert apart.high - apart.low > 1.2 * (paired.high - paired.low)
    assert max(paired.p, exact.p) < 0.05
    assert paired == paired_bootstrap(statistic("auroc", y, expit(a)), statistic("auroc", y, expit(b)), 400, site=site, seed=1)


@pytest.mark.parametrize("metric", ["auroc", "accuracy", "brier", "log_loss", "balanced_accuracy", "sensitivity", "specificity"])
def test_a_statistic_of_drawn_persons_is_sklearns_of_them(metric: str) -> None:
    y, a, _ = two_models(80, 5)
    p = expit(np.round(a, 1))
    drawn = np.random.default_rng(0).multinomial(80, np.full(80, 1 / 80), size=5)
    direct: dict[str, Callable[[Any, Any], float]] = {
        "auroc": sk.roc_auc_score,
        "brier": sk.brier_score_loss,
        "log_loss": sk.log_loss,
        "accuracy": lambda t, q: sk.accuracy_score(t, q > 0.5),
        "balanced_accuracy": lambda t, q: sk.balanced_accuracy_score(t, q > 0.5),
        "sensitivity": lambda t, q: sk.recall_score(t, q > 0.5),
        "specificity": lambda t, q: sk.recall_score(t, q > 0.5, pos_label=0),
    }
    for weight, got in zip(drawn, statistic(metric, y, p)(drawn), strict=True):
        at = np.repeat(np.arange(80), weight)
        assert got == pytest.approx(direct[metric](y[at], p[at]), abs=1e-12)
    np.testing.assert_allclose(statistic(metric, y, np.stack([1 - p, p], 1))(drawn), statistic(metric, y, p)(drawn), rtol=1e-12)


def test_statistics_of_errors_values_and_several_classes() -> None:
    z, y = classes_of(60, 2)
    p, truth = torch.softmax(z, 1).numpy(), y.numpy().astype(int)
    once = np.ones((1, 60), dtype=int)
    for metric in ("auroc", "accuracy", "brier", "log_loss", "balanced_accuracy"):
        assert statistic(metric, truth, p)(once)[0] == pytest.approx(
            THREE.metrics(THREE.counts(z, y))[metric], abs=1e-2 if metric == "auroc" else 1e-12
        )
    target, guess = np.arange(60.0), np.arange(60.0) + np.random.default_rng(1).normal(1, 2, 60)
    assert statistic("rmse", target, guess)(once)[0] == pytest.approx(sk.root_mean_squared_error(target, guess))
    assert statistic("mae", target, guess)(once)[0] == pytest.approx(sk.mean_absolute_error(target, guess))
    dice = np.where(np.arange(60) % 7, 0.8, np.nan)
    assert statistic("mean", [], dice)(once)[0] == pytest.approx(0.8)
    with pytest.raises(ValueError, match="no metric"):
        statistic("sensitivity", truth, p)


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_a_model_does_not_differ_from_itself(seed: int) -> None:
    y, a, _ = two_models(50, seed)
    y[:4] = [0, 0, 1, 1]
    same = statistic("auroc", y, expit(a))
    for got in (paired_bootstrap(same, same, 50, seed=seed, draws=50), delong(y, a, a), over_seeds([0.0, 0.0])):
        assert (got.value, got.low, got.high, got.p) == (0, 0, 0, 1)


@pytest.mark.long
def test_paired_intervals_cover_and_tests_keep_their_level() -> None:
    """Two equally good models, 500 cohorts: 95 % of intervals hold 0, 5 % of tests reject."""
    kept: dict[str, list[bool]] = {"bootstrap": [], "p": [], "delong": [], "unpaired": []}
    for k in range(500):
        y, a, b = two_models(150, 7000 + k)
        got = paired_bootstrap(statistic("auroc", y, expit(a)), statistic("auroc", y, expit(b)), 150, seed=k, draws=1000)
        kept["bootstrap"].append(got.low <= 0 <= got.high)
        kept["p"].append(got.p >= 0.05)
        kept["delong"].append(delong(y, a, b).p >= 0.05)
        apart = unpaired(*(interval(counts_of(s, y), TWO, "auroc", seed=k, draws=500) for s in (a, b)))
        kept["unpaired"].append(apart.low <= 0 <= apart.high)
    share = {name: float(np.mean(v)) for name, v in kept.items()}
    assert all(0.93 <= share[name] <= 0.97 for name in ("bootstrap", "p", "delong")), share
    assert share["unpaired"] >= 0.97, share


def test_seeds_have_a_paired_t() -> None:
    a, b = [0.85, 0.84, 0.86, 0.83], [0.83, 0.835, 0.84, 0.82]
    exact = stats.ttest_rel(a, b)
    got = over_seeds(np.subtract(a, b).tolist())
    assert (got.value, got.p) == pytest.approx((np.mean(a) - np.mean(b), exact.pvalue))
    assert (got.low, got.high) == pytest.approx(tuple(exact.confidence_interval(0.95)))
    assert math.isnan(over_seeds([0.1]).low)
    assert math.isnan(over_seeds([]).value)


def test_seeds_that_split_anew_share_training_persons() -> None:
    """Nadeau and Bengio 2003: 1 / runs + test / train in place of 1 / runs."""
    gaps = [0.02, 0.01, 0.03, 0.015, 0.0]
    plain, corrected = over_seeds(gaps), over_seeds(gaps, overlap=0.25)
    wider = math.sqrt((1 / 5 + 0.25) / (1 / 5))
    assert corrected.value == plain.value
    assert corrected.high - corrected.value == pytest.approx(wider * (plain.high - plain.value), rel=1e-12)
    assert corrected.p == pytest.approx(2 * stats.t.sf(stats.t.isf(plain.p / 2, 4) / wider, 4), rel=1e-9)
    assert "Nadeau and Bengio" in corrected.method


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_adjusted_p_values_are_statsmodels(p: list[float]) -> None:
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist(), abs=1e-12)
    assert holm([*p, None, math.nan])[-2:] == [None, None]
    assert holm([None]) == [None]


def test_too_few_of_a_class_have_a_difference_and_no_test() -> None:
    y, a, b = two_models(200, 9)
    y[:] = np.arange(200) < 14
    ways = [statistic("auroc", y, expit(s)) for s in (a, b)]
    got = paired_bootstrap(*ways, 200, seed=1, of=People(y))
    assert got.value == pytest.approx(sk.roc_auc_score(y, a) - sk.roc_auc_score(y, b), abs=1e-12)
    assert math.isnan(got.p)
    assert math.isnan(got.low)
    assert got.method == "none: fewer than 15 persons of a class"
    y[14] = 1
    ways = [statistic("auroc", y, expit(s)) for s in (a, b)]
    enough = paired_bootstrap(*ways, 200, seed=1, of=People(y))
    assert enough.method.startswith("paired bootstrap, t with ")
    assert 0 < enough.p <= 1
    pairs = np.arange(200) // 2
    few = paired_bootstrap(*ways, 200, seed=1, of=People(y, pairs))
    assert few.method == "none: fewer than 15 clusters of persons of a class", "15 cases in 8 pairs"
    with pytest.raises(ValueError, match="clusters"):
        paired_bootstrap(*ways, 200, seed=1, of=People(y, pairs[:5]))


def test_clusters_are_drawn_whole_and_their_spread_is_that_of_their_sums() -> None:
    """Each person three times: the interval is that of the persons, once each, and without clusters it is too narrow."""
    rng = np.random.default_rng(3)
    gaps = rng.normal(0.05, 0.2, 60)
    three, cluster = np.repeat(gaps, 3), np.repeat(np.arange(60), 3)
    zero = statistic("mean", [], np.zeros(180))
    whole = paired_bootstrap(statistic("mean", [], three), zero, 180, seed=1, of=People(None, cluster))
    once = paired_bootstrap(statistic("mean", [], gaps), statistic("mean", [], np.zeros(60)), 60, seed=1)
    apart = paired_bootstrap(statistic("mean", [], three), zero, 180, seed=1)
    exact = stats.t.interval(0.95, 59, gaps.mean(), stats.sem(gaps))
    assert (whole.low, whole.high) == pytest.approx((once.low, once.high), abs=1e-12)
    assert (whole.low, whole.high) == pytest.approx(exact, abs=0.05 * (exact[1] - exact[0]))
    assert apart.high - apart.low == pytest.approx((whole.high - whole.low) / math.sqrt(3), rel=0.05)


def test_what_does_not_belong_together_is_refused() -> None:
    y, a, b = two_models(30, 1)
    with pytest.raises(ValueError, match="persons"):
        delong(y, a[:5], b[:5])
    with pytest.raises(ValueError, match="sites"):
        paired_bootstrap(statistic("auroc", y, a), statistic("auroc", y, b), 30, seed=1, site=[0, 1])
    with pytest.raises(ValueError, match="level"):
        unpaired(Interval(0.5, 0.4, 0.6, 0.95, ""), Interval(0.5, 0.4, 0.6, 0.9, ""))
