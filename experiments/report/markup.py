"""HTML from plain text: all text of a study or a site is escaped; every number in a table is taken from the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from fedml.experiments.report.pointers import resolve

Kind = Literal["count", "measure", "estimate", "percent", "bytes", "epsilon", "reasons", "moments", "plain", "p"]
NOTHING = "–"
_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Number:
    """A table cell that shows the figure at the JSON Pointer ``at``."""

    at: str
    kind: Kind = "measure"


Cell = str | Number


def written(value: Any, kind: Kind = "measure") -> str:
    """A number as text; an estimate with its interval."""
    if kind == "reasons":
        return _reasons(value)
    if kind == "moments":
        return f"{_moments(value)}; {value['missing']:,} missing" if value else NOTHING
    if kind == "estimate":
        if value is None or value["value"] is None:
            return NOTHING if value is None else "not defined"
        limits, text = between(value), written(value["value"], "count" if value["method"] == "count" else "measure")
        return f"{text} ({limits})" if limits else text
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return value
    if kind == "p":
        return "below 0.0001" if value < 1e-4 else f"{value:.4f}"
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "plain":
        return f"{value}"
    if kind == "percent":
        return f"{100 * value:.1f} %"
    if kind == "epsilon":
        return f"{value:.2f}" if value >= 0.1 else f"{value:g}"
    if kind == "bytes":
        return _bytes(float(value))
    size = abs(value)
    text = f"{value:.3f}" if size < 10 else f"{value:.2f}" if size < 1000 else f"{value:,.0f}"
    return text.replace("-", "−")


def between(estimate: Mapping[str, Any]) -> str:
    """``0.83 to 0.91``; empty if there are no limits."""
    if estimate["low"] is None or estimate["high"] is None:
        return ""
    return f"{written(estimate['low'])} to {written(estimate['high'])}"


def _reasons(counts: Mapping[str, int] | None) -> str:
    """The count of each reason; a negative number means a count that the site suppressed."""
    if counts is None:
        return "not reported"
    return "; ".join(f"{'a few' if n < 0 else f'{n:,}'}: {reason}" for reason, n in counts.items()) or "none"


def _moments(value: Mapping[str, Any]) -> str:
    """Mean and standard deviation."""
    if value["mean"] is None:
        return NOTHING
    return f"{_short(value['mean'])} ({_short(value['sd'])})"


def _short(value: float) -> str:
    return f"{value:.4g}".replace("-", "−") if 1e-3 <= abs(value) < 1e5 or not value else f"{value:.3e}".replace("-", "−")


def _bytes(value: float) -> str:
    unit = 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.3g} {_UNITS[unit]}"


def paragraph(*sentences: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    words = " ".join(s for s in sentences if s).replace(" %", "\u00a0%")  # a number and its unit stay on one line
    about = f' class="{kind}"' if kind else ""
    return f"<p{about}>{escape(words)}</p>" if words else ""


def listing(items: Sequence[str]) -> str:
    """A list of plain text."""
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""


def terms(rows: Sequence[tuple[str, str]]) -> str:
    """Pairs of a term and its text."""
    return f"<dl>{''.join(f'<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>' for a, b in rows if b)}</dl>"


def answered(rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Questions, each with its answer as sentences."""
    both = ((question, paragraph(*sentences)) for question, sentences in rows)
    return f'<div class="answers">{"".join(f"<h3>{escape(question)}</h3>{text}" for question, text in both if text)}</div>'


def table(found: Mapping[str, Any], caption: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = "") -> str:
    """A table; the first cell of each row is the row header. It scrolls horizontally on a narrow screen."""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    body = "".join(f'<tr><th scope="row">{escape(str(first))}</th>{"".join(_cell(found, c) for c in rest)}</tr>' for first, *rest in rows)
    inner = f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">{inner}</div>{below}'


def _cell(found: Mapping[str, Any], cell: Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    try:
        value = resolve(found, cell.at)
    except (LookupError, TypeError):
        return f'<td class="number">{NOTHING}</td>'
    where = f' data-figure="{escape(cell.at)}"'
    if cell.kind == "estimate" and value is not None and (limits := between(value)):
        kind: Kind = "count" if value["method"] == "count" else "measure"
        return f'<td class="number"{where}>{escape(written(value["value"], kind))} <small>{escape(limits)}</small></td>'
    if cell.kind == "moments" and value is not None:
        missing = f"{value['missing']:,} missing"
        return f'<td class="number"{where}>{escape(_moments(value))} <small>{missing}</small></td>'
    return f'<td class="number"{where}>{escape(written(value, cell.kind))}</td>'


def picture(svg: str, title: str, caption: str = "") -> str:
    """A plot with its title and caption."""
    more = f" {escape(caption)}" if caption else ""
    return f"<figure>{svg}<figcaption><strong>{escape(title)}.</strong>{more}</figcaption></figure>"


def section(name: str, heading: str, *parts: str) -> str:
    """A section of the page, with ``name`` as its id."""
    return f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{escape(heading)}</h2>{"".join(parts)}</section>'
