"""The rows of a Parquet file of many columns: read by columns, as the file has them, and turned to rows through a file on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cache_entries import writing
from fedml.cohort.ids import check_ids
from fedml.cohort.sheet import first_line, frame_of, indexed
from fedml.cohort.wide.numbers import once, single
from fedml.cohort.wide.stored import Floats
from fedml.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

_BLOCK = 1 << 21  # numbers that are in memory at once: 8 MiB of float32, of which a few copies exist
_TURNED = "columns.bin"


class _Piece(NamedTuple):
    """A part of the file on disk: ``rows`` from ``row`` on of ``width`` columns from ``start`` on, row after row, from byte ``offset``."""

    row: int
    rows: int
    start: int
    width: int
    offset: int


def parquet_rows(
    path: Path, columns: Sequence[str], persons: Sequence[str], id_column: str, folder: Path, found: list[str]
) -> Iterator[Floats]:
    """The ``columns`` of those ``persons`` whom the file has, in the file's order: float32 (some rows, columns). ``found``: gets their ids.

    The parts read are kept in a file in ``folder`` until all columns of a row are there; it takes as much room as the result.

    Raises:
        InputError: the file is no Parquet file, lacks a column, or holds something else than finite numbers.
        Unwritable: the folder cannot be written.
    """
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = [str(name) for name in file.schema_arrow.names]
        ids = [str(person) for person in indexed(_ids(file, names, id_column), id_column, path).index]
        check_ids(persons, ids, str(path))
        once(names, columns, path)
        wanted = set(persons)
        kept = np.array([person in wanted for person in ids], dtype=bool)
        found += [person for person, there in zip(ids, kept.tolist(), strict=True) if there]
        with writing():
            turned = (folder / _TURNED).open("wb+")
        with turned:
            pieces = list(_by_columns(file, path, columns, kept, turned))
            yield from _by_rows(pieces, len(found), len(columns), turned)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these types
        raise InputError(f"{path}: cannot be read as a table ({first_line(error)}); save it as CSV (UTF-8) or Parquet.") from error
    finally:
        with writing():
            (folder / _TURNED).unlink(missing_ok=True)


def _ids(file: parquet.ParquetFile, names: Sequence[str], id_column: str) -> pa.Table:
    """The columns named ``id_column``; without one, no row of all columns, of which the error tells the names."""
    import pandas as pd

    if id_column not in names:
        return pd.DataFrame(columns=pd.Index(names))
    table = file.read(columns=[id_column], use_threads=False)
    return frame_of(table.select([at for at, name in enumerate(table.column_names) if name == id_column]))


def _by_columns(
    file: parquet.ParquetFile, path: Path, columns: Sequence[str], kept: npt.NDArray[np.bool_], turned: IO[bytes]
) -> Iterator[_Piece]:
    """Reads a few columns of a row group at a time and writes the rows of ``kept`` to ``turned``."""
    first = row = offset = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        chosen = kept[first : first + rows]
        count, step = int(chosen.sum()), max(1, _BLOCK // max(rows, 1))
        for start in range(0, len(columns) if rows else 0, step):
            names = list(columns[start : start + step])
            # By name twice, because "a" also reads the columns "a.b".
            table = file.read_row_group(group, columns=names, use_threads=False).select(names)
            block = np.ascontiguousarray(_numbers(table, path)[chosen])
            with writing():
                turned.write(block.data)
            yield _Piece(row, count, start, len(names), offset)
            offset += block.nbytes
        first, row = first + rows, row + count
    with writing():
        turned.flush()


def _numbers(table: pa.Table, path: Path) -> Floats:
    """float32 (rows, columns) of the columns, NaN where missing."""
    import pyarrow as pa

    if len({field.type for field in table.schema}) == 1 and table.schema.field(0).type in (pa.float32(), pa.float64()):
        whole = table.combine_chunks().to_batches()[0].to_tensor(null_to_nan=True).to_numpy()
        return single(whole, table.column_names, path)
    from fedml.cohort.table import numbers

    frame = frame_of(table)
    values = [numbers(frame.iloc[:, at], path, booleans=False) for at in range(frame.shape[1])]
    return single(np.stack(values, axis=1), table.column_names, path)


def _by_rows(pieces: Sequence[_Piece], rows: int, columns: int, turned: IO[bytes]) -> Iterator[Floats]:
    """The rows of all columns, some at a time."""
    step = max(1, _BLOCK // columns)
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        out = np.full((end - begin, columns), np.nan, np.float32)
        for piece in pieces:
            low, high = max(begin, piece.row), min(end, piece.row + piece.rows)
            if low < high:
                size, at = (high - low) * piece.width * 4, piece.offset + (low - piece.row) * piece.width * 4
                part = np.frombuffer(os.pread(turned.fileno(), size, at), np.float32)
                out[low - begin : high - begin, piece.start : piece.start + piece.width] = part.reshape(high - low, piece.width)
        yield out
