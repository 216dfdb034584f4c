"""Type and shape of the counts that may leave a site, by task."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedml.study.study import Study


def count_fields(study: Study) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array that ``counts`` may hold for one part (``fedml.learning.task``)."""
    from fedml.learning.classification import BINS

    if study.model.task == "segmentation":
        from fedml.learning.segmentation import DISTANCE_BINS

        scored = (len(study.cohort.classes) - 1,)
        whole = dict.fromkeys(("intersection", "predicted", "true", "occurs", "scored"), ("int64", scored))
        dice: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys(("dice_sum", "dice_sq_sum"), ("float64", scored))
        own = {"persons": ("float64", (1,)), **dice, **whole}
        if study.model.segmentation.distances:
            own |= {"spaced": ("int64", (1,)), "hd95_sum": ("float64", scored), "hd95_persons": ("int64", scored)}
            own["hd95_histogram"] = ("int32", (*scored, DISTANCE_BINS))
        return own
    if study.model.task == "regression":
        return dict.fromkeys(("persons", "y_sum", "y2_sum", "e_sum", "e2_sum", "abs_sum"), ("float64", (1,)))
    classes = len(study.cohort.classes)
    sums = dict.fromkeys(("persons", "brier_sum", "log_loss_sum"), ("float64", (1,)))
    return {**sums, "confusion": ("int64", (classes, classes)), "histogram": ("int32", (1 if classes == 2 else classes, 2, BINS))}
