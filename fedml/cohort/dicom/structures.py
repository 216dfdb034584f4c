"""Regions of interest of an RT structure set (RTSTRUCT, PS3.3 section A.19) as masks on the voxel grid of their image.

    volume = read_series(files)
    names_of_regions(dataset)                        # {3: ["GTV-1", "SCT:108369006"]}: ROI number -> what it may be called by
    inside = read_regions(path, volume, [3])         # bool (columns, rows, slices)

A voxel is inside if its centre is in an outline or on it (``outlines``). Outlines are closed, planar and parallel to the slices, in
whatever direction the series lies. Two outlines of a region in one slice are two parts, or one is a hole in the other (PS3.3 section
C.8.8.6.3); outlines that cross each other are refused unless the file says that they are combined by exclusive or (``CLOSEDPLANAR_XOR``).
Nothing is interpolated between slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.files import open_dataset, reading
from fedml.cohort.dicom.grid import RAS
from fedml.cohort.dicom.outlines import MOST, Part, Points, filled
from fedml.cohort.dicom.series import Volume
from fedml.cohort.images.reasons import ItemError, Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MODALITY = "RTSTRUCT"
_MAX_MB = 512  # of the file
_POINTS, _OUTLINES = 2**22, 100_000  # of the regions that are read
_OFF_SLICE = 0.25  # largest distance of a point from the plane of its slice, in slices
_AREA = 2**27  # pixels of the boxes of a region's outlines
_ONE_PLANE = 0.05  # two outlines of a slice that lie farther apart are of two planes
_OUTSIDE = 1.0  # pixels that an outline may reach beyond the centres at the edge of the image


def names_of_regions(dataset: Dataset) -> dict[int, list[str]]:
    """What each region may be called by: its name, and the codes of its observations as ``SCHEME:VALUE``."""
    found = {int(one.ROINumber): [str(one.get("ROIName") or "")] for one in dataset.get("StructureSetROISequence") or []}
    for one in dataset.get("RTROIObservationsSequence") or []:
        number = one.get("ReferencedROINumber")
        for code in one.get("RTROIIdentificationCodeSequence") or []:
            if number is not None and int(number) in found:
                found[int(number)].append(f"{code.get('CodingSchemeDesignator') or ''}:{code.get('CodeValue') or ''}")
    return found


def series_of_regions(dataset: Dataset) -> set[str]:
    """UIDs of the series that the structure set refers to."""
    return {
        str(series.get("SeriesInstanceUID") or "")
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    }


def open_regions(path: Path) -> Dataset:
    """The structure set.

    Raises:
        ItemError: not-an-image: it is none; or as ``open_dataset``.
    """
    with reading(path):
        dataset = open_dataset(path, max_mb=_MAX_MB)
        if str(dataset.get("Modality")) != MODALITY or "StructureSetROISequence" not in dataset:
            raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: is not an RT structure set.")
        return dataset


def read_regions(path: Path, volume: Volume, numbers: Sequence[int]) -> npt.NDArray[np.bool_]:
    """The voxels of ``volume`` that are in one of the regions ``numbers``, (columns, rows, slices).

    Raises:
        ItemError: mask-mismatch: another frame of reference or series; a region without outlines, of points or open lines, drawn on coarser
            slices, smaller than a voxel, beyond the image, between slices or across them; outlines that cross; too-large.
    """
    dataset = open_regions(path)
    with reading(path):
        _same_image(dataset, volume, numbers, path)
        drawn = {int(one.get("ReferencedROINumber") or -1): one for one in dataset.get("ROIContourSequence") or []}
        names = {number: names[0] for number, names in names_of_regions(dataset).items()}
    out = np.zeros(volume.voxels.shape[:3], bool)
    points = 0
    for number in numbers:
        region = _Region(path, number, f'region "{names.get(number, number)}"')
        with reading(path):
            outlines = list(_outlines(drawn.get(number), region, volume))
        points += sum(len(one.points) for one in outlines)
        if points > _POINTS:
            raise ItemError(Unusable.TOO_LARGE, f"{path}: its regions have more than {_POINTS} points.")
        out |= _mask(outlines, region, volume)
    return out


class _Region(NamedTuple):
    path: Path
    number: int
    name: str

    def refuse(self, why: str) -> ItemError:
        return ItemError(Unusable.MASK_MISMATCH, f"{self.path}: {self.name} {why}.")


class _Outline(NamedTuple):
    """``points``: (n, 2) column and row. ``place``: in slices, as measured. ``xor``: combined by exclusive or, as the file says."""

    points: Points
    place: float
    xor: bool


def _same_image(dataset: Dataset, volume: Volume, numbers: Sequence[int], path: Path) -> None:
    own = str(dataset.get("FrameOfReferenceUID") or "")
    for one in dataset.StructureSetROISequence:
        frame = str(one.get("ReferencedFrameOfReferenceUID") or own)
        if int(one.ROINumber) in numbers and (not volume.placed or not frame or frame != volume.frame_of_reference):
            raise ItemError(Unusable.MASK_MISMATCH, f"{path}: a region has another frame of reference than its image.")
    series = series_of_regions(dataset)
    if series and volume.series_uid not in series:
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: refers to another series.")


def _outlines(drawn: Dataset | None, region: _Region, volume: Volume) -> Iterator[_Outline]:
    contours = [] if drawn is None else drawn.get("ContourSequence") or []
    if not contours:
        raise region.refuse("has no outlines; select it only where it is drawn")
    if len(contours) > _OUTLINES:
        raise ItemError(Unusable.TOO_LARGE, f"{region.path}: {region.name} has {len(contours)} outlines, the limit is {_OUTLINES}.")
    for contour in contours:
        kind = str(contour.get("ContourGeometricType") or "")
        if kind not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
            raise region.refuse(f'has an outline of type "{kind}", which bounds no area of a slice')
        place, points = _in_slices(_numbers(contour, region), volume)
        at = round(float(place[0]))
        if np.abs(place - at).max() > _OFF_SLICE:
            off = float(np.abs(place - at).max())
            raise region.refuse(f"has an outline {off:.2f} slices off its slice (at most {_OFF_SLICE:g}), or across slices")
        if not 0 <= at < volume.voxels.shape[2]:
            raise region.refuse("has an outline beyond the first or last slice of its image")
        sources = {str(one.get("ReferencedSOPInstanceUID") or "") for one in contour.get("ContourImageSequence") or []}
        named = [k for k, uid in enumerate(volume.instances) if uid in sources]
        if named and at not in named:
            raise region.refuse("has an outline in another slice than the slice that it refers to")
        if points.min() < -_OUTSIDE or (points > np.array(volume.voxels.shape[:2]) - 1 + _OUTSIDE).any():
            raise region.refuse("reaches beyond the rows or columns of its image")
        yield _Outline(points, float(place.mean()), kind == "CLOSEDPLANAR_XOR")


def _numbers(contour: Dataset, region: _Region) -> npt.NDArray[np.float64]:
    """(n, 3) in mm, LPS; from the text of the element, as pydicom would make an object of each number."""
    if "ContourData" not in contour:
        raise region.refuse("has an outline without points")
    raw = cast(Any, contour.get_item("ContourData")).value
    text = raw.decode("ascii") if isinstance(raw, bytes) else None
    values = np.array([float(v) for v in (raw if text is None else text.strip(" \0").split("\\"))], np.float64)
    stated = contour.get("NumberOfContourPoints")
    if values.size % 3 or (stated is not None and 3 * int(stated) != values.size):
        raise region.refuse(f"has an outline of {values.size} numbers, and it states {stated} points of three each")
    if not np.isfinite(values).all():
        raise region.refuse("has a point that is not finite")
    return values.reshape(-1, 3)


def _in_slices(points: npt.NDArray[np.float64], volume: Volume) -> tuple[npt.NDArray[np.float64], Points]:
    """(n,) place along the normal in slices, and (n, 2) column and row in the nearest slice: perpendicular to it, so that the tilt of a
    gantry does not move them."""
    affine = RAS @ volume.affine
    across, down, step = affine[:3, 0], affine[:3, 1], affine[:3, 2]
    normal = np.cross(across, down)
    normal /= np.linalg.norm(normal)
    place = (points - affine[:3, 3]) @ normal / (step @ normal)
    beside = points - affine[:3, 3] - np.rint(place)[:, None] * step
    plane = np.stack([beside @ across / (across @ across), beside @ down / (down @ down)], axis=1)
    return place, plane


def _mask(outlines: Sequence[_Outline], region: _Region, volume: Volume) -> npt.NDArray[np.bool_]:
    out = np.zeros(volume.voxels.shape[:3], bool)
    slices: dict[int, list[_Outline]] = {}
    for outline in outlines:
        slices.setdefault(round(outline.place), []).append(outline)
    used = sorted(slices)
    if len(used) > 1 and min(b - a for a, b in pairwise(used)) > 1:
        raise region.refuse("is drawn on no two neighbouring slices: on a coarser series than its image?")
    work, area = 0.0, 0.0
    for at, here in slices.items():
        if max(one.place for one in here) - min(one.place for one in here) > _ONE_PLANE:
            raise region.refuse("has outlines of two planes nearest to one slice")
        work += sum(float(np.abs(np.diff(one.points, axis=0)).sum()) for one in here)
        area += sum(float(np.prod(np.ptp(one.points, axis=0) + 2)) for one in here)
        if work > MOST or area > _AREA:
            raise ItemError(Unusable.TOO_LARGE, f"{region.path}: {region.name} has outlines of more than {MOST} pixels in all.")
        out[:, :, at] = _slice(here, region, (volume.voxels.shape[1], volume.voxels.shape[0])).T
    if not out.any():
        raise region.refuse("contains the centre of no voxel: it is smaller than a voxel")
    return out


def _slice(outlines: Sequence[_Outline], region: _Region, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """(rows, columns) of all outlines of a region in one slice."""
    parts = [filled(one.points, shape) for one in outlines]
    inside, edge, overlaps = np.zeros(shape, bool), np.zeros(shape, bool), False
    for part in parts:
        overlaps = overlaps or bool((inside[part.box] & part.inside).any())
        inside[part.box] ^= part.inside
        edge[part.box] |= part.edge
    if overlaps and not any(one.xor for one in outlines):
        _require_nested(parts, region)
    return inside | edge


def _require_nested(parts: Sequence[Part], region: _Region) -> None:
    """Checks that of two outlines that overlap one lies in the other."""
    for k, part in enumerate(parts):
        for other in parts[:k]:
            top, left = max(part.row, other.row), max(part.column, other.column)
            ends = [(one.row + one.inside.shape[0], one.column + one.inside.shape[1]) for one in (part, other)]
            bottom, right = min(ends[0][0], ends[1][0]), min(ends[0][1], ends[1][1])
            if top >= bottom or left >= right:
                continue
            both = [one.inside[top - one.row : bottom - one.row, left - one.column : right - one.column] for one in (part, other)]
            common, sizes = int((both[0] & both[1]).sum()), sorted(int(one.inside.sum()) for one in (part, other))
            if common and (common != sizes[0] or sizes[0] == sizes[1]):
                raise region.refuse("has outlines in one slice that cross or repeat each other, so it is not known what is inside")
