"""Sentences of report and plan that some run would make untrue: each is shown a run, or a study, of which it must say otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedml.experiments.checklists.facts import facts_of
from fedml.experiments.report import words
from fedml.experiments.report.page import figures, render
from fedml.experiments.runs.record import Record
from fedml.strategies.describe import leaves
from fedml.study.start import Start, StartArray
from tests import report_runs
from tests.conftest import make_study
from tests.report_runs import parsed


@pytest.fixture(scope="module")
def records(shared_folder: Path) -> dict[str, Record]:
    return report_runs.records(shared_folder)


def of(record: Record, **policy: Any) -> dict[str, Any]:
    """The figures of a run whose sites disclosed other limits."""
    found = figures(record)
    for row in found["sites"].values():
        row["policy"] = None if policy.get("none") else {**row["policy"], **policy}
    return found


@pytest.mark.parametrize(
    ("every", "val", "said", "unsaid"),
    [
        (1, 0.1, "over its validation persons, if it has enough of them", "in round 1"),
        (1, 0.0, "the split plans no validation persons", "in round 1"),
        (10, 0.1, "in round 1 and every 10 rounds after it counts of", "plans no"),
        (0, 0.1, "never before the end counts of", "plans no"),
    ],
)
def test_the_plan_says_when_which_persons_are_evaluated(every: int, val: float, said: str, unsaid: str) -> None:
    study = make_study(training__evaluate_every=every, cohort__split={"train": 0.6, "val": val, "test": 0.4 - val})
    text = leaves(study)
    assert said in text[1]
    assert unsaid not in text[1]
    assert "over its validation and its test persons" in text[2], "the last evaluation is of both (client.py)"


def test_a_site_that_missed_a_round_did_not_take_part_in_every_round(records: dict[str, Record]) -> None:
    record = records["two_classes"]
    assert "2 of them took part in every round" in words.took_part(record, figures(record))
    first = replace(record.rounds[0], sites={"a": record.rounds[0].sites["a"]}, refused={"b-with-quite-a-long-name": "no-answer"})
    sites = tuple(replace(s, rounds=s.rounds[1:]) if s.name != "a" else s for s in record.sites)
    less = replace(record, rounds=(first, *record.rounds[1:]), sites=sites)
    assert "2 sites of 2 agreed; 3 of 3 planned rounds were done. 1 of them took part in every round" in words.took_part(
        less, figures(less)
    )


def test_where_the_data_were_is_that_of_the_engine(records: dict[str, Record]) -> None:
    record = records["two_classes"]
    assert "All sites' data were on one machine" in words.privacy(figures(record))[1]
    assert "no hospital was asked to approve" in words.trusted(record, figures(record))[0]
    deployed = replace(record, start=replace(record.start, engine="deployment"))
    text = " ".join([*words.privacy(figures(deployed)), *words.trusted(deployed, figures(deployed))])
    assert "Persons' data stayed at their sites." in text
    assert "One trusts each site for its own counts" in text
    assert "on one machine" not in text


def test_exact_counts_are_said_of_public_data_only(records: dict[str, Record]) -> None:
    record = records["two_classes"]
    assert (
        "All sites say that their data are public: counts, updates and other sums that left them are exact."
        in words.privacy(of(record, public=True))[0]
    )
    for policy in ({"public": False}, {"none": True}):
        assert "counts of few persons were rounded or withheld" in words.privacy(of(record, **policy))[0]


def test_no_budget_is_called_granted_or_not_where_none_is_kept(records: dict[str, Record]) -> None:
    """Public data have no ledger: epsilon is spent, and ``max_epsilon`` is 0 all the same."""
    from fedml.experiments.report.sections import policies

    record = records["private"]
    assert "none granted" in policies(record, of(record, public=False, max_epsilon=0.0))
    text = policies(record, of(record, public=True, max_epsilon=0.0))
    assert "none granted" not in text
    assert "not limited: public data" in text
    assert "none granted" not in policies(record, of(record, public=False, max_epsilon=3.0))


def test_what_stands_for_a_missing_value_and_standardises_is_what_the_plan_does(records: dict[str, Record]) -> None:
    exact, stated = facts_of(records["two_classes"]), facts_of(records["private"])
    assert "replaced by the mean and" in exact["missing"].text
    assert "replaced by the middle of the range that the study states" in stated["missing"].text
    assert "by mean and standard deviation, from sums over the training persons" in exact["preprocessing"].text
    assert "by the middle and a quarter of the width of the range" in stated["preprocessing"].text
    assert "not counts" in stated["training"].text
    assert "not counts" not in exact["training"].text


def test_weights_from_before_are_said(records: dict[str, Record]) -> None:
    record = records["two_classes"]
    assert "no pretrained weights are used" in facts_of(record)["initialisation"].text
    start = Start(sha256="a" * 64, arrays={"fusion.weight": StartArray(shape=(1, 1), sha256="b" * 64)})
    model = record.study.model.model_copy(update={"start": start})
    begun = replace(
        record, study=record.study.model_copy(update={"model": model}), agreed=replace(record.agreed, started=["fusion.weight"])
    )
    text = facts_of(begun)["initialisation"].text
    assert text.startswith(f"1 array of the model begin as in a file of weights with SHA-256 {'a' * 64}")
    assert "no pretrained weights" not in text


def test_the_noise_of_a_private_run_is_not_said_to_come_out_again(records: dict[str, Record]) -> None:
    assert "confirms identical bits" in parsed(render(records["two_classes"])).section("check")
    text = parsed(render(records["private"])).section("check")
    assert "the noise is drawn anew, so bits differ" in text
    assert "identical bits" not in text


def test_learning_curves_are_said_to_be_of_the_rounds_that_were_evaluated(records: dict[str, Record]) -> None:
    record = records["two_classes"]
    assert "Measured at the start of each round" in parsed(render(record)).section("learning")
    training = record.study.training.model_copy(update={"evaluate_every": 2})
    rarer = replace(record, study=record.study.model_copy(update={"training": training}), rounds=(record.rounds[0], record.rounds[2]))
    assert "at the start of round 1 and then once every 2 rounds" in parsed(render(rarer)).section("learning")
