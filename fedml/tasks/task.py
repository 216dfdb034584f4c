"""A prediction task as one frozen value. Every field is required; a part that is not built is ``NotBuilt`` with a reason.

    task = make_task(study)                        # fedml.tasks.registry
    counts = task.counts(output, label)            # numpy arrays by name, as ``task.fields`` declares them
    task.metrics(add_counts([counts, other]))      # {"persons": ..., "auroc": ..., "accuracy": ...}

Metrics are computed from counts that add: sites' counts sum to those of all persons together, so a federated metric is the metric on the
pooled persons. A task knows no file format, no network and no input; it is made for one study, so its texts name that study's target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from fedml.errors import InputError, NotBuilt
from fedml.study.task_traits import TaskTraits
from fedml.tasks.counts import Counts
from fedml.tasks.drawn import Statistic
from fedml.tasks.measure import Measure, metrics_of

Floats = npt.NDArray[np.float64]
Fields = Mapping[str, tuple[str, tuple[int, ...]]]
Estimate = Mapping[str, Any]  # value, low and high, each a number or None
Built = TypeVar("Built")


class Cells(Protocol):
    """Columns of a site's persons table, one cell for each person (``fedml.cohort.table``)."""

    def codes(self, name: str, known: tuple[Any, ...]) -> Floats:
        """(persons,) place of each cell of column ``name`` among ``known``, NaN where it is empty; any other value is an ``InputError``."""

    def numbers(self, name: str, asked_by: str = "[cohort] target") -> Floats:
        """(persons,) the cells of column ``name`` as numbers, NaN where they are empty; any other text is an ``InputError``. ``asked_by``:
        the study's key that names the column."""

    @property
    def path(self) -> Path:
        """The table's file, for an error."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Labels:
    """Labels of persons, float64: (persons,), or (persons, numbers) of a task whose label is several numbers; NaN where there is none.

    Args:
        read: cells of the persons table -> labels. cells: the inverse, for a table that is written: column -> cells.
        show: one label as text; "" where a person has none.
        placeholder: labels of persons who do not exist, of the number of the real ``labels`` given.
        canary: so many labels of an audit's canaries; the target's stated range, where there is one, goes in.
    """

    read: Callable[[Cells], Floats]
    cells: Callable[[Floats], Mapping[str, list[Any]]]
    show: Callable[[Any], str]
    placeholder: Callable[[Floats, np.random.Generator], Floats]
    canary: Callable[[int, tuple[float, float] | None, np.random.Generator], Floats] | NotBuilt


@dataclass(frozen=True)
class Answer:
    """The outputs of a saved model.

    Args:
        columns: the network's output and its batch -> columns by name, one cell a person.
        example: the columns of one person, for the model's signature.
        caption: the answer for one person, (outputs,), as the caption of a picture.
    """

    columns: Callable[[torch.Tensor, Mapping[str, torch.Tensor]], dict[str, list[Any]]]
    example: Mapping[str, list[Any]]
    caption: Callable[[torch.Tensor], str] | NotBuilt


@dataclass(frozen=True)
class Compared:
    """How two models are compared on the same persons.

    Args:
        values: the network's output and the truth of a batch -> (persons, ...), what ``statistic`` needs of each person.
        statistic: (persons,) labels and those values -> the watched metric of persons drawn with replacement.
    """

    values: Callable[[torch.Tensor, Any], Floats]
    statistic: Callable[[Floats, Floats], Statistic]


@dataclass(frozen=True)
class LinearScore:
    """The meaning of a linear score of variants: the type of weights in a scoring file, and a description of the score."""

    weight_type: str
    meaning: str


@dataclass(frozen=True)
class Result:
    """The values in the answer of a report.

    Args:
        held: such as ``90 test persons held out at 2 sites``. by_class: those persons by class, empty where that is not known.
        estimates: measure -> value and limits. measure: the main measure of the report.
        noised: the counts were noised for privacy. say: an estimate as text with its interval. number: a number as text.
    """

    held: str
    by_class: Sequence[int]
    estimates: Mapping[str, Estimate]
    measure: str
    noised: bool
    say: Callable[[Estimate | None], str]
    number: Callable[[float | None], str]

    @property
    def headline(self) -> str:
        """The leading measure with its interval."""
        return self.say(self.estimates.get(self.measure))

    def percent(self, name: str) -> str:
        """A measure in percent."""
        value = self.estimates.get(name, {}).get("value")
        return "an unknown share" if value is None else f"{100 * value:.1f} %"


@dataclass(frozen=True)
class Words:
    """Texts about the task for this study.

    Args:
        predicts: plan: what is predicted, after the target's name. counts: plan: the counts of held-out persons that leave a site.
        outcome: checklists: what the outcome is. output: checklists: what the model gives. balance: checklists: how classes are weighed.
        no_prediction: why a checklist of prediction models does not apply; "" where it does. no_classes: the same of items about classes.
        answer: report: the answer to the study's question. unknown: report: what the record does not contain.
        groups: report: a note on measures of subgroups; "": none.
    """

    predicts: str
    counts: str
    outcome: str
    output: str
    balance: str | NotBuilt
    no_prediction: str
    no_classes: str
    answer: Callable[[Result], list[str]]
    unknown: tuple[str, ...]
    groups: str


@dataclass(frozen=True)
class Task:
    """A prediction task; see the module's docstring.

    Args:
        name: as in ``[model] task``. traits: what the study's other sections ask of it.
        classes: of the outcome, as they are written; empty where it has none. scored: those with measures of their own, by number.
        outputs: numbers that the network gives for a person, or for a voxel.
        truth: what ``loss`` and ``counts`` take, from a batch. loss: the mean over persons.
        counts: output and truth of a batch -> counts that add. fields: type and shape of each of its arrays.
        coarse: the counts that may be released for a subgroup; coarse counts are unchanged.
        grouped: (counts, fewest persons) -> the counts that may be released of a part; spread: their inverse at the receiver, as far as
        there is one.
        evaluation_batch: persons that are evaluated together.
        measures: in the order of records and reports. watched: the one by which models are compared; higher is better if ``higher``.
        measure: the one that a report leads with.
        risks: the counts hold histograms of log-odds, of which calibration and curves are made (``fedml.learning.calibration``).
        over_time: counts -> what a report draws of predictions over time, None where the counts tell nothing; None: there is no time.
    """

    name: str
    traits: TaskTraits
    classes: tuple[str, ...]
    scored: Mapping[int, str]
    outputs: int
    truth: Callable[[Mapping[str, torch.Tensor]], Any]
    loss: Callable[[torch.Tensor, Any], torch.Tensor]
    counts: Callable[[torch.Tensor, Any], Counts]
    fields: Fields
    coarse: Callable[[Mapping[str, npt.NDArray[Any]]], Counts]
    grouped: Callable[[Mapping[str, npt.NDArray[Any]], int], Counts]
    spread: Callable[[Mapping[str, npt.NDArray[Any]]], Counts]
    evaluation_batch: int
    measures: tuple[Measure, ...]
    watched: str
    higher: bool
    measure: str
    risks: bool
    over_time: Callable[[Mapping[str, npt.NDArray[Any]]], Mapping[str, Any] | None] | None
    labels: Labels
    answer: Answer
    compared: Compared | NotBuilt
    linear_score: LinearScore | NotBuilt
    words: Words

    def metrics(self, counts: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
        """Every measure of all persons in ``counts``; NaN where it is not defined, only ``persons`` if no person is counted."""
        return metrics_of(self.measures, self.scored, counts)

    @property
    def person_classes(self) -> tuple[str, ...]:
        """The classes of persons; empty if persons have no classes, as in segmentation."""
        return self.classes if self.traits.label in ("classes", "ordered") else ()

    def described(self, name: str) -> Measure:
        """The measure of a metric's name, ``dice/liver`` being ``dice``.

        Raises:
            KeyError: the task has no such measure.
        """
        for measure in self.measures:
            if measure.name == name.partition("/")[0]:
                return measure
        raise KeyError(f'a {self.name} has no measure "{name}"')


def unchanged(counts: Mapping[str, npt.NDArray[Any]]) -> Counts:
    """``coarse`` and ``spread`` of a task whose counts have no fine histogram of single persons."""
    return dict(counts)


def not_grouped(counts: Mapping[str, npt.NDArray[Any]], smallest: int) -> Counts:
    """``grouped`` of a task whose counts are sums over all persons of a part."""
    return dict(counts)


def built(value: Built | NotBuilt, task: str, what: str) -> Built:
    """``value``, if it is there.

    Raises:
        InputError: it is not built; the sentence names the task.
    """
    if isinstance(value, NotBuilt):
        raise InputError(f'[model] task = "{task}": {what} is not built: {value.reason}.')
    return value
