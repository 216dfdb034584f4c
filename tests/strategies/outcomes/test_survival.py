"""`fedml survival` over sites is the analysis of the pooled persons: curves, tests and Cox models against statsmodels and lifelines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, Message
from statsmodels.duration.hazard_regression import PHReg
from statsmodels.duration.survfunc import SurvfuncRight, survdiff

from fedml.clients.gate.local import app as client_app
from fedml.errors import RunError
from fedml.strategies.describe import describe
from fedml.wire.records import ANALYSIS, array_record, pack, unpack
from tests.outcomes import COVARIATES, Drawn, gates_of, run_job, study_of, write_sites

REAL = '[policy]\ncentre = "curious"\nmin_persons = 20\nmin_count = 5\n'
CLOSE = {"rtol": 1e-8, "atol": 1e-12}


def design(pooled: pd.DataFrame) -> Any:
    return np.column_stack([pooled.age, pooled.sex, pooled.arm == "B", pooled.stage == "II", pooled.stage == "III"]).astype(float)


def test_curves_and_tests_are_those_of_the_pooled_persons(tmp_path: Path) -> None:
    drawn = Drawn(silent=1)
    pooled = write_sites(tmp_path, drawn)
    found = run_job(study_of(drawn, curves={"groups": "arm"}), tmp_path, tmp_path / "run", "survival")["curves"]
    assert not found["grid"]["merged"]
    for arm in "AB":
        own = pooled[pooled.arm == arm]
        reference = SurvfuncRight(own.grid, own.event)
        group = found["groups"][arm]
        at = reference.surv_times.astype(int) - 1
        np.testing.assert_allclose(np.array(group["survival"]["estimate"])[at], reference.surv_prob, **CLOSE)
        np.testing.assert_array_equal(np.array(group["at_risk"])[at], reference.n_risk)
        error = np.array(group["survival"]["error"], float)[at]
        inside = reference.surv_prob > 0
        np.testing.assert_allclose(error[inside], reference.surv_prob_se[inside], **CLOSE)
        assert group["quantiles"]["0.5"][0] == 30 * reference.quantile(0.5)
        hazard = np.cumsum(reference.n_events / reference.n_risk)
        np.testing.assert_allclose(np.array(group["hazard"]["estimate"])[at], hazard, **CLOSE)
    code = (pooled.arm == "B").astype(int)
    for name, strata in (("log_rank", None), ("log_rank_by_site", pooled.site)):
        chi2, p = survdiff(pooled.grid, pooled.event, code, strata=strata)
        np.testing.assert_allclose([found[name]["chi2"], found[name]["p"]], [float(chi2), float(p)], **CLOSE)
    lifelines = pytest.importorskip("lifelines")
    own = pooled[pooled.arm == "A"]
    fitted = lifelines.KaplanMeierFitter().fit(own.grid, own.event)
    limits = fitted.confidence_interval_
    at = limits.index.to_numpy().astype(int)[1:] - 1
    for end, column in (("lower", 0), ("upper", 1)):
        mine = np.array(found["groups"]["A"]["survival"][end], float)[at]
        theirs = limits.iloc[1:, column].to_numpy()
        both = np.isfinite(mine)
        np.testing.assert_allclose(mine[both], theirs[both], **CLOSE)
    survival = np.concatenate([[1.0], found["groups"]["A"]["survival"]["estimate"]])
    assert found["groups"]["A"]["restricted_mean"]["900"][0] == pytest.approx(30 * survival[:30].sum(), rel=1e-10)


def test_competing_events_have_cumulative_incidences(tmp_path: Path) -> None:
    drawn = Drawn(causes=2)
    pooled = write_sites(tmp_path, drawn)
    found = run_job(study_of(drawn, curves={}), tmp_path, tmp_path / "run", "survival")["curves"]["groups"]["all"]
    at_risk = np.array([(pooled.grid >= k).sum() for k in range(1, 101)])
    every = np.array([((pooled.grid == k) & (pooled.event > 0)).sum() for k in range(1, 101)])
    share = np.divide(every, at_risk, out=np.zeros(100), where=at_risk > 0)
    before = np.concatenate([[1.0], np.cumprod(1 - share)[:-1]])
    for code, name in ((1, "death"), (2, "relapse")):
        own = np.array([((pooled.grid == k) & (pooled.event == code)).sum() for k in range(1, 101)])
        want = np.cumsum(before * np.divide(own, at_risk, out=np.zeros(100), where=at_risk > 0))
        np.testing.assert_allclose(found["incidence"][name]["estimate"], want, **CLOSE)
    total = sum(np.array(found["incidence"][name]["estimate"]) for name in ("death", "relapse"))
    np.testing.assert_allclose(total, 1 - np.array(found["survival"]["estimate"]), atol=1e-12)
    # The variance of an incidence without competing events is Greenwood's.
    from fedml.analytics import curves

    table = curves.life_table(np.array([200, 0, 0]), np.array([[20, 30, 10]]), np.array([10, 5, 125]))
    np.testing.assert_allclose(curves.aalen_johansen(table, 0).error, curves.kaplan_meier(table).error, rtol=1e-10)


@pytest.mark.parametrize(
    ("ties", "baseline", "entry"),
    [("efron", "common", False), ("efron", "site", True), ("breslow", "common", True), ("breslow", "site", False)],
)
def test_cox_models_are_those_of_the_pooled_persons(tmp_path: Path, ties: str, baseline: str, entry: bool) -> None:
    """Heavy ties, unequal sites, one of them without events; strata; left truncation."""
    drawn = Drawn(silent=1, entry=entry, step=90.0)
    pooled = write_sites(tmp_path, drawn)
    study = study_of(drawn, until=2700.0, cox={"covariates": COVARIATES, "ties": ties, "baseline": baseline})
    found = run_job(study, tmp_path, tmp_path / "run", "survival")["cox"]
    assert sum(found["events"].values()) == (pooled.event > 0).sum()
    more: dict[str, Any] = {"strata": pooled.site.to_numpy()} if baseline == "site" else {}
    if entry:
        more["entry"] = pooled["first"].to_numpy() + 0.5  # at risk from the interval of the entry on
    model = PHReg(pooled.grid.to_numpy(), design(pooled), status=pooled.event.to_numpy(), ties=ties, **more)
    reference = model.fit(gtol=1e-13, maxiter=500)
    beta = np.array([row["estimate"] for row in found["coefficients"]])
    np.testing.assert_allclose(beta, reference.params, **CLOSE)
    np.testing.assert_allclose(found["covariance"], -np.linalg.inv(model.hessian(beta)), rtol=1e-8, atol=1e-14)
    assert found["log_likelihood"] == pytest.approx(reference.llf, rel=1e-10)
    errors = [row["model"]["error"] for row in found["coefficients"]]
    np.testing.assert_allclose(errors, reference.bse, **CLOSE)
    assert found["steps"] <= 9


def test_robust_and_clustered_variances_and_the_test_of_proportional_hazards(tmp_path: Path) -> None:
    """Breslow's score residuals are derivatives of the score by the weight of a person; clusters are sums of them over a site."""
    drawn = Drawn(step=90.0)
    pooled = write_sites(tmp_path, drawn)
    study = study_of(drawn, until=2700.0, cox={"covariates": ["age", "sex", "arm", "stage"], "ties": "breslow"})
    found = run_job(study, tmp_path, tmp_path / "run", "survival")["cox"]
    x, place, event = design(pooled), pooled.grid.to_numpy().astype(int), pooled.event.to_numpy() == 1
    beta = np.array([row["estimate"] for row in found["coefficients"]])
    w, residual, parts = np.exp((x - x.mean(0)) @ beta), np.zeros_like(x), []
    for k in np.unique(place[event]):
        at, d = place >= k, ((place == k) & event).sum()
        mean = (w[at, None] * x[at]).sum(0) / w[at].sum()
        residual[at] -= (w[at] * d / w[at].sum())[:, None] * (x[at] - mean)
        residual[(place == k) & event] += x[(place == k) & event] - mean
        parts.append(
            (k, x[(place == k) & event].sum(0) - d * mean, d * ((w[at, None] * x[at]).T @ x[at] / w[at].sum() - np.outer(mean, mean)))
        )
    bread = np.array(found["covariance"])
    np.testing.assert_allclose(found["robust_covariance"], bread @ residual.T @ residual @ bread, rtol=1e-8, atol=1e-14)
    sites = np.stack([residual[pooled.site == s].sum(0) for s in range(3)])
    clustered = np.sqrt(np.diag(bread @ sites.T @ sites @ bread))
    np.testing.assert_allclose([row["site"]["error"] for row in found["coefficients"]], clustered, rtol=1e-6)
    # Grambsch and Therneau's test, written out over the intervals.
    survival = np.cumprod([1 - ((place == k) & event).sum() / (place >= k).sum() for k in range(1, 31)])
    g = {k: 1 - (survival[k - 2] if k > 1 else 1.0) for k, _, _ in parts}
    d = {k: ((place == k) & event).sum() for k in g}
    centre = sum(g[k] * d[k] for k in g) / sum(d.values())
    score = sum((g[k] - centre) * u for k, u, _ in parts)
    mixed, own = (sum((g[k] - centre) ** power * v for k, _, v in parts) for power in (1, 2))
    left = own - mixed @ bread @ mixed
    tests = [row["chi2"] for row in found["proportional"]["terms"]]
    np.testing.assert_allclose(tests, score**2 / np.diag(left), rtol=1e-6)
    assert found["proportional"]["global"]["chi2"] == pytest.approx(float(score @ np.linalg.solve(left, score)), rel=1e-6)


def test_robust_variance_is_that_of_lifelines_without_ties(tmp_path: Path) -> None:
    lifelines = pytest.importorskip("lifelines")
    from fedml.analytics import cox, cox_sites

    random = np.random.default_rng(2)
    x, time, event = random.normal(size=(150, 2)), random.permutation(150), random.random(150) < 0.7
    x = (x - x[event].mean(0)) / x.std(0)
    people = cox_sites.Followed(x, np.zeros(150, np.int64), time.astype(np.int64), event, None, None)
    found = cox_sites.fit(people, 150, cox.Plan("efron", 0.0, ["a", "b"]))
    weights = (found.weights.rise[0], found.weights.tie[0])
    residual = cox_sites.score_residuals(people, found.beta, weights, (found.means.at_event[0], found.means.rise[0], found.means.tie[0]))
    table = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "t": time + 1, "e": event})
    fitted = lifelines.CoxPHFitter().fit(table, "t", "e", robust=True, fit_options={"precision": 1e-12})
    mine = cox.variances(found.information, 0.0, residual.T @ residual)
    np.testing.assert_allclose(np.sqrt(np.diag(mine)), fitted.standard_errors_, rtol=1e-7)


def test_columns_that_depend_on_each_other_and_separation_are_named(tmp_path: Path) -> None:
    drawn = Drawn()
    write_sites(tmp_path, drawn)
    for number in range(3):
        path = tmp_path / "sites" / f"s{number}" / "clinical.csv"
        table = pd.read_csv(path)
        persons = pd.read_csv(path.with_name("persons.csv"))
        table["cell"] = np.where(persons.event == 1, "x", "y")
        table["sex"] = (table.arm == "B").astype(int)
        table.to_csv(path, index=False)
    with pytest.raises(RunError, match="sex, arm=B depend on each other"):
        run_job(study_of(drawn, cox={"covariates": ["age", "sex", "arm"]}), tmp_path, tmp_path / "one", "survival")
    with pytest.raises(RunError, match="cell=y separates"):
        run_job(study_of(drawn, cox={"covariates": ["age", "cell"]}), tmp_path, tmp_path / "two", "survival")
    ridge = study_of(drawn, cox={"covariates": ["age", "cell"], "ridge": 20.0})
    assert len(run_job(ridge, tmp_path, tmp_path / "three", "survival")["cox"]["coefficients"]) == 2


def test_through_gates_the_files_are_those_of_the_local_engine_and_no_small_count_leaves(tmp_path: Path) -> None:
    """With real persons intervals are merged, the record says where, and the results are exact on the merged grid."""
    drawn = Drawn(persons=(500, 400, 600), policy=REAL)
    pooled = write_sites(tmp_path, drawn)
    study = study_of(drawn, curves={"groups": "arm"}, cox={"covariates": ["age", "sex"], "ties": "breslow"})
    local = run_job(study, tmp_path, tmp_path / "local", "survival")
    gated = run_job(study, tmp_path, tmp_path / "gated", "survival", gates_of(study, tmp_path))
    assert gated == local
    for name in ("outcomes.json", "curves.tsv", "tests.tsv", "cox.tsv", "meta.tsv", "curves.svg", "forest.svg", "outcomes.html"):
        assert (tmp_path / "gated" / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
    ends = np.array(local["curves"]["grid"]["ends"])
    assert local["curves"]["grid"]["merged"]
    assert len(ends) >= 8
    place = np.searchsorted(ends, np.minimum(30 * pooled.grid, 3000.0))
    for (_, _), own in pooled.assign(place=place).groupby(["site", "arm"]):
        for cells in (own.groupby("place").size(), own[own.event == 1].groupby("place").size()):
            assert cells.min() >= 5
    text = (tmp_path / "local" / "outcomes.html").read_text()
    assert "were merged with the next, because some site would have told of few persons" in text
    ends = np.array(local["cox"]["grid"]["ends"])
    times = np.searchsorted(ends, np.minimum(30 * pooled.grid, 3000.0)) + 1.0
    reference = PHReg(times, pooled[["age", "sex"]].to_numpy(float), status=pooled.event.to_numpy(), ties="breslow").fit(gtol=1e-13)
    np.testing.assert_allclose([row["estimate"] for row in local["cox"]["coefficients"]], reference.params, **CLOSE)
    again = run_job(study, tmp_path, tmp_path / "again", "survival", gates_of(study, tmp_path, run=2))
    assert again == local  # the same questions tell nothing new


def test_a_group_of_nobody_has_no_mean_and_one_site_no_clusters(tmp_path: Path) -> None:
    drawn = Drawn(persons=(240,))
    write_sites(tmp_path, drawn)
    path = tmp_path / "sites" / "s0" / "clinical.csv"
    pd.read_csv(path).assign(arm="A").to_csv(path, index=False)
    study = study_of(drawn, curves={"groups": "arm"}, cox={"covariates": ["age", "sex"]})
    found = run_job(study, tmp_path, tmp_path / "run", "survival")
    assert found["curves"]["groups"]["B"]["restricted_mean"] == {"900": [None, None], "3000": [None, None]}
    assert found["curves"]["differences"] == []
    assert all("site" not in row and row["robust"]["error"] > 0 for row in found["cox"]["coefficients"])


def test_groups_without_events_have_a_difference_of_nothing_and_no_nan_is_printed(tmp_path: Path) -> None:
    drawn = Drawn(persons=(240,), silent=0)
    write_sites(tmp_path, drawn)
    found = run_job(study_of(drawn, curves={"groups": "arm"}), tmp_path, tmp_path / "run", "survival")["curves"]
    assert found["differences"][0]["estimate"] == 0
    files = [path for path in (tmp_path / "run").iterdir() if path.suffix in (".tsv", ".html", ".svg")]
    assert len(files) > 2
    for path in files:
        assert "nan" not in re.findall(r"\w+", path.read_text().lower()), path.name


def lying(array: str, change: Any) -> Any:
    """A site's app that changes one array of its replies."""

    def answer(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if context.node_id == 1 and not reply.has_error() and ANALYSIS in reply.content:
            sums = {name: np.array(value) for name, value in unpack(array_record(reply.content, ANALYSIS)).items()}
            if array in sums:
                sums[array] = change(sums[array])
                reply.content[ANALYSIS] = pack(sums)
        return reply

    return answer


@pytest.mark.parametrize(
    ("array", "change", "job"),
    [("followed", lambda v: v * 0 + 10**12, "cox"), ("followed", lambda v: v[::-1].copy(), "cox"),
     ("weights", lambda v: np.concatenate([v[:, :1], 3 * v[:, 1:-1], v[:, -1:]], 1), "treatment"), ("squares", lambda v: -v, "treatment")],
)  # fmt: skip
def test_a_site_that_counts_more_than_it_has_is_named(array: str, change: Any, job: str, tmp_path: Path) -> None:
    """With a number of events of its choice a site would have the server work on as many numbers."""
    drawn = Drawn()
    write_sites(tmp_path, drawn)
    sections: dict[str, Any] = {"cox": {"covariates": ["age"]}} if job == "cox" else {"treatment": {"column": "arm", "covariates": ["age"]}}
    handler = lying(array, change)
    with pytest.raises(RunError, match=r"s0 sent (counts|weights) that contradict"):
        run_job(study_of(drawn, **sections), tmp_path, tmp_path / "run", "survival", [handler] * 3)


def test_a_mean_beyond_the_last_person_is_missing_and_the_page_says_why(tmp_path: Path) -> None:
    """The curve was carried on flat. Everybody has left by 2,000 days, and not everybody has had the event."""
    drawn = Drawn()
    write_sites(tmp_path, drawn)
    found = run_job(study_of(drawn, curves={"groups": "arm"}), tmp_path, tmp_path / "run", "survival")["curves"]
    for group in found["groups"].values():
        last = max(t for t, n in zip(group["time"], group["at_risk"], strict=True) if n)
        alive = group["survival"]["estimate"][-1] > 0
        assert (group["restricted_mean"]["3000"][0] is None) == (alive and last < 3000)
        assert group["restricted_mean"]["900"][0] is not None
    assert any(group["restricted_mean"]["3000"][0] is None for group in found["groups"].values())
    assert "nobody of the group is observed until then" in (tmp_path / "run" / "outcomes.html").read_text()


def test_who_approves_a_study_reads_what_it_sends() -> None:
    cox = {"covariates": ["age"], "weights": "w", "hazard": "subdistribution"}
    text = describe(study_of(Drawn(causes=2), cox=cox, columns=["w"]))
    assert "weighted by column w" in text
    assert "is censored in each interval (subdistribution hazards)" in text
    text = describe(study_of(treatment={"column": "arm", "covariates": ["age"]}))
    assert "(`fedml survival`) by arm" in text
    assert "who leaves when" in text
    assert "intervals of the grid that would tell of few persons are merged" in text
    plan = {"covariates": ["age", "arm"], "standardise": "arm"}
    assert "if everyone had each level of arm" in describe(study_of(task="regression", target="y", glm=plan))
