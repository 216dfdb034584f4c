"""Pictures of a model's predictions for test persons, for sites that declare their images public (``[data] public = true``).

The process that ran the study on the same machine as the data draws the pictures. No picture crosses the federation, and in a deployment
no pictures are drawn.

    write_examples(run, study, sites, print)      # RUN/examples/<site>.png, which fedml.tracking.deliver puts into MLflow
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.clients.site.manifest import Site
from fedml.clients.site.read import load_aligned
from fedml.cohort.images.images import Images
from fedml.cohort.persons import Cohort
from fedml.pictures import Tile, most_of, plane, sheet, spread
from fedml.runs.log import EXAMPLES, load_model, saved_window, write_whole
from fedml.runs.restore import restore
from fedml.study.section import normal
from fedml.study.study import Study
from fedml.tasks.registry import make_task
from fedml.tasks.task import built

if TYPE_CHECKING:
    from fedml.cohort.persons import Batch
    from fedml.models.fusion import CohortModel

PERSONS = 6  # most persons of a site
_NOTE = "The site declares these images public. The examples are spread evenly over its test persons, not selected by the result."


def write_examples(run: Path, study: Study, sites: Mapping[str, Site], say: Callable[[str], None]) -> list[Path]:
    """Draws up to six test persons of each site that declares its images public; returns the files."""
    if "image" not in study.cohort.inputs:
        return []
    public = {name: site for name, site in sites.items() if site.manifest.data.public}
    if not public:
        return []
    model, (arrays, _, panel), written = restore(run)[1], load_model(run), list[Path]()
    for name, site in public.items():
        cohort = load_aligned((str(site.file),), study, panel, window=saved_window(arrays))
        if (images := cohort.input("image", Images)) is None:
            continue
        has = images.has(len(cohort))
        rows = spread(np.array([r for r in cohort.rows("test") if has[r]], dtype=np.int64), PERSONS)
        if not len(rows):
            continue
        draw = _masks if study.traits.label == "mask" else _answers
        data = draw(study, model, cohort, name, rows)
        (run / EXAMPLES).mkdir(exist_ok=True)
        written.append(run / EXAMPLES / f"{name}.png")
        write_whole(written[-1], data)
    if written:
        say(f"examples: predictions for public test images of {', '.join(p.stem for p in written)} are drawn in {run / EXAMPLES}")
    return written


def _orientation(study: Study) -> str:
    shape = study.cohort.image
    return "" if shape is None or shape.preprocess is None else shape.orientation


def _spacing(study: Study, batch: Batch) -> list[float] | None:
    if "image_spacing" in batch:
        return [float(v) for v in batch["image_spacing"][0]]
    return list(study.cohort.image.spacing_mm) or None if study.cohort.image is not None else None


def _predict(model: CohortModel, batch: Batch) -> Any:
    import torch

    with torch.inference_mode():
        return model(batch)


def _masks(study: Study, model: CohortModel, cohort: Cohort, site: str, rows: npt.NDArray[np.int64]) -> bytes:
    """One row for each person: the first image, its true mask, and the predicted mask with the Dice of each class."""
    names = [normal(c) for c in study.cohort.classes]
    tiles: list[Tile] = []
    for number, row in enumerate(rows, start=1):
        batch = cohort.batch([int(row)])
        image, true = batch["image"][0].numpy(), batch["mask"][0, 0].numpy()
        logits = _predict(model, {**batch, "image": batch["image"][:1]})[0]
        guess = logits.argmax(0).numpy().astype(np.uint8)
        whole = batch["original"][0] if "original" in batch else None  # Dice is of the voxels of the file, as in the measures
        pair = (true, guess) if whole is None else (whole.mask(), whole.labels(logits))
        scores = ", ".join(f"{name} {_dice(pair[0] == k, pair[1] == k)}" for k, name in enumerate(names[1:4], start=1))
        at = most_of(true, 2) if true.ndim == 3 else 0
        for mask, caption in ((None, f"{number}"), (true, "true"), (guess, f"predicted; Dice {scores}")):
            tiles.append(plane(image, mask, caption, at=at, spacing=_spacing(study, batch), orientation=_orientation(study)))
    return sheet(tiles, columns=3, title=_title(study, site), classes=names[1:], note=_NOTE)


def _answers(study: Study, model: CohortModel, cohort: Cohort, site: str, rows: npt.NDArray[np.int64]) -> bytes:
    """One tile for each person: the first image, the true label, and the prediction."""
    tiles: list[Tile] = []
    task = make_task(study)
    caption = built(task.answer.caption, task.name, "a caption of an example")
    for number, row in enumerate(rows, start=1):
        batch = cohort.batch([int(row)])
        image, answer, label = batch["image"][0].numpy(), _predict(model, batch)[0].double(), cohort.labels[row]
        text = f"{study.cohort.outcome} {task.labels.show(label)}, {caption(answer)}"
        at = image.shape[-1] // 2 if image.ndim == 4 else 0
        tiles.append(plane(image, None, f"{number}  {text}", at=at, spacing=_spacing(study, batch), orientation=_orientation(study)))
    return sheet(tiles, columns=3, title=_title(study, site), note=_NOTE)


def _title(study: Study, site: str) -> str:
    return f'study "{study.study.name}", site {site}: predictions for test persons'


def _dice(true: npt.NDArray[np.bool_], guess: npt.NDArray[np.bool_]) -> str:
    total = int(true.sum() + guess.sum())
    return f"{2 * int((true & guess).sum()) / total:.2f}" if total else "-"
