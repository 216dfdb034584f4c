"""The server's part of ``fedml describe``: the table of persons (Table 1) over sites and in all, as HTML, Markdown and CSV.

Quantiles are of histograms: the second request has their limits, from the means of the first.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from fedml.analytics import outcome_forms
from fedml.analytics.table1 import Column, column_rows, limits_of, smd_of
from fedml.errors import RunError
from fedml.runs.log import OUTCOMES_JSON, OUTCOMES_PAGE, write_whole
from fedml.strategies.outcomes import page
from fedml.strategies.outcomes.work import Work, finish, plain
from fedml.wire.records import Phase


def describe(work: Work) -> Path:
    """Writes the table to the run's folder; returns the path of all its numbers.

    Raises:
        RunError: a site stopped answering, or sent impossible counts.
    """
    study, run = work.study, work.run
    found = plain(_table(work))
    write_whole(run / OUTCOMES_JSON, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    heads, rows = found["heads"], found["rows"]
    page.write_table(run / "table1.csv", heads, rows, separator=",")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *("| " + " | ".join(map(str, row)) + " |" for row in rows)]
    write_whole(run / "table1.md", ("\n".join(lines) + "\n").encode())
    note = (
        ""
        if not found["hidden"]
        else ("<p>Cells with … are hidden: a site has there fewer persons than it may tell of, or the cell would tell of such a one.</p>")
    )
    page.write_page(run / OUTCOMES_PAGE, study, [page.html_table(heads, rows, html.escape("Table 1")), note])
    finish(work, "describe", found["persons"], {"rows": rows, "heads": heads})
    return run / OUTCOMES_JSON


def _table(work: Work) -> dict[str, Any]:
    study = work.study
    plan, spec = study.describe, study.cohort.clinical
    assert plan is not None and spec is not None  # noqa: S101, PT018
    numbers, _ = outcome_forms.described(study)
    first = work.take(Phase.DESCRIPTION, {"limits": np.zeros((2, len(numbers)))})
    columns = [
        Column(name, tuple(map(str, spec.categories[name])) if name in spec.categories else ()) for name in plan.columns or spec.columns
    ]
    columns.sort(key=lambda c: bool(c.levels))  # numbers first, as the sites send them
    limits = limits_of([s["table"] for s in first.values()], len(numbers))
    replies = work.take(Phase.DESCRIPTION, {"limits": limits}) if numbers else first
    for site, sums in replies.items():
        if (sums["table"][:, 0] < 0).any() or not np.array_equal(sums["table"], first[site]["table"]):
            raise RunError(f"{site} sent other numbers than before, its data changed during the run; run it again.")
    labels = [str(level) for level in outcome_forms.groups_of(study, "describe")] if plan.groups else []
    tables = np.stack([s["table"] for s in replies.values()])  # (sites, groups, numbers)
    bins = np.stack([s["bins"] for s in replies.values()])
    shown: list[tuple[str, Any, Any]] = []  # name, (sites, numbers) tables and (sites, columns, bins) that the column of the table is of
    if labels:
        shown += [(label, tables[:, g], bins[:, g]) for g, label in enumerate(labels)]
    everyone = tables.reshape(-1, tables.shape[-1]), bins.reshape(-1, *bins.shape[2:])
    shown.append(("all", *everyone))
    shown += [(site, tables[at], bins[at]) for at, site in enumerate(replies)]
    rows, values = column_rows(columns, [(table, counts) for _, table, counts in shown], limits)
    heads = ["", *(f"{plan.groups}={label}" for label in labels), "all", *replies]
    smd = smd_of(columns, [table.copy() for _, table, _ in shown[: len(labels)]]) if len(labels) > 1 else None
    if smd is not None:
        heads.append("SMD")
        rows = [[*row, smd.get(at, "")] for at, row in enumerate(rows)]
    return {
        "heads": heads, "rows": rows, "values": values, "limits": limits, "hidden": any("…" in str(cell) for row in rows for cell in row),
        "persons": {site: int(s["table"][:, 0].sum()) for site, s in replies.items()},
    }  # fmt: skip
