"""Converts a matrix to rows of float32 in a cache entry, as a process of its own: ``python -m fedml.cohort.wide.convert`` (the job as JSON
on standard input, ``{}`` or what went wrong as JSON on standard output).

However large the matrix, a part of it is in memory: a few columns of a Parquet file, or a few rows of a text file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedml.cache_entries import Unwritable, writing
from fedml.cohort.h5ad import SUFFIX
from fedml.cohort.wide.h5ad import h5ad_rows
from fedml.cohort.wide.parquet import parquet_rows
from fedml.cohort.wide.stored import SMALL_FILES, VALUES, Floats, digests_of, write_header
from fedml.cohort.wide.text import text_rows
from fedml.errors import InputError
from fedml.flower.parent import end_with_parent


@dataclass(frozen=True)
class Job:
    """The ``columns`` of ``persons`` from the matrix at ``path``, into the existing folder ``folder``."""

    path: str
    columns: tuple[str, ...]
    persons: tuple[str, ...]
    id_column: str
    folder: str


def convert(job: Job) -> None:
    """Writes the files that ``fedml.cohort.wide.stored.Stored`` reads. Rows of others than ``persons`` are left out.

    Raises:
        InputError: the matrix cannot be read, lacks a column, or holds something else than finite numbers.
        Unwritable: the folder cannot be written.
    """
    path, folder, found = Path(job.path), Path(job.folder), list[str]()
    read = {".parquet": parquet_rows, SUFFIX: h5ad_rows}.get(path.suffix, text_rows)
    digests, known = _write(folder, len(job.columns), read(path, job.columns, job.persons, job.id_column, folder, found))
    row_of = {person: row for row, person in enumerate(found)}
    rows = np.array([row_of.get(person, -1) for person in job.persons], np.int64)
    with writing():
        for name, values in zip(SMALL_FILES, (digests, known, rows), strict=True):
            with (folder / name).open("wb") as file:
                np.lib.format.write_array(file, values, allow_pickle=False)


def _write(folder: Path, columns: int, blocks: Iterator[Floats]) -> tuple[np.ndarray, np.ndarray]:
    """Writes the rows of ``blocks``, each float32 (some rows, columns); returns each row's SHA-256 and its count of numbers."""
    digests, known = [np.zeros((0, 32), np.uint8)], [np.zeros(0, np.int64)]
    with writing():
        file = (folder / VALUES).open("wb")
        begin = write_header(file, 0, columns)
    with file:
        for block in blocks:
            digests.append(digests_of(block))
            known.append((~np.isnan(block)).sum(1))
            with writing():
                file.write(block.data)
        with writing():
            file.seek(0)
            if write_header(file, sum(map(len, known)), columns) != begin:
                raise ValueError("the header has another length with the number of rows")
            file.flush()
    return np.concatenate(digests), np.concatenate(known)


def main() -> None:
    """Converts the job on standard input."""
    end_with_parent()  # a site that is killed leaves no process that goes on writing
    plan = json.load(sys.stdin)
    try:
        convert(Job(plan["path"], tuple(plan["columns"]), tuple(plan["persons"]), plan["id_column"], plan["folder"]))
        answer = {}
    except InputError as error:
        answer = {"error": str(error)}
    except Unwritable as error:
        answer = {"unwritable": str(error)}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # a thread of pyarrow's that lets go of a Python object while the interpreter ends would abort the process


if __name__ == "__main__":
    main()
