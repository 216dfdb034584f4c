"""Attacks on few persons by studies that a site approved: columns that point to them, subsets, other times, windows, saturated models.

Each ends in a refusal that is in the site's journal, and the honest table of all persons is answered afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedml.clients.gate.approvals import approve
from fedml.study.study import Study
from tests.clients.gate.centre import Centre
from tests.outcomes import Drawn, study_of, write_sites
from tests.strategies.outcomes.test_lying_outcomes_centre import ask, change, cox_given, weighted

POLICY = '[policy]\ncentre = "curious"\nmin_persons = 10\nmin_count = 5\n'
DRAWN = Drawn(persons=(500,), policy=POLICY)
LATE = Drawn(persons=(500,), policy=POLICY, entry=True)
HONEST = study_of(DRAWN, name="honest", task="regression", target="y", describe={"columns": ["sex"]})
BY_ARM = study_of(DRAWN, name="g", task="regression", target="y", describe={"columns": ["sex"], "groups": "arm"})
ALL = {"limits": np.zeros((2, 1))}
BEGIN = {"edges": np.ones(100, np.uint8), "model": np.array([0], np.uint8), "from": np.array([-1, 0])}
WIDE = [500.0, 3000.0]  # two intervals
Asked = tuple[str, Study, dict[str, Any]]
Edit = Callable[[pd.DataFrame], None]


def survival(name: str, **changes: Any) -> Study:
    return study_of(DRAWN, name=name, **{"curves": {}, **changes})


def wide(name: str, edges: list[float] = WIDE, **changes: Any) -> Study:
    """On a grid of few intervals."""
    changes.setdefault("curves", {})
    drawn = LATE if isinstance(changes.get("target"), dict) and "entry" in changes["target"] else DRAWN
    return study_of(drawn, name=name, until=edges[-1], survival={"grid": edges, "horizons": edges}, **changes)


def cox(covariates: list[str], **more: Any) -> Study:
    return survival("cox", cox={"covariates": covariates, "ties": "breslow", **more})


def glm(name: str, covariates: list[str], task: str = "regression", target: str = "y", **more: Any) -> Study:
    return study_of(DRAWN, name=name, task=task, target=target, glm={"covariates": covariates}, **more)


def arms(covariates: list[str], task: str = "regression", target: str = "y", **more: Any) -> Study:
    plan = {"column": "arm", "covariates": covariates, "intercept": "one"}
    return study_of(DRAWN, name="arms", task=task, target=target, treatment=plan, **more)


def at(columns: int, beta: float = 0.0, **more: Any) -> dict[str, Any]:
    """A step of a regression."""
    coefficients = np.append(np.zeros(columns), beta) if columns else np.zeros(1)
    return {"centre": np.zeros(columns), "scale": np.ones(columns), "beta_one": coefficients, "robust": np.ones(1, np.uint8), **more}


def edges(*value: int) -> dict[str, Any]:
    return {"edges": np.array(value, np.uint8)}


# --- what the site's tables hold


def only(column: str, value: Any, other: Any, persons: int = 1) -> Edit:
    """``persons`` have ``value``, everybody else ``other``."""

    def edit(table: pd.DataFrame) -> None:
        table[column] = [value] * persons + [other] * (len(table) - persons)

    return edit


def missing(column: str) -> Edit:
    def edit(table: pd.DataFrame) -> None:
        table[column] = table[column].astype(object)
        table.loc[:1, column] = None

    return edit


def another(column: str, of: str, places: int, add: Callable[[Any], Any]) -> Edit:
    """A further column, equal to ``of`` but for the first persons."""

    def edit(table: pd.DataFrame) -> None:
        table[column] = table[of]
        table.loc[: places - 1, column] = add(table.loc[: places - 1, of])

    return edit


def first(rows: int) -> Edit:
    def edit(table: pd.DataFrame) -> None:
        table.drop(table.index[rows:], inplace=True)

    return edit


def both_events(table: pd.DataFrame) -> None:
    """The last two persons have another event."""
    table.loc[len(table) - 2 :, "event"] = 2


def earlier(persons: int, until: float) -> Edit:
    """All but so many end before ``until``."""

    def edit(table: pd.DataFrame) -> None:
        table["time"] = np.minimum(table.time, until - 1)
        table.loc[: persons - 1, "time"] = until + 50

    return edit


def later(persons: int, after: float) -> Edit:
    """All but so many end after it."""

    def edit(table: pd.DataFrame) -> None:
        table["time"] = np.maximum(table.time, after + 1)
        table.loc[: persons - 1, "time"] = 20

    return edit


def few_of_outcome(table: pd.DataFrame) -> None:
    """Two persons have the class 1."""
    table["b"] = 0
    table.loc[:1, "b"] = 1


def moved(values: Any) -> Any:
    return 1000.0 - values


ENTRY = {"time": "time", "event": "event", "entry": "entry"}
TWO = {"time": "time", "event": "event", "events": {"death": 1, "relapse": 2}, "event_of_interest": "death"}
LOGISTIC = {"task": "classification", "target": "b", "more": {"classes": [0, 1]}}
COUNT: dict[str, Any] = {"task": "count", "target": "count", "more": {"exposure": "exposure"}}
FEW, FORM, NUMBERS, OFTEN = "too-few-persons", "undeclared-record", "non-finite", "rounds-beyond-policy"
Attack = tuple[dict[str, Edit], list[Asked], str]
AGES = glm("ages", ["age", "sex"])
ALONE: dict[str, Edit] = {"clinical": only("sex", 1, 0)}
ARMS = weighted([0.0, 0.1, 0.0])

# Edits of the tables persons and clinical; what is asked, the last of which must be refused; why.
ATTACKS: dict[str, Attack] = {
    "curves of a group of one": ({"clinical": only("arm", "B", "A")}, [("grid", survival("a", curves={"groups": "arm"}), BEGIN)], FEW),
    "curves of a group of three": (
        {"clinical": only("stage", "III", "I", 3)},
        [("grid", survival("a", curves={"groups": "stage"}), BEGIN)], FEW),
    "a group of one on a grid of one interval": (
        {"clinical": only("arm", "B", "A")}, [("times", wide("a", [3000.0], curves={"groups": "arm"}), edges(1))], FEW),
    "a window at the end with two persons": ({"persons": earlier(2, 900)}, [("times", wide("a", [900.0, 3000.0]), edges(1, 1))], FEW),
    "a window at the start with two persons": ({"persons": later(2, 30)}, [("times", wide("a", [30.0, 3000.0]), edges(1, 1))], FEW),
    "Cox on a window with two persons": (
        {"persons": earlier(2, 900)},
        [("hazard", wide("a", [900.0, 3000.0], cox={"covariates": ["age", "sex"]}), cox_given(np.ones(2, np.uint8)))], FEW),
    "a competing event of two persons": ({"persons": both_events}, [("times", wide("a", target=TWO), edges(1, 1))], FEW),
    "another time of two persons": (
        {"persons": another("time2", "time", 2, lambda t: np.where(t <= 500, 900, 100))},
        [("times", wide("a"), edges(1, 1)), ("times", wide("b", target={"time": "time2", "event": "event"}), edges(1, 1))], FEW),
    "another event of one person": (
        {"persons": another("event2", "event", 1, lambda e: 1 - e)},
        [("times", wide("a"), edges(1, 1)), ("times", wide("b", target={"time": "time", "event": "event2"}), edges(1, 1))], FEW),
    "another entry of one person": (
        {"persons": lambda t: (another("entry", "time", len(t), lambda v: 600.0 * (np.arange(len(v)) % 2))(t),
                               t.update({"time": np.maximum(t.time, 700.0)}),
                               another("entry2", "entry", 1, lambda v: 600.0)(t))[0]},
        [("times", wide("a", target=ENTRY), edges(1, 1)), ("times", wide("b", target=ENTRY | {"entry": "entry2"}), edges(1, 1))], FEW),
    "a person's indicator in Cox, moments": (ALONE, [("moments", cox(["age", "sex"]), {})], FEW),
    "a person's indicator in Cox, hazard": (
        ALONE,
        [("hazard", wide("a", cox={"covariates": ["age", "sex"]}), cox_given(np.ones(2, np.uint8)))], FEW),
    "a person's indicator in Cox, the site alone": (
        ALONE, [("alone", wide("a", cox={"covariates": ["age", "sex"]}), edges(1, 1))], FEW),
    "a person's indicator in a linear model": (ALONE, [("glm", AGES, at(2))], FEW),
    "a person's indicator, the site alone": (ALONE, [("alone", AGES, {})], FEW),
    "a person's indicator in a logistic model": (ALONE, [("glm", glm("l", ["age", "sex"], **LOGISTIC), at(2))], FEW),
    "a person's indicator in a model of counts": (ALONE, [("glm", glm("p", ["age", "sex"], **COUNT), at(2))], FEW),
    "a person's indicator in a propensity": (ALONE, [("weighted", arms(["age", "sex"]), ARMS)], FEW),
    "a saturated Cox model": (
        {"clinical": first(30), "persons": first(30)}, [("moments", cox(["age", "sex", "arm", "stage", "cell"]), {})], FEW),
    "a saturated linear model": (
        {"clinical": first(30), "persons": first(30)}, [("moments", glm("s", ["age", "sex", "arm", "stage", "cell"]), {})], FEW),
    "two cases among the controls": ({"persons": few_of_outcome}, [("moments", glm("l", ["age"], **LOGISTIC), {})], FEW),
    "two cases, a step of the model": ({"persons": few_of_outcome}, [("glm", glm("l", ["age"], **LOGISTIC), at(1))], FEW),
    "two cases in a comparison of treatments": (
        {"persons": few_of_outcome}, [("weighted", arms(["age", "sex"], **LOGISTIC), ARMS)], FEW),
    "a treatment of three persons": ({"clinical": only("arm", "B", "A", 3)}, [("weighted", arms(["age", "sex"]), ARMS)], FEW),
    "coefficients that saturate a logistic model": ({}, [("glm", glm("l", ["age"], **LOGISTIC), at(1, 40.0))], FEW),
    "coefficients that single out in counts": ({}, [("glm", glm("p", ["age"], **COUNT), at(1, 5.0))], FEW),
    "a model without two persons, after the table of all": (
        {"clinical": missing("age")}, [("description", HONEST, ALL), ("moments", AGES, {})], FEW),
    "curves without two persons, after the table of all": (
        {"clinical": missing("arm")}, [("description", HONEST, ALL), ("grid", survival("a", curves={"groups": "arm"}), BEGIN)], FEW),
    "treatments without two persons, after the table of all": (
        {"clinical": missing("arm")}, [("description", HONEST, ALL), ("moments", arms(["age", "sex"]), {})], FEW),
    "a table by groups without two persons, after that of all": (
        {"clinical": missing("arm")},
        [("description", HONEST, ALL),
         ("description", BY_ARM, ALL)], FEW),
    "a table of a group of two": (
        {"clinical": only("arm", "B", "A", 2)},
        [("description", BY_ARM, ALL)], FEW),
    "an infinite scale": ({}, [("glm", AGES, at(2, scale=np.array([1.0, np.inf])))], NUMBERS),
    "a centre that is no number": ({}, [("hazard", wide("a", cox={"covariates": ["age", "sex"]}),
                                         cox_given(np.ones(2, np.uint8)) | {"centre": np.full(2, np.nan)})], NUMBERS),
    "a mean that is no number": ({}, [("weighted", arms(["age", "sex"]), ARMS | {"at": np.full(2, np.nan)})], NUMBERS),
    "negative weights of residuals": (
        {}, [("residuals", wide("a", cox={"covariates": ["age", "sex"]}), cox_given(np.ones(2, np.uint8)) | {
            "rise": -np.ones(2), "tie": np.zeros(2), **dict.fromkeys(("at_event", "rise_x", "tie_x"), np.zeros((2, 2)))})], FORM),
    "a step of an analysis that the study has not": ({}, [("weighted", AGES, ARMS)], FORM),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_few_persons_are_not_told_of_and_the_honest_table_is(name: str, tmp_path: Path) -> None:
    edits, asked, expected = ATTACKS[name]
    write_sites(tmp_path, LATE if "entry" in name else DRAWN)
    site = tmp_path / "sites" / "s0"
    for table, edit in edits.items():
        change(site, table, edit)
    centre = Centre(HONEST, site)
    for run, (phase, study, given) in enumerate(asked, 1):
        approve(centre.state, study, "Dr. Test")
        answer = ask(centre, phase, 0, run, study, **given)
        assert answer == (expected if run == len(asked) else ""), phase
        centre.restart()
    last = centre.journal()[-1]
    assert (last["phase"], last["reason"]) == (asked[-1][0], expected)
    assert ask(centre, "description", 0, 90, HONEST, **ALL) == ""


def test_steps_beyond_those_of_an_analysis_are_refused(tmp_path: Path) -> None:
    write_sites(tmp_path, DRAWN)
    centre = Centre(AGES, tmp_path / "sites" / "s0")
    assert ask(centre, "glm", 0, 1, AGES, **at(2)) == ""
    for phase, number, given in (("glm", 1000, at(2)), ("moments", 1, {}), ("alone", 1, {})):
        assert ask(centre, phase, number, 1, AGES, **given) == OFTEN
    assert [entry["reason"] for entry in centre.journal()].count(OFTEN) == 3
