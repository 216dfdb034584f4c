"""Functions shared by modalities that are a table of numbers: inspecting and writing the file, raw values, texts."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from fedml.cohort.ids import check_ids
from fedml.cohort.inputs import Table
from fedml.cohort.sheet import read_table
from fedml.cohort.standard import standardised
from fedml.errors import InputError
from fedml.modalities.modality import Array, DataSection, InputFinding, Place

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from fedml.networks.variants import TableSpec
    from fedml.study.study import Study

_FEWEST = 5  # persons whose mean and SD standardise them, where the study does not ask for more
_ERRORS = (  # a part of read_table's message, the error without the quoted id or name, and the fix
    ("no such file", "no such file", "correct the path in site.toml"),
    ("has no id", "a row has no id", "give every row its person's id"),
    ("keep one row a person", "an id is in more than one row", "keep one row for each person"),
    ("has no column", "has no column of ids", 'name the column of ids: id = "..." in [data] of site.toml'),
    (" times; keep one", "has its column of ids twice", "keep one"),
    ("", "cannot be read as a table", "save it as CSV (UTF-8) or Parquet that this account may read"),
)


class TableData(DataSection):
    """Path of a table of persons. ``id``: its column of ids, where that is not the site's ``[data] id``."""

    id: str = Field(default="", description="column of ids of this table; empty: [data] id")


def id_of(place: Place[Any]) -> str:
    """The name of the table's column of ids."""
    return place.data.id or place.id_column


def read_or_finding(path: Path, id_column: str, columns: Collection[str] | None = None) -> pd.DataFrame | InputFinding:
    """The table, or its error in a text that quotes no cell. ``columns``: as of ``read_table``."""
    try:
        return read_table(path, id_column, columns)
    except InputError as error:
        _, text, fix = next(row for row in _ERRORS if row[0] in str(error))
        return InputFinding("fail", f"{path}: {text}", fix)


def inspect_table(place: Place[Any], ids: Sequence[str] | None, columns: Collection[str] | None = None) -> InputFinding:
    """Whether the table can be read, and how many of its ids are among ``ids`` (None: not known). ``columns``: to read besides the ids."""
    path = place.folder / place.data.path
    table = read_or_finding(path, id_of(place), columns)
    if isinstance(table, InputFinding):
        return table
    if ids is not None:
        try:
            check_ids(ids, table.index, str(path))
        except InputError:
            fix = "write ids alike in every file, as text (leading zeros, case, prefixes)"
            return InputFinding("fail", f"{path}: ids of persons are spelled in another way than in the persons table", fix)
    if ids is not None and (unknown := int((~table.index.isin(ids)).sum())):
        fix = "check that both tables write ids in the same way (leading zeros, prefixes)"
        return InputFinding("warn", f"{unknown} of {len(table)} ids are not in the persons table and will not be used", fix)
    return InputFinding("ok", f"{len(table)} persons")


def write_table(
    path: Path,
    value: Table,
    ids: Sequence[str],
    categories: Mapping[str, Sequence[Any] | None],
    texts: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Mapping[str, str]:
    """Writes the rows of persons who have the input as CSV; returns its ``path`` for the manifest.

    Args:
        categories: column -> its codes; None: a number. texts: column -> its cells, in the place of numbers or in addition.
    """
    known = list(categories.values())
    cells = [["" if v != v else k[int(v)] if k else v for v, k in zip(row, known, strict=True)] for row in value.values.tolist()]
    columns = dict(zip(categories, zip(*cells, strict=True), strict=True)) | dict(texts) if texts else {}
    cells = [list(row) for row in zip(*columns.values(), strict=True)] if texts else cells
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = ([i, *row] for i, row, has in zip(ids, cells, value.present, strict=True) if has)
        csv.writer(file).writerows([["id", *(columns or categories)], *rows])
    return {"path": path.name}


def raw_table(
    name: str, values: Any, columns: Sequence[str], study: Study, code: Callable[[pd.DataFrame], Array], coded: Collection[int] = ()
) -> dict[str, torch.Tensor]:
    """The tensors of a batch from a table or an array (persons, columns). A person without any value lacks the input.

    If the study's sites standardise themselves, the persons of ``values`` are those of one site. ``coded``: places of categories.

    Raises:
        InputError: as ``code``, or these persons are too few.
    """
    import pandas as pd
    import torch

    table = values if isinstance(values, pd.DataFrame) else pd.DataFrame(np.asarray(values), columns=list(columns))
    numbers = code(table)
    if name in study.cohort.by_site:
        fewest = max(study.policy.min_count, _FEWEST)
        if len(numbers) < fewest:
            raise InputError(
                f'{name}: the study has [cohort] standardise = "site", so the model standardises the persons of one site by their own mean '
                f"and SD: give at least {fewest} of them at once, not {len(numbers)}."
            )
        numbers = standardised(numbers, np.arange(len(numbers)), 1, coded)
    x = torch.from_numpy(numbers.astype(np.float32))
    return {f"{name}_present": (~torch.isnan(x).all(1)).float(), name: x}


def network_text(name: str, spec: TableSpec) -> str:
    """The encoder as text."""
    return f"{name}: {spec.net}" + (f" with hidden widths {', '.join(map(str, spec.hidden))}" if spec.hidden else "")
