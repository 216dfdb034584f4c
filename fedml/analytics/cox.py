"""Cox regression from sums of sites on a grid of times, equal to that of the pooled persons (Cox 1972; ties by Efron 1977 or Breslow 1974).

    found = solve(Asked(hazard, score, means), events, event_sum, Plan("efron", 0.0, names))

Notation, in each interval: d events; S0, S1 sums over persons at risk of w and w x, with w = a exp(x'beta), a the person's case weight (1
without weights); D0, D1 the same over events. The derivatives are sums over persons once A = sum over l of 1 / (S0 - l/d D0) and B = sum
over l of (l/d) / (S0 - l/d D0) are known, l from 0 to d - 1, each times the mean a of the events (Efron; Breslow has l/d = 0; weights as
in Therneau and Grambsch 2000, section 7.3): so a site sends one vector and one matrix a step, and of single intervals S0 and D0 alone. The
sums S1 and D1, which the information needs, are sent once, at the solution. Until then the steps use the second moment without the
square of the means, which is an upper bound of the information: with x centred at the mean of the events the steps still converge fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]
Ties = Literal["efron", "breslow"]
STEPS = 12  # most steps; each sends S0 and D0, so that a site merges intervals until they hold more values than are sent
TOLERANCE = 1e-11  # of a step, in standard deviations of a covariate
FAR = 12.0  # log hazard ratio of a standard deviation: separation


class Weights(NamedTuple):
    """Each (strata, intervals): the sums A and B of the module's text, and the sum of the logarithms of S0 - l/d D0."""

    rise: Floats
    tie: Floats
    log_sum: Floats


class Means(NamedTuple):
    """Of each interval, (strata, intervals, columns): ``at_event`` the mean of m_l over l, ``rise`` the sum of m_l / S_l, ``tie`` of
    l/d m_l / S_l, with m_l = (S1 - l/d D1) / S_l, S_l = S0 - l/d D0; ``square`` (columns, columns): the sum of m_l m_l' over everything."""

    at_event: Floats
    rise: Floats
    tie: Floats
    square: Floats


class Deaths(NamedTuple):
    """Each (strata, intervals): the ``number`` of events, and their mean case ``weight`` (1 without weights)."""

    number: Floats
    weight: Floats


class Asked(NamedTuple):
    """What the sites are asked for, at standardised ``beta`` (columns,): S0 and D0 (strata, intervals); the gradient (columns,) and the
    second moment (columns, columns); S1 and D1 (strata, intervals, columns)."""

    hazard: Callable[[Floats], tuple[Floats, Floats]]
    score: Callable[[Floats, Weights], tuple[Floats, Floats]]
    means: Callable[[Floats], tuple[Floats, Floats]]


class Plan(NamedTuple):
    """The model: how ties count, the weight of the penalty ridge / 2 sum beta^2, and the names of the columns."""

    ties: Ties
    ridge: float
    names: list[str]


class Solved(NamedTuple):
    """A Cox model at its maximum: ``beta`` and ``information`` of standardised columns; ``risk`` and ``tied`` (strata, intervals)."""

    beta: Floats
    information: Floats
    log_likelihood: float
    null_log_likelihood: float
    weights: Weights
    means: Means
    risk: Floats
    tied: Floats
    steps: int


def solve(asked: Asked, events: Deaths, event_sum: Floats, plan: Plan) -> Solved:
    """The maximum of the partial likelihood. ``event_sum`` (columns,): of a times standardised x over events.

    The second moment is corrected by what earlier steps showed of the square of the means (symmetric rank one: Nocedal and Wright 2006,
    section 6.2), so that the steps converge superlinearly.

    Raises:
        ValueError: columns depend on each other, or there is no finite maximum; the message names columns.
    """
    width = len(event_sum)
    beta: Floats = np.zeros(width)
    last, square = beta, np.zeros((width, width))
    previous: Floats | None = None
    first: float | None = None
    best = -np.inf
    move: Floats = np.zeros(width)
    for number in range(STEPS):
        risk, tied = asked.hazard(beta)
        weights = risk_weights(risk, tied, events, plan.ties)
        likelihood = log_likelihood(beta, event_sum, weights, plan.ridge)
        if number and likelihood < best - 1e-9 * (1 + abs(best)):
            beta = (beta + last) / 2
            continue
        gradient, second = asked.score(beta, weights)
        gradient = gradient - plan.ridge * beta
        if first is None:
            first = likelihood
            if not plan.ridge and (names := linearly_dependent(second, plan.names)):
                raise ValueError(f"{', '.join(names)} depend on each other or do not vary; remove one of them from covariates")
        if previous is not None:
            square = _corrected(square, beta - last, second @ (beta - last) - (previous - gradient - plan.ridge * (beta - last)))
        best, last, previous = likelihood, beta, gradient
        move = np.linalg.solve(_positive(second - square, second) + plan.ridge * np.eye(width), gradient)
        if np.abs(move).max(initial=0.0) < TOLERANCE * max(1.0, float(np.abs(beta).max(initial=0.0))):
            found = means((risk, tied), asked.means(beta), events, plan.ties)
            whole = information(second, found.square)
            return Solved(beta, whole, likelihood, first, weights, found, risk, tied, number + 1)
        beta = beta + np.clip(move, -FAR / 4, FAR / 4)
        if np.abs(beta).max(initial=0.0) > FAR:
            break
    worst = plan.names[int(np.argmax(np.abs(beta)))]
    raise ValueError(
        f"the likelihood has no finite maximum: {worst} separates who has an event from who has none; remove it, merge its levels, or set "
        "[survival.cox] ridge"
    )


def _corrected(square: Floats, moved: Floats, wanted: Floats) -> Floats:
    """``square`` so that square @ moved is ``wanted``, where that is well defined."""
    rest = wanted - square @ moved
    along = float(rest @ moved)
    if abs(along) < 1e-8 * float(np.linalg.norm(rest) * np.linalg.norm(moved)) or not along:
        return square
    out: Floats = square + np.outer(rest, rest) / along
    return out


def _positive(guess: Floats, bound: Floats) -> Floats:
    """``guess`` of the information if it is well above 0 and at most its ``bound``, else ``bound``."""
    scale = np.sqrt(np.maximum(np.diag(bound), 1e-300))
    values = np.linalg.eigvalsh(guess / np.outer(scale, scale))
    return guess if values[0] > 0.02 else bound


def _shares(d: float, ties: Ties) -> Floats:
    """(d,) l/d for each of an interval's events."""
    return np.arange(int(d)) / d if ties == "efron" else np.zeros(int(d))


def risk_weights(risk: Floats, tied: Floats, events: Deaths, ties: Ties) -> Weights:
    """``risk`` and ``tied``: S0 and D0; each (strata, intervals), summed over the sites of a stratum."""
    rise, tie, logs = (np.zeros_like(risk) for _ in range(3))
    for s, k in np.argwhere(events.number > 0):
        share, mean = _shares(events.number[s, k], ties), events.weight[s, k]
        left = risk[s, k] - share * tied[s, k]
        rise[s, k], tie[s, k], logs[s, k] = mean * (1 / left).sum(), mean * (share / left).sum(), mean * np.log(left).sum()
    return Weights(rise, tie, logs)


def means(sums: tuple[Floats, Floats], firsts: tuple[Floats, Floats], events: Deaths, ties: Ties, at: Floats | None = None) -> Means:
    """``sums``: S0 and D0 (strata, intervals); ``firsts``: S1 and D1 (strata, intervals, columns); ``at`` (intervals,): what each interval
    counts in ``square``; default 1."""
    (risk, tied), (risk_x, tied_x) = sums, firsts
    at_event, rise, tie = (np.zeros_like(risk_x) for _ in range(3))
    square = np.zeros((risk_x.shape[2],) * 2)
    times = np.ones(risk.shape[1]) if at is None else at
    for s, k in np.argwhere(events.number > 0):
        share, mean = _shares(events.number[s, k], ties)[:, None], events.weight[s, k]
        left = risk[s, k] - share * tied[s, k]
        m = (risk_x[s, k] - share * tied_x[s, k]) / left
        at_event[s, k], rise[s, k], tie[s, k] = m.mean(0), mean * (m / left).sum(0), mean * (share * m / left).sum(0)
        square += times[k] * mean * (m.T @ m)
    return Means(at_event, rise, tie, square)


def log_likelihood(beta: Floats, event_sum: Floats, weights: Weights, ridge: float = 0.0) -> float:
    """The logarithm of the partial likelihood, less the penalty; ``event_sum``: the sum of x over events."""
    return float(beta @ event_sum - weights.log_sum.sum() - ridge / 2 * beta @ beta)


def information(second: Floats, square: Floats) -> Floats:
    """The information of the partial likelihood: the weighted second moment less the squares of the means."""
    found: Floats = second - square
    return (found + found.T) / 2


def linearly_dependent(second: Floats, names: list[str]) -> list[str]:
    """The names of covariates of which one follows from the others (the eigenvector of a vanishing eigenvalue of their correlations);
    empty if there are none. A covariate that does not vary is named alone."""
    scale = np.sqrt(np.diag(second))
    if (still := scale < 1e-7).any():
        return [name for name, flat in zip(names, still, strict=True) if flat]
    values, vectors = np.linalg.eigh(second / np.outer(scale, scale))
    if values[0] > 1e-9:
        return []
    large = np.abs(vectors[:, 0])
    return [name for name, weight in zip(names, large, strict=True) if weight > 0.05 * large.max()]


def variances(information_: Floats, ridge: float, meat: Floats | None) -> Floats:
    """(columns, columns) covariance of beta: the inverse information, or with ``meat`` the sandwich about it (Lin and Wei 1989)."""
    bread = np.linalg.inv(information_ + ridge * np.eye(len(information_)))
    if meat is not None:
        found: Floats = bread @ meat @ bread
        return found
    return bread if not ridge else bread @ information_ @ bread
