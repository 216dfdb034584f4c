"""Predicted against observed survival over time, for a report, from counts that add (``survival_counts.py``).

Observed: Kaplan-Meier with log-log limits (Kalbfleisch and Prentice 2002, "The Statistical Analysis of Failure Time Data"). Predicted:
the mean of the persons' predicted survival. By groups of risk, at the last horizon: D'Agostino and Nam 2003, Handbook of Statistics 23:1,
with the observed risk of each group by Kaplan-Meier. A person's predicted risk at the last horizon follows from the bin of the risk, so a
group's mean is as exact as the bins, and as the merging of few persons at a site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.study.survival_section import Survival
from fedml.tasks.interval_tools import quantile
from fedml.tasks.survival_counts import ALIVE, BINS, RANKS, TIMES, Floats, risk_of_bin, scored_places
from fedml.tasks.survival_measures import brier, curves

GROUPS = 5  # of risk
GROUP_EVENTS = 5  # a group has at least so many events, or it joins the next one: its limits mean nothing otherwise


def survival_over_time(times: Survival, event: str, counts: Mapping[str, npt.NDArray[Any]], level: float = 0.95) -> dict[str, Any] | None:
    """Numbers of the report; None where no site told of times.

    Returns:
        ``unit``, ``event``, ``horizon`` (the last); ``time``, ``observed``, ``low``, ``high``, ``predicted`` and ``brier`` at each scored
        time; ``horizons``: for each, ``time``, and of the event until then ``observed``, ``low``, ``high``, ``predicted`` and ``brier``;
        ``groups``: from the lowest risk to the highest ``persons``, ``events``, ``predicted``, ``observed``, ``low``, ``high``.
    """
    persons = float(counts[TIMES].sum())
    if not persons:
        return None
    scored = list(scored_places(times))
    survival, low, high = (curve[scored] for curve in kaplan_meier(counts[TIMES], level))
    predicted, error = counts[ALIVE].sum((0, 1)) / persons, brier(counts, tuple(scored))
    at = [scored.index(place) for place in times.places]
    rows = [
        {"time": times.horizons[k], "observed": 1 - survival[i], "low": 1 - high[i], "high": 1 - low[i], "predicted": 1 - predicted[i],
         "brier": error[i]}
        for k, i in enumerate(at)
    ]  # fmt: skip
    return {
        "unit": times.time_unit, "event": event, "horizon": times.horizons[-1], "time": [times.edges[k] for k in scored],
        "observed": survival, "low": low, "high": high, "predicted": predicted, "brier": error, "horizons": rows,
        "groups": risk_groups(counts[RANKS], times.places[-1], level),
    }  # fmt: skip


def kaplan_meier(times: npt.NDArray[Any], level: float) -> tuple[Floats, Floats, Floats]:
    """Survival at the end of each place and its log-log limits, each (places,); where nobody, or everybody, has had the event, and after
    the last person, the limits are NaN; after a last person without the event, so is the survival.

    Args:
        times: (2, places) persons who are censored, and with the event.
    """
    survival = curves(times)[0]
    event = times[1].astype(np.float64)
    at_risk = np.cumsum(times.sum(0)[::-1])[::-1].astype(np.float64)
    spread = np.cumsum(np.divide(event, at_risk * (at_risk - event), out=np.zeros_like(event), where=at_risk > event))
    inside = (survival > 0) & (survival < 1) & (at_risk > 0)
    log = np.log(np.where(inside, survival, 0.5))
    half = np.where(inside, quantile(level) * np.sqrt(spread) / np.abs(log), np.nan)
    return survival, np.exp(log * np.exp(half)), np.exp(log * np.exp(-half))


def risk_groups(ranks: npt.NDArray[Any], place: int, level: float) -> list[dict[str, Any]]:
    """Groups of about equal size by risk, the lowest first, each with ``GROUP_EVENTS`` events until ``place`` or more; one group if there
    are not that many. ranks: (2, places, BINS)."""
    by_bin = ranks.sum((0, 1))
    events = ranks[1, : place + 1].sum(0)
    total, found, first, held = by_bin.sum(), list[tuple[int, int]](), 0, 0.0
    for k in range(BINS):
        held += by_bin[k]
        if held >= total * (len(found) + 1) / GROUPS and events[first : k + 1].sum() >= GROUP_EVENTS:
            found.append((first, k + 1))
            first = k + 1
    if first < BINS and by_bin[first:].any():
        enough = events[first:].sum() >= GROUP_EVENTS or not found
        found = [*found, (first, BINS)] if enough else [*found[:-1], (found[-1][0], BINS)]
    risk = 1 - np.exp(-np.exp(np.minimum(risk_of_bin(np.arange(BINS)), 50.0)))
    return [_group(ranks[:, :, a:b], place, float((by_bin[a:b] * risk[a:b]).sum() / by_bin[a:b].sum()), level) for a, b in found]


def _group(ranks: npt.NDArray[Any], place: int, predicted: float, level: float) -> dict[str, Any]:
    times = ranks.sum(2)
    survival, low, high = (float(curve[place]) for curve in kaplan_meier(times, level))
    limits = {"low": 1 - high, "high": 1 - low} if not math.isnan(low) else {"low": math.nan, "high": math.nan}
    events = int(times[1, : place + 1].sum())
    return {"persons": int(times.sum()), "events": events, "predicted": predicted, "observed": 1 - survival, **limits}
