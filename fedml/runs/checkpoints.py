"""Arrays and a note of one round in a file that is whole or is not used; the newest of a folder.

    keeper = Keeper(run / CHECKPOINTS)
    keeper.write(7, {"model/weight": tensor}, {"study": "..."})        # the file of round 7
    newest(run / CHECKPOINTS)                                          # (7, arrays, note), or None

A file is written under another name and then renamed to one that holds its SHA-256, so a process that is killed leaves the file before it.
A thread syncs it to the disk while the next round goes on, at most once a second, because a disk takes longer for that than a round of a
small model; the last file that is synced stays until the next one is. So a killed process loses the round in progress, and a power cut
what was done in the last second or in one round. With ``durable`` the file is on the disk when ``write`` returns.

Format: safetensors (https://github.com/huggingface/safetensors), written here piece by piece, so that no second copy of a model is made.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fedml.errors import InputError

CHECKPOINTS = "checkpoints"  # in a run's folder
KEPT = "kept"  # in a run's folder: what sites keep between rounds, where the sites' data are on the same machine
ORIGIN = "origin"  # in CHECKPOINTS: Flower's number of the run with which the training began
_NAME = re.compile(r"(\d{1,7})-([0-9a-f]{64})\.safetensors")
_PARTIAL = "partial"
_NOTE = "note"
_SYNC_SECONDS = 1.0
_BLOCK = 1 << 20
_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
          "BOOL": "bool"}  # fmt: skip
_NAMES = {np.dtype(value): key for key, value in _TYPES.items()}
Arrays = Mapping[str, npt.NDArray[Any]]
Found = tuple[int, dict[str, npt.NDArray[Any]], dict[str, Any]]


@final
class Keeper:
    """Writes the files of one folder. ``durable``: each is on the disk when ``write`` returns."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.folder, self.durable = folder, durable
        self._syncing: threading.Thread | None = None
        self._last = self._pending = self._synced = ""  # names; pending: a thread is syncing it
        self._stay: set[str] | None = None  # the files that are there; None: not looked yet
        self._began = -math.inf

    def write(self, number: int, arrays: Mapping[str, Any], note: Mapping[str, Any]) -> None:
        """Writes the file of a round; ``arrays``: NumPy arrays or CPU tensors.

        Raises:
            OSError: it cannot be written, such as on a full disk. ValueError: an array of a type that is not kept.
        """
        plain = {name: value.detach().numpy() if hasattr(value, "detach") else np.asarray(value) for name, value in arrays.items()}
        if self._stay is None:
            self.folder.mkdir(exist_ok=True, mode=0o700)
            self._stay = {path.name for _, path in _files(self.folder)}
        name = write_sealed(self.folder, number, plain, note)
        self._stay.add(name)
        if self.durable:
            self._sync(name)
        elif time.monotonic() - self._began > _SYNC_SECONDS and (self._syncing is None or not self._syncing.is_alive()):
            self._began, self._pending = time.monotonic(), name
            # Not a daemon: the end of the process waits for the disk.
            self._syncing = threading.Thread(target=self._sync, args=(name,), name="fedml-checkpoint")
            self._syncing.start()
        for old in self._stay - {name, self._last, self._pending, self._synced}:
            os.replace(f"{self.folder}/{old}", f"{self.folder}/{_PARTIAL}")  # to be written again: cheaper than a new file
            self._stay.discard(old)
        self._last = name

    def _sync(self, name: str) -> None:
        for place in (self.folder / name, self.folder):
            descriptor = os.open(place, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._synced = name

    def remove(self) -> None:
        """Removes the folder: the run has come to its end."""
        if self._syncing is not None:
            self._syncing.join()
        shutil.rmtree(self.folder, ignore_errors=True)


def write_sealed(folder: Path, number: int, arrays: Arrays, note: Mapping[str, Any]) -> str:
    """Writes one file, without waiting for the disk; its name. Raises as ``Keeper.write``."""
    partial, digest = f"{folder}/{_PARTIAL}", hashlib.sha256()
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        for piece in _pieces(arrays, note):
            digest.update(piece)
            file.write(piece)
        file.truncate()
    name = f"{number}-{digest.hexdigest()}.safetensors"
    os.replace(partial, f"{folder}/{name}")
    return name


def _pieces(arrays: Arrays, note: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    head: dict[str, Any] = {"__metadata__": {_NOTE: json.dumps(note)}}
    at, whole = 0, {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in arrays.items()}
    for name, value in whole.items():
        if value.dtype not in _NAMES:
            raise ValueError(f"an array of type {value.dtype} is not kept")
        head[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for value in whole.values():
        if value.nbytes:
            yield value.data.cast("B")


def _files(folder: Path) -> list[tuple[int, Path]]:
    """(round, file), the last written first."""
    try:
        found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return sorted(found, key=lambda item: (item[0], item[1].stat().st_mtime_ns), reverse=True)
    except FileNotFoundError:
        return []


def newest(folder: Path) -> Found | None:
    """(round, arrays, note) of the newest whole file; None if the folder has no file.

    Raises:
        InputError: it has files, and none is whole.
    """
    files = _files(folder)
    for number, path in files:
        if (found := _read(path)) is not None:
            return number, *found
    if files:
        raise InputError(f"{files[0][1]}: the checkpoint is damaged: its bytes do not have the SHA-256 of its name; start a new run.")
    return None


def all_whole(folder: Path) -> Iterator[Found]:
    """Every whole file, the newest first."""
    for number, path in _files(folder):
        if (found := _read(path)) is not None:
            yield number, *found


def _read(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]] | None:
    """Arrays and note; None if the bytes are not those that were written."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
            if digest.hexdigest() != path.name.partition("-")[2].partition(".")[0]:
                return None
            file.seek(0)
            head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            start, arrays = file.tell(), {}
            for name, about in head.items():
                if name != "__metadata__":
                    first, last = about["data_offsets"]
                    file.seek(start + first)
                    values = np.frombuffer(bytearray(file.read(last - first)), dtype=_TYPES[about["dtype"]])
                    arrays[name] = values.reshape(about["shape"])
            return arrays, json.loads(head["__metadata__"][_NOTE])
    except (OSError, ValueError, KeyError, TypeError):
        return None
