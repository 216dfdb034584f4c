"""The site's privacy ledger: the releases of every study about every person of the site, and the epsilon that each person has spent.

    ledger = Ledger(state / "ledger.db")                     # created if absent; verified; ``InputError`` if damaged or incomplete
    ledger.charge_all([(training, events), (validation, counts)], run=..., ..., max_epsilon=8.0, delta=1e-5)
                                                             # before the reply is computed, all or nothing; ``SiteError``: over budget
    ledger.note_unprotected(persons, run=..., ...)           # a release without differential privacy: listed, never summed
    ledger.spent(delta), ledger.spends(delta), show(path, max_epsilon, delta), to_json(path, max_epsilon, delta)

A person is charged the events of every study that could have sampled the person, independent of the study's name and of the other persons
in it. The ledger stores persons as keyed hashes of their ids, and each set of persons ("group") once, under the digest of the set. A charge
is a row with a group and its events. A person's events are those of all groups that include the person; the site's spent epsilon is the
largest over its persons. A person is an id: a person with a new id counts as a new person, with a new budget.

**Never under-counted.** A charge is one transaction, on the disk before ``charge_all`` returns and therefore before the reply is computed:
SQLite with a rollback journal and synchronous=EXTRA, which also syncs the folder after the rollback journal is deleted (FULL does not:
after a power loss an old rollback journal could undo a charge; a write-ahead log would keep charges in a second file that a copy of the
ledger lacks). A site that is killed between the two steps has a charge without a reply, never a reply without a charge. A reply that is
computed again is charged again, because its noise is new. Charges exclude each other (BEGIN IMMEDIATE), so that two processes cannot both
spend the remaining budget. Rows are only added.

**Never reset unnoticed.** Rows form a chain of digests like the journal's lines, and each group must match its digest: a flipped bit or a
lost row is found. Every round of a private study that the site's journal records as answered, and its noised statistics, must have a
charge: a ledger that is missing or was replaced by an older copy is found too. In each of these cases every charge is refused. An account
with write permission for both files can forge both.

**Looking ahead.** The epsilon of a new multiset of sampled events takes up to a second to compute. ``ahead`` is the number of equal charges
still to come in the run. If all of them fit the budget, so does this one, since more events never mean less epsilon. Past and future
charges together are the same multiset during the whole run, so its epsilon, which the accountant caches, is computed once. The charge is
counted exactly only if this bound exceeds the budget. Only actual releases are written.

Composition is that of ``fedml.privacy.accounting``: it treats all events as fixed in advance, although a later study may have been planned
with knowledge of an earlier study's model. Refusals depend on the persons of the site; no epsilon covers the fact of a refusal.
"""

from __future__ import annotations

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
from typing import TYPE_CHECKING, NotRequired, TypedDict, Unpack, final

from fedml.clients.gate.ledger_check import RESTORE, answered_rounds, first, keyed_hash, link, refuse_lost, verify
from fedml.errors import InputError, Reason, SiteError
from fedml.privacy.accounting import epsilon, events_from_json, events_to_json
from fedml.privacy.claims import rounded_up

if TYPE_CHECKING:
    from dp_accounting import DpEvent

APPLICATION, VERSION = 0x46654C67, 1
_PRAGMAS = ("journal_mode = DELETE", "synchronous = EXTRA", "fullfsync = ON", "foreign_keys = ON", "temp_store = MEMORY")
_KEY = 32  # bytes
_LOCK_TIMEOUT = 60.0  # seconds that a charge waits for the charge of another process
_TABLES = {
    "secret": "key BLOB NOT NULL",
    "persons": "id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE",  # a group
    "member": "person BLOB NOT NULL, persons INTEGER NOT NULL REFERENCES persons, PRIMARY KEY (person, persons)",
    "charge": "id INTEGER PRIMARY KEY, time TEXT NOT NULL, persons INTEGER NOT NULL REFERENCES persons, events TEXT, run TEXT NOT NULL, "
    "study TEXT NOT NULL, study_name TEXT NOT NULL, phase TEXT NOT NULL, round INTEGER NOT NULL, digest BLOB NOT NULL",
}  # events: canonical JSON; NULL for a release without differential privacy
_COUNT = "SELECT count(DISTINCT person) FROM member WHERE persons IN (SELECT persons FROM charge"
_SIGNATURES = (
    "SELECT DISTINCT held FROM (SELECT group_concat(persons) AS held FROM member WHERE person IN "
    "(SELECT person FROM member WHERE ? IS NULL OR persons = ?) GROUP BY person)"
)
_SCHEMA = [f"CREATE TABLE {name} ({columns})" + " WITHOUT ROWID" * (name == "member") for name, columns in _TABLES.items()]
_SCHEMA += ["CREATE INDEX member_persons ON member (persons)"]
_SCHEMA += [
    f"CREATE TRIGGER {name}_{what} BEFORE {what} ON {name} BEGIN SELECT RAISE(ABORT, 'a ledger is only added to'); END"
    for name in _TABLES
    for what in ("UPDATE", "DELETE")
]
_TRANSIENT = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_BUSY", "SQLITE_READONLY")  # errors that leave the ledger itself intact
_create_lock = threading.Lock()
Part = tuple[Sequence[str], "Sequence[DpEvent]"]  # ids of all persons who could be sampled, events
EventCounts = Counter[str]  # how often each list of events (canonical JSON) was charged


class ChargeInfo(TypedDict):
    """The reply that a charge is for, and the limits. The budget does not depend on ``study`` (SHA-256) or its name; they only label."""

    run: str
    study: str
    study_name: str
    phase: str
    round: int
    max_epsilon: float
    delta: float
    ahead: NotRequired[int]  # equal charges still to come in this run, after this one


@dataclass(frozen=True)
class Spend:
    """The charges of one study. ``epsilon`` is the largest over persons, from this study alone; infinite without differential privacy."""

    study_name: str
    study: str  # SHA-256 of the study
    runs: int
    messages: int  # replies that were charged or noted
    persons: int
    first: str  # ISO 8601, UTC
    last: str
    epsilon: float


@final
class Ledger:
    """The ledger in a file. The constructor verifies the whole file, so open it once; processes and threads may share the file.

    Raises:
        InputError: the file cannot be read, is not a ledger, was changed, or lacks a charge for an answer in the journal of its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = b""  # read from the ledger later
        self._last: tuple[int, bytes] = (0, b"")  # the newest charge that this object has read: it must stay in the file
        self._known: tuple[tuple[bytes, ...], dict[int | None, set[tuple[int, ...]]]] = ((), {})
        answered = answered_rounds(path.parent)  # before the ledger is read: each of these answers is already charged
        with _create_lock:  # closing the file while this process has it open in another connection would drop SQLite's locks
            if not path.exists():
                refuse_lost(path, answered)
                _create_empty(path)
            with suppress(OSError):  # a restored copy may be readable by others; another account's file cannot be changed
                path.chmod(0o600)
        with self._transaction() as db:
            if _empty(db):
                refuse_lost(path, answered)
                for statement in (*_SCHEMA, f"PRAGMA application_id = {APPLICATION}", f"PRAGMA user_version = {VERSION}"):
                    db.execute(statement)
                db.execute("INSERT INTO secret VALUES (?)", [secrets.token_bytes(_KEY)])
            self._recognise(db)
            verify(db, path, self._key, answered)

    def charge_all(self, parts: Sequence[Part], **info: Unpack[ChargeInfo]) -> float:
        """Charges what one reply will release: to the persons of each part, the events of that part. All charges are written, or none.

        Args:
            parts: (ids of all persons who could be sampled, events) each; neither may be empty.
            info: the reply, and the limits of the policy.

        Returns:
            An upper bound on the epsilon that any of these persons has spent, this charge and ``ahead`` equal ones included.

        Raises:
            SiteError: a person's epsilon would exceed ``max_epsilon``, or the ledger is unusable; nothing was written.
            ValueError: a part without persons or without events.
        """
        if not parts or not all(persons and events for persons, events in parts):
            raise ValueError("a charge needs events and is about persons; a part has no persons or no events")
        texts, granted, ahead = [events_to_json(events) for _, events in parts], info["max_epsilon"], info.get("ahead", 0)
        answer, spent = (info["run"], info["study"], info["study_name"], str(info["phase"]), int(info["round"])), 0.0
        try:
            with self._transaction() as db:
                groups = [self._group(db, persons) for persons, _ in parts]
                for group, text in zip(groups, texts, strict=True):
                    self._append(db, group, text, answer)
                for group, text in zip(groups, texts, strict=True):
                    spent = max(spent, self._bound(db, group, Counter({text: ahead}), granted, info["delta"]))
                if not spent <= granted:
                    after = f"would raise a person's epsilon to {rounded_up(spent)} at delta {info['delta']:g}"
                    raise SiteError(Reason.BUDGET, f'study "{info["study_name"]}" {after}; the policy grants {granted:g} (max_epsilon)')
        except InputError as error:  # the ledger itself
            raise SiteError(Reason.BUDGET, str(error)) from error
        return spent

    def after(self, parts: Sequence[Part], delta: float) -> float:
        """The largest epsilon of any person of the parts if their events were charged now; nothing is written.

        Raises:
            InputError: the ledger is unusable, or the epsilon cannot be computed.
        """
        try:
            with self._transaction(keep=False) as db:
                groups = [self._group(db, persons) for persons, _ in parts]
                charged = _by_group(db)
                for group, (_, events) in zip(groups, parts, strict=True):
                    charged[group] = charged.get(group, EventCounts()) + EventCounts({events_to_json(events): 1})
                largest = [counts for group in dict.fromkeys(groups) for counts in self._largest(db, group, charged)]
            return max((_epsilon(counts, delta) for counts in largest), default=0.0)
        except ValueError as error:
            raise InputError(f"{self.path}: the epsilon cannot be computed: {error}.") from error

    def note_unprotected(self, persons: Sequence[str], *, run: str, study: str, study_name: str, phase: str, round: int) -> None:
        """Records a release about ``persons`` without differential privacy: it has no epsilon, so it is listed and never summed.

        Raises:
            SiteError: the ledger is unusable.
            ValueError: ``persons`` is empty.
        """
        if not persons:
            raise ValueError("a note is about persons; persons is empty")
        try:
            with self._transaction() as db:
                self._append(db, self._group(db, persons), None, (run, study, study_name, str(phase), int(round)))
        except InputError as error:
            raise SiteError(Reason.BUDGET, str(error)) from error

    def spent(self, delta: float) -> float:
        """The largest epsilon at ``delta`` that any person of the site has spent, over all studies; 0 if nothing was charged."""
        with self._transaction("DEFERRED") as db:
            largest = self._largest(db, None, _by_group(db))
        return max((_epsilon(counts, delta) for counts in largest), default=0.0)

    def spends(self, delta: float) -> tuple[Spend, ...]:
        """The charges of each study, in the order of their first charges."""
        out = []
        with self._transaction("DEFERRED") as db:
            query = (
                "SELECT study, events IS NULL, min(study_name), count(DISTINCT run), count(DISTINCT run || ' ' || phase || ' ' || round), "
                "min(time), max(time) FROM charge GROUP BY 1, 2 ORDER BY min(id)"
            )
            for study, unprotected, name, runs, messages, began, ended in db.execute(query).fetchall():
                persons = first(db, f"{_COUNT} WHERE study = ? AND (events IS NULL) = ?)", study, unprotected)
                largest = self._largest(db, None, _by_group(db, study))
                worst = math.inf if unprotected else max(_epsilon(counts, delta) for counts in largest)
                out.append(Spend(name, study, runs, messages, persons, began, ended, worst))
        return tuple(out)

    def persons(self) -> int:
        """The number of persons with at least one charge."""
        with self._transaction("DEFERRED") as db:
            return int(first(db, f"{_COUNT} WHERE events IS NOT NULL)"))

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE", *, keep: bool = True) -> Iterator[sqlite3.Connection]:
        """One connection with one transaction: committed if the block ends without an error and ``keep`` is true, else rolled back."""
        db = None
        try:
            db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=_LOCK_TIMEOUT, isolation_level=None)
            for pragma in _PRAGMAS:
                db.execute(f"PRAGMA {pragma}")
            db.execute(f"BEGIN {kind}")
            if self._key:
                self._recognise(db)
            yield db
            if keep:
                newest = _last(db)
                db.execute("COMMIT")
                self._last = newest
        except (sqlite3.Error, UnicodeDecodeError) as error:
            transient = getattr(error, "sqlite_errorname", "").startswith(_TRANSIENT)
            action = "nothing was written; check the free disk space and the write permissions of the folder" if transient else RESTORE
            raise InputError(f"{self.path}: the privacy ledger cannot be used ({error}); {action}.") from error
        finally:
            if db is not None:
                db.close()  # rolls back what is not committed

    def _recognise(self, db: sqlite3.Connection) -> None:
        """Raises ``InputError`` unless the file is the ledger that this object opened, with every charge that it has read."""
        application, version = first(db, "PRAGMA application_id"), first(db, "PRAGMA user_version")
        if application != APPLICATION:
            raise InputError(f"{self.path}: is not a privacy ledger; {RESTORE}.")
        if version != VERSION:
            raise InputError(
                f"{self.path}: is a privacy ledger of version {version}, this program reads version {VERSION}; install the release of "
                f"fedml that reads version {version}."
            )
        key, (number, digest) = first(db, "SELECT key FROM secret"), self._last
        if number and first(db, "SELECT count(*) FROM charge WHERE id = ? AND digest = ?", number, digest) != 1:
            raise InputError(f"{self.path}: the privacy ledger was replaced while it was in use; {RESTORE}.")
        if not isinstance(key, bytes) or len(key) != _KEY:
            raise InputError(f"{self.path}: the privacy ledger is damaged; {RESTORE}.")
        self._key = key

    def _group(self, db: sqlite3.Connection, persons: Iterable[str]) -> int:
        """The id of this set of persons. Writes the set if it is new."""
        hashed = sorted({keyed_hash(self._key, b"person", person.encode(), 16) for person in persons})
        digest = keyed_hash(self._key, b"persons", b"".join(hashed))
        found = db.execute("SELECT id FROM persons WHERE digest = ?", [digest]).fetchone()
        if found:
            return int(found[0])
        number = int(first(db, "SELECT coalesce(max(id), 0) + 1 FROM persons"))
        db.execute("INSERT INTO persons VALUES (?, ?)", [number, digest])
        db.executemany("INSERT INTO member VALUES (?, ?)", ((person, number) for person in hashed))
        return number

    def _append(self, db: sqlite3.Connection, group: int, events: str | None, info: tuple[str, str, str, str, int]) -> None:
        number, before = _last(db)
        row = (number + 1, datetime.now(UTC).isoformat(timespec="seconds"), group, events, *info)
        db.execute("INSERT INTO charge VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [*row, link(self._key, before, row)])

    def _bound(self, db: sqlite3.Connection, group: int, ahead: EventCounts, granted: float, delta: float) -> float:
        """An upper bound on the largest epsilon in the group. Of three bounds, each tighter and slower, the first that is within
        ``granted``; else the tightest, which is exact."""
        charged = _by_group(db)
        planned = charged | {group: charged[group] + ahead}
        for guess in [planned, charged] if ahead.total() else [charged]:
            with suppress(ValueError):  # as if one person had the maximum of every event: one epsilon to compute instead of many
                if (bound := _epsilon(reduce(or_, self._largest(db, group, guess)), delta)) <= granted:
                    return bound
        worst = 0.0
        try:
            for counts in self._largest(db, group, charged):
                if not (worst := max(worst, _epsilon(counts, delta))) <= granted:
                    break
        except ValueError as error:  # too many releases, or a delta too small for the accountant
            raise SiteError(Reason.BUDGET, f"the epsilon of this reply cannot be computed: {error}") from error
        return worst

    def _largest(self, db: sqlite3.Connection, group: int | None, by_group: dict[int, EventCounts]) -> list[EventCounts]:
        """The distinct event counts of the group's persons (None: of all persons), without those that another dominates in every event."""
        held_groups = self._signatures(db, group)
        found = {frozenset(sum((by_group.get(g, EventCounts()) for g in held), EventCounts()).items()) for held in held_groups}
        largest: list[EventCounts] = []
        for counts in sorted(map(EventCounts, map(dict, found)), key=EventCounts.total, reverse=True):
            if counts and not any(counts <= other for other in largest):
                largest.append(counts)
        return largest

    def _signatures(self, db: sqlite3.Connection, group: int | None) -> set[tuple[int, ...]]:
        """The distinct sets of groups that the group's persons are in. Cached until any process adds a group."""
        all_groups = tuple(digest for (digest,) in db.execute("SELECT digest FROM persons ORDER BY id"))
        known = self._known
        if known[0] != all_groups:  # one assignment: a thread that reads meanwhile keeps a consistent pair
            known = self._known = (all_groups, {})
        if group not in known[1]:
            known[1][group] = {tuple(sorted(map(int, held.split(",")))) for (held,) in db.execute(_SIGNATURES, [group, group])}
        return known[1][group]


def _last(db: sqlite3.Connection) -> tuple[int, bytes]:
    found = db.execute("SELECT id, digest FROM charge ORDER BY id DESC LIMIT 1").fetchone()
    return (int(found[0]), bytes(found[1])) if found else (0, b"")


def _by_group(db: sqlite3.Connection, study: str | None = None) -> dict[int, EventCounts]:
    """Group -> its charged events, of one study or of all."""
    out: dict[int, EventCounts] = {}
    query = "SELECT persons, events, count(*) FROM charge WHERE events IS NOT NULL AND ? IN (study, '') GROUP BY persons, events"
    for group, events, times in db.execute(query, [study or ""]):
        out.setdefault(group, EventCounts())[events] = times
    return out


@lru_cache(maxsize=1024)
def _events(text: str) -> tuple[DpEvent, ...]:
    return tuple(events_from_json(text))


def _epsilon(counts: EventCounts, delta: float) -> float:
    from dp_accounting import ComposedDpEvent, SelfComposedDpEvent

    return epsilon([SelfComposedDpEvent(ComposedDpEvent(list(_events(text))), times) for text, times in sorted(counts.items())], delta)


def _empty(db: sqlite3.Connection) -> bool:
    """Whether the file has no ledger yet: it was just created, or its creator was killed before it wrote the tables."""
    return bool(first(db, "PRAGMA application_id") == 0 and first(db, "SELECT count(*) FROM sqlite_master") == 0)


def _create_empty(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:  # another process was faster
        pass
    except OSError as error:
        raise InputError(
            f"{path}: the privacy ledger cannot be created ({error.strerror}); check that the folder exists and is writable."
        ) from error
