"""Counts of events: loss and models as statsmodels has them, merged metrics as scikit-learn's on the pooled persons, and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import statsmodels.api as sm
import torch
from flwr.app import RecordDict
from scipy.stats import nbinom, poisson

from fedml.clients.desk.rehearsal import rehearse
from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import load_cohort
from fedml.contract.plausible import check_plausible
from fedml.errors import InputError, Reason, SiteError
from fedml.experiments.evidence.model_card import model_card
from fedml.experiments.models.predictions import predictions
from fedml.experiments.report.page import render
from fedml.learning.differences import paired_bootstrap
from fedml.study.study import Study
from fedml.tasks.count import count_loss, count_sums, expected
from fedml.tasks.counts import add_counts
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task
from fedml.tasks.task import Compared
from fedml.wire.records import COUNTS, Phase, pack
from tests.conftest import federate
from tests.experiments.tasks.pooled import COLUMNS, CONVERGED, SITES, column_site, raw_weights, table_of, three_columns
from tests.report_runs import parsed, record_of

FIT: dict[str, Any] = {**CONVERGED, "training__lr": 0.5, "federation__rounds": 60}


def study_of(**changes: Any) -> Study:
    return three_columns(**({"model__task": "count", "cohort__target": "events", "cohort__exposure": "years"} | changes))


def event_site(folder: Path, name: str, persons: int, seed: int) -> Path:
    """Counts over 0.5 to 4 years, with more variance than Poisson counts; some persons lack the count, some the exposure."""
    rng = np.random.default_rng(seed)
    x, years = rng.normal(seed / 3, 1, (persons, 3)), rng.uniform(0.5, 4, persons)
    events = rng.poisson(years * np.exp(-0.3 + x @ [0.5, -0.3, 0.1]) * rng.gamma(2, 0.5, persons)).astype(float)
    events[:3], years[3:5] = np.nan, np.nan
    return column_site(folder, name, x, {"events": events, "years": years})


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("counts")
    return [event_site(folder / name, name, 200 + 60 * k, k) for k, name in enumerate(SITES)]


# --- loss and model


def test_the_losses_are_minus_the_logarithm_of_scipys_distributions() -> None:
    rng = np.random.default_rng(0)
    eta, years, y = rng.normal(0, 1, 60), rng.uniform(0.1, 9, 60), rng.poisson(3, 60)
    mu, label = years * np.exp(eta), torch.from_numpy(np.stack([y, years], 1))
    output = torch.from_numpy(eta[:, None])
    assert float(count_loss(output, label)) == pytest.approx(-poisson.logpmf(y, mu).mean(), rel=1e-12)
    assert float(count_loss(output, torch.from_numpy(y))) == pytest.approx(-poisson.logpmf(y, np.exp(eta)).mean(), rel=1e-12)
    for dispersion in (1e-6, 0.4, 7.0):
        both = torch.cat([output, torch.full((60, 1), math.log(dispersion), dtype=torch.float64)], 1)
        exact = -nbinom.logpmf(y, 1 / dispersion, 1 / (1 + dispersion * mu)).mean()
        assert float(count_loss(both, label)) == pytest.approx(exact, rel=1e-8)


def test_a_linear_poisson_model_of_three_sites_is_statsmodels_on_the_pooled_persons(manifests: list[Path], tmp_path: Path) -> None:
    found = federate(study_of(**FIT), manifests, tmp_path / "run").arrays
    table = table_of(manifests, study_of(), "train")
    x = sm.add_constant(table[COLUMNS].to_numpy())
    fitted = sm.GLM(table["events"].to_numpy(), x, family=sm.families.Poisson(), offset=np.log(table["years"].to_numpy())).fit(tol=1e-12)
    weight, intercept = raw_weights(found)
    np.testing.assert_allclose([*intercept, *weight[0]], fitted.params, atol=5e-4)


def test_a_linear_negative_binomial_model_of_three_sites_is_statsmodels_on_the_pooled_persons(
    manifests: list[Path], tmp_path: Path
) -> None:
    found = federate(study_of(**FIT, model__counts="negative_binomial"), manifests, tmp_path / "run").arrays
    table = table_of(manifests, study_of(), "train")
    x = sm.add_constant(table[COLUMNS].to_numpy())
    model = sm.NegativeBinomial(table["events"].to_numpy(), x, loglike_method="nb2", exposure=table["years"].to_numpy())
    fitted = model.fit(method="bfgs", disp=False, maxiter=500, gtol=1e-8)
    weight, intercept = raw_weights(found)
    np.testing.assert_allclose([*intercept, *weight[0]], fitted.params[:4], atol=1e-3)
    assert math.exp(float(found["outcome.log"])) == pytest.approx(fitted.params[4], abs=2e-3)


# --- metrics


def outputs(seed: int, persons: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    eta, years = rng.normal(0, 0.6, persons), rng.uniform(0.5, 3, persons)
    y = rng.poisson(years * np.exp(eta + rng.normal(0, 0.3, persons)))
    return torch.from_numpy(eta[:, None]), torch.from_numpy(np.stack([y, years], 1))


def test_merged_metrics_are_scikit_learns_on_the_pooled_persons() -> None:
    task, parts = make_task(study_of()), [outputs(k, n) for k, n in enumerate((40, 7, 90))]
    counts = [count_sums(*part) for part in parts]
    found = task.metrics(add_counts(counts))
    y = np.concatenate([label[:, 0].numpy() for _, label in parts])
    mu = np.concatenate([expected(*part).numpy() for part in parts])
    assert found["persons"] == 137
    assert found["deviance"] == pytest.approx(sk.mean_poisson_deviance(y, mu), abs=1e-9)
    assert found["d2"] == pytest.approx(sk.d2_tweedie_score(y, mu, power=1), abs=1e-9)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(y, mu), abs=1e-9)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(y, mu), abs=1e-9)
    assert found["bias"] == pytest.approx(float((mu - y).mean()), abs=1e-9)
    assert found["log_loss"] == pytest.approx(-poisson.logpmf(y, mu).mean(), abs=1e-9)
    ends = interval(counts, task, "deviance", seed=1)
    assert ends.low < found["deviance"] < ends.high


def test_counts_that_are_all_0_have_no_d2() -> None:
    found = make_task(study_of(cohort__exposure=None)).metrics(count_sums(torch.zeros(9, 1), torch.zeros(9)))
    assert math.isnan(found["d2"])
    assert found["deviance"] == pytest.approx(2.0)


def test_an_expected_count_that_overflows_is_an_error_and_one_that_vanishes_has_a_finite_deviance() -> None:
    with pytest.raises(FloatingPointError, match="too large for an expected count"):
        count_sums(torch.full((3, 1), 800.0), torch.ones(3))
    sums = count_sums(torch.full((1, 1), -800.0), torch.ones(1))
    assert sums["deviance_sum"][0] == pytest.approx(2 * (800 - 1))


def test_two_models_are_compared_by_their_deviance() -> None:
    task, (out, label) = make_task(study_of()), outputs(4, 300)
    assert isinstance(task.compared, Compared)
    good = task.compared.statistic(label.numpy(), task.compared.values(out, label))
    bad = task.compared.statistic(label.numpy(), task.compared.values(out * 0, label))
    found = paired_bootstrap(good, bad, 300, seed=1)
    exact = [sk.mean_poisson_deviance(label[:, 0], expected(z, label)) for z in (out, out * 0)]
    assert found.value == pytest.approx(exact[0] - exact[1], rel=1e-9)
    assert found.high < 0


# --- a run, and what is made of it


@pytest.mark.parametrize("counts", ["poisson", "negative_binomial"])
def test_a_run_is_written_and_its_predictions_are_those_of_its_metrics(counts: str, manifests: list[Path], tmp_path: Path) -> None:
    study = study_of(model__counts=counts, training__lr=0.05, federation__rounds=8)
    record = record_of(study, manifests, tmp_path)
    table = predictions(record.run, {m.parent.name: read_site(m) for m in manifests})
    assert list(table.columns) == ["site", "id", "part", "label_events", "label_years", "predicted"]
    table = table[table["part"] == "test"]
    np.testing.assert_allclose(table["label_events"], table_of(manifests, study, "test")["events"])
    y, mu = table["label_events"].to_numpy(), (table["predicted"] * table["label_years"]).to_numpy()
    found = record.final.metrics["test"]["all"]
    assert found["deviance"] == pytest.approx(sk.mean_poisson_deviance(y, mu), rel=1e-5)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(y, mu), rel=1e-5)
    assert found["d2"] > 0.1
    page = parsed(render(record))
    assert "mean Poisson deviance of" in page.section("answer")
    assert "mean Poisson deviance" in page.section("by-site")
    assert 'observed for an exposure in the column "years"' in page.section("asked")
    assert "expected number of events for one unit of years" in model_card(record)


def test_persons_without_count_or_exposure_are_left_out_and_counted(manifests: list[Path]) -> None:
    cohort = load_cohort((str(manifests[0]),), study_of())
    assert cohort.labels.shape == (195, 2)
    assert cohort.excluded == {"no label": 5}
    assert load_cohort((str(manifests[0]),), study_of(cohort__exposure=None)).labels.shape == (197,)


def test_it_is_rehearsed_with_placeholder_counts(manifests: list[Path]) -> None:
    played = rehearse(read_site(manifests[0]), study_of())
    assert [e.phase for e in played.entries if e.direction == "out"] == ["describe", "statistics", "round", "evaluate"]


# --- refusals


@pytest.mark.parametrize(
    ("events", "years", "message"),
    [
        ([1, -1, 2, -1], [1, 1, 1, 1], r'persons.csv: column "events" holds no count for 2 person\(s\), such as -1; write'),
        ([1, 2.5, 2, 1], [1, 1, 1, 1], r'persons.csv: column "events" holds no count for 1 person\(s\), such as 2.5'),
        ([1, 2, 2, 1], [1, 0, 2, -3], r'persons.csv: column "years" is 0 or negative for 2 person\(s\); \[cohort\] exposure needs'),
        ([1, 2, 2, 1], [1, "long", 2, 3], r'persons.csv: column "years" has no finite number for 1 person\(s\), such as "long"'),
    ],
)  # fmt: skip
def test_cells_that_are_no_counts_or_exposures_are_refused(events: list[Any], years: list[Any], message: str, tmp_path: Path) -> None:
    manifest = column_site(tmp_path / "a", "a", np.zeros((4, 3)), {"events": events, "years": years})
    with pytest.raises(InputError, match=message):
        load_cohort((str(manifest),), study_of())


def test_an_exposure_that_is_not_there_is_refused_with_its_key(tmp_path: Path) -> None:
    manifest = column_site(tmp_path / "a", "a", np.zeros((4, 3)), {"events": [1, 2, 3, 4], "year": [1, 1, 1, 1]})
    with pytest.raises(InputError, match=r'has no column "years" \(did you mean "year"\?\); \[cohort\] exposure needs it'):
        load_cohort((str(manifest),), study_of())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__task": "regression"}, r"\[cohort\] exposure is for counts of events, which"),
        ({"model__task": "regression", "cohort__exposure": None, "model__counts": "poisson"}, 'counts = "poisson" is for counts of events'),
        ({"model__counts": "binomial"}, "counts must be 'poisson' or 'negative_binomial'"),
        ({"cohort__exposure": "events"}, 'exposure and target are the same column "events"'),
        ({"cohort__target": ["events", "falls"]}, r"\[cohort\] target must be one column with"),
        ({"training__focal": 2.0}, r"\[training\] focal needs classes of persons"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        study_of(**changes)


def test_the_default_distribution_is_in_the_identity_and_other_studies_keep_theirs() -> None:
    assert study_of().sha256 == study_of(model__counts="poisson").sha256 != study_of(model__counts="negative_binomial").sha256
    assert "counts" not in three_columns().canonical
    assert "exposure" not in three_columns().canonical


def test_sums_that_a_site_cannot_have_are_refused_at_the_centre() -> None:
    counts = count_sums(*outputs(1, 30))
    persons = {"train": [0], "val": [0], "test": [30]}
    honest = {f"test/{name}": value for name, value in counts.items()}
    check_plausible(study_of(), Phase.EVALUATE, RecordDict({COUNTS: pack(honest)}), persons)
    lies = {
        "persons": 31.0, "deviance_sum": -1.0, "abs_sum": -0.1, "e2_sum": -1.0, "y_sum": 10.5, "y_log_y_sum": -3.0,
        "e_sum": 2 * counts["abs_sum"][0], "deviance_sq_sum": counts["deviance_sum"][0] ** 2 / 31, "log_loss_sum": -1.0,
    }  # fmt: skip
    for name, value in lies.items():
        wrong = RecordDict({COUNTS: pack(honest | {f"test/{name}": np.array([value])})})
        with pytest.raises(SiteError) as refused:
            check_plausible(study_of(), Phase.EVALUATE, wrong, persons)
        assert refused.value.reason is Reason.IMPLAUSIBLE, name
