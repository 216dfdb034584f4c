"""The ledger as text and as JSON: the spent privacy budget by study, the remaining budget, and its meaning."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

from fedml.clients.gate.ledger import Ledger, Spend
from fedml.clients.gate.ledger_check import answered_rounds, refuse_lost
from fedml.privacy.claims import rounded_up


def show(path: Path, max_epsilon: float, delta: float) -> str:
    """The ledger as text, for the person responsible for the data. Creates no file. Raises ``InputError`` as ``Ledger`` does."""
    spent, persons, rows = _account(path, delta)
    counted, unprotected = [r for r in rows if r.epsilon < math.inf], [r for r in rows if r.epsilon == math.inf]
    over = "; more was spent than the policy grants now" * (spent > max_epsilon)
    lines = [
        f"Privacy budget of the persons at this site, at delta = {delta:g} ({path})",
        f"  granted  epsilon {max_epsilon:g} a person, for all studies with privacy of a patient together"
        + ": every such study is refused" * (not max_epsilon),
        f"  spent    epsilon {rounded_up(spent)}, the most of any one person; {_many(persons, 'person')} with any epsilon spent",
        f"  left     epsilon {_rounded_down(_left(max_epsilon, spent))} for that person, more for persons who have spent less{over}",
        "",
    ]
    if 0 < spent < math.inf:
        odds = f"{math.exp(spent):.3g}" if spent < 700 else "more than 1e300"
        lines += [
            "Meaning: the private replies of this site change the odds of any belief about a person by a factor",
            f"of at most about {odds}, except with probability of about {delta:g}. A reply beyond the granted epsilon is refused.",
            "Several studies together usually cost less than the sum of their epsilons; each reply is counted together with all before it.",
            "",
        ]
    lines.append("By study, each counted alone:" if counted else "No study has been charged.")
    for row in counted:
        lines += [f"  {row.study_name} ({row.study[:8]}): epsilon {rounded_up(row.epsilon)}", f"    {_about(row)}"]
    if unprotected:
        lines += ["", "Without differential privacy: no epsilon limits what these replies reveal; they are not in the figures above:"]
    for row in unprotected:
        lines += [f"  {row.study_name} ({row.study[:8]})", f"    {_about(row)}"]
    return "\n".join(lines)


def to_json(path: Path, max_epsilon: float, delta: float) -> str:
    """The ledger as one JSON object; infinite numbers are null. Raises ``InputError`` as ``Ledger`` does."""
    spent, persons, rows = _account(path, delta)
    numbers = {"max_epsilon": max_epsilon, "spent": spent, "left": _left(max_epsilon, spent)}
    fields: dict[str, Any] = {name: _finite(value) for name, value in numbers.items()}
    fields |= {"delta": delta, "persons": persons, "studies": [asdict(row) | {"epsilon": _finite(row.epsilon)} for row in rows]}
    return json.dumps(fields, sort_keys=True, allow_nan=False)


def _account(path: Path, delta: float) -> tuple[float, int, tuple[Spend, ...]]:
    """(spent epsilon, persons with a charge, charges by study); (0, 0, ()) if the ledger does not exist and was not lost."""
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
