"""Whole-slide images: reads tiles on demand and finds tissue. OpenSlide reads SVS, NDPI, MRXS, SCN, generic tiled TIFF and others.

    slide = open_slide(Path("biopsy.svs"))
    slide.size, slide.levels, slide.mpp, slide.magnification     # (2220, 2967), (Level(...),), (0.499, 0.499), 20.0
    slide.tile(1024, 512, 256, level=0)                          # uint8 (3, 256, 256)
    for x, y in tissue_tiles(slide, 256, level=0): ...           # int64 (n, 2), tiles with at least half tissue
    tile_at(slide, x, y, 256, mpp=0.5)                           # the same number of micrometres per pixel at every site

``x`` and ``y`` are pixels of level 0, the finest, for every ``level`` (as in OpenSlide's ``read_region``). Label and macro images may show
a name: this module cannot read them, and returns no other property of the file than those above.

A damaged slide raises ``ItemError``. After a failed tile the whole slide is unusable, because OpenSlide closes the file.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.files import looks_dicom
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.slides.dicom import check_series
from fedml.cohort.slides.tiff import check_tiff
from fedml.errors import InputError
from fedml.quiet import told

Tile = npt.NDArray[np.uint8]
LARGEST_TILE = 8192  # pixels per side: 256 MB of RGBA
LARGEST_SIDE = 2**20  # pixels; scanners write up to about 2**18
LARGEST_SCAN = 2**35  # pixels read for a tissue mask, which takes some minutes
PLAUSIBLE_MPP = 0.01, 50.0  # micrometres per pixel; a camera's default of 72 dots per inch would be 353
SATURATION = 0.05, 0.2  # limits of Otsu's threshold: an image of glass alone, or of tissue alone, has no two classes
DARK = 0.1  # HSV value below which pixels are black (outside the scan) and their saturation is noise
CELLS = 8  # cells of the tissue mask along a tile
LARGEST_MASK = 4096  # cells per side
_BLOCK = 2048  # pixels per side read at once for the mask


class Level(NamedTuple):
    """A level of the pyramid: its size in pixels, and the width of one of its pixels in pixels of level 0."""

    width: int
    height: int
    downsample: float


@final
class Slide:
    """An open slide: ``size`` (width, height) of level 0 in pixels, ``levels`` from the finest, ``mpp`` (x, y) in micrometres per pixel of
    level 0 and ``magnification`` of the objective, None if the file does not state them.

    Each process opens the file separately, so a slide may be passed to a DataLoader's workers.
    """

    def __init__(self, path: Path, stated: float | None = None) -> None:
        self.path = path
        self._process = -1
        self._open: Any = None
        handle: Any = self._handle()
        properties = handle.properties
        try:
            pairs = zip(handle.level_dimensions, handle.level_downsamples, strict=True)
            self.levels = tuple(Level(int(width), int(height), float(down)) for (width, height), down in pairs)
        except Exception as error:
            raise _unreadable(path, error) from error
        self.size = self.levels[0].width, self.levels[0].height
        if max(self.size) > LARGEST_SIDE:
            raise ItemError(
                Unusable.TOO_LARGE, f"{path}: declares {self.size[0]} x {self.size[1]} pixels, the limit is {LARGEST_SIDE} per side"
            )
        mpp = tuple(_number(properties.get(f"openslide.mpp-{axis}"), *PLAUSIBLE_MPP) for axis in "xy")
        self.mpp = (mpp[0], mpp[1]) if mpp[0] is not None and mpp[1] is not None else None
        if stated is not None:
            self._state(stated)
        self.magnification = _number(properties.get("openslide.objective-power"), 0.1, 1000.0)
        colour = properties.get("openslide.background-color", "FFFFFF")
        self._background = np.frombuffer(bytes.fromhex(colour), np.uint8)

    def _state(self, stated: float) -> None:
        """Takes over the micrometres per pixel that the site states, which must not contradict the file."""
        if self.mpp is not None and any(abs(own / stated - 1) > 0.02 for own in self.mpp):
            raise InputError(
                f"{self.path}: states {self.mpp[0]:g} x {self.mpp[1]:g} micrometres per pixel, and site.toml states {stated:g} in "
                "data.image mpp; correct mpp, or leave it out for this file."
            )
        self.mpp = self.mpp or (stated, stated)

    def tile(self, x: int, y: int, size: int, level: int = 0) -> Tile:
        """``size`` x ``size`` pixels of ``level`` whose upper left corner is at (``x``, ``y``) of level 0: uint8 (3, size, size), RGB.

        Regions that were not scanned, or are past the right or lower edge, have the file's background colour (default: white).

        Raises:
            ItemError: the pixels cannot be decoded.
            ValueError: the corner is outside the slide, the level does not exist, or ``size`` exceeds ``LARGEST_TILE``.
        """
        return np.ascontiguousarray(np.moveaxis(self.region(x, y, size, size, level), 2, 0))

    def region(self, x: int, y: int, width: int, height: int, level: int) -> Tile:
        """``width`` x ``height`` pixels as ``tile`` reads them: uint8 (height, width, 3)."""
        if not (0 <= x < self.size[0] and 0 <= y < self.size[1]):
            raise ValueError(f"({x}, {y}) is outside a slide of {self.size[0]} x {self.size[1]} pixels")
        if not 0 <= level < len(self.levels):
            raise ValueError(f"no level {level}; the slide has {len(self.levels)}")
        if not (1 <= width <= LARGEST_TILE and 1 <= height <= LARGEST_TILE):
            raise ValueError(f"a tile has 1 to {LARGEST_TILE} pixels per side, not {width} x {height}")
        try:
            pixels = np.asarray(self._handle().read_region((int(x), int(y)), level, (width, height)))
        except Exception as error:  # exceptions of OpenSlide and Pillow
            raise _unreadable(self.path, error) from error
        colours, alpha = pixels[..., :3], pixels[..., 3:]
        if alpha.min() == 255:
            return colours
        over: npt.NDArray[np.uint16] = colours * alpha.astype(np.uint16) + self._background * (255 - alpha.astype(np.uint16)) + 127
        return np.asarray(over // 255, np.uint8)

    def _handle(self) -> Any:
        """OpenSlide's object of this process: two processes with one file descriptor would change each other's file position."""
        if self._process != os.getpid():
            import openslide

            try:
                if self._process < 0:
                    check_tiff(self.path)
                    if looks_dicom(self.path):
                        check_series(self.path)
                self._open = openslide.OpenSlide(self.path)
            except ItemError:
                raise
            except Exception as error:
                raise _unreadable(self.path, error) from error
            self._process = os.getpid()
        return self._open

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": -1, "_open": None}

    def close(self) -> None:
        """Closes the file; reading a tile later opens it again."""
        if self._process == os.getpid():
            self._handle().close()
        self._process, self._open = -1, None


def open_slide(path: Path, mpp: float | None = None) -> Slide:
    """The slide at ``path``; no pixel is read yet.

    Args:
        mpp: micrometres per pixel of the finest level, as the site states them; None: as in the file.

    Raises:
        ItemError: the file does not exist, is not a slide that OpenSlide can read, is damaged, or declares an implausible size.
        InputError: the file states more than 2 % less or more than ``mpp``.
    """
    return Slide(path, mpp)


def tile_at(slide: Slide, x: int, y: int, size: int, mpp: float) -> Tile:
    """``size`` x ``size`` pixels at ``mpp`` micrometres per pixel, corner at (``x``, ``y``) of level 0: uint8 (3, size, size), RGB.

    Read from the coarsest level that is at least as fine as ``mpp`` (or up to 2 % coarser, the difference between scanners at 20x),
    averaged over areas. Unlike a level number, this gives the same scale at sites with different scanners.

    Raises:
        ItemError: the file does not state its scale, or its finest level is coarser than ``mpp``; and as ``Slide.tile``.
        ValueError: as ``Slide.tile``.
    """
    from PIL import Image

    level, ratio = _level_at(slide, mpp)
    side = max(1, round(size * ratio))
    pixels = slide.region(x, y, side, side, level)
    if side != size:
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BOX))
    return np.ascontiguousarray(np.moveaxis(pixels, 2, 0))


def tissue_tiles(slide: Slide, size: int, level: int = 0, min_tissue: float = 0.5) -> npt.NDArray[np.int64]:
    """Corners of the complete tiles of a grid of ``size`` pixels of ``level`` with a share of tissue of at least ``min_tissue``.

    A cell is tissue if its saturation exceeds Otsu's threshold (Otsu 1979, doi:10.1109/TSMC.1979.4310076) on a thumbnail whose pixels are
    about an eighth of a tile wide. The threshold is limited to ``SATURATION``; nearly black cells are not tissue. Memory is a few hundred
    MB for any size of slide; a slide without coarse levels is read completely, in blocks.

    Returns:
        int64 (n, 2): (x, y) in pixels of level 0, row by row.

    Raises:
        ItemError: the pixels cannot be decoded.
        ValueError: the level does not exist, or ``size`` is below 1.
    """
    if not 0 <= level < len(slide.levels):
        raise ValueError(f"no level {level}; the slide has {len(slide.levels)}")
    return _tissue(slide, size * slide.levels[level].downsample, min_tissue)


def tissue_tiles_at(slide: Slide, size: int, mpp: float, min_tissue: float = 0.5) -> npt.NDArray[np.int64]:
    """As ``tissue_tiles``, for tiles that ``tile_at`` reads.

    Raises:
        ItemError: as ``tile_at``.
        ValueError: as ``tissue_tiles``.
    """
    level, ratio = _level_at(slide, mpp)
    return _tissue(slide, size * ratio * slide.levels[level].downsample, min_tissue)


def otsu(histogram: npt.NDArray[np.int64]) -> int:
    """The last bin of the lower class, for which the between-class variance is largest (Otsu 1979, equation 18); the first at a tie.

    Args:
        histogram: int64 (bins,), counts.
    """
    weight = histogram.astype(np.float64)
    below, total = np.cumsum(weight), weight.sum()
    mean = np.cumsum(weight * np.arange(len(weight)))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean[-1] * below - mean * total) ** 2 / (below * (total - below))
    return int(np.argmax(np.nan_to_num(between, nan=-1.0, posinf=-1.0)))


# --- inside


def _tissue(slide: Slide, span: float, min_tissue: float) -> npt.NDArray[np.int64]:
    """As ``tissue_tiles``; ``span`` is the side of a tile in pixels of level 0."""
    if span < 1:
        raise ValueError("a tile has at least 1 pixel per side")
    mask, cell = _tissue_mask(slide, max(span / CELLS, max(slide.size) / LARGEST_MASK))
    columns, rows = (math.floor(side / span + 1e-6) for side in slide.size)
    if not columns or not rows:
        return np.zeros((0, 2), np.int64)
    area = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)  # number of tissue cells to the left of and above each corner
    area[1:, 1:] = mask.cumsum(0, dtype=np.int32).cumsum(1)

    def bounds(tiles: int, cells: int, each: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        edges = np.arange(tiles + 1) * (span / each)
        begin = np.minimum(np.rint(edges[:-1]).astype(np.int64), cells - 1)
        return begin, np.clip(np.rint(edges[1:]).astype(np.int64), begin + 1, cells)

    (left, right), (top, bottom) = bounds(columns, mask.shape[1], cell[0]), bounds(rows, mask.shape[0], cell[1])
    tissue = area[np.ix_(bottom, right)] - area[np.ix_(top, right)] - area[np.ix_(bottom, left)] + area[np.ix_(top, left)]
    share = tissue / ((bottom - top)[:, None] * (right - left)[None, :])
    row, column = np.nonzero(share >= min_tissue)
    return np.asarray(np.rint(np.stack([column, row], axis=1) * span), np.int64)


def _tissue_mask(slide: Slide, wanted: float) -> tuple[npt.NDArray[np.bool_], tuple[float, float]]:
    """Tissue mask, bool (rows, columns), in cells of at most about ``wanted`` pixels of level 0, and a cell's (width, height) in pixels of
    level 0."""
    fine = [k for k, found in enumerate(slide.levels) if found.downsample <= max(1.0, wanted)]
    level = max(fine, key=lambda k: slide.levels[k].downsample)
    width, height, down = slide.levels[level]
    if width * height > LARGEST_SCAN:
        raise ItemError(
            Unusable.TOO_LARGE, f"{slide.path}: has no coarse level, and {width} x {height} pixels exceed the limit of {LARGEST_SCAN}"
        )
    factor = max(1, int(wanted / down))
    block = max(1, min(_BLOCK, LARGEST_TILE) // factor) * factor
    shape = -(-height // factor), -(-width // factor)
    saturation = np.zeros(shape, np.uint8)
    across, tall = slide.size[0] / width, slide.size[1] / height  # size of a pixel in pixels of level 0; the two may differ slightly
    for top in range(0, height, block):
        for left in range(0, width, block):
            wide, high = min(block, width - left), min(block, height - top)
            pixels = slide.region(int(left * across), int(top * tall), wide, high, level)
            part = _saturation(_means(pixels, factor))
            saturation[top // factor :, left // factor :][: part.shape[0], : part.shape[1]] = part
    low, most = (round(255 * bound) for bound in SATURATION)
    threshold = min(max(otsu(np.bincount(saturation.reshape(-1), minlength=256)), low), most)
    return saturation > threshold, (factor * across, factor * tall)


def _means(pixels: Tile, factor: int) -> npt.NDArray[np.float32]:
    """float32 (rows, columns, 3): means over squares of ``factor`` pixels; squares at the right and lower edge may be smaller."""
    if factor == 1:
        return pixels.astype(np.float32)
    sums: npt.NDArray[Any] = pixels.astype(np.float32)
    for axis in (0, 1):
        starts = np.arange(0, sums.shape[axis], factor)
        counts = np.diff(np.append(starts, sums.shape[axis])).astype(np.float32)
        sums = np.add.reduceat(sums, starts, axis=axis) / (counts[:, None, None] if axis == 0 else counts[None, :, None])
    return sums


def _saturation(colours: npt.NDArray[np.float32]) -> Tile:
    """HSV saturation, 0 to 255; 0 for nearly black pixels."""
    largest, smallest = colours.max(axis=2), colours.min(axis=2)
    share = np.divide(largest - smallest, largest, out=np.zeros_like(largest), where=largest > 255 * DARK)
    return np.asarray(np.rint(255 * share), np.uint8)


def _level_at(slide: Slide, mpp: float) -> tuple[int, float]:
    """The level to read, and the width of a pixel of ``mpp`` micrometres in pixels of that level."""
    if slide.mpp is None:
        text = f"{slide.path}: does not state its micrometres per pixel; if you know them, write them as data.image mpp in site.toml"
        raise ItemError(Unusable.GEOMETRY, text)
    if abs(slide.mpp[0] / slide.mpp[1] - 1) > 0.02:
        raise ItemError(Unusable.GEOMETRY, f"{slide.path}: has pixels of {slide.mpp[0]:g} x {slide.mpp[1]:g} micrometres, not square")
    finest = sum(slide.mpp) / 2
    fine = [k for k, level in enumerate(slide.levels) if finest * level.downsample <= mpp * 1.02]
    if not fine:
        raise ItemError(
            Unusable.GEOMETRY, f"{slide.path}: has {finest:g} micrometres per pixel at its finest level, the study needs {mpp:g}"
        )
    level = max(fine, key=lambda k: slide.levels[k].downsample)
    ratio = mpp / (finest * slide.levels[level].downsample)
    return level, 1.0 if abs(ratio - 1) <= 0.02 else ratio


def _number(text: str | None, least: float, most: float) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if least <= value <= most else None


def _unreadable(path: Path, error: Exception) -> ItemError:
    return ItemError(Unusable.UNREADABLE, f"{path}: cannot be read as a slide ({told(error)}).")
