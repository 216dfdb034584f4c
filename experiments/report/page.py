"""A run's report: one self-contained HTML page for a reviewer, on a screen, a phone or paper.

    record = read_record(run)
    figures(record)                                   # every number in the tables
    write_report(record, run / "report.html")
    fill_all(record, more=report_facts(record))       # checklists and model card point into the page

The page is a function of the record: the same record gives the same bytes. It runs no script. The figures are embedded as JSON in
``<script type="application/json" id="fedml-figures">``; a table cell names its figure by a JSON Pointer in ``data-figure``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedml.errors import InputError
from fedml.experiments.checklists.facts import Fact
from fedml.experiments.report import persons, sections, utility, words
from fedml.experiments.report.markup import paragraph, written
from fedml.experiments.report.numbers import figures
from fedml.experiments.runs.record import Record
from fedml.runs.log import write_whole

__all__ = ["NAME", "embedded", "figures", "page", "render", "report_facts", "write_report"]

NAME = "report.html"
_OPEN, _CLOSE = '<script type="application/json" id="fedml-figures">', "</script>"
# The browser loads nothing and runs nothing, even if text of a study or a site contains markup.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def render(record: Record, found: Mapping[str, Any] | None = None) -> str:
    """The page as HTML. ``found``: the record's ``figures``, if they are known."""
    found = figures(record) if found is None else found
    name, question = record.study.study.name, " ".join(record.study.study.question.split())
    parts = [part for part in (build(record, found) for build in sections.ALL) if part]
    eyebrow = f"Report of a federated run · {record.run_id}"
    return page(f"{name}: report of a federated run", [eyebrow, question or name, record.run_id], parts, sections.closing(record), found)


def page(title: str, head: Sequence[str], parts: Sequence[str], foot: str, found: Mapping[str, Any]) -> str:
    """A whole page. ``head``: the line above the heading, the heading, and the name in the margin of printed pages; ``found``: figures."""
    above, heading, margin = head
    style = (files(__package__) / "report.css").read_text(encoding="utf-8")
    lines = [
        '<meta charset="utf-8">', f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">', f"<title>{escape(title)}</title>",
        '<link rel="icon" href="data:,">', f"<style>\n{style}\n{_on_paper(margin)}</style>",
    ]  # fmt: skip
    top = f"{paragraph(above, kind='eyebrow')}<h1>{escape(heading)}</h1>"
    body = [f"<header>{top}</header>", f"<main>{''.join(parts)}</main>", f"<footer>{foot}</footer>"]
    data = f"{_OPEN}{_json(found)}{_CLOSE}"
    lines = ["<!doctype html>", '<html lang="en">', "<head>", *lines, "</head>", "<body>", *body, data, "</body>", "</html>"]
    return "\n".join(lines) + "\n"


def _on_paper(run_id: str) -> str:
    """The run and the number of the page in the margin of each printed page. Characters with a meaning in CSS or HTML are escaped."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else f"\\{ord(c):06x}" for c in run_id)
    left, right = f'@bottom-left {{ content: "run {name}"; }}', '@bottom-right { content: "page " counter(page) " of " counter(pages); }'
    return f"@page {{ {left} {right} }}\n"


def _json(found: Mapping[str, Any]) -> str:
    """JSON without <, > and &, so that no text can end the script element."""
    text = json.dumps(found, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def embedded(page: str) -> dict[str, Any]:
    """The figures embedded in a page.

    Raises:
        ValueError: the page does not contain figures exactly once.
    """
    if page.count(_OPEN) != 1:
        raise ValueError("a report must contain its figures exactly once")
    found: dict[str, Any] = json.loads(page.split(_OPEN)[1].split(_CLOSE)[0])
    return found


def write_report(record: Record, out: Path) -> None:
    """Writes the page completely or not at all.

    Raises:
        InputError: the file cannot be written, or the run's log is incomplete.
    """
    try:
        text = render(record)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"{record.run}: the log is not in the format of a run ({error!r}); give an unchanged run folder.") from error
    write_page(out, text)


def write_page(out: Path, text: str) -> None:
    """Writes a page completely or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        write_whole(out, text.encode("utf-8"))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another file with -o.") from error


def report_facts(record: Record, found: Mapping[str, Any] | None = None) -> dict[str, Fact]:
    """The facts that the report adds for checklists and model card, of those that the run has: ``intervals``, ``calibration``,
    ``diagram``, ``characteristics``, ``sample_size``, ``utility``.

    ``found``: the record's ``figures``, if they are known.
    """
    found, out = figures(record) if found is None else found, dict[str, Fact]()
    if record.agreed.came:
        out["diagram"] = Fact("The flow of sites and persons is drawn in the report.", (f"{NAME}#participants",))
    if found["columns"]:
        names = ", ".join(found["columns"][persons.ALL])
        text = f"Mean, standard deviation and missing values of the training persons, by site, as far as the sites tell them: {names}."
        out["characteristics"] = Fact(text, (f"{NAME}#table-1",))
    if found["sample"] is not None:
        out["sample_size"] = Fact(" ".join(persons.sample_words(record, found)), (f"{NAME}#participants",))
    if found.get("utility"):
        text = f"Precision and recall, thresholds and net benefit: in the report. {' '.join(utility.threshold_words(record, found))}"
        out["utility"] = Fact(text, (f"{NAME}#thresholds",))
    score = found["scores"]["all"]
    known = {} if score is None else {n: e for n, e in score["metrics"].items() if e["low"] is not None}
    if known:
        rows = "; ".join(f"{words.named(record, n)} {words.interval_of(e)}, {e['method']}" for n, e in known.items())
        held = f"{words.PARTS[found['part']]} persons of all sites"
        text = f"95 % intervals over {held}: {rows}. By site and subgroup: in the report."
        pointers = [f"{NAME}#{place}" for place in ("by-site", "subgroups") if place == "by-site" or found["scores"]["groups"]]
        out["intervals"] = Fact(text, tuple(pointers))
    if found.get("by_class"):
        rows = "; ".join(
            f"{words.outcome(record, found, int(c))}: slope {words.interval_of(result['all']['slope'])}, intercept "
            f"{words.interval_of(result['all']['intercept'])}, in the large {words.interval_of(result['all']['in_the_large'])}, "
            f"expected / observed {words.interval_of(result['all']['expected_observed'])}"
            for c, result in found["by_class"].items()
        )
        out["calibration"] = Fact(
            f"Calibration on {words.PARTS[found['part']]} persons by logistic recalibration (Cox 1958) and a reliability curve: {rows}.",
            (f"{NAME}#calibration",),
        )
    if found.get("over_time"):
        rows = "; ".join(
            f"at {row['time']:,g} {found['over_time']['unit']} predicted {written(row['predicted'])}, observed {written(row['observed'])}"
            for row in found["over_time"]["horizons"]
        )
        held = f"{words.PARTS[found['part']]} persons"
        text = f"Predicted against observed risk (Kaplan-Meier) over time and by groups of risk, on {held}: {rows}."
        out["calibration"] = Fact(text, (f"{NAME}#over-time",))
    return out
