"""DICOM files of a few pixels, made by pydicom alone: what a scanner would write, and one wrong thing at a time."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, SegmentationStorage

SERIES, REFERENCE = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"
AXIAL = (1, 0, 0, 0, 1, 0)


def _uid(path: Path) -> str:
    return f"{SERIES}.1{zlib.crc32(path.name.encode()):010d}"  # of one length, as a test that damages files wants it


def _file(kind: str, uid: str, syntax: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = kind
    dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = kind, uid
    return dataset


def _pixels(dataset: Dataset, pixels: np.ndarray[Any, Any], coded: Sequence[bytes] | None, photometric: str, bits: int | None) -> None:
    colour = pixels.shape[-1] == 3 and photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3 if colour else 1), photometric
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2) if coded is None else encapsulate(list(coded))
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 and coded is None else "OB"
    if coded is not None:
        dataset["PixelData"].is_undefined_length = True


def write_slice(
    path: Path, pixels: np.ndarray[Any, Any], position: Sequence[float] | None, *, axes: Sequence[float] = AXIAL, coded: Any = None,
    photometric: str = "MONOCHROME2", bits: int | None = None, syntax: str = ExplicitVRLittleEndian, drop: Sequence[str] = (),
    **changes: Any,
) -> Path:  # fmt: skip
    """A CT slice (2 mm rows, 1.5 mm columns, 3 mm thick), slope 1 and intercept -1024, or as ``changes`` say."""
    dataset = _file(CTImageStorage, _uid(path), syntax)
    dataset.Modality, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "CT", SERIES, REFERENCE
    dataset.ImageType, dataset.PixelSpacing, dataset.SliceThickness = ["ORIGINAL", "PRIMARY", "AXIAL"], [2, 1.5], 3
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    if position is not None:
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(position), list(axes)
    _pixels(dataset, pixels, coded, photometric, bits)
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    for keyword in drop:
        delattr(dataset, keyword)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, voxels: np.ndarray[Any, Any], *, step: float = 3.0, **changes: Any) -> list[Path]:
    """``voxels`` (slices, rows, columns) as CT slices; slice k lies at z = 10 + step * k."""
    return [write_slice(folder / f"{k}.dcm", plane, (-5.0, 7.0, 10 + step * k), **changes) for k, plane in enumerate(voxels)]


def item(**values: Any) -> Dataset:
    """One item of a sequence."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def _group(position: Sequence[float] | None, **more: Items) -> Dataset:
    place = {} if position is None else {"PlanePositionSequence": Items([item(ImagePositionPatient=list(position))])}
    return item(**place, **more)


def _shared(axes: Sequence[float], spacing: Sequence[float]) -> Items:
    measures = item(PixelSpacing=list(spacing), SliceThickness=3)
    direction = Items([item(ImageOrientationPatient=list(axes))])
    return Items([item(PixelMeasuresSequence=Items([measures]), PlaneOrientationSequence=direction)])


def write_enhanced(
    path: Path, voxels: np.ndarray[Any, Any], positions: Sequence[Sequence[float]], rescale: Sequence[tuple[float, float]]
) -> Path:
    """An enhanced MR: one frame a position, its own slope and intercept each."""
    dataset = _file(EnhancedMRImageStorage, _uid(path), ExplicitVRLittleEndian)
    dataset.Modality, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "MR", SERIES, REFERENCE
    dataset.NumberOfFrames = len(voxels)
    groups = [
        _group(p, PixelValueTransformationSequence=Items([item(RescaleSlope=s, RescaleIntercept=i, RescaleType="US")]))
        for p, (s, i) in zip(positions, rescale, strict=True)
    ]
    dataset.PerFrameFunctionalGroupsSequence = Items(groups)
    dataset.SharedFunctionalGroupsSequence = _shared(AXIAL, [2, 1.5])
    _pixels(dataset, voxels, None, "MONOCHROME2", None)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_seg(
    path: Path, frames: Sequence[tuple[int, Sequence[float], np.ndarray[Any, Any]]], *, axes: Sequence[float] = AXIAL,
    spacing: Sequence[float] = (2, 1.5), kind: str = "BINARY", sources: Sequence[str] = (), **changes: Any,
) -> Path:  # fmt: skip
    """A segmentation of (segment, position, (rows, columns)) frames; binary ones are packed to bits. ``sources``: a slice's UID each."""
    dataset = _file(SegmentationStorage, _uid(path), ExplicitVRLittleEndian)
    dataset.Modality, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "SEG", "1.2.826.0.1.3680043.8.498.3", REFERENCE
    dataset.SegmentationType, dataset.NumberOfFrames = kind, len(frames)
    numbers = sorted({n for n, _, _ in frames} if kind != "LABELMAP" else set(np.unique([f for _, _, f in frames]).tolist()) - {0})
    dataset.SegmentSequence = Items([item(SegmentNumber=n, SegmentLabel=f"part {n}") for n in numbers])
    groups = []
    for k, (number, position, _) in enumerate(frames):
        more = {} if kind == "LABELMAP" else {"SegmentIdentificationSequence": Items([item(ReferencedSegmentNumber=number)])}
        if sources:
            source = Items([item(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=sources[k])])
            more["DerivationImageSequence"] = Items([item(SourceImageSequence=source)])
        groups.append(_group(position, **more))
    dataset.PerFrameFunctionalGroupsSequence = Items(groups)
    dataset.SharedFunctionalGroupsSequence = _shared(axes, spacing)
    pixels = np.stack([f for _, _, f in frames]).astype(np.uint8)
    _pixels(dataset, pixels, None, "MONOCHROME2", None)
    if kind == "BINARY":
        dataset.BitsAllocated = dataset.BitsStored = 1
        dataset.HighBit = 0
        packed = np.packbits(pixels.reshape(-1), bitorder="little").tobytes()
        dataset.PixelData = packed + b"\0" * (len(packed) % 2)
    elif kind == "FRACTIONAL":
        dataset.MaximumFractionalValue = 255
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def edit(path: Path, to: Path, **changes: Any) -> Path:
    """A copy of a real file with ``changes``."""
    dataset = pydicom.dcmread(path)
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(to)
    return to
