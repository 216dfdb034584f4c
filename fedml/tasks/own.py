"""Own loss and own measures of a study, put into its task.

    def focal(output, label, gamma=2.0): ...       # (persons, outputs), (persons,) -> the mean over persons, a scalar tensor
    def f2(counts): ...                            # the task's counts, such as counts["confusion"] (classes, classes) -> a number

A loss runs where persons train. A measure is a function of counts that leave the sites in any case, so it runs at the server and in reports
only, and adds nothing to what a site sends. Both are loaded when they are first used.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch

from fedml.code.load import call, failed, is_forbidden, resolve
from fedml.errors import InputError, NotBuilt
from fedml.study.code_section import is_own
from fedml.study.study import Study
from fedml.tasks.measure import Measure
from fedml.tasks.task import Task

NO_INTERVAL = NotBuilt("an own measure has no interval")


def with_own_code(task: Task, study: Study) -> Task:
    """``task`` with the study's own loss and measures; ``task`` itself if it has none."""
    if study.training.loss is not None and is_own(study.training.loss):
        task = replace(task, loss=_loss(study, study.training.loss))
    taken = {measure.name for measure in task.measures}
    for name in study.evaluation.metrics:
        if (short := name.partition(":")[2]) in taken or short == "persons":
            raise InputError(f'[evaluation] metrics: the task has a measure "{short}" already; rename the function in {name}.')
    return replace(task, measures=(*task.measures, *(_measure(study, name) for name in study.evaluation.metrics)))


def least_loss(study: Study) -> float | None:
    """The smallest value that a training loss of the study can have; None: any, of own code. The losses of all tasks are not negative."""
    return None if study.training.loss is not None and is_own(study.training.loss) else 0.0


def _loss(study: Study, name: str) -> Callable[[torch.Tensor, Any], torch.Tensor]:
    options, made = study.training.loss_options, dict[str, Callable[..., Any]]()

    def loss(output: torch.Tensor, truth: Any) -> torch.Tensor:
        if name not in made:
            found = resolve(study.code, name)
            # A class is made once with the options, such as a torch.nn.Module; a function gets them each time.
            made[name] = call(study.code, name, **options) if inspect.isclass(found) else lambda o, t: found(o, t, **options)
        try:
            value = made[name](output, truth)
        except Exception as error:
            raise failed(study.code, name, error) from error
        if not isinstance(value, torch.Tensor) or value.ndim or not value.is_floating_point():
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
            raise InputError(f'[training] loss "{name}" gives {got}; it must give the mean over persons, a tensor with one number.')
        return value

    return loss


def _measure(study: Study, name: str) -> Measure:
    short = name.partition(":")[2]

    def value(counts: Mapping[str, npt.NDArray[Any]], c: int | None) -> float | None:
        if is_forbidden():
            return None  # as where counts do not hold the measure
        try:
            found = call(study.code, name, {key: array.copy() for key, array in counts.items()})
        except InputError as error:
            if isinstance(error.__cause__, KeyError) and error.__cause__.args[0] not in counts:
                raise InputError(f"{str(error).removesuffix('.')}; counts has: {', '.join(counts)}.") from error
            raise
        try:
            number = float(found)
        except (TypeError, ValueError) as error:
            raise InputError(f'[evaluation] metrics "{name}" gives a {type(found).__name__}; it must give a number.') from error
        return number if math.isfinite(number) else math.nan

    return Measure(
        name=short, of="all", value=value, interval=NO_INTERVAL, printed=short.replace("_", " "), axis=short,
        meaning=f"measure of own code, {name}", bounds=None, guess=None, counted=False, additive=False, brief=True,
    )  # fmt: skip
