"""Every record that may cross the wire, and how arrays are packed: NumPy's ``.npy`` bytes, never a pickle.

To a site go ``arrays`` (what was learned so far), ``agreement`` (what the sites agreed on: panel and its orientation at each site, image
shape, preprocessing constants), ``analysis`` (what an analysis of genotypes has found so far) and ``config`` (study, phase, round). What
comes from a site, by phase: ``fedml.contract.replies``.

With each reply of a site that keeps a journal goes ``journal``: the head of its chain and how many entries it has.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, RecordDict

if TYPE_CHECKING:
    pass

# torch warns that memory of a message cannot be written to; nothing writes to it.
warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")

ARRAYS, AGREEMENT, CONFIG, METRICS, COUNTS = "arrays", "agreement", "config", "metrics", "counts"
SITE, DESCRIBED, SUMS, JOURNAL = "site", "described", "sums", "journal"
PANEL, IMAGE_SHAPE, PERSONS = "panel", "image_shape", "persons"
VOXELS, HISTOGRAM, WINDOW = (
    "voxels",
    "histogram",
    "preprocess.image.window",
)  # raw intensities; what all sites' gave
FLIPS, BUILD, NOTES, CHECKED = "flips", "build", "notes", "checked"  # of variants: orientation, genome build, what was done to the file
POLICY, DATASET, ASIDE = "policy", "dataset", "aside"  # what a site says of itself: ``fedml.contract.disclosure``
ANALYSIS = "analysis"  # what the sums of one step of an analysis are taken with, and those sums
NUM_EXAMPLES = "num-examples"  # Flower's own strategies weight by this key
_STYPE = "numpy.ndarray"
_KINDS = "iufb"  # integers, floats, booleans: no objects, no text


class Phase(StrEnum):
    """What a message asks of a site."""

    DESCRIBE = "describe"
    VOXELS = "voxels"
    STATISTICS = "statistics"
    ROUND = "round"
    EVALUATE = "evaluate"
    GENOTYPES = "genotypes"
    COVARIATES = "covariates"
    SUBSPACE = "subspace"
    NULL = "null"
    ASSOCIATION = "association"
    FIT = "fit"


# Steps of an analysis of genotypes: sums go up, nothing is trained (``fedml.analytics.forms``).
ANALYSES = frozenset({Phase.GENOTYPES, Phase.COVARIATES, Phase.SUBSPACE, Phase.NULL, Phase.ASSOCIATION, Phase.FIT})


# What a message to a site may hold: its records by phase, its config's keys and their types. What a study's algorithm adds to a round is
# declared by the algorithm (``fedml.contract.extras``). Nothing else is read.
REQUEST_RECORDS: dict[Phase, set[str]] = {
    Phase.DESCRIBE: {CONFIG},
    Phase.VOXELS: {CONFIG, AGREEMENT},
    Phase.STATISTICS: {CONFIG, AGREEMENT},
    Phase.ROUND: {CONFIG, AGREEMENT, ARRAYS},
    Phase.EVALUATE: {CONFIG, AGREEMENT, ARRAYS},
    **{phase: {CONFIG, AGREEMENT, ANALYSIS} for phase in ANALYSES},
}
REQUEST_CONFIG: dict[str, type] = {"study": str, "phase": str, "round": int, "server-round": int}
COUNTED_ROUND = "counted-round"  # where sites keep state: the last round in which the site's reply was counted, 0 for none
REPLY_METRICS: dict[str, type] = {NUM_EXAMPLES: int, "loss-sum": float, "seen": int, "steps": int, "train_loss": float}
# Under privacy of one patient: the number that the study states, and nothing of the training.
PRIVATE_METRICS: dict[str, type] = {NUM_EXAMPLES: int}


@lru_cache(maxsize=4096)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue()


@lru_cache(maxsize=4096)
def _read_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of a ``.npy`` header of version 1; ``ValueError`` for anything a record does not hold."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("array header is not version 1.0")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # NumPy lets out what its parser meets: TypeError, IndexError, TokenError, RecursionError
        raise ValueError(f"array header cannot be read: {type(error).__name__}") from error
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("array header has no plain shape")
    if dtype.kind not in _KINDS or fortran:
        raise ValueError(f"array of type {dtype} is not a plain number array")
    return dtype, shape


def pack_array(values: npt.NDArray[Any]) -> Array:
    """One array as Flower's ``Array``, with one copy of its memory."""
    values = np.asarray(values, order="C")
    if values.dtype.kind not in _KINDS:
        raise ValueError(f"array of type {values.dtype} is not a plain number array")
    data = b"".join((_header(values.dtype.str, values.shape), values.data.cast("B") if values.size else b""))
    return Array(str(values.dtype), values.shape, _STYPE, data)


def unpack_array(array: Array) -> npt.NDArray[Any]:
    """A read-only view of the array's bytes.

    Raises:
        ValueError: the bytes are not a plain number array of exactly the length that their header says.
    """
    data = array.data
    if array.stype != _STYPE or len(data) < 12:
        raise ValueError("array is not in NumPy's format")
    start = 10 + int.from_bytes(data[8:10], "little")
    dtype, shape = _read_header(bytes(data[:start]))
    count = math.prod(shape)
    if len(data) - start != count * dtype.itemsize:
        raise ValueError(f"array holds {len(data) - start} bytes, its header says {count * dtype.itemsize}")
    return np.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(shape)


def pack(values: Mapping[str, Any]) -> ArrayRecord:
    """Arrays or CPU tensors by name as a record."""
    plain = {k: v.detach().numpy() if hasattr(v, "detach") else np.asarray(v) for k, v in values.items()}
    return ArrayRecord({k: pack_array(v) for k, v in plain.items()})


def unpack(record: Mapping[str, Array]) -> dict[str, npt.NDArray[Any]]:
    """The inverse of ``pack``: read-only views by name. Raises ``ValueError`` as ``unpack_array`` does."""
    return {k: unpack_array(v) for k, v in record.items()}


def unpack_tensors(record: Mapping[str, Array]) -> dict[str, Any]:
    """The record as torch tensors that share the message's memory: read them, do not write."""
    import torch

    return {k: torch.from_numpy(v) for k, v in unpack(record).items()}


def size_bytes(content: RecordDict) -> int:
    """Bytes of the arrays in a message: what counts of its size on the wire."""
    return sum(len(a.data) for record in content.array_records.values() for a in record.values())
