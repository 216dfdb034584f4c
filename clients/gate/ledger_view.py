"""The ledger for a reader: what has been spent of the privacy budget, by which study, what is left, and what that means."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

from fedml.clients.gate.ledger import Ledger, Spend, answered_rounds, refuse_lost
from fedml.privacy.accounting import rounded_up


def show(path: Path, max_epsilon: float, delta: float) -> str:
    """The ledger in plain words, for whoever answers for the data. Makes no file. ``InputError`` as ``Ledger``."""
    spent, persons, rows = _account(path, delta)
    counted, bare = [r for r in rows if r.epsilon < math.inf], [r for r in rows if r.epsilon == math.inf]
    over = ": more was spent than is granted now" * (spent > max_epsilon)
    lines = [
        f"Privacy budget of the persons at this site, at delta = {delta:g} ({path})",
        f"  granted  epsilon {max_epsilon:g} a person, for all studies of that privacy together" + ": none runs" * (not max_epsilon),
        f"  spent    epsilon {rounded_up(spent)}, the most that any one person has borne; {_many(persons, 'person')} have borne something",
        f"  left     epsilon {_rounded_down(_left(max_epsilon, spent))} for that person, more for whoever has borne less{over}",
        "",
    ]
    if 0 < spent < math.inf:
        odds = f"{math.exp(spent):.3g}" if spent < 700 else "more than 1e300"
        lines += [
            "What it means: whatever anybody believed of a person here before, what left this site changes the odds of it by a factor",
            f"of at most about {odds}, but for a chance of about {delta:g}. No answer is given that brings anybody past the grant.",
            "Several studies together usually cost less than the sum of their epsilons; every answer is counted with all that went before.",
            "",
        ]
    lines.append("By study, each as if it were the only one:" if counted else "No study has been charged.")
    for row in counted:
        lines += [f"  {row.study_name} ({row.study[:8]}): epsilon {rounded_up(row.epsilon)}", f"    {_about(row)}"]
    if bare:
        lines += ["", "Without differential privacy: no epsilon bounds what these may tell about a person, and none is in the sum above:"]
    for row in bare:
        lines += [f"  {row.study_name} ({row.study[:8]})", f"    {_about(row)}"]
    return "\n".join(lines)


def to_json(path: Path, max_epsilon: float, delta: float) -> str:
    """The same for a machine: one JSON object; what is infinite is null. ``InputError`` as ``Ledger``."""
    spent, persons, rows = _account(path, delta)
    numbers = {"max_epsilon": max_epsilon, "spent": spent, "left": _left(max_epsilon, spent)}
    told: dict[str, Any] = {name: _finite(value) for name, value in numbers.items()}
    told |= {"delta": delta, "persons": persons, "studies": [asdict(row) | {"epsilon": _finite(row.epsilon)} for row in rows]}
    return json.dumps(told, sort_keys=True, allow_nan=False)


def _account(path: Path, delta: float) -> tuple[float, int, tuple[Spend, ...]]:
    """Spent, persons who have borne something, and by study; nothing where there is no ledger and none is missed."""
    if not path.exists():
        refuse_lost(path, answered_rounds(path.parent))
        return 0.0, 0, ()
    ledger = Ledger(path)
    return ledger.spent(delta), ledger.persons(), ledger.spends(delta)


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def _about(row: Spend) -> str:
    when = row.first[:10] if row.first[:10] == row.last[:10] else f"{row.first[:10]} to {row.last[:10]}"
    return f"{_many(row.persons, 'person')}, {_many(row.messages, 'answer')} in {_many(row.runs, 'run')}, {when}"


def _left(max_epsilon: float, spent: float) -> float:
    return max_epsilon - spent if spent < max_epsilon else 0.0


def _rounded_down(value: float) -> str:
    return "infinity" if math.isinf(value) else f"{Decimal(value).quantize(Decimal('0.01'), rounding=ROUND_FLOOR):f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
