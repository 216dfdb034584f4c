"""Predictions of a trained model for slides, and where its attention is. They stay on this machine.

    write_slides(run, Path("slides"), Path("out"), SlideOptions(Path("encoder.safetensors")), say=print)
    # out/predictions.csv: a row a person; out/p1/1-attention.png: a small picture of each slide, its tiles coloured by attention

Colours go from blue (no attention) through yellow to red (the most that a tile of this person has). Attention says which tiles the model
combined, not which tissue is ill, and a person's weights sum to 1: compare no colours between persons (Jain and Wallace 2019).
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.slides.cohort import Bag, Slides, SlideTissue, read_slides
from fedml.cohort.slides.features import SlideFeatures, read_features
from fedml.cohort.slides.files import ENDINGS
from fedml.cohort.slides.slide import open_slide
from fedml.cohort.slides.thumbnail import thumbnail
from fedml.errors import InputError
from fedml.runs.log import MODEL, study_of, write_whole
from fedml.runs.restore import restore
from fedml.study.study import Study
from fedml.tasks.registry import make_task

TABLE = "predictions.csv"
_SIDE = 1600  # pixels of the picture's longer side
_COLOURS = np.array([[49, 54, 149], [255, 255, 150], [165, 0, 38]], np.float64)  # none, half, most
_COVER = 0.55  # how much of a tile's colour is attention


class SlideOptions(NamedTuple):
    """What the site gives: the encoder's weights, micrometres per pixel of slides that do not state them, and a folder for features that
    are to be kept (None: they are not)."""

    encoder: Path | None = None
    mpp: float | None = None
    cache: Path | None = None


def is_of_slides(run: Path) -> bool:
    """Whether a run's study reads slides; False also if the folder is no run."""
    try:
        image = study_of(run).cohort.image
    except (InputError, OSError):
        return False
    return image is not None and image.tiles is not None


def write_slides(run: Path, images: Path, out: Path, site: SlideOptions, say: Callable[[str], None]) -> list[Path]:
    """Writes the table of predictions, and a picture of each slide if the model has attention; returns the files.

    Args:
        run: the folder of a finished run. images: a slide, or a folder of slides as a site has them (``<id>.svs``,
            ``<id>/<name>.svs``, ``<id>/`` with DICOM).

    Raises:
        InputError: the run has no model, the model needs more than slides, or no slide can be used.
    """
    import torch

    if not (run / MODEL).exists():
        raise InputError(f"{run}: has no {MODEL}; give the folder of a run that finished.")
    study, model = restore(run)
    if study.cohort.inputs != ("image",):
        raise InputError(f"the model reads {', '.join(study.cohort.inputs)}; predict takes models of slides alone.")
    torch.set_num_threads(study.training.threads)
    folder, persons = _persons(images)
    written, rows = list[Path](), list[dict[str, str]]()
    with ExitStack() as stack:
        cache = site.cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = _read(study, folder, persons, site, cache)
        for excluded in found.excluded:
            say(f"left out: {excluded.text}")
        for row in np.unique(found.person):
            columns, weight = _predicted(study, model, found, int(row))
            rows.append({"id": persons[row], **columns})
            if weight is not None:
                slides = found.slides if isinstance(found, SlideFeatures) else found
                own = [slides.slides[k] for k in np.flatnonzero(found.person == row)]
                for slide, part in zip(own, np.split(weight, np.cumsum([len(s.corners) for s in own])[:-1]), strict=True):
                    name = slide.path.relative_to(folder).with_suffix("").as_posix()
                    written.append(_write(out / f"{name}-attention.png", picture(slide, part / weight.max(), study)))
                    say(str(written[-1]))
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    written.append(_write(out / TABLE, text.getvalue().encode()))
    say(str(written[-1]))
    return written


def picture(slide: SlideTissue, share: npt.NDArray[np.float64], study: Study) -> bytes:
    """A PNG of the slide, with its tiles coloured by ``share`` (tiles,), 0 to 1."""
    from PIL import Image

    opened, spec = open_slide(slide.path, slide.mpp), None if study.cohort.image is None else study.cohort.image.tiles
    assert spec is not None  # noqa: S101 - a study of slides
    try:
        small, cell = thumbnail(opened, _SIDE)
        span = spec.size_px * (1.0 if spec.mpp is None or opened.mpp is None else spec.mpp / (sum(opened.mpp) / 2))
    finally:
        opened.close()
    mixed = small.astype(np.float64)
    for (x, y), value in zip(slide.corners, share, strict=True):
        area = tuple(slice(int(at / cell), max(int((at + span) / cell), int(at / cell) + 1)) for at in (y, x))
        colour = np.array([np.interp(value, (0, 0.5, 1), _COLOURS[:, channel]) for channel in range(3)])
        mixed[area] = (1 - _COVER) * mixed[area] + _COVER * colour
    data = io.BytesIO()
    Image.fromarray(np.rint(mixed).astype(np.uint8)).save(data, "png")
    return data.getvalue()


def _persons(images: Path) -> tuple[Path, list[str]]:
    if not images.exists():
        raise InputError(f"{images}: no such file; give a slide, or a folder of slides.")
    if not images.is_dir():
        return images.parent, [_stem(images)]
    inside = [path for path in images.iterdir() if not path.name.startswith(".")]
    return images, sorted({path.name if path.is_dir() else _stem(path) for path in inside if path.is_dir() or path.name.endswith(ENDINGS)})


def _stem(path: Path) -> str:
    return path.name.removesuffix(next((ending for ending in ENDINGS if path.name.endswith(ending)), ""))


def _read(study: Study, folder: Path, persons: list[str], site: SlideOptions, cache: Path) -> Slides | SlideFeatures:
    from fedml.networks.frozen import build_encoder

    tiles = None if study.cohort.image is None else study.cohort.image.tiles
    assert tiles is not None  # noqa: S101 - a study of slides
    encoder = None
    if tiles.encoder is not None:
        encoder = build_encoder(tiles.encoder, tiles.size_px, weights=site.encoder, seed=study.study.seed, key="--encoder")
    try:
        found = read_slides(folder, persons, tiles, cache=cache / "slides", max_quarantined=1.0, mpp=lambda _: site.mpp)
    except InputError as error:
        raise InputError(
            str(error).replace("data.image mpp in site.toml", "--mpp").replace("data.image in site.toml", "--images")
        ) from error
    return found if encoder is None else read_features(found, encoder, cache=cache / "features", say=print)


def _predicted(study: Study, model: Any, found: Slides | SlideFeatures, row: int) -> tuple[dict[str, str], npt.NDArray[np.float64] | None]:
    """The answer's columns for one person, and the attention of each tile; None: the model has none."""
    import torch

    from fedml.networks.mil import embed

    batch = {**found.tensors(np.array([row]), None), "image_present": torch.ones(1)}
    with torch.inference_mode():
        columns = make_task(study).answer.columns(model(batch), batch)
        weight = None
        if model.pooling is not None:
            values: torch.Tensor | Bag = batch["image"]
            each = embed(lambda part: model.encoder["image"](model.preprocess["image"](part)), values)
            weight = model.pooling.attention(each, batch["image_person"], 1).double().numpy()
    return {name: str(np.asarray(value).reshape(-1)[0]) for name, value in columns.items()}, weight


def _write(path: Path, data: bytes) -> Path:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, data, mode=0o600)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give --out another folder.") from error
    return path
