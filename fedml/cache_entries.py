"""Entries of a cache on disk: written to a temporary folder under a lock, published by one rename, evicted when old.

    with writing():
        folder.mkdir(parents=True, exist_ok=True)
    clean(folder)                                     # removes partial entries of killed processes
    digests = content_digests(folder, files, print)   # part of an entry's key
    with locked(place.with_suffix(".lock"), print):
        ...                                           # write the folder place.with_suffix(".partial")
        publish(partial, place)
        evict(folder, place)

An entry is a folder ``<source>-<key>`` with a ``meta.json``. Used for genotypes (``cohort/variants/cache.py``) and images
(``cohort/images/cache.py``).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fedml.errors import InputError

KEPT = 2  # entries per source; the least recently used entry is removed first
SMALL = 256 * 2**20  # bytes; the SHA-256 of an entry up to this size is checked at every start
SETTLED = 2.0  # seconds; a file modified more recently than this may change again with the same time stamp
Say = Callable[[str], None]


class Unwritable(Exception):
    """The cache folder cannot be written; ``size``: bytes of the entry so far."""

    def __init__(self, error: OSError, size: int = 0) -> None:
        super().__init__(error.strerror or str(error))
        self.size = size


def stamp_of(path: Path) -> list[int]:
    """Size, modification and change times and inode: equal as long as the file does not change."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def readable(path: Path) -> bool:
    """True if ``path`` is a file that this process may read."""
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:
        return False


def differing(folder: Path) -> tuple[int, list[str]]:
    """Reads every file again of which ``content_digests`` has kept a digest: how many there are, and those whose content is another while
    their stamp is the same. Their digests are forgotten, so that the next start reads them.

    Raises:
        InputError: the kept digests cannot be read or written.
    """
    store = folder / "digests.json"
    try:
        known = json.loads(store.read_bytes()) if store.exists() else {}
        looked = {name: told for name, told in known.items() if readable(Path(name)) and stamp_of(Path(name)) == list(told[1])}
        other = [name for name, told in looked.items() if file_sha256(Path(name)) != told[0]]
        if other:
            new = store.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps({name: told for name, told in known.items() if name not in other}, indent=1))
            os.replace(new, store)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{store}: cannot be used ({type(error).__name__}); delete the file, the next start writes a new one.") from error
    return len(looked), other


def resolved(paths: Iterable[Path]) -> dict[Path, Path]:
    """Each path of a file that can be read -> ``path.resolve()``, with one look at each folder."""
    folders: dict[Path, Path] = {}
    out = {}
    for path in paths:
        if path not in out and readable(path):
            if path.parent not in folders:
                folders[path.parent] = path.parent.resolve()
            out[path] = path.resolve() if path.is_symlink() else folders[path.parent] / path.name
    return out


def content_digests(folder: Path, paths: Sequence[Path], say: Say) -> dict[Path, tuple[str, list[int]]]:
    """SHA-256 and stamp (``stamp_of``) of each file; ``digests.json`` in ``folder`` caches the digests by stamp.

    Raises:
        InputError: a file cannot be read, or changes while it is read.
    """
    store = folder / "digests.json"
    try:
        known = {str(k): (str(v[0]), [int(n) for n in v[1]]) for k, v in json.loads(store.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        known = {}
    out, fresh = {}, False
    for path in paths:
        try:
            stamp, began = stamp_of(path), time.time()
            sha256, before = known.get(str(path), ("", []))
            if before != stamp:
                if stamp[0] > 2**30:
                    say(f"{path.name}: reading {stamp[0] / 2**30:.1f} GB to check whether it is in the cache")
                sha256 = file_sha256(path)
                if stamp_of(path) != stamp:
                    raise InputError(f"{path}: changed while it was read; start again when the file is complete.")
                if began - max(stamp[1], stamp[2]) / 1e9 > SETTLED:
                    known[str(path)], fresh = (sha256, stamp), True
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path in site.toml.") from error
        out[path] = sha256, stamp
    if fresh:
        new = store.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            new.write_text(json.dumps({name: value for name, value in known.items() if Path(name).exists()}, indent=1))
            os.replace(new, store)
        with suppress(OSError):
            new.unlink()  # only present if writing or renaming failed
    return out


def evict(folder: Path, newest: Path) -> None:
    """Removes the least recently used entries of a source beyond ``KEPT``. A process that has mapped an entry can read it until it ends."""

    def used(place: Path) -> int:
        try:
            return (place / "meta.json").stat().st_mtime_ns
        except OSError:
            return 0

    others = [p for p in folder.glob(f"{newest.name.split('-')[0]}-*") if p != newest and not p.suffix]
    for place in sorted(others, key=used, reverse=True)[KEPT - 1 :]:
        with suppress(OSError):
            (place / "meta.json").unlink()  # first, because a folder without it is not an entry
        shutil.rmtree(place, ignore_errors=True)


def sha256_of(data: str | bytes) -> str:
    """SHA-256, hexadecimal; text is encoded as UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(size: int = 0) -> Iterator[None]:
    """Within the block, an ``OSError`` is raised as ``Unwritable``: it concerns the cache folder, not the source."""
    try:
        yield
    except OSError as error:
        raise Unwritable(error, size) from error


def _sync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: Path, place: Path) -> None:
    """Renames the folder ``partial`` to the entry ``place``, atomically and after flushing its files to the disk."""
    for path in (*partial.iterdir(), partial):
        _sync(path)
    shutil.rmtree(place, ignore_errors=True)  # an existing entry is damaged, otherwise it would have been used
    os.replace(partial, place)
    _sync(place.parent)


def _take_lock(path: Path, say: Say | None) -> int | None:
    """A file descriptor that holds the lock. If another process holds it: None without ``say``, otherwise waits for the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if say is None:
                    os.close(descriptor)
                    return None
                say(f"{path.parent}: another process is writing this cache entry; waiting for it")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass  # the previous holder deleted the file, and another process may have created a new one
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextmanager
def locked(path: Path, say: Say) -> Iterator[None]:
    """Holds an exclusive lock on ``path`` within the block; while it waits for another process, it calls ``say``."""
    with writing():
        descriptor = _take_lock(path, say)
    assert descriptor is not None  # noqa: S101 - with ``say`` it waits
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while the lock is held, so that no process holds a lock on a deleted file
        os.close(descriptor)


def clean(folder: Path) -> None:
    """Removes partial entries and lock files of processes that were killed while writing an entry."""
    with suppress(OSError):
        for name in {p.stem for p in folder.iterdir() if p.suffix in (".partial", ".lock")}:
            descriptor = _take_lock(folder / f"{name}.lock", None)
            if descriptor is not None:
                try:
                    shutil.rmtree(folder / f"{name}.partial", ignore_errors=True)
                    (folder / f"{name}.lock").unlink()
                finally:
                    os.close(descriptor)
