"""Whether a ledger can be relied on: its chain of digests, its groups, and a charge for each answer that the site's journal has."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedml.clients.gate.journal import entries
from fedml.errors import InputError

ROW = "id, time, persons, events, run, study, study_name, phase, round"
RESTORE = (
    "restore it from a backup; until then this site refuses every study with privacy of a patient. Without a backup the epsilon that the "
    "persons of this site have spent is unknown; the person responsible for their data decides whether a new state folder, with a new "
    "budget, may be used"
)


def keyed_hash(key: bytes, what: bytes, data: bytes, size: int = 32) -> bytes:
    return hashlib.blake2b(data, key=key, person=what, digest_size=size).digest()


def link(key: bytes, before: bytes, row: Sequence[Any]) -> bytes:
    return keyed_hash(key, b"charge", before + json.dumps(list(row), separators=(",", ":")).encode())


def first(db: sqlite3.Connection, query: str, *values: Any) -> Any:
    found = db.execute(query, values).fetchone()
    return found[0] if found else None


Answer = tuple[str, str, int]  # run, phase, round


def answered_rounds(state: Path) -> set[Answer]:
    """Every answer in the site's journal that must have a charge.

    A round of a study with privacy of a patient must always have one; its statistics must if they are noised. A study that is missing in
    the state folder is treated as private, because its approval stored it there and a file was lost.
    """
    phases: dict[str, tuple[str, ...]] = {}
    out = set()
    for entry in entries(state / "journal.jsonl"):
        if entry.direction == "out" and entry.verdict == "accepted" and entry.study:
            if entry.study not in phases:
                phases[entry.study] = _charged_phases(state / "studies" / f"{entry.study}.json")
            if entry.phase in phases[entry.study]:
                out.add((entry.run, entry.phase, entry.round))
    return out


def _charged_phases(plan: Path) -> tuple[str, ...]:
    try:
        privacy = json.loads(plan.read_text(encoding="utf-8"))["privacy"]
        unit, statistics = privacy["unit"], privacy["statistics"]
    except (OSError, ValueError, LookupError, TypeError):
        return ("round",)
    if unit != "patient":
        return ()
    return ("statistics", "round") if statistics == "private" else ("round",)


def refuse_lost(path: Path, answered: set[Answer]) -> None:
    """Raises ``InputError`` if ``answered`` is not empty, so that the ledger at ``path``, which does not exist, must have been lost."""
    if answered:
        lost = f"is missing, but the journal in its folder holds {len(answered)} answers that were charged to it"
        raise InputError(f"{path}: the privacy ledger {lost}; {RESTORE}.")


def verify(db: sqlite3.Connection, path: Path, key: bytes, answered: set[Answer]) -> None:
    """Raises ``InputError`` for a ledger that was changed or is damaged, or that lacks the charge for an answer."""
    try:
        wrong = _wrong(db, key, answered)
    except (TypeError, ValueError):  # a value whose type was changed
        wrong = "is damaged"
    if wrong:
        raise InputError(f"{path}: the privacy ledger {wrong}; {RESTORE}.")


def _wrong(db: sqlite3.Connection, key: bytes, answered: set[Answer]) -> str:
    if db.execute("PRAGMA integrity_check").fetchall() != [("ok",)] or db.execute("PRAGMA foreign_key_check").fetchall():
        return "is damaged"
    before, charged = b"", set[Answer]()
    for number, (*row, digest) in enumerate(db.execute(f"SELECT {ROW}, digest FROM charge ORDER BY id"), 1):  # noqa: S608
        if row[0] != number or link(key, before, row) != digest:
            return f"was changed at charge {number}, or that charge is lost"
        before = digest
        charged.add((row[4], row[7], row[8]))
    for number, digest in db.execute("SELECT id, digest FROM persons").fetchall():
        members = db.execute("SELECT person FROM member WHERE persons = ? ORDER BY person", [number])
        if keyed_hash(key, b"persons", b"".join(person for (person,) in members)) != digest:
            return f"was changed in the persons of group {number}"
    if missing := sorted(answered - charged):
        run, phase, number = missing[0]
        first = f"the first: run {run}, {phase} {number}"
        return f"lacks {len(missing)} charges whose answers are in the journal ({first}); it may be an older copy"
    return ""
