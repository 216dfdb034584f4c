"""Measures of a predicted time to an event, from counts that add (``survival_counts.py``); exact for times on the grid.

    c_index           Harrell et al. 1982, JAMA 247:2543: concordant among comparable pairs
    c_index_ipcw      Uno et al. 2011, Stat Med 30:1105: the same until the last horizon, each pair weighted by 1 / G(event)^2
    ibs               integrated Brier score, weighted by the inverse probability of no censoring (Graf et al. 1999, Stat Med 18:2529)
    auroc_HORIZON     events until the horizon against who is without one then, weighted by 1 / G(event) (Uno et al. 2007, JASA 102:527)
    ratio_HORIZON     observed (1 - Kaplan-Meier) over mean predicted risk at the horizon

G(t-), the probability of no censoring before t, is the Kaplan-Meier estimate of censoring over all persons that are counted, at all sites;
at a time with both, events come first. Who is censored at the grid's end is without an event then: the end of follow-up is no censoring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.errors import NotBuilt
from fedml.study.survival_section import Survival
from fedml.tasks.counts import add_counts
from fedml.tasks.interval_tools import Interval, Parts, no_interval, quantile, student
from fedml.tasks.measure import Measure
from fedml.tasks.survival_counts import ALIVE, ALIVE2, BEYOND, RANKS, TIMES, Floats, pairs, scored_places

Found = Mapping[str, npt.NDArray[Any]]


def curves(times: npt.NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Kaplan-Meier of no event and of no censoring at the end of each place, and of no censoring before it: each (places,). After the last
    person, unless that one had the event, the survival is not known: NaN.

    Args:
        times: (2, places) persons who are censored, and with the event.
    """
    censored, event = times.astype(np.float64)
    at_risk = np.cumsum((censored + event)[::-1])[::-1]
    survival = np.cumprod(1 - np.divide(event, at_risk, out=np.zeros_like(event), where=at_risk > 0))
    left = at_risk - event  # events come before censoring at the same time
    free = np.cumprod(1 - np.divide(censored, left, out=np.zeros_like(left), where=left > 0))
    free[-1] = free[-2] if len(free) > 1 else 1.0
    survival = np.where((at_risk > 0) | (survival == 0), survival, np.nan)
    return survival, free, np.concatenate([[1.0], free[:-1]])


def _inverse(value: Floats) -> Floats:
    """1 / ``value``; 0 where it is 0, as before no event: who has one was observed until then."""
    return np.divide(1, value, out=np.zeros_like(value), where=value > 0)


def brier(counts: Found, scored: tuple[int, ...]) -> Floats:
    """(scored,) the weighted Brier score at each scored place; NaN from the place on at which all who are left are censored: nobody stands
    for them then."""
    _, free, before = curves(counts[TIMES])
    left = free[list(scored)]
    beyond = np.stack([_beyond(len(free), place) for place in scored], 2)
    died = (counts[ALIVE2][1] * ~beyond[1] * _inverse(before)[:, None]).sum(0)
    missed = counts[TIMES][:, :, None] - 2 * counts[ALIVE] + counts[ALIVE2]  # sums of (1 - probability)^2
    out: Floats = (died + (missed * beyond).sum((0, 1)) * np.where(left > 0, _inverse(left), np.nan)) / counts[TIMES].sum()
    return out


def _beyond(places: int, place: int) -> npt.NDArray[np.bool_]:
    """(2, places) whether persons of each cell are known to be without an event at the end of ``place``."""
    out = np.tile(np.arange(places) > place, (2, 1))
    out[0, -1] = True
    return out


def _ibs(times: Survival) -> Callable[[Found, int | None], float]:
    scored = scored_places(times)
    at = np.array(times.edges)[list(scored)]

    def value(counts: Found, one: int | None) -> float:
        if not counts[TIMES].any():
            return math.nan
        each = brier(counts, scored)
        return float(np.trapezoid(each, at) / (at[-1] - at[0])) if len(at) > 1 else float(each[0])

    return value


def _ratio(concordant: float, comparable: float) -> float:
    return concordant / comparable if comparable > 0 else math.nan


def _harrell(counts: Found, one: int | None) -> float:
    concordant, comparable = (float((counts[RANKS] * each).sum()) / 2 for each in pairs(counts[RANKS]))
    return _ratio(concordant + float(counts[BEYOND][0]), comparable + float(counts[BEYOND][1]))


def _uno_weight(counts: Found, last: int) -> Floats:
    before = curves(counts[TIMES])[2]
    return np.where(np.arange(len(before)) <= last, _inverse(before) ** 2, 0.0)


def _uno(last: int) -> Callable[[Found, int | None], float]:
    def value(counts: Found, one: int | None) -> float:
        concordant, comparable = pairs(counts[RANKS], _uno_weight(counts, last))
        return _ratio(float((counts[RANKS] * concordant).sum()), float((counts[RANKS] * comparable).sum()))

    return value


def _jackknife(value: float, ranks: npt.NDArray[Any], a: Floats, b: Floats, level: float, also: str = "") -> Interval:
    """Limits of a ratio of sums over pairs, from what one person of each cell adds to both: the infinitesimal jackknife (Efron 1982,
    "The Jackknife, the Bootstrap and Other Resampling Plans", chapter 6), on the logit scale."""
    total = float((ranks * b).sum()) / 2
    if math.isnan(value) or not 1e-9 < value < 1 - 1e-9:
        return no_interval(value, level, "no pair of persons can be compared" if math.isnan(value) else "all pairs are ranked alike")
    error = math.sqrt(float((ranks * (a - value * b) ** 2).sum())) / total
    half = quantile(level) * error / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-min(max(math.log(value / (1 - value)) + sign * half, -700), 700))) for sign in (-1, 1))
    return Interval(value, low, high, level, f"infinitesimal jackknife, logit scale{also}")


_TAKEN = "; the weights are taken as known"


def _harrell_interval(parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    counts = add_counts(parts)
    return _jackknife(_harrell(counts, None), counts[RANKS], *pairs(counts[RANKS]), level)


def _uno_interval(last: int) -> Callable[[Parts, int | None, float, tuple[int, int]], Interval]:
    def find(parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
        counts = add_counts(parts)
        each = pairs(counts[RANKS], _uno_weight(counts, last))
        return _jackknife(_uno(last)(counts, None), counts[RANKS], *each, level, _TAKEN)

    return find


def _until(counts: Found, place: int) -> tuple[Floats, Floats, Floats]:
    """(2, places, BINS): pairs of an event until ``place`` with a person who is without one then, in which a person of each cell takes
    part: concordant, and all; weighted. And the persons, who are in no pair if they are censored before."""
    ranks = counts[RANKS].astype(np.float64)
    beyond = _beyond(ranks.shape[1], place)
    weight = np.where(beyond[1], 0.0, _inverse(curves(counts[TIMES])[2]))
    case, control = (ranks[1] * weight[:, None]).sum(0), (ranks * beyond[..., None]).sum((0, 1))
    a = np.where(beyond[..., None], case.sum() - np.cumsum(case) + case / 2, 0.0)
    b = np.where(beyond[..., None], case.sum(), 0.0) * np.ones_like(ranks)
    a[1] += weight[:, None] * (np.cumsum(control) - control / 2)
    b[1] += weight[:, None] * control.sum()
    return a, b, ranks


def _auroc(place: int) -> Callable[[Found, int | None], float]:
    def value(counts: Found, one: int | None) -> float:
        a, b, ranks = _until(counts, place)
        return _ratio(float((ranks * a).sum()), float((ranks * b).sum()))

    return value


def _auroc_interval(place: int) -> Callable[[Parts, int | None, float, tuple[int, int]], Interval]:
    def find(parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
        counts = add_counts(parts)
        a, b, ranks = _until(counts, place)
        return _jackknife(_auroc(place)(counts, None), ranks, a, b, level, _TAKEN)

    return find


def _calibration(place: int, scored: int) -> Callable[[Found, int | None], float]:
    def value(counts: Found, one: int | None) -> float:
        persons = float(counts[TIMES].sum())
        predicted = persons - float(counts[ALIVE][..., scored].sum())
        return _ratio(persons * float(1 - curves(counts[TIMES])[0][place]), predicted)

    return value


def _calibration_interval(place: int, scored: int) -> Callable[[Parts, int | None, float, tuple[int, int]], Interval]:
    def find(parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
        counts = add_counts(parts)
        value, survival = _calibration(place, scored)(counts, None), float(curves(counts[TIMES])[0][place])
        if math.isnan(survival):
            return no_interval(value, level, "nobody is observed until then")
        if math.isnan(value) or not 0 < survival < 1:
            return no_interval(value, level, "no person, or every person, has the event until then")
        event, n = counts[TIMES][1, : place + 1].astype(np.float64), np.cumsum(counts[TIMES].sum(0)[::-1])[::-1][: place + 1].astype(float)
        spread = np.divide(event, n * (n - event), out=np.zeros_like(n), where=n > event)
        half = quantile(level) * survival * math.sqrt(float(spread.sum())) / (1 - survival)
        return Interval(value, value * math.exp(-half), value * math.exp(half), level,
                        "Greenwood, log scale; the predicted risk is taken as known")  # fmt: skip

    return find


def _log_loss(counts: Found, one: int | None) -> float:
    return float(counts["log_loss_sum"][0] / counts["persons"][0])


def _log_loss_interval(parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    return student([(float(p["persons"][0]), float(p["log_loss_sum"][0]), float(p["log_loss_sq_sum"][0])) for p in parts], level)


def survival_measures(times: Survival) -> tuple[Measure, ...]:
    """The measures at a study's horizons."""
    scored, last, few = scored_places(times), times.places[-1], len(times.horizons) <= 3
    out = [
        Measure(
            name="c_index", of="all", value=_harrell, interval=_harrell_interval, printed="C-index", axis="C-index",
            meaning="the share of pairs in which the person with the earlier event has the higher risk: 0.5 is a guess, 1 is perfect",
            bounds=(0.0, 1.0), guess=0.5, counted=False, additive=False, brief=True,
        ),
        Measure(
            name="c_index_ipcw", of="all", value=_uno(last), interval=_uno_interval(last), printed="Uno's C-index", axis="Uno's C",
            meaning=f"the C-index until {times.horizons[-1]:g} {times.time_unit}, "
            "weighted so that it does not depend on who is censored when",
            bounds=(0.0, 1.0), guess=0.5, counted=False, additive=False, brief=False,
        ),
        Measure(
            name="ibs", of="all", value=_ibs(times), interval=NotBuilt("the spread of Brier scores is not in the counts"),
            printed="integrated Brier score", axis="Brier",
            meaning=f"mean squared error of the predicted survival until {times.horizons[-1]:g} {times.time_unit}: 0 is perfect; not "
            "defined if all who are left are censored before",
            bounds=None, guess=None, counted=False, additive=False, brief=True,
        ),
        Measure(
            name="log_loss", of="all", value=_log_loss, interval=_log_loss_interval, printed="log loss", axis="log loss",
            meaning="minus the logarithm of the probability of what happened, on average", bounds=None, guess=None, counted=False,
            additive=True, brief=False,
        ),
    ]  # fmt: skip
    for horizon, place in zip(times.horizons, times.places, strict=True):
        name, when = f"{horizon:g}".replace("+", ""), f"{horizon:g} {times.time_unit}"
        out.append(Measure(
            name=f"auroc_{name}", of="all", value=_auroc(place), interval=_auroc_interval(place), printed=f"AUROC at {when}",
            axis="AUROC", meaning=f"who has the event until {when} has a higher risk than who is without it then, in this share of pairs",
            bounds=(0.0, 1.0), guess=0.5, counted=False, additive=False, brief=few,
        ))  # fmt: skip
        out.append(Measure(
            name=f"ratio_{name}", of="all", value=_calibration(place, scored.index(place)),
            interval=_calibration_interval(place, scored.index(place)), printed=f"observed / predicted risk at {when}",
            axis="observed / predicted", meaning=f"1 if as many persons have the event until {when} as predicted; above 1: more",
            bounds=None, guess=None, counted=False, additive=False, brief=few,
        ))  # fmt: skip
    return tuple(out)
