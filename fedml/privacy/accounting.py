"""What was released, as events, and what they amount to together: epsilon at a study's delta.

A mechanism says what it released as frozen events of ``dp_accounting``; the accountant only reads them:

    gaussian(z), sampled_gaussian(q, z, steps)       events: one noisy sum; noisy sums over Poisson samples
    events_to_json, events_from_json                 canonical text, for ledgers, records and bundles: anyone can count again
    epsilon(events, delta)                           the figure: privacy loss distributions (PLD), a lone Gaussian in closed form
    epsilon_rdp(events, delta)                       the cross-check: Rényi, never below the figure
    solve_noise_multiplier(epsilon, delta, events_of)
    claim(...) -> Claim                              the figure with its unit, adjacency and what it covers: never print it alone

The noise multiplier z is the noise's standard deviation / the L2 sensitivity under **add-or-remove-one**: the largest change of the
released sum when one unit (a person, or a site) is added or removed. That is the clipping norm C for a sum of vectors clipped to C, not
2C. A sampling rate q is that of Poisson sampling: each unit is in with probability q, by its own coin, at every step. Batches of fixed
size, and epochs over shuffled persons, are other mechanisms, and these events must not be used for them.

An epsilon here is an upper bound. Losses are put on a grid by Connect the Dots (Doroshenko et al. 2022), which only ever raises delta;
what the grid cuts off counts as an infinite loss. Of the two neighbours, the one with the unit added and the one with it removed, the
worse counts. The grid's interval follows the spread of the losses, so the figure stays within about 0.2 % of the truth.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # a second to import: paid by whoever counts, not by --help
    from dp_accounting import DpEvent

ADJACENCY = "add-or-remove-one"
SMALLEST_DELTA = 1e-10  # below it, the error of a Fourier transform in float64 is no longer nothing
MOST_STEPS = 10**6
_FINE = 0.05  # the grid's interval, in standard deviations of a step's loss
_POINTS = 100_000  # of one step's grid, at most
_TAIL = 10.0  # standard deviations; beyond them lies e**-52
_ALLOWANCE = 1e-15  # of delta, a step: the Fourier transform was measured at up to 3e-17
_ORDERS = (
    *range(2, 64),
    128,
    256,
    512,
    1024,
)  # whole: a finite sum each (Mironov et al. 2019, section 3.3); others need a series that can fail

Term = tuple[float, float]  # (sampling rate, noise multiplier)


def gaussian(noise_multiplier: float) -> list[DpEvent]:
    """One release of a sum with Gaussian noise of ``noise_multiplier`` (standard deviation / L2 sensitivity). ValueError: below 0."""
    return sampled_gaussian(1.0, noise_multiplier, 1)


def sampled_gaussian(sampling_rate: float, noise_multiplier: float, steps: int) -> list[DpEvent]:
    """``steps`` noisy sums, each over a new Poisson sample of rate ``sampling_rate`` in (0, 1].

    The sensitivity in ``noise_multiplier`` is that of the sum over a sample, not of a mean by the sample's size. No steps, no event.

    Raises:
        ValueError: rate, multiplier or steps out of range.
    """
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

    event: DpEvent = GaussianDpEvent(_multiplier(noise_multiplier))
    if _rate(sampling_rate) != 1:
        event = PoissonSampledDpEvent(_rate(sampling_rate), event)
    if steps == 0:
        return []
    return [event if _count(steps) == 1 else SelfComposedDpEvent(event, _count(steps))]


def events_to_json(events: Iterable[DpEvent]) -> str:
    """Canonical JSON of the events in their order: sorted keys, no spaces, shortest decimals that read back exactly.

    Raises:
        ValueError: an event is of a type, or has a value, that the accountant does not know.
    """
    return json.dumps([_plain(e) for e in events], sort_keys=True, separators=(",", ":"), allow_nan=False)


def events_from_json(text: str) -> list[DpEvent]:
    """The inverse of ``events_to_json``. Reads the four known types and canonical text only, so one list of events has one text.

    Raises:
        ValueError: the text is anything else; the message says what.
    """
    try:
        made = json.loads(text)
        events = [_event(e) for e in made] if isinstance(made, list) else None
        same = events is not None and events_to_json(events) == text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"privacy events cannot be read: {error}") from error
    if events is None or not same:
        raise ValueError("privacy events cannot be read: not a JSON array in its canonical form (fields, sorted keys, no spaces)")
    return events


def epsilon(events: Iterable[DpEvent], delta: float) -> float:
    """Smallest epsilon found at which all ``events`` together are (epsilon, ``delta``)-private, add-or-remove-one; never below the truth.

    Plain Gaussians alone are exact (``epsilon_gaussian``); anything sampled goes by privacy loss distributions. Infinite where a
    release had no noise; 0 for no events. Order does not matter, and equal events are counted together, however they were recorded.

    Raises:
        ValueError: an unknown event, more than ``MOST_STEPS`` releases, or delta outside [``SMALLEST_DELTA``, 1).
    """
    _delta(delta)
    return _epsilon(_sorted_terms(events), delta)


def epsilon_rdp(events: Iterable[DpEvent], delta: float) -> float:
    """The same by Rényi differential privacy (Mironov 2017; Mironov, Talwar and Zhang 2019): a looser bound by another road.

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
    """Delta of one Gaussian release at ``epsilon`` >= 0, exactly: Balle and Wang 2018, theorem 8 (equation 6).

    ``Phi(1/2z - epsilon z) - e**epsilon Phi(-1/2z - epsilon z)``, written with the scaled complementary error function so that neither
    ``e**epsilon`` overflows nor two tails cancel. 1 without noise.
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
    """Smallest epsilon of one Gaussian release at ``delta``: the inverse of ``delta_gaussian`` by bisection, from above."""
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
    """The smallest multiplier z of four digits (``d.ddd`` times a power of ten) at which ``events_of(z)`` spend at most ``epsilon``.

    ``events_of`` gives the whole plan's events for a multiplier; what they spend must fall as it grows. Nothing below 0.001 is returned.

    Raises:
        ValueError: no multiplier up to 10,000 is enough, or epsilon is not above 0.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon {epsilon} is not above 0")
    _delta(delta)

    def enough(step: int) -> bool:
        return _epsilon(_sorted_terms(events_of(_candidate(step))), delta) <= epsilon

    quarter, low, high = 2250, -1, _ONE  # low is not enough, high is, once the two loops have passed
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


@dataclass(frozen=True)
class Claim:
    """An epsilon with everything it means nothing without. ``claim`` makes one.

    ``events_json`` is what was released: ``epsilon(events_from_json(events_json), delta)`` gives the figure again.
    """

    unit: Literal["person", "site"]
    adjacency: str
    epsilon: float
    delta: float
    covers: tuple[str, ...]
    not_covered: tuple[str, ...]
    events_json: str
    epsilon_rdp: float

    def __post_init__(self) -> None:
        if self.unit not in _UNIT or self.adjacency != ADJACENCY:
            raise ValueError(f"a claim is for one person or one site, {ADJACENCY}; not {self.unit!r}, {self.adjacency!r}")
        if not self.covers or not self.epsilon >= 0 or not 0 < self.delta < 1:
            raise ValueError("a claim has an epsilon from 0, a delta between 0 and 1, and says what it covers")

    def sentence(self) -> str:
        """The claim for a reader who sees nothing else. Epsilon is rounded up, never down."""
        one, neighbours = _UNIT[self.unit]
        spent, cross = rounded_up(self.epsilon), rounded_up(self.epsilon_rdp)
        scope = f"covers: {'; '.join(self.covers)}; not covered: {'; '.join(self.not_covered) or 'nothing named'}"
        if math.isinf(self.epsilon):
            return f"No differential privacy for {one} at delta = {self.delta!r} ({scope})."
        return (
            f"(epsilon = {spent}, delta = {self.delta!r}) differential privacy for {one}; neighbours differ by {neighbours}; {scope}. "
            f"Counted with privacy loss distributions (Rényi cross-check: epsilon = {cross})."
        )


def claim(
    unit: Literal["person", "site"], events: Iterable[DpEvent], delta: float, covers: Iterable[str], not_covered: Iterable[str]
) -> Claim:
    """The claim that ``events`` support. ``covers`` and ``not_covered`` are short phrases in plain words. ValueError as ``epsilon``."""
    events = list(events)
    spent, cross = epsilon(events, delta), epsilon_rdp(events, delta)
    return Claim(unit, ADJACENCY, spent, delta, tuple(covers), tuple(not_covered), events_to_json(events), cross)


def rounded_up(epsilon: float) -> str:
    """Two decimals (below 0.1, two digits), always upwards: what is printed is still a bound. ``infinity`` for an infinite one."""
    if math.isinf(epsilon):
        return "infinity"
    exact = Decimal(repr(epsilon))  # 0.1 is 0.1, not the float a hair above it
    places = 2 if exact == 0 or exact >= Decimal("0.1") else 1 - exact.adjusted()
    return f"{exact.quantize(Decimal(1).scaleb(-places), rounding=ROUND_CEILING):f}"


_UNIT = {
    "person": ("one person of a site", "adding or removing that person"),
    "site": ("one site of the federation", "adding or removing that site with all its persons"),
}
_ONE, _LAST = 27_000, 63_000  # candidates 1 and 10,000


def _candidate(step: int) -> float:
    """0, 1, 2, ... as 0.001, 0.001001, ..., 0.009999, 0.01, 0.01001, ...: four digits, 9,000 to a power of ten."""
    return float(f"{1000 + step % 9000}e{step // 9000 - 6}")


@lru_cache(maxsize=4096)
def _epsilon(terms: tuple[tuple[Term, int], ...], delta: float) -> float:
    """Epsilon of merged, sorted terms. The plain Gaussians among them are one: 1/z**2 adds up."""
    if any(z == 0 for (_, z), _ in terms):
        return math.inf
    sampled = [(q, z, count) for (q, z), count in terms if q < 1]
    precision = math.fsum(count / z**2 for (q, z), count in terms if q == 1)
    if not sampled:
        return epsilon_gaussian(precision**-0.5, delta) if precision else 0.0
    if precision:
        sampled.append((1.0, precision**-0.5, 1))

    steps = sum(count for _, _, count in sampled)
    if (allowance := _ALLOWANCE * steps) > delta / 2:
        raise ValueError(f"delta {delta:g} is too small for {steps} releases: take at least {2 * allowance:.1g}")
    spreads, widths = zip(*(_losses(q, z) for q, z, _ in sampled), strict=True)
    variance = math.fsum(count * spread**2 for (_, _, count), spread in zip(sampled, spreads, strict=True))
    interval = max(_FINE * math.sqrt(variance / steps), max(widths) / _POINTS)
    total = reduce(lambda one, other: one.compose(other), (_distribution(q, z, interval).self_compose(n) for q, z, n in sampled))
    return float(total.get_epsilon_for_delta(delta - allowance))


@lru_cache(maxsize=16)
def _distribution(q: float, z: float, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(z, sampling_prob=q, value_discretization_interval=interval)


def _losses(q: float, z: float) -> tuple[float, float]:
    """One step's privacy loss ``log(1 - q + q N(1, z) / N(0, z))``: standard deviation if the unit is absent; range to hold."""
    import numpy as np

    x = np.linspace(-_TAIL, _TAIL + 1 / z, 4001)  # output / z, from below the unit's absence to above its presence
    loss = x / z - 0.5 / z**2
    if q < 1:
        loss = np.logaddexp(math.log1p(-q), math.log(q) + loss)
    weight = np.exp(-(x**2) / 2)
    mean = np.average(loss, weights=weight)
    return float(np.sqrt(np.average((loss - mean) ** 2, weights=weight))), float(loss[-1] - loss[0])


def _sorted_terms(events: Iterable[DpEvent]) -> tuple[tuple[Term, int], ...]:
    """How often each (sampling rate, noise multiplier) was released; a rate of 1 is a plain Gaussian. ValueError: an unknown event."""
    terms: Counter[Term] = Counter()
    for event in events:
        _add(terms, _plain(event), 1)
    if terms.total() > MOST_STEPS:
        raise ValueError(f"{terms.total()} releases are more than the {MOST_STEPS} that can be counted")
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
    """An event as its JSON object: ``type`` is the name in ``dp_accounting``, the rest its fields. ValueError: not one of the four."""
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
    raise ValueError(f"the accountant does not know the privacy event {event!r:.100}")


def _event(made: object) -> DpEvent:
    """The event of a JSON value; its fields' values are looked at when it is written back. ValueError: not one of the four types."""
    import dp_accounting as dp

    match made:
        case {"type": "GaussianDpEvent", "noise_multiplier": float(z)}:
            return dp.GaussianDpEvent(z)
        case {"type": "PoissonSampledDpEvent", "sampling_probability": float(q), "event": one}:
            return dp.PoissonSampledDpEvent(q, _event(one))
        case {"type": "SelfComposedDpEvent", "count": int(times), "event": one}:
            return dp.SelfComposedDpEvent(_event(one), times)
        case {"type": "ComposedDpEvent", "events": list(several)}:
            return dp.ComposedDpEvent([_event(e) for e in several])
    raise ValueError(f"the accountant does not know the privacy event {made!r:.100}")


def _multiplier(value: float) -> float:
    z = float(value)
    if z != 0 and not 1e-6 <= z <= 1e6:  # where squares and their inverses are far from the ends of float64
        raise ValueError(f"noise multiplier {z} is neither 0 nor between 1e-6 and 1e6")
    return abs(z)


def _rate(value: float) -> float:
    if not 0 < float(value) <= 1:
        raise ValueError(f"sampling rate {value} is not above 0 and at most 1")
    return float(value)


def _count(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r:.60} is not a number of releases (a whole number from 1)")
    return value


def _delta(value: float) -> None:
    if not SMALLEST_DELTA <= value < 1:
        raise ValueError(f"delta {value} is not between {SMALLEST_DELTA:g} and 1")
