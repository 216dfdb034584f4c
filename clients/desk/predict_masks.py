"""Masks by a trained model, on the grid of each image's own file. They stay on this machine.

    write_masks([run], Path("images"), Out(Path("masks")), say=print)       # masks/p1.nii.gz beside images/p1.nii.gz

A mask has the size, the affine and the class values of the study's masks; what preprocessing cuts away is background. It has the standard
of its image: a DICOM series with a position gets a DICOM segmentation that refers to it (``fedml.cohort.dicom.write_segmentation``), a
picture without an affine (PNG and others) a PNG, every other image a NIfTI file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from fedml import __version__
from fedml.clients.desk.predict_members import How, Member, Scores, check_how, load_members, scores_of
from fedml.cohort.dicom.write_segmentation import Author, Segment, referable, segmentation
from fedml.cohort.images.formats import by_ending
from fedml.cohort.images.items import Raw
from fedml.cohort.images.masks import as_values
from fedml.cohort.images.reasons import ItemError
from fedml.cohort.one_image import Opened, open_one, to_prepared
from fedml.errors import InputError
from fedml.runs.log import write_whole
from fedml.study.section import normal
from fedml.study.study import Study
from fedml.tasks.original import labels_at, values_at

Format = Literal["same", "nifti", "dicom-seg"]
FORMATS: tuple[Format, ...] = get_args(Format)
TABLE = "predictions.csv"
_MAPS = ("entropy", "mutual_information")


class Out(NamedTuple):
    """Where to, in which ``format`` (``same``: that of each image), and whether maps of uncertainty are written beside the masks."""

    folder: Path
    format: Format = "same"
    maps: bool = False


def write_masks(runs: Sequence[Path], images: Path, out: Out, say: Callable[[str], None], how: How = How()) -> list[Path]:
    """Writes a mask for each image in ``images``, readable by this account only; returns the files. With several predictions of an
    image, or with maps, also ``predictions.csv``: what was predicted of each image, and how sure.

    Args:
        runs: folders of finished runs; of several the mean of their probabilities. images: an image, a folder with one DICOM series, or a
            folder of such.

    Raises:
        InputError: a run has no model of masks, the runs are not of one study, there is no image, or none can be used.
    """
    import torch

    members, written, rows = load_members(runs), list[Path](), list[dict[str, Any]]()
    study = members[0].study
    if study.traits.label != "mask":
        raise InputError(f"{runs[0]}: predicts no masks; fedml predict writes a table of its predictions.")
    check_how(members, how)
    torch.set_num_threads(study.training.threads)
    for path, name in _images(images):
        try:
            opened = open_one(path, study.cohort.image, members[0].window)
            if out.format == "dicom-seg" and (opened.series is None or not referable(opened.series)):
                what = "is no DICOM image with a position and a frame of reference, which a DICOM segmentation refers to"
                raise InputError(f"{path}: {what}; leave --format out for another format.")
            scores = scores_of(members, opened, how)
        except InputError as error:
            say(f"left out: {error}")
            continue
        labels, maps = _on_file(study, opened.raw, scores)
        try:
            written.append(_write(out, name, opened, labels, members))
        except ItemError as error:
            say(f"left out: {error}")
            continue
        say(str(written[-1]))
        if out.maps:
            for kind, values in maps.items():
                _nifti(out.folder / f"{name}.{kind}.nii.gz", values, opened.raw.affine)
        rows.append({"image": name, "mask": str(written[-1].relative_to(out.folder)), **_row(study, opened.raw, labels, maps, scores)})
    if not written:
        raise InputError(f"{images}: has no image that the study can use; give an image, or a folder of images.")
    if out.maps or not how.plain or len(members) > 1:
        _table(out.folder / TABLE, rows)
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


def _on_file(study: Study, raw: Raw, scores: Scores) -> tuple[npt.NDArray[np.uint8], dict[str, npt.NDArray[np.float32]]]:
    """The classes of the file's voxels, and the maps of uncertainty there (NaN where preprocessing cut away)."""
    maps = {kind: getattr(scores.spread, kind) for kind in _MAPS}
    matrix, size = to_prepared(raw, study.cohort.image), raw.image.shape[1:]
    if matrix is None:
        found: npt.NDArray[np.uint8] = scores.logits.argmax(0).numpy().astype(np.uint8)
        return found, {kind: values.numpy() for kind, values in maps.items()}
    return labels_at(scores.logits, matrix, size), {kind: values_at(values, matrix, size) for kind, values in maps.items()}


def _row(study: Study, raw: Raw, labels: npt.NDArray[np.uint8], maps: dict[str, npt.NDArray[np.float32]], scores: Scores) -> dict[str, Any]:
    """Voxels and volume of each class, and the mean of each map over the prepared image and over the predicted foreground."""
    known = labels.ndim == 3 and raw.affine is not None
    millilitres = abs(float(np.linalg.det(raw.affine[:3, :3]))) / 1000 if known and raw.affine is not None else float("nan")
    row: dict[str, Any] = {"predictions": scores.spread.members}
    for k, name in enumerate(study.cohort.classes[1:], start=1):
        voxels = int((labels == k).sum())
        row |= {f"voxels/{normal(name)}": voxels, f"ml/{normal(name)}": voxels * millilitres}
    for kind, values in maps.items():
        seen, inside = np.isfinite(values), labels > 0
        row[f"{kind}_mean"] = float(values[seen].mean(dtype=np.float64)) if seen.any() else float("nan")
        row[f"{kind}_foreground"] = float(values[inside].mean(dtype=np.float64)) if inside.any() else float("nan")
    return row


def _write(out: Out, name: str, opened: Opened, labels: npt.NDArray[np.uint8], members: Sequence[Member]) -> Path:
    raw, study = opened.raw, members[0].study
    if opened.series is not None and out.format != "nifti" and referable(opened.series):
        flat = labels.T[:, :, None] if labels.ndim == 2 else labels  # a picture has rows first
        data = segmentation(flat, opened.series, segments_of(study), author_of(members))
        return _bytes(out.folder / f"{name}.dcm", data)
    values = as_values(labels, study.cohort.classes)
    whole = bool((values == np.rint(values)).all())
    small = values.astype(np.uint8 if values.min() >= 0 and values.max() <= 255 else np.int32) if whole else values.astype(np.float32)
    if raw.affine is None and values.ndim == 2 and small.dtype == np.uint8 and out.format == "same":
        from PIL import Image

        picture = BytesIO()
        Image.fromarray(small).save(picture, "png")
        return _bytes(out.folder / f"{name}.png", picture.getvalue())
    return _nifti(out.folder / f"{name}.nii.gz", small, raw.affine)


def segments_of(study: Study) -> tuple[Segment, ...]:
    """A segment for each class behind the background: its name, or of a number the first label that ``[cohort.image] segments`` gives."""
    stated = {} if study.cohort.image is None else {normal(k): v for k, v in study.cohort.image.segments.items()}
    out = []
    for code in study.cohort.classes[1:]:
        name = normal(code)
        patterns = stated.get(name, ())
        coded = tuple(p for p in patterns if ":" in p and not set(p) & set("*?["))
        labels = [p.replace("*", "").replace("?", "").strip() for p in patterns if p not in coded]
        out.append(Segment(name if isinstance(code, str) else next(filter(None, labels), name), coded))
    return tuple(out)


def author_of(members: Sequence[Member]) -> Author:
    """The study and the digest of the weights; of an ensemble the digest over its members' digests."""
    import hashlib

    study, digests = members[0].study, [member.sha256 for member in members]
    joined = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return Author(study.study.name, study.sha256, joined, __version__)


def _bytes(path: Path, data: bytes) -> Path:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, data, mode=0o600)
    except OSError as error:
        raise _cannot(path, error) from error
    return path


def _nifti(path: Path, values: npt.NDArray[Any], affine: npt.NDArray[Any] | None) -> Path:
    import nibabel as nib

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_name(f".partial-{path.name}")
        nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), partial)
        partial.chmod(0o600)
        os.replace(partial, path)
    except OSError as error:
        raise _cannot(path, error) from error
    return path


def _table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pandas as pd

    _bytes(path, pd.DataFrame(rows).to_csv(index=False).encode())


def _cannot(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written ({error.strerror}); give --out another folder.")
