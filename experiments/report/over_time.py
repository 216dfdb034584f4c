"""The section "Over time" of a report: predicted against observed survival, by time and by group of risk, and measures at each horizon.
Its numbers are those of ``fedml.tasks.task.Task.over_time``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedml.experiments.report import plots
from fedml.experiments.report.markup import Cell, Number, paragraph, picture, section, table, written
from fedml.experiments.report.pointers import pointer
from fedml.experiments.report.words import PARTS
from fedml.experiments.runs.record import Record

Found = Mapping[str, Any]


def section_of(record: Record, found: Found) -> str:
    """The section; "" if the task has no time, or no site told of times."""
    known = found.get("over_time")
    if not known:
        return ""
    body = [
        paragraph(_summary(found)),
        f'<div class="plots">{_survival(found)}{_reliability(found)}{_brier(found)}</div>',
        _horizons(found),
        _groups(found),
    ]
    return section("over-time", "Predicted and observed survival over time", *body)


def _summary(found: Found) -> str:
    """Whether the predicted risks are those observed, at each horizon."""
    known = found["over_time"]
    off, unknown = list[str](), list[str]()
    for row in known["horizons"]:
        at = f"{row['time']:,g} {known['unit']}"
        if row["low"] is None:
            unknown.append(at)
        elif not row["low"] <= row["predicted"] <= row["high"]:
            off.append(f"too {'high' if row['predicted'] > row['high'] else 'low'} at {at}")
    if off:
        text = f"On the whole the predicted risks are {', '.join(off)}: outside the 95 % interval of the observed risk."
    elif len(unknown) < len(known["horizons"]):
        text = "On the whole the predicted risks are not shown to be wrong: each is inside the 95 % interval of the observed risk."
    else:
        return "The observed risk has no interval at any horizon, so it is unknown whether the predicted risks are right."
    return f"{text} No interval at {', '.join(unknown)}." if unknown else text


def _survival(found: Found) -> str:
    known = found["over_time"]
    x = [0.0, *known["time"]]
    lines = [
        plots.Series("predicted, mean", x, [1.0, *known["predicted"]], plots.BLUE, "", 2.2),
        plots.Series("observed", x, [1.0, *known["observed"]], plots.INK, "6 3", 1.8),
        plots.Series("95 % limits of observed", x, [None, *known["low"]], plots.GREY, "2 3", 1.2),
    ]  # fmt: skip
    upper = plots.Series("", x, [None, *known["high"]], plots.GREY, "2 3", 1.2)
    at = "; ".join(
        f"at {row['time']:g} predicted {written(_other(row['predicted']))}, observed {written(_other(row['observed']))}"
        for row in known["horizons"]
    )
    what = f"Probability of no {known['event']}"
    svg = plots.over_time([*lines, upper], f"time ({known['unit']})", f"probability of no {known['event']}", f"{what}: {at}.")
    caption = "All sites. Observed: Kaplan-Meier with log-log limits, at the times of the grid that are scored."
    return picture(svg, f"{what} over time", caption)


def _other(risk: float | None) -> float | None:
    return None if risk is None else 1 - risk


def _reliability(found: Found) -> str:
    known = found["over_time"]
    groups = [g for g in known["groups"] if g["predicted"] is not None]
    rows = "; ".join(f"predicted {written(g['predicted'])}, observed {written(g['observed'])}" for g in groups)
    title = f"Risk of {known['event']} by {known['horizon']:,g} {known['unit']}, by group of risk"
    svg = plots.reliability_plot(groups, f"{title}: {rows}.", "observed (Kaplan-Meier)") if groups else ""
    caption = (
        "Groups of about equal size with at least 5 events; bars: 95 % limits; dashed: perfect. Below that line the predicted risk is "
    )
    return picture(svg, title, f"{caption}too high, above it too low.") if svg else ""


def _brier(found: Found) -> str:
    known = found["over_time"]
    line = plots.Series("Brier score", known["time"], known["brier"], plots.BLUE, "", 2.2)
    alt = "Brier score over time: " + "; ".join(f"at {row['time']:g} {written(row['brier'])}" for row in known["horizons"]) + "."
    svg = plots.over_time([line], f"time ({known['unit']})", "Brier score", alt, top=None)
    caption = f"Weighted for censoring. Integrated Brier score: {_ibs(found)}. Always to say one half gives 0.25."
    return picture(svg, "Brier score over time", caption)


def _ibs(found: Found) -> str:
    return written(found["scores"]["all"]["metrics"]["ibs"]["value"])


def _horizons(found: Found) -> str:
    rows: list[list[Cell]] = []
    for k, row in enumerate(found["over_time"]["horizons"]):
        at, name = ("over_time", "horizons", k), f"{row['time']:g}".replace("+", "")
        cells: list[Cell] = [f"{row['time']:,g}", Number(pointer("scores", "all", "metrics", f"auroc_{name}"), "estimate")]
        cells += [Number(pointer(*at, key)) for key in ("predicted", "observed", "low", "high")]
        rows.append([*cells, Number(pointer("scores", "all", "metrics", f"ratio_{name}"), "estimate"), Number(pointer(*at, "brier"))])
    unit = found["over_time"]["unit"]
    heads = [unit, "AUROC", "predicted risk", "observed risk", "95 %, low", "95 %, high", "observed / predicted", "Brier score"]
    note = "Predicted: the mean over persons. Observed: one minus Kaplan-Meier. AUROC and Brier score are weighted for censoring; "
    note += "missing where nobody is observed until then."
    return table(found, f"Measures at each horizon on {PARTS[found['part']]} persons of all sites", heads, rows, note)


def _groups(found: Found) -> str:
    known = found["over_time"]
    rows: list[list[Cell]] = []
    for k in range(len(known["groups"])):
        at = ("over_time", "groups", k)
        cells: list[Cell] = [str(k + 1), Number(pointer(*at, "persons"), "count"), Number(pointer(*at, "events"), "count")]
        rows.append([*cells, *(Number(pointer(*at, key)) for key in ("predicted", "observed", "low", "high"))])
    heads = ["group", "persons", f"with {known['event']}", "predicted risk", "observed risk", "95 %, low", "95 %, high"]
    note = (
        f"From the lowest risk to the highest, by {known['horizon']:,g} {known['unit']}. Where data are not public, a site puts the times "
        "and risks of few persons together, so these numbers are approximate. "
        "No limits: everybody who was left had the event, or nobody has had it. No observed risk: nobody is observed until then."
    )
    return table(found, "Calibration by group of risk", heads, rows, note)
