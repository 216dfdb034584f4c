"""What a journal remembers of earlier runs, for a site that starts anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedml.clients.gate.journal import RecordNote, entries


def seen(path: Path) -> dict[tuple[str, str, int], str]:
    """(run, phase, round) of every request that was accepted -> its content (``exactly``), so that after a restart it is not
    accepted again, or only as it was.

    Raises:
        InputError: a line other than the last is not an entry.
    """
    return {(e.run, e.phase, e.round): exactly(e.records) for e in entries(path) if e.direction == "in" and e.verdict == "accepted"}


def exactly(records: Sequence[RecordNote]) -> str:
    """Identifies the content of a request: names and digests of all records."""
    return " ".join(sorted(f"{note.name}:{note.sha256}" for note in records))


def runs_of(path: Path) -> dict[str, set[str]]:
    """Study (SHA-256) -> its runs of which a request was accepted.

    Raises:
        InputError: a line other than the last is not an entry.
    """
    found: dict[str, set[str]] = {}
    for entry in entries(path):
        if entry.direction == "in" and entry.verdict == "accepted":
            found.setdefault(entry.study, set()).add(entry.run)
    return found


def asked_for(records: Sequence[RecordNote]) -> str:
    """Identifies the content of a request without its config record: names and digests of the other records."""
    return " ".join(sorted(f"{note.name}:{note.sha256}" for note in records if note.name != "config"))


def evaluations_of(path: Path, phase: str) -> dict[str, set[str]]:
    """Study (SHA-256) -> contents (``asked_for``) of the accepted requests in ``phase``.

    Raises:
        InputError: a line other than the last is not an entry.
    """
    found: dict[str, set[str]] = {}
    for entry in entries(path):
        if entry.direction == "in" and entry.verdict == "accepted" and entry.phase == phase:
            found.setdefault(entry.study, set()).add(asked_for(entry.records))
    return found


def answered_runs(path: Path, phase: str) -> set[str]:
    """The runs of which a request in ``phase`` was answered.

    Raises:
        InputError: a line other than the last is not an entry.
    """
    return {e.run for e in entries(path) if e.direction == "out" and e.verdict == "accepted" and e.phase == phase}


def columns_of(path: Path, phase: str) -> dict[str, dict[str, int]]:
    """Study (SHA-256) -> content of a request in ``phase`` (``asked_for``) -> its number of columns: the difference between the request's
    round number and that of the run's request before it.

    Raises:
        InputError: a line other than the last is not an entry.
    """
    found: dict[str, dict[str, int]] = {}
    last: dict[str, int] = {}
    for entry in entries(path):
        if entry.direction == "in" and entry.verdict == "accepted" and entry.phase == phase:
            found.setdefault(entry.study, {}).setdefault(asked_for(entry.records), entry.round - last.get(entry.run, 0))
            last[entry.run] = max(entry.round, last.get(entry.run, 0))
    return found
