"""Writes a site's table with the score of each person as a column, and with the score adjusted for ancestry, so that a study reads them as
any other columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedml.clients.desk.score import Scored
from fedml.clients.site.manifest import Site
from fedml.cohort.ids import check_ids
from fedml.cohort.scores.ancestry import adjusted, read_adjustment
from fedml.cohort.sheet import read_table
from fedml.cohort.table import column, numbers
from fedml.errors import InputError
from fedml.runs.log import write_whole

if TYPE_CHECKING:
    import pandas as pd


def join_scores(site: Site, scored: Scored, join: tuple[Path, str], out: Path) -> str:
    """Writes the table ``join`` with the score as the column named there to ``out``, as CSV; returns a line for the person at the site. The
    cell of a person without genotypes is empty.

    Raises:
        InputError: a file cannot be read or written, or the table has such a column already.
    """
    path, name = join
    table = read_table(path, site.manifest.data.id)
    check_ids(scored.ids, table.index, str(path))
    own = dict(zip(scored.ids, scored.scores.total.tolist(), strict=True))
    values = np.array([own.get(str(person), np.nan) for person in table.index], np.float64)
    _write(site, path, table, {name: values}, out)
    return f"{out}: {path.name} with the column {name}, {int(np.isfinite(values).sum())} of {len(values)} persons have a score"


def adjust_scores(site: Site, adjustment_file: Path, join: tuple[Path, str], out: Path) -> str:
    """Writes the table ``join`` with COLUMN_adjusted, and COLUMN_squared: the square of the score less its mean, from which a study
    estimates the variance. The cells of a person without the score or a component are empty.

    Raises:
        InputError: a file cannot be read or written, the table has such a column already, or lacks the score or a component.
    """
    path, name = join
    table, adjustment = read_table(path, site.manifest.data.id), read_adjustment(adjustment_file)
    score, *parts = (
        numbers(column(table, one, path, str(adjustment_file)), path, booleans=False) for one in (name, *adjustment.columns)
    )  # fmt: skip
    found = adjusted(score, np.column_stack(parts), adjustment)
    _write(site, path, table, {f"{name}_adjusted": found.value, f"{name}_squared": found.squared}, out)
    lost = int((np.isfinite(score) & ~np.isfinite(found.value)).sum())
    what = "mean and variance" if adjustment.variance is not None else "the mean alone"
    why = f"; empty for {lost} persons, without a component or too far from the rest" if lost else ""
    return f"{out}: {path.name} with {name}_adjusted, by {what}{why}"


def _write(site: Site, path: Path, table: pd.DataFrame, columns: Mapping[str, Any], out: Path) -> None:
    for name, values in columns.items():
        if name in table.columns:
            raise InputError(f'{path}: has a column "{name}" already; give a table without it.')
        table[name] = [repr(cell) if np.isfinite(cell) else "" for cell in values.tolist()]
    text = table.to_csv(index_label=site.manifest.data.id, lineterminator="\n")
    try:
        write_whole(out, text.encode(), mode=0o600)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); give --out another file.") from error
