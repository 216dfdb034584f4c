"""Tiles that show no tissue in focus: pen, blur, folds, by simple rules on each tile.

    fault(tile, Quality())         # None, or the number of the reason in REASONS

- pen: pixels in the colours of red, green and blue pens: thresholds of red, green and blue by Eriksson and Hu 2018 (IBM CODAIT,
  "Predicting breast cancer proliferation scores: automatic tissue segmentation", deep-histopath).
- blur: the variance of the Laplacian of the brightness: Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy"; so in
  HistoQC (Janowczyk et al. 2019). It depends on the scanner and the size of a pixel: look at what is left out.
- fold: where tissue lies double it is dark and saturated: saturation above intensity (HSI), as Bautista and Yagi 2010, "Detection of tissue
  folds in whole slide images", and Kothari et al. 2013; of means over squares, so that nuclei are no folds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedml.study.tiles import Quality

REASONS = ("pen", "blur", "fold")
Tile = npt.NDArray[np.uint8]  # (3, size, size)
_SQUARES = 8  # means along a tile, for folds
_FOLD = 0.2  # saturation above intensity

# Red above, green below, blue below; red below, green above, blue above; red below, green below, blue above.
_RED = ((150, 80, 90), (110, 20, 30), (185, 65, 105), (195, 85, 125), (220, 115, 145), (125, 40, 70), (200, 120, 150), (100, 50, 65), (85, 25, 45))  # fmt: skip  # noqa: E501
_GREEN = (
    (150, 160, 140), (70, 110, 110), (45, 115, 100), (30, 75, 60), (195, 220, 210), (225, 230, 225), (170, 210, 200), (20, 30, 20),
    (50, 60, 40), (30, 50, 35), (65, 70, 60), (100, 110, 105), (165, 180, 180), (140, 140, 150), (185, 195, 195),
)  # fmt: skip
_BLUE = (
    (60, 120, 190), (120, 170, 200), (175, 210, 230), (145, 180, 210), (37, 95, 160), (30, 65, 130), (130, 155, 180), (40, 35, 85),
    (30, 20, 65), (90, 90, 140), (60, 60, 120), (110, 110, 175),
)  # fmt: skip


def fault(tile: Tile, rules: Quality) -> int | None:
    """Why a tile is left out, as a number of ``REASONS``, the first that applies; None: it is used."""
    if rules.pen < 1 and pen(tile) > rules.pen:
        return 0
    if rules.blur and sharpness(tile) < rules.blur:
        return 1
    return 2 if rules.fold < 1 and fold(tile) > rules.fold else None


def pen(tile: Tile) -> float:
    """The fraction of pixels in the colour of a pen."""
    red, green, blue = tile
    found = np.zeros(red.shape, bool)
    for r, g, b in _RED:
        found |= (red > r) & (green < g) & (blue < b)
    for r, g, b in _GREEN:
        found |= (red < r) & (green > g) & (blue > b)
    for r, g, b in _BLUE:
        found |= (red < r) & (green < g) & (blue > b)
    return float(found.mean())


def sharpness(tile: Tile) -> float:
    """The variance of the Laplacian (4 neighbours) of the brightness (ITU-R BT.601), 0 to 255; inner pixels only."""
    grey = np.tensordot(np.array([0.299, 0.587, 0.114]), tile.astype(np.float64), 1)
    inner = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(inner.var())


def fold(tile: Tile) -> float:
    """The fraction of squares whose mean colour has more saturation than intensity (HSI, both 0 to 1)."""
    edges = np.linspace(0, tile.shape[1], min(_SQUARES, tile.shape[1]) + 1).astype(int)[:-1]
    sizes = np.diff(np.append(edges, tile.shape[1]))
    means = np.add.reduceat(np.add.reduceat(tile.astype(np.float64), edges, 1), edges, 2) / (sizes[:, None] * sizes[None, :]) / 255
    intensity = means.mean(0)
    saturation = 1 - means.min(0) / np.maximum(intensity, 1e-9)
    return float((saturation - intensity > _FOLD).mean())
