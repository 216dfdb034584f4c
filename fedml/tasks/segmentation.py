"""Segmentation: a class of each voxel; loss, and metrics from counts that add over persons and sites (``segmentation_counts.py``).

    task = segmentation_task(study)                        # its first class is the background, which is not scored
    truth = Truth(mask, person, spacing)                   # what a batch says of the images: task.truth(batch)
    logits = infer(model, images, window=(96, 96, 96), device=pick_device(), precision="bfloat16")
    task.metrics(add_counts([task.counts(logits, truth), others]))   # {"dice/spleen": ..., "hd95_mean_mm/spleen": ...}

A person's masks are those of all the person's images together. By person and class, with undefined values excluded from the mean and
counted separately (the convention of nnU-Net: Isensee et al. 2021):

    true        predicted   Dice                            HD95
    some        some        2 |both| / (|true| + |pred.|)   the larger of both directed 95th percentiles (MONAI's)
    some        none        0                               not defined: missed; infinite for the median
    none        some        0                               not defined: missed; infinite for the median
    none        none        not counted (neither as 1)      not counted

``dice/CLASS`` is of all voxels of all persons, ``dice_mean_person/CLASS`` the mean over persons. Voxels are those of the files, not of the
prepared images (``original.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedml.errors import NotBuilt
from fedml.study.code_section import is_own
from fedml.study.mask_losses import options_of
from fedml.study.section import normal
from fedml.study.study import Study
from fedml.tasks.counts import add_counts
from fedml.tasks.drawn import Statistic, statistic
from fedml.tasks.interval_tools import Floats, Interval, Parts, mean_of, no_interval, student
from fedml.tasks.lost import LOST_MEASURES, without_lost
from fedml.tasks.mask_losses import deeply_supervised, mask_loss
from fedml.tasks.measure import Measure
from fedml.tasks.segmentation_counts import (
    Truth,
    bin_centres,
    grouped,
    histogram_median,
    segmentation_counts,
    segmentation_fields,
    truth_of,
)
from fedml.tasks.task import Answer, Compared, Labels, Result, Task, Words, unchanged

_NO_SPREAD = NotBuilt("its spread over persons is not in the counts")


def segmentation_task(study: Study) -> Task:
    """The task of a study whose target is a mask with each image: value k means the k-th class, and the first is the background.

    Its network gives (images, classes, *size) logits. Watched: ``dice_mean_person``, the mean over classes.
    """
    names, distances = tuple(normal(c) for c in study.cohort.classes), study.model.segmentation.distances
    moved = study.cohort.image is not None and study.cohort.image.preprocess is not None
    counts = partial(segmentation_counts, distances=distances)
    return Task(
        name=study.model.task, traits=study.traits, classes=names, scored=dict(enumerate(names[1:], start=1)), outputs=len(names),
        truth=truth_of, loss=_loss(study), counts=counts,
        fields=segmentation_fields(len(names), distances=distances, moved=moved), coarse=without_lost, grouped=grouped, spread=unchanged,
        evaluation_batch=1,  # the logits of all voxels and classes need much memory
        measures=MEASURES, watched="dice_mean_person", higher=True, measure="dice_mean_person", risks=False, over_time=None,
        labels=_labels(study),
        answer=Answer(
            columns=_masks, example={"predicted": [[0]], "size": [[1]]}, caption=NotBuilt("the picture shows the predicted mask"),
        ),
        compared=Compared(values=lambda output, truth: _dice_of(counts(output, truth)), statistic=_mean_dice),
        linear_score=NotBuilt("a mask is no score of a person"),
        words=Words(
            predicts=f"of each voxel, one of {', '.join(map(str, study.cohort.classes))}",
            counts="counts of voxels, sums of overlaps (Dice) and a histogram of distances",
            outcome=f"The outcome is a mask with classes {', '.join(names)}, given with each image.",
            output=f"The model gives {len(names)} scores for each voxel; the predicted class is the one with the highest.",
            balance=NotBuilt("the classes are of voxels, not of persons"),
            no_prediction="The model outlines structures on images; it predicts no outcome of a person.",
            no_classes="",
            answer=lambda result: _sentences(len(names), result),
            unknown=(),
            groups="",
        ),
    )  # fmt: skip


dice_ce = mask_loss("dice_ce", options_of("dice_ce", {}))  # of a study that names none


def _loss(study: Study) -> Callable[[torch.Tensor, Truth], torch.Tensor]:
    plan = study.training
    name = "dice_ce" if plan.loss is None or is_own(plan.loss) else plan.loss  # an own loss is put in later
    weights = plan.class_weights if isinstance(plan.class_weights, tuple) else ()
    loss = mask_loss(name, options_of(name, {} if name != plan.loss else plan.loss_options), weights)
    return deeply_supervised(loss, len(study.cohort.classes)) if study.model.segmentation.deep_supervision else loss


def _labels(study: Study) -> Labels:
    """The mask is the label; a person's own is 0 everywhere, the first class, so that every person has one."""
    classes, name = study.cohort.classes, study.cohort.outcome
    return Labels(
        read=lambda cells: np.zeros(len(cells)),
        cells=lambda labels: {name: [classes[int(v)] for v in labels]},
        show=lambda label: "",
        placeholder=lambda labels, random: labels,
        canary=NotBuilt("a canary has no mask"),
    )


def _masks(output: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> dict[str, list[Any]]:
    """Each person's mask in C order, and its shape; None: no image."""
    masks: list[list[int] | None] = [None] * len(batch["image_present"])
    sizes: list[list[int] | None] = [None] * len(masks)
    for person, logits in zip(batch["image_person"].tolist(), output, strict=True):
        masks[person], sizes[person] = logits.argmax(0).flatten().tolist(), list(logits.shape[1:])
    return {"predicted": masks, "size": sizes}


def _dice_of(counts: Mapping[str, npt.NDArray[Any]]) -> Floats:
    """(1, classes) of one person's counts, NaN for a class that is in neither the true nor the predicted mask."""
    return np.where(counts["scored"] > 0, counts["dice_sum"], np.nan)[None]


def _mean_dice(labels: Floats, values: Floats) -> Statistic:
    each = [statistic("mean", labels, dice) for dice in values.T]
    return lambda drawn: np.nanmean([of_class(drawn) for of_class in each], axis=0)


# --- measures


def _mean_or(each: Floats, one: int | None) -> float:
    """That of class ``one``, or the mean over the classes that have one; ``each`` is without the background."""
    if one is not None:
        return float(each[one - 1])
    own = each[~np.isnan(each)]
    return float(own.mean()) if len(own) else math.nan


def _ratio(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Floats:
    out: Floats = np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
    return out


def _unit(counts: Mapping[str, npt.NDArray[Any]]) -> str:
    """The unit of HD95; "" where it was not measured, or only some persons' spacing is known: mm and voxels do not add."""
    if "spaced" not in counts:
        return ""
    return {0.0: "voxels", float(counts["persons"][0]): "mm"}.get(float(counts["spaced"][0]), "")


def _dice(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    return _mean_or(_ratio(2.0 * counts["intersection"], counts["true"] + counts["predicted"]), one)


def _dice_mean_person(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    return _mean_or(_ratio(counts["dice_sum"], counts["scored"]), one)


def _occurs(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    return _mean_or(counts["occurs"].astype(np.float64), one)


def _hd95_mean(unit: str, counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float | None:
    return _mean_or(_ratio(counts["hd95_sum"], counts["hd95_persons"]), one) if _unit(counts) == unit else None


def _hd95_median(unit: str, counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float | None:
    return _mean_or(np.array([histogram_median(h) for h in counts["hd95_histogram"]]), one) if _unit(counts) == unit else None


def _missed(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float | None:
    return _mean_or((counts["scored"] - counts["hd95_persons"]).astype(np.float64), one) if _unit(counts) else None


def _dice_interval(parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    each = []
    for c in range(len(parts[0]["scored"])) if one is None else [one - 1]:
        found = student([(float(p["scored"][c]), float(p["dice_sum"][c]), float(p["dice_sq_sum"][c])) for p in parts], level, share=True)
        if not math.isnan(found.value):
            each.append(found)
    return mean_of(each, level) if each else no_interval(math.nan, level, "no person has the class")


def _median_interval(unit: str, parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval | None:
    """Order statistics about the median, whatever the distribution (Conover 1999, Practical Nonparametric Statistics, section 3.2)."""
    from scipy.stats import binom

    total = add_counts(parts)
    value = _hd95_median(unit, total, one)
    if value is None or one is None:
        return None
    histogram = total["hd95_histogram"][one - 1]
    persons = int(histogram.sum())
    # The number of order statistics outside the interval on either side, minus one.
    below = int(binom.ppf((1 - level) / 2, persons, 0.5)) if persons else 0
    if not below:
        return no_interval(value, level, "too few persons for limits of a median")
    at = np.searchsorted(np.cumsum(histogram), [below - 1, persons - below], side="right")
    low, high = bin_centres()[at]
    return Interval(value, float(low), float(high), level, "order statistics")


def _hd95(kind: str, unit: str) -> Measure:
    median = kind == "median"
    return Measure(
        name=f"hd95_{kind}_{unit}", of="class", value=partial(_hd95_median if median else _hd95_mean, unit),
        interval=partial(_median_interval, unit) if median else _NO_SPREAD, printed=f"HD95, {kind}, {unit}", axis=f"HD95, {unit}",
        meaning="distance that 95 % of either outline keep from the other at most: 0 is perfect",
        bounds=None, guess=None, counted=False, additive=False, brief=True,
    )  # fmt: skip


# HD95: mean over persons where it is defined, median over all with the class in either mask (within 1 %). Dice of all classes is the mean
# over those that have one.
MEASURES: tuple[Measure, ...] = (
    Measure(
        name="dice", of="both", value=_dice, interval=_NO_SPREAD, printed="Dice of all voxels", axis="Dice",
        meaning="overlap of the outlined and the true voxels, all persons' voxels taken together: 0 none, 1 the same",
        bounds=(0.0, 1.0), guess=None, counted=False, additive=False, brief=True,
    ),
    Measure(
        name="dice_mean_person", of="both", value=_dice_mean_person, interval=_dice_interval, printed="Dice, mean over persons",
        axis="Dice",
        meaning="overlap of the outlined and the true voxels of a person, the mean over persons: 0 none, 1 the same",
        bounds=(0.0, 1.0), guess=None, counted=False, additive=False, brief=True,
    ),
    Measure(
        name="persons", of="class", value=_occurs, interval=_NO_SPREAD, printed="persons with it", axis="persons",
        meaning="persons with the class in the true mask", bounds=None, guess=None, counted=True, additive=False, brief=True,
    ),
    *(_hd95(kind, unit) for unit in ("mm", "voxels") for kind in ("mean", "median")),
    Measure(
        name="missed", of="class", value=_missed, interval=_NO_SPREAD, printed="missed", axis="missed",
        meaning="persons with the class in one mask only, the true or the outlined one",
        bounds=None, guess=None, counted=True, additive=False, brief=True,
    ),
    *LOST_MEASURES,
)  # fmt: skip


def _sentences(classes: int, result: Result) -> list[str]:
    over = "persons and classes" if classes > 2 else "persons"
    overlap = f"what the model outlines overlaps the given masks by a Dice of {result.headline}"
    return [f"In {result.held}, {overlap}, the mean over {over} (0: no overlap, 1: the same)."]
