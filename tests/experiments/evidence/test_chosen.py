"""The bundle of a run whose metrics chose the model and the end: which round it is follows from the log, for any signer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedml.experiments.checklists.facts import facts_of
from fedml.experiments.evidence.archive import unpack
from fedml.experiments.evidence.bundle import write_bundle
from fedml.experiments.evidence.verify import summary, verify
from fedml.experiments.models.promote import check_sound
from fedml.experiments.report.page import write_report
from fedml.experiments.runs.record import read_record
from tests.conftest import clinical_site, make_study
from tests.evidence import KEY, events, finished, rebuilt

SPLIT = {"train": 0.5, "val": 0.25, "test": 0.25}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chosen")
    for seed, name in enumerate("ab"):
        clinical_site(folder / "sites" / name, name, 120, seed)
    training = {"optimizer": "sgd", "lr": 20.0, "keep": "best", "patience": 2}
    return finished(make_study(training=training, cohort__split=SPLIT, federation__rounds=12), folder)


def test_the_chosen_round_is_in_record_report_checklist_and_bundle(run: Path, tmp_path: Path) -> None:
    record = read_record(run)
    assert 3 < len(record.rounds) < 12, "the data of this test must end the run early"
    scores = {event.round: event.metrics["val"]["all"]["auroc"] for event in record.rounds}
    best = max((n for n in scores if n > 1), key=lambda n: (scores[n], -n))
    assert record.final.kept == best - 1
    assert record.final.round == len(record.rounds) == best + 2
    write_report(record, tmp_path / "report.html")
    assert f"The result is the model of round {best - 1}" in (tmp_path / "report.html").read_text()
    assert f"the model after round {best - 1}, which had the best validation scores" in facts_of(record)["selection"].text
    check_sound(record)
    write_bundle(run, tmp_path / "run.zip", KEY)
    found = verify(tmp_path / "run.zip")
    assert [check for check in found.checks if not check.ok] == []


def other_kept(rows: list[dict[str, Any]]) -> None:
    rows[-2]["kept"] = 7


def no_kept(rows: list[dict[str, Any]]) -> None:
    del rows[-2]["kept"]


def one_round_less(rows: list[dict[str, Any]]) -> None:
    rows.remove([row for row in rows if row["event"] == "round"][-1])
    rows[-2]["round"] -= 1


def no_metrics(rows: list[dict[str, Any]]) -> None:
    next(row for row in rows if row["event"] == "round")["metrics"] = {}


@pytest.mark.parametrize("change", [other_kept, no_kept, one_round_less, no_metrics])
def test_another_round_is_caught_for_any_signer(change: Any, run: Path, tmp_path: Path) -> None:
    write_bundle(run, tmp_path / "run.zip", KEY)
    files = unpack(tmp_path / "run.zip")
    forged = rebuilt(files, tmp_path / "forged.zip", {"events.jsonl": events(files, change)})
    found = verify(forged)
    assert "events.jsonl" in {check.file for check in found.checks if not check.ok}, summary(found)
    assert json.loads(files["events.jsonl"].splitlines()[-2])["event"] == "final"
