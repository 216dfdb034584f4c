"""Plots of survival curves with the table of persons at risk, and forest plots, as SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = out.getvalue()
    return text[text.index("<svg") :]


def _settings() -> Any:
    import matplotlib as mpl

    return mpl.rc_context({"svg.hashsalt": "fedml", "font.size": 10, "svg.fonttype": "none"})


def curve_plot(found: Mapping[str, Any], unit: str, event: str) -> str:
    """Kaplan-Meier curves with their bands, and below them the persons at risk."""
    from matplotlib.figure import Figure

    groups = {name: g for name, g in found["groups"].items() if name != "all" or len(found["groups"]) == 1}
    with _settings():
        figure = Figure(figsize=(7, 4.5 + 0.25 * len(groups)))
        axes, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [12, 1 + len(groups)], "hspace": 0.25})
        end = max(float(g["time"][-1]) for g in groups.values())
        ticks = np.linspace(0, end, 6)
        for row, (name, group) in enumerate(groups.items()):
            colour = COLOURS[row % len(COLOURS)]
            time = np.array([0.0, *group["time"]])
            curve, low, high = (np.array([1.0, *(v if v is not None else math.nan for v in group["survival"][k])], float)
                                for k in ("estimate", "lower", "upper"))  # fmt: skip
            axes.step(time, curve, where="post", color=colour, label=name)
            axes.fill_between(time, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
            at_risk = np.array(group["at_risk"])
            for tick in ticks:
                place = int(np.searchsorted(time[1:], tick, side="right"))
                below.text(tick, -row, f"{at_risk[place]:.0f}" if place < len(at_risk) else "0", ha="center", va="center", color=colour)
        axes.set(ylim=(0, 1.02), ylabel=f"without {event}")
        if len(groups) > 1:
            axes.legend(frameon=False, title=found["column"])
        axes.spines[["top", "right"]].set_visible(False)
        below.set(
            ylim=(-len(groups) + 0.4, 0.6), yticks=[-r for r in range(len(groups))], yticklabels=list(groups), xlabel=f"time ({unit})"
        )
        below.set_title("at risk", loc="left", fontsize=10)
        below.spines[["top", "right", "left"]].set_visible(False)
        below.tick_params(left=False)
        axes.set_xticks(ticks)
        axes.tick_params(labelbottom=True)
        return _svg(figure)


def forest_plot(found: Mapping[str, Any], *, ratio: bool) -> str:
    """For each coefficient: the sites alone, their two-stage combinations, and the model of all."""
    from matplotlib.figure import Figure

    rows: list[tuple[str, float, float, float, str]] = []
    for row in found["coefficients"]:
        term, own = found["alone"]["terms"][row["term"]], row[found.get("shown", "model")]
        rows.append((f"{row['term']}", math.nan, math.nan, math.nan, ""))
        for site, one in term["sites"].items():
            if one["estimate"] is not None and one["error"] is not None:
                rows.append((site, one["estimate"], one["estimate"] - 1.96 * one["error"], one["estimate"] + 1.96 * one["error"], "s"))
        if term["pooled"] is not None:
            reml = term["pooled"]["random"]["reml"]
            rows.append(("two stages (REML)", reml["estimate"], reml["lower"], reml["upper"], "o"))
        rows.append(("one stage", row["estimate"], own["lower"], own["upper"], "D"))
    with _settings():
        figure = Figure(figsize=(7, 0.6 + 0.26 * len(rows)))
        axes = figure.subplots()
        for place, (_, estimate, low, high, mark) in enumerate(rows):
            if mark:
                values = [math.exp(min(v, 50.0)) if ratio else v for v in (estimate, low, high)]
                axes.plot(values[1:], [-place, -place], color=COLOURS[0], linewidth=1)
                axes.plot(values[0], -place, mark, color=COLOURS[1] if mark == "D" else COLOURS[0], markersize=5)
        axes.axvline(1.0 if ratio else 0.0, color="#999999", linewidth=0.8)
        if ratio:
            axes.set_xscale("log")
        axes.set(yticks=[-i for i in range(len(rows))], yticklabels=[name if mark else f"{name}:" for name, *_, mark in rows],
                 xlabel="ratio" if ratio else "effect")  # fmt: skip
        axes.spines[["top", "right"]].set_visible(False)
        return _svg(figure)
