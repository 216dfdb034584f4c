"""Series of many geometries, made by pydicom alone, in which every pixel tells the class of its place in the patient.

The place of a pixel is computed here from the formula of PS3.3 section C.7.6.2.1.1 and the parameters of the series, by no reader.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

Floats = np.ndarray[Any, np.dtype[np.float64]]
PATIENT = {"PatientID": "p1", "PatientName": "p1", "PatientBirthDate": "", "PatientSex": "F", "PatientIdentityRemoved": "YES"}
AXIAL = (1, 0, 0, 0, 1, 0)


class Geometry(NamedTuple):
    """Directions of columns and rows, pixel spacing (rows, columns), the step from slice to slice in mm along the normal, a shift in the
    plane from slice to slice (a tilted gantry), and how the files are written."""

    axes: tuple[float, ...] = AXIAL
    spacing: tuple[float, float] = (1.0, 1.0)
    step: float = 2.0
    tilt: float = 0.0
    shuffled: bool = False
    enhanced: bool = False
    more: dict[str, Any] = {}  # noqa: RUF012  never changed
    slices: int = 9


def turned(x: float, y: float, z: float) -> tuple[float, ...]:
    """An oblique orientation: axial, turned about the three axes (degrees)."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_euler("xyz", (x, y, z), degrees=True).as_matrix()
    return tuple(float(v) for v in np.round(np.r_[turn[:, 0], turn[:, 1]], 6))


GEOMETRIES: dict[str, Geometry] = {
    "axial": Geometry(),
    "axial from above": Geometry(step=-2.0),
    "shuffled files": Geometry(shuffled=True),
    "anisotropic": Geometry(spacing=(0.7, 1.3), step=4.5),
    "prone": Geometry((-1, 0, 0, 0, -1, 0)),
    "rows flipped": Geometry((1, 0, 0, 0, -1, 0), step=-3.0),
    "columns flipped": Geometry((-1, 0, 0, 0, 1, 0)),
    "columns and rows swapped": Geometry((0, 1, 0, 1, 0, 0), spacing=(0.8, 1.1)),
    "sagittal": Geometry((0, 1, 0, 0, 0, -1), spacing=(0.9, 0.9)),
    "sagittal from the other side": Geometry((0, 1, 0, 0, 0, -1), step=-2.5),
    "coronal": Geometry((1, 0, 0, 0, 0, -1), step=3.0),
    "coronal upside down": Geometry((1, 0, 0, 0, 0, 1), spacing=(1.2, 0.6), step=-3.0),
    "oblique": Geometry(turned(12, -7, 20), spacing=(0.9, 1.2)),
    "double oblique": Geometry((0.8, 0.6, 0, -0.36, 0.48, -0.8), step=-1.7),
    "oblique, shuffled, anisotropic": Geometry(turned(-40, 33, 71), spacing=(0.6, 1.4), step=3.3, shuffled=True),
    "gantry tilt": Geometry((1, 0, 0, 0, 0.965926, 0.258819), tilt=-0.6),
    "gantry tilt from above": Geometry((1, 0, 0, 0, 0.965926, -0.258819), step=-2.0, tilt=0.5, shuffled=True),
    "gap between thin slices": Geometry(step=6.0, more={"SliceThickness": 1.5}),
    "overlapping slices": Geometry(step=1.0, more={"SliceThickness": 3.0}),
    "negative spacing between slices": Geometry(step=-2.0, more={"SpacingBetweenSlices": -2.0}),
    "enhanced": Geometry(enhanced=True),
    "enhanced, frames shuffled": Geometry(enhanced=True, shuffled=True, step=3.0, spacing=(0.8, 1.2)),
    "enhanced, oblique, from above": Geometry(turned(25, 10, -15), enhanced=True, step=-2.2),
    "enhanced, sagittal": Geometry((0, 1, 0, 0, 0, -1), enhanced=True, shuffled=True),
}


class Made(NamedTuple):
    """A written series: points (voxels, 3) in the patient's LPS mm with their class, and (SOP instance UID, frame) of each slice."""

    points: Floats
    classes: np.ndarray[Any, np.dtype[np.int64]]
    sources: list[tuple[str, int]]
    study: str
    series: str
    reference: str


ROWS, COLUMNS = 14, 12  # bits of a frame are whole bytes, without which GDCM (in SimpleITK) shifts them
Value = Callable[[Floats], Floats]  # points (..., 3) -> stored values


def places(of: Geometry) -> Floats:
    """(slices, rows, columns, 3) LPS mm of each pixel's centre."""
    axes = np.array(of.axes, np.float64).reshape(2, 3)
    normal, start = np.cross(axes[0], axes[1]), np.array([-40.0, 25.0, 60.0])
    corners = start + np.arange(of.slices)[:, None] * (of.step * normal + of.tilt * axes[1])
    across = np.arange(COLUMNS)[:, None] * of.spacing[1] * axes[0]
    down = np.arange(ROWS)[:, None, None] * of.spacing[0] * axes[1]
    out: Floats = corners[:, None, None] + down + across
    return out


def middle(of: Geometry) -> Floats:
    """(3,) The place in the middle of the volume."""
    return places(of).reshape(-1, 3).mean(0)


def two_balls(of: Geometry) -> Value:
    """Class 1 in a ball off the middle, class 2 in a smaller one elsewhere: no geometry maps the image onto itself."""
    at = places(of)
    one, other, noise = at[of.slices // 3, 4, 3], at[-2, 10, 7], at[0, 0, 0]

    def value(points: Floats) -> Floats:
        near, far = np.linalg.norm(points - one, axis=-1), np.linalg.norm(points - other, axis=-1)
        ramp = np.linalg.norm(points - noise, axis=-1)
        return np.where(near <= 3.1, 1000.0, np.where(far <= 2.2, 2000.0, ramp))

    return value


def write(folder: Path, of: Geometry, value: Value) -> Made:
    """Writes the series; slices get the names and numbers of a random order if the files are shuffled."""
    points = places(of)
    stored = np.rint(value(points)).astype(np.int16)
    study, series, reference = generate_uid(), generate_uid(), generate_uid()
    shared = {
        **PATIENT, "StudyInstanceUID": study, "SeriesInstanceUID": series, "FrameOfReferenceUID": reference, "StudyDate": "20200101",
        "StudyTime": "", "AccessionNumber": "", "StudyID": "", "ReferringPhysicianName": "", "InstitutionName": "Saint Elsewhere",
        "OperatorsName": "Tech^Nician", "SeriesDescription": "thorax", "SliceThickness": abs(of.step), "PixelSpacing": list(of.spacing),
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], **of.more,
    }  # fmt: skip
    order = np.random.default_rng(3).permutation(of.slices) if of.shuffled else np.arange(of.slices)
    folder.mkdir(parents=True)
    sources = [("", 0)] * of.slices
    if of.enhanced:
        dataset = _file(EnhancedMRImageStorage, {**shared, "Modality": "MR", "NumberOfFrames": of.slices}, stored[order])
        for keyword in ("SliceThickness", "PixelSpacing"):
            delattr(dataset, keyword)
        measures = _item(PixelSpacing=list(of.spacing), SliceThickness=abs(of.step))
        direction = _item(ImageOrientationPatient=list(of.axes))
        dataset.SharedFunctionalGroupsSequence = Items(
            [_item(PixelMeasuresSequence=Items([measures]), PlaneOrientationSequence=Items([direction]))]
        )
        dataset.PerFrameFunctionalGroupsSequence = Items(
            [_item(PlanePositionSequence=Items([_item(ImagePositionPatient=_short(points[k, 0, 0]))])) for k in order]
        )
        dataset.save_as(folder / "all.dcm", enforce_file_format=True)
        for frame, k in enumerate(order, start=1):
            sources[k] = (str(dataset.SOPInstanceUID), frame)
    else:
        for number, k in enumerate(order, start=1):
            own = {"ImagePositionPatient": _short(points[k, 0, 0]), "ImageOrientationPatient": list(of.axes), "InstanceNumber": number}
            dataset = _file(CTImageStorage, {**shared, "Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0, **own}, stored[k])
            dataset.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
            sources[k] = (str(dataset.SOPInstanceUID), 1)
    classes = np.where(stored >= 2000, 2, np.where(stored >= 1000, 1, 0))
    return Made(points.reshape(-1, 3), classes.reshape(-1).astype(np.int64), sources, str(study), str(series), str(reference))


def _short(values: Floats) -> list[float]:
    return [round(float(v), 6) for v in values]


def _item(**values: Any) -> Dataset:
    out = Dataset()
    for keyword, value in values.items():
        setattr(out, keyword, value)
    return out


def _file(kind: str, values: dict[str, Any], pixels: np.ndarray[Any, Any]) -> Dataset:
    out = _item(SOPClassUID=kind, SOPInstanceUID=generate_uid(), **values)
    out.file_meta = FileMetaDataset()
    out.file_meta.MediaStorageSOPClassUID, out.file_meta.MediaStorageSOPInstanceUID = kind, out.SOPInstanceUID
    out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out.Rows, out.Columns = pixels.shape[-2:]
    out.SamplesPerPixel, out.PhotometricInterpretation, out.PixelRepresentation = 1, "MONOCHROME2", 1
    out.BitsAllocated = out.BitsStored = 16
    out.HighBit = 15
    out.PixelData = pixels.tobytes()
    out["PixelData"].VR = "OW"
    return out
