"""Weighted curves and the weighted hazard ratio of two treatments over sites are those of the pooled persons, in R's package survival."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from fedml.analytics import weighted_curves
from fedml.clients.gate.approvals import approve
from fedml.errors import InputError, RunError
from tests.clients.gate.centre import Centre
from tests.outcomes import Drawn, gates_of, run_job, study_of
from tests.strategies.outcomes.test_against_r import HAS_R
from tests.strategies.outcomes.test_lying_outcomes_centre import ask, grid_of
from tests.strategies.outcomes.test_treatment import PLAN, confounded, design, rewrite

SCRIPT = """
suppressPackageStartupMessages(library(survival))
d <- read.csv("pooled.csv", stringsAsFactors = FALSE)
say <- function(name, values) cat(name, sprintf("%.17g", as.numeric(values)), "\\n")
for (arm in 0:1) {
  k <- survfit(Surv(grid, event > 0) ~ 1, d[d$treated == arm, ], weights = w, robust = TRUE, id = id, conf.type = "log-log")
  say(paste0("time", arm), k$time); say(paste0("surv", arm), k$surv); say(paste0("lower", arm), k$lower)
}
fine <- coxph.control(eps = 1e-14, iter.max = 100)
m <- coxph(Surv(grid, event == 1) ~ treated, d, weights = w, robust = TRUE, cluster = id, control = fine)
say("ratio", c(coef(m), sqrt(m$var))); say("score", m$rscore)
"""
REAL = '[policy]\ncentre = "curious"\nmin_persons = 20\nmin_count = 5\n'


def weights(pooled: pd.DataFrame, estimand: str) -> Any:
    treated = (pooled.arm == "B").to_numpy(float)
    p = sm.GLM(treated, design(pooled, each=True), family=sm.families.Binomial()).fit(tol=1e-15, maxiter=200).fittedvalues
    return {"ate": treated / p + (1 - treated) / (1 - p), "att": treated + (1 - treated) * p / (1 - p),
            "overlap": treated * (1 - p) + (1 - treated) * p}[estimand]  # fmt: skip


@pytest.mark.skipif(not HAS_R, reason="R is not installed")
@pytest.mark.parametrize(("estimand", "causes"), [("ate", 1), ("att", 1), ("overlap", 2)])
def test_weighted_curves_and_hazard_ratios_are_those_of_r(tmp_path: Path, estimand: str, causes: int) -> None:
    drawn = Drawn(step=90.0, causes=causes)
    pooled = confounded(tmp_path, drawn, np.random.default_rng(5))
    study = study_of(drawn, until=2700.0, treatment={**PLAN, "estimand": estimand})
    found = run_job(study, tmp_path, tmp_path / "run", "survival")["weighted_curves"]
    table = pooled.assign(w=weights(pooled, estimand), treated=(pooled.arm == "B") + 0, id=range(len(pooled)))
    table.to_csv(tmp_path / "pooled.csv", index=False)
    done = subprocess.run(["Rscript", "--vanilla", "-e", SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if "there is no package called" in done.stderr:
        pytest.skip("R's package survival is not installed")
    want = {
        name: np.array([float(v.replace("NA", "nan")) for v in values])
        for name, *values in (line.split() for line in done.stdout.splitlines() if line.strip())
    }
    for arm, name in enumerate(("arm=A", "arm=B")):
        group, at = found["groups"][name], want[f"time{arm}"].astype(int) - 1
        inside = np.isfinite(want[f"lower{arm}"]) & (want[f"surv{arm}"] > 0)
        assert inside.sum() > 10
        for key, field in (("surv", "estimate"), ("lower", "lower")):
            mine = np.array(group["survival"][field], float)[at]
            np.testing.assert_allclose(mine[inside], want[f"{key}{arm}"][inside], rtol=1e-8)
        assert group["persons"] == (table.treated == arm).sum()
        assert group["effective"] == pytest.approx(table.w[table.treated == arm].sum() ** 2 / (table.w[table.treated == arm] ** 2).sum())
    ratio = found["hazard_ratio"]
    np.testing.assert_allclose([ratio["estimate"], ratio["error"]], want["ratio"], rtol=1e-8)
    assert found["log_rank"]["chi2"] == pytest.approx(want["score"][0], rel=1e-8)
    assert max(abs(row["smd_after"]) for row in found["balance"]) < 0.1 < max(abs(row["smd_before"]) for row in found["balance"])
    for name in ("curves.tsv", "tests.tsv", "balance.tsv", "propensity.tsv", "curves.svg", "outcomes.html"):
        assert (tmp_path / "run" / name).read_text()


def test_the_error_of_a_restricted_mean_is_what_each_persons_weight_moves() -> None:
    """Against numerical derivatives by the weight of each person."""
    random = np.random.default_rng(4)
    place, event, weight, times = random.integers(0, 12, 90), random.random(90) < 0.6, random.uniform(0.3, 3, 90), 30.0 * np.arange(1, 13)

    def sums(values: Any) -> Any:
        enter = np.eye(12)[0] * values.sum()
        return np.stack([enter, np.bincount(place[event], values[event], minlength=12), np.bincount(place, values, minlength=12)])

    def mean(own: Any, horizon: float) -> tuple[float, float]:
        arm = weighted_curves.weighted_arm(sums(np.ones(90)), sums(own), sums(own**2))
        return weighted_curves.restricted_mean(arm, times, horizon)

    for horizon in (100.0, 300.0):
        moves = []
        for at in range(90):
            step = np.eye(90)[at] * 1e-5
            moves.append(weight[at] * (mean(weight + step, horizon)[0] - mean(weight - step, horizon)[0]) / 2e-5)
        assert mean(weight, horizon)[1] == pytest.approx(np.sqrt(np.sum(np.square(moves))), rel=1e-6)
        steps = np.concatenate([[1.0], np.cumprod([1 - weight[(place == k) & event].sum() / weight[place >= k].sum() for k in range(12)])])
        inside = np.clip(horizon - 30.0 * np.arange(13), 0, 30)
        assert mean(weight, horizon)[0] == pytest.approx(float(steps @ inside), rel=1e-12)


def test_through_gates_the_files_are_those_of_the_local_engine_and_rare_cells_are_merged(tmp_path: Path) -> None:
    drawn = Drawn(persons=(400, 320, 500), policy=REAL)
    confounded(tmp_path, drawn, np.random.default_rng(6))
    study = study_of(drawn, treatment={**PLAN, "covariates": ["age", "sex"]})
    local = run_job(study, tmp_path, tmp_path / "local", "survival")
    assert run_job(study, tmp_path, tmp_path / "gated", "survival", gates_of(study, tmp_path)) == local
    for name in ("outcomes.html", "curves.tsv", "tests.tsv"):
        assert (tmp_path / "gated" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert local["weighted_curves"]["grid"]["merged"]


def test_weights_of_a_level_tell_of_no_single_person_who_leaves(tmp_path: Path) -> None:
    """With coefficients that weigh one level alone, a sum of weights is the number of its persons: so each level is a cell of the grid."""
    drawn = Drawn(persons=(500,), policy=REAL)
    confounded(tmp_path, drawn, np.random.default_rng(6))
    own = study_of(drawn, treatment={**PLAN, "covariates": ["age", "sex"], "intercept": "one"})
    site = Centre(own, tmp_path / "sites" / "s0")
    design = {"centre": np.zeros(2), "scale": np.ones(2)}
    edges = grid_of(site, 2)
    fine = np.ones(100, np.uint8)
    assert ask(site, "treated", 0, 2, edges=fine, beta_one=np.zeros(3), **design) == "too-few-persons"
    assert ask(site, "treated", 1, 1, edges=edges, beta_one=np.zeros(3), **design) == "rounds-beyond-policy"
    assert ask(site, "treated", 0, 1, edges=edges, beta_one=np.array([0, 0, 0.5]), **design) == ""
    counts, sums = (site.answered[-1][1][f"analysis/{name}"] for name in ("counts", "weights"))
    assert counts[counts > 0].min() >= 5
    assert ((sums > 0) == (counts > 0)).all()
    assert ask(site, "times", 0, 3, edges=edges) == "undeclared-record"
    grid = {"edges": fine, "model": np.array([0], np.uint8), "from": np.array([-1, 0])}
    assert ask(site, "grid", 200, 3, **grid) == "undeclared-record"
    assert ask(site, "weighted", 0, 3, beta_one=np.zeros(3), at=np.zeros(2), **design) == "undeclared-record"


def test_two_studies_whose_treatments_differ_in_few_persons_are_refused(tmp_path: Path) -> None:
    drawn = Drawn(persons=(500,), policy=REAL)
    confounded(tmp_path, drawn, np.random.default_rng(6))
    path = tmp_path / "sites" / "s0" / "clinical.csv"
    table = pd.read_csv(path)
    table["cell"] = np.where(table.arm == "A", "x", "y")
    table.loc[:1, "cell"] = np.where(table.cell[:2] == "x", "y", "x")
    table.to_csv(path, index=False)
    one = study_of(drawn, name="one", treatment={**PLAN, "covariates": ["age"]})
    two = study_of(drawn, name="two", treatment={"column": "cell", "covariates": ["age"]})
    site = Centre(one, tmp_path / "sites" / "s0")
    answers = []
    for run, own in enumerate((one, two), 1):
        approve(site.state, own, "Dr. Test")
        answers.append(ask(site, "moments", 0, run, own))
        site.restart()
    assert answers == ["", "too-few-persons"]


@pytest.mark.parametrize(
    ("sections", "words"),
    [({"treatment": {**PLAN, "trim": 0.1}}, "trim is not built for times"),
     ({"treatment": PLAN, "curves": {}}, r"\[survival.curves\] are not built"),
     ({"treatment": PLAN, "cox": {"covariates": ["age"]}}, r"\[survival.cox\] are not built")],
)  # fmt: skip
def test_what_a_study_cannot_ask_for_is_one_sentence(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        study_of(**sections)


def test_late_entry_is_refused_and_a_treatment_without_events_has_no_ratio(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not built with late entry"):
        study_of(Drawn(entry=True), treatment=PLAN)
    drawn = Drawn(persons=(240,), silent=0)
    confounded(tmp_path, drawn, np.random.default_rng(5))
    found = run_job(study_of(drawn, treatment={**PLAN, "intercept": "one"}), tmp_path, tmp_path / "run", "survival")["weighted_curves"]
    assert found["hazard_ratio"] is None
    assert "nan" not in (tmp_path / "run" / "outcomes.html").read_text()
    pooled = confounded(tmp_path / "again", Drawn(), np.random.default_rng(5))
    rewrite(tmp_path / "again", pooled.assign(arm="A"))
    with pytest.raises(RunError, match="no person of any site has arm=B"):
        run_job(study_of(treatment=PLAN), tmp_path / "again", tmp_path / "none", "survival")
