"""Several labels of a person: loss and model as torch and statsmodels have them, merged metrics as scikit-learn's on the pooled persons."""

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
from torch.nn import functional

from fedml.clients.desk.rehearsal import rehearse
from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import load_cohort
from fedml.contract.plausible import check_plausible
from fedml.errors import InputError, Reason, SiteError
from fedml.experiments.evidence.model_card import model_card
from fedml.experiments.models.predictions import predictions
from fedml.experiments.report.page import render
from fedml.study.study import Study
from fedml.tasks.counts import add_counts
from fedml.tasks.drawn import mean_auroc
from fedml.tasks.intervals import interval
from fedml.tasks.multilabel import multilabel_counts, multilabel_loss
from fedml.tasks.registry import make_task
from fedml.wire.records import COUNTS, Phase, pack
from tests.conftest import federate
from tests.experiments.tasks.pooled import COLUMNS, CONVERGED, SITES, column_site, raw_weights, table_of, three_columns
from tests.report_runs import parsed, record_of

NAMES = ["diabetes", "stroke", "falls"]
EFFECTS = np.array([[1.0, -0.7, 0.2], [0.3, 0.8, 0.0], [-1.0, 0.0, 0.4]])


def study_of(**changes: Any) -> Study:
    return three_columns(**({"model__task": "multilabel", "cohort__target": NAMES, "cohort__classes": ["no", "yes"]} | changes))


def labelled_site(folder: Path, name: str, persons: int, seed: int) -> Path:
    """Three labels; a fifth of the cells is empty, three persons have no label at all."""
    rng = np.random.default_rng(seed)
    x = rng.normal(seed / 3, 1, (persons, 3))
    yes = x @ EFFECTS.T + rng.logistic(size=(persons, 3)) > 0.5
    empty = rng.random(yes.shape) < 0.2
    empty[:3] = True
    empty[3:, 0] &= empty[3:, 1] ^ True  # no other person lacks all
    labels = {
        column: [None if e else ("yes" if v else "no") for v, e in zip(yes[:, k], empty[:, k], strict=True)]
        for k, column in enumerate(NAMES)
    }
    return column_site(folder, name, x, labels)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("labels")
    return [labelled_site(folder / name, name, 200 + 60 * k, k) for k, name in enumerate(SITES)]


def outputs(seed: int, persons: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    y = (rng.random((persons, 3)) < [0.5, 0.3, 0.1]).astype(float)
    z = 2 * y - 1.2 + rng.normal(0, 1.2, (persons, 3))
    y[rng.random(y.shape) < 0.2] = np.nan
    return torch.from_numpy(z), torch.from_numpy(y)


# --- loss and model


def test_the_loss_is_torchs_where_every_label_is_there_and_leaves_out_those_that_are_not() -> None:
    z, y = outputs(0, 50)
    whole = torch.nan_to_num(y)
    assert float(multilabel_loss(z, whole)) == pytest.approx(float(functional.binary_cross_entropy_with_logits(z, whole)), rel=1e-12)
    by_hand = sum(
        -math.log(1 / (1 + math.exp(-float(s) if t == 1 else float(s))))
        for s, t in zip(z.ravel(), y.ravel(), strict=True)
        if not math.isnan(t)
    )
    assert float(multilabel_loss(z, y)) == pytest.approx(by_hand / 150, rel=1e-9)
    z.requires_grad_(True)
    multilabel_loss(z, y).backward()
    assert z.grad is not None
    assert (z.grad[torch.isnan(y)] == 0).all()
    assert torch.isfinite(z.grad).all()


def test_a_linear_model_of_three_sites_is_a_logistic_regression_of_each_label(manifests: list[Path], tmp_path: Path) -> None:
    found = federate(study_of(**CONVERGED, training__lr=8.0, federation__rounds=70), manifests, tmp_path / "run").arrays
    table = table_of(manifests, study_of(), "train")
    weight, intercept = raw_weights(found)
    for k, name in enumerate(NAMES):
        own = table.dropna(subset=[name])
        assert 0 < len(own) < len(table)
        x = sm.add_constant(own[COLUMNS].to_numpy())
        fitted = sm.Logit((own[name] == "yes").to_numpy(), x).fit(disp=False, tol=1e-10)
        np.testing.assert_allclose([intercept[k], *weight[k]], fitted.params, atol=5e-4)


# --- metrics


def test_merged_metrics_are_scikit_learns_on_the_pooled_persons() -> None:
    task, parts = make_task(study_of()), [outputs(k, n) for k, n in enumerate((140, 30, 90))]
    counts = [multilabel_counts(*part) for part in parts]
    found = task.metrics(add_counts(counts))
    z, y = (np.concatenate([part[k].numpy() for part in parts]) for k in (0, 1))
    assert found["persons"] == 260
    areas, scores = [], []
    for k, name in enumerate(NAMES):
        there = ~np.isnan(y[:, k])
        own, score = y[there, k].astype(int), z[there, k]
        areas.append(sk.roc_auc_score(own, score))
        scores.append(sk.f1_score(own, score > 0))
        assert found[f"auroc/{name}"] == pytest.approx(areas[-1], abs=1e-3)
        assert found[f"f1/{name}"] == pytest.approx(scores[-1], abs=1e-12)
        assert found[f"accuracy/{name}"] == pytest.approx(sk.accuracy_score(own, score > 0), abs=1e-12)
        assert found[f"log_loss/{name}"] == pytest.approx(sk.log_loss(own, 1 / (1 + np.exp(-score))), abs=1e-9)
    assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-3)
    assert found["f1"] == pytest.approx(np.mean(scores), abs=1e-12)
    assert mean_auroc(y, z)(np.ones((1, 260), dtype=int))[0] == pytest.approx(np.mean(areas), abs=1e-12)
    for name in ("auroc", "auroc/stroke", "f1/falls", "accuracy"):
        ends = interval(counts, task, name, seed=1)
        assert ends.low < found[name] < ends.high
        assert ends.value == pytest.approx(found[name], rel=1e-9)


def test_the_metrics_of_persons_who_all_have_their_labels_are_those_of_multilabel_indicators() -> None:
    z, y = outputs(3, 200)
    y = torch.nan_to_num(y)
    found = make_task(study_of()).metrics(multilabel_counts(z, y))
    assert found["f1"] == pytest.approx(sk.f1_score(y.numpy().astype(int), (z > 0).numpy().astype(int), average="macro"), abs=1e-12)
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(y.numpy().astype(int), z.numpy(), average="macro"), abs=1e-3)


def test_what_leaves_a_site_is_of_enough_persons_of_each_label() -> None:
    task, parts = make_task(study_of()), [outputs(k, 260) for k in range(3)]
    counts = [multilabel_counts(*part) for part in parts]
    sent = [task.grouped(one, 5) for one in counts]
    for one, exact in zip(sent, counts, strict=True):
        for name in ("tables", "histogram"):
            assert ((one[name] == 0) | (one[name] >= 5)).all()
            np.testing.assert_array_equal(one[name].sum(-1), exact[name].sum(-1))
    merged, exact = task.metrics(add_counts(task.spread(one) for one in sent)), task.metrics(add_counts(counts))
    assert merged["auroc"] == pytest.approx(exact["auroc"], abs=0.01)


@pytest.mark.parametrize("lacking", [3, 37])
def test_a_label_that_few_persons_have_or_lack_is_not_sent(lacking: int) -> None:
    z, y = outputs(0, 40)
    y = torch.nan_to_num(y)
    y[:lacking, 1] = np.nan
    sent = make_task(study_of()).grouped(multilabel_counts(z, y), 5)
    assert [int(table.sum()) for table in sent["tables"]] == [40, 0, 40]
    assert not sent["histogram"][1].any()
    assert sent["log_loss_sum"][1] == 0
    found = make_task(study_of()).metrics(sent)
    assert math.isnan(found["auroc/stroke"])
    assert found["f1"] == pytest.approx((found["f1/diabetes"] + found["f1/falls"]) / 2)


# --- a run, and what is made of it


def test_a_run_is_written_and_its_predictions_are_those_of_its_metrics(manifests: list[Path], tmp_path: Path) -> None:
    record = record_of(study_of(training__lr=0.05, federation__rounds=6), manifests, tmp_path)
    table = predictions(record.run, {m.parent.name: read_site(m) for m in manifests})
    assert list(table.columns) == [
        "site", "id", "part", *(f"label_{n}" for n in NAMES), *(f"probability_{n}" for n in NAMES), *(f"predicted_{n}" for n in NAMES)
    ]  # fmt: skip
    table = table[table["part"] == "test"]
    found = record.final.metrics["test"]["all"]
    for name in NAMES:
        own = table.dropna(subset=[f"label_{name}"])
        yes = own[f"label_{name}"] == "yes"
        assert found[f"auroc/{name}"] == pytest.approx(sk.roc_auc_score(yes, own[f"probability_{name}"]), abs=1e-3)
        assert found[f"f1/{name}"] == pytest.approx(sk.f1_score(yes, own[f"predicted_{name}"] == "yes"), abs=1e-12)
    assert found["auroc"] > 0.65
    page = parsed(render(record))
    assert "the mean over 3 labels (diabetes" in page.section("answer")
    assert "AUROC" in page.section("by-site")
    assert "a probability of yes for each of 3 labels" in model_card(record)


def test_a_person_without_any_label_is_left_out_and_one_with_some_counts(manifests: list[Path]) -> None:
    cohort = load_cohort((str(manifests[0]),), study_of())
    assert cohort.labels.shape == (197, 3)
    assert cohort.excluded == {"no label": 3}
    assert np.isnan(cohort.labels).any()
    batch = cohort.batch([0, 1])
    assert batch["label"].shape == (2, 3)


def test_it_is_rehearsed_with_placeholder_labels(manifests: list[Path]) -> None:
    played = rehearse(read_site(manifests[0]), study_of())
    assert [e.phase for e in played.entries if e.direction == "out"] == ["describe", "statistics", "round", "evaluate"]


# --- refusals


def test_a_cell_that_is_neither_level_is_refused_with_its_column(tmp_path: Path) -> None:
    labels = {"diabetes": ["yes", "no"], "stroke": ["yes", "maybe"], "falls": ["no", None]}
    manifest = column_site(tmp_path / "a", "a", np.zeros((2, 3)), labels)
    with pytest.raises(InputError, match=r'persons.csv: the label in column "stroke" is "maybe" for 1 person\(s\), not one of: no, yes'):
        load_cohort((str(manifest),), study_of())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cohort__target": "diabetes"}, r'\[cohort\] target must be a list of columns, such as \["a", "b"\], with'),
        ({"cohort__target": ["stroke", "stroke"]}, "a column is listed twice in target"),
        ({"cohort__target": ["stroke", "x2"]}, 'the target "x2" is also among the clinical columns'),
        ({"cohort__classes": ["a", "b", "c"]}, r"\[cohort\] classes lists 3; each label of .* has two levels"),
        ({"model__task": "classification"}, r"\[cohort\] target must be one column with"),
        ({"training__sampling": "balanced"}, r"\[training\] sampling needs classes of persons"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        study_of(**changes)


def test_noised_counts_are_refused_by_name() -> None:
    plan = {"unit": "patient", "epsilon": 3.0, "persons": dict.fromkeys(SITES, 90), "ranges": {c: [0, 1] for c in COLUMNS}}
    with pytest.raises(InputError, match=r'task = "multilabel" is not built for unit = "patient"; set \[privacy\] unit = "site" or "none"'):
        study_of(privacy=plan)


def test_counts_that_a_site_cannot_have_are_refused_at_the_centre() -> None:
    counts = multilabel_counts(*outputs(1, 30))
    persons = {"train": [0], "val": [0], "test": [30]}
    honest = {f"test/{name}": value for name, value in counts.items()}
    check_plausible(study_of(), Phase.EVALUATE, RecordDict({COUNTS: pack(honest)}), persons)
    more, fewer = counts["tables"].copy(), counts["tables"].copy()
    more[1, 0, 0] += 31
    fewer[0, 1, 1] = -1
    lies = {
        "more": ("tables", more), "fewer": ("tables", fewer), "persons": ("persons", np.array([31.0])),
        "histogram": ("histogram", counts["histogram"] * 2), "loss": ("log_loss_sum", -counts["log_loss_sum"]),
        "pairs": ("beyond", counts["beyond"] + 1e6),
    }  # fmt: skip
    for what, (name, value) in lies.items():
        wrong = RecordDict({COUNTS: pack(honest | {f"test/{name}": value})})
        with pytest.raises(SiteError) as refused:
            check_plausible(study_of(), Phase.EVALUATE, wrong, persons)
        assert refused.value.reason is Reason.IMPLAUSIBLE, what
