"""Masks by a trained model, on the grid of each image's own file. They stay on this machine.

    write_masks(run, Path("images"), Path("masks"), say=print)       # masks/p1.nii.gz beside images/p1.nii.gz

A mask has the size, the affine and the class values of the study's masks; what preprocessing cuts away is background. An image without an
affine and of two axes (PNG and others) becomes a PNG, every other one a NIfTI file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.formats import by_ending
from fedml.cohort.images.items import Raw
from fedml.cohort.images.masks import as_values
from fedml.cohort.images.originals import matrix_of
from fedml.cohort.images.transforms import windowed
from fedml.cohort.one_image import raw_and_prepared
from fedml.errors import InputError
from fedml.runs.log import MODEL, load_model, saved_window, write_whole
from fedml.runs.restore import restore
from fedml.study.study import Study
from fedml.tasks.original import labels_at


def write_masks(run: Path, images: Path, out: Path, say: Callable[[str], None]) -> list[Path]:
    """Writes a mask for each image in ``images`` to the folder ``out``, readable by this account only; returns the files.

    Args:
        run: the folder of a finished run. images: an image, a folder with one DICOM series, or a folder of such.

    Raises:
        InputError: the run has no model of masks, there is no image, or none can be used.
    """
    import torch

    if not (run / MODEL).exists():
        raise InputError(f"{run}: has no {MODEL}; give the folder of a run that finished.")
    study, model = restore(run)
    if study.traits.label != "mask":
        raise InputError(f"{run}: predicts no masks; fedml predict writes a table of its predictions.")
    window, written = saved_window(load_model(run)[0]), list[Path]()
    torch.set_num_threads(study.training.threads)
    for path, name in _images(images):
        try:
            raw, prepared = raw_and_prepared(path, study.cohort.image, window)
        except InputError as error:
            say(f"left out: {error}")
            continue
        with torch.inference_mode():
            logits = model({"image": torch.from_numpy(prepared)[None]})[0]
        written.append(_write(out, name, raw, as_values(_labels(study, raw, logits, window), study.cohort.classes)))
        say(str(written[-1]))
    if not written:
        raise InputError(f"{images}: has no image that the study can use; give an image, or a folder of images.")
    return written


def _images(images: Path) -> Iterator[tuple[Path, str]]:
    """Each image with the name of its mask, without an ending."""
    if not images.exists():
        raise InputError(f"{images}: no such file; give an image, or a folder of images.")
    if not images.is_dir():
        yield images, _stem(images)
        return
    inside = sorted(path for path in images.iterdir() if not path.name.startswith("."))
    if inside and not any(path.is_dir() or by_ending(path) is not None for path in inside):
        yield images, images.name  # the slices of one series
        return
    for path in inside:
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if by_ending(p) is not None)
            yield from ((p, f"{path.name}/{_stem(p)}") for p in files) if files else [(path, path.name)]
        elif by_ending(path) is not None or path.name.endswith(".dcm"):
            yield path, _stem(path)


def _stem(path: Path) -> str:
    form = by_ending(path)
    ending = next((e for e in form.endings if path.name.endswith(e)), "") if form is not None else ".dcm"
    return path.name.removesuffix(ending)


def _labels(study: Study, raw: Raw, logits: Any, window: tuple[float, float] | None) -> npt.NDArray[np.uint8]:
    spec = None if study.cohort.image is None else study.cohort.image.preprocess
    size = raw.image.shape[1:]
    if spec is None:
        found: npt.NDArray[np.uint8] = logits.argmax(0).numpy().astype(np.uint8)
        return found
    spec = windowed(spec, *window) if spec.percentiles and window else spec
    return labels_at(logits, matrix_of(spec, size, raw.affine), size)


def _write(out: Path, name: str, raw: Raw, values: npt.NDArray[Any]) -> Path:
    import nibabel as nib
    from PIL import Image

    whole = bool((values == np.rint(values)).all())
    small = values.astype(np.uint8 if values.min() >= 0 and values.max() <= 255 else np.int32) if whole else values.astype(np.float32)
    picture = raw.affine is None and values.ndim == 2 and small.dtype == np.uint8
    path = out / f"{name}{'.png' if picture else '.nii.gz'}"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if picture:
            data = BytesIO()
            Image.fromarray(small).save(data, "png")
            write_whole(path, data.getvalue(), mode=0o600)
            return path
        partial = path.with_name(f".partial-{path.name}")
        nib.save(nib.Nifti1Image(small, np.eye(4) if raw.affine is None else raw.affine), partial)
        partial.chmod(0o600)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give --out another folder.") from error
    return path
