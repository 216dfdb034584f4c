"""The confusion matrix of a classification, from the counts that the sites sent."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.experiments.report import plots
from fedml.experiments.runs.record import Record
from fedml.tasks.counts import add_counts
from fedml.tasks.registry import make_task

_MOST = 8  # classes that are readable
_CELL, _TOP, _LEFT = 64.0, 46.0, 120.0


def confusion(record: Record) -> npt.NDArray[np.int64] | None:
    """(true class, predicted class) -> test persons of all sites that train; None if the task has none or too many classes to show.

    Sites round small cells within the persons of their class.
    """
    counts = record.counts.get("test", {})
    sites = [counts[site] for site in record.study.federation.sites if site in counts]
    if not sites or "confusion" not in sites[0]:
        return None
    found: npt.NDArray[Any] = add_counts(sites)["confusion"]
    if found.ndim != 2 or not 2 <= len(found) <= _MOST or len(found) != len(make_task(record.study).person_classes):
        return None
    rounded: npt.NDArray[np.int64] = np.rint(found).astype(np.int64)
    return rounded


def confusion_plot(record: Record, table: npt.NDArray[np.int64]) -> str:
    """The matrix as SVG: true classes as rows, predicted ones as columns, persons and their share of the true class in each cell."""
    names = [str(name)[:14] for name in record.study.cohort.classes]
    size = min(_CELL, (plots.WIDTH - _LEFT - 10) / len(names))
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    parts = [_text(_LEFT + size * len(names) / 2, 14, "predicted class", anchor="middle"), _text(4, _TOP - 8, "true class")]
    for row, name in enumerate(names):
        middle = _TOP + size * (row + 0.5)
        parts += [_text(_LEFT + size * (row + 0.5), _TOP - 8, name, anchor="middle")]
        parts += [_text(_LEFT - 8, middle + 4, f"{name} ({table[row].sum():,})", anchor="end")]
        for column in range(len(names)):
            x, share = _LEFT + size * column, float(shares[row, column])
            parts += [_rect(x + 1, _TOP + size * row + 1, size - 2, size - 2, _shade(share))]
            colour = "#ffffff" if share > 0.5 else plots.INK
            parts += [_text(x + size / 2, middle, f"{table[row, column]:,}", anchor="middle", colour=colour)]
            parts += [_text(x + size / 2, middle + 16, f"{share:.0%}", anchor="middle", colour=colour, size=11)]
    told = "; ".join(f"true {a}: {', '.join(f'{table[r, c]} as {b}' for c, b in enumerate(names))}" for r, a in enumerate(names))
    return _svg(_TOP + size * len(names) + 10, f"Confusion matrix of the test persons of all sites: {told}.", parts)


def _shade(share: float) -> str:
    """From white to blue (Okabe and Ito)."""
    ends = zip((255, 255, 255), (0, 114, 178), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in ends)


def _text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = plots.INK, size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(words)}</text>'


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'


def _svg(height: float, alt: str, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {plots.WIDTH} {height:.1f}" width="{plots.WIDTH}" height="{height:.1f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(alt)}">{"".join(parts)}</svg>'
