"""The privacy accountant: releases as events, and the epsilon of their composition at a study's delta.

A mechanism describes its releases as frozen events of ``dp_accounting``; the accountant reads only these events:

    gaussian(z), sampled_gaussian(q, z, steps)       events: one noisy sum; noisy sums over Poisson samples
    events_to_json, events_from_json                 canonical text, for ledgers, records and bundles, from which anyone can recompute
    epsilon(events, delta)                           the figure: privacy loss distributions (PLD); Gaussians alone in closed form
    best_accuracy(events)                            how often the best attacker is right about a person's part, at prior 1/2
    epsilon_rdp(events, delta)                       the cross-check by Rényi differential privacy, a looser bound
    solve_noise_multiplier(epsilon, delta, events_of)

Do not print the figure alone: ``fedml.privacy.claims`` gives it with its unit, adjacency and scope.

The noise multiplier z is the noise's standard deviation / the L2 sensitivity under **add-or-remove-one**: the largest change of the
released sum when one unit (a person, or a site) is added or removed. For a sum of vectors clipped to C the sensitivity is C, not 2C. A
sampling rate q is that of Poisson sampling: each unit is included with probability q, independently, at every step. Batches of fixed size,
and epochs over shuffled persons, are other mechanisms, for which these events must not be used.

An epsilon here is an upper bound. Losses are discretised by Connect the Dots (Doroshenko et al. 2022), which never lowers delta; the
truncated tail counts as an infinite loss. Of the two directions, a unit added or a unit removed, the worse counts. The grid's interval
follows the spread of the losses, so the figure stays within about 0.2 % of the exact value.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing takes a second, so functions import it when they need it
    from dp_accounting import DpEvent

ADJACENCY = "add-or-remove-one"
SMALLEST_DELTA = 1e-10  # below it, the error of a Fourier transform in float64 is no longer negligible
MOST_STEPS = 10**6
_FINE = 0.05  # the grid's interval, in standard deviations of a step's loss
_POINTS = 100_000  # largest number of grid points of one step
_TAIL = 10.0  # standard deviations; the probability beyond is e**-52
_ALLOWANCE = 1e-15  # of delta per step, for the error of the Fourier transform, measured at up to 3e-17
_ORDERS = (
    *range(2, 64),
    128,
    256,
    512,
    1024,
)  # integers, for which the bound is a finite sum (Mironov et al. 2019, section 3.3); other orders need a series that can fail

Term = tuple[float, float]  # (sampling rate, noise multiplier)


def gaussian(noise_multiplier: float) -> list[DpEvent]:
    """One release of a sum with Gaussian noise of ``noise_multiplier`` (standard deviation / L2 sensitivity).

    Raises:
        ValueError: the multiplier is out of range.
    """
    return sampled_gaussian(1.0, noise_multiplier, 1)


def sampled_gaussian(sampling_rate: float, noise_multiplier: float, steps: int) -> list[DpEvent]:
    """``steps`` noisy sums, each over a new Poisson sample of rate ``sampling_rate`` in (0, 1].

    The sensitivity in ``noise_multiplier`` is that of the sum over a sample, not of a mean over the sample. 0 steps give no event.

    Raises:
        ValueError: rate, multiplier or steps are out of range.
    """
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

    event: DpEvent = GaussianDpEvent(_multiplier(noise_multiplier))
    if _rate(sampling_rate) != 1:
        event = PoissonSampledDpEvent(_rate(sampling_rate), event)
    if steps == 0:
        return []
    return [event if _count(steps) == 1 else SelfComposedDpEvent(event, _count(steps))]


def events_to_json(events: Iterable[DpEvent]) -> str:
    """Canonical JSON of the events in their order: sorted keys, no spaces, shortest decimals that are read back exactly.

    Raises:
        ValueError: an event has a type or a value that the accountant does not support.
    """
    return json.dumps([_plain(e) for e in events], sort_keys=True, separators=(",", ":"), allow_nan=False)


def events_from_json(text: str) -> list[DpEvent]:
    """The inverse of ``events_to_json``. Accepts only the four supported types and canonical text, so each list of events has one text.

    Raises:
        ValueError: the text is invalid; the message gives the reason.
    """
    try:
        parsed = json.loads(text)
        events = [_event(e) for e in parsed] if isinstance(parsed, list) else None
        same = events is not None and events_to_json(events) == text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"privacy events cannot be read: {error}") from error
    if events is None or not same:
        raise ValueError("privacy events cannot be read: not a JSON array in its canonical form (fields, sorted keys, no spaces)")
    return events


def epsilon(events: Iterable[DpEvent], delta: float) -> float:
    """An upper bound of the smallest epsilon at which the composition of ``events`` is (epsilon, ``delta``)-DP, add-or-remove-one.

    Gaussians without sampling are exact (``epsilon_gaussian``); sampled ones use privacy loss distributions. Infinite if a release had no
    noise; 0 without events. The result does not depend on the order or grouping of the events.

    Raises:
        ValueError: an unsupported event, more than ``MOST_STEPS`` releases, or delta outside [``SMALLEST_DELTA``, 1).
    """
    _delta(delta)
    return _epsilon(_sorted_terms(events), delta)


def best_accuracy(events: Iterable[DpEvent]) -> float:
    """An upper bound of how often an attacker is right who knows everything else, sees what the events release, and decides whether a unit
    took part, if both are equally likely beforehand: (1 + TV) / 2, with TV the total variation distance of the releases with and without
    the unit, which is delta at epsilon 0. 0.5 without events, 1 without noise. For one Gaussian: Phi(1 / 2z).

    The decision is the likelihood-ratio test (Neyman and Pearson 1933), so no other attacker is right more often; a bound from an epsilon
    and its delta is looser, since it holds for every mechanism with these (Kairouz, Oh and Viswanath 2015).

    Raises:
        ValueError: an unsupported event, or more than ``MOST_STEPS`` releases.
    """
    return (1 + _total_variation(_sorted_terms(events))) / 2


def epsilon_rdp(events: Iterable[DpEvent], delta: float) -> float:
    """The same by Rényi differential privacy (Mironov 2017; Mironov, Talwar and Zhang 2019): a looser bound, computed independently.

    Raises:
        ValueError: as ``epsilon``.
    """
    from dp_accounting.rdp import RdpAccountant

    _delta(delta)
    accountant = RdpAccountant(_ORDERS)
    for (q, z), count in _sorted_terms(events):
        accountant.compose(sampled_gaussian(q, z, 1)[0], count)
    return float(accountant.get_epsilon(delta))


def delta_gaussian(noise_multiplier: float, epsilon: float) -> float:
    """The exact delta of one Gaussian release at ``epsilon`` >= 0: Balle and Wang 2018, theorem 8 (equation 6); 1 without noise.

    ``Phi(1/2z - epsilon z) - e**epsilon Phi(-1/2z - epsilon z)``, computed with the scaled complementary error function, which avoids
    overflow of ``e**epsilon`` and cancellation of the two tails.

    Raises:
        ValueError: ``noise_multiplier`` or ``epsilon`` is out of range.
    """
    from scipy.special import erfcx

    z = noise_multiplier
    if not (0 <= z < math.inf and epsilon >= 0):
        raise ValueError(f"noise multiplier {z} or epsilon {epsilon} is not a number from 0")
    if z == 0:
        return 1.0
    if math.isinf(epsilon):
        return 0.0
    a, b = (0.5 / z - epsilon * z) / math.sqrt(2), (0.5 / z + epsilon * z) / math.sqrt(2)
    second = math.exp(-a * a) * float(erfcx(b)) / 2
    return math.erfc(-a) / 2 - second if a > 0 else math.exp(-a * a) * float(erfcx(-a)) / 2 - second


def epsilon_gaussian(noise_multiplier: float, delta: float) -> float:
    """Smallest epsilon of one Gaussian release at ``delta``: the inverse of ``delta_gaussian`` by bisection, rounded up.

    Raises:
        ValueError: ``noise_multiplier`` or ``delta`` is out of range.
    """
    z = noise_multiplier
    if not (0 <= z < math.inf and 0 < delta < 1):
        raise ValueError(f"noise multiplier {z} is not a number from 0, or delta {delta} is not between 0 and 1")
    if z == 0:
        return math.inf
    if delta_gaussian(z, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_gaussian(z, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-13 * high and low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if delta_gaussian(z, middle) > delta else (low, middle)
    return high


def solve_noise_multiplier(epsilon: float, delta: float, events_of: Callable[[float], list[DpEvent]]) -> float:
    """The smallest multiplier z of four digits (``d.ddd`` times a power of ten), from 0.001, with which ``events_of(z)`` cost at most
    ``epsilon``.

    ``events_of`` returns all events of a plan for a multiplier; their epsilon must decrease as the multiplier increases.

    Raises:
        ValueError: no multiplier up to 10,000 is enough, or epsilon is not above 0.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon {epsilon} is not above 0")
    _delta(delta)

    def enough(step: int) -> bool:
        return _epsilon(_sorted_terms(events_of(_candidate(step))), delta) <= epsilon

    quarter, low, high = 2250, -1, _ONE  # after the two loops: ``low`` is too small, ``high`` is enough
    while not enough(high):
        if high == _LAST:
            raise ValueError(f"no noise multiplier up to {_candidate(_LAST):g} gives epsilon {epsilon:g} at delta {delta:g}")
        low, high = high, min(high + quarter, _LAST)
    while low < 0 < high:
        below = max(high - quarter, 0)
        low, high = (low, below) if enough(below) else (below, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return _candidate(high)


_ONE, _LAST = 27_000, 63_000  # steps of the candidates 1 and 10,000


def _candidate(step: int) -> float:
    """Steps 0, 1, 2, ... as 0.001, 0.001001, ..., 0.009999, 0.01, 0.01001, ...: four digits, 9,000 candidates per power of ten."""
    return float(f"{1000 + step % 9000}e{step // 9000 - 6}")


@lru_cache(maxsize=4096)
def _epsilon(terms: tuple[tuple[Term, int], ...], delta: float) -> float:
    """Epsilon of merged, sorted terms."""
    if any(z == 0 for (_, z), _ in terms):
        return math.inf
    if (alone := _one_gaussian(terms)) is not None:
        return epsilon_gaussian(alone, delta) if alone < math.inf else 0.0
    steps = _releases(terms)
    if (allowance := _ALLOWANCE * steps) > delta / 2:
        raise ValueError(f"delta {delta:g} is too small for {steps} releases; set at least {2 * allowance:.1g}")
    return float(_composed(terms).get_epsilon_for_delta(delta - allowance))


@lru_cache(maxsize=4096)
def _total_variation(terms: tuple[tuple[Term, int], ...]) -> float:
    """The total variation distance between the outputs with and without the unit: delta at epsilon 0, an upper bound."""
    if any(z == 0 for (_, z), _ in terms):
        return 1.0
    if (alone := _one_gaussian(terms)) is not None:
        return delta_gaussian(alone, 0.0) if alone < math.inf else 0.0
    return min(float(_composed(terms).get_delta_for_epsilon(0.0)) + _ALLOWANCE * _releases(terms), 1.0)


def _one_gaussian(terms: tuple[tuple[Term, int], ...]) -> float | None:
    """The noise multiplier of one Gaussian equal to all terms, because 1/z**2 is additive; infinite for none; None if any is sampled."""
    if any(q < 1 for (q, _), _ in terms):
        return None
    precision = math.fsum(count / z**2 for (_, z), count in terms)
    return precision**-0.5 if precision else math.inf


def _merged(terms: tuple[tuple[Term, int], ...]) -> list[tuple[float, float, int]]:
    """(rate, multiplier, count) of the sampled terms, and one Gaussian in place of those without sampling."""
    whole = _one_gaussian(tuple(term for term in terms if term[0][0] == 1))
    return [(q, z, count) for (q, z), count in terms if q < 1] + ([(1.0, whole, 1)] if whole is not None and whole < math.inf else [])


def _releases(terms: tuple[tuple[Term, int], ...]) -> int:
    return sum(count for _, _, count in _merged(terms))


def _composed(terms: tuple[tuple[Term, int], ...]) -> Any:
    """The privacy loss distribution of all terms, of which at least one is sampled."""
    merged = _merged(terms)
    spreads, widths = zip(*(_losses(q, z) for q, z, _ in merged), strict=True)
    variance = math.fsum(count * spread**2 for (_, _, count), spread in zip(merged, spreads, strict=True))
    interval = max(_FINE * math.sqrt(variance / _releases(terms)), max(widths) / _POINTS)
    return reduce(lambda first, second: first.compose(second), (_distribution(q, z, interval).self_compose(n) for q, z, n in merged))


@lru_cache(maxsize=16)
def _distribution(q: float, z: float, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(z, sampling_prob=q, value_discretization_interval=interval)


def _losses(q: float, z: float) -> tuple[float, float]:
    """One step's privacy loss ``log(1 - q + q N(1, z) / N(0, z))``: its standard deviation if the unit is absent, and its range."""
    import numpy as np

    x = np.linspace(-_TAIL, _TAIL + 1 / z, 4001)  # output / z, from 10 below the mean without the unit to 10 above the mean with it
    loss = x / z - 0.5 / z**2
    if q < 1:
        loss = np.logaddexp(math.log1p(-q), math.log(q) + loss)
    weight = np.exp(-(x**2) / 2)
    mean = np.average(loss, weights=weight)
    return float(np.sqrt(np.average((loss - mean) ** 2, weights=weight))), float(loss[-1] - loss[0])


def _sorted_terms(events: Iterable[DpEvent]) -> tuple[tuple[Term, int], ...]:
    """((sampling rate, noise multiplier), number of releases), sorted; a rate of 1 is a Gaussian without sampling.

    Raises:
        ValueError: an event is not supported, or there are too many releases.
    """
    terms: Counter[Term] = Counter()
    for event in events:
        _add(terms, _plain(event), 1)
    if terms.total() > MOST_STEPS:
        raise ValueError(f"{terms.total()} releases exceed the limit of {MOST_STEPS}")
    return tuple(sorted(terms.items()))


def _add(terms: Counter[Term], plain: Mapping[str, Any], times: int) -> None:
    match plain["type"]:
        case "GaussianDpEvent":
            terms[1.0, plain["noise_multiplier"]] += times
        case "PoissonSampledDpEvent":
            terms[plain["sampling_probability"], plain["event"]["noise_multiplier"]] += times
        case "SelfComposedDpEvent":
            _add(terms, plain["event"], times * plain["count"])
        case _:
            for event in plain["events"]:
                _add(terms, event, times)


def _plain(event: DpEvent) -> dict[str, Any]:
    """An event as its JSON object: ``type`` is the class name in ``dp_accounting``, the other keys are its fields.

    Raises:
        ValueError: the event is not of the four supported types.
    """
    import dp_accounting as dp

    kind = type(event).__name__
    if isinstance(event, dp.GaussianDpEvent):
        return {"type": kind, "noise_multiplier": _multiplier(event.noise_multiplier)}
    if isinstance(event, dp.PoissonSampledDpEvent) and isinstance(event.event, dp.GaussianDpEvent):
        return {"type": kind, "sampling_probability": _rate(event.sampling_probability), "event": _plain(event.event)}
    if isinstance(event, dp.SelfComposedDpEvent):
        return {"type": kind, "event": _plain(event.event), "count": _count(event.count)}
    if isinstance(event, dp.ComposedDpEvent):
        return {"type": kind, "events": [_plain(e) for e in event.events]}
    raise ValueError(f"the accountant does not support the privacy event {event!r:.100}")


def _event(parsed: object) -> DpEvent:
    """The event of a JSON value; values of its fields are checked when the event is serialised again.

    Raises:
        ValueError: the event is not of the four supported types.
    """
    import dp_accounting as dp

    match parsed:
        case {"type": "GaussianDpEvent", "noise_multiplier": float(z)}:
            return dp.GaussianDpEvent(z)
        case {"type": "PoissonSampledDpEvent", "sampling_probability": float(q), "event": inner}:
            return dp.PoissonSampledDpEvent(q, _event(inner))
        case {"type": "SelfComposedDpEvent", "count": int(times), "event": inner}:
            return dp.SelfComposedDpEvent(_event(inner), times)
        case {"type": "ComposedDpEvent", "events": list(several)}:
            return dp.ComposedDpEvent([_event(e) for e in several])
    raise ValueError(f"the accountant does not support the privacy event {parsed!r:.100}")


def _multiplier(value: float) -> float:
    z = float(value)
    if z != 0 and not 1e-6 <= z <= 1e6:  # squares and their inverses stay far from the limits of float64
        raise ValueError(f"noise multiplier {z} is neither 0 nor between 1e-6 and 1e6")
    return abs(z)


def _rate(value: float) -> float:
    if not 0 < float(value) <= 1:
        raise ValueError(f"sampling rate {value} is not above 0 and at most 1")
    return float(value)


def _count(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r:.60} is not a number of releases (an integer from 1)")
    return value


def _delta(value: float) -> None:
    if not SMALLEST_DELTA <= value < 1:
        raise ValueError(f"delta {value} is not between {SMALLEST_DELTA:g} and 1")
