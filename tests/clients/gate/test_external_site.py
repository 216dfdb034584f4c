"""A site that only tests the final model, and a centre that chooses every message: no round, no exact counts of weights of its choice."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.clients.gate.foresee import would_refuse
from fedml.clients.gate.ledger import Ledger
from fedml.clients.gate.trust import words
from fedml.clients.site.manifest import read_site
from fedml.privacy.accounting import epsilon
from fedml.privacy.releases import claims, evaluation_events
from fedml.study.study import Study
from tests.clients.gate.centre import Arrays, Centre, isolating, real_site
from tests.clients.gate.test_lying_centre import PRIVATE
from tests.conftest import clinical_site, make_study

TRAINING = {"federation__rounds": 6, "cohort__split": {"train": 0.6, "val": 0.2, "test": 0.2}}


def plan(**changes: Any) -> Study:
    return make_study(sites=("a", "b"), **{**TRAINING, "federation__evaluate_only": ["a"], **changes})


def honest(folder: Path) -> tuple[Any, Arrays]:
    """The agreement and the first weights of a federation of which the site is no part."""
    other = Centre(make_study(sites=("a",), **TRAINING), real_site(folder, seed=7))
    agreed = other.agree(1)
    return agreed, other.first(agreed)


def chosen(weights: Arrays) -> Arrays:
    return isolating(weights["encoder.clinical.weight"].shape, 50.0, 30.0, np.array([0, 7.0, 0.3], np.float32), 1.0)[0]


def test_without_trust_exact_counts_of_unknown_weights_are_refused(tmp_path: Path) -> None:
    """The site sees no round, so it cannot tell the run's result from weights that read a person's values."""
    agreed, weights = honest(tmp_path / "other")
    for level in ("curious", "distrusted"):
        centre = Centre(plan(), real_site(tmp_path / level, f'centre = "{level}"'))
        assert centre.ask("describe", 0, 1) == "centre-distrusted"
        for sent in (weights, chosen(weights)):
            assert centre.ask("evaluate", 6, 1, agreed, sent) == "centre-distrusted"
        assert centre.answered == []
        site = read_site(tmp_path / level)
        assert "every request will be refused" in words(level, plan(), site)  # type: ignore[arg-type]
        assert any("--trust-centre" in line for line in would_refuse(site, plan(), 240))
        assert not list(would_refuse(site, plan(), 240, "we know the centre"))


def test_with_stated_trust_the_model_is_evaluated_once_on_all_persons(tmp_path: Path) -> None:
    agreed, weights = honest(tmp_path / "other")
    centre = Centre(plan(), real_site(tmp_path / "a"), trust="the centre is ours")
    assert centre.ask("describe", 0, 1) == ""
    assert centre.answered[0][1]["described/persons"].sum(1).tolist() == [0, 0, 240]
    for phase, number in (("statistics", 0), ("round", 1), ("round", 6)):
        assert centre.ask(phase, number, 1, agreed, weights if phase == "round" else None) == "not-of-the-plan"
    assert centre.ask("evaluate", 3, 1, agreed, weights) == "rounds-beyond-policy"
    assert centre.ask("evaluate", 6, 1, agreed, weights) == ""
    counts = centre.answered[-1][1]
    assert counts["counts/test/persons"].tolist() == [240]
    assert {name.split("/")[1] for name in counts} == {"test"}
    assert centre.ask("evaluate", 6, 2, agreed, chosen(weights)) == "replayed"
    centre.restart()
    assert centre.ask("evaluate", 6, 3, agreed, chosen(weights)) == "replayed"
    assert centre.ask("round", 1, 4, agreed, weights) == "not-of-the-plan"
    rows = [(row.messages, row.persons, row.epsilon) for row in Ledger(centre.state / "ledger.db").spends(1e-5)]
    assert rows == [(1, 240, math.inf)], "the answer is in the ledger, without an epsilon"


def test_public_data_are_answered(tmp_path: Path) -> None:
    agreed, weights = honest(tmp_path / "other")
    clinical_site(tmp_path / "a", "a", 60, 1)
    centre = Centre(plan(), tmp_path / "a")
    assert centre.ask("round", 1, 1, agreed, weights) == "not-of-the-plan"
    assert centre.ask("evaluate", 6, 1, agreed, weights) == ""


def test_exact_counts_of_few_public_persons_may_be_sent(tmp_path: Path) -> None:
    """But not of few who are not public: three validation persons of 60."""
    few = make_study(sites=("a",), cohort__split={"train": 0.9, "val": 0.04, "test": 0.06})
    clinical_site(tmp_path / "a", "a", 60, 1)
    centre = Centre(few, tmp_path / "a")
    assert centre.ask("describe", 0, 1) == ""
    exact = centre.answered[0][1]["described/persons"].sum(1)
    assert 0 < exact[1] < 5
    real = Centre(few, real_site(tmp_path / "b", persons=60))
    assert real.ask("describe", 0, 1) == "too-few-persons"


def test_a_site_that_trains_gains_no_such_right(tmp_path: Path) -> None:
    agreed, weights = honest(tmp_path / "other")
    centre = Centre(plan(federation__evaluate_only=["b"]), real_site(tmp_path / "a"))
    assert centre.ask("evaluate", 6, 1, agreed, weights) == "not-of-the-plan"


def test_too_few_test_persons(tmp_path: Path) -> None:
    centre = Centre(plan(), real_site(tmp_path / "a", 'centre = "curious"\nmin_persons = 241'), trust="ours")
    assert centre.ask("describe", 0, 1) == "too-few-persons"


def test_noised_metrics_need_no_trust_and_cost_one_evaluation(tmp_path: Path) -> None:
    agreed, weights = honest(tmp_path / "other")
    study = plan(privacy={**PRIVATE, "persons": {"b": 140}})
    centre = Centre(study, real_site(tmp_path / "a", "max_epsilon = 5"))
    assert centre.ask("describe", 0, 1) == ""
    assert "described/persons" not in centre.answered[0][1]
    assert centre.ask("evaluate", 6, 1, agreed, chosen(weights)) == ""
    spent = Ledger(centre.state / "ledger.db").spent(1e-5)
    once = epsilon(evaluation_events(study, 1), 1e-5)
    assert spent == pytest.approx(once)
    found = claims(study)
    assert found["a"].epsilon == pytest.approx(once)
    assert found["a"].covers == ("the counts behind every metric",)
    assert found["b"].epsilon > once
