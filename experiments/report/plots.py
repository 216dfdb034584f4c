"""Plots as SVG text, without a plotting library, so that the same numbers always give the same bytes.

Every plot is ``WIDTH`` units wide, so that its letters are readable on a phone. It is one image with a text alternative for a screen
reader. Dash, mark and name distinguish everything that colour distinguishes (colours: Okabe and Ito 2008, Color Universal Design).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 420
INK, GREY, PALE = "#1a1a1a", "#595959", "#d5d9de"
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
DASHES = ("", "6 3", "2 3", "8 3 2 3", "10 4", "4 2")
LETTER = _LETTER = 6.3  # mean width of a letter at font size 12

Value = float | None


@dataclass(frozen=True)
class Series:
    """A line: name, x, y (None: a gap), and style."""

    name: str
    x: Sequence[float]
    y: Sequence[Value]
    colour: str
    dash: str = ""
    width: float = 1.8


@dataclass(frozen=True)
class Row:
    """A row of a forest plot: name, persons, the value with its limits (None: not defined), and whether it is the total."""

    name: str
    persons: float
    value: Value
    low: Value
    high: Value
    total: bool = False


@dataclass(frozen=True)
class _Frame:
    """Maps data to drawing coordinates. x, y: the smallest and the largest value."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float
    top: float
    right: float
    bottom: float

    def px(self, x: float) -> float:
        return self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def py(self, y: float) -> float:
        return self.bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - self.top)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``wanted`` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _limits(values: Sequence[float], least: float = 0.0) -> tuple[float, float]:
    """Round limits around ``values``, at least ``least`` apart."""
    low, high = min(values), max(values)
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * max(size, 1e-3):  # a single value, up to rounding
        low, high = low - (size if size > 1e-3 else 1) / 10, high + (size if size > 1e-3 else 1) / 10
    marks = ticks(low, high)
    step = marks[1] - marks[0] if len(marks) > 1 else (high - low) / 5
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = INK, size: int = 12, more: str = "") -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}" fill="{colour}" font-size="{size}"{more}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dash: str = "") -> str:
    how = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" stroke="{colour}" stroke-width="{_n(width)}"{how}/>'


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" fill="{fill}"/>'


def _svg(height: float, alt: str, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {_n(height)}" width="{WIDTH}" height="{_n(height)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(alt)}">{"".join(parts)}</svg>'


def svg_of(height: float, alt: str, parts: Sequence[str]) -> str:
    """An image ``WIDTH`` wide of ``parts``, for plots in other files."""
    return _svg(height, alt, parts)


def text_of(x: float, y: float, words: str) -> str:
    """Letters at a place, for plots in other files."""
    return _text(x, y, words)


def _axes(frame: _Frame, across: str, up: str, marks: tuple[Sequence[float], Sequence[float]]) -> list[str]:
    out = [_line(frame.left, frame.py(y), frame.right, frame.py(y), PALE) for y in marks[1]]
    out += [_text(frame.left - 6, frame.py(y) + 4, _tick(y), anchor="end", colour=GREY) for y in marks[1]]
    for x in marks[0]:
        out += [_line(frame.px(x), frame.bottom, frame.px(x), frame.bottom + 4, GREY)]
        out += [_text(frame.px(x), frame.bottom + 17, _tick(x), anchor="middle", colour=GREY)]
    out += [_line(frame.left, frame.bottom, frame.right, frame.bottom, GREY)]
    middle = (frame.top + frame.bottom) / 2
    out += [_text((frame.left + frame.right) / 2, frame.bottom + 34, across, anchor="middle")]
    return [*out, _text(13, middle, up, anchor="middle", more=f' transform="rotate(-90 13 {_n(middle)})"')]


def _path(frame: _Frame, series: Series) -> str:
    """The line, interrupted at gaps; an isolated point is a dot."""
    runs: list[list[str]] = [[]]
    for x, y in zip(series.x, series.y, strict=True):
        if y is None:
            runs.append([])
        else:
            runs[-1].append(f"{_n(frame.px(x))},{_n(frame.py(y))}")
    dash = f' stroke-dasharray="{series.dash}"' if series.dash else ""
    style = f'fill="none" stroke="{series.colour}" stroke-width="{_n(series.width)}"{dash} stroke-linejoin="round"'
    lines = [f'<polyline points="{" ".join(run)}" {style}/>' for run in runs if len(run) > 1]
    dots = [run[0].split(",") for run in runs if len(run) == 1]
    return "".join([*lines, *(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{series.colour}"/>' for x, y in dots)])


def _key(series: Sequence[Series], top: float) -> tuple[list[str], float]:
    """The legend: line samples with names, in as many rows as needed, and the y coordinate of its last row."""
    out, x, y = [], 8.0, top
    for line in series:
        wide = 34 + _LETTER * len(line.name) + 12
        if x > 8 and x + wide > WIDTH:
            x, y = 8.0, y + 18
        out += [_line(x, y - 4, x + 26, y - 4, line.colour, line.width, line.dash), _text(x + 31, y, line.name)]
        x += wide
    return out, y


def curves(series: Sequence[Series], across: str, up: str, alt: str, *, least: float = 0.0) -> str:
    """Lines over rounds. ``least``: the smallest span of the y axis."""
    values = [y for s in series for y in s.y if y is not None]
    key, end = _key(series, 14)
    first, last = min(s.x[0] for s in series), max(s.x[-1] for s in series)
    span = _limits(values, least)
    left = max(52.0, 30 + _LETTER * max(len(_tick(t)) for t in ticks(*span)))
    frame = _Frame((first, last) if last > first else (first - 0.5, last + 0.5), span, left, end + 16, 410, end + 226)
    rounds = sorted({round(t) for t in ticks(first, last)} | {first})
    marks = [r for r in rounds if r == first or frame.px(r) - frame.px(first) > 24]
    parts = [*key, *_axes(frame, across, up, (marks, ticks(*frame.y))), *(_path(frame, s) for s in reversed(series))]
    return _svg(frame.bottom + 42, alt, parts)


def roc_plot(series: Sequence[Series], alt: str) -> str:
    """Sensitivity against 1 - specificity, with the diagonal of a random guess."""
    key, end = _key(series, 14) if len(series) > 1 else ([], -4)
    frame = _Frame((0, 1), (0, 1), 52, end + 16, 382, end + 346)
    marks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    parts = [*key, *_axes(frame, "1 - specificity (false alarms, fraction)", "sensitivity (fraction found)", (marks, marks))]
    parts += [_line(frame.px(0), frame.py(0), frame.px(1), frame.py(1), GREY, 1, "3 3")]
    parts += [_text(frame.px(0.62), frame.py(0.56), "a guess", colour=GREY), *(_path(frame, s) for s in reversed(series))]
    return _svg(frame.bottom + 42, alt, parts)


def square(series: Sequence[Series], across: str, up: str, alt: str, y: tuple[float, float]) -> str:
    """Lines over x from 0 to 1, with y from ``y[0]`` to ``y[1]``."""
    key, end = _key(series, 14)
    frame = _Frame((0, 1), y, 52, end + 16, 382, end + 346)
    parts = [*key, *_axes(frame, across, up, ([0, 0.2, 0.4, 0.6, 0.8, 1], ticks(*y))), *(_path(frame, s) for s in reversed(series))]
    return _svg(frame.bottom + 42, alt, parts)


def over_time(series: Sequence[Series], across: str, up: str, alt: str, top: float | None = 1.0) -> str:
    """Lines over time, y from 0 to ``top`` (None: a round number above the largest). A line without a name is not in the key."""
    values = [y for s in series for y in s.y if y is not None]
    key, end = _key([s for s in series if s.name], 14)
    high = top if top is not None else _limits([0.0, *values, 0.05])[1]
    frame = _Frame((0.0, max(s.x[-1] for s in series)), (0.0, high), 52, end + 16, 404, end + 246)
    parts = [*key, *_axes(frame, across, up, (ticks(*frame.x, 4), ticks(0, high))), *(_path(frame, s) for s in reversed(series))]
    return _svg(frame.bottom + 42, alt, parts)


def reliability_plot(groups: Sequence[Mapping[str, float | None]], alt: str, up: str = "observed (share of cases)") -> str:
    """What was observed, with its limits if there are any, against the mean predicted risk, for each group."""
    frame = _Frame((0, 1), (0, 1), 52, 12, 382, 342)
    marks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    parts = _axes(frame, "predicted risk (mean of the group)", up, (marks, marks))
    parts += [_line(frame.px(0), frame.py(0), frame.px(1), frame.py(1), GREY, 1, "3 3")]
    points = [(g["predicted"], g["observed"]) for g in groups]
    known = [(x, y) for x, y in points if x is not None and y is not None]
    for g in groups:
        if g["predicted"] is None or g["low"] is None or g["high"] is None:
            continue
        x, low, high = frame.px(g["predicted"]), frame.py(g["low"]), frame.py(g["high"])
        parts += [_line(x, low, x, high, BLUE, 1.6), _line(x - 3, low, x + 3, low, BLUE, 1.6), _line(x - 3, high, x + 3, high, BLUE, 1.6)]
    parts += [_path(frame, Series("", [x for x, _ in known], [y for _, y in known], BLUE, "", 1.2))]
    parts += [f'<circle cx="{_n(frame.px(x))}" cy="{_n(frame.py(y))}" r="4" fill="{BLUE}"/>' for x, y in known]
    return _svg(frame.bottom + 42, alt, parts)


def forest(rows: Sequence[Row], across: str, alt: str, *, bounds: tuple[float, float] | None = None, at: float | None = None) -> str:
    """Each row: persons, and a square with its interval. Dashed line: the value of all persons; ``at``: another line, such as a guess."""
    label = min(150.0, max(_LETTER * max(len(_short(r.name)) for r in rows) + 8, 60))
    values = [v for r in rows for v in (r.value, r.low, r.high) if v is not None] + ([at] if at is not None else [])
    if bounds is not None:
        values = [v for v in values if bounds[0] <= v <= bounds[1]]
    low, high = _limits(values or [0.0, 1.0])
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    frame = _Frame((low, high), (0, 1), label + 42, 22, WIDTH - 22, 26 + 26 * len(rows))
    parts = [_text(frame.left - 8, 14, "persons", anchor="end", colour=GREY)]
    for x in ticks(low, high, 4):
        parts += [_line(frame.px(x), frame.top, frame.px(x), frame.bottom, PALE)]
        parts += [_text(frame.px(x), frame.bottom + 16, _tick(x), anchor="middle", colour=GREY)]
    if at is not None:
        parts += [_line(frame.px(at), frame.top, frame.px(at), frame.bottom, INK, 1)]
    whole = next((r.value for r in rows if r.total and r.value is not None), None)
    if whole is not None and low <= whole <= high:
        parts += [_line(frame.px(whole), frame.top, frame.px(whole), frame.bottom, VERMILLION, 1.4, "5 3")]
    most = max(r.persons for r in rows) or 1
    for k, row in enumerate(rows):
        y = frame.top + 17 + 26 * k
        weight = ' font-weight="bold"' if row.total else ""
        parts += [_text(4, y + 4, _short(row.name), more=weight), _text(frame.left - 8, y + 4, f"{row.persons:,.0f}", anchor="end")]
        colour = VERMILLION if row.total else BLUE
        if row.low is not None and row.high is not None:
            parts += [_line(frame.px(row.low), y, frame.px(row.high), y, colour, 2)]
        if row.value is None:
            parts += [_text(frame.left + 6, y + 4, "not defined", colour=GREY)]
            continue
        if not low <= row.value <= high:  # noised counts may give an impossible value
            parts += [_text(frame.left + 6, y + 4, f"{row.value:.2f}, off the scale", colour=GREY)]
            continue
        x, half = frame.px(row.value), 3 + 4 * math.sqrt(row.persons / most)
        diamond = f"{_n(x - 8)},{_n(y)} {_n(x)},{_n(y - 6)} {_n(x + 8)},{_n(y)} {_n(x)},{_n(y + 6)}"
        square = _rect(x - half, y - half, 2 * half, 2 * half, colour)
        parts += [f'<polygon points="{diamond}" fill="{colour}"/>' if row.total else square]
    parts += [_line(frame.left, frame.bottom, frame.right, frame.bottom, GREY)]
    parts += [_text((frame.left + frame.right) / 2, frame.bottom + 34, across, anchor="middle")]
    return _svg(frame.bottom + 42, alt, parts)


def _short(name: str) -> str:
    return name if len(name) <= 21 else f"{name[:20]}…"


def grid(sites: Mapping[str, Sequence[tuple[int, int, bool]]], columns: int, names: tuple[str, str], alt: str) -> str:
    """Rounds by sites. ``sites``: name -> runs of equal rounds (first, last, took part), from 1 to ``columns``; the last column is the
    evaluation. A missed round has another colour and about half the height, so that colour is not needed to distinguish it."""
    label = min(150.0, max(_LETTER * max(len(_short(name)) for name in sites) + 12, 60))
    key = [_rect(8, 4, 14, 14, BLUE), _text(27, 16, names[0]), _rect(48 + _LETTER * len(names[0]), 8, 14, 6, VERMILLION)]
    key += [_text(67 + _LETTER * len(names[0]), 16, names[1])]
    frame = _Frame((0.5, columns + 0.5), (0, 1), label, 28, WIDTH - 8, 28 + 22 * len(sites))
    gap = 1 if columns <= 60 else 0
    parts = [*key]
    for k, (name, runs) in enumerate(sites.items()):
        y = frame.top + 22 * k
        parts.append(_text(4, y + 14, _short(name)))
        for first, last, took_part in runs:
            # Equal neighbours are merged into one rectangle if single rounds would be too thin to see.
            for a, b in [(r, r) for r in range(first, last + 1)] if gap else [(first, last)]:
                left, right = frame.px(a - 0.5), frame.px(b + 0.5)
                high = 18 if took_part else 8
                parts.append(_rect(left, y + 10 - high / 2, max(right - left - gap, 0.6), high, BLUE if took_part else VERMILLION))
    marks = [r for r in sorted({1, *(round(t) for t in ticks(1, columns - 1))}) if r == 1 or frame.px(r) - frame.px(1) > 26]
    marks = [r for r in marks if frame.px(columns) - frame.px(r) > 76 or r == 1 < columns]
    parts += [_text(frame.px(r), frame.bottom + 15, str(r), anchor="middle", colour=GREY) for r in marks]
    parts.append(_text(frame.right, frame.bottom + 15, "evaluation", anchor="end", colour=GREY))
    return _svg(frame.bottom + 38, alt, [*parts, _text((frame.left + frame.right) / 2, frame.bottom + 32, "round", anchor="middle")])
