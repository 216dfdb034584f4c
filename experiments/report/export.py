"""The tables of a run for a manuscript: participants (Table 1), performance by site, performance by subgroup; DOCX, LaTeX, CSV or HTML.

    write_tables(record, "latex", Path("tables.tex"))

Every cell is a figure of the report (``figures``), written in the same way, so a table and the report cannot disagree.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from fedml.errors import InputError
from fedml.experiments.report.markup import between, written
from fedml.experiments.report.page import figures
from fedml.experiments.report.persons import ALL
from fedml.experiments.report.words import PARTS, named
from fedml.experiments.runs.record import Record
from fedml.runs.log import write_whole
from fedml.study.section import PARTS as SPLIT

ENDINGS = {"csv": "csv", "docx": "docx", "html": "html", "latex": "tex"}
Found = Mapping[str, Any]


class Sheet(NamedTuple):
    """One table: its caption, heads, rows of text, and a note below."""

    caption: str
    heads: list[str]
    rows: list[list[str]]
    note: str


def sheets(record: Record) -> list[Sheet]:
    """The tables of a run, without those that it has no numbers for."""
    found = figures(record)
    return [sheet for sheet in (_participants(record, found), _performance(record, found), _subgroups(record, found)) if sheet.rows]


def _participants(record: Record, found: Found) -> Sheet:
    sites = [s for s, row in found["sites"].items() if row["agreed"]]
    heads, rows = ["", *sites, ALL], list[list[str]]()
    for part in SPLIT:
        cells = [found["sites"][s]["persons"].get(part, {}).get("persons") for s in sites]
        total = found["participants"]["persons"].get(part)
        if any(cells):
            rows.append([f"{PARTS[part].capitalize()} persons", *(written(c, "count") for c in cells), written(total, "count")])
        if any(cells) and found["balance"]:
            for k, name in enumerate(found["classes"]):
                if k or len(found["classes"]) > 2:
                    shares = [found["balance"].get(s, {}).get(part, [None] * (k + 1))[k] for s in (*sites, ALL)]
                    texts = ["–" if c is None else f"{c['persons']:,} ({written(c['share'], 'percent')})" for c in shares]
                    rows.append([f"  {record.study.cohort.outcome} = {name}", *texts])
    for name in found["columns"].get(ALL, {}):
        values = [found["columns"].get(s, {}).get(name) for s in (*sites, ALL)]
        rows.append([name, *("–" if v is None else written(v, "moments") for v in values)])
    note = (
        "Persons: number, and number (share) with the outcome. Columns: mean (standard deviation) of training persons with a value; "
        "missing."
    )
    return Sheet("Participants by site", heads, rows, note)


def _performance(record: Record, found: Found) -> Sheet:
    score = found["scores"]["all"]
    if score is None:
        return Sheet("", [], [], "")
    names = _names(found)
    rows = [_estimates(ALL, score, names)]
    rows += [_estimates(site, row, names) for site, row in found["scores"]["sites"].items() if row]
    rows += [_estimates(f"external: {s}", row, names) for s, row in found.get("external", {"sites": {}})["sites"].items() if row]
    methods = sorted({e["method"] for e in score["metrics"].values() if e["low"] is not None})
    note = f"Value (95 % interval over persons; {'; '.join(methods)})." if methods else "Values without intervals."
    return Sheet(f"Performance on {PARTS[found['part']]} persons", ["", "persons", *(named(record, n) for n in names)], rows, note)


def _subgroups(record: Record, found: Found) -> Sheet:
    groups = {label: row for label, row in found["scores"]["groups"].items() if row}
    if not groups:
        return Sheet("", [], [], "")
    names = _names(found)
    sites = [s for s, row in found["scores"]["sites"].items() if row]
    rows = [
        [*_estimates(label, row, names), ", ".join(s for s in sites if s not in row["sites"]) or "none"] for label, row in groups.items()
    ]
    heads = ["", "persons", *(named(record, n) for n in names), "not reported by"]
    note = "Value (95 % interval over persons). Persons of sites that did not report a group are not in its row."
    return Sheet("Performance by subgroup", heads, rows, note)


def _names(found: Found) -> list[str]:
    return sorted((n for n in found["scores"]["all"]["metrics"] if "/" not in n), key=lambda n: n != found["measure"])


def _estimates(label: str, row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [label, written(row["persons"], "count"), *(_estimate(row["metrics"].get(n)) for n in names)]


def _estimate(value: Mapping[str, Any] | None) -> str:
    if value is None or value["value"] is None:
        return "–"
    limits = between(value)
    return (
        f"{written(value['value'])} ({limits})" if limits else written(value["value"], "count" if value["method"] == "count" else "measure")
    )


# --- forms


def write_tables(record: Record, form: str, out: Path) -> None:
    """Writes the tables completely or not at all.

    Raises:
        InputError: the run has no table, python-docx is not installed, or the file cannot be written.
    """
    made = sheets(record)
    if not made:
        raise InputError(f"{record.run}: has no persons and no measures to put into a table (status {record.status}).")
    data = _FORMS[form](made, record)
    try:
        write_whole(out, data)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another file with -o.") from error


def _csv(made: Sequence[Sheet], record: Record) -> bytes:
    """Tables below each other; a text that a spreadsheet would read as a formula begins with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for k, sheet in enumerate(made):
        writer.writerows([] if not k else [[]])
        writer.writerow([f"Table {k + 1}. {sheet.caption}; run {record.run_id}"])
        writer.writerows([[_harmless(cell) for cell in row] for row in (sheet.heads, *sheet.rows)])
        writer.writerow([sheet.note])
    return text.getvalue().encode("utf-8")


def _harmless(cell: str) -> str:
    return f"'{cell}" if re.match(r"[=+@\t\r]|-(?!\d)", cell) else cell


def _html(made: Sequence[Sheet], record: Record) -> bytes:
    body = []
    for k, sheet in enumerate(made, start=1):
        head = "".join(f"<th>{escape(h)}</th>" for h in sheet.heads)
        rows = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in sheet.rows)
        caption = f"Table {k}. {sheet.caption}"
        body.append(f"<table><caption>{escape(caption)}</caption><tr>{head}</tr>{rows}</table><p>{escape(sheet.note)}</p>")
    run = f"<p>Run {escape(record.run_id)}.</p>"
    return f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Tables</title>{"".join(body)}{run}</html>\n'.encode()


_TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "−": "$-$", "²": r"$^2$",
        "<": r"\textless{}", ">": r"\textgreater{}"}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in " ".join(text.split()))


def _latex(made: Sequence[Sheet], record: Record) -> bytes:
    """For ``\\input``: plain ``table`` and ``tabular``, without a package."""
    out = [f"% Tables of the run {_tex(record.run_id)}"]
    for sheet in made:
        out += [
            r"\begin{table}",
            rf"\caption{{{_tex(sheet.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(sheet.heads) - 1)}}}",
            r"\hline",
        ]
        out += [f"{' & '.join(map(_tex, row))} \\\\" + (r" \hline" if not k else "") for k, row in enumerate((sheet.heads, *sheet.rows))]
        out += [r"\hline", r"\end{tabular}", "", _tex(sheet.note), r"\end{table}", ""]
    return "\n".join(out).encode("utf-8")


def _docx(made: Sequence[Sheet], record: Record) -> bytes:
    from datetime import UTC, datetime

    try:
        from docx import Document
        from docx.enum.section import WD_ORIENT
        from docx.shared import Pt
    except ImportError as error:
        raise InputError("--format docx: needs python-docx; install it with: pip install 'fedml-cohorts[docx]'.") from error
    document = Document()
    page = document.sections[0]
    page.orientation, page.page_width, page.page_height = WD_ORIENT.LANDSCAPE, page.page_height, page.page_width
    document.core_properties.author = ""
    document.core_properties.created = document.core_properties.modified = datetime.fromtimestamp(record.start.time, UTC)
    for k, sheet in enumerate(made, start=1):
        document.add_heading(f"Table {k}. {sheet.caption}", level=2)
        grid = document.add_table(rows=0, cols=len(sheet.heads), style="Table Grid")
        for row in (sheet.heads, *sheet.rows):
            for cell, text in zip(grid.add_row().cells, row, strict=True):
                cell.text = _printable(text)
                for run in cell.paragraphs[0].runs:
                    run.font.size = Pt(8)
        document.add_paragraph(sheet.note)
    document.add_paragraph(f"Run {record.run_id}.")
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())


_FORMS: dict[str, Callable[[Sequence[Sheet], Record], bytes]] = {"csv": _csv, "docx": _docx, "html": _html, "latex": _latex}
