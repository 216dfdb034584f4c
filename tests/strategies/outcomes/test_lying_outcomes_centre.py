"""A centre that asks an analysis of outcomes of its choice against one site's real gate: attacks on few persons are refused and noted."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedml.clients.gate.approvals import approve
from fedml.errors import InputError
from fedml.study.study import Study, validate
from tests.clients.gate.centre import Centre
from tests.outcomes import Drawn, study_of, write_sites

DRAWN = Drawn(persons=(500,), policy='[policy]\ncentre = "curious"\nmin_persons = 20\nmin_count = 5\n')
COX = {"covariates": ["age", "sex"], "ties": "breslow"}


def study(name: str = "trial", **changes: Any) -> Study:
    return study_of(DRAWN, name=name, **{"curves": {}, "cox": COX, **changes})


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    write_sites(tmp_path, DRAWN)
    return Centre(study(), tmp_path / "sites" / "s0")


AGREED = {"panel": np.zeros(0, np.uint8), "flips": np.zeros(0, np.uint8), "image_shape": np.zeros(0, np.int64)}


def ask(site: Centre, phase: str, number: int, run: int = 1, of: Study | None = None, **given: Any) -> str:
    return site.ask(phase, number, run, study=of, agreement=AGREED, analysis=given)


def grid_of(centre: Centre, model: int, run: int = 1, of: Study | None = None, start: Any = None, number: int = 0) -> Any:
    """The grid that an honest centre agrees on with the site."""
    begin = np.ones(len((of or centre.study).times.edges), np.uint8) if start is None else start
    edges, last = np.zeros_like(begin), -1
    while last < len(begin) - 1:
        given = {"edges": begin, "model": np.array([model], np.uint8), "from": np.array([last, last + 1])}
        assert ask(centre, "grid", number, run, of, **given) == ""
        last, number = int(centre.answered[-1][1]["analysis/end"][0]), number + 1
        edges[last] = 1
    return edges


def cox_given(edges: Any, **more: Any) -> dict[str, Any]:
    return {"edges": edges, "centre": np.array([60.0, 0.5]), "scale": np.array([10.0, 0.5]), "beta": np.zeros(2), **more}


def test_an_honest_centre_is_answered_and_its_rerun_too(centre: Centre) -> None:
    for run in (1, 2):
        edges = grid_of(centre, 0, run)
        assert ask(centre, "times", 0, run, edges=edges) == ""
        counts = centre.answered[-1][1]["analysis/counts"]
        assert counts[counts > 0].min() >= 5
        assert ask(centre, "hazard", 0, run, **cox_given(grid_of(centre, 1, run, start=edges, number=200))) == ""
        centre.restart()


def test_a_grid_that_tells_of_few_is_refused(centre: Centre) -> None:
    edges = np.ones(100, np.uint8)
    for phase, given in (("times", {"edges": edges}), ("hazard", cox_given(edges)), ("means", cox_given(edges))):
        assert ask(centre, phase, 0, **given) == "too-few-persons"
    grid = grid_of(centre, 0)
    left, split = np.cumsum(np.bincount(centre.cohort().labels[:, 0].astype(int), minlength=100)), grid.copy()
    ends = np.flatnonzero(grid)
    inside = [k for a, b in pairwise(ends) for k in range(a + 1, b) if 0 < left[k] - left[a] < 5]
    split[inside[-1]] = 1  # one end more, by which fewer than five have left since the one before
    assert ask(centre, "times", 0, edges=split) == "too-few-persons"
    assert [e["reason"] for e in centre.journal() if e["phase"] == "times"] == ["too-few-persons"] * 2


def test_the_grid_is_asked_about_forwards(centre: Centre) -> None:
    """All starts in turn would tell where the rarest cell reaches min_count, and so its times."""
    grid_of(centre, 0)
    given = {"edges": np.ones(100, np.uint8), "model": np.array([0], np.uint8)}
    for number, start in enumerate((3, 10, 98)):
        assert ask(centre, "grid", 300 + number, **given, **{"from": np.array([start, start + 1])}) == "replayed"


def test_curves_on_a_grid_that_ends_a_day_later_are_refused(centre: Centre) -> None:
    """The difference of the two would be those who left on that day."""
    assert ask(centre, "times", 0, edges=grid_of(centre, 0)) == ""
    other = study("other", survival={"grid": "31 days", "horizons": [3007.0]}, until=3007.0)
    approve(centre.state, other, "Dr. Test")
    edges = grid_of(centre, 0, 2, other)
    assert ask(centre, "times", 0, 2, other, edges=edges) == "too-few-persons"
    centre.restart()
    assert ask(centre, "times", 0, 3, other, edges=edges) == "too-few-persons"


def test_curves_without_two_persons_are_refused(centre: Centre) -> None:
    """The second study needs a column that two persons lack."""
    path = centre.folder / "clinical.csv"
    table = pd.read_csv(path)
    table.loc[:1, "age"] = np.nan
    table.to_csv(path, index=False)
    whole, less = study_of(DRAWN, name="whole", curves={}), study("less")
    for one in (whole, less):
        approve(centre.state, one, "Dr. Test")
    assert ask(centre, "times", 0, 1, whole, edges=grid_of(centre, 0, 1, whole)) == ""
    begin = {"edges": np.ones(100, np.uint8), "model": np.array([0], np.uint8), "from": np.array([-1, 0])}
    assert ask(centre, "grid", 0, 2, less, **begin) == "too-few-persons"
    assert ask(centre, "moments", 0, 2, less) == "too-few-persons"


def test_steps_are_counted_over_runs_and_the_design_of_a_run_is_fixed(centre: Centre) -> None:
    edges = grid_of(centre, 1)
    for number in range(12):
        beta = np.full(2, 0.01 * number)
        assert ask(centre, "hazard", number, **cox_given(edges, beta=beta) | {"beta": beta}) == ""
    assert ask(centre, "hazard", 12, **cox_given(edges) | {"beta": np.full(2, 0.5)}) == "rounds-beyond-policy"
    assert ask(centre, "hazard", 5, 1, **cox_given(edges)) == "replayed"
    zeros = np.zeros(int(edges.sum()))
    other = cox_given(edges) | {"centre": np.zeros(2), "rise": zeros, "tie": zeros, "at": zeros}
    assert ask(centre, "score", 0, **other) == "replayed"
    refused = ""
    for run in range(2, 5):
        for number in range(12):
            refused = refused or ask(centre, "hazard", number, run, **cox_given(edges) | {"beta": np.full(2, 0.2 * run + 0.01 * number)})
    assert refused == "replayed"  # max_analyses = 2
    assert len([p for p, _ in centre.answered if p == "hazard"]) == 24


def test_coefficients_that_single_out_a_person_are_refused(centre: Centre) -> None:
    edges = grid_of(centre, 1)
    assert ask(centre, "hazard", 0, **cox_given(edges) | {"beta": np.array([40.0, 0.0])}) == "too-few-persons"
    assert ask(centre, "hazard", 1, **cox_given(edges) | {"beta": np.array([1e4, 0.0])}) == "non-finite"


def test_what_is_not_declared_is_refused(centre: Centre) -> None:
    edges = grid_of(centre, 0)
    assert ask(centre, "times", 0, edges=edges, more=np.zeros(1)) == "undeclared-record"
    assert ask(centre, "times", 0, edges=edges[:-1]) == "undeclared-record"
    assert ask(centre, "times", 0, edges=np.append(edges[:-1], np.uint8(0))) == "undeclared-record"
    assert ask(centre, "hazard", 0, **cox_given(edges) | {"scale": np.zeros(2)}) == "undeclared-record"
    assert ask(centre, "hazard", 0, **cox_given(edges) | {"beta": np.full(2, np.nan)}) == "non-finite"
    assert (
        ask(centre, "glm", 0, centre=np.zeros(2), scale=np.ones(2), beta_one=np.zeros(3), robust=np.zeros(1, np.uint8))
        == "undeclared-record"
    )
    assert ask(centre, "description", 0, limits=np.zeros((2, 1))) == "undeclared-record"


def test_noised_analyses_are_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="with noise neither its intervals nor its tests would hold"):
        study_of(
            DRAWN, curves={}, privacy={"unit": "site", "noise_multiplier": 1.0, "clipping_norm": 1.0, "delta": 1e-5, "statistics": "stated"}
        )


TREATMENT = {"column": "arm", "covariates": ["age", "sex"], "intercept": "one"}


def weighted(beta: list[float], **more: Any) -> dict[str, Any]:
    return {"centre": np.array([60.0, 0.5]), "scale": np.array([10.0, 0.5]), "beta_one": np.array(beta), "at": np.zeros(2), **more}


def comparison(name: str, **changes: Any) -> Study:
    return study_of(DRAWN, name=name, task="regression", target="y", treatment={**TREATMENT, **changes})


def test_weights_that_single_out_persons_are_refused(centre: Centre) -> None:
    own = comparison("arms")
    approve(centre.state, own, "Dr. Test")
    assert ask(centre, "weighted", 0, 1, own, **weighted([0.0, 0.1, 0.0])) == ""
    counts = centre.answered[-1][1]["analysis/counts"]
    assert counts.min() >= 5
    assert ask(centre, "weighted", 1, 1, own, **weighted([0.0, 40.0, 0.0])) == "too-few-persons"
    assert ask(centre, "weighted", 1, 1, own, **weighted([0.0, 1e5, 0.0])) == "non-finite"
    assert ask(centre, "weighted", 1, 1, own, **weighted([0.0, 0.1, 0.0], scale=np.ones(2))) == "replayed"
    assert ask(centre, "weighted", 2, 1, own, **weighted([0.0, 0.2, 0.0])) == "rounds-beyond-policy"
    assert ask(centre, "alone", 0, 1, own) == "undeclared-record"
    assert ask(centre, "times", 0, 1, own) == "undeclared-record"
    refused = ""
    for number in range(8):
        refused = refused or ask(centre, "weighted", number % 2, 2 + number // 2, own, **weighted([0.0, 0.01 * number, 0.0]))
    assert refused == "replayed"  # max_analyses = 2
    assert len([p for p, _ in centre.answered if p == "weighted"]) == 4


def test_weights_that_are_alike_but_whose_derivatives_single_out_a_person_are_refused(centre: Centre) -> None:
    """With everyone's score near 1, all weights of the treated are 1, and their residuals are those of the one whose score is lower."""

    def far(table: pd.DataFrame) -> None:
        table.loc[np.argmax(table.arm == "B"), "age"] = -60

    table = change(centre.folder, "clinical", far)
    own = comparison("treated", estimand="att")
    approve(centre.state, own, "Dr. Test")
    control = np.exp(20 + 0.8 * (table.age[table.arm == "A"] - 60) / 10)
    assert control.sum() ** 2 / (control**2).sum() > 100  # the weights themselves are of many persons
    assert ask(centre, "weighted", 0, 1, own, **weighted([20.0, 0.8, 0.0])) == "too-few-persons"
    assert ask(centre, "weighted", 0, 1, own, **weighted([0.0, 0.01, 0.0])) == ""


def test_a_level_of_which_few_have_one_outcome_in_one_treatment_is_refused(centre: Centre) -> None:
    """Sums of each level and treatment of the outcome would tell who has it."""
    classes = {"task": "classification", "target": "b"}
    clinical = pd.read_csv(centre.folder / "clinical.csv")

    def rare(table: pd.DataFrame) -> None:
        there = ((clinical.arm == "B") & (clinical.sex == 1)).to_numpy()
        table.loc[there, "b"] = 0
        table.loc[np.flatnonzero(there)[:2], "b"] = 1

    change(centre.folder, "persons", rare)
    own = study_of(DRAWN, name="rare", **classes, treatment={**TREATMENT, "covariates": ["age", "sex"]})
    approve(centre.state, own, "Dr. Test")
    assert ask(centre, "weighted", 0, 1, own, **weighted([0.0, 0.01, 0.0])) == "too-few-persons"
    assert centre.journal()[-1]["reason"] == "too-few-persons"


def test_trimming_that_differs_by_few_persons_is_refused(centre: Centre) -> None:
    """The difference of two trimmed sums would be those between the two bounds; few beyond one are refused too."""
    table = pd.read_csv(centre.folder / "clinical.csv")
    eta = (table.age - 60) / 10
    score = 1 / (1 + np.exp(-eta))
    outside = {
        trim: [int(((score < trim) | (score > 1 - trim))[table.arm == arm].sum()) for arm in "AB"] for trim in np.arange(0.05, 0.3, 0.005)
    }
    fair = [trim for trim, counts in outside.items() if min(counts) >= 5]
    one = fair[3]
    two = next(t for t in fair if t > one and any(0 < b - a < 5 for a, b in zip(outside[one], outside[t], strict=True)))
    few = next(t for t, counts in outside.items() if 0 < min(counts) < 5)
    given = weighted([0.0, 1.0, 0.0])
    for run, (trim, expected) in enumerate(((one, ""), (two, "too-few-persons"), (few, "too-few-persons")), 1):
        own = comparison(f"trim{run}", trim=float(trim))
        approve(centre.state, own, "Dr. Test")
        assert ask(centre, "weighted", 0, run, own, **given) == expected, trim
        centre.restart()


def test_other_levels_of_the_treatment_that_differ_by_few_are_refused(centre: Centre) -> None:
    """Two studies of the same table, the second without a stage of three persons."""
    path = centre.folder / "clinical.csv"
    table = pd.read_csv(path)
    table["stage"] = np.where(np.arange(len(table)) % 2, "I", "II")
    table.loc[:2, "stage"] = "III"
    table.to_csv(path, index=False)
    whole = comparison("whole")
    less = comparison("less", column="stage", levels=["I", "II"])
    for own in (whole, less):
        approve(centre.state, own, "Dr. Test")
    assert ask(centre, "weighted", 0, 1, whole, **weighted([0.0, 0.1, 0.0])) == ""
    assert ask(centre, "weighted", 0, 2, less, **weighted([0.0, 0.1, 0.0])) == "too-few-persons"


def change(folder: Path, of: str, edit: Any) -> pd.DataFrame:
    """Edits a table of the site and writes it; returns it."""
    path = folder / f"{of}.csv"
    table = pd.read_csv(path)
    edit(table)
    table.to_csv(path, index=False)
    return table


def one_of(sex: int, stage: str) -> Any:
    """An edit after which one person alone has this sex and this stage."""

    def edit(table: pd.DataFrame) -> None:
        table.loc[(table.sex == sex) & (table.stage == stage), "stage"] = "II"
        table.loc[np.flatnonzero(table.sex == sex)[3], "stage"] = stage

    return edit


def test_a_person_who_is_alone_with_two_levels_is_not_told_of(centre: Centre) -> None:
    """Of the two columns' product the matrices hold that person alone: the residual, the time at risk."""
    change(centre.folder, "clinical", one_of(1, "III"))
    linear = study_of(DRAWN, name="linear", task="regression", target="y", glm={"covariates": ["sex", "stage"]})
    hazard = study("hazard", cox={"covariates": ["sex", "stage"], "ties": "breslow"})
    for one in (linear, hazard):
        approve(centre.state, one, "Dr. Test")
    assert ask(centre, "moments", 0, 1, linear) == "too-few-persons"
    design = {"centre": np.zeros(3), "scale": np.ones(3)}
    given = {**design, "beta_one": np.zeros(4), "robust": np.ones(1, np.uint8)}
    assert ask(centre, "glm", 0, 1, linear, **given) == "too-few-persons"
    edges = grid_of(centre, 1, 2, hazard)
    every = np.ones(int(edges.sum()))
    assert ask(centre, "score", 0, 2, hazard, edges=edges, **design, beta=np.zeros(3), rise=every, tie=0 * every, at=0 * every) == (
        "too-few-persons"
    )


def test_a_rare_value_of_a_number_of_few_values_is_not_told_of(centre: Centre) -> None:
    """Sums of powers of 0, 1 and 2 are solved for the one person with 2."""

    def score(table: pd.DataFrame) -> None:
        table["age"] = np.arange(len(table)) % 2
        table.loc[7, "age"] = 2

    change(centre.folder, "clinical", score)
    linear = study_of(DRAWN, name="linear", task="regression", target="y", glm={"covariates": ["age"]})
    table = study_of(DRAWN, name="table", task="regression", target="y", describe={"columns": ["age", "sex"]})
    for one in (linear, table):
        approve(centre.state, one, "Dr. Test")
    given = {"centre": np.zeros(1), "scale": np.ones(1), "beta_one": np.zeros(2), "robust": np.ones(1, np.uint8)}
    assert ask(centre, "glm", 0, 1, linear, **given) == "too-few-persons"
    assert ask(centre, "description", 0, 2, table, limits=np.zeros((2, 2))) == ""
    row = centre.answered[-1][1]["analysis/table"][0]
    assert row[1:4].tolist() == [-1, 0, 0]
    assert row[4] == 500


def test_questions_about_the_grid_follow_its_answers(centre: Centre) -> None:
    """Every start in turn would tell in which intervals somebody leaves, as would beginnings of a centre's choice."""
    begin = np.ones(100, np.uint8)
    given = {"edges": begin, "model": np.array([0], np.uint8)}
    assert ask(centre, "grid", 0, **given, **{"from": np.array([-1, 0])}) == ""
    end = int(centre.answered[-1][1]["analysis/end"][0])
    starts = [k for k in range(98) if k != end]
    assert {ask(centre, "grid", 1 + k, **given, **{"from": np.array([k, k + 1])}) for k in starts} == {"replayed"}
    assert ask(centre, "grid", 200, **given, **{"from": np.array([end, end + 1])}) == ""
    answers = []
    for run, k in enumerate(range(20, 25), 2):
        pair = np.zeros(100, np.uint8)
        pair[[k, k + 1, 99]] = 1
        answers.append(ask(centre, "grid", 0, run, edges=pair, model=np.array([0], np.uint8), **{"from": np.array([-1, 0])}))
    assert answers[0] in ("", "too-few-persons")
    assert set(answers[1:]) == {"replayed"}


def test_two_histograms_of_a_column_are_refused(centre: Centre) -> None:
    """Their difference counts who is between two limits."""
    table = study_of(DRAWN, name="table", task="regression", target="y", describe={"columns": ["age"]})
    approve(centre.state, table, "Dr. Test")
    one, other = (np.array([[low], [low + 80.0]]) for low in (20.05, 20.15))
    assert ask(centre, "description", 0, 1, table, limits=one) == ""
    assert ask(centre, "description", 1, 1, table, limits=other) == "replayed"
    centre.restart()
    assert ask(centre, "description", 0, 2, table, limits=np.zeros((2, 1))) == ""
    assert ask(centre, "description", 1, 2, table, limits=other) == "replayed"
    assert ask(centre, "description", 1, 3, table, limits=one) == ""


def test_a_table_with_groups_and_one_without_do_not_tell_a_hidden_cell(centre: Centre) -> None:
    """Stage III of arm A is two persons: hidden in the table by arm, and the total less arm B in the other."""

    def few(table: pd.DataFrame) -> None:
        third = (table.stage == "III") & (table.arm == "A")
        table.loc[third, "stage"] = "II"
        table.loc[np.flatnonzero(table.arm == "A")[:2], "stage"] = "III"

    change(centre.folder, "clinical", few)
    by_arm = study_of(DRAWN, name="arms", task="regression", target="y", describe={"columns": ["stage"], "groups": "arm"})
    together = study_of(DRAWN, name="all", task="regression", target="y", describe={"columns": ["stage"]})
    for one in (by_arm, together):
        approve(centre.state, one, "Dr. Test")
    given = {"limits": np.zeros((2, 0))}
    assert ask(centre, "description", 0, 1, by_arm, **given) == ""
    assert (centre.answered[-1][1]["analysis/table"] == -1).any()
    assert ask(centre, "description", 0, 2, together, **given) == "too-few-persons"
    assert ask(centre, "description", 1, 3, by_arm, **given) == ""  # an honest run, once more


TWINS: dict[str, tuple[str, str, Any]] = {  # column -> its table, its name in a study, and the study with it
    "covariate": ("clinical", "age", lambda name, own: study(name, curves=None, cox={"covariates": [own, "sex"]}, columns=["age2"])),
    "case weight": ("clinical", "w", lambda name, own: study(name, curves=None, cox={**COX, "weights": own}, columns=["w", "w2"])),
    "outcome": ("persons", "y", lambda name, own: study_of(DRAWN, name=name, task="regression", target=own, glm={"covariates": ["age"]})),
    "outcome of a comparison": ("persons", "y", lambda name, own: comparison(name, covariates=["age"]).model_copy(
        update={"cohort": comparison(name).cohort.model_copy(update={"target": own})})),
    "exposure": ("persons", "exposure", lambda name, own: study_of(
        DRAWN, name=name, task="count", target="count", glm={"covariates": ["age"]}, more={"exposure": own})),
    "number of a table": ("clinical", "age", lambda name, own: study_of(
        DRAWN, name=name, task="regression", target="y", describe={"columns": [own]}, columns=["age2"])),
}  # fmt: skip


@pytest.mark.parametrize("kind", TWINS)
def test_a_column_that_differs_from_an_earlier_one_in_few_persons_is_refused(kind: str, centre: Centre) -> None:
    """The difference of the sums would be about these persons: of a Cox model, when they leave."""
    table, column, make = TWINS[kind]

    def twin(rows: int) -> Any:
        def edit(own: pd.DataFrame) -> None:
            own[f"{column}2"] = own[column]
            own.loc[: rows - 1, f"{column}2"] += 1

        return edit

    change(centre.folder, table, twin(3))
    first, second = (make(name, own) for name, own in (("one", column), ("two", f"{column}2")))
    phase, given = ("description", {"limits": np.zeros((2, 1))}) if "table" in kind else ("moments", {})
    for run, own in enumerate((first, second, first), 1):
        approve(centre.state, own, "Dr. Test")
        assert ask(centre, phase, 0, run, own, **given) == ("too-few-persons" if own is second else "")
        centre.restart()
    assert [e["reason"] for e in centre.journal() if e["phase"] == phase and e["reason"]] == ["too-few-persons"]
    change(centre.folder, table, twin(200))  # a column of its own
    assert ask(centre, phase, 0, 4, second, **given) == ""


@pytest.mark.parametrize("kind", ["levels in another order", "the other value"])
def test_a_level_that_differs_from_an_earlier_one_in_few_persons_is_refused_whatever_it_is_called(kind: str, centre: Centre) -> None:
    """The centre lists levels in an order of its choice; a hospital has a column of who is alive beside one of who died."""

    def edit(own: pd.DataFrame) -> None:
        own["cell"], own["sex2"] = np.where(own.arm == "A", "x", "y"), 1 - own.sex
        own.loc[:1, "cell"] = np.where(own.cell[:2] == "x", "y", "x")
        own.loc[:1, "sex2"] = own.sex[:2]

    change(centre.folder, "clinical", edit)
    order = {"arm": ["A", "B"], "stage": ["I", "II", "III"], "cell": ["y", "x"]}
    columns = ("arm", "cell") if "order" in kind else ("sex", "sex2")
    answers = []
    for run, name in enumerate(columns, 1):
        plan = json.loads(study(f"by-{name}", curves=None, cox={**COX, "covariates": ["age", name]}, columns=["sex2"]).canonical)
        plan["cohort"]["clinical"]["categories"] = order
        own = validate(Study, plan, "test")
        approve(centre.state, own, "Dr. Test")
        answers.append(ask(centre, "moments", 0, run, own))
        centre.restart()
    assert answers == ["", "too-few-persons"]


def weighing(**changes: Any) -> Study:
    return study("weighed", curves=None, cox={**COX, "weights": "w"}, columns=["w"], **changes)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [(lambda w: np.where(np.arange(len(w)) == 7, 0.0, w), "bad-data"), (lambda w: np.exp(np.linspace(-6, 6, len(w))), "too-few-persons"),
     (lambda w: np.where(np.arange(len(w)) == 7, 2.0, 1.0), "too-few-persons"),
     (lambda w: np.where(np.arange(len(w)) < 497, 1.0, w + 1.001), "too-few-persons"),
     (lambda w: np.where(np.arange(len(w)) < 250, 1.0, w), ""), (lambda w: w, "")],
    ids=["zero", "few that outweigh all", "one person of a value", "three persons of other weights", "many of one weight", "honest"],
)  # fmt: skip
def test_case_weights_that_single_out_a_person_are_refused(edit: Any, expected: str, centre: Centre) -> None:
    change(centre.folder, "clinical", lambda own: own.__setitem__("w", edit(own.w.to_numpy())))
    own = weighing()
    approve(centre.state, own, "Dr. Test")
    assert ask(centre, "moments", 0, 1, own) == expected
    assert centre.journal()[-1].get("reason", "") == expected or not expected


def test_a_curve_of_censoring_of_a_centres_choice_is_none(tmp_path: Path) -> None:
    """Of subdistribution hazards: it is a probability that never rises, and the same in all steps of a run."""
    drawn = Drawn(persons=(500,), causes=2, policy=DRAWN.policy)
    write_sites(tmp_path, drawn)
    own = study_of(drawn, cox={"covariates": ["age", "sex"], "hazard": "subdistribution"})
    site = Centre(own, tmp_path / "sites" / "s0")
    edges = grid_of(site, 1)
    size = int(edges.sum())
    assert ask(site, "censoring", 0, edges=edges) == ""
    counts = site.answered[-1][1]["analysis/counts"]
    assert counts[counts > 0].min() >= 5
    fair = np.linspace(1, 0.5, size)
    for free in (np.full(size, 0.5), fair[::-1].copy(), np.linspace(1, -0.1, size), np.r_[1.0, np.zeros(size - 1)]):
        assert ask(site, "hazard", 0, 2, **cox_given(edges, free=free)) == "undeclared-record"
    assert ask(site, "hazard", 0, **cox_given(edges)) == "undeclared-record"
    assert ask(site, "hazard", 1, **cox_given(edges, free=fair)) == ""
    followed = site.answered[-1][1]["analysis/followed"]
    assert followed[followed > 0].min() >= 5
    assert ask(site, "hazard", 2, **cox_given(edges, free=fair**2)) == "replayed"
