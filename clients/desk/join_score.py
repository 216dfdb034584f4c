"""Writes a site's table with the score of each person as a column, so that a study reads it as any other column."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedml.clients.desk.score import Scored
from fedml.clients.site.manifest import Site
from fedml.cohort.ids import check_ids
from fedml.cohort.scores.ancestry import adjusted, read_adjustment
from fedml.cohort.sheet import read_table
from fedml.cohort.table import column, numbers
from fedml.errors import InputError
from fedml.runs.log import write_whole


def join_scores(site: Site, scored: Scored, join: tuple[Path, str], adjust: Path | None, out: Path) -> list[str]:
    """Writes the table ``join`` with the column named there to ``out``, as CSV; returns lines for the person at the site.

    With ``adjust`` also COLUMN_adjusted, and COLUMN_squared: the square of the score less its mean, from which a study estimates the
    variance. The cell of a person without genotypes, or without the components, is empty.

    Raises:
        InputError: a file cannot be read or written, the table has such a column already, or lacks a component.
    """
    path, name = join
    table = read_table(path, site.manifest.data.id)
    check_ids(scored.ids, table.index, str(path))
    new = [name] if adjust is None else [name, f"{name}_adjusted", f"{name}_squared"]
    for one in new:
        if one in table.columns:
            raise InputError(f'{path}: has a column "{one}" already; join to a table without it, or give the column another name.')
    own = dict(zip(scored.ids, scored.scores.total.tolist(), strict=True))
    values = np.array([own.get(str(person), np.nan) for person in table.index], np.float64)
    lines = [f"{out}: {path.name} with the column {name}, {int(np.isfinite(values).sum())} of {len(values)} persons have a score"]
    columns = [values]
    if adjust is not None:
        adjustment = read_adjustment(adjust)
        parts = [numbers(column(table, pc, path, f"{adjust}: columns"), path, booleans=False) for pc in adjustment.columns]
        found = adjusted(values, np.column_stack(parts), adjustment)
        columns += [found.value, found.squared]
        lost = int((np.isfinite(values) & ~np.isfinite(found.value)).sum())
        what = "mean and variance" if adjustment.variance is not None else "mean alone"
        lines.append(
            f"{name}_adjusted: by {what}" + (f"; empty for {lost} persons, without a component or too far from the rest" if lost else "")
        )
    for one, cells in zip(new, columns, strict=True):
        table[one] = [repr(cell) if np.isfinite(cell) else "" for cell in cells.tolist()]
    text = table.to_csv(index_label=site.manifest.data.id, lineterminator="\n")
    try:
        write_whole(out, text.encode(), mode=0o600)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); give --out another file.") from error
    return lines
