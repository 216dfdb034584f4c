"""Entries of a cache on disk: made beside their place under a lock, published by one rename, put away when they are old.

    with writing():
        folder.mkdir(parents=True, exist_ok=True)
    clean(folder)                                     # what the dead left
    digests = content_digests(folder, files, print)   # part of an entry's key
    with locked(place.with_suffix(".lock"), print):
        ...                                           # make the folder place.with_suffix(".partial")
        publish(partial, place)
        evict(folder, place)

An entry is a folder ``<source>-<key>`` with a ``meta.json``; genotypes (``cache.py``) and images (``image_cache.py``) are kept so.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fedml.errors import InputError

KEPT = 2  # entries of one source; the one used longest ago goes first
SMALL = 256 * 2**20  # bytes: an entry up to here is checked by its SHA-256 at every start
SETTLED = 2.0  # seconds: a file changed later than this before it was read may change again without another time stamp
Say = Callable[[str], None]


class Unwritable(Exception):
    """The cache's folder cannot be written, after ``size`` bytes of an entry had been read."""

    def __init__(self, error: OSError, size: int = 0) -> None:
        super().__init__(error.strerror or str(error))
        self.size = size


def stamp_of(path: Path) -> list[int]:
    """Size, times of change and inode: equal as long as the file is the same."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def content_digests(folder: Path, paths: Sequence[Path], say: Say) -> dict[Path, tuple[str, list[int]]]:
    """SHA-256 and stamp (size, times of change, inode) of each file; ``digests.json`` in ``folder`` remembers what was read before.

    Raises:
        InputError: a file cannot be read, or changes while it is.
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
                    say(f"{path.name}: reading {stamp[0] / 2**30:.1f} GB to see whether it is in the cache")
                sha256 = file_sha256(path)
                if stamp_of(path) != stamp:
                    raise InputError(f"{path}: changed while it was read; start again when it is whole.")
                if began - max(stamp[1], stamp[2]) / 1e9 > SETTLED:
                    known[str(path)], fresh = (sha256, stamp), True
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); correct its path in site.toml.") from error
        out[path] = sha256, stamp
    if fresh:
        new = store.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            new.write_text(json.dumps({name: value for name, value in known.items() if Path(name).exists()}, indent=1))
            os.replace(new, store)
        with suppress(OSError):
            new.unlink()  # if it could not be written or renamed
    return out


def evict(folder: Path, newest: Path) -> None:
    """Removes the source's entries beyond ``KEPT``. A process that has one mapped keeps it until it ends."""

    def used(place: Path) -> int:
        try:
            return (place / "meta.json").stat().st_mtime_ns
        except OSError:
            return 0

    others = [p for p in folder.glob(f"{newest.name.split('-')[0]}-*") if p != newest and not p.suffix]
    for place in sorted(others, key=used, reverse=True)[KEPT - 1 :]:
        with suppress(OSError):
            (place / "meta.json").unlink()  # first: without it what is left is no entry
        shutil.rmtree(place, ignore_errors=True)


def sha256_of(data: str | bytes) -> str:
    """Hexadecimal; text as UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def file_sha256(path: Path) -> str:
    """Of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(size: int = 0) -> Iterator[None]:
    """Inside, an ``OSError`` is the folder's, not the source's."""
    try:
        yield
    except OSError as error:
        raise Unwritable(error, size) from error


def _settle(path: Path) -> None:
    """What was written to a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: Path, place: Path) -> None:
    """What was made in the folder ``partial`` becomes the entry ``place``, on the disk and whole or not at all."""
    for path in (*partial.iterdir(), partial):
        _settle(path)
    shutil.rmtree(place, ignore_errors=True)  # damaged, or it would have been used
    os.replace(partial, place)
    _settle(place.parent)


def _take_lock(path: Path, say: Say | None) -> int | None:
    """A descriptor that holds the lock; None if another holds it and ``say`` is None, else waits."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if say is None:
                    os.close(descriptor)
                    return None
                say(f"{path.parent}: another process makes this entry; waiting for it")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass  # whoever held it took the file away: another may have made a new one
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextmanager
def locked(path: Path, say: Say) -> Iterator[None]:
    """Inside, no other process holds ``path``; waits for one that does, and ``say`` is told so."""
    with writing():
        descriptor = _take_lock(path, say)
    assert descriptor is not None  # noqa: S101 - it waits
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held, so that nobody holds a lock on a file that is gone
        os.close(descriptor)


def clean(folder: Path) -> None:
    """Removes what processes left that died while they made an entry."""
    with suppress(OSError):
        for name in {p.stem for p in folder.iterdir() if p.suffix in (".partial", ".lock")}:
            descriptor = _take_lock(folder / f"{name}.lock", None)
            if descriptor is not None:
                try:
                    shutil.rmtree(folder / f"{name}.partial", ignore_errors=True)
                    (folder / f"{name}.lock").unlink()
                finally:
                    os.close(descriptor)
