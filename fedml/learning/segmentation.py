"""Segmentation as a task: loss, counts that add over persons and sites, metrics of counts; inference by windows, in mixed precision.

    task = segmentation_task(["background", "spleen"])     # class 0 is the background, which is not scored
    truth = Truth(mask, person, spacing)                   # what a batch says of the images: task.truth(batch)
    logits = infer(model, images, window=(96, 96, 96), device=pick_device(), precision="bfloat16")
    task.metrics(add_counts([task.counts(logits, truth), others]))   # {"dice/spleen": ..., "hd95_mean_mm/spleen": ...}

A person's masks are those of all the person's images together. By person and class, with what is not defined left out of the mean and
counted beside it (the convention of nnU-Net: Isensee et al. 2021):

    true        predicted   Dice                            HD95
    some        some        2 |both| / (|true| + |pred.|)   the larger of both directed 95th percentiles (MONAI's)
    some        none        0                               not defined: missed; infinite for the median
    none        some        0                               not defined: missed; infinite for the median
    none        none        not counted (neither as 1)      not counted

``dice/CLASS`` is of all voxels of all persons, ``dice_mean_person/CLASS`` the mean over persons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fedml.learning.task import Counts, Task

Floats = npt.NDArray[np.float64]

# Of the histogram of HD95: place 0 holds distances of exactly 0, the last one persons whose class was missed, those between are equally
# wide on a logarithmic scale. A median read from it is within 1 % of the exact one.
DISTANCE_BINS = 1024
DISTANCE_RANGE = (1e-4, 1e4)  # mm (or voxels); what lies beyond shares the outermost of those between
_WIDTH = math.log(DISTANCE_RANGE[1] / DISTANCE_RANGE[0]) / (DISTANCE_BINS - 2)


@dataclass(frozen=True)
class Truth:
    """The masks of a batch's images.

    mask (images, *size): class of each voxel, a whole number. person (images,): the row of the image's person, ascending or not.
    spacing (images, axes): mm between voxels, NaN where the file does not say; None: nowhere.
    """

    mask: torch.Tensor
    person: torch.Tensor
    spacing: torch.Tensor | None = None


def truth_of(batch: Mapping[str, torch.Tensor]) -> Truth:
    """A batch's ``mask`` (images, 1, *size), ``image_person`` (images,) and, if there, ``image_spacing`` (images, axes)."""
    return Truth(batch["mask"].squeeze(1), batch["image_person"], batch.get("image_spacing"))


def segmentation_task(classes: Sequence[str], *, distances: bool = True) -> Task:
    """The task for masks whose value k means ``classes[k]``; class 0 is the background.

    Its model answers (images, classes, *size) logits. Loss: ``dice_ce``. Watched: ``dice_mean_person``, the mean over classes.

    Args:
        distances: False leaves out HD95 and its counts.
    """
    counts = partial(segmentation_counts, distances=distances)
    return Task("segmentation", dice_ce, counts, partial(segmentation_metrics, classes), "dice_mean_person", True, truth_of)


# --- loss


@cache
def _dice_loss() -> Any:
    from monai.losses import DiceLoss

    return DiceLoss(include_background=False, to_onehot_y=True, softmax=True, reduction="none")


def dice_ce(output: torch.Tensor, truth: Truth) -> torch.Tensor:
    """Dice loss without the background plus cross-entropy, as in MONAI's DiceCELoss: the mean over persons of the mean over their images.

    Each image is taken by itself, not the batch as one, so the loss of some persons and of others adds up to that of all.
    """
    output, mask = output.float(), truth.mask.to(output.device).long()
    dice = _dice_loss()(output, mask[:, None]).flatten(1).mean(1)
    each = dice + functional.cross_entropy(output, mask, reduction="none").flatten(1).mean(1)
    images = torch.bincount(truth.person)
    weight = (1 / images[truth.person].to(each.dtype)).to(each.device)
    total: torch.Tensor = (each * weight).sum() / max(int((images > 0).sum()), 1)
    return total


# --- counts


def segmentation_counts(output: torch.Tensor, truth: Truth, *, distances: bool = True) -> Counts:
    """Counts that add over persons; K classes without the background. A person's images must all be in one call.

    persons (1,); intersection, predicted, true (K,) voxels; dice_sum, dice_sq_sum (K,) over persons, of Dice and of its square; occurs,
    scored (K,) persons in whom the class is in the true mask, and in either mask. With ``distances``: spaced (1,) persons with known
    spacing; hd95_sum, hd95_persons (K,) where both masks have the class; hd95_histogram (K, ``DISTANCE_BINS``) of all scored persons.
    HD95 of a person with several images is the mean of those in which it is defined; it is in voxels where the spacing is not known.

    Args:
        output: (images, classes, *size) logits.

    Raises:
        FloatingPointError: a logit is not finite.
        ValueError: a mask does not fit the images, or holds a value that is no class.
    """
    images, classes, *size = output.shape
    if tuple(truth.mask.shape) != (images, *size) or truth.person.shape != (images,):
        raise ValueError(f"masks are {tuple(truth.mask.shape)} for {images} images of {tuple(size)}")
    if not bool(torch.isfinite(output).all()):
        raise FloatingPointError("the model's output is not finite")
    guess, mask = output.detach().argmax(1).cpu().numpy(), truth.mask.cpu().numpy()
    persons, row = np.unique(truth.person.cpu().numpy(), return_inverse=True)
    confusion = np.zeros((len(persons), classes, classes), dtype=np.int64)
    for k in range(images):
        confusion[row[k]] += _confusion(mask[k], guess[k], classes)
    both = np.diagonal(confusion, axis1=1, axis2=2)[:, 1:]
    true, predicted = confusion.sum(2)[:, 1:], confusion.sum(1)[:, 1:]
    dice = np.divide(2.0 * both, true + predicted, out=np.zeros(both.shape), where=true + predicted > 0)
    out: Counts = {
        "persons": np.array([float(len(persons))]),
        "intersection": both.sum(0),
        "predicted": predicted.sum(0),
        "true": true.sum(0),
        "dice_sum": dice.sum(0),
        "dice_sq_sum": (dice**2).sum(0),
        "occurs": (true > 0).sum(0),
        "scored": (true + predicted > 0).sum(0),
    }
    return {**out, **_distance_counts(guess, mask, truth.spacing, row, true + predicted > 0)} if distances else out


def _confusion(mask: npt.NDArray[Any], guess: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    """(true, predicted) voxels of one image."""
    low, high = (int(mask.min()), int(mask.max())) if mask.size else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(f"a mask holds {low if low < 0 else high}, the classes are 0 to {classes - 1}")
    pair = mask.astype(np.int64).ravel() * classes + guess.ravel()
    return np.bincount(pair, minlength=classes**2).reshape(classes, classes)


def _distance_counts(
    guess: npt.NDArray[Any], mask: npt.NDArray[Any], spacing: torch.Tensor | None, row: npt.NDArray[np.int64], scored: npt.NDArray[np.bool_]
) -> Counts:
    """The counts of HD95; ``row`` (images,) the person, ``scored`` (persons, K)."""
    persons, classes = scored.shape
    step = np.full((len(mask), mask.ndim - 1), np.nan) if spacing is None else spacing.detach().cpu().double().numpy()
    known = np.isfinite(step).all(1) & (step > 0).all(1)
    unspaced = np.bincount(row, weights=~known, minlength=persons) > 0
    total, defined = np.zeros((persons, classes)), np.zeros((persons, classes), dtype=np.int64)
    for k, c in np.ndindex(len(mask), classes):
        distance = hd95(guess[k] == c + 1, mask[k] == c + 1, step[k] if not unspaced[row[k]] else None)
        if distance is not None:
            total[row[k], c] += distance
            defined[row[k], c] += 1
    mean = total / np.maximum(defined, 1)
    histogram = np.zeros((classes, DISTANCE_BINS), dtype=np.int32)
    place = np.where(defined > 0, _place(mean), DISTANCE_BINS - 1)
    for c in range(classes):
        histogram[c] = np.bincount(place[scored[:, c], c], minlength=DISTANCE_BINS)
    return {
        "spaced": np.array([(~unspaced).sum()], dtype=np.int64),
        "hd95_sum": mean.sum(0),
        "hd95_persons": (defined > 0).sum(0),
        "hd95_histogram": histogram,
    }


def hd95(guess: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_], spacing: Sequence[float] | Floats | None = None) -> float | None:
    """The larger of the 95th percentiles of the distances of either surface's voxels to the other's; None where a mask is empty.

    MONAI's, with every surface voxel alike: the area-weighted one of DeepMind's surface-distance differs where spacing does by axis.

    Args:
        guess, true: (\\*size). spacing: mm between voxels by axis; None: distances in voxels.
    """
    if not (guess.any() and true.any()):
        return None
    from monai.metrics import compute_hausdorff_distance

    pair = [torch.from_numpy(m)[None, None] for m in _cropped(guess, true)]
    step = None if spacing is None else [float(s) for s in spacing]
    return float(compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=step))


def _cropped(guess: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
    """Both masks cut to the box that holds them and a margin of one: MONAI would copy the whole volume as floats first."""
    either = guess | true
    box = []
    for axis in range(either.ndim):
        along = np.flatnonzero(either.any(axis=tuple(a for a in range(either.ndim) if a != axis)))
        box.append(slice(max(along[0] - 1, 0), along[-1] + 2))
    return [np.ascontiguousarray(m[tuple(box)]) for m in (guess, true)]


def _place(distance: Floats) -> npt.NDArray[np.int64]:
    """The bin of each distance."""
    scaled = np.log(np.maximum(distance, DISTANCE_RANGE[0]) / DISTANCE_RANGE[0]) / _WIDTH
    return np.where(distance > 0, 1 + np.minimum(scaled, DISTANCE_BINS - 3).astype(np.int64), 0)


# --- metrics


def histogram_median(histogram: npt.NDArray[Any]) -> float:
    """Median of one (``DISTANCE_BINS``,) histogram of HD95: infinite where half or more were missed, NaN where nobody is in it."""
    upto = np.cumsum(histogram)
    n = int(upto[-1])
    if not n:
        return math.nan
    middle = np.searchsorted(upto, [(n - 1) // 2, n // 2], side="right")
    return float(bin_centres()[middle].mean())


def bin_centres() -> Floats:
    """(``DISTANCE_BINS``,) what each bin of the histogram of HD95 stands for: 0 and infinity at its ends."""
    centre: Floats = DISTANCE_RANGE[0] * np.exp((np.arange(DISTANCE_BINS) - 0.5) * _WIDTH)
    centre[0], centre[-1] = 0.0, math.inf
    return centre


def segmentation_metrics(classes: Sequence[str], counts: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """Metrics of all persons in ``counts``; NaN where a class was neither there nor predicted in anybody.

    dice and dice_mean_person: means over the classes that have one. Then by class: dice, dice_mean_person, persons (in whom the class
    is); with HD95: hd95_mean_mm over persons where it is defined, hd95_median_mm over all with the class in either mask (within 1 %),
    missed: persons with the class in one mask only. They end in ``_voxels`` where no person's spacing is known; where only some
    persons' is known there are none, for mm and voxels do not add.
    """
    n = float(counts["persons"][0])
    if not n:
        return {"persons": 0.0}
    found: dict[str, Floats] = {
        "dice": _ratio(2.0 * counts["intersection"], counts["true"] + counts["predicted"]),
        "dice_mean_person": _ratio(counts["dice_sum"], counts["scored"]),
        "persons": counts["occurs"].astype(np.float64),
    }
    spaced = float(counts["spaced"][0]) if "spaced" in counts else -1.0
    if spaced in (0.0, n):
        unit = "mm" if spaced else "voxels"
        found[f"hd95_mean_{unit}"] = _ratio(counts["hd95_sum"], counts["hd95_persons"])
        found[f"hd95_median_{unit}"] = np.array([histogram_median(h) for h in counts["hd95_histogram"]])
        found["missed"] = (counts["scored"] - counts["hd95_persons"]).astype(np.float64)
    out = {"persons": n}
    for name in ("dice", "dice_mean_person"):
        own = found[name][~np.isnan(found[name])]
        out[name] = float(own.mean()) if len(own) else math.nan
    return out | {f"{name}/{c}": float(v) for name, values in found.items() for c, v in zip(classes[1:], values, strict=True)}


def _ratio(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Floats:
    out: Floats = np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
    return out


# --- inference
