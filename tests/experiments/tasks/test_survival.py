"""Survival through whole runs: a linear model over sites is that of the pooled persons, and what is made of a run knows the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch
from flwr.app import RecordDict
from lifelines.utils import concordance_index

from fedml.clients.desk.rehearsal import rehearse
from fedml.clients.site.manifest import read_site
from fedml.contract.plausible import check_plausible
from fedml.errors import InputError, Reason, SiteError
from fedml.experiments.evidence.model_card import model_card
from fedml.experiments.models.predictions import predictions
from fedml.experiments.report.page import figures, render, report_facts
from fedml.study.study import Study
from fedml.tasks.registry import make_task
from fedml.wire.records import COUNTS, Phase, pack
from tests.conftest import federate
from tests.experiments.tasks.pooled import COLUMNS, CONVERGED, SITES, column_site, raw_weights, table_of, three_columns
from tests.report_runs import parsed, record_of

GRID = [100.0, 250.0, 600.0]
TIMED: dict[str, Any] = {
    "model__task": "survival", "cohort__target": {"time": "days", "event": "died"},
    "survival": {"time_unit": "days", "grid": GRID, "horizons": [250, 600]},
}  # fmt: skip


def study_of(**changes: Any) -> Study:
    return three_columns(**(TIMED | changes))


def timed_site(folder: Path, name: str, persons: int, seed: int) -> Path:
    """Times that depend on two columns, about a third of them censored; sites of different risk."""
    rng = np.random.default_rng(seed)
    x = rng.normal(seed / 3, 1, (persons, 3))
    event = rng.exponential(300 * np.exp(-0.7 * x[:, 0] + 0.5 * x[:, 1]))
    lost = rng.uniform(50, 1200, persons)
    days = np.maximum(np.minimum(event, lost).round(1), 0.1)
    return column_site(folder, name, x, {"days": days.tolist(), "died": (event <= lost).astype(int).tolist()})


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("times")
    return [timed_site(folder / name, name, 160 + 60 * k, k) for k, name in enumerate(SITES)]


def test_a_linear_model_of_three_sites_is_a_logistic_regression_of_the_persons_at_risk_in_each_interval(
    manifests: list[Path], tmp_path: Path
) -> None:
    found = federate(study_of(**CONVERGED, training__lr=1.5, federation__rounds=150), manifests, tmp_path / "run").arrays
    table = table_of(manifests, study_of(), "train")
    weight, intercept = raw_weights(found)
    place = np.searchsorted(GRID, table["days"])
    for k in range(len(GRID)):
        there = place >= k
        died = (place == k) & (table["died"] == 1)
        fitted = sm.Logit(died[there].to_numpy().astype(int), sm.add_constant(table.loc[there, COLUMNS].to_numpy())).fit(
            disp=False, tol=1e-10
        )
        np.testing.assert_allclose([intercept[k] - np.log(len(GRID)), *weight[k]], fitted.params, atol=2e-3)


@pytest.mark.parametrize("kind", ["discrete", "cox"])
def test_a_run_is_written_and_its_predictions_are_those_of_its_metrics(kind: str, manifests: list[Path], tmp_path: Path) -> None:
    study = study_of(training__lr=0.03, federation__rounds=6, model__survival=kind)
    record = record_of(study, manifests, tmp_path)
    table = predictions(record.run, {m.parent.name: read_site(m) for m in manifests})
    assert list(table.columns) == ["site", "id", "part", "label_days", "label_died", "survival_250", "survival_600", "risk"]
    assert set(table["label_days"]) == set(GRID), "no exact time is kept"
    assert (table["survival_250"] > table["survival_600"]).all()
    table = table[table["part"] == "test"]
    found = record.final.metrics["test"]["all"]
    peer = concordance_index(table["label_days"], -table["risk"], table["label_died"])
    assert found["c_index"] == pytest.approx(peer, abs=2e-3)
    assert found["c_index"] > 0.6
    page = parsed(render(record))
    assert "C-index" in page.section("answer")
    assert "C-index" in page.section("by-site")
    over_time = figures(record)["over_time"]
    alive = table[["survival_250", "survival_600"]].mean()
    assert [1 - row["predicted"] for row in over_time["horizons"]] == pytest.approx(alive.tolist(), abs=1e-5)
    assert "Measures at each horizon on test persons" in page.section("over-time")
    assert page.section("over-time").count("predicted risk") >= 2
    assert "report.html#over-time" in report_facts(record)["calibration"].pointers
    assert "probability of no event by 250, 600 days" in model_card(record)


def test_exact_times_are_in_no_file_of_a_run(manifests: list[Path], tmp_path: Path) -> None:
    record = record_of(study_of(federation__rounds=1), manifests, tmp_path)
    exact = {f"{days}" for m in manifests for days in pd.read_csv(m.parent / "persons.csv")["days"]}
    exact = {text for text in exact if len(text) >= 5 and not text.endswith(".0")}
    written = "\n".join(p.read_text(encoding="utf-8", errors="ignore") for p in record.run.rglob("*.json*"))
    assert len(exact) > 100
    assert not [text for text in exact if f" {text}," in written or f"[{text}," in written]


def test_it_is_rehearsed_with_placeholder_times(manifests: list[Path]) -> None:
    played = rehearse(read_site(manifests[0]), study_of())
    assert [e.phase for e in played.entries if e.direction == "out"] == ["describe", "statistics", "round", "evaluate"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__sampling": "balanced"}, r"\[training\] sampling needs classes of persons"),
        ({"model__survival": "aft"}, r"\[model\] survival must be 'discrete' or 'cox'"),
        ({"cohort__cluster": "family"}, r"\[cohort\] cluster is not built for"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        study_of(**changes)


def test_counts_that_a_site_cannot_have_are_refused_at_the_centre() -> None:
    rng = np.random.default_rng(0)
    label = torch.tensor([[k % 3, k % 2] for k in range(30)], dtype=torch.float64)
    counts = make_task(study_of()).counts(torch.from_numpy(rng.normal(size=(30, 3))), label)
    persons = {"train": [0], "val": [0], "test": [30]}
    honest = {f"test/{name}": value for name, value in counts.items()}
    check_plausible(study_of(), Phase.EVALUATE, RecordDict({COUNTS: pack(honest)}), persons)
    lies = {
        "ranks": counts["ranks"] * 2, "times": counts["times"] + 10, "alive_sum": -counts["alive_sum"],
        "alive_sq_sum": counts["alive_sq_sum"] * 9, "beyond": counts["beyond"] + 1e6,
    }  # fmt: skip
    for name, value in lies.items():
        wrong = RecordDict({COUNTS: pack(honest | {f"test/{name}": value})})
        with pytest.raises(SiteError) as refused:
            check_plausible(study_of(), Phase.EVALUATE, wrong, persons)
        assert refused.value.reason is Reason.IMPLAUSIBLE, name
