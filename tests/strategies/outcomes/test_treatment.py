"""Treatments compared over sites are those compared over the pooled persons: scores, balance, weighted differences, robust errors."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch
from scipy.stats import norm

from fedml.analytics.treatment import e_value
from fedml.errors import InputError, RunError
from tests.outcomes import Drawn, gates_of, run_job, study_of, write_sites

REAL = '[policy]\ncentre = "curious"\nmin_persons = 20\nmin_count = 5\n'
PLAN = {"column": "arm", "covariates": ["age", "sex", "stage"]}


def confounded(folder: Path, drawn: Drawn, random: np.random.Generator) -> pd.DataFrame:
    """Sites whose older persons and those of the second site get B more often; returns the pooled persons."""
    pooled = write_sites(folder, drawn)
    log_odds = 0.07 * (pooled.age - 60) + 0.5 * (pooled.stage == "III") - 0.4 * pooled.sex + 0.5 * (pooled.site == 1)
    pooled["arm"] = np.where(random.random(len(pooled)) < 1 / (1 + np.exp(-log_odds)), "B", "A")
    rewrite(folder, pooled)
    return pooled


@pytest.mark.long
def test_intervals_cover_the_true_effect_and_the_crude_ones_do_not(tmp_path: Path) -> None:
    """200 federations of three sites with an effect of 0.5 in everyone, which is the effect in the treated too."""
    drawn, estimands, found = Drawn(persons=(150, 100, 200)), ("ate", "att"), list[list[list[float]]]()
    for number in range(200):
        random, folder = np.random.default_rng([7, number]), tmp_path / str(number)
        pooled = confounded(folder, replace(drawn, seed=number), random)
        for site, own in pooled.groupby("site"):
            path = folder / "sites" / f"s{site}" / "persons.csv"
            mean = 0.5 * (own.arm == "B") + 0.05 * (own.age - 60) + 0.5 * (own.stage == "III") + 0.3 * site
            pd.read_csv(path).assign(y=(mean + random.normal(size=len(own))).to_numpy()).to_csv(path, index=False)
        rows = []
        for estimand in estimands:
            study = study_of(drawn, task="regression", target="y", treatment={**PLAN, "estimand": estimand})
            result = run_job(study, folder, folder / estimand, "glm")["treatment"]
            rows.append([result[kind][key] for kind in ("weighted", "crude") for key in ("estimate", "error", "lower", "upper")])
        found.append(rows)
        shutil.rmtree(folder)
    results = np.array(found).transpose(1, 2, 0)  # (estimands, numbers, federations)
    for estimand, (estimate, error, lower, upper, _, _, crude_lower, crude_upper) in zip(estimands, results, strict=True):
        covered, crude = ((low <= 0.5) & (high >= 0.5) for low, high in ((lower, upper), (crude_lower, crude_upper)))
        print(estimand, covered.mean(), crude.mean(), estimate.mean(), estimate.std(), error.mean())
        assert 0.91 <= covered.mean() <= 0.985  # of 200, within 2.6 standard errors of 0.95
        assert crude.mean() < 0.2
        assert abs(estimate.mean() - 0.5) < 4 * estimate.std() / np.sqrt(len(estimate))


def rewrite(folder: Path, pooled: pd.DataFrame) -> None:
    for site, own in pooled.groupby("site"):
        path = folder / "sites" / f"s{site}" / "clinical.csv"
        pd.read_csv(path).assign(arm=own.arm.to_numpy(), cell=own.cell.to_numpy()).to_csv(path, index=False)


def stacked(x: Any, treated: Any, y: Any, estimand: str, trim: float) -> tuple[Any, Any]:
    """Both weighted means of the pooled persons and their covariance: the sandwich of the estimating equations of the score and the means,
    one row a person, with derivatives by automatic differentiation."""
    fit = sm.GLM(treated, x, family=sm.families.Binomial()).fit(tol=1e-15, maxiter=200)
    kept = torch.from_numpy((fit.fittedvalues >= trim) & (fit.fittedvalues <= 1 - trim))
    t, out, columns = (torch.from_numpy(np.array(each)) for each in (treated, y, x))

    def rows(theta: torch.Tensor) -> torch.Tensor:
        p = torch.sigmoid(columns @ theta[2:])
        weight = {"ate": t / p + (1 - t) / (1 - p), "att": t + (1 - t) * p / (1 - p), "overlap": t * (1 - p) + (1 - t) * p}[estimand] * kept
        equations = [(1 - t) * weight * (out - theta[0]), t * weight * (out - theta[1])]
        return torch.hstack([torch.stack(equations, 1), columns * (t - p)[:, None]])

    start = torch.from_numpy(np.concatenate([[0.0, 0.0], fit.params]))
    slope = torch.autograd.functional.jacobian(lambda theta: rows(theta).sum(0), start).numpy()
    means = -rows(start).sum(0).numpy()[:2] / np.diag(slope)[:2]  # the equations of the means are linear
    at = torch.from_numpy(np.concatenate([means, fit.params]))
    bread = np.linalg.inv(torch.autograd.functional.jacobian(lambda theta: rows(theta).sum(0), at).numpy())
    each = rows(at).numpy()
    return means, (bread @ (each.T @ each) @ bread.T)[:2, :2]


def design(pooled: pd.DataFrame, *, each: bool) -> Any:
    own = [(pooled.site == s) for s in sorted(set(pooled.site))] if each else [np.ones(len(pooled))]
    return np.column_stack([*own, pooled.age, pooled.sex, pooled.stage == "II", pooled.stage == "III"]).astype(float)


@pytest.mark.parametrize(
    ("task", "estimand", "trim", "intercept"),
    [("regression", "ate", 0.0, "site"), ("classification", "att", 0.2, "one"), ("classification", "overlap", 0.0, "site"),
     ("regression", "ate", 0.15, "one")],
)  # fmt: skip
def test_the_comparison_is_that_of_the_pooled_persons(tmp_path: Path, task: str, estimand: str, trim: float, intercept: str) -> None:
    pooled = confounded(tmp_path, Drawn(), np.random.default_rng(5))
    target = "y" if task == "regression" else "b"
    study = study_of(task=task, target=target, treatment={**PLAN, "estimand": estimand, "trim": trim, "intercept": intercept})
    found = run_job(study, tmp_path, tmp_path / "run", "glm")["treatment"]
    treated, y = (pooled.arm == "B").to_numpy(float), pooled[target].to_numpy(float)
    score = sm.GLM(treated, design(pooled, each=intercept == "site"), family=sm.families.Binomial()).fit(tol=1e-15, maxiter=200)
    np.testing.assert_allclose([row["estimate"] for row in found["propensity"]], score.params, rtol=1e-8)
    np.testing.assert_allclose([row["model"]["error"] for row in found["propensity"]], score.bse, rtol=1e-8)
    p = score.fittedvalues
    kept = (p >= trim) & (p <= 1 - trim)
    weight = {"ate": treated / p + (1 - treated) / (1 - p), "att": treated + (1 - treated) * p / (1 - p),
              "overlap": treated * (1 - p) + (1 - treated) * p}[estimand] * kept  # fmt: skip
    x = sm.add_constant(treated)
    reference = sm.WLS(y, x, weights=weight).fit(cov_type="HC0")
    weighted_means, both = stacked(design(pooled, each=intercept == "site"), treated, y, estimand, trim)
    error = float(np.sqrt(both[0, 0] + both[1, 1] - 2 * both[0, 1]))
    own = found["weighted"]
    assert (own["estimate"], own["error"]) == (pytest.approx(reference.params[1], rel=1e-8), pytest.approx(error, rel=1e-8))
    assert own["estimate"] == pytest.approx(weighted_means[1] - weighted_means[0], rel=1e-8)
    assert own["p"] == pytest.approx(2 * norm.sf(abs(weighted_means[1] - weighted_means[0]) / error), rel=1e-6)
    np.testing.assert_allclose(
        [own["lower"], own["upper"]], weighted_means[1] - weighted_means[0] + np.array([-1, 1]) * norm.ppf(0.975) * error, rtol=1e-7
    )
    np.testing.assert_allclose([arm["error"] for arm in found["arms"]], np.sqrt(np.diag(both)), rtol=1e-8)
    crude = sm.OLS(y, x).fit(cov_type="HC0")
    assert (found["crude"]["estimate"], found["crude"]["error"]) == (pytest.approx(crude.params[1]), pytest.approx(crude.bse[1]))
    for arm, value in zip(found["arms"], (0, 1), strict=True):
        there = weight[treated == value]
        assert arm["effective"] == pytest.approx(there.sum() ** 2 / (there**2).sum(), rel=1e-8)
        assert (arm["persons"], arm["trimmed"]) == (len(there), (there == 0).sum())
    assert trim == 0 or found["arms"][1]["trimmed"] > 0
    by_column = {row["column"]: row for row in found["balance"]}
    for name, values in (("age", pooled.age), ("stage=III", (pooled.stage == "III").astype(float))):
        spread = np.sqrt((values[treated == 1].var(ddof=0) + values[treated == 0].var(ddof=0)) / 2)
        for when, w in (("before", np.ones(len(pooled))), ("after", weight)):
            means = [np.average(values[treated == v], weights=w[treated == v]) for v in (0, 1)]
            assert by_column[name][f"control_{when}"] == pytest.approx(means[0], rel=1e-8)
            assert by_column[name][f"smd_{when}"] == pytest.approx((means[1] - means[0]) / spread, rel=1e-7, abs=1e-8)
    assert abs(by_column["age"]["smd_before"]) > 0.3 > 0.25 > abs(by_column["age"]["smd_after"])
    if estimand == "overlap":  # balances the columns of a logistic model exactly (Li, Morgan and Zaslavsky 2018, theorem 3)
        np.testing.assert_allclose([row["smd_after"] for row in found["balance"]], 0, atol=1e-8)
    if task == "classification":
        log = sm.GLM(y[kept], x[kept], family=sm.families.Poisson(), var_weights=weight[kept]).fit(cov_type="HC0", tol=1e-14)
        assert np.log(found["ratio"]["estimate"]) == pytest.approx(log.params[1], rel=1e-8)
        by = np.array([-1, 1]) / weighted_means
        assert found["ratio"]["log_error"] == pytest.approx(np.sqrt(by @ both @ by), rel=1e-7)
    else:
        within = np.concatenate([y[treated == v] - y[treated == v].mean() for v in (0, 1)])
        sd = np.sqrt((within**2).sum() / (len(y) - 2))
        assert found["ratio"]["estimate"] == pytest.approx(np.exp(0.91 * reference.params[1] / sd), rel=1e-8)
    for name in ("treatment.tsv", "balance.tsv", "propensity.tsv", "outcomes.html"):
        assert (tmp_path / "run" / name).read_text()


def test_e_values_are_those_of_the_paper() -> None:
    """VanderWeele and Ding 2017: a risk ratio of 3.9 (1.8 to 8.7) has 7.26 and 3.0; ratios below 1 are turned."""
    found = e_value(3.9, 1.8, 8.7)
    assert (round(found["estimate"], 2), round(found["limit"], 1)) == (7.26, 3.0)
    assert e_value(1 / 3.9, 1 / 8.7, 1 / 1.8) == {key: pytest.approx(value) for key, value in found.items()}
    assert e_value(1.2, 0.9, 1.6)["limit"] == 1.0


def test_a_large_mean_costs_no_digits(tmp_path: Path) -> None:
    """The sums of squares are asked for about the means."""
    pooled = confounded(tmp_path, Drawn(), np.random.default_rng(5))
    study = study_of(task="regression", target="y", treatment=PLAN)
    near = run_job(study, tmp_path, tmp_path / "near", "glm")["treatment"]
    for site in range(3):
        path = tmp_path / "sites" / f"s{site}" / "persons.csv"
        table = pd.read_csv(path)
        table.assign(y=table.y + 2.0**20).to_csv(path, index=False)
    far = run_job(study, tmp_path, tmp_path / "far", "glm")["treatment"]
    assert len(pooled) == sum(far["sites"].values())
    assert far["weighted"]["error"] == pytest.approx(near["weighted"]["error"], rel=1e-6)  # the table's numbers have 16 digits


def test_through_gates_the_result_is_the_local_one_and_small_treatments_are_refused(tmp_path: Path) -> None:
    drawn = Drawn(persons=(400, 320, 500), policy=REAL)
    pooled = confounded(tmp_path, drawn, np.random.default_rng(6))
    study = study_of(drawn, task="classification", target="b", treatment=PLAN)
    local = run_job(study, tmp_path, tmp_path / "local", "glm")
    assert run_job(study, tmp_path, tmp_path / "gated", "glm", gates_of(study, tmp_path)) == local
    assert (tmp_path / "gated" / "outcomes.html").read_bytes() == (tmp_path / "local" / "outcomes.html").read_bytes()
    there = pooled.index[pooled.site == 1]
    pooled.loc[there, "arm"] = "A"
    pooled.loc[there[:3], "arm"] = "B"  # a treatment of three persons
    rewrite(tmp_path, pooled)
    few = study_of(drawn, name="few", task="classification", target="b", treatment=PLAN)
    with pytest.raises(RunError, match=r"s1 did not answer \(too-few-persons\)"):
        run_job(few, tmp_path, tmp_path / "few", "glm", gates_of(few, tmp_path, run=2))
    journal = (tmp_path / "sites" / "s1" / ".fedml" / "journal.jsonl").read_text().splitlines()
    assert '"too-few-persons"' in journal[-1]


def test_trimming_that_would_tell_of_few_persons_is_refused(tmp_path: Path) -> None:
    drawn = Drawn(persons=(240, 190, 310), policy=REAL)
    pooled = confounded(tmp_path, drawn, np.random.default_rng(6))
    treated = (pooled.arm == "B").to_numpy(float)
    p = sm.GLM(treated, design(pooled, each=True), family=sm.families.Binomial()).fit().fittedvalues
    own = np.sort(p[(pooled.site == 0) & (treated == 0)])
    cut = float((own[1] + own[2]) / 2)  # two persons of the first site are below
    study = study_of(drawn, task="classification", target="b", treatment={**PLAN, "trim": cut})
    with pytest.raises(RunError, match=r"did not answer \(too-few-persons\)"):
        run_job(study, tmp_path, tmp_path / "run", "glm", gates_of(study, tmp_path))


def test_a_covariate_that_separates_the_treatments_is_named(tmp_path: Path) -> None:
    pooled = confounded(tmp_path, Drawn(), np.random.default_rng(5))
    rewrite(tmp_path, pooled.assign(cell=np.where(pooled.arm == "B", "y", "x")))
    study = study_of(task="regression", target="y", treatment={**PLAN, "covariates": ["age", "cell"]})
    with pytest.raises(RunError, match=r"the propensity model cannot be estimated: .*cell=y separates"):
        run_job(study, tmp_path, tmp_path / "run", "glm")
    rewrite(tmp_path, pooled.assign(arm=np.where(pooled.site == 1, "A", pooled.arm)))
    study = study_of(task="regression", target="y", treatment=PLAN)
    with pytest.raises(RunError, match=r"\(intercept\) s1 separates"):
        run_job(study, tmp_path, tmp_path / "one", "glm")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"column": "arn"}, "categories does not list"), ({"column": "stage", "covariates": ["age"]}, "levels must name two levels of stage"),
     ({"levels": ["A", "C"]}, 'levels names "C"'), ({"covariates": ["arm"]}, "names the treatment itself"),
     ({"covariates": ["agee"]}, 'covariates names "agee"'), ({"estimand": "overlap", "trim": 0.1}, "trim is not built"),
     ({"levels": ["A", "A"]}, "the same level twice")],
)  # fmt: skip
def test_what_a_study_cannot_ask_for_is_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        study_of(task="regression", target="y", treatment={**PLAN, **change})


def test_other_analyses_need_their_own_study() -> None:
    with pytest.raises(InputError, match=r"\[treatment\] and \[glm\] are not built in one study"):
        study_of(task="regression", target="y", treatment=PLAN, glm={"covariates": ["age"]})
    with pytest.raises(InputError, match=r"\[treatment\] needs a number, two classes or a time"):
        study_of(task="count", target="count", treatment=PLAN)
