"""DICOM images of persons: ``<id>.dcm``, or ``<id>/`` with the series of a study in nested folders, of which the study selects the image.

    for image in series_of(Path("images"), "p1", masks=None, shape=None, deidentification="quarantine", rules=None):
        series = image.load()     # Series, or ItemError

The mask of a series of ``<id>`` is a DICOM segmentation or RT structure set in ``masks/<id>.dcm`` or below ``masks/<id>/`` that refers to
the series; else ``masks/<id>/<series UID>.<extension>``, or ``masks/<id>.<extension>`` if there is one series
(``fedml.cohort.images.masks``), or files in ``masks/<id>/`` that the study names (``fedml.cohort.images.labels``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.choice import choose, fits
from fedml.cohort.dicom.deidentified import Deidentification, require_de_identified
from fedml.cohort.dicom.files import keeping, open_dataset, reading
from fedml.cohort.dicom.folders import group_series
from fedml.cohort.dicom.header_index import header_of
from fedml.cohort.dicom.headers import Candidate, candidates
from fedml.cohort.dicom.segmentation import read_seg
from fedml.cohort.dicom.segments import read_classes
from fedml.cohort.dicom.series import Volume, read_volumes
from fedml.cohort.dicom.structures import MODALITY, open_regions, series_of_regions
from fedml.cohort.dicom.suv import UNIT, suv_factor
from fedml.cohort.images import labels
from fedml.cohort.images import masks as mask_files
from fedml.cohort.images.combine import on_one_grid, one_of_many
from fedml.cohort.images.formats import by_ending
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape
from fedml.study.section import Code, normal
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
    besides them, ``unit`` the unit of its values as far as headers say."""

    where: Path
    files: tuple[Path, ...]
    load: Callable[[], Series]
    about: str = ""
    unit: str = ""


class Masks(NamedTuple):
    """The folder of masks, and the study's classes."""

    folder: Path | None
    classes: Sequence[Code]


def series_of(
    folder: Path, person: str, *, masks: Masks | None, shape: ImageShape | None, deidentification: Deidentification, rules: Select | None
) -> Iterator[Image]:  # fmt: skip
    """The images of ``person``; one that cannot be read is an image whose ``load`` raises why.

    Args:
        shape: the study's; None: a series of one slice is a 2D picture.
        masks: None: no mask is read.
        rules: of the study, with the site's own names; None if it states none.
    """
    found, broken = series_files(folder, person)
    where = folder / person
    if broken:  # an unreadable file may be a missing slice of any series
        yield Image(broken[0], tuple(broken), partial(_refuse, broken[0], len(broken)))
        return
    if not found:
        return
    made, problem = chosen(found, shape, rules, None if masks is None else partial(has_mask, masks.folder, person))
    if problem is not None:
        yield Image(where, (where,), partial(_undecided, where, problem), problem[1])
        return
    drawn = [] if masks is None or masks.folder is None else _mask_files(masks.folder, person, [s.uid for of in made for s in of])
    how = _How(person, masks, shape, deidentification, rules, len(made) == 1)
    for of in made:
        files = [path for series in of for path in series.files]
        units = [UNIT if shape is not None and shape.units and s.about.modality == "PT" else s.about.unit for s in of]
        yield Image(files[0], (*files, *drawn), partial(_load, of, how), unit=" and ".join(dict.fromkeys(filter(None, units))))


def chosen(
    found: Sequence[Candidate], shape: ImageShape | None, rules: Select | None, drawn: Callable[[Candidate], bool] | None = None
) -> tuple[list[tuple[Candidate, ...]], tuple[Unusable, str] | None]:
    """The series of each image of a person (one, or one for each named channel), or why there is none (``fedml.cohort.dicom.choice``)."""
    named = () if shape is None else shape.channel_files
    if not named:
        made = choose(found, rules, drawn)
        return [(series,) for series in made.taken], made.problem
    of: list[Candidate] = []
    for channel in named:
        made = choose([series for series in found if fits(series.about.description, [channel.pattern])], rules)
        if made.problem is not None:
            return [], (made.problem[0], f'channel "{channel.name}" {made.problem[1]}')
        of.append(made.taken[0])
    return [tuple(of)], None


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


class _How(NamedTuple):
    """How the series of a person become an image. ``alone``: the person has no other image."""

    person: str
    masks: Masks | None
    shape: ImageShape | None
    deidentification: Deidentification
    rules: Select | None
    alone: bool


def _load(of: tuple[Candidate, ...], how: _How) -> Series:
    """One series, or a named channel each."""
    with keeping():
        return _loaded(of, how)


def _loaded(of: tuple[Candidate, ...], how: _How) -> Series:
    for path in (path for series in of for path in series.files):
        _check_deidentified(path, how.person, how.deidentification)
    volumes, voxels = read_channels(of, how.shape, how.rules)
    volume, masks = volumes[0], how.masks
    flat = volume.voxels.shape[2] == 1 and (how.shape is None or len(how.shape.size) != 3)
    mask = None
    if masks is not None:
        marked = next((one for one, series in zip(volumes, of, strict=True) if has_mask(masks.folder, how.person, series)), volume)
        mask = _mask(marked, how, masks.classes, of[0].files[0], flat=flat)
    if not flat:
        return Series(voxels, volume.affine if volume.placed else None, mask, flat)
    across, down, _ = volume.spacing_mm
    picture = np.ascontiguousarray(voxels[:, :, 0].swapaxes(0, 1))
    return Series(picture, np.diag([down, across, 1.0, 1.0]) if volume.placed else None, mask, flat)


def read_channels(of: Sequence[Candidate], shape: ImageShape | None, rules: Select | None) -> tuple[list[Volume], npt.NDArray[Any]]:
    """For each of the series, which are one image or its named channels, the first volume that the study reads; and the image's voxels,
    (columns, rows, slices[, channels]).

    Raises:
        ItemError: as ``fedml.cohort.dicom.series.read_volumes``; several-series: the series has more volumes than the study reads;
            geometry: the grids of two channels or volumes differ.
    """
    if shape is not None and shape.units and len(of) > 1 and all(series.about.modality != "PT" for series in of):
        raise ItemError(Unusable.RESCALE, f"{of[0].files[0]}: none of its channels is PET; [cohort.image] units asks for {shape.units}.")
    read = [_volume(series, shape, rules) for series in of]
    if len(read) == 1 or shape is None:
        return [read[0][0]], read[0][1]
    named = zip(shape.channel_files, read, strict=True)
    parts = [(channel.name, values, one.affine if one.placed else None) for channel, (one, values) in named]
    return [one for one, _ in read], on_one_grid(parts, of[0].files[0])


def _volume(series: Candidate, shape: ImageShape | None, rules: Select | None) -> tuple[Volume, npt.NDArray[Any]]:
    where, rule = series.files[0], "one" if shape is None else shape.volumes
    volumes, apart = read_volumes(series.files, rules)
    if shape is not None and shape.units and (not shape.channel_files or series.about.modality == "PT"):
        factor = suv_factor(series.files)
        volumes = [replace(one, voxels=one.voxels * np.float32(factor), unit=UNIT) for one in volumes]
    if len(volumes) == 1 and not isinstance(rule, int):
        return volumes[0], volumes[0].voxels
    if rule == "one":
        text = f"its series has {len(volumes)} volumes ({apart}), and an image has one"
        raise ItemError(Unusable.SEVERAL_SERIES, f"{where}: {text}; state [cohort.image] volumes, or select one of them.")
    if rule == "stack":
        return _stack(volumes, where)
    if volumes[0].voxels.ndim != 3 and isinstance(rule, int) and rule <= len(volumes):
        return volumes[0], volumes[rule - 1].voxels
    if volumes[0].voxels.ndim != 3:
        raise ItemError(Unusable.GEOMETRY, f"{where}: is in colour, so [cohort.image] volumes does not apply.")
    voxels = on_one_grid([(f"volume {n}", v.voxels, v.affine) for n, v in enumerate(volumes, start=1)], where)
    return volumes[0], one_of_many(voxels, rule, where)


def _stack(volumes: Sequence[Volume], where: Path) -> tuple[Volume, npt.NDArray[Any]]:
    """The frames of a cine as slices of a stack, which lies at no known place."""
    first = volumes[0]
    if any(one.placed or one.voxels.ndim != 3 or one.voxels.shape[2] != 1 for one in volumes):
        text = 'volumes = "stack" is of grey frames without positions (cine); its frames have positions, or are in colour'
        raise ItemError(Unusable.GEOMETRY, f"{where}: {text}.")
    voxels = np.concatenate([one.voxels for one in volumes], axis=2)
    return replace(first, voxels=voxels), voxels


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
    return header_of(path).modality in ("SEG", MODALITY)


def _mask(volume: Volume, how: _How, classes: Sequence[Code], where: Path, *, flat: bool) -> npt.NDArray[np.uint8]:
    """The mask of ``volume``, (1, *size) as indices of ``classes``. ``where``: a file of the series, for messages."""
    person, masks, shape = how.person, None if how.masks is None else how.masks.folder, how.shape
    if masks is None:
        raise ItemError(Unusable.NO_MASK, f"{where}: has no mask; set data.image masks in site.toml.")
    drawn = [masks / f"{person}.dcm"] if (masks / f"{person}.dcm").exists() else []
    if (masks / person).is_dir():
        drawn += [p for files in group_series(masks / person).values() for p in files if _is_segmentation(p)]
    drawn = [path for path in drawn if _refers_to(path, volume.series_uid)]
    if not drawn:
        return _of_files(volume, how, classes, where, flat=flat)
    named = {} if shape is None else {normal(name): patterns for name, patterns in shape.segments.items()}
    if not named and any(header_of(path).modality == MODALITY for path in drawn):
        text = "its mask is an RT structure set, whose regions the study names in [cohort.image] segments"
        raise ItemError(Unusable.MASK_MISMATCH, f"{where}: {text}; state them.")
    if len(drawn) > 1 and not named:
        raise ItemError(Unusable.MASK_MISMATCH, f"{where}: has {len(drawn)} segmentations, {drawn[0].name} among them; keep one.")
    for path in drawn:
        _check_deidentified(path, person, how.deidentification)
    if named and shape is not None:
        made = read_classes(drawn, volume, named, classes, shape.overlap)[None]
    else:
        made = labels.as_classes(read_seg(drawn[0], volume)[0], classes, drawn[0], shape)
    return np.ascontiguousarray(made[:, :, :, 0].swapaxes(1, 2)) if flat else made


def _of_files(volume: Volume, how: _How, classes: Sequence[Code], where: Path, *, flat: bool) -> npt.NDArray[np.uint8]:
    """The mask of files that are not DICOM, (1, *size)."""
    masks, person = None if how.masks is None else how.masks.folder, how.person
    assert masks is not None  # noqa: S101 - for the type checker
    size = volume.voxels.shape[1::-1] if flat else volume.voxels.shape[:3]
    affine = volume.affine if volume.placed and not flat else None
    if how.shape is not None and how.shape.mask_files:
        files = labels.files_of(masks, person) if how.alone else []
        return labels.of_files(files, (affine, size), how.shape, classes, where)
    found = mask_files.find(masks, f"{person}/{volume.series_uid}") or (mask_files.find(masks, person) if how.alone else None)
    if found is None:
        raise ItemError(Unusable.NO_MASK, f"{where}: the series has no mask in {masks}.")
    form = by_ending(found)
    if flat and form is not None and form.volumes:  # its axes are columns, rows
        values = mask_files.read(found, None, volume.voxels.shape[:2]).T
    else:
        values = mask_files.read(found, affine, size)
    return labels.as_classes(values, classes, found, how.shape)


def _refers_to(path: Path, series: str, *, named: bool = False) -> bool:
    """True if the segmentation refers to the series, or (unless ``named``) to no series; its position is then checked by reading it."""
    with reading(path):
        if header_of(path).modality == MODALITY:
            stated = series_of_regions(open_regions(path))
        else:
            stated = {str(s.get("SeriesInstanceUID") or "") for s in open_dataset(path, pixels=False).get("ReferencedSeriesSequence") or []}
        return (not stated and not named) or series in stated
