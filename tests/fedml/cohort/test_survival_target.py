"""The time to an event: how a site's table is read, rounded to the study's grid and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedml.cohort.table import TargetCells
from fedml.errors import InputError
from fedml.study.study import Study, parse_study
from fedml.tasks.survival_labels import time_labels, times_of
from tests.conftest import make_study

GRID = {"time_unit": "days", "grid": "30 days", "until": 120}
COMPETING = {"time": "t", "event": "e", "events": {"relapse": 2, "death": 1, "other": "x"}, "event_of_interest": "relapse"}


def study_of(target: dict[str, Any] | None = None, **survival: Any) -> Study:
    return make_study(model__task="survival", cohort__target=target or {"time": "t", "event": "e"}, survival={**GRID, **survival})


def read(study: Study, **columns: list[Any]) -> Any:
    table = pd.DataFrame(columns, index=[f"p{k}" for k in range(len(columns["t"]))], dtype=object)
    return time_labels(study).read(TargetCells(table, Path("persons.csv")))


def test_times_are_rounded_up_to_the_grid_and_follow_up_ends_with_it() -> None:
    study = study_of()
    assert study.times.edges == (30, 60, 90, 120)
    labels = read(study, t=["0.1", "30", "30.01", "119", "120", "121", "5000"], e=["1", "1", "0", "1", "1", "1", "0"])
    times = times_of(labels)
    assert times.time.tolist() == [0, 0, 1, 3, 3, 3, 3]
    assert times.event.tolist() == [1, 1, 0, 1, 1, 0, 0]  # the event after 120 days is beyond the follow-up
    assert times.first is None
    assert times.at_risk_from().tolist() == [0] * 7


def test_a_decimal_step_has_its_own_multiples_as_edges() -> None:
    study = study_of(grid="0.1 years", time_unit="years", until=3)
    written = [f"{k / 10:.1f}" for k in range(1, 31)]
    assert times_of(read(study, t=written, e=["1"] * 30)).time.tolist() == list(range(30))


def test_competing_events_are_numbered_alike_at_every_site() -> None:
    study = study_of(COMPETING)
    assert study.cohort.time_to_event.names == ("relapse", "death", "other")
    labels = read(study, t=["5"] * 4, e=["0", "2", "1", "x"])
    assert times_of(labels).event.tolist() == [0, 1, 2, 3]
    assert parse_study(study.canonical).cohort.time_to_event.names == ("relapse", "death", "other")
    assert parse_study(study.canonical).sha256 == study.sha256


def test_who_enters_late_is_at_risk_from_the_interval_of_entry() -> None:
    study = study_of({"time": "t", "event": "e", "entry": "from"})
    labels = read(study, t=["50", "50", "100", "500"], e=["1"] * 4, **{"from": ["0", "35", "30", "120"]})
    assert np.isnan(labels[3]).all()  # observed only after the end of follow-up
    times = times_of(labels[:3])
    assert times.first is not None
    assert times.first.tolist() == [0, 1, 1]
    assert (times.first <= times.time).all()
    with pytest.raises(InputError, match=r'persons.csv: column "from" is empty, negative or not before the time in column "t" for 3 pers'):
        read(study, t=["50"] * 4, e=["1"] * 4, **{"from": ["", "-1", "50", "49"]})


@pytest.mark.parametrize(
    ("t", "e", "says"),
    [
        (["0", "5", "-3", "-4", ""], ["1"] * 5, 'column "t" is empty for 1 person(s) and 0 for 1 person(s) and negative for 2 person(s)'),
        (["5"] * 3, ["1", "", ""], 'column "e" is empty for 2 person(s); write the code of what happened, 0 for a person who was censored'),
        (["5"] * 3, ["1", "7", "7"], 'the label in column "e" is "7" for 2 person(s), not one of: 0, 1'),
        (["5", "soon"], ["1", "1"], 'column "t" has no finite number for 1 person(s), such as "soon"'),
    ],
)
def test_a_table_that_cannot_be_right_is_one_sentence(t: list[str], e: list[str], says: str) -> None:
    with pytest.raises(InputError) as refused:
        read(study_of(), t=t, e=e)
    assert str(refused.value).startswith(f"persons.csv: {says}")
    assert str(refused.value).count(". ") == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"survival": {"time_unit": "days", "grid": "30 days"}}, "[survival]: until is missing"),
        ({"survival": {**GRID, "until": 100}}, 'until is 100, which is no multiple of the grid\'s step "30 days"; the next is 120'),
        ({"survival": {**GRID, "grid": "4 weeks"}}, 'grid is "4 weeks" and time_unit "days"; write the grid in days'),
        ({"survival": {**GRID, "grid": "often"}}, 'grid is "often"; write a number and the unit, such as "30 days"'),
        ({"survival": {**GRID, "grid": "0.1 days"}}, "gives more than 500 intervals"),
        ({"survival": {"time_unit": "days", "grid": [30, 20]}}, "grid is not ascending"),
        ({"survival": {**GRID, "horizons": [100]}}, "horizons lists 100, which is not on the grid; the nearest time is 90"),
        ({"survival": None}, "[survival] is missing"),
        ({"model__task": "classification"}, '[cohort] target must be one column with [model] task = "classification"'),
        ({"cohort__target": "y"}, '[cohort] target must be { time = "COLUMN", event = "COLUMN" } with [model] task = "survival"'),
        ({"cohort__target": {"time": "t"}}, "[cohort.target] event is missing; add it."),
        ({"cohort__target": {"time": "t", "event": "e", "evnt": "e"}}, '[cohort.target] evnt is not a known key (did you mean "event"?)'),
        ({"cohort__target": {**COMPETING, "event_of_interest": ""}}, "events lists 3 events; add event_of_interest ="),
        ({"cohort__target": {**COMPETING, "events": {"a": 1, "b": 1}}}, "have the same code"),
        ({"cohort__target": {"time": "t", "event": "t"}}, "two of time, event and entry are the same column"),
        ({"cohort__target": {"time": "x1", "event": "e"}}, 'the target "x1" is also among the clinical columns'),
        ({"model__task": "regression", "cohort__target": "y"}, "[survival] is for times to an event"),
    ],
)
def test_a_study_that_cannot_be_right_is_one_sentence(changes: dict[str, Any], says: str) -> None:
    plan = {"model__task": "survival", "cohort__target": {"time": "t", "event": "e"}, "survival": GRID} | changes
    with pytest.raises(InputError) as refused:
        make_study(**{key: value for key, value in plan.items() if value is not None})
    assert says in str(refused.value)


def test_the_hash_of_another_study_does_not_know_of_times() -> None:
    assert "survival" not in make_study().canonical
    assert "target" in make_study().canonical
