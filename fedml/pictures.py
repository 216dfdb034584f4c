"""Draws planes of images with contours of their classes, many pictures as one PNG.

    tiles = [tile for image, mask in zip(images, masks) for tile in planes(image, mask, "1")]
    data = sheet(tiles, columns=3, title="oslo", classes=["spleen"])          # bytes of a PNG

Colours: Okabe and Ito (2008), distinguishable with any colour vision.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
_TILE_INCHES, _DPI = 1.9, 120
_LETTERS_PER_INCH = 17  # in the note's font
_MAX_VALUES = 1_000_000  # voxels used for the grey scale and the histogram


@dataclass(frozen=True)
class Tile:
    """One picture: ``pixels`` (rows, columns) or (rows, columns, 3), ``labels`` (rows, columns) integers, where 0 is not drawn.

    ``aspect``: height divided by width of a voxel. ``upwards``: row 0 is at the bottom. ``across`` and ``along``: axis labels.
    """

    pixels: npt.NDArray[Any]
    labels: npt.NDArray[Any] | None = None
    caption: str = ""
    aspect: float = 1.0
    upwards: bool = False
    across: str = ""
    along: str = ""


def spread(rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """At most ``count`` of ``rows``, evenly spaced from the first to the last."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]


def plane(
    image: npt.NDArray[Any], mask: npt.NDArray[Any] | None, caption: str, *,
    axis: int = 2, at: int = 0, spacing: Sequence[float] | None = None, orientation: str = "",
) -> Tile:  # fmt: skip
    """A 2D image (channels, *size), or the plane ``at`` of a volume across ``axis``.

    Three channels are colours; of any other number of channels the first is drawn.

    Args:
        mask: (*size) integers.
        spacing: mm per axis; None or NaN: square voxels.
        orientation: axis codes such as RAS, for the axis labels.
    """
    drawn = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
    step = [1.0] * (image.ndim - 1) if spacing is None or not np.isfinite(spacing).all() else list(spacing)
    if image.ndim == 3:
        return Tile(drawn, mask, caption, step[0] / step[1])
    first, second = (a for a in range(3) if a != axis)
    names = [f"{_OPPOSITE[orientation[a]]} - {orientation[a]}" if orientation else f"axis {a + 1}" for a in (first, second)]
    pixels, labels = drawn.take(at, axis).swapaxes(0, 1), None if mask is None else mask.take(at, axis).T
    names[0] += f", slice {at + 1} of {image.shape[axis + 1]}"
    return Tile(pixels, labels, caption, step[second] / step[first], True, *names)


def planes(
    image: npt.NDArray[Any], mask: npt.NDArray[Any] | None, caption: str, *, spacing: Sequence[float] | None = None, orientation: str = ""
) -> list[Tile]:
    """A 2D image as one tile, or a volume as three planes, one across each axis, the last axis first.

    Each plane is the one with the most mask voxels, or the middle plane without a mask or with an empty mask. Arguments: as ``plane``.
    """
    if image.ndim == 3:
        return [plane(image, mask, caption, spacing=spacing)]
    at = [most_of(mask, a) if mask is not None else image.shape[a + 1] // 2 for a in range(3)]
    return [plane(image, mask, caption, axis=a, at=at[a], spacing=spacing, orientation=orientation) for a in (2, 1, 0)]


def most_of(mask: npt.NDArray[Any], axis: int) -> int:
    """Index of the plane across ``axis`` with the most voxels above 0; the middle plane if there are none."""
    counts = (mask > 0).sum(tuple(a for a in range(mask.ndim) if a != axis))
    return int(counts.argmax()) if counts.any() else mask.shape[axis] // 2


def sheet(
    tiles: Sequence[Tile], *, columns: int, title: str, classes: Sequence[str] = (), histogram: bool = False, note: str = ""
) -> bytes:
    """All tiles with one grey scale, as the bytes of a PNG without information about machine or time.

    Args:
        classes: names of the labels 1, 2 and so on, for the legend.
        histogram: also draw a histogram of the intensities below the tiles.
        note: text below the tiles.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = math.ceil(len(tiles) / columns)
    values = _values(tiles)
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    high = high if high > low else low + 1.0
    head = 0.35 + 0.2 * title.count("\n") + (0.25 if classes else 0.0)
    width = max(columns * _TILE_INCHES, 6.0)
    lines = textwrap.wrap(note, int(width * _LETTERS_PER_INCH))
    below = 0.13 * len(lines) + 0.1
    foot = below + (1.15 if histogram else 0.0)
    height = head + rows * (_TILE_INCHES + 0.2) + foot
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.01, 1 - 0.08 / height, title, va="top", fontsize=9)
    place = {"left": 0.03, "right": 0.99, "top": 1 - (head + 0.1) / height, "bottom": (foot + 0.15) / height}
    grid = figure.add_gridspec(rows, columns, hspace=0.2, wspace=0.08, **place)
    for k, tile in enumerate(tiles):
        _draw(figure.add_subplot(grid[k // columns, k % columns]), tile, low, high)
    if classes:
        handles = [Patch(facecolor="none", edgecolor=_colour(k), linewidth=2, label=name) for k, name in enumerate(classes, start=1)]
        at = (0.005, 1 - (head - 0.3) / height)
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=at, ncols=6, fontsize=7, frameon=False, borderaxespad=0)
    if histogram:
        axes = figure.add_axes((0.06, (below + 0.35) / height, 0.92, 0.65 / height))
        axes.hist(values, bins=100, color="#777777", log=True)
        for edge in (low, high):
            axes.axvline(edge, color="#D55E00", linewidth=1)
        axes.set_xlabel("intensity (logarithmic count of voxels); between the lines: black to white above", fontsize=7)
        axes.tick_params(labelsize=6)
    figure.text(0.01, 0.06 / height, "\n".join(lines), va="bottom", fontsize=7)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _values(tiles: Sequence[Tile]) -> npt.NDArray[np.float32]:
    values = np.concatenate([np.asarray(t.pixels, np.float32).ravel() for t in tiles])
    return values[:: max(1, len(values) // _MAX_VALUES)]


def _colour(label: int) -> str:
    return COLOURS[(label - 1) % len(COLOURS)]


def _draw(axes: Any, tile: Tile, low: float, high: float) -> None:
    pixels = np.clip((np.asarray(tile.pixels, np.float32) - low) / (high - low), 0, 1)
    origin = "lower" if tile.upwards else "upper"
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, origin=origin, aspect=tile.aspect, interpolation="nearest")
    if tile.labels is not None:
        for label in np.unique(tile.labels):
            if label > 0:
                # Padding with 0 closes contours of regions that touch the border.
                inside = np.pad((tile.labels == label).astype(np.float32), 1)
                grid = np.meshgrid(*(np.arange(-1, n + 1) for n in tile.labels.shape[::-1]))
                axes.contour(*grid, inside, levels=[0.5], colors=[_colour(int(label))], linewidths=0.9)
    axes.set_xlim(-0.5, pixels.shape[1] - 0.5)
    edges = (-0.5, pixels.shape[0] - 0.5)
    axes.set_ylim(*(edges if tile.upwards else edges[::-1]))
    axes.set_title(tile.caption, fontsize=6.5, pad=2, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(tile.across, fontsize=6, labelpad=1)
    axes.set_ylabel(tile.along, fontsize=6, labelpad=1)
