"""The records of all messages, and the encoding of arrays: NumPy's ``.npy`` bytes, never a pickle.

A request to a site may have ``arrays`` (the model), ``agreement`` (panel and its orientation at each site, image shape, preprocessing
constants), ``analysis`` (state of a genotype analysis) and ``config`` (study, phase, round). Replies by phase: ``fedml.contract.replies``.

A site that keeps a journal adds ``journal`` to each reply: the hash of its last entry and its number of entries.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedml.wire.phases import Phase as Phase

# torch warns that a message's memory is read-only, which is safe because nothing writes to it.
warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")

ARRAYS, AGREEMENT, CONFIG, METRICS, COUNTS = "arrays", "agreement", "config", "metrics", "counts"
SITE, DESCRIBED, SUMS, JOURNAL = "site", "described", "sums", "journal"
PANEL, IMAGE_SHAPE, PERSONS = "panel", "image_shape", "persons"
VOXELS, HISTOGRAM, WINDOW = (
    "voxels",
    "histogram",
    "preprocess.image.window",
)  # histogram of raw intensities; the window computed from all sites' histograms
CLASS_WEIGHTS = "class_weights"  # of an agreement: computed from the training persons of all sites
FLIPS, BUILD, NOTES, CHECKED = "flips", "build", "notes", "checked"  # of variants: orientation, build, normalisation counts, REF checked
POLICY, DATASET, EXCLUDED = "policy", "dataset", "excluded"  # policy, data set digest, excluded persons (``fedml.contract.disclosure``)
ANALYSIS = "analysis"  # arrays of a request in one step of an analysis, and the sums in its reply
NUM_EXAMPLES = "num-examples"  # Flower's own strategies weight by this key
_STYPE = "numpy.ndarray"
_VIEW = "_fedml_view"  # of an ``Array``: its bytes and what they were read as
Kind = TypeVar("Kind", ArrayRecord, ConfigRecord, MetricRecord)
_KINDS = "iufb"  # integers, floats, booleans: no objects, no text


# Phases of an analysis: sites send sums, no model is trained (``fedml.analytics.forms``).
POLYGENIC = frozenset({Phase.FOLDS, Phase.BLOCKS, Phase.LEVEL, Phase.RIDGE})  # of a whole-genome regression
OUTCOMES = frozenset({  # of an analysis of outcomes (``fedml.analytics.outcome_forms``)
    Phase.GRID, Phase.TIMES, Phase.MOMENTS, Phase.HAZARD, Phase.SCORE, Phase.MEANS, Phase.RESIDUALS, Phase.ALONE, Phase.REGRESSION,
    Phase.DESCRIPTION, Phase.WEIGHTED, Phase.CENSORING, Phase.TREATED, Phase.STANDARDISED,
})  # fmt: skip
ANALYSES = POLYGENIC | OUTCOMES | {
    Phase.GENOTYPES, Phase.COVARIATES, Phase.SUBSPACE, Phase.NULL, Phase.ASSOCIATION, Phase.FIT, Phase.GENES, Phase.FREQUENCIES,
}  # fmt: skip


# Permitted contents of a request: its records by phase, its config's keys and their types. The study's algorithm declares what it adds to a
# round (``fedml.contract.extras``). A site reads nothing else.
REQUEST_RECORDS: dict[Phase, set[str]] = {
    Phase.DESCRIBE: {CONFIG},
    Phase.VOXELS: {CONFIG, AGREEMENT},
    Phase.STATISTICS: {CONFIG, AGREEMENT},
    Phase.ROUND: {CONFIG, AGREEMENT, ARRAYS},
    Phase.EVALUATE: {CONFIG, AGREEMENT, ARRAYS},
    **{phase: {CONFIG, AGREEMENT, ANALYSIS} for phase in ANALYSES},
}
RESUMES = "resumes"  # of a run that goes on after it stopped: Flower's number of the run with which it began
REQUEST_CONFIG: dict[str, type] = {"study": str, "phase": str, "round": int, "server-round": int, RESUMES: str}
COUNTED_ROUND = "counted-round"  # where sites keep state: the last round in which the site's reply was counted, 0 for none
REPLY_METRICS: dict[str, type] = {NUM_EXAMPLES: int, "loss-sum": float, "seen": int, "steps": int, "train_loss": float}
# Under patient-level privacy: the number of persons that the study states, and no training metric.
PRIVATE_METRICS: dict[str, type] = {NUM_EXAMPLES: int}


@lru_cache(maxsize=4096)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue()


_dtype_name = lru_cache(maxsize=64)(str)  # NumPy forms the name anew each time


@lru_cache(maxsize=4096)
def _read_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape from a ``.npy`` header of version 1.

    Raises:
        ValueError: the header is invalid, or its type or memory order is not permitted in a record.
    """
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("array header is not version 1.0")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # NumPy's parser raises TypeError, IndexError, TokenError, RecursionError and others
        raise ValueError(f"array header cannot be read: {type(error).__name__}") from error
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("array header has an invalid shape")
    if dtype.kind not in _KINDS or fortran:
        raise ValueError(f"array of type {dtype} is not a plain number array")
    return dtype, shape


def pack_array(values: npt.NDArray[Any]) -> Array:
    """An array as Flower's ``Array``; copies the memory once.

    Raises:
        ValueError: the type is not integer, float or boolean.
    """
    values = np.asarray(values, order="C")
    if values.dtype.kind not in _KINDS:
        raise ValueError(f"array of type {values.dtype} is not a plain number array")
    data = b"".join((_header(values.dtype.str, values.shape), values.data.cast("B") if values.size else b""))
    return Array(_dtype_name(values.dtype), values.shape, _STYPE, data)


def unpack_array(array: Array) -> npt.NDArray[Any]:
    """A read-only view of the array's bytes.

    Raises:
        ValueError: the bytes are not a numeric array of exactly the length that their header gives.
    """
    data = array.data
    kept = getattr(array, _VIEW, None)
    if kept is not None and kept[0] is data:
        return kept[1]  # type: ignore[no-any-return]
    if array.stype != _STYPE or len(data) < 12:
        raise ValueError("array is not in NumPy's format")
    start = 10 + int.from_bytes(data[8:10], "little")
    dtype, shape = _read_header(bytes(data[:start]))
    count = math.prod(shape)
    if len(data) - start != count * dtype.itemsize:
        raise ValueError(f"array has {len(data) - start} bytes, its header says {count * dtype.itemsize}")
    values = np.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(shape)
    setattr(array, _VIEW, (data, values))  # server and site check the same bytes several times
    return values


def pack(values: Mapping[str, Any]) -> ArrayRecord:
    """Arrays or CPU tensors by name as a record."""
    out = ArrayRecord()  # filled one by one: of a dictionary Flower makes another copy of each array
    for key, value in values.items():
        out[key] = pack_array(value.detach().numpy() if hasattr(value, "detach") else np.asarray(value))
    return out


def unpack(record: Mapping[str, Array]) -> dict[str, npt.NDArray[Any]]:
    """The inverse of ``pack``: read-only views by name. Raises ``ValueError`` as ``unpack_array`` does."""
    return {k: unpack_array(v) for k, v in record.items()}


def unpack_tensors(record: Mapping[str, Array]) -> dict[str, Any]:
    """The record as torch tensors that share the message's memory; do not write to them."""
    import torch

    return {k: torch.from_numpy(v) for k, v in unpack(record).items()}


# ``content.array_records`` and the like copy all records of a message at every use, which takes longer than reading a small model.
def array_record(content: RecordDict, name: str) -> ArrayRecord:
    """The arrays under ``name``. Raises ``KeyError`` if there are none: no record, or one of another kind."""
    return _record(content, name, ArrayRecord)


def config_record(content: RecordDict, name: str) -> ConfigRecord:
    """The config under ``name``. Raises ``KeyError`` if there is none."""
    return _record(content, name, ConfigRecord)


def metric_record(content: RecordDict, name: str) -> MetricRecord:
    """The metrics under ``name``. Raises ``KeyError`` if there are none."""
    return _record(content, name, MetricRecord)


def holds(content: RecordDict, name: str, kind: type[Any]) -> bool:
    """Whether ``content`` has a record of this kind under ``name``."""
    return name in content and isinstance(content[name], kind)


def _record(content: RecordDict, name: str, kind: type[Kind]) -> Kind:
    found = content[name]
    if not isinstance(found, kind):
        raise KeyError(name)
    return found


def size_bytes(content: RecordDict) -> int:
    """Bytes of all arrays in a message, which is nearly its size on the wire."""
    return sum(len(a.data) for record in content.values() if isinstance(record, ArrayRecord) for a in record.values())
