"""Privacy of one patient through a whole run: what leaves, what is claimed, what stays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedml.clients.site.read import load_cohort
from fedml.learning.statistics import constants_from
from fedml.modalities.layout import Layout
from fedml.privacy.accounting import epsilon, events_from_json
from fedml.privacy.counts import noised, sensitivity
from fedml.privacy.releases import claims, evaluations, noise_multiplier, sampling, training_events
from fedml.privacy.statistics import private_sums, stated_constants, stated_ranges
from fedml.study.study import Study
from fedml.tasks.registry import make_task
from tests.conftest import clinical_site, federate, image_site, make_study, pooled
from tests.inputs import clinical_of, images_of

RANGES = {"x1": [-3, 9], "x2": [-9, 7], "x3": [0, 200]}


def patient_study(inputs: tuple[str, ...] = ("clinical",), **changes: Any) -> Study:
    """Two sites of about 140 training persons, epsilon 3 unless changed."""
    plan: dict[str, Any] = {"unit": "patient", "epsilon": 3.0, "delta": 1e-4, "persons": {"a": 140, "b": 90}}
    plan |= {"ranges": RANGES} if "clinical" in inputs else {}
    return make_study(inputs, privacy=plan | changes.pop("privacy", {}), **changes)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("patient")
    return [clinical_site(folder / name, name, n, i) for i, (name, n) in enumerate((("a", 200), ("b", 130)))]


def test_a_run_learns_and_says_what_it_cost(manifests: list[Path], tmp_path: Path) -> None:
    study = patient_study(federation__rounds=8, training__lr=0.05, privacy={"epsilon": 8.0})
    run = federate(study, manifests, tmp_path / "run")
    reported = next(e for e in run.events if e["event"] == "privacy")
    assert set(reported["claims"]) == {"a", "b"}
    for site, row in reported["claims"].items():
        assert row["epsilon"] <= 8.0
        assert epsilon(events_from_json(row["events_json"]), 1e-4) == row["epsilon"]
        assert row["events_json"] == claims(study)[site].events_json
    assert reported["epsilon"] == max(row["epsilon"] for row in reported["claims"].values())
    assert "one person of a site" in reported["sentence"]
    assert run.final["metrics"]["test"]["all"]["auroc"] > 0.7
    again = federate(study, manifests, tmp_path / "again")
    assert run.sha256 != again.sha256


def test_neither_numbers_of_persons_nor_losses_leave(manifests: list[Path], tmp_path: Path) -> None:
    run = federate(patient_study(), manifests, tmp_path / "run")
    assert next(e for e in run.events if e["event"] == "agreed")["persons"] == {}
    for event in run.rounds:
        assert all(row["train_loss"] is None and row["seen"] == 0 for row in event["sites"].values())
        assert "train" not in event["metrics"]
    assert all(set(row["metrics"]) <= {"val", "test"} for row in (run.final,))


def test_without_validation_persons_nothing_is_measured_on_those_who_train(manifests: list[Path], tmp_path: Path) -> None:
    study = patient_study(cohort__split={"train": 0.7, "val": 0.0, "test": 0.3})
    run = federate(study, manifests, tmp_path / "run")
    assert all(event["metrics"] == {} for event in run.rounds)
    assert set(run.final["metrics"]) == {"test"}


def test_rate_and_divisor_follow_from_the_study_not_from_who_is_there(manifests: list[Path]) -> None:
    study = patient_study()
    assert sampling(study, "a").rate == 32 / 140
    assert sampling(study, "a").divisor == 32
    assert sampling(study, "a").steps == 5
    assert sampling(patient_study(privacy={"persons": {"a": 20, "b": 90}}), "a").rate == 1
    assert (
        epsilon(training_events(study, "a"), 1e-4)
        <= 3.0
        < epsilon(training_events(study, "a", multiplier=0.99 * noise_multiplier(study, "a")), 1e-4)
    )


def test_stated_constants_come_from_the_ranges_alone(manifests: list[Path], tmp_path: Path) -> None:
    run = federate(patient_study(), manifests, tmp_path / "run")
    assert run.constants()["preprocess.clinical.mean"].tolist() == [3.0, -1.0, 100.0]
    assert run.constants()["preprocess.clinical.std"].tolist() == [3.0, 4.0, 50.0]


def test_noised_sums_have_the_noise_that_is_counted(manifests: list[Path]) -> None:
    study = patient_study(privacy={"statistics": "private", "statistics_multiplier": 2.0})
    cohort, layout = load_cohort((str(manifests[0]),), study), Layout()
    low, high = stated_ranges(study, layout)["preprocess.clinical"]
    draws = np.stack([private_sums(cohort, study, layout)["preprocess.clinical"] for _ in range(6000)])
    counts = draws[:, 0]
    assert counts.std(0) == pytest.approx([6.0] * 3, rel=0.05)  # z x sqrt(9 released sums)
    totals = (draws[:, 1] - (low + high) / 2 * draws[:, 0]) / ((high - low) / 2)
    assert totals.std(0) == pytest.approx([6.0] * 3, rel=0.05)
    rows = cohort.rows("train")
    true = (~np.isnan(clinical_of(cohort).values[rows])).sum(0)
    assert counts.mean(0) == pytest.approx(true, abs=6 / np.sqrt(6000) * 5)
    assert len(training_events(study, "a")) == 2, "the sums are counted too"


def test_private_sums_of_many_persons_are_nearly_the_plain_ones(tmp_path: Path) -> None:
    manifest = image_site(tmp_path / "a", "a", 3000, 3)
    study = patient_study(("image",), privacy={"statistics": "private", "statistics_multiplier": 1.0, "persons": {"a": 2000, "b": 90}})
    cohort, layout = load_cohort((str(manifest),), study), Layout((1, 8, 8))
    made = constants_from(private_sums(cohort, study, layout))
    images = images_of(cohort)
    pixels = images.pixels[np.isin(images.person, cohort.rows("train"))].astype(float)
    assert float(made["preprocess.image.mean"]) == pytest.approx(pixels.mean(), rel=0.02)
    assert float(made["preprocess.image.std"]) == pytest.approx(pixels.std(), rel=0.05)
    assert float(stated_constants(study, layout)["preprocess.image.mean"]) == 127.5


def test_a_person_changes_the_sums_by_at_most_the_sensitivity(manifests: list[Path]) -> None:
    from dataclasses import replace

    from fedml.cohort.persons import with_inputs
    from fedml.privacy.statistics import _unit_sums

    study = patient_study()
    cohort = load_cohort((str(manifests[0]),), study)
    table = clinical_of(cohort)
    low, high = stated_ranges(study, Layout())["preprocess.clinical"]
    row = int(cohort.rows("train")[0])
    for values in ([1e9, -1e9, 1e30], [np.nan] * 3, [np.inf, -np.inf, 5.0], [-3.0, -9.0, 200.0]):
        changed = table.values.copy()
        changed[row] = values
        there = _unit_sums(with_inputs(cohort, clinical=replace(table, values=changed)), "preprocess.clinical", low, high)
        parts = cohort.parts.copy()
        parts[row] = 2
        gone = _unit_sums(replace(cohort, parts=parts), "preprocess.clinical", low, high)
        assert np.linalg.norm(there - gone) <= 3.0 + 1e-9


def test_private_metrics_are_noised_and_counted(manifests: list[Path], tmp_path: Path) -> None:
    study = patient_study(privacy={"metrics": "private", "noise_multiplier": 1.5, "epsilon": None})
    histogram = np.zeros((1, 2, 4096), dtype=np.int32)
    counts = {"persons": np.array([0.0]), "confusion": np.zeros((2, 2), dtype=np.int64), "histogram": histogram}
    counts |= {"brier_sum": np.array([0.0]), "log_loss_sum": np.array([0.0])}
    made = [noised(counts, study) for _ in range(1500)]
    cells = np.concatenate([m["histogram"][m["histogram"] != 0] for m in made])
    expected = 1.5 * 6**0.5  # a cell of the confusion matrix, a bin of the histogram, at most 2 of the Brier sum: 1 + 1 + 2 * 2
    assert np.concatenate([m["confusion"].ravel() for m in made]).std() == pytest.approx(expected, rel=0.06)
    assert len(cells) > 10_000
    assert np.sqrt((cells.astype(float) ** 2).sum() / (1500 * 64)) == pytest.approx(expected, rel=0.02)
    assert np.array([m["brier_sum"] for m in made]).std() == pytest.approx(expected, rel=0.06)
    assert all("log_loss_sum" not in m for m in made)
    run = federate(patient_study(privacy={"metrics": "private"}, federation__rounds=3), manifests, tmp_path / "run")
    reported = next(e for e in run.events if e["event"] == "privacy")
    assert "the counts behind every metric" in reported["sentence"]
    assert "log_loss" not in run.final["metrics"]["test"]["all"]
    assert evaluations(study) == 3


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_one_person_more_changes_the_noised_counts_by_at_most_the_sensitivity_and_by_that_much_at_worst(classes: int) -> None:
    """The counts that noise is added to, of a task's own persons with and without one more; at worst that person is surely wrong."""
    study = make_study(cohort__classes=list(range(classes)))
    task = make_task(study)
    logits = torch.randn(30, classes, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(30) % classes
    histograms = 1 if classes == 2 else classes
    bound = math.sqrt({1: 6, 3: 8, 5: 10}[histograms])
    assert sensitivity(histograms) == pytest.approx(bound)
    surely_wrong = torch.full((1, classes), -40.0)
    surely_wrong[0, 0] = 40.0
    changes = []
    for output in (surely_wrong, torch.randn(1, classes, generator=torch.Generator().manual_seed(2))):
        for label in range(classes):
            more = task.counts(torch.cat([logits, output]), torch.cat([labels, torch.tensor([label])]))
            fewer = task.counts(logits, labels)
            assert fewer["histogram"].shape[0] == histograms
            moved = [np.asarray(more[k] - fewer[k], dtype=np.float64).ravel() for k in ("confusion", "histogram", "brier_sum")]
            changes.append(float(np.linalg.norm(np.concatenate(moved))))
    assert max(changes) == pytest.approx(bound, rel=1e-6)


def test_epsilon_is_kept_for_those_who_are_only_measured_too(manifests: list[Path]) -> None:
    from fedml.privacy.releases import evaluation_events

    study = patient_study(privacy={"metrics": "private"}, federation__rounds=20)
    assert 0 < epsilon(evaluation_events(study), 1e-4) <= 3.0


def test_pooled_training_is_private_as_well(manifests: list[Path], tmp_path: Path) -> None:
    plan = patient_study().model_dump(mode="json")
    plan["privacy"]["persons"] = {"pooled": 230}
    plan["federation"]["sites"] = ["pooled"]
    from fedml.study.study import validate

    run = pooled(validate(Study, plan, "pooled"), manifests, tmp_path / "run")
    assert next(e for e in run.events if e["event"] == "privacy")["epsilon"] <= 3.0


def test_batch_norm_is_refused_with_the_fix() -> None:
    from fedml.errors import InputError

    with pytest.raises(InputError, match='norm = "group"'):
        patient_study(("image",), model__image={"norm": "batch"})


def test_nothing_but_trained_parameters_moves(tmp_path: Path) -> None:
    manifests = [image_site(tmp_path / name, name, 150, i) for i, name in enumerate("ab")]
    study = patient_study(("image",), model__image={"norm": "instance", "channels": [4]})
    run, start = (
        federate(s, manifests, tmp_path / str(i))
        for i, s in enumerate((study, patient_study(("image",), model__image={"norm": "instance", "channels": [4]}, federation__rounds=0)))
    )
    assert all("running" not in key for key in run.arrays)
    assert all(not torch.equal(run.learned()[k], start.learned()[k]) for k in start.learned())
