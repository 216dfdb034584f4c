"""What modalities that are a table of numbers share: looking at its file, writing it, raw values of it, words."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedml.cohort.inputs import Table
from fedml.cohort.table import read_table
from fedml.errors import InputError
from fedml.modalities.modality import Array, Look

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from fedml.networks.variants import TableSpec

_FAULTS = (  # what read_table's sentence holds, and the same without the id or the name that it quotes
    ("no such file", "no such file", "correct the path in site.toml"),
    ("has no id", "a row has no id", "give every row its person's id"),
    ("keep one row a person", "an id stands in more than one row", "keep one row a person"),
    ("has no column", 'has no column "id"', 'give each person\'s id in a column named "id"'),
    ("", "cannot be read as a table", "save it as CSV (UTF-8) or Parquet that this account may read"),
)


def read_or_fault(path: Path) -> pd.DataFrame | Look:
    """The table, or what is wrong with it in words that quote none of its cells."""
    try:
        return read_table(path)
    except InputError as error:
        _, text, mend = next(fault for fault in _FAULTS if fault[0] in str(error))
        return Look("fail", f"{path}: {text}", mend)


def inspect_table(path: Path, ids: Sequence[str] | None) -> Look:
    """Whether the table can be read, and how many of its ids are among ``ids`` (None: not known)."""
    table = read_or_fault(path)
    if isinstance(table, Look):
        return table
    if ids is not None and (strangers := int((~table.index.isin(ids)).sum())):
        mend = "see whether both tables write ids alike (leading zeros, prefixes)"
        return Look("warn", f"{strangers} of {len(table)} ids are not in the persons table and will not be used", mend)
    return Look("ok", f"{len(table)} persons")


def write_table(path: Path, value: Table, ids: Sequence[str], categories: Mapping[str, Sequence[Any] | None]) -> Mapping[str, str]:
    """The rows of who is present as CSV; returns its ``path`` for the manifest. ``categories``: column -> its codes, None for a number."""
    known = list(categories.values())
    cells = [["" if v != v else k[int(v)] if k else v for v, k in zip(row, known, strict=True)] for row in value.values.tolist()]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = ([i, *row] for i, row, has in zip(ids, cells, value.present, strict=True) if has)
        csv.writer(file).writerows([["id", *categories], *rows])
    return {"path": path.name}


def raw_table(name: str, values: Any, columns: Sequence[str], code: Callable[[pd.DataFrame], Array]) -> dict[str, torch.Tensor]:
    """A table or an array (persons, columns) as a batch has it; a person whose values are all missing lacks the input."""
    import pandas as pd
    import torch

    table = values if isinstance(values, pd.DataFrame) else pd.DataFrame(np.asarray(values), columns=list(columns))
    x = torch.from_numpy(code(table).astype(np.float32))
    return {f"{name}_present": (~torch.isnan(x).all(1)).float(), name: x}


def network_text(name: str, spec: TableSpec) -> str:
    """The encoder in words."""
    return f"{name}: {spec.net}" + (f" with hidden widths {', '.join(map(str, spec.hidden))}" if spec.hidden else "")
