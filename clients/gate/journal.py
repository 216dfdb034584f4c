"""A site's journal: one line for each decision of the gate, on requests and on replies. Each line contains the digest of the line before.

An edited, removed, moved, copied or inserted line breaks the chain of digests. A chain from which the last entries were removed, or that
was rewritten from some line on, is still consistent: both are found by comparison with a digest stored elsewhere, such as at the server
that received a reply. The chain does not prove that entries newer than every digest stored elsewhere were written by the site: an account
with write permission can append entries. The journal contains no data of persons.

S. Haber and W. S. Stornetta, "How to time-stamp a digital document", Journal of Cryptology 3 (1991); for logs that a machine writes about
itself, B. Schneier and J. Kelsey, "Secure audit logs to support computer forensics", ACM TISSEC 2 (1999).
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

from fedml.errors import InputError

Direction = Literal["in", "out", "site"]
Verdict = Literal["accepted", "refused", "noted"]
START = "0" * 64  # ``previous`` of the first entry
TORN = "torn-line"
_DEFAULTS: dict[str, Any] = {"run": "", "study": "", "study_name": "", "phase": "", "round": 0, "records": (), "reason": ""}
_HEX = "[0-9a-f]{64}"
_TEXTS = {"run": ".{0,64}", "study": f"({_HEX})?", "study_name": ".{0,63}", "phase": ".{0,32}", "reason": ".{0,200}", "previous": _HEX}
_TEXTS |= {"direction": "in|out|site", "verdict": "accepted|refused|noted", "digest": _HEX}
_TEXTS |= {"time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00"}
_RECORD_TEXTS = {"name": ".{0,64}", "sha256": _HEX}
_RECORDS = 64
_LONGEST = 2**16  # bytes; no line of fields of these lengths is longer


@dataclass(frozen=True)
class RecordNote:
    """A record of a request or a reply: name, size in bytes, SHA-256 of the bytes."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One decision. ``digest`` is the SHA-256 of the canonical JSON (sorted keys, no spaces, ASCII) of all other fields."""

    seq: int  # from 1
    time: str  # ISO 8601, UTC, microseconds
    direction: Direction  # "site": not about a message, such as start, stop, approve, revoke
    run: str
    study: str  # SHA-256 of the study, or empty
    study_name: str
    phase: str
    round: int
    records: tuple[RecordNote, ...]
    verdict: Verdict
    reason: str  # a code, or a short fixed text
    previous: str
    digest: str


@dataclass(frozen=True)
class Problem:
    """An error in a journal: the line (from 1; 0 if the journal is empty) and a sentence about the error."""

    line: int
    what: str


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def _fields(entry: Entry) -> dict[str, Any]:
    return vars(entry) | {"records": [vars(record) for record in entry.records]}


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical({k: v for k, v in fields.items() if k != "digest"})).hexdigest()


def _check(fields: Mapping[str, Any], texts: Mapping[str, str] = _TEXTS, numbers: Sequence[str] = ("seq", "round")) -> None:
    """Raises ``ValueError`` for a value that a journal must not hold. The error omits the value, which may come from outside."""
    for name, pattern in texts.items():
        value = fields[name]
        # isprintable: no line ends, terminal escapes, marks that change the direction of writing, or lone surrogates.
        if not isinstance(value, str) or not value.isprintable() or not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"{name}: a journal takes printable text that matches {pattern}")
    for name in numbers:
        least = 1 if name == "seq" else 0
        if type(fields[name]) is not int or not least <= fields[name] < 2**63:
            raise ValueError(f"{name}: a journal takes whole numbers from {least}")
    records = fields.get("records", ())
    if len(records) > _RECORDS:
        raise ValueError(f"a journal takes at most {_RECORDS} records an entry")
    for record in records:
        _check(record, _RECORD_TEXTS, ("bytes",))


def _entry(last: Entry | None, given: Mapping[str, Any]) -> Entry:
    """The entry that follows ``last``; ``ValueError`` for a value that a journal must not hold."""
    seq, previous = (last.seq + 1, last.digest) if last else (1, START)
    fields = {**_DEFAULTS, **given, "seq": seq, "previous": previous, "time": datetime.now(UTC).isoformat(timespec="microseconds")}
    plain = fields | {"records": [vars(record) for record in fields["records"]], "digest": START}
    _check(plain)
    return Entry(**fields, digest=_digest(plain))


def _parse(line: bytes) -> Entry | None:
    """The entry of a complete line, or None. Does not check the digest."""
    try:
        fields = json.loads(line)
        _check(fields)
        entry = Entry(**fields | {"records": tuple(RecordNote(**record) for record in fields["records"])})
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return entry if line.endswith(b"\n") else None


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _tail(fd: int, path: Path) -> tuple[Entry | None, int]:
    """The last entry and the offset in bytes of its end; anything after that offset is one torn line. Reads only the end of the file."""
    size = end = os.fstat(fd).st_size
    begin = max(0, size - 2 * _LONGEST)
    data = os.pread(fd, size - begin, begin)
    for _ in range(2):
        if end == 0:
            return None, 0
        start = data.rfind(b"\n", 0, max(end - begin - 1, 0)) + 1
        entry = _parse(data[start : end - begin])
        if entry is not None:
            return entry, end
        end = begin + start
    raise InputError(
        f"{path}: the journal is damaged in more than its last line, which is not crash damage; verify the journal and move it to "
        "another folder."
    )


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
    os.fsync(fd)


def _sync_folder(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _repair(fd: int, path: Path, last: Entry | None, end: int) -> Entry:
    """Copies the torn line after ``end`` to a file in the journal's folder, and replaces the torn line by an entry that notes it."""
    torn = os.pread(fd, os.fstat(fd).st_size - end, end)
    number = next(n for n in itertools.count(1) if not path.with_name(f"{path.name}.torn-{n}").exists())
    with open(path.with_name(f"{path.name}.torn-{number}"), "xb", 0, opener=_private) as copy:
        _write(copy.fileno(), torn)
    _sync_folder(path)
    note = RecordNote(f"torn-{number}", len(torn), hashlib.sha256(torn).hexdigest())
    entry = _entry(last, {"direction": "site", "records": (note,), "verdict": "noted", "reason": TORN})
    line = _canonical(_fields(entry)) + b"\n"
    # Overwrite the torn bytes first, truncate afterwards: a crash between the two steps leaves a torn line, never a lost one.
    with path.open("r+b", 0) as file:
        file.seek(end)
        _write(file.fileno(), line)
        file.truncate(end + len(line))
    return entry


class About(NamedTuple):
    """What an entry is about, as far as it is known."""

    run: str = ""
    study: str = ""  # SHA-256
    study_name: str = ""
    phase: str = ""
    round: int = 0


@final
class Journal:
    """A journal to append to. It keeps no state in memory, so that several processes and threads may share the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(
        self,
        *,
        direction: Direction,
        verdict: Verdict,
        about: About = About(),
        records: Sequence[RecordNote] = (),
        reason: str = "",
    ) -> Entry:
        """Appends one entry; it is on the disk when this returns. A last line that a crash cut short is first moved to another file, and
        an entry notes the move.

        Raises:
            ValueError: a value is too long, has control characters or is of the wrong type; nothing was written.
            InputError: the journal is damaged in more than its last line.
            OSError: the entry could not be written (full disk, no permission): the caller must not do what the entry describes.
        """
        if cut := self.cut():
            raise InputError(cut)
        given = about._asdict() | {"direction": direction, "verdict": verdict, "records": tuple(records), "reason": reason}
        _entry(None, given)  # refuses bad values before the file is created
        with open(self.path, "a+b", 0, opener=_private) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.fchmod(file.fileno(), 0o600)
            last, end = _tail(file.fileno(), self.path)
            if end < os.fstat(file.fileno()).st_size:
                last = _repair(file.fileno(), self.path, last, end)
            entry = _entry(last, given)
            _write(file.fileno(), _canonical(_fields(entry)) + b"\n")
            if last is None:
                _sync_folder(self.path)
            self._write_head(entry)
        return entry

    @property
    def _head_file(self) -> Path:
        return self.path.with_suffix(".head")

    def _write_head(self, entry: Entry) -> None:
        """The last entry's number and digest in a second file, without which a journal that was cut off looks whole."""
        partial = self._head_file.with_suffix(".partial")
        with open(partial, "wb", opener=_private) as file:
            file.write(f"{entry.seq} {entry.digest}\n".encode())
        partial.replace(self._head_file)

    def cut(self) -> str:
        """A sentence if entries are missing that were in the journal; "" if not."""
        try:
            count, digest = self._head_file.read_text().split()
        except (OSError, ValueError):
            return ""
        last = self._last()
        if last is not None and (last.seq > int(count) or last.digest == digest):
            return ""
        return (
            f"{self.path}: had {count} entries and has {last.seq if last else 0}: it was cut off or replaced, so requests could be "
            f"answered again; restore it from a copy. To give up the old entries, move it and {self._head_file.name} to another folder and "
            "approve the studies anew."
        )

    def _last(self) -> Entry | None:
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            return _tail(file.fileno(), self.path)[0]

    @property
    def head(self) -> str:
        """The digest of the last entry, or 64 zeros. Equals ``digest`` of the entry that ``append`` returned last."""
        last = self._last()
        return last.digest if last else START

    @property
    def count(self) -> int:
        """The number of entries."""
        last = self._last()
        return last.seq if last else 0


def _lines(path: Path) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        left = os.fstat(file.fileno()).st_size  # complete lines up to now; the lock is released, so the site can go on writing
        fcntl.flock(file, fcntl.LOCK_UN)
        while left > 0 and (line := file.readline(left)):
            left -= len(line)
            yield line


def entries(path: Path) -> Iterator[Entry]:
    """The journal's entries; none if the file does not exist. A torn last line, which the next append moves, is skipped.

    Raises:
        InputError: another line is not an entry.
    """
    bad = 0
    for number, line in enumerate(_lines(path), 1):
        if bad:
            raise InputError(f"{path}: line {bad} is not an entry of a journal; verify the journal.")
        entry = _parse(line)
        if entry is None:
            bad = number
        else:
            yield entry


def verify(path: Path, head: str | None = None, count: int | None = None, *, reported: str = "") -> list[Problem]:
    """The errors in a journal; an empty list if there are none.

    Args:
        head: the digest of an entry, stored elsewhere; without it, removed entries at the end are not found.
        count: the number of entries when ``head`` was the last.
        reported: the time at which ``head`` was reported, for the sentence about it.
    """
    problems: list[Problem] = []
    places: dict[str | None, int] = {None: 0, START: 0}
    expected, previous, number = 1, START, 0  # 0 and "": not known, because the line before is not an entry
    for number, line in enumerate(_lines(path), 1):
        entry, what = _parse(line), ""
        intact = entry is not None and _canonical(_fields(entry)) + b"\n" == line and _digest(_fields(entry)) == entry.digest
        if entry is None:
            torn = "this line is cut short, as by a crash; the site moves it to another file when it appends its next entry"
            what = "this line is not an entry of a journal" if line.endswith(b"\n") else torn
        elif not intact:
            what = "this entry was edited: its content does not match its digest"
        elif entry.digest in places:
            what = f"this entry is a copy of line {places[entry.digest]}"
        elif expected and entry.seq > expected:
            what = f"entries are missing before this one: entry {expected} is expected here, not entry {entry.seq}"
        elif expected and entry.seq < expected:
            what = f"this entry is out of order or was inserted: entry {expected} is expected here, not entry {entry.seq}"
        elif previous and entry.previous != previous:
            what = "this entry does not follow from the entry before it: one of the two was replaced or inserted"
        if what:
            problems.append(Problem(number, what))
        if entry and intact:
            places.setdefault(entry.digest, number)
        expected, previous = (entry.seq + 1, entry.digest) if entry else (0, "")
    at, when = places.get(head), f" on {reported}" if reported else ""
    many = f"{count} entries were reported, the file has {number}" if count is not None else f"the file has {number}"
    if at is None or number < (count or 0):
        either = "" if number < (count or 0) else ", or that entry was replaced"
        problems.append(Problem(number, f"the journal ends before the entry that was reported to the server{when}{either}: {many}"))
    elif at and count not in (None, at):
        problems.append(
            Problem(at, f"this entry was reported to the server{when} as entry {count}; other entries were inserted or removed")
        )
    return problems


def to_json(entries: Iterable[Entry]) -> Iterator[str]:
    """One JSON object for each entry, equal to the journal's lines."""
    return (_canonical(_fields(entry)).decode() for entry in entries)
