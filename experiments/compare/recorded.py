"""A comparison as a folder, which `fedml track` records in MLflow.

RUNS/compare-heart-1a2b3c4d/comparison.json      what MLflow shows, with the summary of ``fedml.experiments.compare.tables``
                            comparison.csv       a row for each way to train: all persons, sites, subgroups; differences from the first
                            comparison.html      the same as a table
                            study.json           the study

The name has the start of the SHA-256 of the summary and its runs, so a repeated comparison is the same record.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedml.experiments.compare.tables import notes
from fedml.experiments.compare.train import Trained
from fedml.runs.log import STUDY, read_log, write_whole
from fedml.study.study import Study
from fedml.tracking import outbox
from fedml.tracking.comparisons import COMPARISON

if TYPE_CHECKING:
    from rich.console import Console

CSV, HTML = "comparison.csv", "comparison.html"
_HEADS = ("trained", "persons of", "metric", "mean", "low", "high", "difference", "difference low", "difference high", "p", "method")


def write_comparison(study: Study, summary: Sequence[Mapping[str, Any]], rows: Sequence[Trained], runs: Path) -> Path:
    """Writes the folder of a comparison into ``runs`` and returns it. ``summary``: of ``summarise``."""
    plain = [{**row, "runs": [Path(run).name for run in row["runs"]]} for row in summary]
    digest = hashlib.sha256(json.dumps([study.sha256, plain], sort_keys=True).encode()).hexdigest()
    folder = runs / f"compare-{study.study.name}-{digest[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    table = [list(_HEADS), *_rows(plain)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    more = notes(study, summary)
    found = {
        "schema": 1,
        "id": folder.name,
        "study": study.study.name,
        "time": max((event.time for row in rows for event in read_log(row.run)[0][-1:]), default=0.0),
        "summary": plain,
        "notes": more,
    }
    write_whole(folder / STUDY, study.canonical.encode())
    write_whole(folder / CSV, text.getvalue().encode())
    write_whole(folder / HTML, _page(study, table, more).encode())
    write_whole(folder / COMPARISON, (json.dumps(found, indent=1) + "\n").encode())  # last: the folder is complete
    return folder


def _rows(summary: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The rows of the table as text; a number that is not defined is empty."""
    for row in summary:
        who, metric, gap = row["who"], row["watched"]["metric"], row["difference"] or {}
        beside = [gap.get(name) for name in ("value", "low", "high", "p")] + [row["watched"].get("method", "")]
        yield [_text(v) for v in (who, "all sites", metric, *(row["watched"][n] for n in ("mean", "low", "high")), *beside)]
        for kind in ("sites", "external", "groups"):
            for name, own in row.get(kind, {}).items():
                yield [_text(v) for v in (who, name, metric, own["mean"], own["low"], own["high"], "", "", "", "", "")]
        for name, own in row["metrics"].items():
            if name != metric:
                yield [_text(v) for v in (who, "all sites", name, own["mean"], "", "", "", "", "", "", "mean over seeds")]


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _page(study: Study, table: Sequence[Sequence[str]], more: Sequence[str]) -> str:
    """The table as a page without scripts."""
    head, *body = ("".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in row) for kind, row in zip(_kinds(), table, strict=False))
    style = "body{font:15px sans-serif}table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:3px 8px;text-align:left}"
    below = "".join(f"<p>{escape(line)}</p>" for line in more)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(study.study.name)}: comparison</title>'
        f"<style>{style}</style></head><body><h1>{escape(study.study.question or study.study.name)}</h1><p>Test persons; limits and "
        f"differences from the first row: 95 %.</p><table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>{below}"
        "</body></html>\n"
    )


def _kinds() -> Iterator[str]:
    yield "th"
    while True:
        yield "td"


def recorded(study: Study, summary: Sequence[Mapping[str, Any]], rows: Sequence[Trained], runs: Path, console: Console) -> str:
    """Writes the comparison's folder and records it in MLflow, in a process of its own; why MLflow has no complete record, "" if it has."""
    from fedml.experiments.runs.delivery import delivered

    folder = write_comparison(study, summary, rows, runs)
    outbox.mark_again(folder)
    return delivered(folder, console, "comparison")
