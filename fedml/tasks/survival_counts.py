"""Counts of a prediction of the time to an event, which add over persons and sites.

    ranks      (2, places, BINS) int32: persons by censored / event, place on the grid, and bin of the risk
    times      (2, places) int64: the same without the risk
    alive_sum, alive_sq_sum   (2, places, scored) float64: by censored / event and place, the sum over persons of the predicted
               probability of no event by each scored time, and of its square
    beyond     (2,) float64: concordant and comparable pairs (Harrell) of a site's own persons that its grouped ``ranks`` do not show

The risk is log(-log P(no event by the last horizon)), the score itself up to a constant under proportional hazards. Bins are equally wide
in asinh(risk): 0.02 at 0. A competing event ends the time as censoring does, so it is counted as censored.

What leaves a site is ``grouped``. Places are merged, one kind at a time, until each holds ``min_count`` persons, all at the rounded mean of
their places (microaggregation: Domingo-Ferrer and Mateo-Sanz 2002, IEEE TKDE 14:189); ``ranks`` merges these places further, to about the
square root of their number, not across a horizon, and then the risks at
each. Merged places are unions of merged ones, so no difference is about fewer persons.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.study.survival_section import Survival
from fedml.tasks.counts import Counts
from fedml.tasks.task import Fields

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
BINS = 512  # of the risk
COARSE = 16  # bins of the risk, and bands of places, of a subgroup
SCORED = 60  # most times at which predictions are scored, besides the horizons
RISK_RANGE = 100.0  # a risk beyond is in the last bin
BEYOND = "beyond"
RANKS, TIMES, ALIVE, ALIVE2 = "ranks", "times", "alive_sum", "alive_sq_sum"
_SCALED = float(np.arcsinh(RISK_RANGE))


def bin_of(risk: Floats) -> Ints:
    """The bin of each risk."""
    return np.clip((np.arcsinh(risk) + _SCALED) * (BINS / (2 * _SCALED)), 0, BINS - 1).astype(np.int64)


def risk_of_bin(bins: npt.NDArray[Any]) -> Floats:
    """The risk in the middle of each bin."""
    out: Floats = np.sinh((bins + 0.5) * (2 * _SCALED / BINS) - _SCALED)
    return out


def scored_places(times: Survival) -> tuple[int, ...]:
    """The places on the grid at which predictions are scored: all until the last horizon, or about ``SCORED`` and each horizon."""
    last = times.places[-1]
    step = max(1, -(-(last + 1) // SCORED))
    return tuple(sorted({*range(last, -1, -step), *times.places}))


def survival_fields(times: Survival) -> Fields:
    """Type and shape of each array."""
    places, scored = len(times.edges), len(scored_places(times))
    sums: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys(("persons", "log_loss_sum", "log_loss_sq_sum"), ("float64", (1,)))
    alive: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys((ALIVE, ALIVE2), ("float64", (2, places, scored)))
    return {**sums, RANKS: ("int32", (2, places, BINS)), TIMES: ("int64", (2, places)), **alive, BEYOND: ("float64", (2,))}


def count(risk: Floats, alive: Floats, place: Ints, event: npt.NDArray[np.bool_], places: int) -> Counts:
    """The counts but for the sums of losses.

    Args:
        risk: (persons,). alive: (persons, scored) probabilities. place: (persons,) on the grid. event: (persons,) of interest.
    """
    kind, cells = event.astype(np.int64), 2 * places
    at = kind * places + place
    ranks = np.bincount(at * BINS + bin_of(risk), minlength=cells * BINS).reshape(2, places, BINS)
    sums, squares = np.zeros((cells, alive.shape[1])), np.zeros((cells, alive.shape[1]))
    np.add.at(sums, at, alive)
    np.add.at(squares, at, alive**2)
    return {
        "persons": np.array([float(len(risk))]),
        RANKS: ranks.astype(np.int32),
        TIMES: np.bincount(at, minlength=cells).reshape(2, places).astype(np.int64),
        ALIVE: sums.reshape(2, places, -1),
        ALIVE2: squares.reshape(2, places, -1),
        BEYOND: np.zeros(2),
    }


def pairs(ranks: npt.NDArray[Any], weight: Floats | None = None) -> tuple[Floats, Floats]:
    """(2, places, BINS) concordant and comparable pairs in which one person of each cell takes part, in either role.

    A person with an event is comparable with who has a later time, or is censored at the same one (Harrell et al. 1982, JAMA 247:2543); a
    pair is concordant if the person with the event has the larger risk, ties one half. The sum over persons is twice the number of pairs.

    Args:
        weight: (places,) of each pair by the place of its event; None: 1.
    """
    censored, event = ranks.astype(np.float64)
    total = censored + event
    later = _after(total) + censored  # (places, BINS) comparable with an event at the place
    lower = np.cumsum(later, 1) - later / 2
    w = np.ones(len(event)) if weight is None else weight
    early = event * w[:, None]
    before = np.cumsum(early, 0) - early  # events before the place, weighted
    higher_than_event, all_before = _above(before), before.sum(1, keepdims=True)
    higher_than_censored, all_until = _above(before + early), (before + early).sum(1, keepdims=True)
    wide = np.ones_like(event)
    concordant = np.stack([higher_than_censored, w[:, None] * lower + higher_than_event])
    comparable = np.stack([all_until * wide, (w[:, None] * later.sum(1, keepdims=True) + all_before) * wide])
    return concordant, comparable


def _after(table: Floats) -> Floats:
    out: Floats = table.sum(0) - np.cumsum(table, 0)
    return out


def _above(table: Floats) -> Floats:
    """Of each bin, the sum in larger bins and half of its own."""
    out: Floats = table.sum(1, keepdims=True) - np.cumsum(table, 1) + table / 2
    return out


def totals(ranks: npt.NDArray[Any], weight: Floats | None = None) -> Floats:
    """(2,) concordant and comparable pairs of all persons of ``ranks``."""
    return np.array([float((ranks * each).sum()) / 2 for each in pairs(ranks, weight)])


def withheld(counts: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether a site sent nothing about times, because too few persons have, or too few lack, the event."""
    return TIMES in counts and bool(counts["persons"].sum()) and not counts[TIMES].any()


def unlikely(counts: Mapping[str, npt.NDArray[Any]]) -> str:
    """Why no persons can have these ``counts`` of one part; "" if nothing speaks against it, or there are none of times."""
    if not {TIMES, ALIVE, ALIVE2, BEYOND} <= counts.keys():
        return ""
    persons = counts[TIMES][:, :, None] * (1 + 1e-9)
    if (counts[ALIVE] > persons).any() or (counts[ALIVE2] > counts[ALIVE] * (1 + 1e-9)).any():
        return "is above 1 for each person, or squares are larger than the probabilities"
    if (np.abs(counts[BEYOND]) > float(counts["persons"].sum()) ** 2).any():
        return "has more pairs than there are"
    return ""


def grouped(counts: Mapping[str, npt.NDArray[Any]], smallest: int, horizons: tuple[int, ...] = ()) -> Counts:
    """``counts`` with no number about fewer than ``smallest`` persons; see the module's docstring. With fewer persons who are censored,
    or who have the event, nothing about times: their number would follow from that of the others.

    Args:
        horizons: places; those until one and those after it are merged apart, and so is the grid's end, after which nobody is observed.
    """
    if smallest <= 1 or TIMES not in counts:
        return dict(counts)
    of_kind = counts[TIMES].sum(1)
    out = {name: np.zeros_like(value) for name, value in counts.items()}
    out |= {name: counts[name] for name in counts if name not in (RANKS, TIMES, ALIVE, ALIVE2, BEYOND)}
    if ((of_kind > 0) & (of_kind < smallest)).any():
        return out
    for kind in (0, 1):
        fine = merged(counts[TIMES][kind], smallest)
        for members in fine:
            place = _mean_place(counts[TIMES][kind], members)
            for name in (TIMES, ALIVE, ALIVE2):
                out[name][kind, place] += counts[name][kind, members].sum(0)
        for members in _bands(fine, [*horizons, counts[TIMES].shape[1] - 2] if horizons else []):
            place = _mean_place(counts[TIMES][kind], members)
            risks = counts[RANKS][kind, members].sum(0)
            for bins in merged(risks, smallest):
                out[RANKS][kind, place, _mean_place(risks, bins)] += risks[bins].sum()
    out[BEYOND] = totals(counts[RANKS]) - totals(out[RANKS])
    return out


def _bands(fine: list[Ints], cuts: list[int]) -> Iterator[Ints]:
    """About the square root of the number of ``fine`` runs of places, each of runs that end between the same two of ``cuts``."""
    part = np.searchsorted(np.unique(cuts), [run[-1] for run in fine])
    for number in np.unique(part):
        own = np.flatnonzero(part == number)
        for several in np.array_split(own, int(np.sqrt(len(own)))):
            yield np.concatenate([fine[k] for k in several])


def merged(row: npt.NDArray[Any], smallest: int) -> list[Ints]:
    """The filled places of ``row`` in runs of at least ``smallest`` persons, in order; one run if there are not that many."""
    found: list[list[int]] = []
    waiting: list[int] = []
    for place in np.flatnonzero(row).tolist():
        waiting.append(place)
        if row[waiting].sum() >= smallest:
            found.append(waiting)
            waiting = []
    if waiting:
        found = [*found[:-1], [*found[-1], *waiting]] if found else [waiting]
    return [np.array(run) for run in found]


def _mean_place(row: npt.NDArray[Any], members: Ints) -> int:
    return round(float((row[members] * members).sum() / row[members].sum()))


def coarse(counts: Mapping[str, npt.NDArray[Any]]) -> Counts:
    """``counts`` with at most ``COARSE`` bands of places and bins of the risk, for subgroups."""
    out = dict(counts)
    if RANKS in counts:
        wide = np.zeros_like(counts[RANKS])
        step = BINS // COARSE
        wide[..., step // 2 :: step] = counts[RANKS].reshape(*counts[RANKS].shape[:-1], COARSE, step).sum(-1)
        out[RANKS] = _banded(wide)
    return out | {name: _banded(counts[name]) for name in (TIMES, ALIVE, ALIVE2) if name in counts}


def _banded(table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(2, places, ...) with the places of each band put at its last one."""
    places = table.shape[1]
    out, step = np.zeros_like(table), max(1, -(-places // COARSE))
    for start in range(0, places, step):
        out[:, min(start + step, places) - 1] = table[:, start : start + step].sum(1)
    return out
