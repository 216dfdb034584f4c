"""What thresholds on the risk do: precision and recall, a table of thresholds, net benefit. For an outcome of two classes, from counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedml.experiments.report import plots, words
from fedml.experiments.report.markup import Cell, Number, paragraph, picture, section, table, written
from fedml.experiments.report.pointers import pointer
from fedml.experiments.runs.record import Record
from fedml.learning.decisions import Counts, at_risk, average_precision, chosen, net_benefit, precision_recall
from fedml.tasks.counts import add_counts
from fedml.tasks.interval_tools import wilson

Found = Mapping[str, Any]
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
POINTS = 100
_SHARES = {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}


def utility(record: Record, merged: Counts, part: str) -> dict[str, Any] | None:
    """Numbers of this module for ``figures``; None if a class has no scores. ``merged``: of all sites' held-out persons of ``part``."""
    if math.isnan(average_precision(merged)):
        return None
    validation = record.counts.get("val", {}) if part == "test" else {}
    picked = chosen(add_counts([validation[s.name] for s in record.sites if s.name in validation])) if validation else math.nan
    rows = [_row(merged, t) for t in sorted({*THRESHOLDS, *([] if math.isnan(picked) or not 0 < picked < 1 else [picked])})]
    x, y = precision_recall(merged, points=POINTS)
    at = [k / 100 for k in range(1, 100)]
    both = [net_benefit(merged, t) for t in at]
    whole = at_risk(merged, 0.5)
    return {
        "share": whole.cases / whole.persons, "cases": whole.cases, "persons": whole.persons,
        "average_precision": average_precision(merged), "curve": {"x": x, "y": y},
        "chosen": picked, "rows": rows,
        "benefit": {"x": at, "model": [b[0] for b in both], "everybody": [b[1] for b in both]},
    }  # fmt: skip


def _row(merged: Counts, threshold: float) -> dict[str, Any]:
    t = at_risk(merged, threshold)
    pairs = {
        "sensitivity": (t.true_positive, t.cases), "specificity": (t.true_negative, t.persons - t.cases),
        "ppv": (t.true_positive, t.true_positive + t.false_positive), "npv": (t.true_negative, t.true_negative + t.false_negative),
    }  # fmt: skip
    model, everybody = net_benefit(merged, threshold)
    found = {name: _share(*pair) for name, pair in pairs.items()}
    return {"threshold": threshold, "above": t.true_positive + t.false_positive, **found, "benefit": model, "everybody": everybody}


def _share(hits: int, persons: int) -> dict[str, Any]:
    if not persons:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "method": "none: no person"}
    low, high = wilson(hits, persons, 0.95)
    return {"value": hits / persons, "low": float(low), "high": float(high), "method": "Wilson"}


def section_of(record: Record, found: Found) -> str:
    """The section "Thresholds and usefulness"; "" if the run has no such numbers."""
    known = found.get("utility")
    if not known:
        return ""
    named = words.outcome(record, found)
    body = [
        paragraph(*threshold_words(record, found)),
        f'<div class="plots">{_precision(found, named)}{_benefit(found, named)}</div>',
        _table(found),
    ]
    return section("thresholds", "Thresholds and usefulness", *body)


def threshold_words(record: Record, found: Found) -> list[str]:
    """Which threshold was chosen, and by which persons."""
    known = found["utility"]
    if known["chosen"] is None:
        why = (
            "the record has no scores of enough validation persons of each class"
            if found["part"] == "test"
            else "there are no test persons"
        )
        return [
            f"No threshold was chosen: {why}, and one that is chosen on the persons on whom it is tested looks better than it is. The "
            "table shows "
            "thresholds that are the same in every report."
        ]
    row = next(r for r in known["rows"] if r["threshold"] == known["chosen"])
    return [
        f"A threshold of {written(known['chosen'])} has the largest sum of sensitivity and specificity in the validation persons. In the "
        "test "
        f"persons, who had no part in the choice, its sensitivity is {words.interval_of(row['sensitivity'])} and its specificity "
        f"{words.interval_of(row['specificity'])}. This weighs a missed case and a false alarm by their frequency; which threshold serves "
        "patients depends on what follows from it."
    ]


def _precision(found: Found, named: str) -> str:
    known = found["utility"]
    x, y, share = known["curve"]["x"], known["curve"]["y"], known["share"]
    lines = [plots.Series("the model", x, y, plots.BLUE, "", 2.2), plots.Series("a guess", [0, 1], [share, share], plots.GREY, "3 3", 1)]
    alt = f"Precision and recall for {named}: average precision {written(known['average_precision'])}, of a guess {written(share)}."
    svg = plots.square(lines, "recall (sensitivity)", "precision (PPV)", alt, (0.0, 1.0))
    caption = f"Average precision {written(known['average_precision'])}; of a guess {written(share)}, the share of persons with {named}."
    return picture(svg, "Precision and recall", caption)


def _benefit(found: Found, named: str) -> str:
    known = found["utility"]["benefit"]
    share = found["utility"]["share"]
    low = -0.05
    lines = [
        plots.Series(name, known["x"], [v if v is not None and v >= low else None for v in values], colour, dash, width)
        for name, values, colour, dash, width in (
            ("the model", known["model"], plots.BLUE, "", 2.2),
            ("treat everybody", known["everybody"], plots.VERMILLION, "6 3", 1.6),
            ("treat nobody", [0.0] * len(known["x"]), plots.GREY, "2 3", 1.2),
        )
    ]  # fmt: skip
    top = max(0.1, math.ceil(share * 10) / 10)
    alt = f"Net benefit by threshold for {named}: of the model, of treating everybody and of treating nobody."
    svg = plots.square(lines, "threshold on the risk", "net benefit per person", alt, (low, top))
    caption = (
        "True positives less false positives weighed by the odds of the threshold, per person (Vickers and Elkin 2006). A threshold of "
        "0.2 means "
        "that finding one case is worth four false alarms. Values below -0.05 are not drawn; no intervals are computed."
    )
    return picture(svg, "Decision curve", caption)


def _table(found: Found) -> str:
    rows: list[list[Cell]] = []
    known = found["utility"]
    for k, row in enumerate(known["rows"]):
        at = ("utility", "rows", k)
        label = f"{written(row['threshold'])} (chosen)" if row["threshold"] == known["chosen"] else written(row["threshold"])
        cells: list[Cell] = [label, Number(pointer(*at, "above"), "count"), *(Number(pointer(*at, key), "estimate") for key in _SHARES)]
        rows.append([*cells, Number(pointer(*at, "benefit")), Number(pointer(*at, "everybody"))])
    heads = ["risk at or above", "persons", *_SHARES.values(), "net benefit", "of treating everybody"]
    note = (
        "PPV and NPV: the share of persons above with the outcome, and of those below without it; 95 % intervals by Wilson. They hold "
        "for a "
        f"share of {written(known['share'], 'percent')} with the outcome, as in these persons. A risk is known to 0.001, and less "
        "exactly where "
        "scores left a site in groups."
    )
    return table(found, f"Thresholds on {words.PARTS[found['part']]} persons of all sites", heads, rows, note)
