"""What preprocessing takes from the masks: voxels outside of the crop, voxels that resampling gives another class, whole lesions, and the
whole class of a person. By class, in numbers that add over persons and sites.

    lesions         (classes,) lesions in the files: connected parts of a class, also over edges and corners
    lost            (classes, 4) voxels cut away, voxels changed, lesions without a voxel left, persons without a voxel left
    lost_persons    (classes, 4) persons behind each of these
    lost_withheld   (classes, 4) sites that withhold it: it is of fewer persons than min_count, or of all but so few

A withheld number is 0 in the others, and unknown for all sites together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.errors import NotBuilt
from fedml.tasks.counts import Counts, add_counts
from fedml.tasks.measure import Measure
from fedml.tasks.original import LOST

KINDS = ("cut", "changed", "lesions", "class")
_Counts = Mapping[str, npt.NDArray[Any]]
_NO_SPREAD = NotBuilt("it counts, and estimates nothing")


def lost_fields(classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array; ``classes`` without the background."""
    return {"lesions": ("int64", (classes,)), **dict.fromkeys(("lost", "lost_persons", "lost_withheld"), ("int64", (classes, len(KINDS))))}


def lost_counts(lost: npt.NDArray[np.int64], row: npt.NDArray[np.int64], persons: int) -> Counts:
    """The counts of images: ``lost`` (images, classes, ``LOST``), and ``row`` (images,) the person of each."""
    of_person = np.zeros((persons, *lost.shape[1:]), np.int64)
    np.add.at(of_person, row, lost)
    voxels, cut, changed, lesions, gone = (of_person[..., k] for k in range(len(LOST)))
    whole = ((voxels > 0) & (cut + changed == voxels)).astype(np.int64)
    each = np.stack([cut, changed, gone, whole], axis=-1)  # (persons, classes, kinds)
    return {
        "lesions": lesions.sum(0),
        "lost": each.sum(0),
        "lost_persons": (each > 0).sum(0),
        "lost_withheld": np.zeros(each.shape[1:], np.int64),
    }


def lost_of_images(lost: npt.NDArray[np.int64], person: npt.NDArray[np.int64]) -> Counts:
    """The counts of all images of a site: ``lost`` (images, classes, ``LOST``), ``person`` (images,); with ``true`` and ``occurs``."""
    persons, row = np.unique(person, return_inverse=True)
    voxels = np.zeros((len(persons), lost.shape[1]), np.int64)
    np.add.at(voxels, row, lost[..., 0])
    return {**lost_counts(lost, row, len(persons)), "true": voxels.sum(0), "occurs": (voxels > 0).sum(0)}


def without_lost(counts: _Counts) -> Counts:
    """``counts`` of a subgroup: without these, because the others' would follow by subtraction."""
    return {name: value for name, value in counts.items() if name not in lost_fields(1)}


def lost_grouped(counts: Counts, few: npt.NDArray[np.bool_], smallest: int) -> Counts:
    """``counts``, changed in place, without a number of fewer than ``smallest`` persons, or of all persons with the class but so few.

    Args:
        few: (classes,) whether all counts of the class are taken out.
    """
    if "lost" in counts:
        behind, others = counts["lost_persons"], counts["occurs"][:, None] - counts["lost_persons"]
        hidden = few[:, None] | ((behind > 0) & (behind < smallest)) | ((others > 0) & (others < smallest) & (behind > 0))
        counts["lesions"][few] = 0
        for name in ("lost", "lost_persons"):
            counts[name][hidden] = 0
        counts["lost_withheld"][hidden] = 1
    return counts


def implausible(counts: _Counts) -> str:
    """What is impossible about counts of one site; "" if nothing is. ``counts``: of one part, with ``true`` and ``occurs``."""
    if "lost" not in counts:
        return ""
    lost, persons, withheld = counts["lost"], counts["lost_persons"], counts["lost_withheld"]
    if (withheld > 1).any() or ((withheld > 0) & ((lost > 0) | (persons > 0))).any():
        return "tells a number that it withholds"
    if (persons > counts["occurs"][:, None]).any() or (lost < persons).any() or (lost[:, 3] != persons[:, 3]).any():
        return "has other persons than those with the class"
    if (lost[:, :2].sum(1) > counts["true"]).any() or (lost[:, 2] > counts["lesions"]).any():
        return "has more voxels or lesions than the masks"
    return ""


def _value(kinds: Sequence[int], counts: _Counts, one: int | None) -> float | None:
    if one is None or "lost" not in counts:
        return None
    if counts["lost_withheld"][one - 1, list(kinds)].any():
        return math.nan
    return float(counts["lost"][one - 1, list(kinds)].sum())


def _lesions(counts: _Counts, one: int | None) -> float | None:
    return None if one is None or "lesions" not in counts else float(counts["lesions"][one - 1])


def _measure(name: str, value: Any, printed: str, meaning: str, *, brief: bool = False) -> Measure:
    return Measure(
        name=name, of="class", value=value, interval=_NO_SPREAD, printed=printed, axis=printed, meaning=meaning, bounds=None, guess=None,
        counted=True, additive=False, brief=brief,
    )  # fmt: skip


LOST_MEASURES = (
    _measure("lesions", _lesions, "lesions", "connected parts of the class in the true masks, as the files have them"),
    _measure(
        "lost_lesions", partial(_value, (2,)), "lost lesions",
        "lesions of which preprocessing leaves no voxel, so that the model never sees them; they count as missed", brief=True,
    ),
    _measure("lost_persons", partial(_value, (3,)), "persons who lose it", "persons of whose class preprocessing leaves no voxel"),
    _measure("lost_voxels", partial(_value, (0, 1)), "lost voxels", "voxels that preprocessing cuts away or gives another class"),
)  # fmt: skip


def lost_notes(scored: Mapping[int, str], by_site: Mapping[str, _Counts]) -> list[str]:
    """What a reader of the measures has to know about the masks, as sentences; none if preprocessing loses no lesion and cuts nothing.

    Args:
        scored: the classes without the background, by number (``Task.scored``). by_site: counts of one part.
    """
    some = [counts for counts in by_site.values() if "lost" in counts]
    if not some:
        return []
    total, out = add_counts(some), []
    for number, name in scored.items():
        k = number - 1
        cut, _, gone, whole = (int(v) for v in total["lost"][k])
        withheld = int(total["lost_withheld"][k, [0, 2, 3]].max())
        least = "at least " if withheld else ""
        if not (cut or gone or withheld):
            continue
        text = (
            f"Lost by preprocessing, class {name}: {least}{gone:,} of {int(total['lesions'][k]):,} lesions, {least}{cut:,} of "
            f"{int(total['true'][k]):,} voxels outside of the crop, the whole class of {least}{whole:,} of {int(total['occurs'][k]):,} "
            "persons. Measures count them as not found."
        )
        if withheld:
            text += f" {withheld} site(s) withhold a number of too few persons."
        if cut:
            text += " A larger [cohort.image] size keeps them."
        out.append(text)
    return out
