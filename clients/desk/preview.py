"""A contact sheet of the site's images as the network receives them: after preprocessing, masks as contours. The sheet stays at the site.

path = preview(site, study, persons=12)       # writes .fedml/preview.png, readable by this account only
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedml.clients.site.manifest import Site, check_roster
from fedml.clients.site.read import read_cohort
from fedml.cohort.images.images import Images
from fedml.cohort.persons import Cohort
from fedml.errors import InputError
from fedml.pictures import Tile, planes, sheet, spread
from fedml.study.section import PARTS, normal
from fedml.study.study import Study
from fedml.tasks.registry import make_task

if TYPE_CHECKING:
    from fedml.cohort.persons import Batch

FILE = "preview.png"
_ACROSS = 6  # tiles in a row


def preview(site: Site, study: Study, *, persons: int = 12, out: Path | None = None, say: Callable[[str], None] = print) -> Path:
    """Draws ``persons`` persons with an image, evenly spaced in the persons table, and returns the path of the PNG file.

    Args:
        out: the PNG file; None: ``preview.png`` in the site's ``.fedml``. Its mode is always 0600.

    Raises:
        InputError: the study reads no images, the site has none, the data cannot be used, or ``out`` cannot be written.
    """
    check_roster(site, study)
    if "image" not in study.cohort.inputs:
        raise InputError(f'study "{study.study.name}" reads no images ([cohort] inputs is {", ".join(study.cohort.inputs)}).')
    if site.manifest.data.image is None:
        raise InputError(f"{site.file}: [data] has no image, so a preview is not possible; add image to [data].")
    path = _place(site, out)
    say(f'{site.name}: reading the images as study "{study.study.name}" would')
    cohort = read_cohort(site, study)
    if (images := cohort.input("image", Images)) is None:
        raise InputError(f"{site.file}: no person has a usable image; fedml-site data lists the reasons.")
    for why, count in cohort.excluded_images.items():
        say(f"  excluded {count} images: {why} (fedml-site data lists them)")
    rows = spread(np.flatnonzero(images.has(len(cohort))), persons)
    say(f"{site.name}: drawing {len(rows)} of {len(cohort)} persons")
    tiles: list[Tile] = []
    voxels = np.zeros(len(study.cohort.classes), np.int64)
    batch: Batch = {}
    for number, row in enumerate(rows, start=1):
        batch = cohort.batch([int(row)])
        tiles += _tiles(study, cohort, int(row), number, batch)
        if "mask" in batch:
            voxels += np.bincount(batch["mask"].numpy().ravel(), minlength=len(voxels))
        say(f"  {number}: {cohort.ids[row]}")
    flat = batch["image"].ndim == 4
    columns = min(_ACROSS, len(tiles)) if flat else min(_ACROSS, 3 * len(rows))
    data = sheet(
        tiles, columns=columns, title=_title(site, study, batch), classes=_legend(study, voxels) if "mask" in batch else (),
        histogram=True, note="Patient data: keep it at the site. Tiles are numbered; the command printed the person of each number.",
    )  # fmt: skip
    _write(path, data)
    return path


def _tiles(study: Study, cohort: Cohort, row: int, number: int, batch: Batch) -> list[Tile]:
    caption: str = PARTS[int(cohort.parts[row])]
    if label := make_task(study).labels.show(cohort.labels[row]):
        caption += f", {study.cohort.outcome} {label}"
    shape, images = study.cohort.image, batch["image"].numpy()
    out = []
    for k, image in enumerate(images):
        name = f"{number}" if len(images) == 1 else f"{number} image {k + 1} of {len(images)}"
        mask = batch["mask"][k, 0].numpy() if "mask" in batch else None
        out += planes(
            image, mask, f"{name}  {caption}", spacing=_spacing(study, batch, k),
            orientation="" if shape is None or shape.preprocess is None else shape.orientation,
        )  # fmt: skip
    return out


def _spacing(study: Study, batch: Batch, k: int) -> list[float] | None:
    if "image_spacing" in batch and len(batch["image_spacing"]):
        return [float(v) for v in batch["image_spacing"][k]]
    stated = None if study.cohort.image is None else study.cohort.image.spacing_mm
    return list(stated) if stated else None


def _title(site: Site, study: Study, batch: Batch) -> str:
    channels, *size = batch["image"].shape[1:]
    step = _spacing(study, batch, 0) if len(batch["image"]) else None
    known = step is not None and bool(np.isfinite(step).all())
    spacing = " x ".join(f"{v:.3g}" for v in step) + " mm" if known and step is not None else "not stated"
    shown = "" if channels in (1, 3) else f", the first of {channels} channels"
    return (
        f'site {site.name}, study "{study.study.name}": the network\'s input before standardisation\n'
        f"{' x '.join(map(str, size))} voxels, spacing {spacing}{shown}"
    )


def _legend(study: Study, voxels: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[str]:
    share = voxels / max(int(voxels.sum()), 1)
    return [f"{normal(c)} ({part:.2%} of voxels)" for c, part in zip(study.cohort.classes[1:], share[1:], strict=True)]


def _place(site: Site, out: Path | None) -> Path:
    """The file to write; its folder exists."""
    if out is None:
        from fedml.clients.service import prepare_state

        try:
            return prepare_state(site) / FILE
        except OSError as error:
            raise InputError(f"{site.state}: cannot be created ({error.strerror}); give --out a file in a folder of yours.") from error
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: the preview is a PNG file; give a name that ends with .png.")
    if not out.parent.is_dir() or out.is_dir():
        problem = "is a folder" if out.is_dir() else "the file's folder does not exist"
        raise InputError(f"--out {out}: {problem}; give a file in an existing folder.")
    return out


def _write(path: Path, data: bytes) -> None:
    """Writes the file completely or not at all, readable by this account only."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give --out another file.") from error
