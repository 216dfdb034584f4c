"""Caches a genotype file's dosages as a packed table on disk, which is written once and memory-mapped at every later start.

    keys, table, present, notes = cached(Path("cache"), open_source(path), persons, selection, memory_mb=512, say=print)
    table.floats(rows)                                # fedml.cohort.variants.packed.Packed over a read-only map

A cache entry is a folder named by the source's path and by the SHA-256 of everything that its content depends on: the bytes of the
source's files, the selection, the persons in their order. It contains ``table.bin`` (persons' rows in order), ``keys.tsv`` and
``meta.json``, and is published by one rename when it is complete. While an entry is written, a ``.partial`` folder and a ``.lock`` file are
in the same folder; the operating system releases the lock when its process ends. The next start removes what a killed process left.

Space: the table takes persons x variants / 4 bytes (100,000 x 1,000,000: 25 GB). A table larger than a quarter of ``memory_mb`` is first
written as segments (``transpose.py``) that shrink as the table grows, so that both together take the table's size and one run of rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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
from fedml.cohort.variants.companions import companions
from fedml.cohort.variants.fine import Fine, Uint16s
from fedml.cohort.variants.keys import Variant, columns_of, from_text, to_text
from fedml.cohort.variants.model import Selection, Source
from fedml.cohort.variants.packed import MISSING, Packed, width
from fedml.cohort.variants.ploidy import Coding
from fedml.cohort.variants.transpose import Spool
from fedml.errors import InputError

FORMAT = 2  # increment when the layout changes or a reader's output for the same file changes
_LOG_EVERY_SECONDS = 2.0


class Cached(NamedTuple):
    """``keys`` (variants,), ``table`` of persons x variants, ``present`` (persons,) bool, ``notes``: counts of excluded variants by
    reason."""

    keys: Sequence[Variant]
    table: Packed | Fine
    present: npt.NDArray[np.bool_]
    notes: dict[str, int]


class _Entry(NamedTuple):
    keys: Sequence[Variant]
    table: npt.NDArray[np.uint8] | Uint16s
    notes: dict[str, int]


class _Job(NamedTuple):
    """A read request. ``samples``: the source's indices of the persons that it has; ``blank``: append one row of missing genotypes."""

    source: Source
    samples: list[int]
    blank: bool
    selection: Selection
    memory_mb: int
    say: Say
    coding: Coding | None

    @property
    def rows(self) -> int:
        return len(self.samples) + self.blank

    @property
    def fine(self) -> bool:
        """The table is of dosages with fractions."""
        return self.selection.fractions


def cached(
    folder: Path,
    source: Source,
    persons: Sequence[str],
    selection: Selection,
    memory_mb: int,
    say: Say = lambda line: None,
    coding: Coding | None = None,
) -> Cached:
    """The selected dosages of ``persons``, in their order, from the cache in ``folder``; a missing entry is read from the source and
    cached.

    Variants with a dosage above 2 do not fit in a table and are excluded (``notes["ploidy above 2"]``). A person who is not in the source
    is not ``present``, and missing at every variant. If ``folder`` cannot be written, a table below 256 MB is built in memory. If two
    processes need the same entry, the second waits for the first.

    Args:
        folder: created with mode 0700 if it does not exist, because it contains the same personal data as the source.
        memory_mb: approximate memory limit for building the table, in MB; the source uses half of it.
        say: called with a progress line about every two seconds.
        coding: of calls on X, Y and MT, with the sex of ``persons``; None: as the source has them.

    Raises:
        InputError: the source is invalid or changes while it is read, has none of the persons, or the folder cannot be written and the
            table is too large for memory.
    """
    index = {sample: at for at, sample in enumerate(source.samples)}
    samples = [index[p] for p in persons if p in index]
    if not samples:
        raise InputError(f"{source.path}: none of its samples is in the persons table; use the same ids in both files.")
    present = np.array([p in index for p in persons], dtype=bool)
    if coding is not None and coding.sex is not None:
        coding = coding._replace(sex=coding.sex[present])
    job = _Job(source, samples, len(samples) < len(persons), selection, memory_mb, say, coding)
    try:
        entry = _entry(folder, persons, job)
    except Unwritable as error:
        entry = _in_memory(folder, job, error)
    stored: Any = entry.table
    table = Fine(stored) if job.fine else Packed(stored, len(entry.keys))
    if job.blank:
        table = table.take(np.where(present, np.cumsum(present) - 1, len(samples)))
    return Cached(entry.keys, table, present, entry.notes)


# --- entries


def _entry(folder: Path, persons: Sequence[str], job: _Job) -> _Entry:
    with writing():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    clean(folder)
    path = job.source.path.resolve()
    digests = content_digests(folder, _files(path), job.say)
    key = _key(digests, persons, job)
    place = folder / f"{sha256_of(str(path))[:12]}-{key[:32]}"
    entry = _open(place, key, job.fine)
    if entry is None:
        with locked(place.with_suffix(".lock"), job.say):
            entry = _open(place, key, job.fine)  # another process may have written it before this one got the lock
            if entry is None:
                entry = _make(place, key, digests, job)
                evict(folder, place)
    with suppress(OSError):
        os.utime(place / "meta.json")  # records the time of last use
    return entry


def _key(digests: dict[Path, tuple[str, list[int]]], persons: Sequence[str], job: _Job) -> str:
    content = [sha256 for sha256, _ in digests.values()]
    selection = [list(job.selection.regions), sorted(job.selection.listed), job.selection.passed, *job.selection.asked]
    contigs = job.source.contigs if job.source.path.suffix in (".bed", ".pgen") else ()
    coding = () if job.coding is None else (job.coding.described(contigs, job.selection),)
    return sha256_of(json.dumps([FORMAT, content, list(job.source.samples), selection, list(persons), *coding]))


def _open(place: Path, key: str, fine: bool) -> _Entry | None:
    """The entry, or None if it does not exist or is damaged."""
    try:
        meta = json.loads((place / "meta.json").read_bytes())
        text = (place / "keys.tsv").read_bytes()
        rows, variants, notes = int(meta["rows"]), int(meta["variants"]), {str(k): int(n) for k, n in meta["notes"].items()}
        kind = np.dtype(np.uint16 if fine else np.uint8)
        shape = rows, variants if fine else width(variants)
        size = (place / "table.bin").stat().st_size
        if meta["key"] != key or sha256_of(text) != meta["keys_sha256"] or size != shape[0] * shape[1] * kind.itemsize:
            return None
        if size <= SMALL and file_sha256(place / "table.bin") != meta["table_sha256"]:
            return None
        # As a plain array, because slicing a memmap costs a microsecond. An empty file cannot be mapped.
        mapped = np.asarray(np.memmap(place / "table.bin", kind, "r", shape=shape)) if variants else np.zeros(shape, kind)
        keys = from_text(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return _Entry(keys, mapped, notes) if len(keys) == variants else None


def _make(place: Path, key: str, digests: dict[Path, tuple[str, list[int]]], job: _Job) -> _Entry:
    """Writes the entry in a ``.partial`` folder and renames it; removes the partial folder if writing fails."""
    partial = place.with_suffix(".partial")
    try:
        with writing():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(mode=0o700)
            spool = Spool(len(job.samples), job.memory_mb * 2**20 // 4, partial, fine=job.fine)
            (partial / "keys.tsv").touch()
        keys_sha256, notes = hashlib.sha256(), dict[str, int]()
        for keys, dosage in _read(job, notes):
            text = to_text(keys)
            keys_sha256.update(text)
            with writing(spool.size):
                with (partial / "keys.tsv").open("ab") as file:  # closed after each block, because closing also writes and may fail
                    file.write(text)
                spool.add(dosage)
        for path, (_, stamp) in digests.items():
            if not path.exists() or stamp_of(path) != stamp:
                raise InputError(f"{path}: changed while it was read; start again when the file is complete.")
        with writing(spool.size):
            meta = {"key": key, "source": str(job.source.path.resolve()), "rows": job.rows, "variants": spool.variants, "notes": notes}
            meta |= {"keys_sha256": keys_sha256.hexdigest(), "table_sha256": _write_table(partial / "table.bin", spool, job)}
            (partial / "meta.json").write_text(json.dumps(meta, indent=1))
            publish(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    entry = _open(place, key, job.fine)
    if entry is None:
        raise Unwritable(OSError("the data read back differ from the data written"), spool.size)
    return entry


def _in_memory(folder: Path, job: _Job, why: Unwritable) -> _Entry:
    """The table in memory, without a cache entry.

    Raises:
        InputError: the table is larger than ``SMALL``.
    """
    refusal = InputError(
        f"{folder}: cannot be written ({why}), and the table exceeds {SMALL >> 20} MB, the limit without a cache; "
        "free disk space or set another cache folder."
    )
    if why.size >= SMALL:
        raise refusal from why
    job.say(f"{folder}: cannot be written ({why}); {job.source.path.name} is read into memory, and again at the next start")
    spool, keys, notes = Spool(len(job.samples), SMALL, None, fine=job.fine), list[Variant](), dict[str, int]()
    for found, dosage in _read(job, notes):
        if spool.width(spool.variants + len(dosage)) * spool.persons * (2 if job.fine else 1) > SMALL:
            raise refusal from why
        keys += found
        spool.add(dosage)
    wide = spool.width(spool.variants)
    table: Any = np.full((job.rows, wide), 0xFFFF, np.uint16) if job.fine else np.full((job.rows, wide), 0xFF, np.uint8)
    for begin, rows in spool.rows():
        table[begin : begin + len(rows)] = rows
    return _Entry(tuple(keys), table, notes)


# --- reading the source into a table


def _read(job: _Job, notes: dict[str, int]) -> Iterator[tuple[Sequence[Variant], npt.NDArray[np.int8] | Uint16s]]:
    """The source's blocks without variants with a dosage above 2; fills ``notes`` at the end."""
    name, total, higher, logged, coded = job.source.path.name, 0, 0, time.monotonic(), Counter[str]()
    for keys, found_ in job.source.blocks(job.samples, job.selection, max(1, job.memory_mb // 2)):
        dosage: Any = found_
        if job.fine:
            yield _fractions(keys, dosage, job, coded)
            total += len(keys)
            continue
        if dosage.dtype != np.int8 or dosage.shape != (len(keys), len(job.samples)) or (dosage.size and dosage.min() < MISSING):
            raise ValueError(f"a block of {name} is not int8 ({len(keys)}, {len(job.samples)}) with values >= -1")
        fits = dosage.max(axis=1) <= 2
        if not fits.all():
            higher += int((~fits).sum())
            keys, dosage = columns_of(keys).take(fits), dosage[fits]
        if job.coding is not None:
            keys, dosage = job.coding.coded(keys, dosage, coded)
        yield keys, dosage
        total += len(fits)
        if time.monotonic() - logged >= _LOG_EVERY_SECONDS:
            job.say(f"{name}: {total:,} variants read")
            logged = time.monotonic()
    found = Counter(job.source.excluded) + Counter({"ploidy above 2": higher}) + coded
    notes.update({reason: count for reason, count in found.items() if count})


def _fractions(
    keys: Sequence[Variant], codes: Uint16s, job: _Job, coded: Counter[str]
) -> tuple[Sequence[Variant], npt.NDArray[np.int8] | Uint16s]:
    """A block of dosages with fractions, in the coding of X, Y and MT."""
    if codes.dtype != np.uint16 or codes.shape != (len(keys), len(job.samples)):
        raise ValueError(f"a block of {job.source.path.name} is not uint16 ({len(keys)}, {len(job.samples)})")
    return (keys, codes) if job.coding is None else job.coding.coded_fractions(keys, codes, coded)


def _write_table(path: Path, spool: Spool, job: _Job) -> str:
    """Writes ``table.bin`` and returns its SHA-256."""
    sha256, logged = hashlib.sha256(), time.monotonic()
    with path.open("wb") as file:
        for begin, rows in spool.rows():
            sha256.update(rows.data)
            file.write(rows.data)
            if time.monotonic() - logged >= _LOG_EVERY_SECONDS:
                job.say(f"{job.source.path.name}: {begin + len(rows):,} of {spool.persons:,} persons written")
                logged = time.monotonic()
        if job.blank:
            blank = b"\xff" * (2 * spool.variants if job.fine else width(spool.variants))
            sha256.update(blank)
            file.write(blank)
    return sha256.hexdigest()


def _files(path: Path) -> list[Path]:
    return [path, *companions(path)]
