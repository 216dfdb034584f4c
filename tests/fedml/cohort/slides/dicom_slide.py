"""Whole slides in DICOM (VL Whole Slide Microscopy Image, PS3.3 A.32.8), written with pydicom alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items

VL_WSI = "1.2.840.10008.5.1.4.1.1.77.1.6"
ROOT = "1.2.826.0.1.3680043.8.498.77."
JPEG, NATIVE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.1"


def write_instance(
    path: Path, pixels: np.ndarray[Any, Any], *, series: str = "1", number: int = 1, flavour: str = "VOLUME", mpp: float = 0.5,
    tile: int = 64, syntax: str = NATIVE, **attributes: Any,
) -> Path:  # fmt: skip
    """One instance (one level, or a label or overview): ``pixels`` uint8 (rows, columns, 3), tiled in full, the last tiles filled up."""
    height, width = pixels.shape[:2]
    down, across = -(-height // tile), -(-width // tile)
    filled = np.full((down * tile, across * tile, 3), 255, np.uint8)
    filled[:height, :width] = pixels
    frames = filled.reshape(down, tile, across, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = VL_WSI, f"{ROOT}{series}.{number}"
    meta.TransferSyntaxUID = syntax
    out = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    out.SOPClassUID, out.SOPInstanceUID = VL_WSI, meta.MediaStorageSOPInstanceUID
    out.StudyInstanceUID, out.SeriesInstanceUID, out.FrameOfReferenceUID = f"{ROOT}9", f"{ROOT}{series}", f"{ROOT}8"
    out.Modality, out.SeriesNumber, out.InstanceNumber = "SM", 1, number
    derived = number > 1 and flavour == "VOLUME"
    out.ImageType = [*(["DERIVED"] if derived else ["ORIGINAL"]), "PRIMARY", flavour, "RESAMPLED" if derived else "NONE"]
    out.SpecimenLabelInImage, out.BurnedInAnnotation = ("YES", "YES") if flavour in ("LABEL", "OVERVIEW") else ("NO", "NO")
    out.PatientIdentityRemoved, out.DeidentificationMethod = "YES", "by hand"
    out.SamplesPerPixel, out.PlanarConfiguration, out.BitsAllocated, out.BitsStored, out.HighBit = 3, 0, 8, 8, 7
    out.PixelRepresentation, out.Rows, out.Columns, out.NumberOfFrames = 0, tile, tile, len(frames)
    out.TotalPixelMatrixRows, out.TotalPixelMatrixColumns, out.TotalPixelMatrixFocalPlanes = height, width, 1
    out.ImagedVolumeWidth, out.ImagedVolumeHeight, out.ImagedVolumeDepth = width * mpp / 1000, height * mpp / 1000, 0.001
    out.ImageOrientationSlide, out.FocusMethod, out.ExtendedDepthOfField = [0, -1, 0, -1, 0, 0], "AUTO", "NO"
    out.DimensionOrganizationType, out.VolumetricProperties, out.LossyImageCompression = "TILED_FULL", "VOLUME", "00"
    origin, measures, shared = Dataset(), Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 0.0, 0.0
    out.TotalPixelMatrixOriginSequence = Items([origin])
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = [mpp / 1000, mpp / 1000], 0.001, 0.001
    shared.PixelMeasuresSequence = Items([measures])
    out.SharedFunctionalGroupsSequence = Items([shared])
    path_item = Dataset()
    path_item.OpticalPathIdentifier = "1"
    out.OpticalPathSequence, out.NumberOfOpticalPaths = Items([path_item]), 1
    if syntax == NATIVE:
        out.PhotometricInterpretation, out.PixelData = "RGB", frames.tobytes()
        out["PixelData"].VR = "OB"
    else:
        out.PhotometricInterpretation = "YBR_FULL_422"
        streams = []
        for frame in frames:
            data = io.BytesIO()
            Image.fromarray(frame).save(data, "jpeg", quality=95)
            streams.append(data.getvalue())
        out.PixelData = encapsulate(streams)
        out["PixelData"].is_undefined_length = True
    for name, value in attributes.items():
        setattr(out, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, out, enforce_file_format=True)
    return path


def write_series(
    folder: Path, levels: Sequence[np.ndarray[Any, Any]], *, series: str = "1", mpp: float = 0.5, label: bool = True, **options: Any
) -> Path:
    """A slide as a folder of instances: each of ``levels``, and a label and an overview in the colours of tissue."""
    for k, pixels in enumerate(levels):
        scale = levels[0].shape[1] / pixels.shape[1]
        write_instance(folder / f"{k + 1}.dcm", pixels, series=series, number=k + 1, mpp=mpp * scale, **options)
    tissue = np.full((64, 64, 3), (220, 130, 190), np.uint8)  # one frame
    for at, flavour in enumerate(("LABEL", "OVERVIEW") if label else ()):
        write_instance(folder / f"{flavour.lower()}.dcm", tissue, series=series, number=20 + at, flavour=flavour, **options)
    return folder
