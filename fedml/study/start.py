"""Weights from which a study begins, pinned: the digest of each array is part of the study, its bytes are not.

[model]
start = "last-year.safetensors"       # reading the study turns it into shapes and digests
start_arrays = ["encoder.image.*"]    # patterns of names; default: all

The server sends these arrays with the first round, and a site's gate compares them with the digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedml.errors import InputError, nearest
from fedml.study import limits
from fedml.study.section import Section

FILE = "start.safetensors"  # in a run's folder and in a bundle
_CONSTANTS = ("preprocess.", "target.")  # follow from the sites' sums; never taken over
_LARGEST = 8 * limits.PARAMETERS  # bytes
_KNOWN: dict[str, Path] = {}  # SHA-256 of a file -> where it is


class StartArray(Section):
    """One array of the file."""

    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=2**31)], ...], Field(max_length=8)] = Field(description="its shape")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="SHA-256 of its bytes, float32")


class Start(Section):
    """What the study pins of the file."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="SHA-256 of the file")
    arrays: Annotated[dict[str, StartArray], Field(min_length=1, max_length=10_000)] = Field(
        description="name of each array that is taken over -> its shape and digest"
    )

    def __hash__(self) -> int:
        return hash(self.sha256)


def array_digest(array: npt.NDArray[Any]) -> str:
    """SHA-256 of an array's bytes as float32, in C order."""
    return hashlib.sha256(np.ascontiguousarray(array, np.float32).tobytes()).hexdigest()


def read_start(path: Path, patterns: Sequence[str]) -> dict[str, Any]:
    """``[model] start`` of the study from a file of weights.

    Raises:
        InputError: the file cannot be read, or no array has a name that matches.
    """
    arrays, digest = _load(path)
    learned = {name: array for name, array in arrays.items() if not name.startswith(_CONSTANTS)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in learned):
            raise InputError(f'{path}: no array matches start_arrays "{pattern}"{nearest(pattern, learned)}; it has {_some(learned)}.')
    chosen = {name: array for name, array in learned.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    _KNOWN[digest] = path.resolve()
    return {"sha256": digest, "arrays": {n: {"shape": list(a.shape), "sha256": array_digest(a)} for n, a in chosen.items()}}


def _some(names: Mapping[str, Any]) -> str:
    return ", ".join(list(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _load(path: Path) -> tuple[dict[str, npt.NDArray[np.float32]], str]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path}: has more than {_LARGEST:,} bytes; a model has at most {limits.PARAMETERS:,} weights.")
        data = path.read_bytes()
        arrays = load(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); [model] start names it.") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not a file of weights in the format safetensors ({error}); give a model.safetensors.") from error
    for name, array in arrays.items():
        if array.dtype.kind == "f" and array.dtype != np.float32:
            raise InputError(f"{path}: {name} is {array.dtype}; save the weights as float32.")
    floats = {name: array for name, array in arrays.items() if array.dtype == np.float32}
    return floats, hashlib.sha256(data).hexdigest()


def load_start(start: Start, run: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The pinned arrays, from the run's folder or from where the study's reader found the file.

    Raises:
        InputError: the file is not there, or is another one.
    """
    path = run / FILE if (run / FILE).is_file() else _KNOWN.get(start.sha256)
    if path is None:
        raise InputError(f"[model] start: the file with SHA-256 {start.sha256[:12]}.. is not here; read the study from its file.")
    arrays, digest = _load(path)
    if digest != start.sha256:
        raise InputError(f"{path}: is not the file that the study pins in [model] start; put that one there.")
    return {name: arrays[name] for name in start.arrays}


def write_start(start: Start | None, run: Path) -> None:
    """Copies the file into a run's folder, for the processes and readers of the run.

    Raises:
        InputError: as ``load_start``.
    """
    if start is not None and not (run / FILE).is_file():
        load_start(start, run)
        (run / FILE).write_bytes(_KNOWN[start.sha256].read_bytes())


def with_start(start: Start | None, first: Mapping[str, npt.NDArray[Any]], received: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """The weights with which a study begins, as a site can tell: ``first`` by the seed, and pinned arrays as received where their digest is
    the study's."""
    found = dict(first)
    for name, pin in (start.arrays if start is not None else {}).items():
        if name in found and name in received and found[name].shape == received[name].shape == pin.shape:
            found[name] = received[name] if array_digest(received[name]) == pin.sha256 else found[name]
    return found


def taken_over(start: Start | None, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """The names of the model's arrays that begin as the file's: of the same name and shape."""
    pinned = start.arrays if start is not None else {}
    return [name for name, pin in pinned.items() if name in shapes and tuple(shapes[name]) == pin.shape]
