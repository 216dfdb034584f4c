"""One DICOM series as one volume, placed in the patient; what a hospital's archive exports, whatever its files are called.

    series = group_series(folder)                    # series UID -> files, over any nesting of folders
    volume = read_series(series[uid])
    nibabel.Nifti1Image(volume.voxels, volume.affine)            # the axes and the affine are those of NIfTI:
    monai.data.MetaTensor(volume.voxels[None], volume.affine)    # voxels[column, row, slice], millimetres, RAS+

Slices stand by their position along the normal (PS3.3 section C.7.6.2.1.1), never by number or name. A series that is no regular grid of
slices is refused with a reason: a slice lacks or is there twice, orientations or sizes are mixed, a localizer lies among them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.files import MAX_MB, declared, frames, looks_dicom, open_dataset, reading
from fedml.cohort.images.reasons import ItemError, Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's LPS to RAS and back
_COSINES = 1e-3  # orientation: scanners write five or six digits
_OFF_GRID = 0.2  # of a step: thin slices with positions rounded to 0.1 mm lie within it, a missing one puts some off by half a step
_DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR
_ENDINGS = (".dcm", ".dicom", ".ima")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR")


@dataclass(frozen=True)
class Volume:
    """An image and where it lies.

    ``voxels``: float32, (columns, rows, slices), or (columns, rows, slices, 3) as RGB in the stored range, mostly 0..255.
    ``affine``: voxel index -> mm in RAS+, float64 (4, 4). ``spacing_mm``: between neighbours along the three axes.
    ``unit``: HU, what a PET or an enhanced image says of itself, or empty. ``instances``: SOP instance UID of each slice.
    ``placed`` is False for a picture that says no position (X-ray, photograph): its affine only scales, by 1 mm where the spacing of its
    pixels is unknown. Without a slice thickness a single slice counts as 1 mm thick.
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

    @property
    def picture(self) -> npt.NDArray[np.float32]:
        """The only slice as a photograph is read: (rows, columns) or (rows, columns, 3)."""
        if self.voxels.shape[2] != 1:
            raise ItemError(Unusable.GEOMETRY, f"series {self.series_uid}: has {self.voxels.shape[2]} slices, not one.")
        return np.ascontiguousarray(self.voxels[:, :, 0].swapaxes(0, 1))


@dataclass(frozen=True)
class _Slice:
    path: Path
    frame: int
    series: tuple[str, ...]  # what all slices of a volume share
    instance: str
    shape: tuple[int, int]
    position: npt.NDArray[np.float64] | None
    axes: npt.NDArray[np.float64] | None  # (2, 3): direction of growing columns, of growing rows
    spacing: tuple[float, float] | None  # of columns, of rows; mm
    thickness: float
    location: float | None  # Slice Location: mm along the normal, from anywhere and in either direction
    slope: float
    intercept: float
    rescale: str | None  # its type, "" where it says none; None: no rescale
    unit: str


def group_series(folder: Path) -> dict[str, list[Path]]:
    """Series instance UID -> its files below ``folder``, sorted; what is no DICOM and DICOMDIR are left out.

    Under the key ``""`` stand files that begin as DICOM but cannot be read or name no series, and those that begin otherwise though their
    name ends in ``.dcm``, or that are empty and have no other ending: one of them may be a missing slice.
    """
    series: dict[str, list[Path]] = {}
    for where, _, names in os.walk(folder):  # links to folders are not followed: they may run in circles
        for path in (Path(where, name) for name in names):
            try:
                if not path.is_file():
                    continue
                if not looks_dicom(path):
                    if _named_dicom(path):
                        series.setdefault("", []).append(path)
                    continue
                with reading(path):
                    dataset = open_dataset(path, pixels=False, tags=["SeriesInstanceUID", "SOPClassUID"])
                    if str(dataset.file_meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY:
                        continue
                    uid = str(dataset.get("SeriesInstanceUID") or "")
            except (ItemError, OSError):
                uid = ""
            series.setdefault(uid, []).append(path)
    return {uid: sorted(files) for uid, files in sorted(series.items())}


def _named_dicom(path: Path) -> bool:
    ending = path.suffix.lower()
    return ending in _ENDINGS or (not path.stat().st_size and not path.name.startswith(".") and not ending[1:].isalpha())


def read_series(files: Sequence[Path], *, max_mb: int = MAX_MB) -> Volume:
    """The files of one series, in any order, as one volume.

    Rescale slope and intercept are applied slice by slice, MONOCHROME1 is turned over where the values have no unit, the frames of an
    enhanced image are slices. A picture without positions is one slice. Overlays and padding values are left as they are.

    Args:
        files: all files of the series.
        max_mb: limit of a file and of the volume, in MB of 2**20 bytes.

    Raises:
        ItemError: by the reason: not-an-image, unreadable, truncated, wrong-length, too-large, compressed; mixed-series, geometry, gap,
            duplicate-slices, rescale, non-finite.
    """
    slices = [s for path in dict.fromkeys(files) for s in _slices(path, max_mb)]
    if not slices:
        raise ItemError(Unusable.NOT_AN_IMAGE, "a series without files.")
    if slices[0].series[1] == "SEG":
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{slices[0].path}: is a segmentation, no image; dicom_seg reads it.")
    _alike(slices)
    first, colour = slices[0], slices[0].series[3] in _COLOUR
    order, affine, spacing = _grid(slices)
    shape = (first.shape[1], first.shape[0], len(slices), *((3,) if colour else ()))
    if 4 * math.prod(shape) > max_mb * 2**20:
        raise ItemError(Unusable.TOO_LARGE, f"{first.path}: its series needs more than {max_mb} MB.")
    voxels = np.empty(shape, dtype=np.float32)
    stands = {(slices[k].path, slices[k].frame): (n, slices[k]) for n, k in enumerate(order)}
    for path in dict.fromkeys(files):
        dataset = open_dataset(path, max_mb=max_mb)
        for number, stored in enumerate(frames(dataset, path, max_mb=max_mb)):
            at, one = stands[path, number]
            with reading(path):
                values = _values(stored, dataset, one)
                if values.shape[:2] != one.shape:
                    raise ItemError(Unusable.WRONG_LENGTH, f"{path}: a frame is {values.shape}, its header says {one.shape}.")
                voxels[:, :, at] = values.swapaxes(0, 1)
            if not np.isfinite(voxels[:, :, at]).all():
                raise ItemError(Unusable.NON_FINITE, f"{path}: holds values that are not finite in float32.")
    return Volume(
        voxels=voxels, affine=affine, spacing_mm=spacing, unit=first.unit, modality=first.series[1], series_uid=first.series[0],
        frame_of_reference=first.series[2], instances=tuple(slices[k].instance for k in order), placed=first.position is not None,
    )  # fmt: skip


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
            raise ItemError(Unusable.GEOMETRY, f"{path}: holds {count} frames without a position each; they are no volume.")
        shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
        found = []
        for number in range(count):
            # (where an attribute may stand, the most particular first)
            own = [g for g in (groups[number] if groups is not None else None, shared) if g is not None]
            found.append(_slice(path, number, header, own, series, (rows, columns)))
        return found


def macro(places: Sequence[Dataset], sequence: str, keyword: str, plain: Dataset | None = None) -> Any:
    """An attribute of a functional group (PS3.3 section C.7.6.16), or of ``plain`` where no group has it; None where nobody has."""
    for place in places:
        items = place.get(sequence)
        if items and items[0].get(keyword) is not None:
            return items[0].get(keyword)
    return None if plain is None else plain.get(keyword)


def numbers(value: Any, count: int) -> npt.NDArray[np.float64] | None:
    """``count`` finite numbers, or None where the attribute is empty.

    Raises:
        ItemError: other than that; the reason is geometry.
    """
    if value is None or value == "" or not np.size(value):
        return None
    found = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ItemError(Unusable.GEOMETRY, f"holds {found.size} numbers where {count} finite ones are expected.")
    return found


def orthonormal(value: Any, path: Path) -> npt.NDArray[np.float64] | None:
    """Image Orientation (Patient) as (2, 3) unit vectors: along growing columns, along growing rows; None where it is empty.

    Raises:
        ItemError: they are no unit vectors at a right angle; the reason is geometry.
    """
    found = numbers(value, 6)
    if found is None:
        return None
    axes = found.reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > _COSINES:
        raise ItemError(Unusable.GEOMETRY, f"{path}: its orientation is not two unit vectors at a right angle.")
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
        pixel = numbers(header.get("ImagerPixelSpacing"), 2) if pixel is None else pixel
    if (position is not None and pixel is None) or (pixel is not None and pixel.min() <= 0):
        raise ItemError(Unusable.GEOMETRY, f"{path}: a slice has a position but no pixel spacing above 0.")
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
        raise ItemError(Unusable.RESCALE, f"{path}: its rescale slope and intercept give no values.")
    return slope, intercept, str(kind or "")


def _unit(header: Dataset, rescale: str | None, localizer: str) -> str:
    modality = str(header.get("Modality") or "")
    if modality == "CT":  # in Hounsfield units unless it says otherwise (PS3.3 section C.8.2.1.1.2)
        return "HU" if rescale in ("", "HU") and not localizer else "" if rescale in (None, "US", "") else str(rescale)
    if modality == "PT":
        return str(header.get("Units") or "")
    return "" if rescale in (None, "", "US") else str(rescale)


def _alike(slices: Sequence[_Slice]) -> None:
    first = slices[0]
    for one in slices:
        if one.series[0] != first.series[0]:
            raise ItemError(Unusable.MIXED_SERIES, f"{one.path}: is of another series than {first.path}.")
        if one.series != first.series or one.shape != first.shape or (one.axes is None) != (first.axes is None):
            raise ItemError(Unusable.MIXED_SERIES, f"{one.path}: differs from {first.path} in kind or size (a localizer?).")
        if one.axes is not None and first.axes is not None and np.abs(one.axes - first.axes).max() > _COSINES:
            raise ItemError(Unusable.MIXED_SERIES, f"{one.path}: is oriented otherwise than {first.path}.")
        if (one.spacing is None) != (first.spacing is None) or not np.allclose(one.spacing or 0, first.spacing or 0, rtol=1e-3):
            raise ItemError(Unusable.MIXED_SERIES, f"{one.path}: has another pixel spacing than {first.path}.")
        if one.rescale != first.rescale or one.unit != first.unit:
            raise ItemError(Unusable.RESCALE, f"{one.path}: is rescaled otherwise than {first.path}.")


def _grid(slices: Sequence[_Slice]) -> tuple[list[int], npt.NDArray[np.float64], tuple[float, float, float]]:
    """The slices' order along the normal, the affine (RAS) and the spacing.

    A tilted gantry moves each slice in its plane by the same step: that is kept, as a shear.
    """
    first = slices[0]
    across, down = first.spacing or (1.0, 1.0)
    affine = np.eye(4)
    if first.position is None or first.axes is None:
        if len(slices) > 1:
            raise ItemError(Unusable.GEOMETRY, f"{first.path}: several frames or files that say no position are not a volume.")
        thick = first.thickness if first.thickness > 0 else 1.0
        affine[:3, :3] = np.diag([across, down, thick])
        return [0], affine, (across, down, thick)
    normal = np.cross(first.axes[0], first.axes[1])
    places = np.stack([s.position for s in slices if s.position is not None])
    along = places @ normal
    order = np.argsort(along, kind="stable")
    if len(slices) == 1:
        step = normal * (first.thickness if first.thickness > 0 else 1.0)
    else:
        step = (places[order[-1]] - places[order[0]]) / (len(slices) - 1)
        _check_grid(slices, order, along, places, step, normal)
    affine[:3, :3] = np.stack([first.axes[0] * across, first.axes[1] * down, step], axis=1)
    affine[:3, 3] = places[order[0]]
    return [int(k) for k in order], RAS @ affine, (across, down, float(np.linalg.norm(step)))


def _check_grid(
    slices: Sequence[_Slice], order: npt.NDArray[np.intp], along: npt.NDArray[np.float64], places: npt.NDArray[np.float64],
    step: npt.NDArray[np.float64], normal: npt.NDArray[np.float64],
) -> None:  # fmt: skip
    first, steps = slices[0], np.diff(along[order])
    usual = float(np.median(steps))
    twice = np.flatnonzero(steps <= max(_OFF_GRID * usual, 1e-4))
    if len(twice):
        raise ItemError(Unusable.DUPLICATE_SLICES, f"{slices[order[twice[0] + 1]].path}: lies where another slice of its series lies.")
    distance = float(step @ normal)
    if np.abs(along[order] - along[order[0]] - distance * np.arange(len(order))).max() > _OFF_GRID * min(distance, usual):
        raise ItemError(Unusable.GAP, f"{first.path}: the slices of its series are not evenly spaced (one is missing?).")
    off = places[order] - places[order[0]] - np.outer(np.arange(len(order)), step)
    in_plane = off - np.outer(off @ normal, normal)
    if np.abs(in_plane).max() > _OFF_GRID * min(first.spacing or (1.0, 1.0)) + 1e-3:
        raise ItemError(Unusable.GEOMETRY, f"{first.path}: the slices of its series are shifted against each other.")
    located = [slices[k].location for k in order]
    steps = np.diff([where for where in located if where is not None])
    if len(steps) == len(order) - 1 and (steps > 0).any() and (steps < 0).any():  # swapped positions show nowhere else
        raise ItemError(Unusable.GEOMETRY, f"{first.path}: positions and slice locations of its series are in different orders.")


def _values(stored: npt.NDArray[Any], dataset: Dataset, one: _Slice) -> npt.NDArray[Any]:
    if stored.ndim == 3:
        return stored
    table = dataset.get("ModalityLUTSequence")
    if table:
        from pydicom.pixels.processing import apply_modality_lut

        values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
        low, high = float(values.min()), float(values.max())  # a table has no range of its own to turn over
    else:
        bits, signed = int(dataset.get("BitsStored") or 0), int(dataset.get("PixelRepresentation", 0))
        low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
        low, high = low * one.slope + one.intercept, high * one.slope + one.intercept
        values = stored * np.float64(one.slope) + one.intercept
    if one.series[3] == "MONOCHROME1" and not one.unit:
        values = low + high - values
    return values
