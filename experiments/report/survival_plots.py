"""Survival curves with the persons at risk below them, and forest plots of ratios, as SVG (``fedml.experiments.report.plots``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fedml.experiments.report import plots
from fedml.experiments.report.plots import COLOURS, DASHES, GREY, INK, PALE, VERMILLION, WIDTH

_LEFT, _RIGHT, _HIGH = 52.0, 404.0, 220.0
_BAND = 400  # corners of a band at most: more cannot be seen
_LONGEST = 24  # letters of a name


def _steps(times: Sequence[float], values: Sequence[float | None], start: float) -> list[tuple[float, float]]:
    """Corners of a step curve from time 0 on; it ends where a value is not defined."""
    out, before = [(0.0, start)], start
    for time, value in zip(times, values, strict=True):
        if value is None:
            break
        if value != before:
            out += [(time, before), (time, value)]
        before = value
    ends = [t for t, v in zip(times, values, strict=True) if v is not None]
    return [*out, (ends[-1], before)] if ends else out


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = max(1, len(points) // _BAND)
    return points if stride == 1 else [*points[::stride], points[-1]]


def curve_plot(groups: Mapping[str, Mapping[str, Any]], unit: str, up: str, alt: str) -> str:
    """Kaplan-Meier curves, their pointwise bands, and a table of the persons at risk below.

    Args:
        groups: name -> ``time``, ``at_risk``, and ``survival`` with ``estimate``, ``lower`` and ``upper``, as in outcomes.json.
    """
    names = list(groups)
    last = max(float(g["time"][-1]) for g in groups.values())
    marks = [t for t in plots.ticks(0, last) if t <= last]
    key_rows = (len(names) + 1) // 2 if len(names) > 1 else 0
    top = 12.0 + 18 * key_rows
    bottom = top + _HIGH

    def px(x: float) -> float:
        return _LEFT + x / last * (_RIGHT - _LEFT)

    def py(y: float) -> float:
        return bottom - y * (bottom - top)

    def path(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)

    out = list[str]()
    for y in (0, 0.2, 0.4, 0.6, 0.8, 1):
        out += [_line(_LEFT, py(y), _RIGHT, py(y), PALE), _text(_LEFT - 6, py(y) + 4, f"{y:g}", "end", GREY)]
    for x in marks:
        mark, edge = f"{x:,.0f}", px(x) > WIDTH - 24  # a mark at the plot's end must not leave it
        out += [_line(px(x), bottom, px(x), bottom + 4, GREY)]
        out += [_text(px(x) + 8 if edge else px(x), bottom + 17, mark, "end" if edge else "middle", GREY)]
    out += [_line(_LEFT, bottom, _RIGHT, bottom, GREY), _text((_LEFT + _RIGHT) / 2, bottom + 34, f"time ({unit})", "middle")]
    middle = (top + bottom) / 2
    out.append(_text(13, middle, up, "middle", INK, f' transform="rotate(-90 13 {middle:.1f})"'))
    lines = list[str]()
    for k, (name, group) in enumerate(groups.items()):
        colour, dash = COLOURS[k % len(COLOURS)], DASHES[k % len(DASHES)]
        curve = group["survival"]
        low, high = (_thin(_steps(group["time"], curve[field], 1.0)) for field in ("lower", "upper"))
        if len(low) > 1:
            lines.append(f'<polygon points="{path([*high, *reversed(low)])}" fill="{colour}" fill-opacity="0.14"/>')
        style = f'fill="none" stroke="{colour}" stroke-width="1.8"' + (f' stroke-dasharray="{dash}"' if dash else "")
        lines.append(f'<polyline points="{path(_steps(group["time"], curve["estimate"], 1.0))}" {style}/>')
        if key_rows:
            x, y = (8.0 if k % 2 == 0 else WIDTH / 2), 14.0 + 18 * (k // 2)
            out += [_line(x, y - 4, x + 26, y - 4, colour, 1.8, dash), _text(x + 31, y, _short(name))]
    y = bottom + 58
    out.append(_text(4, y, "At risk", "start", INK, ' font-weight="bold"'))
    for name in names:
        group = groups[name]
        if key_rows:
            y += 17
            out.append(_text(4, y, _short(name, 40), "start", GREY))
        y += 17
        for x in marks:
            place = sum(1 for time in group["time"] if time <= x)
            count = group["at_risk"][place] if place < len(group["at_risk"]) else 0
            out.append(_text(px(x), y, f"{count:,.0f}", "middle"))
    return plots.svg_of(y + 10, alt, [*out, *lines])


def ratio_forest(rows: Sequence[tuple[str, Mapping[str, float], str]], names: tuple[str, str], alt: str, *, ratio: bool) -> str:
    """A row for each site alone, for the sites combined and for the model of all: its estimate with limits, which are written beside it.

    Args:
        names: of the coefficient, and of its scale.
        rows: name; ``value``, ``low`` and ``high``, on the scale of the coefficient; ``site``, ``two`` or ``one``. ratio: show exp.
    """
    shown = [(name, {k: _scaled(v, ratio) for k, v in one.items()}, kind) for name, one, kind in rows]
    label, beside = 128.0, 118.0
    left, right, top = label, WIDTH - beside, 22.0
    bottom = top + 26 * len(shown)
    centre = [one for _, one, kind in shown if kind != "site"] or [one for _, one, _ in shown]
    edge = _edges([one for _, one, _ in shown], centre, ratio)
    low, high = (math.log(v) if ratio else v for v in edge)

    def px(x: float) -> float:
        value = math.log(max(x, 1e-300)) if ratio else x
        return left + (min(max(value, low), high) - low) / (high - low) * (right - left)

    out = [_text(4, 14, _short(names[0], 44), "start", INK, ' font-weight="bold"')]
    for mark in _marks(edge, ratio):
        out += [_line(px(mark), top, px(mark), bottom, PALE), _text(px(mark), bottom + 16, f"{mark:g}", "middle", GREY)]
    none = 1.0 if ratio else 0.0
    if edge[0] <= none <= edge[1]:
        out.append(_line(px(none), top, px(none), bottom, INK))
    for k, (name, one, kind) in enumerate(shown):
        y = top + 17 + 26 * k
        colour = COLOURS[0] if kind == "site" else COLOURS[2] if kind == "two" else VERMILLION
        bold = "" if kind == "site" else ' font-weight="bold"'
        text = f"{one['value']:.2f} ({one['low']:.2f}–{one['high']:.2f})" if max(map(abs, one.values())) < 100 else f"{one['value']:.3g}"
        out += [_text(4, y + 4, _short(name, 19), "start", INK, bold), _text(WIDTH - 4, y + 4, text, "end", INK, bold)]
        out.append(_line(px(one["low"]), y, px(one["high"]), y, colour, 2))
        for end, inside, sign in ((one["low"], one["low"] >= edge[0], 1), (one["high"], one["high"] <= edge[1], -1)):
            if not inside:  # an arrow where an interval goes on
                x = px(end)
                out.append(
                    f'<polygon points="{x:.1f},{y:.1f} {x + 6 * sign:.1f},{y - 4:.1f} {x + 6 * sign:.1f},{y + 4:.1f}" fill="{colour}"/>'
                )
        x = px(one["value"])
        if kind == "site":
            out.append(f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}"/>')
        else:
            corners = f"{x - 7:.1f},{y:.1f} {x:.1f},{y - 6:.1f} {x + 7:.1f},{y:.1f} {x:.1f},{y + 6:.1f}"
            out.append(f'<polygon points="{corners}" fill="{colour}"/>')
    out += [_line(left, bottom, right, bottom, GREY), _text((left + right) / 2, bottom + 34, names[1], "middle")]
    return plots.svg_of(bottom + 42, alt, out)


def _scaled(value: float, ratio: bool) -> float:
    return math.exp(min(max(value, -50.0), 50.0)) if ratio else value


def _edges(all_rows: Sequence[Mapping[str, float]], centre: Sequence[Mapping[str, float]], ratio: bool) -> tuple[float, float]:
    """Limits of the axis: all rows, but at most some times as wide as the models of all sites, which matter most."""
    low, high = min(r["low"] for r in all_rows), max(r["high"] for r in all_rows)
    narrow, wide = min(r["low"] for r in centre), max(r["high"] for r in centre)
    if ratio:
        low, high = max(low, narrow / 8, 1e-6), min(high, wide * 8, 1e6)
        return min(low, 0.9), max(high, 1.1)
    room = 4 * (wide - narrow) or 1.0
    low, high = max(low, narrow - room), min(high, wide + room)
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if high > low else (low - 1, high + 1)


def _marks(edge: tuple[float, float], ratio: bool) -> list[float]:
    if not ratio:
        return plots.ticks(*edge, 3)
    for wanted in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        found = [m * 10.0**e for e in range(-6, 7) for m in wanted if edge[0] <= m * 10.0**e <= edge[1] * 1.0001]
        if len(found) <= 4:
            return [float(f"{v:.6g}") for v in found]
    return [float(f"{v:.6g}") for v in found[:: len(found) // 4 + 1]]


def _short(name: str, longest: int = _LONGEST) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dash: str = "") -> str:
    how = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width:g}"{how}/>'


def _text(x: float, y: float, words: str, anchor: str = "start", colour: str = INK, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="12"{more}>{escape(words)}</text>'
