"""Ordinal regression: loss and model as statsmodels has them, merged metrics as scikit-learn's on the pooled persons, and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from flwr.app import RecordDict
from scipy.special import expit
from statsmodels.miscmodels.ordinal_model import OrderedModel

from fedml.clients.desk.rehearsal import rehearse
from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import load_cohort
from fedml.contract.plausible import check_plausible
from fedml.errors import InputError, Reason, SiteError
from fedml.experiments.evidence.model_card import model_card
from fedml.experiments.models.predictions import predictions
from fedml.experiments.report.page import render
from fedml.experiments.runs.record import Record
from fedml.modalities.layout import Layout
from fedml.models.fusion import build_model
from fedml.networks.outcome import Thresholds
from fedml.study.study import Study
from fedml.tasks.counts import add_counts
from fedml.tasks.intervals import interval
from fedml.tasks.ordinal import log_probabilities, ordinal_counts, ordinal_loss
from fedml.tasks.registry import make_task
from fedml.wire.records import COUNTS, Phase, pack
from tests.conftest import federate
from tests.experiments.tasks.pooled import COLUMNS, CONVERGED, SITES, column_site, raw_weights, table_of, three_columns
from tests.report_runs import parsed, record_of

CLASSES = ["none", "mild", "severe", "dead"]


def study_of(**changes: Any) -> Study:
    return three_columns(**({"model__task": "ordinal", "cohort__classes": CLASSES} | changes))


def ordered_site(folder: Path, name: str, persons: int, seed: int) -> Path:
    """Labels by a latent score with logistic noise, cut at -1, 1 and 2."""
    rng = np.random.default_rng(seed)
    x = rng.normal(seed / 3, 1, (persons, 3))
    y = np.digitize(x @ [1.0, -0.7, 0.2] + rng.logistic(size=persons), [-1, 1, 2])
    return column_site(folder, name, x, {"y": [CLASSES[v] for v in y]})


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("ordered")
    return [ordered_site(folder / name, name, 150 + 60 * k, k) for k, name in enumerate(SITES)]


@pytest.fixture(scope="module")
def record(manifests: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Record:
    return record_of(study_of(training__lr=0.05, federation__rounds=6), manifests, tmp_path_factory.mktemp("run"))


# --- loss and model


def test_the_loss_is_that_of_a_plain_cumulative_logit() -> None:
    rng = np.random.default_rng(0)
    score, cut, y = rng.normal(0, 3, 50), np.array([-2.0, 0.1, 0.15]), rng.integers(0, 4, 50)
    below = np.hstack([np.zeros((50, 1)), expit(cut - score[:, None]), np.ones((50, 1))])
    each = -np.log(np.diff(below)[np.arange(50), y])
    output = torch.from_numpy(score[:, None] - cut)
    assert float(ordinal_loss(output, torch.from_numpy(y.astype(np.float32)))) == pytest.approx(each.mean(), rel=1e-12)
    np.testing.assert_allclose(log_probabilities(output).exp().sum(1), 1, rtol=1e-12)
    model = OrderedModel(y, score[:, None], distr="logit")
    params = np.array([1.0, cut[0], *np.log(np.diff(cut))])
    assert float(ordinal_loss(output, torch.from_numpy(y))) == pytest.approx(-model.loglike(params) / 50, rel=1e-9)


@pytest.mark.parametrize("score", [-200.0, 200.0])
def test_probabilities_that_would_cancel_keep_their_logarithm_and_gradient(score: float) -> None:
    output = torch.tensor([[score + 1, score - 1]], dtype=torch.float32, requires_grad=True)
    loss = ordinal_loss(output, torch.tensor([1.0]))
    loss.backward()
    exact = 199 - math.log1p(-math.exp(-2))  # s(u) - s(v) is exp(u) - exp(v) far below, and its mirror far above
    assert float(loss.detach()) == pytest.approx(exact, rel=1e-6)
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()


def test_thresholds_rise_and_begin_with_classes_alike_probable() -> None:
    layer = Thresholds(5)
    p = log_probabilities(layer(torch.zeros(1, 1))).exp()
    np.testing.assert_allclose(p.detach().numpy(), 0.2, rtol=1e-6)
    with torch.no_grad():
        layer.gaps.copy_(torch.tensor([-9.0, 0.0, 9.0]))
    assert (torch.diff(layer.thresholds()) > 0).all()
    assert Thresholds(2)(torch.tensor([[0.7]])).item() == pytest.approx(0.7)
    model = build_model(study_of(), Layout((), 0))
    assert {k: tuple(v.shape) for k, v in model.named_parameters() if k.startswith("outcome.")} == {
        "outcome.first": (1,),
        "outcome.gaps": (2,),
    }


def test_a_linear_model_of_three_sites_is_statsmodels_on_the_pooled_persons(manifests: list[Path], tmp_path: Path) -> None:
    found = federate(study_of(**CONVERGED, training__lr=4.0, federation__rounds=50), manifests, tmp_path / "run").arrays
    table = table_of(manifests, study_of(), "train")
    fitted = OrderedModel(table["y"].map(CLASSES.index).to_numpy(), table[COLUMNS].to_numpy(), distr="logit")
    fitted = fitted.fit(method="bfgs", disp=False, maxiter=500, gtol=1e-8)
    weight, intercept = raw_weights(found)
    gaps = np.log1p(np.exp(found["outcome.gaps"].numpy()))
    cut = float(found["outcome.first"]) + np.concatenate([[0], np.cumsum(gaps)]) - intercept
    np.testing.assert_allclose(weight[0], fitted.params[:3], atol=5e-4)
    np.testing.assert_allclose(cut, fitted.model.transform_threshold_params(fitted.params)[1:-1], atol=5e-4)


# --- metrics


def outputs(seed: int, persons: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, persons)
    score = y - 1.5 + rng.normal(0, 1, persons)
    return torch.from_numpy(score[:, None] - [-1.0, 0.2, 1.0]), torch.from_numpy(y.astype(np.float32))


def test_merged_metrics_are_scikit_learns_on_the_pooled_persons() -> None:
    task, parts = make_task(study_of()), [outputs(k, n) for k, n in enumerate((40, 11, 90))]
    counts = [ordinal_counts(*part) for part in parts]
    found = task.metrics(add_counts(counts))
    y = torch.cat([label for _, label in parts]).numpy().astype(int)
    p = np.concatenate([log_probabilities(out).exp().numpy() for out, _ in parts])
    guess = p.argmax(1)
    assert found["persons"] == 141
    assert found["kappa_quadratic"] == pytest.approx(sk.cohen_kappa_score(y, guess, weights="quadratic"), abs=1e-9)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, guess), abs=1e-9)
    assert found["mae_ranks"] == pytest.approx(sk.mean_absolute_error(y, guess), abs=1e-9)
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p), abs=1e-9)
    ends = interval(counts, task, "kappa_quadratic", seed=1)
    assert ends.low < found["kappa_quadratic"] < ends.high


def test_the_interval_of_kappa_has_the_spread_of_persons_drawn_anew() -> None:
    """The width against the standard deviation of kappa over samples of the same population."""
    task, kappas = make_task(study_of()), []
    for seed in range(120):
        out, y = outputs(1000 + seed, 200)
        kappas.append(sk.cohen_kappa_score(y.numpy(), log_probabilities(out).argmax(1).numpy(), weights="quadratic"))
    got = interval(ordinal_counts(*outputs(5, 200)), task, "kappa_quadratic", seed=1)
    assert got.high - got.low == pytest.approx(2 * 1.96 * np.std(kappas), rel=0.3)


def test_persons_of_one_class_have_no_kappa() -> None:
    task = make_task(study_of())
    counts = ordinal_counts(torch.full((9, 3), -5.0), torch.zeros(9))
    found = task.metrics(counts)
    assert math.isnan(found["kappa_quadratic"])
    assert found["mae_ranks"] == 0
    assert interval(counts, task, "kappa_quadratic", seed=1).method == "none: all persons are of one class"


def test_small_cells_do_not_leave_a_site_and_no_person_is_lost() -> None:
    task, counts = make_task(study_of()), ordinal_counts(*outputs(3, 120))
    sent = task.grouped(counts, 5)["confusion"]
    assert ((sent == 0) | (sent >= 5)).all()
    np.testing.assert_array_equal(sent.sum(1), counts["confusion"].sum(1))


# --- a run, and what is made of it


def test_a_run_is_written_and_its_predictions_are_those_of_the_formula(record: Record, manifests: list[Path]) -> None:
    y = table_of(manifests, study_of(), "test")["y"].map(CLASSES.index).to_numpy()
    table = predictions(record.run, {m.parent.name: read_site(m) for m in manifests})
    table = table[table["part"] == "test"]
    assert list(table.columns) == ["site", "id", "part", "label", *(f"probability_{c}" for c in CLASSES), "predicted"]
    guess = table["predicted"].map(CLASSES.index).to_numpy()
    found = record.final.metrics["test"]["all"]
    assert found["kappa_quadratic"] == pytest.approx(sk.cohen_kappa_score(y, guess, weights="quadratic"), abs=1e-9)
    assert found["mae_ranks"] == pytest.approx(sk.mean_absolute_error(y, guess), abs=1e-9)
    assert found["kappa_quadratic"] > 0.2
    page = parsed(render(record))
    assert "quadratic-weighted kappa of" in page.section("answer")
    assert "mean absolute error in ranks" in page.section("by-site")
    assert "none &lt; mild" in model_card(record) or "none < mild" in model_card(record)


def test_it_is_rehearsed_with_placeholder_classes(manifests: list[Path]) -> None:
    played = rehearse(read_site(manifests[0]), study_of())
    assert [e.phase for e in played.entries if e.direction == "out"] == ["describe", "statistics", "round", "evaluate"]


# --- refusals


def test_a_label_that_is_not_a_class_is_refused_with_its_column(manifests: list[Path]) -> None:
    with pytest.raises(
        InputError, match=r'persons.csv: the label in column "y" is "dead" for \d+ person\(s\), not one of: none, mild, severe'
    ):
        load_cohort((str(manifests[0]),), study_of(cohort__classes=["none", "mild", "severe"]))


@pytest.mark.parametrize("key", [{"focal": 2.0}, {"label_smoothing": 0.1}, {"class_weights": [1.0, 1.0, 1.0, 2.0]}])
def test_keys_of_unordered_classes_are_refused(key: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"\[training\] {next(iter(key))} is not built for ordered classes; remove it"):
        study_of(training=key)


def test_privacy_of_a_patient_is_refused_by_name() -> None:
    plan = {"unit": "patient", "epsilon": 3.0, "persons": dict.fromkeys(SITES, 90), "ranges": {c: [0, 1] for c in ("x1", "x2", "x3")}}
    with pytest.raises(InputError, match=r'task = "ordinal" is not built for unit = "patient"; set \[privacy\] unit = "site" or "none"'):
        study_of(privacy=plan)


def test_counts_that_a_site_cannot_have_are_refused_at_the_centre() -> None:
    counts = ordinal_counts(*outputs(1, 30))
    persons = {"train": [0], "val": [0], "test": [30]}
    honest = {f"test/{name}": value for name, value in counts.items()}
    check_plausible(study_of(), Phase.EVALUATE, RecordDict({COUNTS: pack(honest)}), persons)
    more, fewer = counts["confusion"].copy(), counts["confusion"].copy()
    more[0, 0] += 1
    fewer[1, 1] = -1
    for lie in ({"confusion": more}, {"confusion": fewer}, {"persons": np.array([31.0])}, {"log_loss_sum": np.array([-1.0])}):
        wrong = RecordDict({COUNTS: pack(honest | {f"test/{name}": value for name, value in lie.items()})})
        with pytest.raises(SiteError) as refused:
            check_plausible(study_of(), Phase.EVALUATE, wrong, persons)
        assert refused.value.reason is Reason.IMPLAUSIBLE
