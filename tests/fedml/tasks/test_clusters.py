"""Design effects: Obuchowski's and the cluster-robust variance, hidden where few persons are behind them, refused where impossible."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import statsmodels.api as sm
import torch
from scipy import stats
from scipy.special import expit

from fedml.errors import InputError
from fedml.tasks.clusters import (
    CLUSTERS,
    DESIGN,
    Effect,
    auroc_influence,
    design_counts,
    design_fields,
    effect_of,
    hidden,
    implausible,
    measures_of,
    widened,
)
from fedml.tasks.counts import Counts, add_counts
from fedml.tasks.interval_tools import Interval
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task
from tests.conftest import make_study

STUDY = make_study(cohort__cluster="family")
TASK = make_task(STUDY)


def families(seed: int, count: int = 40, size: int = 4) -> tuple[Any, Any, npt.NDArray[np.int64]]:
    """Log-odds, cases and family: alike within a family."""
    rng = np.random.default_rng(seed)
    family = np.repeat(np.arange(count), size)
    case = rng.normal(0, 1, count)[family] + rng.normal(0, 1, count * size) > 0.6
    return rng.normal(0, 1, count)[family] + rng.normal(0, 1, count * size) + case, case, family


def counts_of(z: Any, case: Any, family: npt.NDArray[np.int64]) -> Counts:
    logits = torch.stack([torch.zeros(len(z), dtype=torch.float64), torch.from_numpy(z)], 1)
    counts = TASK.counts(logits, torch.from_numpy(case.astype(np.float32)))
    return counts | design_counts("classes", torch.softmax(logits, 1).numpy(), case.astype(float), family)


def effect(counts: Counts, name: str) -> float:
    at = measures_of("classes").index(name)
    return float(counts[DESIGN][0, at] / counts[DESIGN][1, at])


def test_of_the_auroc_it_is_obuchowskis_sums() -> None:
    z, case, family = families(1)
    z = np.round(z, 1)
    psi = (z[case][:, None] > z[~case]) + 0.5 * (z[case][:, None] == z[~case])
    area, (m, n) = psi.mean(), psi.shape
    own, other = psi.mean(1) - area, psi.mean(0) - area
    sums = [np.bincount(family[side], weights=values, minlength=40) for side, values in ((case, own), (~case, other))]
    together = 40 / 39 * float(((sums[0] / m + sums[1] / n) ** 2).sum())
    apart = 160 / 159 * float((own**2).sum() / m**2 + (other**2).sum() / n**2)
    assert effect(counts_of(z, case, family), "auroc") == pytest.approx(together / apart, rel=1e-9)
    # Obuchowski 1997, equations 4 to 7: sums over clusters with a case, with another, and their product.
    has = [np.bincount(family[side], minlength=40) > 0 for side in (case, ~case)]
    parts = [k.sum() / ((k.sum() - 1) * size**2) * float((s**2).sum()) for k, s, size in zip(has, sums, (m, n), strict=True)]
    paper = sum(parts) + 2 * 40 / (39 * m * n) * float((sums[0] * sums[1]).sum())
    assert together == pytest.approx(paper, rel=0.02)
    influence = auroc_influence(case, z)
    assert influence is not None
    assert influence.mean() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["accuracy", "brier", "log_loss", "sensitivity", "specificity"])
def test_of_a_mean_it_is_the_cluster_robust_variance_of_statsmodels(name: str) -> None:
    z, case, family = families(2)
    p = expit(z)
    value = {"accuracy": (z > 0) == case, "brier": (p - case) ** 2, "log_loss": np.logaddexp(0, np.where(case, -z, z))}
    value |= {"sensitivity": z > 0, "specificity": z <= 0}
    among = {"sensitivity": case, "specificity": ~case}.get(name, np.ones(len(z), dtype=bool))
    fitted = sm.OLS(value[name][among].astype(float), np.ones(among.sum()))
    together = float(fitted.fit(cov_type="cluster", cov_kwds={"groups": family[among]}).cov_params()[0, 0])
    inside = len(np.unique(family[among]))
    together *= (inside - 1) / inside * 40 / 39  # all families in the divisor
    apart = float(fitted.fit(cov_type="HC0").cov_params()[0, 0]) * len(z) / (len(z) - 1)
    assert effect(counts_of(z, case, family), name) == pytest.approx(max(together / apart, 1.0), rel=1e-9)


def test_f1_is_linearised() -> None:
    """Its influence is the derivative: what leaving out a person changes, times the persons."""
    z, case, family = families(3)
    whole = counts_of(z, case, family)
    f1 = TASK.metrics(whole)["f1"]
    from fedml.tasks.clusters import _INFLUENCE

    influence = _INFLUENCE["classes"](np.stack([expit(-z), expit(z)], 1), case.astype(float))
    at = measures_of("classes").index("f1")
    for k in (0, 5, 77):
        less = np.delete(np.arange(len(z)), k)
        without = TASK.metrics(counts_of(z[less], case[less], family[less]))["f1"]
        found = influence[at]
        assert found is not None
        assert (len(z) - 1) * (f1 - without) == pytest.approx(found[k], abs=0.02)


def test_numbers_and_masks_have_theirs() -> None:
    rng = np.random.default_rng(4)
    family = np.repeat(np.arange(20), 3)
    error = rng.normal(0, 1, 20)[family] + rng.normal(0, 1, 60)
    found = design_counts("number", error, np.zeros(60), family)
    fitted = sm.OLS(error, np.ones(60))
    together = float(fitted.fit(cov_type="cluster", cov_kwds={"groups": family}).cov_params()[0, 0])
    apart = float(fitted.fit(cov_type="HC0").cov_params()[0, 0]) * 60 / 59
    assert found[DESIGN][0, 1] / 60 == pytest.approx(together / apart, rel=1e-9)
    dice = np.clip(0.7 + 0.1 * error[:, None] + rng.normal(0, 0.02, (60, 2)), 0, 1)
    dice[:5, 1] = np.nan
    assert design_counts("mask", dice, np.zeros(60), family)[DESIGN][0, 0] / 60 > 1.3


def test_persons_alone_have_an_effect_of_one() -> None:
    z, case, _ = families(5)
    counts = counts_of(z, case, np.arange(160))
    assert np.allclose(counts[DESIGN][0][counts[DESIGN][2] > 0], 160.0)
    plain = make_task(make_study())
    for name in ("auroc", "accuracy", "log_loss"):
        wide, narrow = (interval(counts, task, name, seed=1) for task in (TASK, plain))
        assert wide.high - wide.low == pytest.approx(narrow.high - narrow.low, rel=0.02), "t in place of the normal"


def test_an_interval_is_widened_on_its_scale() -> None:
    factor = math.sqrt(2.25) * stats.t.ppf(0.975, 30) / stats.norm.ppf(0.975)
    for low, value, high, bounds, log, to in (
        (0.7, 0.8, 0.88, (0.0, 1.0), False, lambda p: math.log(p / (1 - p))),
        (0.3, 0.4, 0.6, None, True, math.log),
        (-1.0, 0.2, 1.5, None, False, float),
    ):
        got = widened(Interval(value, low, high, 0.95, "x"), Effect(2.25, 30), bounds, log=log)
        assert to(got.low) == pytest.approx(to(value) + factor * (to(low) - to(value)), rel=1e-9)
        assert to(got.high) == pytest.approx(to(value) + factor * (to(high) - to(value)), rel=1e-9)
        assert got.method == "x; clusters, design effect 2.25"
    edge = widened(Interval(1.0, 0.8, 1.0, 0.95, "x"), Effect(2.25, 30), (0.0, 1.0))
    assert (edge.low, edge.high) == (pytest.approx(1 - 0.2 * factor**2), 1.0)


def test_a_site_that_does_not_tell_leaves_no_interval() -> None:
    one, other = counts_of(*families(6)), counts_of(*families(7))
    both = interval([one, other], TASK, "auroc", seed=1)
    assert "design effect" in both.method
    found = effect_of([one, other], "auroc")
    assert found is not None
    assert found.design == pytest.approx((effect(one, "auroc") + effect(other, "auroc")) / 2)
    assert found.free == 78
    merged = effect_of([add_counts([one, other])], "auroc")
    assert merged == found
    silent = {**other, DESIGN: np.zeros_like(other[DESIGN])}
    got = interval([one, silent], TASK, "auroc", seed=1)
    assert math.isnan(got.low)
    assert got.method.startswith("none: persons are clustered")
    missing = [{k: v for k, v in c.items() if k not in (DESIGN, CLUSTERS)} for c in (one, other)]
    assert math.isnan(interval(missing, TASK, "auroc", seed=1).low), "older sites say nothing of clusters"
    assert interval(missing, TASK, "auroc", seed=1).value == both.value


def test_few_clusters_or_few_relatives_are_hidden() -> None:
    z, case, family = families(8)
    counts = counts_of(z, case, family)
    told = hidden(counts, np.full(40, 4), 5)
    each = told[DESIGN][0][told[DESIGN][1] > 0] / told[DESIGN][1][told[DESIGN][1] > 0]
    exact = counts[DESIGN][0][told[DESIGN][1] > 0] / 160
    assert np.allclose(each * 20, np.round(each * 20))
    assert ((each >= exact - 1e-9) & (each < exact + 0.051)).all()
    assert told[CLUSTERS][0] == 40
    assert hidden(counts_of(z, case, family), np.full(40, 4), 7)[CLUSTERS][0] == 35
    assert not hidden(counts, np.full(4, 40), 5)[DESIGN].any()
    # Two relatives among 160 persons: as if there were none.
    pair = np.arange(160)
    pair[1] = 0
    alone = hidden(counts_of(z, case, pair), np.r_[2, np.ones(158, dtype=int)], 5)
    assert np.allclose(alone[DESIGN][0], alone[DESIGN][1])
    # Three cases: nothing about them, not even through the design effect of their AUROC.
    few = np.arange(160) < 3
    rare = hidden(counts_of(z, few, family), np.full(40, 4), 5)
    assert [n for n, x in zip(measures_of("classes"), rare[DESIGN][1], strict=True) if x] == ["brier", "log_loss"]
    assert hidden(counts, np.full(40, 4), 1)[DESIGN].tolist() == counts[DESIGN].tolist(), "public persons"


def test_impossible_effects_are_named() -> None:
    honest = counts_of(*families(9))
    assert implausible(honest) == ""
    assert implausible(hidden(honest, np.full(40, 4), 5)) == ""
    wrong: list[tuple[str, Any]] = [
        ("below 1", {DESIGN: honest[DESIGN] * np.array([[0.5], [1], [1]])}),
        ("above the number", {DESIGN: honest[DESIGN] * np.array([[1e6], [1], [1]])}),
        ("other persons", {DESIGN: honest[DESIGN] * np.array([[1], [0.5], [1]])}),
        ("other persons", {DESIGN: honest[DESIGN] * np.array([[1], [1], [0]])}),
        ("more than persons", {CLUSTERS: np.array([161.0])}),
        ("more than persons", {CLUSTERS: np.array([-1.0])}),
    ]
    for text, change in wrong:
        assert text in implausible(honest | change), text


def test_what_clusters_are_not_built_for_is_refused() -> None:
    for change, text in (
        ({"model__task": "multilabel", "cohort__target": ["y", "z"]}, "cluster is not built"),
        ({"model__task": "count"}, "cluster is not built"),
        ({"cohort__target": "family"}, "same column"),
    ):
        with pytest.raises(InputError, match=text):
            make_study(cohort__cluster="family", **change)
    assert "cluster" not in make_study().canonical, "older studies keep their hash"
    assert design_fields("classes")[DESIGN][1] == (3, 9)
