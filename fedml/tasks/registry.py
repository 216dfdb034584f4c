"""The table of all tasks by name. A new task is one file, one line here, and its traits in ``fedml.study.task_traits``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedml.errors import InputError
from fedml.study.study import Study
from fedml.tasks.classification import classification_task
from fedml.tasks.clusters import design_fields
from fedml.tasks.count import count_task
from fedml.tasks.multilabel import multilabel_task
from fedml.tasks.ordinal import ordinal_task
from fedml.tasks.own import with_own_code
from fedml.tasks.regression import regression_task
from fedml.tasks.segmentation import segmentation_task
from fedml.tasks.survival import survival_task
from fedml.tasks.task import Task

TASKS: dict[str, Callable[[Study], Task]] = {
    "classification": classification_task,
    "regression": regression_task,
    "segmentation": segmentation_task,
    "ordinal": ordinal_task,
    "count": count_task,
    "multilabel": multilabel_task,
    "survival": survival_task,
}


def make_task(study: Study) -> Task:
    """The study's task.

    Raises:
        InputError: a study may name the task, but it is not in ``TASKS``; or an own measure has the name of one of the task's.
    """
    name = study.model.task
    if name not in TASKS:
        raise InputError(f'[model] task = "{name}" is not built; write one of {", ".join(TASKS)}.')
    task = with_own_code(TASKS[name](study), study)
    if study.cohort.cluster is None:
        return task
    words = replace(task.words, counts=f"{task.words.counts}, and design effects of persons who belong together")
    return replace(task, fields={**task.fields, **design_fields(task.traits.label)}, words=words)
