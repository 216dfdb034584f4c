"""The model of a request, whose tensors every message sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from fedml.modalities.layout import Layout
from fedml.models.fusion import CohortModel, build_model, constants, learned
from fedml.study.study import Study
from fedml.tasks.classification_loss import classification_loss
from fedml.tasks.registry import make_task
from fedml.tasks.task import Task
from fedml.wire.records import CLASS_WEIGHTS


@dataclass(frozen=True)
class Loaded:
    """A model and the tensors that messages set: ``weights`` (learned) and ``fixed`` (preprocessing constants)."""

    model: CohortModel
    weights: dict[str, torch.Tensor]
    fixed: dict[str, torch.Tensor]
    task: Task


@lru_cache(maxsize=2)
def model_for(study: Study, layout: Layout) -> Loaded:
    """One model for all sites of this process, because every message sets all of its tensors."""
    model = build_model(study, layout)
    return Loaded(model, learned(model), constants(model), make_task(study))


def weighed(loaded: Loaded, study: Study, values: dict[str, torch.Tensor]) -> Loaded:
    """``loaded`` with the weights of classes that the agreement holds, if the study takes them from counts; they are removed from it.

    Raises:
        KeyError, ValueError: there are none, or of another number of classes.
    """
    if study.training.class_weights != "inverse":
        return loaded
    weights = values.pop(CLASS_WEIGHTS).tolist()
    if len(weights) != len(loaded.task.classes):
        raise ValueError("the agreement has weights of another number of classes")
    return replace(loaded, task=replace(loaded.task, loss=classification_loss(study.training, weights)))
