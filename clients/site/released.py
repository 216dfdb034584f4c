"""The sets of persons about whom this site has released exact values, over all studies and runs: ``released.db`` in the state folder.

Exact sums of two sets of persons that differ by one person give that person's values by subtraction, whether a person was added between two
runs, or two studies draw a limit at another place. So nothing is released about a set that differs from an earlier one by 1 to
``min_count`` - 1 persons. Differences of sums of more than two sets are not looked for. Persons are keyed hashes of their ids.

The same holds of columns: sums of two that differ in one person's value give when that person leaves. So the columns of an analysis are
remembered too, a keyed hash of each person with the value.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

FILE = "released.db"
_ID = 16  # digits of a hash
Column = tuple[Sequence[str], Sequence[float]]  # persons, and the value of each


@contextmanager
def _opened(state: Path) -> Iterator[sqlite3.Connection]:
    path = state / FILE
    path.touch(mode=0o600, exist_ok=True)
    os.chmod(path, 0o600)
    with closing(sqlite3.connect(path, timeout=60)) as found:
        found.execute("PRAGMA synchronous = FULL")
        with found:
            found.execute("CREATE TABLE IF NOT EXISTS released (persons TEXT PRIMARY KEY, study TEXT NOT NULL)")
            found.execute("CREATE TABLE IF NOT EXISTS columns (digest TEXT PRIMARY KEY, persons TEXT NOT NULL, study TEXT NOT NULL)")
            found.execute("CREATE TABLE IF NOT EXISTS secret (place INTEGER PRIMARY KEY, key BLOB NOT NULL)")
            found.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (secrets.token_bytes(32),))
        yield found


def _hashed(found: sqlite3.Connection, persons: Collection[str]) -> list[str]:
    (key,) = found.execute("SELECT key FROM secret").fetchone()
    return sorted(hmac.digest(key, person.encode(), "sha256").hex()[:24] for person in persons)


def note(state: Path, persons: Collection[str], study: str) -> None:
    """Adds a set; it is on the disk when this returns."""
    if persons:
        with _opened(state) as found, found:
            found.execute("INSERT OR IGNORE INTO released VALUES (?, ?)", (json.dumps(_hashed(found, persons)), study))


def too_near(state: Path, persons: Collection[str], smallest: int) -> tuple[int, str] | None:
    """(persons of difference, study) of the first earlier set that differs from ``persons`` by 1 to ``smallest`` - 1 persons."""
    if not persons or not (state / FILE).exists():
        return None
    with _opened(state) as found:
        own = frozenset(_hashed(found, persons))
        for ids, study in found.execute("SELECT persons, study FROM released").fetchall():
            other = frozenset(json.loads(ids))
            if abs(len(other) - len(own)) < smallest and 0 < (apart := len(own ^ other)) < smallest:
                return apart, study
    return None


def any_too_near(state: Path, sets: Collection[Collection[str]], smallest: int) -> tuple[int, str] | None:
    """``too_near`` of the first of ``sets`` for which it is not None; earlier sets are read once."""
    if not sets or not (state / FILE).exists():
        return None
    with _opened(state) as found:
        earlier = [(frozenset(json.loads(ids)), study) for ids, study in found.execute("SELECT persons, study FROM released").fetchall()]
        for persons in sets:
            own = frozenset(_hashed(found, persons))
            for other, study in earlier:
                if abs(len(other) - len(own)) < smallest and 0 < (apart := len(own ^ other)) < smallest:
                    return apart, study
    return None


def column_too_near(state: Path, columns: Collection[Column], smallest: int) -> tuple[int, str] | None:
    """(persons of difference, study) of the first earlier column that differs from one of ``columns`` in 1 to ``smallest`` - 1 persons."""
    if not (state / FILE).exists():
        return None
    with _opened(state) as found:
        earlier = [(frozenset(json.loads(ids)), study) for ids, study in found.execute("SELECT persons, study FROM columns").fetchall()]
        for column in columns if earlier else ():
            own = frozenset(_with_values(found, column))
            for other, study in earlier:
                if abs(len(other) - len(own)) < smallest and 0 < (apart := len({one[:_ID] for one in own ^ other})) < smallest:
                    return apart, study
    return None


def note_columns(state: Path, columns: Collection[Column], study: str) -> None:
    """Adds columns; they are on the disk when this returns."""
    with _opened(state) as found, found:
        for column in columns:
            text = json.dumps(_with_values(found, column))
            found.execute("INSERT OR IGNORE INTO columns VALUES (?, ?, ?)", (hashlib.sha256(text.encode()).hexdigest(), text, study))


def _with_values(found: sqlite3.Connection, column: Column) -> list[str]:
    (key,) = found.execute("SELECT key FROM secret").fetchone()

    def hashed(text: str, size: int) -> str:
        return hmac.digest(key, text.encode(), "sha256").hex()[:size]

    return sorted(hashed(person, _ID) + hashed(f"{person}\0{value!r}", _ID) for person, value in zip(*column, strict=True))
