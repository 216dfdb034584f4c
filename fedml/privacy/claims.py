"""An epsilon with what it needs to be meaningful: its unit, adjacency, scope and releases, and one sentence that says them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Literal

from fedml.privacy.accounting import ADJACENCY, best_accuracy, epsilon, epsilon_rdp, events_to_json

if TYPE_CHECKING:
    from dp_accounting import DpEvent

_UNIT = {
    "person": ("one person of a site", "adding or removing that person"),
    "site": ("one site of the federation", "adding or removing that site with all its persons"),
}


@dataclass(frozen=True)
class Claim:
    """An epsilon with the information that it needs to be meaningful. Create it with ``claim``.

    ``events_json``: the releases; ``epsilon(events_from_json(events_json), delta)`` recomputes the figure.
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
            raise ValueError("a claim needs an epsilon of at least 0, a delta between 0 and 1, and a scope (covers)")

    def sentence(self) -> str:
        """The claim as one self-contained sentence. Epsilon is rounded up."""
        unit, neighbours = _UNIT[self.unit]
        spent, cross = rounded_up(self.epsilon), rounded_up(self.epsilon_rdp)
        scope = f"covers: {'; '.join(self.covers)}; not covered: {'; '.join(self.not_covered) or 'nothing named'}"
        if math.isinf(self.epsilon):
            return f"No differential privacy for {unit} at delta = {self.delta!r} ({scope})."
        return (
            f"(epsilon = {spent}, delta = {self.delta!r}) differential privacy for {unit}; neighbours differ by {neighbours}; {scope}. "
            f"Computed with privacy loss distributions (Rényi cross-check: epsilon = {cross})."
        )


def claim(
    unit: Literal["person", "site"], events: Iterable[DpEvent], delta: float, covers: Iterable[str], not_covered: Iterable[str]
) -> Claim:
    """The claim that ``events`` support. ``covers`` and ``not_covered``: short phrases in plain English.

    Raises:
        ValueError: as ``epsilon``.
    """
    events = list(events)
    spent, cross = epsilon(events, delta), epsilon_rdp(events, delta)
    return Claim(unit, ADJACENCY, spent, delta, tuple(covers), tuple(not_covered), events_to_json(events), cross)


def attacker(unit: Literal["person", "site"], events: Iterable[Iterable[DpEvent]], delta: float) -> str:
    """The trade-off behind the claims as sentences: how often the best attacker is right, and what delta alone means.

    Args:
        events: of each site and part; the worst counts.
    """
    share = max((best_accuracy(own) for own in events), default=0.5)
    return (
        f"An attacker who knows everything but whether a given {unit} took part, holds both for equally likely, and sees all that is "
        f"covered, is right in at most {percent_up(share)} % of cases (from the noise of all releases, not from epsilon; guessing: 50 %). "
        f"Delta alone: epsilon bounds the change of odds except with a probability of {delta:g}."
    )


def percent_up(share: float) -> str:
    """A share as a percentage with one decimal, rounded up."""
    return f"{math.ceil(round(share * 1000, 6)) / 10:.1f}"


def rounded_up(epsilon: float) -> str:
    """Epsilon with two decimals (below 0.1, two digits), rounded up so that the text is still an upper bound; or ``infinity``."""
    if math.isinf(epsilon):
        return "infinity"
    exact = Decimal(repr(epsilon))  # decimal 0.1, not the binary float slightly above it
    places = 2 if exact == 0 or exact >= Decimal("0.1") else 1 - exact.adjusted()
    return f"{exact.quantize(Decimal(1).scaleb(-places), rounding=ROUND_CEILING):f}"
