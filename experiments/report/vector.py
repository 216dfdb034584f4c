"""The plots of a page as PDF files with vector lines and text, for a manuscript.

    write_figures(Path("report.html"), Path("figures"))

The plots are SVG of lines, rectangles, circles, polygons, polylines and text (``plots.py``); each is drawn again with matplotlib, which is
installed in any case. No date is in the files, so equal plots give equal bytes.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from fedml.errors import InputError
from fedml.experiments.report.plots import WIDTH
from fedml.runs.log import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

_SVG = re.compile(r"<svg xmlns=.*?</svg>", re.DOTALL)
_POINTS = 0.75  # of an inch's 72 in a unit of the plots, of which 96 are an inch
_ANCHOR = {"start": "left", "middle": "center", "end": "right"}


def write_figures(page: Path, folder: Path) -> list[Path]:
    """Writes each plot of the page to ``folder``/figure-NUMBER.pdf, in the order of the page.

    Raises:
        InputError: the page has no plot, or a file cannot be written.
    """
    found = _SVG.findall(page.read_text(encoding="utf-8"))
    if not found:
        raise InputError(f"{page}: has no plots.")
    out = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, svg in enumerate(found, start=1):
            out.append(folder / f"figure-{number:02d}.pdf")
            write_whole(out[-1], pdf_of(svg))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give another folder with --figures.") from error
    return out


def pdf_of(svg: str) -> bytes:
    """One plot as a PDF.

    Raises:
        ValueError: the text is not one of this package's plots.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    root = ElementTree.fromstring(svg)  # noqa: S314 - of a page that this package wrote; entities are not declared in it
    height = float(root.attrib["viewBox"].split()[3])
    figure = Figure(figsize=(WIDTH / 96, height / 96))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    axes.axis("off")
    for element in root:
        _DRAW[element.tag.rpartition("}")[2]](axes, element.attrib, element.text or "")
    out = io.BytesIO()
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(out, format="pdf", metadata={"CreationDate": None, "Title": root.attrib.get("aria-label", "")[:200]})
    return out.getvalue()


def _numbers(of: Mapping[str, str], *names: str) -> list[float]:
    return [float(of[name]) for name in names]


def _points(of: Mapping[str, str]) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in of["points"].split())
    return [(float(x), float(y)) for x, y in pairs]


def _style(of: Mapping[str, str]) -> dict[str, Any]:
    dash = [float(v) * _POINTS for v in of.get("stroke-dasharray", "").split()]
    style = {"color": of["stroke"], "linewidth": float(of.get("stroke-width", "1")) * _POINTS}
    return {**style, "linestyle": (0, dash) if dash else "-"}


def _draw_line(axes: Any, of: Mapping[str, str], text: str) -> None:
    x1, y1, x2, y2 = _numbers(of, "x1", "y1", "x2", "y2")
    axes.plot([x1, x2], [y1, y2], solid_capstyle="butt", **_style(of))


def _draw_polyline(axes: Any, of: Mapping[str, str], text: str) -> None:
    x, y = zip(*_points(of), strict=True)
    axes.plot(x, y, solid_joinstyle="round", **_style(of))


def _draw_polygon(axes: Any, of: Mapping[str, str], text: str) -> None:
    from matplotlib.patches import Polygon

    axes.add_patch(Polygon(_points(of), closed=True, facecolor=of["fill"], linewidth=0))


def _draw_rect(axes: Any, of: Mapping[str, str], text: str) -> None:
    from matplotlib.patches import Rectangle

    x, y, width, height = _numbers(of, "x", "y", "width", "height")
    edge = {"edgecolor": of["stroke"], "linewidth": _POINTS} if "stroke" in of else {"linewidth": 0}
    axes.add_patch(Rectangle((x, y), width, height, facecolor=of["fill"], **edge))


def _draw_circle(axes: Any, of: Mapping[str, str], text: str) -> None:
    from matplotlib.patches import Circle

    x, y, r = _numbers(of, "cx", "cy", "r")
    axes.add_patch(Circle((x, y), r, facecolor=of["fill"], linewidth=0))


def _draw_text(axes: Any, of: Mapping[str, str], text: str) -> None:
    x, y = _numbers(of, "x", "y")
    turned = re.match(r"rotate\((-?[\d.]+) ", of.get("transform", ""))
    axes.text(
        x, y, text, fontsize=float(of.get("font-size", "12")) * _POINTS, color=of.get("fill", "#000000"),
        ha=_ANCHOR[of.get("text-anchor", "start")], va="baseline" if turned is None else "center",
        rotation=0 if turned is None else -float(turned[1]), weight=of.get("font-weight", "normal"), parse_math=False,
    )  # fmt: skip


_DRAW = {
    "line": _draw_line, "polyline": _draw_polyline, "polygon": _draw_polygon, "rect": _draw_rect, "circle": _draw_circle, "text": _draw_text
}  # fmt: skip
