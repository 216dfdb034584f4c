"""Reads a DICOM series as one volume with its position in the patient; file names do not matter.

    series = group_series(folder)                    # series UID -> files, over any nesting of folders
    volume = read_series(series[uid])
    nibabel.Nifti1Image(volume.voxels, volume.affine)            # the axes and the affine are those of NIfTI:
    monai.data.MetaTensor(volume.voxels[None], volume.affine)    # voxels[column, row, slice], millimetres, RAS+

Slices are ordered by position along the normal (PS3.3 section C.7.6.2.1.1), never by number or name. A series that is not a regular grid of
slices is refused with a reason: a slice is missing or present twice, orientations or sizes are mixed, or a localizer is among the slices.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.files import MAX_MB, declared, frames, open_dataset, reading
from fedml.cohort.dicom.header_index import header_of
from fedml.cohort.dicom.mosaic import Mosaic, mosaic_of, tile_position, tiles
from fedml.cohort.images.reasons import ItemError, Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's LPS to RAS and back
_COSINES = 1e-3  # tolerance of orientations: scanners write five or six digits
# Tolerance of positions, as a share of the slice distance: rounding to 0.1 mm stays below it, a missing slice shifts others by half a step.
_OFF_GRID = 0.2
DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR
_ENDINGS = (".dcm", ".dicom", ".ima")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR")


@dataclass(frozen=True)
class Volume:
    """An image and its position.

    ``voxels``: float32, (columns, rows, slices), or (columns, rows, slices, 3) as RGB in the stored range, usually 0..255.
    ``affine``: voxel index -> mm in RAS+, float64 (4, 4). ``spacing_mm``: voxel spacing along the three axes.
    ``unit``: HU, the unit that a PET or an enhanced image states, or empty. ``instances``: SOP instance UID of each slice.
    ``placed`` is False for a picture without a position (X-ray, photograph): its affine only scales, by 1 mm if the pixel spacing is
    unknown. A single slice without a slice thickness is taken as 1 mm thick. ``off_grid_mm``: the largest distance of a slice's first
    pixel from its place in ``affine``.
    """

    voxels: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    unit: str
    modality: str
    series_uid: str
    frame_of_reference: str
    instances: tuple[str, ...]
    placed: bool
    off_grid_mm: float = 0.0

    @property
    def picture(self) -> npt.NDArray[np.float32]:
        """The only slice in the axis order of a picture: (rows, columns) or (rows, columns, 3)."""
        if self.voxels.shape[2] != 1:
            raise ItemError(Unusable.GEOMETRY, f"series {self.series_uid}: has {self.voxels.shape[2]} slices, not one.")
        return np.ascontiguousarray(self.voxels[:, :, 0].swapaxes(0, 1))


@dataclass(frozen=True)
class _Slice:
    path: Path
    frame: int
    series: tuple[str, ...]  # attributes that must be equal in all slices of a volume
    instance: str
    shape: tuple[int, int]
    position: npt.NDArray[np.float64] | None
    axes: npt.NDArray[np.float64] | None  # (2, 3): unit vectors in the direction of increasing column index, of increasing row index
    spacing: tuple[float, float] | None  # of columns, of rows; mm
    thickness: float
    location: float | None  # Slice Location: mm along the normal, with any origin and sign
    slope: float
    intercept: float
    rescale: str | None  # rescale type, "" if the file states none; None: no rescale
    unit: str


def group_series(folder: Path) -> dict[str, list[Path]]:
    """Series instance UID -> its files below ``folder``, sorted; without files that are not DICOM, and without DICOMDIR.

    The key ``""`` has the files that may be a missing slice: files that begin like DICOM but cannot be read or name no series, files named
    ``.dcm`` that do not begin like DICOM, and empty files without another extension.
    """
    series: dict[str, list[Path]] = {}
    for where, _, names in os.walk(folder):  # links to folders are not followed, because they may form a cycle
        for path in (Path(where, name) for name in names):
            try:
                if not path.is_file():
                    continue
                header = header_of(path)
                if not header.dicom:
                    if named_dicom(path):
                        series.setdefault("", []).append(path)
                    continue
                if header.kind == DIRECTORY:
                    continue
                uid = header.series
            except OSError:
                uid = ""
            series.setdefault(uid, []).append(path)
    return {uid: sorted(files) for uid, files in sorted(series.items())}


def named_dicom(path: Path) -> bool:
    """True if the name says that the file is DICOM, or if it is empty and its name says nothing else."""
    ending = path.suffix.lower()
    return ending in _ENDINGS or (not path.stat().st_size and not path.name.startswith(".") and not ending[1:].isalpha())


def read_series(files: Sequence[Path], *, max_mb: int = MAX_MB) -> Volume:
    """The files of one series, in any order, as one volume.

    Rescale slope and intercept are applied slice by slice, MONOCHROME1 is inverted if the values have no unit, the frames of an enhanced
    image are slices. A picture without positions is one slice. Overlays and padding values are not changed.

    Args:
        files: all files of the series.
        max_mb: size limit of a file and of the volume, in MB of 2**20 bytes.

    Raises:
        ItemError: with the reason not-an-image, unreadable, truncated, wrong-length, too-large, compressed, mixed-series, geometry, gap,
            duplicate-slices, rescale or non-finite.
    """
    slices = [s for path in dict.fromkeys(files) for s in _slices(path, max_mb)]
    if not slices:
        raise ItemError(Unusable.NOT_AN_IMAGE, "the series has no files.")
    if slices[0].series[1] == "SEG":
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{slices[0].path}: is a segmentation, not an image; move it to the folder of masks.")
    _alike(slices)
    first, colour = slices[0], slices[0].series[3] in _COLOUR
    order, affine, spacing, off_grid = _grid(slices)
    shape = (first.shape[1], first.shape[0], len(slices), *((3,) if colour else ()))
    if 4 * math.prod(shape) > max_mb * 2**20:
        raise ItemError(Unusable.TOO_LARGE, f"{first.path}: the series needs more than {max_mb} MB.")
    voxels = np.empty(shape, dtype=np.float32)
    by_frame = {(slices[k].path, slices[k].frame): (n, slices[k]) for n, k in enumerate(order)}
    for path in dict.fromkeys(files):
        dataset = open_dataset(path, max_mb=max_mb)
        with reading(path):
            mosaic = mosaic_of(dataset, path)
        stacks = ([frame] if mosaic is None else tiles(frame, mosaic) for frame in frames(dataset, path, max_mb=max_mb))
        for number, stored in enumerate(chain.from_iterable(stacks)):
            at, slice_ = by_frame[path, number]
            with reading(path):
                values = _values(stored, dataset, slice_)
                if values.shape[:2] != slice_.shape:
                    raise ItemError(Unusable.WRONG_LENGTH, f"{path}: a frame is {values.shape}, its header says {slice_.shape}.")
                voxels[:, :, at] = values.swapaxes(0, 1)
            if not np.isfinite(voxels[:, :, at]).all():
                raise ItemError(Unusable.NON_FINITE, f"{path}: contains values that are not finite in float32.")
    return Volume(
        voxels=voxels, affine=affine, spacing_mm=spacing, unit=first.unit, modality=first.series[1], series_uid=first.series[0],
        frame_of_reference=first.series[2], instances=tuple(slices[k].instance for k in order), placed=first.position is not None,
        off_grid_mm=off_grid,
    )  # fmt: skip


def off_grid(files: Sequence[Path]) -> float:
    """How far a slice of the series is off its place on an even grid, mm; only headers are read.

    Raises:
        ItemError: as ``read_series``, of what headers show.
    """
    slices = [s for path in dict.fromkeys(files) for s in _slices(path, MAX_MB)]
    _alike(slices)
    return _grid(slices)[3]


def _slices(path: Path, max_mb: int) -> list[_Slice]:
    with reading(path):
        header = open_dataset(path, pixels=False, max_mb=max_mb)
        count, rows, columns, _ = declared(header, path, max_mb=max_mb)
        kind = [str(v).strip() for v in np.atleast_1d(header.get("ImageType") or [])]
        series = (
            str(header.get("SeriesInstanceUID") or ""), str(header.get("Modality") or ""), str(header.get("FrameOfReferenceUID") or ""),
            str(header.get("PhotometricInterpretation") or ""), "LOCALIZER" if "LOCALIZER" in kind else "",
        )  # fmt: skip
        groups = header.get("PerFrameFunctionalGroupsSequence")
        if groups is not None and len(groups) != count:
            raise ItemError(Unusable.WRONG_LENGTH, f"{path}: declares {count} frames and describes {len(groups)}.")
        if groups is None and count > 1:
            raise ItemError(Unusable.GEOMETRY, f"{path}: has {count} frames without positions, which are not a volume.")
        shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
        if (mosaic := mosaic_of(header, path)) is not None:
            return _tiled(_slice(path, 0, header, [], series, (rows, columns)), mosaic)
        found = []
        for number in range(count):
            # The functional groups that may contain an attribute, the most specific first.
            places = [g for g in (groups[number] if groups is not None else None, shared) if g is not None]
            found.append(_slice(path, number, header, places, series, (rows, columns)))
        return found


def _tiled(whole: _Slice, mosaic: Mosaic) -> list[_Slice]:
    """The slices of a mosaic, each as if it were a frame."""
    if whole.position is None or whole.axes is None or whole.spacing is None:
        raise ItemError(Unusable.GEOMETRY, f"{whole.path}: is a Siemens mosaic without a position.")
    steps = whole.axes * [[whole.spacing[0]], [whole.spacing[1]]]
    places = tile_position(mosaic, whole.shape, whole.position, steps[0], steps[1])
    return [replace(whole, frame=k, shape=mosaic.shape, position=place, location=None) for k, place in enumerate(places)]


def macro(places: Sequence[Dataset], sequence: str, keyword: str, plain: Dataset | None = None) -> Any:
    """An attribute of the first functional group that has it (PS3.3 section C.7.6.16), else of ``plain``, else None."""
    for place in places:
        items = place.get(sequence)
        if items and items[0].get(keyword) is not None:
            return items[0].get(keyword)
    return None if plain is None else plain.get(keyword)


def numbers(value: Any, count: int) -> npt.NDArray[np.float64] | None:
    """(count,) finite numbers, or None if the attribute is empty.

    Raises:
        ItemError: geometry: another count, or a number that is not finite.
    """
    if value is None or value == "" or not np.size(value):
        return None
    found = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ItemError(Unusable.GEOMETRY, f"has {found.size} numbers where {count} finite numbers are expected.")
    return found


def orthonormal(value: Any, path: Path) -> npt.NDArray[np.float64] | None:
    """Image Orientation (Patient) as (2, 3) unit vectors: along increasing column index, along increasing row index; None if it is empty.

    Raises:
        ItemError: geometry: the vectors are not orthonormal.
    """
    found = numbers(value, 6)
    if found is None:
        return None
    axes = found.reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > _COSINES:
        raise ItemError(Unusable.GEOMETRY, f"{path}: the orientation is not two orthogonal unit vectors.")
    along = axes[0] / np.linalg.norm(axes[0])
    down = axes[1] - (axes[1] @ along) * along
    return np.stack([along, down / np.linalg.norm(down)])


def _slice(path: Path, number: int, header: Dataset, groups: Sequence[Dataset], series: tuple[str, ...], shape: tuple[int, int]) -> _Slice:
    plain = header if not groups else None
    position = numbers(macro(groups, "PlanePositionSequence", "ImagePositionPatient", plain), 3)
    axes = orthonormal(macro(groups, "PlaneOrientationSequence", "ImageOrientationPatient", plain), path)
    pixel = numbers(macro(groups, "PixelMeasuresSequence", "PixelSpacing", header), 2)
    if position is None or axes is None:
        position = axes = None
        both = pixel, numbers(header.get("ImagerPixelSpacing"), 2)
        pixel = next((one for one in both if one is not None and one.min() > 0), None)  # a picture's 0 stands for an unknown spacing
    elif pixel is None or pixel.min() <= 0:
        what = "no pixel spacing" if pixel is None else "a pixel spacing that is not above 0"
        raise ItemError(Unusable.GEOMETRY, f"{path}: a slice has a position but {what}.")
    thickness = macro(groups, "PixelMeasuresSequence", "SliceThickness", header)
    location = numbers(header.get("SliceLocation"), 1) if not groups else None
    slope, intercept, rescale = _rescale(path, header, groups)
    return _Slice(
        path=path, frame=number, series=series, instance=str(header.get("SOPInstanceUID") or ""), shape=shape, position=position, axes=axes,
        spacing=None if pixel is None else (float(pixel[1]), float(pixel[0])), thickness=float(thickness or 0),
        location=None if location is None else float(location[0]), slope=slope, intercept=intercept,
        rescale=rescale, unit=_unit(header, rescale, series[4]),
    )  # fmt: skip


def _rescale(path: Path, header: Dataset, groups: Sequence[Dataset]) -> tuple[float, float, str | None]:
    slope, intercept, kind = (
        macro(groups, "PixelValueTransformationSequence", k, header) for k in ("RescaleSlope", "RescaleIntercept", "RescaleType")
    )
    if slope is None and intercept is None:
        return 1.0, 0.0, None
    slope, intercept = float(1 if slope is None else slope), float(intercept or 0)
    if not math.isfinite(slope) or not math.isfinite(intercept) or slope == 0:
        raise ItemError(Unusable.RESCALE, f"{path}: the rescale slope is 0, or slope or intercept is not finite.")
    return slope, intercept, str(kind or "")


def _unit(header: Dataset, rescale: str | None, localizer: str) -> str:
    modality = str(header.get("Modality") or "")
    if modality == "CT":  # in Hounsfield units unless the file states another unit (PS3.3 section C.8.2.1.1.2)
        return "HU" if rescale in ("", "HU") and not localizer else "" if rescale in (None, "US", "") else str(rescale)
    if modality == "PT":
        return str(header.get("Units") or "")
    return "" if rescale in (None, "", "US") else str(rescale)


def _alike(slices: Sequence[_Slice]) -> None:
    first = slices[0]
    for other in slices:
        if other.series[0] != first.series[0]:
            raise ItemError(Unusable.MIXED_SERIES, f"{other.path}: is of another series than {first.path}.")
        if other.series != first.series or other.shape != first.shape or (other.axes is None) != (first.axes is None):
            raise ItemError(Unusable.MIXED_SERIES, f"{other.path}: differs from {first.path} in kind or size (a localizer?).")
        if other.axes is not None and first.axes is not None and np.abs(other.axes - first.axes).max() > _COSINES:
            raise ItemError(Unusable.MIXED_SERIES, f"{other.path}: has another orientation than {first.path}.")
        if (other.spacing is None) != (first.spacing is None) or not np.allclose(other.spacing or 0, first.spacing or 0, rtol=1e-3):
            raise ItemError(Unusable.MIXED_SERIES, f"{other.path}: has another pixel spacing than {first.path}.")
        if other.rescale != first.rescale or other.unit != first.unit:
            raise ItemError(Unusable.RESCALE, f"{other.path}: has another rescale type or unit than {first.path}.")


def _grid(slices: Sequence[_Slice]) -> tuple[list[int], npt.NDArray[np.float64], tuple[float, float, float], float]:
    """The slices' order along the normal, the affine (RAS+), the spacing in mm, and the largest distance of a slice from the grid in mm.

    A tilted gantry shifts each slice in its plane by the same step; the affine contains this shear.
    """
    first = slices[0]
    across, down = first.spacing or (1.0, 1.0)
    affine = np.eye(4)
    if first.position is None or first.axes is None:
        if len(slices) > 1:
            raise ItemError(Unusable.GEOMETRY, f"{first.path}: several frames or files without positions are not a volume.")
        thick = first.thickness if first.thickness > 0 else 1.0
        affine[:3, :3] = np.diag([across, down, thick])
        return [0], affine, (across, down, thick), 0.0
    normal = np.cross(first.axes[0], first.axes[1])
    places = np.stack([s.position for s in slices if s.position is not None])
    along = places @ normal
    order = np.argsort(along, kind="stable")
    off_grid = 0.0
    if len(slices) == 1:
        step = normal * (first.thickness if first.thickness > 0 else 1.0)
    else:
        step = (places[order[-1]] - places[order[0]]) / (len(slices) - 1)
        off_grid = _check_grid(slices, order, along, places, step, normal)
    affine[:3, :3] = np.stack([first.axes[0] * across, first.axes[1] * down, step], axis=1)
    affine[:3, 3] = places[order[0]]
    return [int(k) for k in order], RAS @ affine, (across, down, float(np.linalg.norm(step))), off_grid


def _check_grid(
    slices: Sequence[_Slice], order: npt.NDArray[np.intp], along: npt.NDArray[np.float64], places: npt.NDArray[np.float64],
    step: npt.NDArray[np.float64], normal: npt.NDArray[np.float64],
) -> float:  # fmt: skip
    """The largest distance of a slice from the even grid, mm."""
    first, steps = slices[0], np.diff(along[order])
    usual = float(np.median(steps))
    twice = np.flatnonzero(steps <= max(_OFF_GRID * usual, 1e-4))
    if len(twice):
        raise ItemError(Unusable.DUPLICATE_SLICES, f"{slices[order[twice[0] + 1]].path}: has the position of another slice of its series.")
    distance = float(step @ normal)
    if np.abs(along[order] - along[order[0]] - distance * np.arange(len(order))).max() > _OFF_GRID * min(distance, usual):
        raise ItemError(Unusable.GAP, f"{first.path}: the slices of its series are not evenly spaced (one is missing?).")
    off = places[order] - places[order[0]] - np.outer(np.arange(len(order)), step)
    in_plane = off - np.outer(off @ normal, normal)
    if np.abs(in_plane).max() > _OFF_GRID * min(first.spacing or (1.0, 1.0)) + 1e-3:
        raise ItemError(Unusable.GEOMETRY, f"{first.path}: the slices of its series are shifted against each other.")
    located = [slices[k].location for k in order]
    steps = np.diff([where for where in located if where is not None])
    if len(steps) == len(order) - 1 and (steps > 0).any() and (steps < 0).any():  # swapped positions cannot be detected in any other way
        raise ItemError(Unusable.GEOMETRY, f"{first.path}: positions and slice locations of its series are in different orders.")
    return float(np.linalg.norm(off, axis=1).max())


def _values(stored: npt.NDArray[Any], dataset: Dataset, slice_: _Slice) -> npt.NDArray[Any]:
    if stored.ndim == 3:
        return stored
    table = dataset.get("ModalityLUTSequence")
    if table:
        from pydicom.pixels.processing import apply_modality_lut

        values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
        low, high = float(values.min()), float(values.max())  # a lookup table declares no range for the inversion
    else:
        bits, signed = int(dataset.get("BitsStored") or 0), int(dataset.get("PixelRepresentation", 0))
        low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
        low, high = low * slice_.slope + slice_.intercept, high * slice_.slope + slice_.intercept
        values = stored * np.float64(slice_.slope) + slice_.intercept
    if slice_.series[3] == "MONOCHROME1" and not slice_.unit:
        values = low + high - values
    return values
