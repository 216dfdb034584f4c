"""DICOM images of persons: ``<id>.dcm``, or ``<id>/`` with one or more series in nested folders; each series is one image.

    for where, files, load in series_of(Path("images"), "p1", masks=None, classes=None, axes=None, deidentification="quarantine"):
        item = load()             # fedml.cohort.images.items.Raw, or ItemError

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

from fedml.cohort.dicom.deidentified import Deidentification, require_de_identified
from fedml.cohort.dicom.files import keeping, open_dataset, reading
from fedml.cohort.dicom.headers import header_of
from fedml.cohort.dicom.segmentation import read_seg
from fedml.cohort.dicom.series import Volume, group_series, read_series
from fedml.cohort.images import masks as mask_files
from fedml.cohort.images.formats import by_ending
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.errors import InputError
from fedml.study.section import Code

log = logging.getLogger("fedml.site")


class Series(NamedTuple):
    """A series that was read: ``voxels`` (columns, rows, slices[, 3]), or (rows, columns[, 3]) if ``flat``; ``mask`` without colour
    axis."""

    voxels: npt.NDArray[Any]
    affine: npt.NDArray[np.float64] | None
    mask: npt.NDArray[np.uint8] | None
    flat: bool


class Masks(NamedTuple):
    """The folder of masks, and the study's classes."""

    folder: Path | None
    classes: Sequence[Code]


def series_of(
    folder: Path, person: str, *, masks: Masks | None, axes: int | None, deidentification: Deidentification
) -> Iterator[tuple[Path, tuple[Path, ...], Callable[[], Series]]]:  # fmt: skip
    """For each series of ``person``: a file for messages, all files that reading may open (masks included), and a function that reads it.

    ``axes``: number of axes of the study's images; None: a series of one slice is a 2D picture. ``masks``: None: no mask is read.
    """
    found: dict[str, list[Path]] = {}
    if (folder / f"{person}.dcm").exists():
        found[f"{person}.dcm"] = [folder / f"{person}.dcm"]
    if (folder / person).is_dir():
        found |= {uid: files for uid, files in group_series(folder / person).items() if not uid or _is_image_file(files[0])}
    broken = found.pop("", [])
    if broken:  # an unreadable file may be a missing slice of any series
        yield broken[0], tuple(broken), partial(_refuse, broken[0], len(broken))
        return
    drawn = [] if masks is None or masks.folder is None else _mask_files(masks.folder, person, list(found))
    for files in found.values():
        yield files[0], (*files, *drawn), partial(_load, files, person, masks, axes, deidentification, len(found) == 1)


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
    with keeping():
        return _loaded(files, person, masks, axes, deidentification, alone)


def _loaded(
    files: list[Path], person: str, masks: Masks | None, axes: int | None, deidentification: Deidentification, alone: bool
) -> Series:
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


def _is_image_file(path: Path) -> bool:
    """True if the file is an image; the same folders contain reports, plans and segmentations."""
    header = header_of(path)
    return header.modality != "SEG" and header.image


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


def _refers_to(path: Path, series: str) -> bool:
    """True if the segmentation refers to the series, or to no series; its position is then checked by ``read_seg``."""
    with reading(path):
        named = open_dataset(path, pixels=False).get("ReferencedSeriesSequence") or []
        return not named or series in {str(s.get("SeriesInstanceUID") or "") for s in named}
