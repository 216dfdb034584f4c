"""The site's ledger: what every study has released of every person here, and the epsilon that each person has borne.

    ledger = Ledger(state / "ledger.db")                     # made if there is none; verified; ``InputError`` if it cannot be relied on
    ledger.charge_all([(training, events), (validation, counts)], run=..., ..., max_epsilon=8.0, delta=1e-5)
                                                             # before the answer is made, all or nothing; ``SiteError`` past the budget
    ledger.note_unprotected(persons, run=..., ...)           # released without differential privacy: noted, shown, never in a sum
    ledger.spent(delta), ledger.spends(delta), show(path, max_epsilon, delta), to_json(path, max_epsilon, delta)

A person carries the events of every study that could have drawn the person, whatever the study is called and whoever else it asks for.
Persons are kept as keyed hashes of their ids, a set of persons ("group") once, under the digest of the set; a charge is a row that names a
group and the events. A person's burden is all events of all groups that hold the person, and the site's spend is the largest epsilon over
persons. A person is an id: who is given a new one is a new person to the ledger, with a new budget.

**Never under-counted.** A charge is one transaction, on the disk before ``charge_all`` returns, hence before the answer is made: SQLite
with a rollback journal and synchronous=EXTRA, which also syncs the folder once the rollback journal is gone (FULL does not: after a power
loss an old rollback journal could undo a charge; a write-ahead log would keep charges in a second file that a copy of the ledger lacks). A
site that is killed in between has a charge without an answer, never the reverse. Whatever is sent again is charged again: its noise is new.
Charges exclude each other (BEGIN IMMEDIATE), so that two processes cannot both spend what is left. Rows are only added.

**Never begun anew in silence.** Rows form a chain of digests, as the journal's lines do, and groups must fit theirs: a flipped bit or a
lost row is found. Every round of a private study that the site's journal says was answered, and its noised statistics, must have their
charge: a ledger that is missing, or was replaced by an older copy, is found too. Then every charge is refused. Who may write both files
can of course forge both.

**Looking ahead.** The epsilon of a new multiset of sampled events costs up to a second. ``ahead`` says how many charges like this one the
run has still to come: if they all fit, this one does, since more events never mean less epsilon; and the sum of what was charged and what
is to come is the same multiset all through the run, so that its epsilon, which the accountant remembers, is worked out once. Only where
the bound does not fit is the charge counted exactly. Nothing but what is released is written.

Composition is that of ``fedml.privacy.accounting``: of events as if all had been fixed ahead, though a later study's plan may have been
chosen after seeing an earlier study's model. Refusals depend on who is at the site; that one refused is not covered by an epsilon.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, Unpack, final

from fedml.clients.gate.journal import entries
from fedml.errors import InputError, Reason, SiteError
from fedml.privacy.accounting import epsilon, events_from_json, events_to_json, rounded_up

if TYPE_CHECKING:
    from dp_accounting import DpEvent

APPLICATION, VERSION = 0x46654C67, 1
_PRAGMAS = ("journal_mode = DELETE", "synchronous = EXTRA", "fullfsync = ON", "foreign_keys = ON", "temp_store = MEMORY")
_KEY = 32  # bytes
_WAIT = 60.0  # seconds that a charge waits for another process's
_TABLES = {
    "secret": "key BLOB NOT NULL",
    "persons": "id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE",  # a group
    "member": "person BLOB NOT NULL, persons INTEGER NOT NULL REFERENCES persons, PRIMARY KEY (person, persons)",
    "charge": "id INTEGER PRIMARY KEY, time TEXT NOT NULL, persons INTEGER NOT NULL REFERENCES persons, events TEXT, run TEXT NOT NULL, "
    "study TEXT NOT NULL, study_name TEXT NOT NULL, phase TEXT NOT NULL, round INTEGER NOT NULL, digest BLOB NOT NULL",
}  # events: canonical JSON; NULL where there is no differential privacy
_COUNT = "SELECT count(DISTINCT person) FROM member WHERE persons IN (SELECT persons FROM charge"
_SIGNATURES = (
    "SELECT DISTINCT held FROM (SELECT group_concat(persons) AS held FROM member WHERE person IN "
    "(SELECT person FROM member WHERE ? IS NULL OR persons = ?) GROUP BY person)"
)
_ROW = "id, time, persons, events, run, study, study_name, phase, round"
_SCHEMA = [f"CREATE TABLE {name} ({columns})" + " WITHOUT ROWID" * (name == "member") for name, columns in _TABLES.items()]
_SCHEMA += ["CREATE INDEX member_persons ON member (persons)"]
_SCHEMA += [
    f"CREATE TRIGGER {name}_{what} BEFORE {what} ON {name} BEGIN SELECT RAISE(ABORT, 'a ledger is only added to'); END"
    for name in _TABLES
    for what in ("UPDATE", "DELETE")
]
_MEND = (
    "restore it from a backup; until then this site answers no study with privacy of a patient. Without a backup nobody knows what the "
    "persons here have borne: a new budget then begins with a new state folder, by the decision of whoever answers for their data"
)
_PASSING = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_BUSY", "SQLITE_READONLY")  # the ledger itself is whole
_making = threading.Lock()
Burden = Counter[str]  # how often each list of events (canonical JSON) was charged


class Told(TypedDict):
    """What is told with a charge. No budget hangs on ``study`` (the plan's SHA-256) or its name: they only tell studies apart."""

    run: str
    study: str
    study_name: str
    phase: str
    round: int
    max_epsilon: float
    delta: float
    ahead: NotRequired[int]  # how many such charges this run has still to come after this one


@dataclass(frozen=True)
class Spend:
    """What one study has taken. ``epsilon`` is its own, as if there were no other: the largest over persons; infinite without privacy."""

    study_name: str
    study: str  # SHA-256 of the plan
    runs: int
    messages: int  # answers about persons that were charged
    persons: int
    first: str  # ISO 8601, UTC
    last: str
    epsilon: float


@final
class Ledger:
    """The ledger in a file. Verified when it is opened here, so open it once and keep it; processes and threads may share the file.

    Raises:
        InputError: the file cannot be read, is no ledger, was changed, or lacks a charge whose answer is in the journal beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = b""  # the ledger's own, not known yet
        self._last: tuple[int, bytes] = (0, b"")  # the newest charge that was seen here: it can never go again
        self._known: tuple[tuple[bytes, ...], dict[int | None, set[tuple[int, ...]]]] = ((), {})
        answered = answered_rounds(path.parent)  # before the ledger is read: every answer there was has its charge by then
        with _making:  # closing the file beside an open connection of this process would drop SQLite's locks
            if not path.exists():
                refuse_lost(path, answered)
                _make_empty(path)
            with suppress(OSError):  # a copy that was put back; not ours to mend if another account owns it
                path.chmod(0o600)
        with self._transaction() as db:
            if _empty(db):
                refuse_lost(path, answered)
                for statement in (*_SCHEMA, f"PRAGMA application_id = {APPLICATION}", f"PRAGMA user_version = {VERSION}"):
                    db.execute(statement)
                db.execute("INSERT INTO secret VALUES (?)", [secrets.token_bytes(_KEY)])
            self._recognise(db)
            _verify(db, path, self._key, answered)

    def charge_all(self, parts: Sequence[tuple[Sequence[str], Sequence[DpEvent]]], **told: Unpack[Told]) -> float:
        """Writes what one answer is about to release: of each part's persons, the part's events. All of it or nothing.

        Args:
            parts: (ids of everybody who could be drawn, events) each; neither may be empty.
            told: which answer it is, and what is granted.

        Returns:
            A bound on the epsilon that any of these persons has borne, with this and with what was looked ahead to.

        Raises:
            SiteError: somebody's epsilon would pass ``max_epsilon``, or the ledger cannot be relied on; nothing was written.
            ValueError: no persons, or no events.
        """
        if not parts or not all(persons and events for persons, events in parts):
            raise ValueError("a charge is of events, about persons")
        texts, granted, ahead = [events_to_json(events) for _, events in parts], told["max_epsilon"], told.get("ahead", 0)
        answer, spent = (told["run"], told["study"], told["study_name"], str(told["phase"]), int(told["round"])), 0.0
        try:
            with self._transaction() as db:
                groups = [self._group(db, persons) for persons, _ in parts]
                for group, text in zip(groups, texts, strict=True):
                    self._append(db, group, text, answer)
                for group, text in zip(groups, texts, strict=True):
                    spent = max(spent, self._bound(db, group, Counter({text: ahead}), granted, told["delta"]))
                if not spent <= granted:
                    after = f"would bring a person to epsilon {rounded_up(spent)} at delta {told['delta']:g}"
                    raise SiteError(Reason.BUDGET, f'study "{told["study_name"]}" {after}, the policy grants {granted:g}')
        except InputError as error:  # the ledger itself
            raise SiteError(Reason.BUDGET, str(error)) from error
        return spent

    def note_unprotected(self, persons: Sequence[str], *, run: str, study: str, study_name: str, phase: str, round: int) -> None:
        """Notes a release about ``persons`` that no differential privacy covers: it has no epsilon, so it is shown and never summed.

        Raises:
            SiteError: the ledger cannot be relied on.
            ValueError: no persons.
        """
        if not persons:
            raise ValueError("a note is about persons")
        try:
            with self._transaction() as db:
                self._append(db, self._group(db, persons), None, (run, study, study_name, str(phase), int(round)))
        except InputError as error:
            raise SiteError(Reason.BUDGET, str(error)) from error

    def spent(self, delta: float) -> float:
        """The largest epsilon at ``delta`` that any person here has borne, over all studies together; 0 if nothing was charged."""
        with self._transaction("DEFERRED") as db:
            burdens = self._burdens(db, None, _by_group(db))
        return max((_epsilon(b, delta) for b in burdens), default=0.0)

    def spends(self, delta: float) -> tuple[Spend, ...]:
        """What each study has taken, in the order of their first charges."""
        out = []
        with self._transaction("DEFERRED") as db:
            query = (
                "SELECT study, events IS NULL, min(study_name), count(DISTINCT run), count(DISTINCT run || ' ' || phase || ' ' || round), "
                "min(time), max(time) FROM charge GROUP BY 1, 2 ORDER BY min(id)"
            )
            for study, bare, name, runs, messages, first, last in db.execute(query).fetchall():
                persons = _one(db, f"{_COUNT} WHERE study = ? AND (events IS NULL) = ?)", study, bare)
                burdens = self._burdens(db, None, _by_group(db, study))
                alone = math.inf if bare else max(_epsilon(b, delta) for b in burdens)
                out.append(Spend(name, study, runs, messages, persons, first, last, alone))
        return tuple(out)

    def persons(self) -> int:
        """How many persons have borne something that counts."""
        with self._transaction("DEFERRED") as db:
            return int(_one(db, f"{_COUNT} WHERE events IS NOT NULL)"))

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """One connection, one transaction: committed when the block ends well, else rolled back."""
        db = None
        try:
            db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=_WAIT, isolation_level=None)
            for pragma in _PRAGMAS:
                db.execute(f"PRAGMA {pragma}")
            db.execute(f"BEGIN {kind}")
            if self._key:
                self._recognise(db)
            yield db
            newest = _last(db)
            db.execute("COMMIT")
            self._last = newest
        except (sqlite3.Error, UnicodeDecodeError) as error:
            passing = getattr(error, "sqlite_errorname", "").startswith(_PASSING)
            mend = "nothing was written: look at the disk, and at who may write there" if passing else _MEND
            raise InputError(f"{self.path}: the privacy ledger cannot be used ({error}); {mend}.") from error
        finally:
            if db is not None:
                db.close()  # rolls back what is not committed

    def _recognise(self, db: sqlite3.Connection) -> None:
        """Raises ``InputError`` unless this is the ledger that was opened here, with all that was in it."""
        made, version = _one(db, "PRAGMA application_id"), _one(db, "PRAGMA user_version")
        if made != APPLICATION:
            raise InputError(f"{self.path}: is no privacy ledger; {_MEND}.")
        if version != VERSION:
            raise InputError(f"{self.path}: is a privacy ledger of version {version}, this program's is {VERSION}; install that one.")
        key, (number, digest) = _one(db, "SELECT key FROM secret"), self._last
        gone = number and _one(db, "SELECT count(*) FROM charge WHERE id = ? AND digest = ?", number, digest) != 1
        if gone:
            raise InputError(f"{self.path}: the privacy ledger was replaced while it was in use; {_MEND}.")
        if not isinstance(key, bytes) or len(key) != _KEY:
            raise InputError(f"{self.path}: the privacy ledger is damaged; {_MEND}.")
        self._key = key

    def _group(self, db: sqlite3.Connection, persons: Iterable[str]) -> int:
        """The number of this set of persons, written if it is new."""
        hashed = sorted({_hash(self._key, b"person", person.encode(), 16) for person in persons})
        digest = _hash(self._key, b"persons", b"".join(hashed))
        found = db.execute("SELECT id FROM persons WHERE digest = ?", [digest]).fetchone()
        if found:
            return int(found[0])
        number = int(_one(db, "SELECT coalesce(max(id), 0) + 1 FROM persons"))
        db.execute("INSERT INTO persons VALUES (?, ?)", [number, digest])
        db.executemany("INSERT INTO member VALUES (?, ?)", ((person, number) for person in hashed))
        return number

    def _append(self, db: sqlite3.Connection, group: int, events: str | None, told: tuple[str, str, str, str, int]) -> None:
        number, before = _last(db)
        row = (number + 1, datetime.now(UTC).isoformat(timespec="seconds"), group, events, *told)
        db.execute("INSERT INTO charge VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [*row, _link(self._key, before, row)])

    def _bound(self, db: sqlite3.Connection, group: int, ahead: Burden, granted: float, delta: float) -> float:
        """A bound on the worst epsilon in the group: the first of three, each closer than the last, that fits what is granted."""
        charged = _by_group(db)
        planned = charged | {group: charged[group] + ahead}
        for guess in [planned, charged] if ahead.total() else [charged]:
            with suppress(ValueError):  # as if one person had borne the most of every event: one epsilon instead of one a burden
                if (bound := _epsilon(reduce(or_, self._burdens(db, group, guess)), delta)) <= granted:
                    return bound
        most = 0.0
        try:
            for burden in self._burdens(db, group, charged):
                if not (most := max(most, _epsilon(burden, delta))) <= granted:
                    break
        except ValueError as error:  # too many releases, or a delta too small to count at
            raise SiteError(Reason.BUDGET, f"what this answer would release cannot be counted: {error}") from error
        return most

    def _burdens(self, db: sqlite3.Connection, group: int | None, by_group: dict[int, Burden]) -> list[Burden]:
        """The different burdens of the group's persons (None: of everybody), less those that another one exceeds in everything."""
        found = {frozenset(sum((by_group.get(g, Burden()) for g in held), Burden()).items()) for held in self._signatures(db, group)}
        largest: list[Burden] = []
        for burden in sorted(map(Burden, map(dict, found)), key=Burden.total, reverse=True):
            if burden and not any(burden <= other for other in largest):
                largest.append(burden)
        return largest

    def _signatures(self, db: sqlite3.Connection, group: int | None) -> set[tuple[int, ...]]:
        """Which sets of groups the group's persons are in. Remembered until a group is added, by whatever process."""
        all_groups = tuple(digest for (digest,) in db.execute("SELECT digest FROM persons ORDER BY id"))
        known = self._known
        if known[0] != all_groups:  # one assignment: a thread that reads meanwhile keeps what belongs to the groups it sees
            known = self._known = (all_groups, {})
        if group not in known[1]:
            known[1][group] = {tuple(sorted(map(int, held.split(",")))) for (held,) in db.execute(_SIGNATURES, [group, group])}
        return known[1][group]


def _hash(key: bytes, what: bytes, data: bytes, size: int = 32) -> bytes:
    return hashlib.blake2b(data, key=key, person=what, digest_size=size).digest()


def _link(key: bytes, before: bytes, row: Sequence[Any]) -> bytes:
    return _hash(key, b"charge", before + json.dumps(list(row), separators=(",", ":")).encode())


def _one(db: sqlite3.Connection, query: str, *values: Any) -> Any:
    found = db.execute(query, values).fetchone()
    return found[0] if found else None


def _last(db: sqlite3.Connection) -> tuple[int, bytes]:
    found = db.execute("SELECT id, digest FROM charge ORDER BY id DESC LIMIT 1").fetchone()
    return (int(found[0]), bytes(found[1])) if found else (0, b"")


def _by_group(db: sqlite3.Connection, study: str | None = None) -> dict[int, Burden]:
    """What was charged to each group, by one study or by all."""
    out: dict[int, Burden] = {}
    query = "SELECT persons, events, count(*) FROM charge WHERE events IS NOT NULL AND ? IN (study, '') GROUP BY persons, events"
    for group, events, times in db.execute(query, [study or ""]):
        out.setdefault(group, Burden())[events] = times
    return out


@lru_cache(maxsize=1024)
def _events(text: str) -> tuple[DpEvent, ...]:
    return tuple(events_from_json(text))


def _epsilon(burden: Burden, delta: float) -> float:
    from dp_accounting import ComposedDpEvent, SelfComposedDpEvent

    return epsilon([SelfComposedDpEvent(ComposedDpEvent(list(_events(text))), times) for text, times in sorted(burden.items())], delta)


def _empty(db: sqlite3.Connection) -> bool:
    """A file that never became a ledger: made a moment ago, or by a process that was killed then."""
    return bool(_one(db, "PRAGMA application_id") == 0 and _one(db, "SELECT count(*) FROM sqlite_master") == 0)


def _make_empty(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:  # another process was faster
        pass
    except OSError as error:
        raise InputError(f"{path}: the privacy ledger cannot be made ({error.strerror}); mend the folder or its permissions.") from error


Answer = tuple[str, str, int]  # run, phase, round


def answered_rounds(state: Path) -> set[Answer]:
    """Every answer in the site's journal that released something which must have been charged.

    A round of a study with privacy of a patient always is; its statistics are if they are noised. A study whose plan is not kept in the
    state folder counts as one of these: its approval put it there, so something was lost.
    """
    private: dict[str, tuple[str, ...]] = {}
    out = set()
    for entry in entries(state / "journal.jsonl"):
        if entry.direction == "out" and entry.verdict == "accepted" and entry.study:
            if entry.study not in private:
                private[entry.study] = _charged_phases(state / "studies" / f"{entry.study}.json")
            if entry.phase in private[entry.study]:
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
    if answered:
        told = f"is missing, but the journal beside it holds {len(answered)} answers that were charged to it"
        raise InputError(f"{path}: the privacy ledger {told}; {_MEND}.")


def _verify(db: sqlite3.Connection, path: Path, key: bytes, answered: set[Answer]) -> None:
    """Raises ``InputError`` for a ledger in which anything is not as it was written, or which lacks a charge for an answer."""
    try:
        wrong = _wrong(db, key, answered)
    except (TypeError, ValueError):  # a value of another type than was written
        wrong = "is damaged"
    if wrong:
        raise InputError(f"{path}: the privacy ledger {wrong}; {_MEND}.")


def _wrong(db: sqlite3.Connection, key: bytes, answered: set[Answer]) -> str:
    if db.execute("PRAGMA integrity_check").fetchall() != [("ok",)] or db.execute("PRAGMA foreign_key_check").fetchall():
        return "is damaged"
    before, charged = b"", set[Answer]()
    for number, (*row, digest) in enumerate(db.execute(f"SELECT {_ROW}, digest FROM charge ORDER BY id"), 1):  # noqa: S608
        if row[0] != number or _link(key, before, row) != digest:
            return f"was changed at charge {number}, or has lost it"
        before = digest
        charged.add((row[4], row[7], row[8]))
    for number, digest in db.execute("SELECT id, digest FROM persons").fetchall():
        members = db.execute("SELECT person FROM member WHERE persons = ? ORDER BY person", [number])
        if _hash(key, b"persons", b"".join(person for (person,) in members)) != digest:
            return f"was changed in the persons of group {number}"
    if missing := sorted(answered - charged):
        run, phase, number = missing[0]
        first = f"the first: run {run}, {phase} {number}"
        return f"lacks {len(missing)} charges whose answers are in the journal ({first}), as an older copy does"
    return ""
