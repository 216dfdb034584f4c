"""Every task has every part, its parts fit each other, and nothing outside the tables asks for a task's name."""

from __future__ import annotations

import ast
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from flwr.app import RecordDict

from fedml.cohort.table import TargetCells
from fedml.contract.replies import check_form
from fedml.errors import InputError, NotBuilt, SiteError
from fedml.experiments.checklists.facts import facts_of
from fedml.experiments.checklists.fill import CONDITIONS
from fedml.experiments.report import words
from fedml.experiments.runs.record import Record
from fedml.modalities.layout import Layout
from fedml.models.fusion import build_model
from fedml.privacy.counts import noised
from fedml.strategies.describe import describe
from fedml.study.sections import Model
from fedml.study.study import Study
from fedml.study.task_traits import TRAITS, TaskTraits, traits_of
from fedml.tasks.counts import add_counts
from fedml.tasks.drawn import statistic
from fedml.tasks.intervals import interval
from fedml.tasks.registry import TASKS, make_task
from fedml.tasks.segmentation_counts import Truth
from fedml.tasks.task import Task, built
from fedml.wire.records import COUNTS, Phase, pack
from tests.command import ROOT
from tests.conftest import make_study
from tests.report_runs import KINDS

NAMES = sorted(TASKS)
PERSONS = 40
CLASSES = (["no", "yes"], ["a", "b", "c"])
LABELS = ["y", "z"]  # of a task with several
TIMED, GRID = {"time": "t", "event": "e"}, {"time_unit": "days", "grid": "30 days", "until": 180, "horizons": [90, 180]}  # of a time
RUNS = {name: "two_classes" if name == "classification" else name for name in NAMES}


def study_of(name: str, classes: list[str] | None = None, **changes: Any) -> Study:
    inputs, several, timed = traits_of(name).inputs or ("clinical",), traits_of(name).label == "several", traits_of(name).label == "time"
    target: dict[str, Any] = {"cohort__target": LABELS} if several else {"cohort__target": TIMED, "survival": GRID} if timed else {}
    return make_study(inputs, model__task=name, cohort__classes=(classes or ["no", "yes"])[: 2 if several else None], **target, **changes)


def outputs_and_truth(task: Task, persons: int = PERSONS, seed: int = 0) -> tuple[torch.Tensor, Any, dict[str, torch.Tensor]]:
    """What a network might give, the truth, and the batch that it is in: labels of the task's kind."""
    rng = np.random.default_rng(seed)
    if task.traits.label == "mask":
        mask = torch.from_numpy(rng.integers(0, task.outputs, (persons, 1, 9, 8)))
        batch = {"mask": mask, "image_person": torch.arange(persons), "image_present": torch.ones(persons)}
        output = torch.from_numpy(rng.normal(size=(persons, task.outputs, 9, 8)))
        output.scatter_add_(1, mask, torch.full((persons, 1, 9, 8), 1.5, dtype=output.dtype))
        return output, task.truth(batch), batch
    label, output = labels_and_outputs(task, persons, rng)
    batch = {"label": torch.from_numpy(label.astype(np.float32))}
    return torch.from_numpy(output), task.truth(batch), batch


def labels_and_outputs(task: Task, persons: int, rng: np.random.Generator) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    match task.traits.label:
        case "classes":
            label = rng.integers(0, task.outputs, persons)
            return label, rng.normal(size=(persons, task.outputs)) + 1.2 * np.eye(task.outputs)[label]
        case "ordered":
            label = rng.integers(0, task.outputs + 1, persons)
            return label, (label + rng.normal(size=persons))[:, None] - 0.5 - np.arange(task.outputs)
        case "several":
            several = (rng.random((persons, task.outputs)) < 0.5).astype(float)
            return several, 2 * several - 1 + rng.normal(size=several.shape)
        case "time":
            place, event = rng.integers(0, task.outputs, persons), rng.random(persons) < 0.6
            early = 2.0 * (np.arange(task.outputs) >= place[:, None]) * event[:, None]
            return np.stack([place, event], 1).astype(float), early + rng.normal(size=(persons, task.outputs))
        case "count":
            label = rng.poisson(6, persons)
            return label, np.log(label + 1)[:, None] + 0.1 * rng.normal(size=(persons, 1))
        case _:
            label = rng.poisson(6, persons)
            return label, rng.normal(size=(persons, 1)) + label[:, None]


@pytest.fixture(params=[(name, classes) for name in NAMES for classes in CLASSES], ids=lambda p: f"{p[0]}-{len(p[1])}")
def task(request: pytest.FixtureRequest) -> Task:
    return make_task(study_of(*request.param))


# --- the tables


def test_a_study_may_name_exactly_the_tasks_that_are_built() -> None:
    assert list(TASKS) == list(TRAITS)
    for name in TASKS:
        assert make_task(study_of(name)).name == name
        assert make_task(study_of(name)).traits is TRAITS[name]
    assert Model().task in TASKS
    with pytest.raises(InputError) as refused:
        make_study(model__task="clasification")
    assert str(refused.value) == (
        "study.toml: [model] task must be 'classification', 'regression', 'segmentation', 'ordinal', 'count', 'multilabel' or "
        "'survival', not 'clasification' "
        '(did you mean "classification"?).'
    )


def test_a_task_without_an_entry_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRAITS, "ranking", TRAITS["classification"])
    with pytest.raises(InputError, match=r'\[model\] task = "ranking" is not built; write one of classification,'):
        make_task(make_study(model__task="ranking"))
    monkeypatch.delitem(TRAITS, "ranking")
    with pytest.raises(ValueError, match='task = "ranking" is not a known task'):
        traits_of("ranking")


def test_no_field_has_a_default_that_would_hide_a_gap() -> None:
    from fedml.tasks import measure
    from fedml.tasks import task as module

    kinds = [TaskTraits, measure.Measure, *(getattr(module, n) for n in ("Task", "Words", "Labels", "Answer", "Compared", "LinearScore"))]
    for kind in kinds:
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        for field in dataclasses.fields(kind):
            assert field.default is dataclasses.MISSING, f"{kind.__name__}.{field.name}"
            assert field.default_factory is dataclasses.MISSING, f"{kind.__name__}.{field.name}"


def test_what_is_not_built_is_refused_by_a_sentence_that_names_the_task() -> None:
    with pytest.raises(InputError) as refused:
        built(NotBuilt("a mask is no score of a person"), "segmentation", "a linear score of variants")
    assert str(refused.value) == '[model] task = "segmentation": a linear score of variants is not built: a mask is no score of a person.'
    assert built(3, "segmentation", "anything") == 3


# --- rules of a study by traits


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unit", ["site", "patient"])
def test_a_privacy_unit_that_a_task_is_not_built_for_is_refused(name: str, unit: str) -> None:
    plan: dict[str, Any] = {"unit": unit, "epsilon": 3.0, "ranges": {"y": [0, 9]} if TRAITS[name].standardised else {}}
    plan["ranges"] |= {} if TRAITS[name].inputs else {c: [0, 1] for c in ("x1", "x2", "x3")}
    plan |= {"persons": {"a": 90, "b": 80}} if unit == "patient" else {}
    if unit in TRAITS[name].units:
        assert study_of(name, privacy=plan).privacy.unit == unit
        return
    with pytest.raises(InputError, match=rf'task = "{name}" is not built for unit = "{unit}"; set \[privacy\] unit = '):
        study_of(name, privacy=plan)


@pytest.mark.parametrize("name", NAMES)
def test_other_inputs_an_association_and_noised_metrics_go_by_the_traits(name: str) -> None:
    traits = TRAITS[name]
    if traits.inputs is not None:
        with pytest.raises(InputError, match=rf'task = "{name}" is built only for these inputs; set \[cohort\] inputs = \["image"\]'):
            make_study(("image", "clinical"), model__task=name)
    if traits.gwas is None:
        needs = r'\[gwas\] needs a number or two classes as target; set \[model\] task = "classification" or "'
        with pytest.raises(InputError, match=needs):
            make_study(("variants",), model__task=name, gwas={})
    else:
        assert make_study(("variants",), model__task=name, gwas={}).traits.gwas == traits.gwas
    plan: dict[str, Any] = {"unit": "patient", "epsilon": 3.0, "persons": {"a": 90, "b": 80}, "metrics": "private"}
    plan["ranges"] = {c: [0, 1] for c in ("x1", "x2", "x3", *("y" if traits.standardised else ""))}
    if "patient" not in traits.units:
        return
    if not traits.private_metrics:
        with pytest.raises(InputError, match=r'metrics = "private" is built for \[model\] task = "classification"; set metrics = "exact"'):
            study_of(name, privacy=plan)
    else:
        assert study_of(name, privacy=plan).privacy.metrics == "private"


# --- counts, measures, intervals


def test_counts_are_what_their_fields_declare(task: Task) -> None:
    output, truth, _ = outputs_and_truth(task)
    counts = task.counts(output, truth)
    assert {name: (str(v.dtype), v.shape) for name, v in counts.items()} == dict(task.fields)
    coarse = task.coarse(counts)
    assert {name: (str(v.dtype), v.shape) for name, v in coarse.items()} == dict(task.fields)
    for name, value in coarse.items():
        assert value.sum() == counts[name].sum(), "no person is lost"
        np.testing.assert_array_equal(task.coarse({name: value})[name], value)
    # A site's counts, also of a subgroup, pass its own gate and the server, and nothing else does.
    study = study_of(task.name, list(task.classes), evaluation__subgroups={"sex": [0, 1]})
    sent = {f"test/{k}": v for k, v in counts.items()} | {f"test@sex:1/{k}": v for k, v in coarse.items()}
    check_form(study, Phase.EVALUATE, "a", RecordDict({COUNTS: pack(sent)}), None)
    for name, value in counts.items():
        for wrong in (value[:-1], value.astype(np.float16)):
            with pytest.raises(SiteError):
                check_form(study, Phase.EVALUATE, "a", RecordDict({COUNTS: pack(sent | {f"test/{name}": wrong})}), None)
    with pytest.raises(SiteError):
        check_form(study, Phase.EVALUATE, "a", RecordDict({COUNTS: pack(sent | {"test/more": counts["persons"]})}), None)
    if any((coarse[name] != counts[name]).any() for name in counts):
        fine = RecordDict({COUNTS: pack(sent | {f"test@sex:1/{k}": v for k, v in counts.items()})})
        with pytest.raises(SiteError, match="has more bins than are allowed"):
            check_form(study, Phase.EVALUATE, "a", fine, None)


def test_every_metric_is_described_and_has_an_interval_or_the_reason_why_not(task: Task) -> None:
    parts = [task.counts(*outputs_and_truth(task, seed=seed)[:2]) for seed in (1, 2)]
    found = task.metrics(add_counts(parts))
    assert found["persons"] == 2 * PERSONS
    assert {task.watched, task.measure} <= set(found)
    assert len({m.name for m in task.measures}) == len(task.measures)
    for name, value in found.items():
        if name == "persons":
            continue
        measure = task.described(name)
        assert all((measure.printed, measure.axis, measure.meaning))
        if measure.bounds is not None:
            assert measure.bounds[0] <= value <= measure.bounds[1], name
        got = interval(parts, task, name, seed=3, draws=50)
        assert got.value == pytest.approx(value, rel=1e-9)
        if isinstance(measure.interval, NotBuilt):
            assert got.method == f"none: {measure.interval.reason}"
        else:
            assert got.low <= got.value <= got.high, name
    with pytest.raises(KeyError, match="no measure"):
        task.described("nothing")
    for measure in task.measures:
        if measure.additive:
            own = [task.metrics(part)[measure.name] for part in parts]
            assert found[measure.name] == pytest.approx(np.mean(own), rel=1e-9), measure.name
    leading = task.described(task.measure)
    assert not isinstance(leading.interval, NotBuilt), "a report leads with a measure that has an interval"
    assert not task.risks or {"histogram", "log_loss_sum"} <= set(task.fields)


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_noised_where_the_traits_say_so_and_refused_elsewhere(name: str) -> None:
    study = study_of(name)
    task = make_task(study)
    counts = task.counts(*outputs_and_truth(task)[:2])
    if not TRAITS[name].private_metrics:
        with pytest.raises(ValueError, match=rf'task = "{name}": noised counts are not built'):
            noised(counts, study)
        return
    plan: dict[str, Any] = {"unit": "patient", "epsilon": 3.0, "persons": {"a": 90, "b": 80}, "metrics": "private"}
    plan["ranges"] = {c: [0, 1] for c in ("x1", "x2", "x3")}
    found = noised(counts, study_of(name, privacy=plan))
    assert {k: (str(v.dtype), v.shape) for k, v in found.items()}.items() <= dict(task.fields).items()
    assert any((found[k] != counts[k]).any() for k in found)


def test_the_loss_is_the_mean_over_persons_and_falls_where_the_output_is_right(task: Task) -> None:
    output, truth, _ = outputs_and_truth(task)
    whole = float(task.loss(output, truth))
    each = []
    for k in range(PERSONS):
        one = Truth(truth.mask[k : k + 1], torch.zeros(1, dtype=torch.int64)) if isinstance(truth, Truth) else truth[k : k + 1]
        each.append(float(task.loss(output[k : k + 1], one)))
    assert whole == pytest.approx(np.mean(each), rel=1e-5)
    if isinstance(truth, Truth):
        right = 9.0 * torch.nn.functional.one_hot(truth.mask, task.outputs).movedim(-1, 1).double()
    elif task.traits.label == "classes":
        right = 9.0 * torch.nn.functional.one_hot(truth.long(), task.outputs).double()
    elif task.traits.label == "ordered":
        right = 9.0 * (truth[:, None].double() - 0.5 - torch.arange(task.outputs))
    elif task.traits.label == "several":
        right = 9.0 * (2 * truth.double() - 1)
    elif task.traits.label == "time":
        right = torch.full_like(output, -9.0)
        right[torch.arange(PERSONS), truth[:, 0].long()] += 18.0 * (truth[:, 1] == 1)
    elif task.traits.label == "count":
        right = truth[:, None].double().clamp_min(0.01).log()
    else:
        right = truth[:, None].double()
    assert float(task.loss(right, truth)) < whole


# --- labels, answers, comparisons


def test_labels_go_into_a_table_and_come_back(task: Task) -> None:
    study = study_of(task.name, list(task.classes))
    real = np.zeros(4) if task.traits.label == "mask" else np.array([0.0, 1.0, 1.0, 0.0])
    if task.traits.label == "several":
        real = np.array([[0.0, 1.0], [1.0, np.nan], [np.nan, 0.0], [1.0, 1.0]])
    if task.traits.label == "time":
        real = np.array([[0.0, 1.0], [1.0, 0.0], [5.0, 0.0], [2.0, 1.0]])
    labels = task.labels.placeholder(real, np.random.default_rng(0))
    assert labels.shape == real.shape
    table = pd.DataFrame(dict(task.labels.cells(labels)), index=list("abcd"))
    assert list(table.columns) == list(study.cohort.targets)
    np.testing.assert_allclose(task.labels.read(TargetCells(table, Path("persons.csv"))), labels)
    assert isinstance(task.labels.show(labels[0]), str)
    if not isinstance(task.labels.canary, NotBuilt):
        made = task.labels.canary(30, (2.0, 5.0), np.random.default_rng(0))
        assert made.shape == (30,)
        assert len(np.unique(made)) == max(len(task.person_classes), 2)
    assert isinstance(task.labels.canary, NotBuilt) == ("patient" not in task.traits.units)


def test_the_saved_models_answer_has_the_columns_of_its_example(task: Task) -> None:
    output, _, batch = outputs_and_truth(task)
    answer = task.answer.columns(output, batch)
    assert list(answer) == list(task.answer.example)
    assert {len(cells) for cells in answer.values()} == {PERSONS}
    assert {len(cells) for cells in task.answer.example.values()} == {1}
    if task.person_classes:
        assert set(answer["predicted"]) <= set(task.classes)
        np.testing.assert_allclose(np.sum([v for k, v in answer.items() if k != "predicted"], axis=0), 1.0)
    assert isinstance(task.answer.caption, NotBuilt) == (task.traits.label == "mask")
    if not isinstance(task.answer.caption, NotBuilt):
        timed = [f"{answer['survival_180'][0]:.2f}"] if task.traits.label == "time" else []
        said = (
            timed or [str(answer["predicted"][0])[:4]]
            if timed or "predicted" in answer
            else [k for k in LABELS if answer[f"predicted_{k}"][0] == "yes"]
        )
        assert all(text in task.answer.caption(output[0]) for text in said)


def test_models_are_compared_by_the_watched_metric(task: Task) -> None:
    output, truth, _ = outputs_and_truth(task)
    assert not isinstance(task.compared, NotBuilt)
    step = min(task.evaluation_batch, PERSONS)
    values = []
    for at in range(0, PERSONS, step):
        rows = slice(at, at + step)
        own = Truth(truth.mask[rows], torch.arange(step)) if isinstance(truth, Truth) else truth[rows]
        values.append(task.compared.values(output[rows], own))
    labels = np.zeros(PERSONS) if isinstance(truth, Truth) else truth.double().numpy()
    got = task.compared.statistic(labels, np.concatenate(values))(np.ones((1, PERSONS), dtype=np.int64))[0]
    assert got == pytest.approx(task.metrics(task.counts(output, truth))[task.watched], abs=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_gives_as_many_numbers_as_the_task_asks_for(name: str) -> None:
    study = study_of(name, ["a", "b", "c"])
    task = make_task(study)
    model = build_model(study, Layout(image_shape=(1, 16, 16) if study.cohort.inputs == ("image",) else (), variants=0))
    batch = {"clinical": torch.zeros(2, 3), "clinical_present": torch.ones(2)}
    if study.cohort.inputs == ("image",):
        batch = {"image": torch.zeros(2, 1, 16, 16), "image_person": torch.arange(2), "image_present": torch.ones(2)}
    assert model(batch).shape[:2] == (2, task.outputs)
    assert (model.target is not None) == task.traits.standardised if hasattr(model, "target") else task.traits.label == "mask"


# --- sentences


@pytest.mark.parametrize("name", NAMES)
def test_plan_report_checklists_and_card_have_their_sentences(name: str, tmp_path: Path) -> None:
    study = study_of(name)
    said = make_task(study).words
    plan = describe(study)
    assert f"Predicts    {study.cohort.outcome}: {said.predicts}" in plan
    assert said.counts in " ".join(plan.split())
    record: Record = KINDS[RUNS[name]](tmp_path)
    own = make_task(record.study)
    facts = facts_of(record)
    assert facts["outcome"].text == own.words.outcome
    assert facts["output"].text == own.words.output
    assert ("balance" in facts) == (not isinstance(own.words.balance, NotBuilt))
    assert ("events" in facts) == bool(own.person_classes)
    for condition, reason in (("prediction", own.words.no_prediction), ("classes", own.words.no_classes)):
        assert CONDITIONS[condition][0](record.study) == reason
    assert reason_is_a_sentence(own.words.no_prediction)
    assert reason_is_a_sentence(own.words.no_classes)
    for measure in own.measures:
        assert words.named(record, measure.name) == measure.printed


def reason_is_a_sentence(text: str) -> bool:
    return not text or text.endswith(".")


def test_a_statistic_of_every_person_once_is_the_metric_itself() -> None:
    task = make_task(study_of("classification"))
    output, truth, _ = outputs_and_truth(task)
    p = torch.softmax(output, 1).numpy()
    assert statistic("accuracy", truth.numpy(), p)(np.ones((1, PERSONS), dtype=int))[0] == pytest.approx(
        task.metrics(task.counts(output, truth))["accuracy"]
    )
    assert math.isnan(task.metrics(task.counts(output, torch.zeros(PERSONS)))["auroc"])


# --- nothing else asks for a task's name

WORDS = {
    "count",
    "survival",
}  # names that are words with other meanings too; only where they are compared with a task's name can they be found
ALLOWED = {
    ("experiments/bench/null_association.py", "KINDS"): "the two kinds of outcome that are drawn",
    ("experiments/bench/null_genes.py", "KINDS"): "the same",
    ("experiments/bench/relatives.py", "KINDS"): "the same",
    ("experiments/bench/patch_epoch.py", "MODEL"): "the model that is measured",
    ("experiments/models/export_bundle.py", "_OF_CLASSES"): "MONAI's word for an image of classes",
    ("experiments/keys/schema.py", "_NAMES"): "the key [model] segmentation, which has the name of its task",
    ("fedml/study/sections.py", "task"): "the default of [model] task",
    ("fedml/study/task_traits.py", "TRAITS"): "the table of traits",
    ("fedml/tasks/registry.py", "TASKS"): "the table of tasks",
}


def test_no_file_asks_for_a_tasks_name() -> None:
    """A name of a task as a string, or a comparison with one, stands in the tables alone; an attribute says what is asked instead."""
    found, used = list[str](), set[tuple[str, str]]()
    for root in ("fedml", "clients", "strategies", "experiments"):
        for path in sorted((ROOT / root).rglob("*.py")):
            place = str(path.relative_to(ROOT))
            if place.split("/")[1] not in ("clients", "strategies", "experiments"):  # links to the folders at the top
                wrong, tables = names_asked(path.read_text(encoding="utf-8"), {table for file, table in ALLOWED if file == place})
                found += [f"{place}:{line}" for line in wrong]
                used |= {(place, table) for table in tables}
    assert not found, f"ask fedml.tasks.task.Task or fedml.study.task_traits.TaskTraits instead: {', '.join(found)}"
    assert used == set(ALLOWED)


def names_asked(source: str, tables: set[str]) -> tuple[list[int], set[str]]:
    """Lines that hold a task's name or compare one, but for the values of the annotated assignments to ``tables``; those that are there."""
    tree, allowed, there = ast.parse(source), set[ast.AST](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in tables and node.value:
            allowed |= set(ast.walk(node.value))
            there.add(node.target.id)
    lines = []
    for node in ast.walk(tree):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.Match):
            asked = [node.subject]
        elif isinstance(node, ast.Subscript):  # a dictionary by the task's name
            asked = [node.slice]
        named = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in TASKS and node not in allowed
        named = named and node.value not in WORDS  # type: ignore[attr-defined]
        if named or any(_is_name_of_task(side) for side in asked):
            lines.append(int(getattr(node, "lineno", 0)))
    return lines, there


def _is_name_of_task(node: ast.AST) -> bool:
    """``study.model.task``, ``plan.task``, ``task.name``."""
    if not isinstance(node, ast.Attribute):
        return False
    owner = node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id if isinstance(node.value, ast.Name) else ""
    return (node.attr == "task" and owner in ("model", "plan")) or (node.attr == "name" and owner == "task")


@pytest.mark.parametrize(
    "source",
    [
        'if study.model.task == "segmentation":\n    pass',
        "if study.model.task == SEGMENTATION:\n    pass",
        "match task.name:\n    case _:\n        pass",
        'found = {"classification": 1}',
        "found = COUNTS[study.model.task]",
        "if plan.task in MASKED:\n    pass",
    ],
)
def test_a_ladder_of_names_would_be_found(source: str) -> None:
    assert names_asked(source, set())[0]
    assert not names_asked('task: str = "classification"', {"task"})[0]
    assert not names_asked("masks = study.traits.label == 'mask'", set())[0]
