"""Whole slides, the second form of the input ``image``: tiles that are read when a batch is iterated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedml.cohort.deidentification import require_clean
from fedml.cohort.dicom.deidentified import Deidentification
from fedml.cohort.slides.cohort import Slides, SlideTissue, read_slides
from fedml.cohort.slides.write import TIFF_TILE, write_tiff
from fedml.errors import InputError
from fedml.study.study import Study
from fedml.study.tiles import Tiles

if TYPE_CHECKING:
    import torch


def tiles_of(study: Study) -> Tiles | None:
    """The study's tile settings; None: its images are not slides."""
    return None if study.cohort.image is None else study.cohort.image.tiles


def read(folder: Path, tiles: Tiles, ids: Sequence[str], cache: Path, max_quarantined: float, policy: Deidentification) -> Slides:
    """The slides of the persons ``ids``; see ``fedml.cohort.slides.cohort.read_slides``."""

    def check(path: Path, person: str) -> None:
        require_clean(path, folder, person, policy)

    return read_slides(folder, ids, tiles, cache=cache / "slides", max_quarantined=max_quarantined, check=check)


def check_format(kind: str, study: Study, file: Path) -> None:
    """Raises ``InputError`` if a site has slides and the study reads images, or the reverse."""
    tiled = tiles_of(study) is not None
    if tiled and kind != "slide":
        text = f'{file}: data.image has format = "{kind}", study "{study.study.name}" reads tiles of slides; '
        raise InputError(text + 'give the folder of slides with format = "slide".')
    if kind == "slide" and not tiled:
        text = f'{file}: data.image has format = "slide", study "{study.study.name}" does not define tiles; '
        raise InputError(text + "it needs [cohort.image] tiles = { size_px = 256 }.")


def placeholder(value: Slides) -> Slides:
    """As many slides, without files; ``write`` writes one slide of noise for all of them."""
    empty = SlideTissue(Path(), np.zeros((0, 2), np.int64), np.zeros((3, 3)), (0, 0))
    return Slides(value.spec, (empty,) * len(value.slides), value.person)


def write(value: Slides, ids: Sequence[str], folder: Path) -> Mapping[str, str]:
    """Writes one slide of noise with as many tissue tiles as a training step samples, and links it for each slide of the cohort."""
    spec, random, out = value.spec, np.random.default_rng(0), folder / "slides"
    side = spec.size_px * min(8, math.isqrt(spec.per_step - 1) + 1)
    side = -(-side // TIFF_TILE) * TIFF_TILE
    pixels = random.integers(0, 90, (side, side, 3), dtype=np.uint8) + np.array([160, 70, 130], np.uint8)
    out.mkdir(mode=0o700)
    write_tiff(folder / "noise.tif", pixels, spec.mpp)
    for k, row in enumerate(value.person):
        folder_of_person = out / ids[row]
        folder_of_person.mkdir(exist_ok=True)
        (folder_of_person / f"{k}.tif").hardlink_to(folder / "noise.tif")
    return {"path": "slides", "format": "slide"}


def raw(values: Any) -> dict[str, torch.Tensor]:
    """The tensors of a batch from tiles (persons, tiles, channels, size, size); a tile that is all NaN is missing."""
    import torch

    bags = torch.from_numpy(np.asarray(values).astype(np.float32))
    present = ~torch.isnan(bags.flatten(2)).all(2)
    return {"image_person": torch.nonzero(present)[:, 0], "image_present": present.any(1).float(), "image": bags[present]}


def plan(tiles: Tiles, pooling: str) -> str:
    """The data that are read, for the plan."""
    scale = f"at {tiles.mpp:g} micrometres a pixel" if tiles.mpp is not None else "of a slide's finest level"
    return (
        f"slides, in tiles of {tiles.size_px} x {tiles.size_px} pixels {scale} with at least {tiles.min_tissue:.0%} tissue "
        f"({tiles.per_step} tiles of a person in a training step, all in evaluation; pooled by {pooling})"
    )


def preparation(tiles: Tiles) -> str:
    """The preparation of slides before standardisation."""
    at = f" at {tiles.mpp:g} micrometres a pixel" if tiles.mpp else " of a slide's finest level"
    return (
        f"Slides are cut into tiles of {tiles.size_px} x {tiles.size_px} pixels{at}, used where at least {tiles.min_tissue:.0%} is tissue; "
        f"a training step samples {tiles.per_step} tiles of a person."
    )
