"""The flow of sites and persons through a run as a diagram, after CONSORT and TRIPOD: a box for each step, at its side who left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from fedml.experiments.report import plots
from fedml.study.section import PARTS

_LINE, _PAD, _GAP = 16, 8, 22
_LEFT, _SIDE = 236, 168  # widths of the boxes in the middle and at the side
_NAMES = {"train": "training", "val": "validation", "test": "test"}


def flow_plot(flow: Mapping[str, Any], classes: Sequence[str], outcome: str) -> str:
    """The diagram of ``persons.participants``."""
    steps = _steps(flow, classes, outcome)
    parts, y = list[str](), 4.0
    for k, (lines, side) in enumerate(steps):
        middle, apart = _wrapped(lines, _LEFT), _wrapped(side, _SIDE)
        high = 2 * _PAD + _LINE * len(middle)
        parts += _box(2, y, _LEFT, middle)
        end = y + high
        if apart:
            below = end + 10 + (2 * _PAD + _LINE * len(apart)) / 2
            parts += [_arrow(2 + _LEFT / 2, below, plots.WIDTH - _SIDE - 2, below)]
            parts += _box(plots.WIDTH - _SIDE - 2, end + 10, _SIDE, apart)
            end = max(end, end + 10 + 2 * _PAD + _LINE * len(apart) - _GAP + 10)
        if k < len(steps) - 1:
            parts.insert(0, _arrow(2 + _LEFT / 2, y + high, 2 + _LEFT / 2, end + _GAP))
        y = end + _GAP
    alt = "Flow of sites and persons. " + "; ".join(" ".join([*lines, *(f"({text})" for text in side)]) for lines, side in steps) + "."
    return plots.svg_of(y, alt, parts)


def _steps(flow: Mapping[str, Any], classes: Sequence[str], outcome: str) -> list[tuple[list[str], list[str]]]:
    """Each step: lines of its box, and lines of the box at its side."""
    absent = [f"{site}: {why}" for site, why in flow["absent"].items()]
    few = {reason: "a few" if n < 0 else f"{n:,}" for reason, n in flow["excluded"].items()}
    out = [([f"{flow['roster']:,} sites on the study's roster"], ["did not take part:", *absent] if absent else [])]
    out.append(
        ([f"{flow['agreed']:,} sites took part"], ["excluded at the sites:", *(f"{n}: {why}" for why, n in few.items())] if few else [])
    )
    lines = []
    for part in PARTS:
        if flow["persons"][part]:
            cases = flow["with"][part]
            more = f", {cases:,} with {outcome} = {classes[1]}" if cases is not None else ""
            lines.append(f"{_NAMES[part]}: {flow['persons'][part]:,} persons{more}")
    if flow["persons"]["train"] is None and flow["stated"] is not None:
        lines.append(f"training: about {flow['stated']:,} persons, as the study states")
    if lines:
        out.append((lines, []))
    if flow["measured"] is not None:
        told = flow["persons"].get(flow["part"])
        left = 0 if told is None else told - round(flow["measured"])
        side = [f"not measured: {left:,} persons of sites that missed the evaluation or may not tell of so few"] if left > 0 else []
        out.append(([f"measured: {flow['measured']:,.0f} {_NAMES[flow['part']]} persons"], side))
    if flow["external"] is not None:
        out.append(([f"external validation: {flow['external']:,.0f} persons of sites that did not train"], []))
    return out


def _wrapped(lines: Sequence[str], width: float) -> list[str]:
    return [part for line in lines for part in wrap(line, int((width - 2 * _PAD) / plots.LETTER), break_long_words=True) or [""]]


def _box(x: float, y: float, width: float, lines: Sequence[str]) -> list[str]:
    high = 2 * _PAD + _LINE * len(lines)
    frame = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{high:g}" fill="#ffffff" stroke="{plots.GREY}"/>'
    return [frame, *(plots.text_of(x + _PAD, y + _PAD + 12 + _LINE * k, line) for k, line in enumerate(lines))]


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    head = (
        f"{x2 - 4:g},{y2 - 6:g} {x2 + 4:g},{y2 - 6:g} {x2:g},{y2:g}"
        if x1 == x2
        else f"{x2 - 6:g},{y2 - 4:g} {x2 - 6:g},{y2 + 4:g} {x2:g},{y2:g}"
    )
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{plots.GREY}"/><polygon points="{head}" fill="{plots.GREY}"/>'
