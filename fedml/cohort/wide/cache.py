"""Caches a matrix of persons x features as float32 rows on disk, which are made once and read from at every later start.

    stored = open_rows(Path("cache"), Path("expression.parquet"), columns, persons, "id")

A cache entry is a folder (``fedml.cache_entries``): ``values.npy``, three small arrays of its rows (``fedml.cohort.wide.stored``) and
``meta.json``. Its key is the SHA-256 over the bytes of the matrix's file, the columns, the persons and the name of the column of ids. It
is published by one rename when it is complete; a partial or damaged entry is made again. Nothing in it is a pickle.

The matrix is read in a process of its own (``fedml.cohort.wide.convert``): a Parquet file of 60,000 columns has a footer of 10 MB, which
takes 200 MB of memory as long as the file is open, and the site's process would keep them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from fedml.cache_entries import (
    SMALL,
    Say,
    Unwritable,
    clean,
    content_digests,
    evict,
    file_sha256,
    locked,
    publish,
    sha256_of,
    stamp_of,
    writing,
)
from fedml.cohort.wide.convert import Job, convert
from fedml.cohort.wide.stored import SMALL_FILES, VALUES, Stored
from fedml.errors import InputError
from fedml.flower.parent import owned

FORMAT = 1  # increment when the layout changes, or the same file gives other numbers
_META = "meta.json"
_WORDS = (sys.executable, "-P", "-I", "-m", convert.__module__)


def open_rows(
    folder: Path, path: Path, columns: Sequence[str], persons: Sequence[str], id_column: str, say: Say = lambda line: None
) -> Stored:
    """The entry with the ``columns`` of ``persons`` from the matrix at ``path``; a missing entry is made. If two processes need the same
    entry, one waits.

    Args:
        folder: created with mode 0700 if it does not exist, because it contains the same personal data as the matrix.

    Raises:
        InputError: the matrix cannot be read, lacks a column, holds something else than finite numbers, or changes while it is read; or
            the folder cannot be written.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; correct the path in site.toml.")
    try:
        with writing():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        clean(folder)
        sha256, stamp = content_digests(folder, [path], say)[path]
        key = sha256_of(json.dumps([FORMAT, sha256, list(columns), list(persons), id_column]))
        place = folder / f"{sha256_of(str(path.resolve()))[:12]}-{key[:32]}"
        stored = _open(place, key)
        if stored is None:
            with locked(place.with_suffix(".lock"), say):
                stored = _open(place, key)  # another process may have made it before this one got the lock
                if stored is None:
                    say(f"{path.name}: read once into the cache")
                    job = Job(str(path), tuple(columns), tuple(persons), id_column, str(place.with_suffix(".partial")))
                    _make(place, key, job, stamp)
                    stored = _open(place, key)
                    evict(folder, place)
    except Unwritable as error:
        raise InputError(f"{folder}: cannot be written ({error}); free disk space or set another cache folder.") from error
    if stored is None:
        raise InputError(f"{folder}: the data read back differ from the data written; check the disk or set another cache folder.")
    with suppress(OSError):
        os.utime(place / _META)  # records the time of last use
    return stored


def _open(place: Path, key: str) -> Stored | None:
    """The entry, or None if it is missing or damaged. The rows' checksums are verified in entries up to ``SMALL`` bytes, lengths in all."""
    try:
        meta = json.loads((place / _META).read_bytes())
        if meta["key"] != key or any(file_sha256(place / name) != meta["sha256"][name] for name in SMALL_FILES):
            return None
        stored = Stored(place)
        return stored if (place / VALUES).stat().st_size > SMALL or stored.whole() else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _make(place: Path, key: str, job: Job, stamp: list[int]) -> None:
    """Makes the entry in a ``.partial`` folder and renames it; removes the partial folder if that fails."""
    partial = Path(job.folder)
    try:
        with writing():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(mode=0o700)
        _convert(job)
        if stamp_of(Path(job.path)) != stamp:
            raise InputError(f"{job.path}: changed while it was read; start again when the file is complete.")
        with writing():
            sha256 = {name: file_sha256(partial / name) for name in SMALL_FILES}
            (partial / _META).write_text(json.dumps({"key": key, "source": str(Path(job.path).resolve()), "sha256": sha256}))
            publish(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert(job: Job) -> None:
    """``convert`` in a process of its own; in this one where it may start none, as the confined process of own code."""
    try:
        done = subprocess.run(_WORDS, input=json.dumps(asdict(job)).encode(), env=owned(os.environ), capture_output=True, check=False)
    except PermissionError:
        convert(job)
        return
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        text = f"the process that read it ended with {done.returncode}; free memory and start again"
        raise InputError(f"{job.path}: {text}.") from error
    if "unwritable" in answer:
        raise Unwritable(OSError(0, answer["unwritable"]))
    if "error" in answer:
        raise InputError(answer["error"])
