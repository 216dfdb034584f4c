"""Plots of ``fedml.experiments.report.plots`` as PNG, drawn with Pillow: for viewers that show no SVG, such as a word processor.

png(svg)      # bytes; the same plot and the same Pillow give the same bytes

Every element that the plots have is drawn; a plot with any other is refused, so that no picture lacks a part.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

SCALE = 2  # pixels for each unit of the plot
_FINER = 2  # drawn larger by this, then reduced, which smooths lines
Point = tuple[float, float]
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}
_GROUPS = ("svg", "g", "title", "desc")


def png(svg: str) -> bytes:
    """The plot as PNG, ``SCALE`` pixels a unit, on white.

    Raises:
        ValueError: it has an element or an attribute that is not drawn here.
    """
    from PIL import Image, ImageDraw

    if "<!" in svg:
        raise ValueError("a plot has no document type")
    root = ElementTree.fromstring(svg)  # noqa: S314 - made by this software, without a document type, so without entities
    _, _, width, height = (float(n) for n in root.attrib["viewBox"].split())
    scale = SCALE * _FINER
    image = Image.new("RGB", (math.ceil(width * scale), math.ceil(height * scale)), "white")
    draw = ImageDraw.Draw(image)
    for element in root.iter():
        _draw(image, draw, element, scale)
    out = io.BytesIO()
    image.reduce(_FINER).save(out, "PNG", dpi=(192, 192), compress_level=3)  # of 6, a tenth larger in two thirds of the time
    return out.getvalue()


def _draw(image: Image.Image, draw: ImageDraw.ImageDraw, element: ElementTree.Element, scale: int) -> None:
    name, have = element.tag.rpartition("}")[2], element.attrib
    if name in _GROUPS and not ({"transform", "style", "fill", "stroke"} & have.keys()):
        return

    def at(*keys: str) -> list[float]:
        return [float(have.get(key, 0)) * scale for key in keys]

    fill, stroke = _colour(have.get("fill")), _colour(have.get("stroke"))
    width = max(1, round(float(have.get("stroke-width", 1)) * scale))
    if name == "text" and not len(element):
        _write(image, draw, element, scale)
    elif name == "line":
        x1, y1, x2, y2 = at("x1", "y1", "x2", "y2")
        _stroke(draw, [(x1, y1), (x2, y2)], stroke, width, _dash(element, scale))
    elif name == "polyline":
        _stroke(draw, _points(have["points"], scale), stroke, width, _dash(element, scale))
    elif name == "polygon":
        draw.polygon(_points(have["points"], scale), fill=fill, outline=stroke)
    elif name == "rect":
        x, y, wide, high = at("x", "y", "width", "height")
        draw.rectangle((x, y, x + wide, y + high), fill=fill, outline=stroke)
    elif name == "circle":
        x, y, radius = at("cx", "cy", "r")
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=stroke)
    else:
        raise ValueError(f"a plot has <{name}>, which is not drawn as PNG")


def _colour(text: str | None) -> str | None:
    return None if text in (None, "none") else text


def _points(text: str, scale: int) -> list[Point]:
    pairs = (pair.split(",") for pair in text.split())
    return [(float(x) * scale, float(y) * scale) for x, y in pairs]


def _dash(element: ElementTree.Element, scale: int) -> list[float]:
    return [float(n) * scale for n in element.attrib.get("stroke-dasharray", "").split()]


def _stroke(draw: ImageDraw.ImageDraw, points: Sequence[Point], colour: str | None, width: int, dash: Sequence[float]) -> None:
    if colour is not None:
        for part in _dashes(points, dash) if dash else [list(points)]:
            draw.line(part, fill=colour, width=width, joint="curve")


def _dashes(points: Sequence[Point], dash: Sequence[float]) -> Iterator[list[Point]]:
    """The visible parts of a dashed line."""
    number, left, part = 0, dash[0], [points[0]]
    for start, end in pairwise(points):
        length, done = math.dist(start, end), 0.0
        while length - done > left:
            done += left
            share = done / length
            here = (start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share)
            if number % 2 == 0:
                yield [*part, here]
            number, part = number + 1, [here]
            left = dash[number % len(dash)]
        left -= length - done
        part.append(end)
    if number % 2 == 0 and len(part) > 1:
        yield part


def _write(image: Image.Image, draw: ImageDraw.ImageDraw, element: ElementTree.Element, scale: int) -> None:
    from PIL import Image, ImageDraw

    have, words = element.attrib, element.text or ""
    x, y = float(have.get("x", 0)) * scale, float(have.get("y", 0)) * scale
    font = _font(round(float(have.get("font-size", 12)) * scale), have.get("font-weight") == "bold")
    anchor, colour = _ANCHORS[have.get("text-anchor", "start")], have.get("fill", "black")
    turn = have.get("transform")
    if turn is None:
        draw.text((x, y), words, fill=colour, font=font, anchor=anchor)
        return
    found = re.fullmatch(r"rotate\((-?90)(?: [-\d.]+ [-\d.]+)?\)", turn)
    if found is None:
        raise ValueError(f"a plot has transform={turn!r}, which is not drawn as PNG")
    left, top, right, bottom = draw.textbbox((0, 0), words, font=font, anchor=anchor)
    layer = Image.new("L", (math.ceil(right - left) + 2, math.ceil(bottom - top) + 2), 0)
    ImageDraw.Draw(layer).text((-left, -top), words, fill=255, font=font, anchor=anchor)
    turned = layer.rotate(90 if found[1] == "-90" else -90, expand=True)
    place = (x + top, y - right) if found[1] == "-90" else (x - bottom, y + left)
    image.paste(colour, (round(place[0]), round(place[1])), turned)


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which comes with matplotlib; otherwise Pillow's own."""
    from PIL import ImageFont

    found = find_spec("matplotlib")
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)
