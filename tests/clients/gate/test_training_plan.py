"""The bounds of the gate count every option of ``[training]``, and an honest run with each of them is answered to its end."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, RecordDict

from fedml.flower.grid import InProcessGrid
from fedml.runs.log import read_events
from fedml.strategies.rounds import run_study
from fedml.study.study import Study
from tests.clients.gate.centre import Arrays, Centre, real_site
from tests.conftest import make_study

SPLIT = {"train": 0.6, "val": 0.2, "test": 0.2}


def plan(training: dict[str, Any], **changes: Any) -> Study:
    sgd = {"optimizer": "sgd", "lr": 0.3}
    return make_study(sites=("a",), **{"cohort__split": SPLIT, "federation__rounds": 9, "training": {**sgd, **training}, **changes})


def rounds(centre: Centre, agreed: Any, first: Arrays, last: int, begin: int = 1) -> list[Arrays]:
    """The models of an honest run of one site: those that were sent, and the last one that it returned."""
    sent = [first]
    for number in range(begin, last + 1):
        assert centre.ask("round", number, 1, agreed, sent[-1]) == ""
        sent.append({k.removeprefix("arrays/"): v for k, v in centre.answered[-1][1].items() if k.startswith("arrays/")})
    return sent


HONEST: dict[str, dict[str, Any]] = {
    "local_steps": {"local_steps": 40},
    "warm-up": {"schedule": {"kind": "cosine", "warmup": 5}},
    "average": {"ema": 0.8},
    "long average": {"ema": 0.99},
    "best": {"keep": "best", "lr": 1.0, "local_steps": 50},
    "patience": {"patience": 1},
    "inverse": {"class_weights": "inverse"},
    "stated weights": {"class_weights": [1.0, 3.0]},
    "kept state": {"keep_optimizer": True, "momentum": 0.9, "nesterov": True},
    "balanced": {"sampling": "balanced"},
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_run_passes_the_gate(name: str, tmp_path: Path) -> None:
    """Of a site whose persons are real and whose centre is only curious."""
    centre = Centre(plan(HONEST[name]), real_site(tmp_path / "a"))
    (tmp_path / "run").mkdir()
    run_study(centre.study, InProcessGrid(centre._handle, [{}]), tmp_path / "run")
    refused = [entry for entry in centre.journal() if entry["verdict"] == "refused"]
    assert refused == []
    final = next(event for event in read_events(tmp_path / "run")[0] if event["event"] == "final")
    assert final["metrics"]["test"]["all"]["persons"] > 0


@pytest.mark.parametrize(
    "training",
    [{"local_steps": 10_001}, {"class_weights": [1e-5, 1.0]}, {"class_weights": [1.0, 1e6]}],
    ids=["steps", "small weight", "large weight"],
)
def test_a_plan_beyond_the_bounds_is_refused_though_approved(tmp_path: Path, training: dict[str, Any]) -> None:
    """Of 240 persons nine are of the second class."""
    folder = real_site(tmp_path / "a")
    lines = (folder / "persons.csv").read_text().splitlines()
    few = [f"{line.split(',')[0]},{int(k < 9)}" for k, line in enumerate(lines[1:])]
    (folder / "persons.csv").write_text("\n".join([lines[0], *few]))
    centre = Centre(plan(training, policy={"min_count": 20} if "class_weights" in training else {}), folder)
    agreed = Centre(plan({}), real_site(tmp_path / "other")).agree(1)
    assert centre.ask("round", 1, 1, agreed, centre.first(agreed)) == "plan-beyond-policy"


@pytest.mark.parametrize(("training", "allowed"), [({"keep": "best"}, True), ({}, False)])
def test_an_early_round_is_evaluated_only_where_the_study_keeps_the_best(tmp_path: Path, training: dict[str, Any], allowed: bool) -> None:
    """The last round's weights are far from the first ones, and each step is small."""
    centre = Centre(plan({"lr": 0.05, "batch_size": 0, **training}), real_site(tmp_path / "a", 'centre = "curious"\nmax_drift = 1.5'))
    agreed = centre.agree(1)
    sent = rounds(centre, agreed, centre.first(agreed), 9)
    centre.restart()  # the digests of the rounds' weights are in the state folder
    crafted = {k: v + np.float32(30) for k, v in sent[1].items()}
    assert centre.ask("evaluate", 9, 1, agreed, crafted) == "not-of-the-plan"
    assert centre.ask("evaluate", 9, 1, agreed, sent[1]) == ("" if allowed else "not-of-the-plan")


@pytest.mark.parametrize(("ema", "allowed"), [(0.9, True), (0.0, False)])
def test_an_average_lies_behind_only_where_the_study_has_one(tmp_path: Path, ema: float, allowed: bool) -> None:
    centre = Centre(plan({"lr": 0.05, "batch_size": 0, "ema": ema}), real_site(tmp_path / "a", 'centre = "curious"\nmax_drift = 1.5'))
    agreed = centre.agree(1)
    sent = rounds(centre, agreed, centre.first(agreed), 9)
    average = sent[1]
    for model in sent[2:]:
        average = {k: np.float32(0.9) * average[k] + np.float32(0.1) * v for k, v in model.items()}
    assert centre.ask("evaluate", 9, 1, agreed, average) == ("" if allowed else "not-of-the-plan")


def test_test_persons_are_not_evaluated_early_without_patience_and_nothing_is_trained_afterwards(tmp_path: Path) -> None:
    for name, training, code in (("a", {}, "rounds-beyond-policy"), ("b", {"patience": 1}, "")):
        centre = Centre(plan(training), real_site(tmp_path / name))
        agreed = centre.agree(1)
        sent = rounds(centre, agreed, centre.first(agreed), 3)
        assert centre.ask("evaluate", 2, 1, agreed, sent[-1]) == "rounds-beyond-policy", "patience cannot have ended the run yet"
        refused = centre.ask("evaluate", 3, 1, agreed, sent[-1])
        assert refused == code
        centre.restart()
        assert centre.ask("round", 4, 1, agreed, sent[-1]) == ("" if code else "not-of-the-plan")


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [3.0, 1.0], [0.0, 1.0], [-1.0, 0.4], [1e-6, 0.5], None], ids=str)
def test_weights_of_classes_are_inverse_to_frequencies(tmp_path: Path, weights: list[float] | None) -> None:
    centre = Centre(plan({"class_weights": "inverse"}), real_site(tmp_path / "a"))
    agreed = centre.agree(1)
    first = centre.first(agreed)
    crafted = replace(agreed, class_weights=None if weights is None else np.array(weights, np.float32))
    assert centre.ask("round", 1, 2, crafted, first) in ("not-of-the-plan", "bad-message", "plan-beyond-policy")
    assert centre.ask("round", 1, 1, agreed, first) == ""


def test_weights_of_classes_are_not_sent_in_other_studies(tmp_path: Path) -> None:
    centre = Centre(plan({}), real_site(tmp_path / "a"))
    agreed = centre.agree(1)
    crafted = replace(agreed, class_weights=np.array([1.0, 1.0], np.float32))
    assert centre.ask("round", 1, 1, crafted, centre.first(agreed)) == "undeclared-record"


def test_a_site_that_missed_rounds_of_a_warm_up_is_not_lost(tmp_path: Path) -> None:
    """Its own updates are shorter than those of the rounds that it missed."""
    schedule = {"kind": "constant", "warmup": 7}
    whole = Centre(plan({"schedule": schedule, "batch_size": 0}), real_site(tmp_path / "a"))
    agreed = whole.agree(1)
    sent = rounds(whole, agreed, whole.first(agreed), 6)
    late = Centre(whole.study, real_site(tmp_path / "b", 'centre = "curious"\nmax_drift = 1.2'))
    again = late.agree(1)
    assert late.ask("round", 1, 1, again, sent[0]) == ""
    assert late.ask("round", 6, 1, again, sent[5]) == ""


def test_the_optimisers_state_stays_at_the_site(tmp_path: Path) -> None:
    centre = Centre(plan({"optimizer": "adam", "lr": 0.05, "keep_optimizer": True}), real_site(tmp_path / "a"))
    agreed = centre.agree(1)
    first = centre.first(agreed)
    assert centre.ask("round", 1, 1, agreed, first, {"counted-round": 0}) == ""
    assert {name.split("/")[0] for name in centre.answered[-1][1]} == {"arrays", "counts"}
    trained = {k.removeprefix("arrays/"): v for k, v in centre.answered[-1][1].items() if k.startswith("arrays/")}
    moments = RecordDict({"optimizer-state": ArrayRecord({k: torch.zeros(v.shape) for k, v in first.items()})})
    given = {name: {k: v.numpy() for k, v in record.items()} for name, record in moments.array_records.items()}
    assert centre.ask("round", 2, 1, agreed, trained, {"counted-round": 1}, **given) == "undeclared-record"
    assert centre.ask("round", 2, 1, agreed, trained, {"counted-round": 1}) == ""
    centre.restart()
    assert centre.ask("round", 3, 1, agreed, trained, {"counted-round": 2}) == "", "its file has it"
    centre.restart()
    assert centre.ask("round", 5, 1, agreed, trained, {"counted-round": 4}) == "state-lost", "that of round 3 is of another round"
    (kept,) = (centre.state / "kept").iterdir()
    shutil.rmtree(kept)
    centre.restart()
    assert centre.ask("round", 6, 1, agreed, trained, {"counted-round": 3}) == "state-lost"
