"""AnnData files (``.h5ad``): ids of persons from ``obs``, names of features from ``var``, numbers from ``X``.

    with opened(Path("expression.h5ad")) as file:
        features(file)                       # names, in the file's order
        ids(file, "id")                      # a person each, or None where obs has no such column
        block(file, 0, 100, [0, 5])          # float64 (100 persons, 2 features)

Layout: https://anndata.readthedocs.io/en/stable/fileformat-prose.html. It is read with h5py, an optional package: AnnData itself, in its
releases for Python 3.11, wants an older pandas than this project. What a sparse ``X`` does not store is a 0, as in AnnData.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.errors import InputError

SUFFIX = ".h5ad"


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, open for reading (``h5py.File``).

    Raises:
        InputError: h5py is not installed.
        OSError, ValueError: there is no such file, or it (or what is done with it) is not of the layout.
    """
    try:
        import h5py
    except ImportError as error:
        fix = "pip install h5py, or save the table as Parquet: adata.to_df().to_parquet(...)"
        raise InputError(f"{path}: reading .h5ad needs the package h5py; {fix}.") from error
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:  # h5py's, for what is missing or of another kind
        raise ValueError(f"it is not of AnnData's layout: {error}") from error


def features(file: Any) -> list[str]:
    """Names of the columns of ``X``."""
    names = _cells(file["var"], _index(file["var"]))
    if len(names) != shape(file)[1]:
        raise ValueError(f"var names {len(names):,} features, X has {shape(file)[1]:,}")
    return [str(name).strip() for name in names]


def ids(file: Any, id_column: str) -> list[Any] | None:
    """What ``obs`` has in ``id_column``, a cell each person; without such a column its index, if that has this name or ``id`` is asked for;
    else None."""
    obs = file["obs"]
    index = _index(obs)
    name = id_column if id_column in obs else index if id_column in ("id", index) else None
    if name is None:
        return None
    found = _cells(obs, name)
    if len(found) != shape(file)[0]:
        raise ValueError(f"obs has {len(found):,} rows, X has {shape(file)[0]:,}")
    return found


def block(file: Any, begin: int, end: int, places: Sequence[int]) -> npt.NDArray[np.float64]:
    """(rows ``begin`` to ``end``, the columns at ``places``) of ``X``, float64.

    Raises:
        ValueError: ``X`` is stored by columns and some of its rows are asked for; or is of no kind that is known.
    """
    values, (rows, columns) = file["X"], shape(file)
    if hasattr(values, "dtype"):
        return np.asarray(values[begin:end][:, list(places)], np.float64)
    from scipy import sparse

    kind = _kind(values)
    if kind == "csc_matrix" and (begin, end) != (0, rows):
        raise ValueError("X is stored by columns, and is too large for memory; save it by rows: adata.X = adata.X.tocsr()")
    if kind not in ("csr_matrix", "csc_matrix"):
        raise ValueError(f'X is of the kind "{kind}"; save it as an array or by rows: adata.X = adata.X.tocsr()')
    starts = np.asarray(values["indptr"][:] if kind == "csc_matrix" else values["indptr"][begin : end + 1], np.int64)
    first, last = (int(starts[0]), int(starts[-1])) if len(starts) else (0, 0)
    parts = (np.asarray(values["data"][first:last], np.float64), values["indices"][first:last], starts - first)
    found = (sparse.csr_matrix if kind == "csr_matrix" else sparse.csc_matrix)(parts, shape=(end - begin, columns))
    found.check_format(full_check=True)  # an index beyond the shape
    chosen: npt.NDArray[np.float64] = found[:, list(places)].toarray()
    return chosen


def shape(file: Any) -> tuple[int, int]:
    """(persons, features) of ``X``."""
    values = file["X"]
    found = values.shape if hasattr(values, "dtype") else values.attrs["shape"]
    if len(found) != 2:
        raise ValueError("X is no matrix")
    return int(found[0]), int(found[1])


def _kind(group: Any) -> str:
    kind = group.attrs.get("encoding-type", "")
    return kind.decode() if isinstance(kind, bytes) else str(kind)


def _index(frame: Any) -> str:
    """The name of the index in ``obs`` or ``var``."""
    if hasattr(frame, "dtype"):
        raise ValueError("it was written by an AnnData before 0.7; read and write it with a newer one")
    name = frame.attrs["_index"]
    return name.decode() if isinstance(name, bytes) else str(name)


def _cells(frame: Any, name: str) -> list[Any]:
    """A column of ``obs`` or ``var``: text, numbers, categories, or either with gaps (None)."""
    column = frame[name]
    if hasattr(column, "dtype"):
        return list(column.asstr()[:]) if column.dtype.kind in "OS" else column[:].tolist()
    kind = _kind(column)
    if kind == "categorical":
        levels = [*_cells(column, "categories"), None]
        codes = column["codes"][:]
        return [levels[code if code >= 0 else -1] for code in codes.tolist()]
    if kind.startswith("nullable-"):
        return [None if gap else cell for cell, gap in zip(_cells(column, "values"), column["mask"][:].tolist(), strict=True)]
    raise ValueError(f'column "{name}" is of the kind "{kind}"; write it as text')
