"""`fedml glm` over sites is the regression of the pooled persons (statsmodels), and the meta-analysis that of the sites' own models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.optimize import minimize_scalar

from fedml.analytics.pooling import two_stage
from fedml.errors import RunError
from tests.outcomes import COVARIATES, Drawn, gates_of, run_job, study_of, write_sites

REAL = '[policy]\ncentre = "curious"\nmin_persons = 20\nmin_count = 5\n'
FAMILIES: dict[str, tuple[str, str, Any]] = {
    "regression": ("y", "gaussian", sm.families.Gaussian()), "classification": ("b", "binomial", sm.families.Binomial()),
    "count": ("count", "poisson", sm.families.Poisson()),
}  # fmt: skip


def design(pooled: pd.DataFrame) -> Any:
    own = [pooled.age, pooled.sex, pooled.arm == "B", pooled.stage == "II", pooled.stage == "III"]
    return np.column_stack(own).astype(float)


@pytest.mark.parametrize(("task", "intercept"), [("regression", "one"), ("classification", "site"), ("count", "site")])
def test_regressions_are_those_of_the_pooled_persons(tmp_path: Path, task: str, intercept: str) -> None:
    drawn = Drawn()
    pooled = write_sites(tmp_path, drawn)
    target, name, family = FAMILIES[task]
    more = {"exposure": "exposure"} if task == "count" else {}
    study = study_of(drawn, task=task, target=target, more=more, glm={"covariates": COVARIATES, "intercept": intercept})
    found = run_job(study, tmp_path, tmp_path / "run", "glm")["glm"]
    own = [(pooled.site == s).astype(float) for s in range(3)] if intercept == "site" else [np.ones(len(pooled))]
    x = np.column_stack([*own, design(pooled)])
    offset = {"offset": np.log(pooled.exposure)} if task == "count" else {}
    reference = sm.GLM(pooled[target], x, family=family, **offset).fit(tol=1e-14, maxiter=200)
    robust = sm.GLM(pooled[target], x, family=family, **offset).fit(tol=1e-14, maxiter=200, cov_type="HC0")
    rows = [*found["intercepts"], *found["coefficients"]]
    np.testing.assert_allclose([row["estimate"] for row in rows], reference.params, rtol=1e-8)
    np.testing.assert_allclose([row["model"]["error"] for row in rows], reference.bse, rtol=1e-8)
    np.testing.assert_allclose([row["robust"]["error"] for row in rows], robust.bse, rtol=1e-8)
    np.testing.assert_allclose(found["covariance"], reference.cov_params(), rtol=1e-7, atol=1e-13)
    if task != "regression":  # statsmodels takes the moment estimate of the variance into the likelihood
        assert found["log_likelihood"] == pytest.approx(reference.llf, rel=1e-10)
    assert found["family"] == name
    alone = found["alone"]["terms"]["age"]["sites"]["s2"]
    there = pooled[pooled.site == 2]
    single = {"offset": np.log(there.exposure)} if task == "count" else {}
    fit = sm.GLM(there[target], np.column_stack([np.ones(len(there)), design(there)]), family=family, **single).fit(tol=1e-14)
    assert alone["estimate"] == pytest.approx(fit.params.iloc[1], rel=1e-8)
    assert alone["error"] == pytest.approx(fit.bse.iloc[1], rel=1e-8)


def test_two_stages_are_those_of_their_definitions() -> None:
    """DerSimonian and Laird's and REML's variance between sites, Hartung and Knapp's error, the prediction interval."""
    y, error = np.array([0.3, -0.1, 0.8, 0.45, np.nan]), np.array([0.1, 0.2, 0.25, 0.15, 0.1])
    found = two_stage(y, error)
    assert found is not None
    assert found.sites == 4
    y, v = y[:4], error[:4] ** 2

    def restricted(between: float) -> float:
        w = 1 / (v + between)
        mean = (w * y).sum() / w.sum()
        return float(0.5 * (np.log(v + between).sum() + np.log(w.sum()) + (w * (y - mean) ** 2).sum()))

    best = minimize_scalar(restricted, bounds=(0, 2), method="bounded", options={"xatol": 1e-12}).x
    reml = found.random["reml"]
    assert reml.between == pytest.approx(best, rel=1e-5)
    combined = sm.stats.combine_effects(y, v, method_re="dl", use_t=True)
    dl = found.random["dersimonian_laird"]
    assert dl.between == pytest.approx(combined.tau2, rel=1e-10)
    assert dl.estimate == pytest.approx(combined.mean_effect_re, rel=1e-10)
    assert found.fixed.estimate == pytest.approx(combined.mean_effect_fe, rel=1e-10)
    assert (found.q, found.i2) == (pytest.approx(combined.q, rel=1e-10), pytest.approx(combined.i2, rel=1e-10))
    w = 1 / (v + reml.between)
    error_hk = np.sqrt((w * (y - reml.estimate) ** 2).sum() / 3 / w.sum())
    assert found.random["hartung_knapp"].error == pytest.approx(error_hk, rel=1e-12)
    assert found.prediction[0] < reml.lower < reml.upper < found.prediction[1]
    assert found.without[4] is None
    again = two_stage(np.delete(y, 2), np.sqrt(np.delete(v, 2)))
    assert again is not None
    assert found.without[2] is not None
    assert found.without[2].estimate == pytest.approx(again.random["reml"].estimate, rel=1e-12)


def test_through_gates_the_result_is_the_local_one_and_few_persons_are_refused(tmp_path: Path) -> None:
    drawn = Drawn(persons=(240, 190, 310), policy=REAL)
    write_sites(tmp_path, drawn)
    study = study_of(drawn, task="classification", target="b", glm={"covariates": ["age", "sex", "arm"]})
    local = run_job(study, tmp_path, tmp_path / "local", "glm")
    assert run_job(study, tmp_path, tmp_path / "gated", "glm", gates_of(study, tmp_path)) == local
    assert (tmp_path / "gated" / "outcomes.html").read_bytes() == (tmp_path / "local" / "outcomes.html").read_bytes()
    path = tmp_path / "sites" / "s1" / "clinical.csv"
    table = pd.read_csv(path)
    table.loc[table.index[3:], "cell"] = "x"
    table.loc[table.index[:3], "cell"] = "y"  # a level of three persons
    table.to_csv(path, index=False)
    few = study_of(drawn, name="few", task="classification", target="b", glm={"covariates": ["age", "cell"]})
    with pytest.raises(RunError, match=r"s1 did not answer \(too-few-persons\)"):
        run_job(few, tmp_path, tmp_path / "few", "glm", gates_of(few, tmp_path, run=2))
    journal = (tmp_path / "sites" / "s1" / ".fedml" / "journal.jsonl").read_text().splitlines()
    assert '"too-few-persons"' in journal[-1]


def test_a_covariate_that_separates_is_named(tmp_path: Path) -> None:
    drawn = Drawn()
    write_sites(tmp_path, drawn)
    for number in range(3):
        path = tmp_path / "sites" / f"s{number}" / "clinical.csv"
        table, persons = pd.read_csv(path), pd.read_csv(path.with_name("persons.csv"))
        table["cell"] = np.where(persons.b == 1, "y", "x")
        table.to_csv(path, index=False)
    study = study_of(drawn, task="classification", target="b", glm={"covariates": ["age", "cell"]})
    with pytest.raises(RunError, match="cell=y separates"):
        run_job(study, tmp_path, tmp_path / "run", "glm")


@pytest.mark.parametrize("exposed", [True, False])
def test_high_counts_are_fitted(tmp_path: Path, exposed: bool) -> None:
    """A rate far above 1: the first step of the log link would be as large as the rate."""
    drawn = Drawn()
    pooled = write_sites(tmp_path, drawn)
    random = np.random.default_rng(4)
    pooled["count"] = random.poisson(200 * (pooled.exposure if exposed else 1) * np.exp(0.01 * (pooled.age - 60)))
    for number, own in pooled.groupby("site"):
        own[["id", "time", "event", "entry", "y", "b", "count", "exposure"]].to_csv(
            tmp_path / "sites" / f"s{number}" / "persons.csv", index=False
        )
    more = {"exposure": "exposure"} if exposed else {}
    study = study_of(drawn, task="count", target="count", more=more, glm={"covariates": ["age"], "intercept": "one"})
    found = run_job(study, tmp_path, tmp_path / "run", "glm")["glm"]
    offset = {"offset": np.log(pooled.exposure)} if exposed else {}
    x = np.column_stack([np.ones(len(pooled)), pooled.age])
    reference = sm.GLM(pooled["count"], x, family=sm.families.Poisson(), **offset).fit(tol=1e-14)
    assert found["coefficients"][0]["estimate"] == pytest.approx(reference.params.iloc[1], rel=1e-8)
    assert all(found["alone"]["fitted"].values())
