"""The rows of an AnnData file (``fedml.cohort.h5ad``) of many features, some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedml.cohort.h5ad import block, features, ids, opened, shape
from fedml.cohort.ids import check_ids
from fedml.cohort.sheet import first_line, indexed
from fedml.cohort.wide.numbers import once, single
from fedml.cohort.wide.stored import Floats
from fedml.errors import InputError

_BLOCK = 1 << 20  # numbers of a block of all features: 8 MiB of float64, of which a few copies exist


def h5ad_rows(
    path: Path, columns: Sequence[str], persons: Sequence[str], id_column: str, folder: Path, found: list[str]
) -> Iterator[Floats]:
    """The ``columns`` of those ``persons`` whom the file has, in the file's order: float32 (some rows, columns). ``found``: gets their ids.

    Raises:
        InputError: the file is not of AnnData's layout, lacks a column, is stored by columns, or holds something else than finite numbers.
    """
    import pandas as pd

    try:
        with opened(path) as file:
            names = features(file)
            cells = ids(file, id_column)
            table = pd.DataFrame({} if cells is None else {id_column: cells}, columns=pd.Index(names) if cells is None else None)
            people = list(indexed(table, id_column, path).index)
            check_ids(persons, people, str(path))
            once(names, columns, path)
            place, wanted = {name: at for at, name in enumerate(names)}, set(persons)
            places = [place[name] for name in columns]
            step, rows = max(1, _BLOCK // max(1, len(names))), shape(file)[0]
            for begin in range(0, rows, step):
                chosen = [at for at in range(begin, min(begin + step, rows)) if people[at] in wanted]
                if chosen:
                    values = block(file, begin, min(begin + step, rows), places)[np.array(chosen) - begin]
                    found += [people[at] for at in chosen]
                    yield np.ascontiguousarray(single(values, columns, path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a table ({first_line(error)}); save it as CSV (UTF-8) or Parquet.") from error
