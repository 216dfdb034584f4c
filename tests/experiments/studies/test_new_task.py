"""A task that the product does not know, counts of events by a Poisson regression, is one file and one line in each of the two tables:
it goes through plan, run, report, checklists, model card, saved model, rehearsal and comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import sklearn.metrics as sk
import torch
from torch.nn import functional
from typer.testing import CliRunner

from fedml.clients.desk.rehearsal import rehearse
from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import load_cohort
from fedml.errors import InputError, NotBuilt
from fedml.experiments.checklists.fill import checklists_markdown
from fedml.experiments.cli import app
from fedml.experiments.compare.outputs import test_outputs as outputs_of
from fedml.experiments.evidence.model_card import model_card
from fedml.experiments.report.page import figures, render, report_facts
from fedml.experiments.runs.record import Record
from fedml.experiments.runs.show import final_table
from fedml.learning.differences import paired_bootstrap
from fedml.study.study import Study
from fedml.study.task_traits import TRAITS, TaskTraits
from fedml.tasks.counts import Counts
from fedml.tasks.drawn import statistic
from fedml.tasks.interval_tools import Interval, Parts, student
from fedml.tasks.measure import Measure
from fedml.tasks.number_labels import number_labels
from fedml.tasks.registry import TASKS, make_task
from fedml.tasks.task import Answer, Compared, Labels, Result, Task, Words, not_grouped, unchanged
from fedml.tracking.scoring import restore, score
from tests.conftest import make_plan, make_study, to_toml, write_csv, write_manifest
from tests.report_runs import parsed, record_of

# --- the file that a new task is


def events_task(study: Study) -> Task:
    """How many events a person has; the network gives the logarithm of their expected number."""
    target = study.cohort.target
    return Task(
        name=study.model.task, traits=study.traits, classes=(), scored={}, outputs=1,
        truth=itemgetter("label"),
        loss=lambda output, label: functional.poisson_nll_loss(output[:, 0], label),
        counts=event_counts, fields=dict.fromkeys(("persons", "deviance_sum", "deviance_sq_sum", "abs_sum"), ("float64", (1,))),
        coarse=unchanged, grouped=not_grouped, spread=unchanged,
        evaluation_batch=512, measures=MEASURES, watched="deviance", higher=False, measure="deviance", risks=False, over_time=None,
        labels=Labels(**{**vars(number_labels(study)), "placeholder": lambda labels, random: random.poisson(2, len(labels)).astype(float),
                         "canary": NotBuilt("no audit of events is built")}),
        answer=Answer(
            columns=lambda output, batch: {"expected": output[:, 0].double().exp().tolist()}, example={"expected": [0.0]},
            caption=lambda output: f"expected {float(output[0].exp()):.2f}",
        ),
        compared=Compared(
            values=lambda output, truth: output[:, 0].double().exp().numpy(),
            statistic=lambda labels, values: statistic("mean", labels, deviance(labels, values)),
        ),
        linear_score=NotBuilt("the logarithm of a rate has no type in a scoring file"),
        words=Words(
            predicts="a number of events", counts="sums of deviances, of their squares and of absolute errors",
            outcome=f'The outcome is the column "{target}", a number of events.', output="The model gives an expected number of events.",
            balance=NotBuilt("a number has no classes that could be out of balance"), no_prediction="",
            no_classes="The outcome is a number of events and has no classes.", answer=_answer,
            unknown=("It does not say over which time.",), groups="",
        ),
    )  # fmt: skip


def deviance(y: npt.ArrayLike, mu: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Each person's Poisson deviance."""
    from scipy.special import xlogy

    seen, expected = np.asarray(y, np.float64), np.asarray(mu, np.float64)
    out: npt.NDArray[np.float64] = 2 * (xlogy(seen, seen / expected) - seen + expected)
    return out


def event_counts(output: torch.Tensor, label: torch.Tensor) -> Counts:
    y, mu = label.double().numpy(), output.detach().double().exp().numpy()[:, 0]
    d = deviance(y, mu)
    sums = {"persons": len(y), "deviance_sum": d.sum(), "deviance_sq_sum": (d**2).sum(), "abs_sum": np.abs(y - mu).sum()}
    return {name: np.array([float(value)]) for name, value in sums.items()}


def _mean(key: str) -> Any:
    def value(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
        return float(counts[key][0] / counts["persons"][0])

    return value


def _deviance_interval(parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    return student([(float(p["persons"][0]), float(p["deviance_sum"][0]), float(p["deviance_sq_sum"][0])) for p in parts], level)


MEASURES = (
    Measure(
        name="deviance", of="all", value=_mean("deviance_sum"), interval=_deviance_interval, printed="Poisson deviance", axis="deviance",
        meaning="how far the expected number is from what came out: 0 is perfect",
        bounds=None, guess=None, counted=False, additive=True, brief=True,
    ),
    Measure(
        name="abs_error", of="all", value=_mean("abs_sum"), interval=NotBuilt("the squares of errors are not in the counts"),
        printed="mean absolute error of events", axis="error", meaning="events that the prediction is off, on average",
        bounds=None, guess=None, counted=False, additive=True, brief=True,
    ),
)  # fmt: skip


def _answer(result: Result) -> list[str]:
    return [f"Of {result.held}, the expected numbers of events have a deviance of {result.headline}."]


# --- the two lines


@pytest.fixture(scope="module", autouse=True)
def _tables() -> Any:
    patch = pytest.MonkeyPatch()
    traits = TaskTraits(label="number", standardised=False, inputs=None, units=("none",), private_metrics=False, gwas=None)
    patch.setitem(TRAITS, "events", traits)
    patch.setitem(TASKS, "events", events_task)
    yield
    patch.undo()


# --- what it goes through

PLAN: dict[str, Any] = {"model__task": "events", "training__lr": 0.05, "federation__rounds": 12}


def event_site(folder: Path, name: str, persons: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    ids = [f"{name}{k:04d}" for k in range(persons)]
    x = rng.normal(0, 1, (persons, 3))
    write_csv(folder / "persons.csv", ids, {"y": rng.poisson(np.exp(0.7 + x @ [0.6, -0.4, 0.0]))})
    write_csv(folder / "clinical.csv", ids, {f"x{k + 1}": x[:, k] for k in range(3)})
    return write_manifest(folder, name, clinical='{ path = "clinical.csv" }')


@pytest.fixture(scope="module")
def made(_tables: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, list[Path]]:
    folder = tmp_path_factory.mktemp("events")
    manifests = [event_site(folder / name, name, 300, seed) for seed, name in enumerate("ab")]
    return record_of(make_study(**PLAN), manifests, folder / "runs"), manifests


def test_the_plan_says_what_is_predicted_and_what_leaves(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(to_toml(make_plan(**PLAN)))
    done = CliRunner().invoke(app, ["check", str(tmp_path / "study.toml")])
    assert done.exit_code == 0, done.output
    assert "Predicts    y: a number of events" in done.output
    assert "sums of deviances, of their squares and of absolute errors over its validation persons" in " ".join(done.output.split())


def test_rules_and_commands_that_it_is_not_built_for_refuse_it_by_name(made: tuple[Record, list[Path]]) -> None:
    ranges = {c: [-3, 3] for c in ("x1", "x2", "x3")}
    with pytest.raises(InputError, match=r'task = "events" is not built for unit = "patient"; set \[privacy\] unit = "none"'):
        make_study(**PLAN, privacy={"unit": "patient", "epsilon": 3.0, "persons": {"a": 9, "b": 9}, "ranges": ranges})
    with pytest.raises(InputError, match=r"\[gwas\] needs a number or two classes as target"):
        make_study(("variants",), **PLAN, gwas={})


def test_a_run_learns_what_was_planted_and_its_metrics_are_those_of_the_pooled_persons(made: tuple[Record, list[Path]]) -> None:
    record = made[0]
    assert record.status == "finished"
    found = record.final.metrics["test"]["all"]
    assert set(found) == {"persons", "deviance", "abs_error"}
    y, expected = predictions(made)
    assert found["deviance"] == pytest.approx(sk.mean_poisson_deviance(y, expected), rel=1e-5)
    assert found["abs_error"] == pytest.approx(sk.mean_absolute_error(y, expected), rel=1e-5)
    assert found["deviance"] < 0.75 * sk.mean_poisson_deviance(y, np.full(len(y), y.mean()))
    table = final_table(record.study, record.final)
    assert "deviance" in [c.header for c in table.renderables[0].columns]  # type: ignore[union-attr]


def predictions(made: tuple[Record, list[Path]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Of all test persons, by the saved model from raw columns: their events and the expected number."""
    record, manifests = made
    study, model = restore(record.run)
    y, expected = [], []
    for manifest in manifests:
        cohort = load_cohort((str(manifest),), record.study)
        rows = cohort.rows("test")
        table = pd.read_csv(manifest.parent / "clinical.csv", dtype={"id": str}).set_index("id")
        given = table.loc[[cohort.ids[row] for row in rows], ["x1", "x2", "x3"]]
        answer = score(study, model, given)
        assert list(answer.columns) == list(make_task(record.study).answer.example) == ["expected"]
        y.append(cohort.labels[rows])
        expected.append(answer["expected"].to_numpy())
    return np.concatenate(y), np.concatenate(expected)


def test_report_checklists_and_card_speak_of_it(made: tuple[Record, list[Path]]) -> None:
    record = made[0]
    found = figures(record)
    assert found["measure"] == "deviance"
    deviation = found["scores"]["all"]["metrics"]["deviance"]
    assert deviation["low"] < deviation["value"] < deviation["high"]
    assert found["scores"]["all"]["metrics"]["abs_error"]["method"] == "none: the squares of errors are not in the counts"
    page = parsed(render(record))
    assert f"have a deviance of {deviation['value']:.3f}" in page.section("answer")
    assert "Poisson deviance" in page.section("by-site")
    assert "how far the expected number is from what came out" in page.section("by-site")
    assert "It does not say over which time." in page.section("limits")
    text = checklists_markdown(record, report_facts(record))
    assert 'The outcome is the column "y", a number of events.' in text
    assert "The outcome is a number of events and has no classes." in text
    card = model_card(record)
    assert "The model gives an expected number of events." in card


def test_it_is_rehearsed_and_compared(made: tuple[Record, list[Path]]) -> None:
    record, manifests = made
    played = rehearse(read_site(manifests[0]), record.study)
    assert [e.phase for e in played.entries if e.direction == "out"] == ["describe", "statistics", "round", "evaluate"]
    sites = {m.parent.name: read_site(m) for m in manifests}
    own = outputs_of(record.study, sites, record.run)
    task = events_task(record.study)
    assert isinstance(task.compared, Compared)
    fitted = task.compared.statistic(own.truth, own.output)
    guess = task.compared.statistic(own.truth, np.full(len(own.truth), own.truth.mean()))
    difference = paired_bootstrap(fitted, guess, len(own.truth), seed=1, site=own.site)
    assert difference.high < 0, "the model is better than the mean of all"
    assert not math.isnan(difference.p)
