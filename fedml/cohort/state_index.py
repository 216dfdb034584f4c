"""What was read from the header of a file, kept from start to start by the state of the file: size, times in nanoseconds, inode.

    with remembering(Path(".fedml/cache/headers.db")):
        told = remembered(Path("images/p1/0.dcm"), lambda: header_of(path))      # texts and numbers; read only if the file's state is new

One SQLite file, readable by the owner only, because it has names of files, UIDs, and descriptions and dates of series. A file that is
replaced, changed or touched has another state and is read again, also where size and modification time were set back, because the time of
the last change of its inode cannot be set. Copies of a whole disk, and file systems that keep no such time, can deceive it:
``fedml-site index --verify`` reads all files again. Memory: the entries of one folder, and those not written yet.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fedml.cache_entries import SETTLED

FORMAT = 2  # increment when the table, or what is kept of a file, changes
_BATCH = 5_000
_WAIT_SECONDS = 5.0
log = logging.getLogger("fedml.site")


class StateIndex:
    """The open index; ``remembered`` asks it. Without a file that can be written it forgets at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder: tuple[str, dict[str, tuple[str, str]]] = "", {}
        self._seen: set[str] = set()
        self._new: list[tuple[str, str, str, str]] = []
        self._gone: list[tuple[str, str]] = []
        self.read = self.known = 0
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._store: sqlite3.Connection | None = self._opened()
        except (OSError, sqlite3.Error) as error:
            log.warning("%s: cannot be written (%s); every header is read at every start", path, type(error).__name__)
            self._store = None

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._path.unlink()  # damaged: it holds nothing that cannot be read again
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            return self._connected()

    def _connected(self) -> sqlite3.Connection:
        store = sqlite3.connect(self._path, timeout=_WAIT_SECONDS, isolation_level=None)
        try:
            store.execute("PRAGMA synchronous = OFF")  # a loss of power may damage it, and then it is made again
            if store.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
                store.execute("DROP TABLE IF EXISTS files")
                store.execute(f"PRAGMA user_version = {FORMAT}")
            store.execute(
                "CREATE TABLE IF NOT EXISTS files (folder TEXT, name TEXT, state TEXT, told TEXT, PRIMARY KEY (folder, name)) WITHOUT ROWID"
            )
        except BaseException:
            store.close()
            raise
        return store

    def ask(self, path: Path, make: Callable[[], Any], what: str = "") -> Any:
        """What ``make`` returned for the file in this state, or returns now."""
        folder, name = os.path.split(path)
        name = f"{name}/{what}" if what else name  # no name of a file
        self._enter(folder)
        found = os.stat(path)
        state = _state(found)
        self._seen.add(name)
        before = self._folder[1].get(name)
        if before is not None and before[0] == state:
            self.known += 1
            return json.loads(before[1])
        settled = settled_state(found)
        told = make()
        self.read += 1
        if settled is not None:
            self._add(folder, name, settled, json.dumps(told))
        return told

    @property
    def kept(self) -> bool:
        """False if what is read is forgotten at once."""
        return self._store is not None

    def put(self, folder: str, name: str, state: str, told: str) -> None:
        """What another process read of a file in this state (``settled_state``): ``told`` as JSON, ``name`` as ``ask`` makes it. ``ask``
        knows it after ``write``."""
        self.read += 1
        self._add(folder, name, state, told)

    def _add(self, folder: str, name: str, state: str, told: str) -> None:
        self._new.append((folder, name, state, told))
        if len(self._new) >= _BATCH:
            self.write()

    def below(self, folder: str) -> tuple[set[str], set[str]]:
        """Names in ``folder`` of which something is known: folders that have a known file somewhere below, and files."""
        inside = folder.rstrip("/") + "/"
        deeper = self._rows("SELECT DISTINCT folder FROM files WHERE substr(folder, 1, ?) = ?", len(inside), inside)
        files = self._rows("SELECT name FROM files WHERE folder = ?", folder)
        return {one[len(inside) :].partition("/")[0] for (one,) in deeper}, {name.partition("/")[0] for (name,) in files}

    def _enter(self, folder: str) -> None:
        if folder == self._folder[0]:
            return
        self._leave()
        rows = self._rows("SELECT name, state, told FROM files WHERE folder = ?", folder)
        self._folder = folder, {name: (state, told) for name, state, told in rows}

    def _leave(self) -> None:
        folder, names = self._folder
        self._gone += [(folder, name) for name in names if name not in self._seen]
        self._seen = set()
        self._folder = "", {}

    def _rows(self, query: str, *values: str | int) -> list[Any]:
        if self._store is None:
            return []
        try:
            return self._store.execute(query, values).fetchall()
        except sqlite3.Error:
            return []

    def write(self) -> None:
        """Writes what is new."""
        new, self._new, gone, self._gone = self._new, [], self._gone, []
        if self._store is None or not (new or gone):
            return
        with suppress(sqlite3.Error):  # another process writes, or the disk is full: what is not kept is read again
            self._store.execute("BEGIN IMMEDIATE")
            try:
                self._store.executemany("DELETE FROM files WHERE folder = ? AND name = ?", gone)
                self._store.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", new)
                self._store.execute("COMMIT")
            except BaseException:
                self._store.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Writes what is new."""
        self._leave()
        self.write()
        if self._store is not None:
            self._store.close()
            self._store = None


def entries(path: Path) -> int:
    """How many files an index knows; 0 if there is none, or it cannot be read."""
    if not path.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
            return int(store.execute("SELECT count(DISTINCT folder || substr(name, 1, instr(name || '/', '/'))) FROM files").fetchone()[0])
    except sqlite3.Error:
        return 0


_current: ContextVar[StateIndex | None] = ContextVar("index", default=None)


@contextmanager
def remembering(path: Path | None) -> Iterator[StateIndex | None]:
    """Within the block ``remembered`` uses the index at ``path``; None: every file is read."""
    if path is None:
        yield None
        return
    index = StateIndex(path)
    token = _current.set(index)
    try:
        yield index
    finally:
        _current.reset(token)
        index.close()


def current_index() -> StateIndex | None:
    """The index of the innermost ``remembering``."""
    return _current.get()


def _state(found: os.stat_result) -> str:
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def settled_state(found: os.stat_result) -> str | None:
    """The state of a file; None if it was changed so recently that it may change again within one tick of the clock."""
    return _state(found) if time.time() - max(found.st_mtime_ns, found.st_ctime_ns) / 1e9 > SETTLED else None


def remembered(path: Path, make: Callable[[], Any], what: str = "") -> Any:
    """``make()``, which reads the file and returns what JSON can hold; or what it returned when the file had the state that it has now.
    ``what`` distinguishes several makers of one file.

    Raises:
        OSError: there is no such file; or what ``make`` raises, which is not kept.
    """
    index = _current.get()
    return make() if index is None else index.ask(path, make, what)
