"""The tasks by name."""

from __future__ import annotations

from fedml.learning.classification import _class_counts, _cross_entropy, class_metrics
from fedml.learning.regression import _regression_counts, _squared_error, regression_metrics
from fedml.learning.task import Task
from fedml.study.sections import normal
from fedml.study.study import Study


def make_task(study: Study) -> Task:
    """The study's task."""
    if study.model.task == "segmentation":
        from fedml.learning.segmentation import segmentation_task

        return segmentation_task([normal(c) for c in study.cohort.classes], distances=study.model.segmentation.distances)
    if study.model.task == "regression":
        return Task("regression", _squared_error, _regression_counts, regression_metrics, "rmse", False)
    return Task("classification", _cross_entropy, _class_counts, class_metrics, "auroc", True)
