"""Counts of a segmentation: of each person's masks together, so that they add over persons and sites. See ``segmentation.py``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedml.tasks.counts import Counts
from fedml.tasks.lost import lost_counts, lost_fields, lost_grouped
from fedml.tasks.original import Originals
from fedml.tasks.several import Several

Floats = npt.NDArray[np.float64]
Masks = Sequence[npt.NDArray[Any]]  # of images, each (*size)

# Of the histogram of HD95: place 0 holds distances of exactly 0, the last one persons whose class was missed, those between are equally
# wide on a logarithmic scale. A median read from it is within 1 % of the exact one.
DISTANCE_BINS = 1024
DISTANCE_RANGE = (1e-4, 1e4)  # mm (or voxels); what lies beyond shares the outermost of those between
_WIDTH = math.log(DISTANCE_RANGE[1] / DISTANCE_RANGE[0]) / (DISTANCE_BINS - 2)


@dataclass(frozen=True)
class Truth:
    """The masks of a batch's images.

    mask (images, *size): class of each voxel, a whole number; of images of different sizes ``Several`` of (*size).
    person (images,): the row of the image's person, ascending or not.
    spacing (images, axes): mm between voxels, NaN where the file does not say; None: nowhere.
    originals: the masks as the files have them, with which predictions are compared; None: the masks are those of the files.
    """

    mask: torch.Tensor | Several
    person: torch.Tensor
    spacing: torch.Tensor | None = None
    originals: Originals | None = None


def truth_of(batch: Mapping[str, Any]) -> Truth:
    """A batch's ``mask`` (images, 1, *size), ``image_person`` (images,); if there, ``image_spacing`` (images, axes), ``original``."""
    mask = batch["mask"]
    flat = Several([one[0] for one in mask]) if isinstance(mask, Several) else mask.squeeze(1)
    return Truth(flat, batch["image_person"], batch.get("image_spacing"), batch.get("original"))


def segmentation_fields(classes: int, *, distances: bool = True, moved: bool = False) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array of ``segmentation_counts``; ``classes`` with the background. ``moved``: preprocessing moves voxels."""
    scored = (classes - 1,)
    whole = dict.fromkeys(("intersection", "predicted", "true", "occurs", "scored"), ("int64", scored))
    dice: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys(("dice_sum", "dice_sq_sum"), ("float64", scored))
    own = {"persons": ("float64", (1,)), **dice, **whole}
    if distances:
        own |= {"spaced": ("int64", (1,)), "hd95_sum": ("float64", scored), "hd95_persons": ("int64", scored)}
        own["hd95_histogram"] = ("int32", (*scored, DISTANCE_BINS))
    return own | (lost_fields(classes - 1) if moved else {})


def segmentation_counts(output: torch.Tensor | Several, truth: Truth, *, distances: bool = True) -> Counts:
    """Counts that add over persons; K classes without the background. A person's images must all be in one call.

    persons (1,); intersection, predicted, true (K,) voxels; dice_sum, dice_sq_sum (K,) over persons, of Dice and of its square; occurs,
    scored (K,) persons in whom the class is in the true mask, and in either mask. With ``distances``: spaced (1,) persons with known
    spacing; hd95_sum, hd95_persons (K,) where both masks have the class; hd95_histogram (K, ``DISTANCE_BINS``) of all scored persons.
    HD95 of a person with several images is the mean of those in which it is defined; it is in voxels where the spacing is not known.

    Where preprocessing moved voxels, all of this is of the voxels of the files: the prediction is brought back to them, and what was cut
    away counts as predicted background (``fedml.tasks.original``). What the prepared masks lack is counted too (``fedml.tasks.lost``).

    Args:
        output: (images, classes, *size) logits, or ``Several`` of (classes, *size).

    Raises:
        FloatingPointError: a logit is not finite.
        ValueError: a mask does not fit the images, or holds a value that is no class.
    """
    images, classes = len(output), output.shape[1] if isinstance(output, torch.Tensor) else output[0].shape[0]
    sizes = [tuple(logits.shape[1:]) for logits in output]
    if [tuple(one.shape) for one in truth.mask] != sizes or truth.person.shape != (images,):
        raise ValueError(f"masks are {[tuple(one.shape) for one in truth.mask][:3]} for {images} images of {sizes[:3]}")
    if not all(bool(torch.isfinite(logits).all()) for logits in output):
        raise FloatingPointError("the model's output is not finite")
    persons, row = np.unique(truth.person.cpu().numpy(), return_inverse=True)
    originals = None if truth.originals is None else [truth.originals[k] for k in range(images)]
    if originals is None:
        guess, mask = ([one.cpu().numpy() for one in many] for many in ((one.detach().argmax(0) for one in output), truth.mask))
        spacing = None if truth.spacing is None else truth.spacing.detach().cpu().double().numpy()
    else:
        guess, mask = [one.labels(logits) for one, logits in zip(originals, output, strict=True)], [one.mask() for one in originals]
        spacing = np.array([one.spacing for one in originals])
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
    if originals is not None:
        out |= lost_counts(np.array([one.lost for one in originals]), row, len(persons))
    return {**out, **_distance_counts(guess, mask, spacing, row, true + predicted > 0)} if distances else out


def grouped(counts: Mapping[str, npt.NDArray[Any]], smallest: int) -> Counts:
    """``counts`` with no number about fewer than ``smallest`` persons.

    A class in the masks of fewer persons is taken out at this site. Its distances are taken out where few persons have one or few were
    missed; what is left of their histogram is in groups of neighbours, each at the mean of their places.
    """
    out = {name: value.copy() for name, value in counts.items()}
    if smallest <= 1 or "scored" not in out:
        return out
    few = _few(out["scored"], smallest) | _few(out["occurs"], smallest)
    for name in ("intersection", "predicted", "true", "occurs", "scored", "dice_sum", "dice_sq_sum"):
        out[name][few] = 0
    if "hd95_histogram" in out:
        missed = out["hd95_histogram"][:, -1]
        for name in ("hd95_sum", "hd95_persons", "hd95_histogram"):
            out[name][few | _few(out["hd95_persons"], smallest) | _few(missed, smallest)] = 0
        out["hd95_histogram"] = np.stack([_in_groups(row, smallest) for row in out["hd95_histogram"]])
        out["spaced"][_few(out["spaced"], smallest)] = 0
    return lost_grouped(out, few, smallest)


def _few(persons: npt.NDArray[Any], smallest: int) -> npt.NDArray[np.bool_]:
    few: npt.NDArray[np.bool_] = (persons > 0) & (persons < smallest)
    return few


def _in_groups(row: npt.NDArray[Any], smallest: int) -> npt.NDArray[Any]:
    """A histogram of distances with neighbours together; persons who were missed, in the last place, stay."""
    out = np.zeros_like(row)
    out[-1] = row[-1]
    persons = np.repeat(np.arange(len(row) - 1), row[:-1])
    groups = np.array_split(persons, max(len(persons) // smallest, 1)) if len(persons) else []
    for group in groups:
        out[round(float(group.mean()))] += len(group)
    return out


def _confusion(mask: npt.NDArray[Any], guess: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    """(true, predicted) voxels of one image."""
    low, high = (int(mask.min()), int(mask.max())) if mask.size else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(f"a mask holds {low if low < 0 else high}, the classes are 0 to {classes - 1}")
    pair = mask.astype(np.int64).ravel() * classes + guess.ravel()
    return np.bincount(pair, minlength=classes**2).reshape(classes, classes)


def _distance_counts(
    guess: Masks, mask: Masks, spacing: Floats | None, row: npt.NDArray[np.int64], scored: npt.NDArray[np.bool_]
) -> Counts:
    """The counts of HD95; ``row`` (images,) the person, ``scored`` (persons, K)."""
    persons, classes = scored.shape
    step = np.full((len(mask), max((one.ndim for one in mask), default=1)), np.nan) if spacing is None else spacing
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


def histogram_median(histogram: npt.NDArray[Any]) -> float:
    """Median of one (``DISTANCE_BINS``,) histogram of HD95: infinite where half or more were missed, NaN where it is empty."""
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
