"""Counts of a classification: confusion, a histogram of log-odds, and sums, which add over persons and sites.

The histogram's bins are equally wide in asinh(log-odds): 0.004 wide at 0, 0.4 % of the log-odds far from 0. A histogram that leaves a site
is ``grouped``: persons of one class are put together, in the order of their log-odds, until at least ``min_count`` are at one place, the
mean of theirs on a grid of ``CELLS`` (microaggregation: Domingo-Ferrer and Mateo-Sanz 2002, IEEE TKDE 14:189). The receiver spreads each
group evenly over its part of the scale (``spread``). What the AUROC of the site's own persons loses by this is sent beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedml.tasks.counts import Counts, rounded_confusion

BINS = 4096
COARSE = 64  # bins: a quarter of a unit of log-odds at 0
CELLS = 256  # of the grid on which a group's place is rounded: 0.06 of log-odds at 0
LOGIT_RANGE = 1000.0  # larger log-odds are in the last bin
BEYOND = "beyond"  # concordant pairs of a site's own persons that its grouped histogram does not show
_SCALED = float(np.arcsinh(LOGIT_RANGE))
COARSE_STEP = 2 * _SCALED / COARSE  # of asinh(log-odds), which is log-odds near 0

# The log-odds of each bin; the first and the last bin also contain all values beyond.
MIDPOINTS: npt.NDArray[np.float64] = np.sinh(np.linspace(-_SCALED, _SCALED, 2 * BINS + 1)[1::2])


def place_of(logit: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The bin of each log-odds."""
    return np.clip((np.arcsinh(logit) + _SCALED) * (BINS / (2 * _SCALED)), 0, BINS - 1).astype(np.int64)


def class_fields(classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array of ``class_counts``."""
    sums: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys(("persons", "brier_sum", "log_loss_sum"), ("float64", (1,)))
    ranked = 1 if classes == 2 else classes
    counted = {"confusion": ("int64", (classes, classes)), "histogram": ("int32", (ranked, 2, BINS)), BEYOND: ("float64", (ranked,))}
    return {**sums, **counted}


def class_counts(output: torch.Tensor, label: torch.Tensor) -> Counts:
    """confusion (true, predicted); histogram (class, other/own, bin) of log-odds, only class 1 if there are two; sums."""
    z = output.detach().double().numpy()
    if not np.isfinite(z).all():
        raise FloatingPointError("the model's output is not finite")
    y = label.long().numpy()
    persons, classes = z.shape
    logp = z - np.logaddexp.reduce(z, axis=1, keepdims=True) if persons else z
    p = np.exp(logp)
    confusion = np.bincount(y * classes + z.argmax(1), minlength=classes * classes).reshape(classes, classes)
    own = np.eye(classes)[y]
    ranked = range(1, 2) if classes == 2 else range(classes)
    histogram = np.zeros((len(ranked), 2, BINS), dtype=np.int32)
    for at, c in enumerate(ranked):
        others = np.delete(z, c, axis=1)
        logit = z[:, c] - np.logaddexp.reduce(others, axis=1)
        place = place_of(logit)
        for side in (0, 1):
            histogram[at, side] = np.bincount(place[(y == c) == bool(side)], minlength=BINS)
    return {
        "persons": np.array([float(persons)]),
        "confusion": confusion.astype(np.int64),
        "histogram": histogram,
        "brier_sum": np.array([((p - own) ** 2).sum()]),
        "log_loss_sum": np.array([-logp[np.arange(persons), y].sum()]),
        BEYOND: np.zeros(len(ranked)),
    }


def concordant(histogram: npt.NDArray[Any]) -> float:
    """Pairs of one (2, bins) histogram in which the person of the class has the larger log-odds, ties one half (Mann-Whitney)."""
    negative, positive = histogram.astype(np.float64)
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum())


def grouped(counts: Mapping[str, npt.NDArray[Any]], smallest: int) -> Counts:
    """``counts`` with no number about fewer than ``smallest`` persons of one class; see the module's docstring.

    Small cells of the confusion matrix are rounded within the persons of their class. With a class of fewer persons there is no histogram.
    """
    if smallest <= 1 or "histogram" not in counts:
        return dict(counts)
    fine = counts["histogram"]
    out, lost = np.zeros_like(fine), np.zeros(len(fine))
    totals = counts["confusion"].sum(1)
    if ((totals > 0) & (totals < smallest)).any():  # the number of its persons would follow from those of the other classes
        return {**counts, "confusion": rounded_confusion(counts["confusion"], smallest), "histogram": out, BEYOND: lost}
    for c, side in np.ndindex(fine.shape[:2]):
        for place, persons in _groups(fine[c, side], smallest):
            out[c, side, place] += persons
    for c in range(len(fine)):
        lost[c] = concordant(fine[c]) - concordant(_spread(out[c]))
    return {**counts, "confusion": rounded_confusion(counts["confusion"], smallest), "histogram": out, BEYOND: lost}


def _groups(row: npt.NDArray[Any], smallest: int) -> list[tuple[int, int]]:
    """(bin, persons) of each group of one class, ascending; persons of one cell of the grid stay together."""
    width = BINS // CELLS
    cells = row.reshape(CELLS, width).sum(1).astype(np.int64)
    found: list[list[int]] = []  # persons, sum of their cells
    waiting = [0, 0]
    for cell in np.flatnonzero(cells):
        waiting = [waiting[0] + int(cells[cell]), waiting[1] + int(cells[cell]) * int(cell)]
        if waiting[0] >= smallest:
            found.append(waiting)
            waiting = [0, 0]
    if waiting[0] and found:
        found[-1] = [found[-1][0] + waiting[0], found[-1][1] + waiting[1]]
    return [(round(total / persons) * width + width // 2, persons) for persons, total in found]


def spread(counts: Mapping[str, npt.NDArray[Any]]) -> Counts:
    """``counts`` as they came from a site with each group of persons spread evenly, half way to the next group on either side."""
    if "histogram" not in counts or not counts.get(BEYOND, np.zeros(1)).any():
        return dict(counts)
    return {**counts, "histogram": np.stack([_spread(one) for one in counts["histogram"]])}


def _spread(histogram: npt.NDArray[Any]) -> npt.NDArray[Any]:
    out = np.zeros_like(histogram)
    for side, row in enumerate(histogram):
        places = np.flatnonzero(row)
        if len(places) < 2:
            out[side] = row
            continue
        edges = (places[1:] + places[:-1]) / 2
        low = np.concatenate([[2 * places[0] - edges[0]], edges])
        high = np.concatenate([edges, [2 * places[-1] - edges[-1]]])
        for a, b, persons in zip(low, high, row[places].tolist(), strict=True):
            at = np.clip(a + (np.arange(persons) + 0.5) * (b - a) / persons, 0, BINS - 1).astype(np.int64)
            np.add.at(out[side], at, 1)
    return out


def coarse(counts: Mapping[str, npt.NDArray[Any]]) -> Counts:
    """``counts`` with ``COARSE`` bins of the histogram, for subgroups. With all bins, groups of several variables could be linked to
    rows of single persons by bins with only one person."""
    if "histogram" not in counts:
        return dict(counts)
    fine = counts["histogram"]
    out = np.zeros_like(fine)
    out[..., COARSE // 2 :: COARSE] = fine.reshape(*fine.shape[:-1], -1, COARSE).sum(-1)
    return {**counts, "histogram": out}


def noised(counts: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether these are noised counts of a private study (``fedml.privacy.counts``), from which persons cannot be resampled."""
    return "histogram" in counts and "log_loss_sum" not in counts
