"""DICOM images of persons: ``<id>.dcm``, or ``<id>/`` with the series of a study in nested folders, of which the study selects the image.

    for image in series_of(Path("images"), "p1", masks=None, axes=None, deidentification="quarantine", rules=None):
        series = image.load()     # Series, or ItemError

The mask of a series of ``<id>`` is a DICOM segmentation in ``masks/<id>.dcm`` or below ``masks/<id>/`` that refers to the series; else
``masks/<id>/<series UID>.<extension>``, or ``masks/<id>.<extension>`` if there is one series (``fedml.cohort.images.masks``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.choice import choose
from fedml.cohort.dicom.deidentified import Deidentification, require_de_identified
from fedml.cohort.dicom.files import open_dataset, reading
from fedml.cohort.dicom.header_index import header_of
from fedml.cohort.dicom.headers import Candidate, candidates
from fedml.cohort.dicom.segmentation import read_seg
from fedml.cohort.dicom.series import Volume, group_series, read_series
from fedml.cohort.images import masks as mask_files
from fedml.cohort.images.formats import by_ending
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.errors import InputError
from fedml.study.section import Code
from fedml.study.series_section import Select

log = logging.getLogger("fedml.site")


class Series(NamedTuple):
    """A series that was read: ``voxels`` (columns, rows, slices[, 3]), or (rows, columns[, 3]) if ``flat``; ``mask`` without colour
    axis."""

    voxels: npt.NDArray[Any]
    affine: npt.NDArray[np.float64] | None
    mask: npt.NDArray[np.uint8] | None
    flat: bool


class Image(NamedTuple):
    """An image to read: ``where`` names it in messages, ``files`` are all that ``load`` may open, ``about`` is what its reading depends on
    besides them."""

    where: Path
    files: tuple[Path, ...]
    load: Callable[[], Series]
    about: str = ""


class Masks(NamedTuple):
    """The folder of masks, and the study's classes."""

    folder: Path | None
    classes: Sequence[Code]


def series_of(
    folder: Path, person: str, *, masks: Masks | None, axes: int | None, deidentification: Deidentification, rules: Select | None
) -> Iterator[Image]:  # fmt: skip
    """The images of ``person``; one that cannot be read is an image whose ``load`` raises why.

    ``axes``: number of axes of the study's images; None: a series of one slice is a 2D picture. ``masks``: None: no mask is read.
    ``rules``: of the study, None if it states none.
    """
    found, broken = series_files(folder, person)
    if broken:  # an unreadable file may be a missing slice of any series
        yield Image(broken[0], tuple(broken), partial(_refuse, broken[0], len(broken)))
        return
    if not found:
        return
    made = choose(found, rules, None if masks is None else partial(has_mask, masks.folder, person))
    if made.problem is not None:
        where = folder / person
        yield Image(where, (where,), partial(_undecided, where, made.problem), made.problem[1])
        return
    drawn = [] if masks is None or masks.folder is None else _mask_files(masks.folder, person, [series.uid for series in made.taken])
    for series in made.taken:
        files = list(series.files)
        yield Image(files[0], (*files, *drawn), partial(_load, files, person, masks, axes, deidentification, len(made.taken) == 1))


def series_files(folder: Path, person: str) -> tuple[list[Candidate], list[Path]]:
    """The series of a person, and the files that may be a missing slice of any (``fedml.cohort.dicom.headers.candidates``)."""
    found: list[Candidate] = []
    broken: list[Path] = []
    for place in (folder / f"{person}.dcm", folder / person):
        if place.exists():
            more, unread = candidates(place)
            found, broken = found + more, broken + unread
    return found, broken


def _undecided(where: Path, problem: tuple[Unusable, str]) -> Series:
    reason, text = problem
    raise ItemError(reason, f"{where}: {text}; state rules in [cohort.image.select] of the study (fedml-site data --series shows all).")


def has_mask(masks: Path | None, person: str, series: Candidate) -> bool:
    """Whether a mask names the series: a segmentation that refers to it, or a file with its UID."""
    if masks is None:
        return False
    if mask_files.find(masks, f"{person}/{series.uid}") is not None:
        return True
    return any(_is_segmentation(path) and _refers_to(path, series.uid, named=True) for path in _mask_files(masks, person, []))


def _mask_files(masks: Path, person: str, series: Sequence[str]) -> list[Path]:
    """All files that may contain a mask of ``person``."""
    below = sorted(path for path in (masks / person).rglob("*") if path.is_file()) if (masks / person).is_dir() else []
    single = [masks / f"{person}.dcm", *(mask_files.find(masks, f"{person}/{uid}") for uid in series)]
    if len(series) == 1:
        single.append(mask_files.find(masks, person))
    return list(dict.fromkeys([*below, *(path for path in single if path is not None and path.is_file())]))


def _refuse(path: Path, count: int) -> Series:
    open_dataset(path, pixels=False)  # usually raises the specific error
    raise ItemError(Unusable.UNREADABLE, f"{path}: cannot be read as DICOM ({count} such files of one person); replace the file.")


def _load(files: list[Path], person: str, masks: Masks | None, axes: int | None, deidentification: Deidentification, alone: bool) -> Series:
    for path in files:
        _check_deidentified(path, person, deidentification)
    volume = read_series(files)
    flat = volume.voxels.shape[2] == 1 and axes != 3
    mask = None
    if masks is not None:
        path, values = _mask(volume, person, masks.folder, files[0], alone=alone, flat=flat, deidentification=deidentification)
        mask = mask_files.as_classes(values, masks.classes, path)
    if not flat:
        return Series(volume.voxels, volume.affine if volume.placed else None, mask, flat)
    across, down, _ = volume.spacing_mm
    return Series(volume.picture, np.diag([down, across, 1.0, 1.0]) if volume.placed else None, mask, flat)


def _check_deidentified(path: Path, person: str, deidentification: Deidentification) -> None:
    """Applies the site's policy to a file that is not de-identified or belongs to another person.

    Raises:
        ItemError: the policy is to exclude the file.
        InputError: the policy is to stop.
    """
    try:
        require_de_identified(path, pseudonym=person, strict=deidentification == "strict")
    except ItemError as error:
        if error.reason is not Unusable.NOT_DE_IDENTIFIED or deidentification in ("quarantine", "strict"):
            raise
        if deidentification == "refuse":
            raise InputError(f'{str(error).rstrip(".")}; de-identify it ([policy] deidentification = "refuse").') from error
        log.warning("used although not de-identified: %s", error)


def _is_segmentation(path: Path) -> bool:
    return header_of(path).modality == "SEG"


def _mask(
    volume: Volume, person: str, masks: Path | None, where: Path, *, alone: bool, flat: bool, deidentification: Deidentification
) -> tuple[Path, npt.NDArray[Any]]:
    """The file of the mask of ``volume`` and its values. ``where``: a file of the series, for messages. ``alone``: the person has no other
    series."""
    if masks is None:
        raise ItemError(Unusable.NO_MASK, f"{where}: has no mask; set data.image masks in site.toml.")
    drawn = [masks / f"{person}.dcm"] if (masks / f"{person}.dcm").exists() else []
    if (masks / person).is_dir():
        drawn += [p for files in group_series(masks / person).values() for p in files if _is_segmentation(p)]
    drawn = [path for path in drawn if _refers_to(path, volume.series_uid)]
    if len(drawn) > 1:
        raise ItemError(Unusable.MASK_MISMATCH, f"{where}: has {len(drawn)} segmentations, {drawn[0].name} among them; keep one.")
    if drawn:
        _check_deidentified(drawn[0], person, deidentification)
        values, path = read_seg(drawn[0], volume)[0], drawn[0]
        values = np.ascontiguousarray(values[:, :, 0].T) if flat else values
    else:
        found = mask_files.find(masks, f"{person}/{volume.series_uid}") or (mask_files.find(masks, person) if alone else None)
        if found is None:
            raise ItemError(Unusable.NO_MASK, f"{where}: the series has no mask in {masks}.")
        size = volume.voxels.shape[1::-1] if flat else volume.voxels.shape[:3]
        form = by_ending(found)
        if flat and form is not None and form.volumes:  # its axes are columns, rows
            values = mask_files.read(found, None, volume.voxels.shape[:2]).T
        else:
            values = mask_files.read(found, volume.affine if volume.placed and not flat else None, size)
        path = found
    return path, values


def _refers_to(path: Path, series: str, *, named: bool = False) -> bool:
    """True if the segmentation refers to the series, or (unless ``named``) to no series; its position is then checked by ``read_seg``."""
    with reading(path):
        stated = open_dataset(path, pixels=False).get("ReferencedSeriesSequence") or []
        return (not stated and not named) or series in {str(s.get("SeriesInstanceUID") or "") for s in stated}
