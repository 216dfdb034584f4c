"""Whole slides, the second form of the input ``image``: tiles that are read when a batch is gone through."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedml.cohort.slides.cohort import Looked, Slides, read_slides
from fedml.cohort.slides.write import TIFF_TILE, write_tiff
from fedml.errors import InputError
from fedml.study.cohort_section import Tiles
from fedml.study.study import Study

if TYPE_CHECKING:
    import torch


def tiles_of(study: Study) -> Tiles | None:
    """How the study cuts slides; None: its images are no slides."""
    return None if study.cohort.image is None else study.cohort.image.tiles


def read(folder: Path, tiles: Tiles, ids: Sequence[str], cache: Path, max_quarantined: float) -> Slides:
    """The slides of the persons ``ids``; see ``fedml.cohort.slides.cohort.read_slides``."""
    return read_slides(folder, ids, tiles, cache=cache / "slides", max_quarantined=max_quarantined)


def check_format(kind: str, study: Study, file: Path) -> None:
    """Raises ``InputError`` where a site's images are slides and the study reads none, or the other way round."""
    tiled = tiles_of(study) is not None
    if tiled and kind != "slide":
        text = f'{file}: data.image has format = "{kind}", study "{study.study.name}" reads tiles of slides; '
        raise InputError(text + 'give the folder of slides with format = "slide".')
    if kind == "slide" and not tiled:
        text = f'{file}: data.image has format = "slide", study "{study.study.name}" does not say how slides are cut; '
        raise InputError(text + "it needs [cohort.image] tiles = { size_px = 256 }.")


def placeholder(value: Slides) -> Slides:
    """As many slides, of no pixels yet: ``write`` writes one of noise for all of them."""
    nowhere = Looked(Path(), np.zeros((0, 2), np.int64), np.zeros((3, 3)), (0, 0))
    return Slides(value.spec, (nowhere,) * len(value.slides), value.person)


def write(value: Slides, ids: Sequence[str], folder: Path) -> Mapping[str, str]:
    """One slide of noise that is all tissue, as many tiles as a step of training draws, under the name of each of the cohort's slides."""
    spec, random, out = value.spec, np.random.default_rng(0), folder / "slides"
    side = spec.size_px * min(8, math.isqrt(spec.per_step - 1) + 1)
    side = -(-side // TIFF_TILE) * TIFF_TILE
    pixels = random.integers(0, 90, (side, side, 3), dtype=np.uint8) + np.array([160, 70, 130], np.uint8)
    out.mkdir(mode=0o700)
    write_tiff(folder / "noise.tif", pixels, spec.mpp)
    for k, row in enumerate(value.person):
        own = out / ids[row]
        own.mkdir(exist_ok=True)
        (own / f"{k}.tif").hardlink_to(folder / "noise.tif")
    return {"path": "slides", "format": "slide"}


def raw(values: Any) -> dict[str, torch.Tensor]:
    """Tiles (persons, tiles, channels, size, size) as a batch has them; a tile that is all NaN stands for none."""
    import torch

    bags = torch.from_numpy(np.asarray(values).astype(np.float32))
    there = ~torch.isnan(bags.flatten(2)).all(2)
    return {"image_person": torch.nonzero(there)[:, 0], "image_present": there.any(1).float(), "image": bags[there]}


def plan(tiles: Tiles, pooling: str) -> str:
    """What is read, for the plan."""
    scale = f"at {tiles.mpp:g} micrometres a pixel" if tiles.mpp is not None else "of a slide's finest level"
    return (
        f"slides, in tiles of {tiles.size_px} x {tiles.size_px} pixels {scale} with at least {tiles.min_tissue:.0%} tissue "
        f"({tiles.per_step} of a person a step, all in evaluation; pooled by {pooling})"
    )


def preparation(tiles: Tiles) -> str:
    """What is done to slides before standardisation."""
    at = f" at {tiles.mpp:g} micrometres a pixel" if tiles.mpp else " of a slide's finest level"
    return (
        f"Slides are cut into tiles of {tiles.size_px} x {tiles.size_px} pixels{at}, used where at least {tiles.min_tissue:.0%} is tissue; "
        f"a step of training draws {tiles.per_step} of a person."
    )
