"""What the other sections of a study must know of a task: one frozen value a task, by its name in ``[model] task``.

    traits_of("segmentation").label     # "mask"

The keys of ``TRAITS`` are the names that a study may give; ``fedml.tasks.registry`` holds the task of each. A task that is not here is not
known: every rule refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticKnownError

Label = Literal["classes", "ordered", "number", "count", "several", "mask", "time"]
Unit = Literal["none", "site", "patient"]
Regression = Literal["linear", "logistic"]


@dataclass(frozen=True)
class TaskTraits:
    """Every field is required, so that a new task answers every rule.

    Args:
        label: what is predicted: a class of each person, one of ordered classes, a number of each person, a number of events, several
            labels of each person, a class of each voxel, or the time to an event.
        standardised: the target is divided by its standard deviation over all sites, from sums that are requested before training.
        inputs: the only inputs that the task is built for; None: any.
        units: the privacy units that the task is built for.
        private_metrics: its counts of held-out persons can be noised (``fedml.privacy.counts``).
        gwas: the regression by which ``[gwas]`` tests a variant; None: there is none for such a target.
    """

    label: Label
    standardised: bool
    inputs: tuple[str, ...] | None
    units: tuple[Unit, ...]
    private_metrics: bool
    gwas: Regression | None


TRAITS: dict[str, TaskTraits] = {
    "classification": TaskTraits(
        label="classes", standardised=False, inputs=None, units=("none", "site", "patient"), private_metrics=True, gwas="logistic"
    ),
    "regression": TaskTraits(
        label="number", standardised=True, inputs=None, units=("none", "site", "patient"), private_metrics=False, gwas="linear"
    ),
    "segmentation": TaskTraits(
        label="mask", standardised=False, inputs=("image",), units=("none", "site"), private_metrics=False, gwas=None
    ),
    "ordinal": TaskTraits(label="ordered", standardised=False, inputs=None, units=("none", "site"), private_metrics=False, gwas=None),
    "count": TaskTraits(label="count", standardised=False, inputs=None, units=("none", "site"), private_metrics=False, gwas=None),
    "multilabel": TaskTraits(label="several", standardised=False, inputs=None, units=("none", "site"), private_metrics=False, gwas=None),
    "survival": TaskTraits(label="time", standardised=False, inputs=None, units=("none", "site"), private_metrics=False, gwas=None),
}


def traits_of(task: str) -> TaskTraits:
    """The traits of a task.

    Raises:
        ValueError: no task has this name.
    """
    if task not in TRAITS:
        raise ValueError(f'[model] task = "{task}" is not a known task; write one of {", ".join(TRAITS)}')
    return TRAITS[task]


def either(names: list[str]) -> str:
    """``"a", "b" or "c"``."""
    quoted = [f'"{name}"' for name in names]
    return " or ".join(filter(None, [", ".join(quoted[:-1]), *quoted[-1:]]))


def _known(task: str) -> str:
    if task not in TRAITS:
        raise PydanticKnownError("literal_error", {"expected": either(list(TRAITS)).replace('"', "'")})
    return task


TaskName = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(TRAITS)})]
