"""Whole slides, the second form of the input ``image``: tiles that are read when a batch is iterated."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedml.cohort.deidentification import require_clean
from fedml.cohort.slides.cohort import Slides, SlideTissue, pool_slides, read_slides
from fedml.cohort.slides.features import SlideFeatures, pool_features, read_features
from fedml.cohort.slides.files import files_of_slide
from fedml.cohort.slides.quality import REASONS
from fedml.cohort.slides.scale import Stated
from fedml.cohort.slides.write import TIFF_TILE, write_tiff
from fedml.errors import InputError
from fedml.modalities.modality import Place
from fedml.study.study import Study
from fedml.study.tiles import Encoder, Tiles

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("fedml.site")
HIDDEN = 128  # features between those of the encoder and those that are pooled


def tiles_of(study: Study) -> Tiles | None:
    """The study's tile settings; None: its images are not slides."""
    return None if study.cohort.image is None else study.cohort.image.tiles


def encoder_of(study: Study) -> Encoder | None:
    """The study's frozen encoder of tiles; None: the model trains on pixels, or its images are not slides."""
    tiles = tiles_of(study)
    return None if tiles is None else tiles.encoder


def check_encoder(study: Study) -> bool:
    """Whether the study has an encoder of tiles. Raises ``InputError`` if it cannot be built."""
    from fedml.networks.frozen import check_encoder

    if (encoder := encoder_of(study)) is not None:
        check_encoder(encoder)
    return encoder is not None


class Given(NamedTuple):
    """What a site's manifest says of its slides: ``folder``; ``encoder``: path of the weights; ``mpp``: as of ``ImageData``."""

    folder: Path
    encoder: str | None = None
    mpp: float | Mapping[str, float] | None = None


def read(place: Place[Any], study: Study, ids: Sequence[str], given: Given) -> Slides | SlideFeatures:
    """The slides of the persons ``ids``, or their features; see ``fedml.cohort.slides.cohort.read_slides`` and ``features``."""
    tiles, stated = tiles_of(study), Stated(given.folder, given.mpp, place.file)
    assert tiles is not None  # noqa: S101 - a study of slides

    def check(path: Path, person: str) -> None:
        for file in files_of_slide(path):
            require_clean(file, given.folder, person, place.deidentification)

    spec = tiles.encoder
    path = None if given.encoder is None else place.folder / given.encoder
    encoder = None
    if spec is not None:  # before slides are read: it may be missing
        from fedml.networks.device import pick_device
        from fedml.networks.frozen import build_encoder

        seed, device = study.study.seed, pick_device(place.device)
        encoder = build_encoder(spec, tiles.size_px, weights=path, seed=seed, device=device, key=f"data.image encoder in {place.file}")
    found = read_slides(
        given.folder, ids, tiles, cache=place.cache / "slides", max_quarantined=place.max_quarantined, check=check, mpp=stated.of,
    )  # fmt: skip
    if encoder is None:
        return replace(found, stain=study.training.augment.stain)
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(study.training.threads)
    try:
        return read_features(found, encoder, cache=place.cache / "features", say=log.info, file=path)
    finally:
        torch.set_num_threads(before)


def summary(value: Slides | SlideFeatures) -> list[str]:
    """Lines for the site: how many slides and tiles there are, and what was left out."""
    slides = value.slides if isinstance(value, SlideFeatures) else value
    lines = [f"slides: {len(slides.slides)} with {slides.tiles} tiles of {slides.spec.size_px} pixels with tissue"]
    if slides.spec.quality is not None:
        counts = np.sum([slide.left_out for slide in slides.slides], axis=0)
        touched = sum(any(slide.left_out) for slide in slides.slides)
        text = ", ".join(f"{count} for {reason}" for reason, count in zip(REASONS, counts, strict=True))
        lines.append(f"tiles left out by [cohort.image.tiles.quality]: {text}; on {touched} of these slides")
    if isinstance(value, SlideFeatures):
        lines.append(f"features: {value.width} of each tile, computed once, {sum(a.nbytes for a in value.arrays) / 2**20:.1f} MiB")
    return lines


def pool(parts: Sequence[tuple[str, Any, int]], study: Study) -> Slides | SlideFeatures:
    """Several sites' slides or features as one."""
    if encoder_of(study) is not None:
        return pool_features([(value if isinstance(value, SlideFeatures) else None, persons) for _, value, persons in parts])
    return pool_slides([(value if isinstance(value, Slides) else None, persons) for _, value, persons in parts])


def network(study: Study, shape: Sequence[int], outputs: int) -> nn.Module | None:
    """From the features of a tile to those that are pooled: one hidden layer (as before the attention of Lu et al. 2021, CLAM). None: the
    study has no encoder."""
    from torch import nn

    if encoder_of(study) is None:
        return None
    return nn.Sequential(nn.Linear(shape[0], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))


def network_words(study: Study) -> str:
    """The network of a study with an encoder, for the report."""
    encoder, pooling = encoder_of(study), study.model.image.pooling
    assert encoder is not None  # noqa: S101 - net "mlp" is for such studies only
    weights = f"weights with SHA-256 {encoder.sha256}" if encoder.sha256 else "random weights" if encoder.untrained else "fixed filters"
    after = ", a person's tiles combined by learned attention" if pooling == "attention" else ""
    return f"image: features of tiles by a frozen {encoder.net} ({weights}), then a hidden layer of {HIDDEN}{after}"


def check_format(kind: str, study: Study, file: Path) -> None:
    """Raises ``InputError`` if a site has slides and the study reads images, or the reverse."""
    tiled = tiles_of(study) is not None
    if tiled and kind != "slide":
        text = f'{file}: data.image has format = "{kind}", study "{study.study.name}" reads tiles of slides; '
        raise InputError(text + 'give the folder of slides with format = "slide".')
    if kind == "slide" and not tiled:
        text = f'{file}: data.image has format = "slide", study "{study.study.name}" does not define tiles; '
        raise InputError(text + "it needs [cohort.image] tiles = { size_px = 256 }.")


def placeholder(value: Slides | SlideFeatures) -> Slides | SlideFeatures:
    """As many slides, without files; ``write`` writes one slide of noise for all of them."""
    empty = SlideTissue(Path(), np.zeros((0, 2), np.int64), np.zeros((3, 3)), (0, 0))
    slides = Slides(value.spec, (empty,) * len(value.person), value.person)
    return replace(value, slides=slides, arrays=()) if isinstance(value, SlideFeatures) else slides


def write(value: Slides | SlideFeatures, ids: Sequence[str], folder: Path) -> Mapping[str, str]:
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
    file = value.encoder if isinstance(value, SlideFeatures) else None
    return {"path": "slides", "format": "slide", **({} if file is None else {"encoder": str(file.resolve())})}


def raw(values: Any) -> dict[str, torch.Tensor]:
    """The tensors of a batch from tiles (persons, tiles, channels, size, size), or from features of the study's encoder (persons, tiles,
    features); a tile that is all NaN is missing."""
    import torch

    bags = torch.from_numpy(np.asarray(values).astype(np.float32))
    present = ~torch.isnan(bags.flatten(2)).all(2)
    return {"image_person": torch.nonzero(present)[:, 0], "image_present": present.any(1).float(), "image": bags[present]}


def plan(tiles: Tiles, pooling: str) -> str:
    """The data that are read, for the plan."""
    scale = f"at {tiles.mpp:g} micrometres a pixel" if tiles.mpp is not None else "of a slide's finest level"
    return (
        f"slides, in tiles of {tiles.size_px} x {tiles.size_px} pixels {scale} with at least {tiles.min_tissue:.0%} tissue "
        f"({tiles.per_step} tiles of a person in a training step, all in evaluation; pooled by {pooling}){_encoded(tiles)}"
    )


def _encoded(tiles: Tiles) -> str:
    text = "; tiles with pen, out of focus or on a fold are left out" if tiles.quality is not None else ""
    if (encoder := tiles.encoder) is None:
        return text
    known = f"weights {encoder.sha256[:12]}" if encoder.sha256 else "UNTRAINED: random weights" if encoder.untrained else "fixed filters"
    return f"{text}; features of a frozen {encoder.net} ({known}), computed once at each site"


def preparation(tiles: Tiles) -> str:
    """The preparation of slides before standardisation."""
    at = f" at {tiles.mpp:g} micrometres a pixel" if tiles.mpp else " of a slide's finest level"
    return (
        f"Slides are cut into tiles of {tiles.size_px} x {tiles.size_px} pixels{at}, used where at least {tiles.min_tissue:.0%} is tissue; "
        f"a training step samples {tiles.per_step} tiles of a person{_encoded(tiles)}."
    )
