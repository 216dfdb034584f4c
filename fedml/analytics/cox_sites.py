"""What a site sums over its persons for a Cox regression (``fedml.analytics.cox`` has the notation and the server's part).

    people = Followed(x, first, last, event, weight, None)
    hazard_sums(people, beta, intervals), score_sums(people, beta, rise, tie, at), mean_sums(...), score_residuals(...)

Subdistribution hazards (Fine and Gray 1999, JASA 94:496): a person with a competing event in interval j stays at risk in every later k with
the weight G(k-) / G(j-), G(k-) the probability of no censoring before k; a sum over those of each j and two factors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.analytics.cox import Asked, Deaths, Plan, Solved, solve

Floats = npt.NDArray[Any]


class Staying(NamedTuple):
    """Who has a ``competing`` event (persons,), and ``free`` (intervals,): the probability of no censoring before each interval's end."""

    competing: npt.NDArray[np.bool_]
    free: Floats


class Followed(NamedTuple):
    """The persons of a site: standardised ``x`` (persons, columns), the places ``first`` and ``last`` (persons,) of their time at risk,
    whether they have the ``event`` (persons,), case ``weight``s (persons,); None: 1; and of subdistribution hazards who stays at risk."""

    x: Floats
    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    event: npt.NDArray[np.bool_]
    weight: Floats | None
    staying: Staying | None


def weights_of(people: Followed, beta: Floats) -> Floats:
    """(persons,) a exp(x'beta)."""
    out: Floats = np.exp(people.x @ beta)
    return out if people.weight is None else out * people.weight


def hazard_sums(people: Followed, beta: Floats, intervals: int) -> tuple[Floats, Floats]:
    """S0 and D0 (intervals,)."""
    w = weights_of(people, beta)
    return _over(people, w[:, None], intervals)[:, 0], _at_events(people, w[:, None], intervals)[:, 0]


def mean_sums(people: Followed, beta: Floats, intervals: int) -> tuple[Floats, Floats]:
    """S1 and D1 (intervals, columns)."""
    wx = weights_of(people, beta)[:, None] * people.x
    return _over(people, wx, intervals), _at_events(people, wx, intervals)


def deaths_of(people: Followed, intervals: int) -> npt.NDArray[np.int64]:
    """(intervals,) the number of events."""
    return np.bincount(people.last[people.event], minlength=intervals).astype(np.int64)


def _over(people: Followed, values: Floats, intervals: int) -> Floats:
    """The sums of ``values`` (persons, columns) over who is at risk in each interval."""
    change = np.zeros((intervals + 1, values.shape[1]))
    np.add.at(change, people.first, values)
    np.subtract.at(change, people.last + 1, values)
    # Summed from the last interval on, where few are left, so that no error of large sums remains in small ones.
    out: Floats = -np.cumsum(change[:0:-1], axis=0)[::-1]
    if people.staying is not None:
        who, free = people.staying.competing, people.staying.free
        gone = np.zeros((intervals + 1, values.shape[1]))
        np.add.at(gone, people.last[who] + 1, values[who] / free[people.last[who], None])
        out = out + free[:, None] * np.cumsum(gone[:-1], axis=0)
    return out


def _at_events(people: Followed, values: Floats, intervals: int) -> Floats:
    out = np.zeros((intervals, values.shape[1]))
    np.add.at(out, people.last[people.event], values[people.event])
    return out


def _along(people: Followed, rate: Floats) -> Floats:
    """(persons, ...) the sum of ``rate`` (intervals, ...) over each person's time at risk."""
    total = np.concatenate([np.zeros((1, *rate.shape[1:])), np.cumsum(rate, axis=0)])
    out: Floats = total[people.last + 1] - total[people.first]
    if people.staying is not None:
        who, free = people.staying.competing, people.staying.free
        shape = (-1, *[1] * (rate.ndim - 1))
        later = np.concatenate([np.zeros((1, *rate.shape[1:])), np.cumsum(rate * free.reshape(shape), axis=0)])
        out[who] += (later[-1] - later[people.last[who] + 1]) / free[people.last[who]].reshape(shape)
    return out


def exposure(people: Followed, rise: Floats, tie: Floats) -> Floats:
    """(persons,) what a person's w weighs in the derivatives: the sum of A over the time at risk, less B at an event."""
    out: Floats = _along(people, rise) - np.where(people.event, tie[people.last], 0.0)
    return out


def score_sums(people: Followed, beta: Floats, rise: Floats, tie: Floats, event_weight: Floats) -> tuple[Floats, Floats]:
    """The gradient (columns,) and the second moment (columns, columns). ``event_weight`` (intervals,): what x counts at an event; 1 in
    the likelihood."""
    weight = weights_of(people, beta) * exposure(people, rise, tie)
    counted = np.where(people.event, event_weight[people.last], 0.0)
    if people.weight is not None:
        counted = counted * people.weight
    return (counted - weight) @ people.x, (people.x * weight[:, None]).T @ people.x


def score_residuals(people: Followed, beta: Floats, weights: tuple[Floats, Floats], means_: tuple[Floats, Floats, Floats]) -> Floats:
    """(persons, columns) score residuals, times the case weight (Therneau and Grambsch 2000, section 4.6; ties by Efron as in its
    appendix)."""
    (rise, tie), (at_event, rise_x, tie_x) = weights, means_
    event = people.event[:, None]
    drift = _along(people, rise_x) - np.where(event, tie_x[people.last], 0.0)
    w = weights_of(people, beta)[:, None]
    expected = w * (people.x * exposure(people, rise, tie)[:, None] - drift)
    own = np.where(event, people.x - at_event[people.last], 0.0)
    out: Floats = (own if people.weight is None else own * people.weight[:, None]) - expected
    return out


def fit(people: Followed, intervals: int, plan: Plan) -> Solved:
    """The model of one site's persons alone. Raises ``ValueError`` as ``solve``."""
    one = np.ones(intervals)
    asked = Asked(
        hazard=lambda beta: tuple(v[None] for v in hazard_sums(people, beta, intervals)),  # type: ignore[arg-type, return-value]
        score=lambda beta, w: score_sums(people, beta, w.rise[0], w.tie[0], one),
        means=lambda beta: tuple(v[None] for v in mean_sums(people, beta, intervals)),  # type: ignore[arg-type, return-value]
    )
    weight = np.ones(len(people.x)) if people.weight is None else people.weight
    number = deaths_of(people, intervals).astype(np.float64)
    total = np.bincount(people.last[people.event], weights=weight[people.event], minlength=intervals)
    deaths = Deaths(number[None], np.divide(total, number, out=np.ones(intervals), where=number > 0)[None])
    return solve(asked, deaths, weight[people.event] @ people.x[people.event], plan)
