"""Reads a DICOM segmentation as a mask on the voxel grid of its image.

    volume = read_series(files)
    mask, labels = read_seg(path, volume)              # uint8 (columns, rows, slices); {1: "tumour"}
    tumour, _ = read_seg(path, volume, segments=[1])   # only segment 1

Frames are placed by their position (PS3.3 sections A.51 and C.8.20), not by their order in the file: a segmentation may have fewer frames
than its image has slices, cropped or flipped frames, or several segments in one slice. A mask that does not belong to the image is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.files import MAX_MB, frames, open_dataset, reading
from fedml.cohort.dicom.grid import RAS
from fedml.cohort.dicom.macros import macro, numbers, orthonormal
from fedml.cohort.dicom.series import Volume
from fedml.cohort.images.reasons import ItemError, Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Largest offsets between mask and image, in voxels.
_MAX_DRIFT = 0.25  # between rows or columns over a whole frame
_MAX_IN_PLANE = 0.5 + 1e-3  # in the plane: some files give the corner of a pixel instead of its centre
_MAX_NORMAL = 0.49  # along the normal: at half a slice both neighbours would be equally near
_COARSEST = 8  # of a matrix, as a fraction of the image's: 1/2 to 1/8 are suspected
_MAX_CROPPED = 0.3  # of a cropped frame, which has no edge in common with the image


def read_seg(
    path: Path, volume: Volume, *, segments: Sequence[int] | None = None, max_mb: int = MAX_MB
) -> tuple[npt.NDArray[np.uint8], dict[int, str]]:
    """The mask, uint8 (columns, rows, slices), 0 outside all segments, and the label of each requested segment.

    A voxel of a fractional segmentation belongs to the segment from half the maximum fractional value.

    Args:
        path: the segmentation (binary, fractional, or a label map).
        volume: its image, a result of ``read_series``.
        segments: numbers of the segments to read; in an overlap the later one wins. None: all segments, and an overlap is refused.
        max_mb: size limit of the file and of its frames, in MB of 2**20 bytes.

    Raises:
        ItemError: mask-mismatch (another frame of reference, series or grid, an offset of more than half a voxel, voxels outside the
            image), overlapping-segments, duplicate-slices (a segment twice in one slice), or a reason of ``read_series``.
    """
    with reading(path):
        dataset = open_dataset(path, max_mb=max_mb)
        if str(dataset.get("Modality")) != "SEG" or "SegmentSequence" not in dataset:
            raise ItemError(Unusable.NOT_AN_IMAGE, f"{path}: is not a DICOM segmentation.")
        labels = {int(s.SegmentNumber): str(s.get("SegmentLabel") or "") for s in dataset.SegmentSequence}
        wanted = sorted(labels) if segments is None else [int(n) for n in segments]
        if missing := [n for n in wanted if n not in labels]:
            raise ItemError(Unusable.MASK_MISMATCH, f"{path}: has no segment {missing[0]}, only {sorted(labels)}.")
        if not wanted or not all(0 < n < 256 for n in wanted):
            raise ItemError(Unusable.TOO_LARGE, f"{path}: has no segment, or one above 255.")
        _same_image(dataset, volume, path)
        groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
        count = int(dataset.get("NumberOfFrames") or 1)
        if len(groups) != count:
            raise ItemError(Unusable.WRONG_LENGTH, f"{path}: declares {count} frames and describes {len(groups)}.")
        kind = str(dataset.get("SegmentationType") or "BINARY")
        least = 0.5 * float(dataset.get("MaximumFractionalValue") or 1) if kind == "FRACTIONAL" else 1
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]

    mask = np.zeros(volume.voxels.shape[:3], dtype=np.uint8)
    positions: set[tuple[int, tuple[int, ...]]] = set()
    rank = np.zeros(256, dtype=np.int64)  # segment number -> its rank in ``wanted``, 0 if it is not wanted
    rank[wanted] = np.arange(1, len(wanted) + 1)
    for frame, group in zip(frames(dataset, path, max_mb=max_mb), groups, strict=True):
        with reading(path):
            places = [g for g in (group, shared) if g is not None]
            start, right, down = _place(places, frame.shape, volume, path)
            _same_slice(group, start, right, down, volume, path)
            number = None if kind == "LABELMAP" else int(macro(places, "SegmentIdentificationSequence", "ReferencedSegmentNumber") or 0)
        if number is not None and number not in labels:
            raise ItemError(Unusable.MASK_MISMATCH, f"{path}: a frame is of segment {number}, which the file does not describe.")
        if (key := (number or 0, tuple(start))) in positions:
            raise ItemError(Unusable.DUPLICATE_SLICES, f"{path}: has segment {number} twice at one position.")
        positions.add(key)
        for segment in wanted if number is None else [number] if number in wanted else []:
            found = np.nonzero(frame == segment if number is None else frame >= least)
            at = start + found[1][:, None] * right + found[0][:, None] * down
            if len(at) and (at.min() < 0 or (at >= mask.shape).any()):
                raise ItemError(Unusable.MASK_MISMATCH, f"{path}: marks voxels outside its image.")
            index = tuple(at.T)
            before = rank[mask[index]]
            if segments is None and before.any():
                raise ItemError(Unusable.OVERLAPPING_SEGMENTS, f"{path}: the segments overlap; name the segments to read.")
            mask[index] = np.where(before > rank[segment], mask[index], segment)
    return mask, {n: labels[n] for n in wanted}


def _same_image(dataset: Dataset, volume: Volume, path: Path) -> None:
    if not volume.placed or str(dataset.get("FrameOfReferenceUID") or "") != volume.frame_of_reference:
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: has another frame of reference than its image.")
    series = [str(s.get("SeriesInstanceUID") or "") for s in dataset.get("ReferencedSeriesSequence") or []]
    if series and volume.series_uid not in series:
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: refers to another series.")


def _place(
    groups: Sequence[Dataset], shape: tuple[int, ...], volume: Volume, path: Path
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Voxel index of the frame's first pixel, and the steps (-1, 0 or 1 along each axis) to the next pixel in the row and in the column."""
    position = numbers(macro(groups, "PlanePositionSequence", "ImagePositionPatient"), 3)
    axes = orthonormal(macro(groups, "PlaneOrientationSequence", "ImageOrientationPatient"), path)
    pixel = numbers(macro(groups, "PixelMeasuresSequence", "PixelSpacing"), 2)
    if position is None or axes is None or pixel is None:
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: a frame has no position, orientation or spacing.")
    voxel = np.linalg.inv(RAS @ volume.affine)
    exact = voxel[:3, :3] @ position + voxel[:3, 3]
    steps = voxel[:3, :3] @ (axes * [[pixel[1]], [pixel[0]]]).T
    whole = np.rint(steps)
    drift = np.abs(steps - whole) * [shape[1], shape[0]]
    if drift.max() > _MAX_DRIFT or (np.abs(whole).sum(0) != 1).any() or (np.abs(whole).sum(1) > 1).any():
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: its pixels differ from those of its image in size or direction.")
    start = np.rint(exact)
    for axis in range(3):
        along = np.flatnonzero(whole[axis])
        if not len(along):
            allowed = _MAX_NORMAL
        elif shape[1 - along[0]] == volume.voxels.shape[axis]:  # as large as the image along this axis: the frame begins at an edge
            start[axis] = 0 if whole[axis, along[0]] > 0 else volume.voxels.shape[axis] - 1
            allowed = _MAX_IN_PLANE
        else:
            allowed = _MAX_CROPPED
        if abs(exact[axis] - start[axis]) > allowed:
            raise ItemError(Unusable.MASK_MISMATCH, f"{path}: a frame is {abs(exact[axis] - start[axis]):.2f} voxels off the image grid.")
    _check_matrix(shape, start, whole, volume, path)
    return start.astype(np.int64), whole[:, 0].astype(np.int64), whole[:, 1].astype(np.int64)


def _check_matrix(
    shape: tuple[int, ...], start: npt.NDArray[np.float64], whole: npt.NDArray[np.float64], volume: Volume, path: Path
) -> None:
    """Refuses a frame of half (a third, ..) the image's rows and columns that begins at its corner: segmented on a coarser matrix, with
    the spacing of the finer one, it would lie in one quadrant."""
    factors = set()
    for length, along in ((shape[1], whole[:, 0]), (shape[0], whole[:, 1])):
        axis = int(np.flatnonzero(along)[0])
        size = volume.voxels.shape[axis]
        at_edge = start[axis] == (0 if along[axis] > 0 else size - 1)
        factors.add(size // length if at_edge and size % length == 0 else 0)
    if len(factors) == 1 and 2 <= (factor := factors.pop()) <= _COARSEST:
        text = (
            f"a frame has 1/{factor} of its image's rows and columns and begins at the image's corner: a part of it, or the whole coarser?"
        )
        raise ItemError(Unusable.MASK_MISMATCH, f"{path}: {text} Export it on the image's own matrix.")


def _same_slice(
    group: Dataset, start: npt.NDArray[np.int64], right: npt.NDArray[np.int64], down: npt.NDArray[np.int64], volume: Volume, path: Path
) -> None:
    """Checks that a frame is in the slice that it refers to; a shift by whole slices cannot be detected in any other way."""
    if right[2] or down[2]:
        return
    for derived in group.get("DerivationImageSequence") or []:
        named = {str(s.get("ReferencedSOPInstanceUID") or "") for s in derived.get("SourceImageSequence") or []}
        slices = [k for k, uid in enumerate(volume.instances) if uid in named]
        if slices and start[2] not in slices:
            raise ItemError(Unusable.MASK_MISMATCH, f"{path}: a frame is in another slice than the slice that it refers to.")
