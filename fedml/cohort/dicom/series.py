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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.files import MAX_MB, declared, frames, open_dataset, reading
from fedml.cohort.dicom.grid import Slice, alike, grid_of
from fedml.cohort.dicom.macros import macro, numbers, orthonormal
from fedml.cohort.dicom.many_frames import reconstructed
from fedml.cohort.dicom.mosaic import Mosaic, mosaic_of, tile_position, tiles
from fedml.cohort.dicom.volumes import differ, dims_of, selected, split
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.study.series_section import Select

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR")


@dataclass(frozen=True)
class Volume:
    """An image and its position.

    ``voxels``: float32, (columns, rows, slices), or (columns, rows, slices, 3) as RGB in the stored range, usually 0..255.
    ``affine``: voxel index -> mm in RAS+, float64 (4, 4). ``spacing_mm``: voxel spacing along the three axes.
    ``unit``: HU, the unit that a PET or an enhanced image states, or empty. ``instances``: SOP instance UID of each slice.
    ``placed`` is False for a picture without a position (X-ray, photograph): its affine only scales, by 1 mm if the pixel spacing is
    unknown. A single slice without a slice thickness is taken as 1 mm thick. ``off_grid_mm``: the largest distance of a slice's first
    pixel from its place in ``affine``. ``slices``: each slice by its header.
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
    slices: tuple[Slice, ...] = ()

    @property
    def picture(self) -> npt.NDArray[np.float32]:
        """The only slice in the axis order of a picture: (rows, columns) or (rows, columns, 3)."""
        if self.voxels.shape[2] != 1:
            raise ItemError(Unusable.GEOMETRY, f"series {self.series_uid}: has {self.voxels.shape[2]} slices, not one.")
        return np.ascontiguousarray(self.voxels[:, :, 0].swapaxes(0, 1))


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
    return _read(files, [_slices_of(files, max_mb)], max_mb)[0]


def read_volumes(files: Sequence[Path], rules: Select | None = None, *, max_mb: int = MAX_MB) -> tuple[list[Volume], str]:
    """The volumes of one series (``fedml.cohort.dicom.volumes``), each as ``read_series`` has it, and what tells them apart.

    Args:
        rules: of the study; its b-values, echo times and phases are read, the others are not.
        max_mb: size limit of a file and of all volumes together.

    Raises:
        ItemError: as ``read_series``; no-series: the series has none of the volumes that the rules select.
    """
    groups = split(selected(_slices_of(files, max_mb), rules))
    return _read(files, groups, max_mb), differ(groups)


def _slices_of(files: Sequence[Path], max_mb: int) -> list[Slice]:
    slices = [s for path in dict.fromkeys(files) for s in _slices(path, max_mb)]
    if not slices:
        raise ItemError(Unusable.NOT_AN_IMAGE, "the series has no files.")
    if slices[0].series[1] == "SEG":
        raise ItemError(Unusable.NOT_AN_IMAGE, f"{slices[0].path}: is a segmentation, not an image; move it to the folder of masks.")
    return slices


def _read(files: Sequence[Path], groups: Sequence[Sequence[Slice]], max_mb: int) -> list[Volume]:
    """A volume for each group of slices; each file is decoded once."""
    alike([one for slices in groups for one in slices])
    first, colour = groups[0][0], groups[0][0].series[3] in _COLOUR
    grids = [grid_of(slices) for slices in groups]
    shapes = [(first.shape[1], first.shape[0], len(slices), *((3,) if colour else ())) for slices in groups]
    if 4 * sum(math.prod(shape) for shape in shapes) > max_mb * 2**20:
        raise ItemError(Unusable.TOO_LARGE, f"{first.path}: the series needs more than {max_mb} MB.")
    voxels = [np.empty(shape, dtype=np.float32) for shape in shapes]
    by_frame = {
        (slices[k].path, slices[k].frame): (of[:, :, n], slices[k])
        for slices, (order, *_), of in zip(groups, grids, voxels, strict=True)
        for n, k in enumerate(order)
    }
    for path in dict.fromkeys(one.path for slices in groups for one in slices):
        dataset = open_dataset(path, max_mb=max_mb)
        with reading(path):
            mosaic = mosaic_of(dataset, path)
        stacks = ([frame] if mosaic is None else tiles(frame, mosaic) for frame in frames(dataset, path, max_mb=max_mb))
        for number, stored in enumerate(chain.from_iterable(stacks)):
            if (path, number) not in by_frame:
                continue
            plane, slice_ = by_frame[path, number]
            with reading(path):
                values = _values(stored, dataset, slice_)
                if values.shape[:2] != slice_.shape:
                    raise ItemError(Unusable.WRONG_LENGTH, f"{path}: a frame is {values.shape}, its header says {slice_.shape}.")
                plane[...] = values.swapaxes(0, 1)
            if not np.isfinite(plane).all():
                raise ItemError(Unusable.NON_FINITE, f"{path}: contains values that are not finite in float32.")
    return [
        Volume(
            voxels=of, affine=affine, spacing_mm=spacing, unit=first.unit, modality=first.series[1], series_uid=first.series[0],
            frame_of_reference=first.series[2], instances=tuple(slices[k].instance for k in order), placed=first.position is not None,
            off_grid_mm=off, slices=tuple(slices[k] for k in order),
        )
        for slices, (order, affine, spacing, off), of in zip(groups, grids, voxels, strict=True)
    ]  # fmt: skip


def off_grid(files: Sequence[Path]) -> float:
    """How far a slice of the series is off its place on an even grid, mm; only headers are read.

    Raises:
        ItemError: as ``read_series``, of what headers show.
    """
    groups = split(_slices_of(files, MAX_MB))
    alike([one for slices in groups for one in slices])
    return max(grid_of(slices)[3] for slices in groups)


def _slices(path: Path, max_mb: int) -> list[Slice]:
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
        if series[1] == "RTDOSE":
            raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: is a dose of radiotherapy, not an image; remove it from the images.")
        if groups is None and count > 1:
            return _frames(_slice(path, 0, header, [], series, (rows, columns)), count, reconstructed(header, path))
        shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
        if (mosaic := mosaic_of(header, path)) is not None:
            return _tiled(_slice(path, 0, header, [], series, (rows, columns)), mosaic)
        found = []
        for number in range(count):
            # The functional groups that may contain an attribute, the most specific first.
            places = [g for g in (groups[number] if groups is not None else None, shared) if g is not None]
            found.append(_slice(path, number, header, places, series, (rows, columns)))
        return found


def _frames(whole: Slice, count: int, places: tuple[Any, Any] | None) -> list[Slice]:
    """The frames of a file without functional groups: at their places, or each a time of one picture."""
    if places is None:
        if whole.position is not None:
            text = f"has {count} frames and one position, so it is not known where the others lie"
            raise ItemError(Unusable.GEOMETRY, f"{whole.path}: {text}.")
        return [replace(whole, frame=k, location=None, dims=(*whole.dims[:-1], (float(k + 1),))) for k in range(count)]
    if whole.spacing is None or min(whole.spacing) <= 0:
        raise ItemError(Unusable.GEOMETRY, f"{whole.path}: has slices but no pixel spacing.")
    return [replace(whole, frame=k, position=place, axes=places[1], location=None) for k, place in enumerate(places[0])]


def _tiled(whole: Slice, mosaic: Mosaic) -> list[Slice]:
    """The slices of a mosaic, each as if it were a frame."""
    if whole.position is None or whole.axes is None or whole.spacing is None:
        raise ItemError(Unusable.GEOMETRY, f"{whole.path}: is a Siemens mosaic without a position.")
    steps = whole.axes * [[whole.spacing[0]], [whole.spacing[1]]]
    places = tile_position(mosaic, whole.shape, whole.position, steps[0], steps[1])
    return [replace(whole, frame=k, shape=mosaic.shape, position=place, location=None) for k, place in enumerate(places)]


def _slice(path: Path, number: int, header: Dataset, groups: Sequence[Dataset], series: tuple[str, ...], shape: tuple[int, int]) -> Slice:
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
    return Slice(
        path=path, frame=number, series=series, instance=str(header.get("SOPInstanceUID") or ""), shape=shape, position=position, axes=axes,
        spacing=None if pixel is None else (float(pixel[1]), float(pixel[0])), thickness=float(thickness or 0),
        location=None if location is None else float(location[0]), slope=slope, intercept=intercept,
        rescale=rescale, unit=_unit(header, rescale, series[4]), dims=dims_of(header, list(groups)),
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


def _values(stored: npt.NDArray[Any], dataset: Dataset, slice_: Slice) -> npt.NDArray[Any]:
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
