"""Synthetic images as files, a format a function: NIfTI, DICOM series, or one ``.npz``. The voxels are the same in each.

A volume is int16 (size, size, size); its first axis runs to the right, the second to the front, the third upwards (RAS), and the middle of
the volume is the origin. Same arguments, same bytes (of DICOM with the same version of pydicom, whose name stands in each file).
"""

from __future__ import annotations

import gzip
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Voxels = NDArray[np.int16]
Scans = Iterable[tuple[str, list[Voxels]]]  # a person's id and images
FIELD_OF_VIEW = 48.0  # mm on each side; the spacing is this over the image size


def _nifti(folder: Path, site: str, seed: int, spacing: float, scans: Scans) -> None:
    import nibabel as nib

    folder.mkdir()
    for person, volumes in scans:
        paths = [folder / f"{person}.nii.gz"]
        if len(volumes) > 1:
            (folder / person).mkdir()
            paths = [folder / person / f"{k + 1}.nii.gz" for k in range(len(volumes))]
        for path, voxels in zip(paths, volumes, strict=True):
            first = _first(voxels, spacing)
            affine = np.array([[spacing, 0, 0, first], [0, spacing, 0, first], [0, 0, spacing, first], [0, 0, 0, 1]])
            image = nib.Nifti1Image(voxels, affine)
            image.header.set_xyzt_units("mm")
            path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))  # no time, no name: same bytes


def _dicom(folder: Path, site: str, seed: int, spacing: float, scans: Scans) -> None:
    """``<id>/<series>/<slice>.dcm``, MR images marked as de-identified, which persons who do not exist are."""
    folder.mkdir()
    for person, volumes in scans:

        def uid(*parts: object, person: str = person) -> str:
            # A UUID as a UID (DICOM PS3.5, B.2), made from a name (RFC 9562, version 5).
            return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(map(str, ('fedml synthetic', seed, site, person, *parts)))).int}"

        study = uid("study")
        series = sorted(uid("series", k) for k in range(len(volumes)))  # readers take series in the order of their UIDs
        for number, (own, voxels) in enumerate(zip(series, volumes, strict=True), start=1):
            place = folder / person / str(number)
            place.mkdir(parents=True)
            for k in range(voxels.shape[2]):
                of = _Series(person, number, spacing, study, own, uid("frame"))
                _slice(place / f"{k + 1:03d}.dcm", voxels[:, :, k], k, of, uid("image", number, k))


class _Series(NamedTuple):
    """One series of a person: its number, its spacing in mm, and the UIDs of study, series and frame of reference."""

    person: str
    number: int
    spacing: float
    study: str
    uid: str
    frame: str


def _slice(path: Path, plane: Voxels, k: int, series: _Series, uid: str) -> None:
    """One MR image, slice ``k`` of a cube. ``plane`` (right, front) becomes rows and columns; DICOM's axes run to the left and back."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    one: Any = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.MediaStorageSOPClassUID, one.file_meta.MediaStorageSOPInstanceUID = MRImageStorage, uid
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, uid
    one.ImageType, one.Modality = ["ORIGINAL", "PRIMARY", "OTHER"], "MR"
    one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = "", series.person, "", ""
    one.PatientIdentityRemoved, one.DeidentificationMethod = "YES", "synthetic: nobody is a real person"
    one.BurnedInAnnotation = "NO"
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = series.study, series.uid, series.frame
    one.StudyID, one.StudyDate, one.StudyTime, one.AccessionNumber, one.ReferringPhysicianName = "", "", "", "", ""
    one.SeriesNumber, one.InstanceNumber = series.number, k + 1
    one.ScanningSequence, one.SequenceVariant, one.MRAcquisitionType = "RM", "NONE", "3D"
    first, step = _first(plane, series.spacing), f"{series.spacing:.10g}"
    one.PixelSpacing, one.SliceThickness, one.SpacingBetweenSlices = [step, step], step, step
    one.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
    one.ImagePositionPatient = [f"{v:.10g}" for v in (-first, -first, first + k * series.spacing)]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.Columns, one.Rows = plane.shape
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
    one.PixelData = np.ascontiguousarray(plane.T).astype("<i2").tobytes()
    one["PixelData"].VR = "OW"
    one.save_as(path, enforce_file_format=True)


def _npz(path: Path, site: str, seed: int, spacing: float, scans: Scans) -> None:
    pairs = [(person, voxels) for person, volumes in scans for voxels in volumes]
    np.savez_compressed(path, ids=np.array([person for person, _ in pairs]), images=np.stack([voxels for _, voxels in pairs]))


def _first(voxels: Voxels, spacing: float) -> float:
    """mm from the origin to the first voxel along each axis; the origin is in the middle."""
    return spacing * (1 - len(voxels)) / 2


def tissue_of(radius: float, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A noiseless cube, (size, size, size): a smooth background near 100 and a soft-edged sphere 60 brighter."""
    axis = (np.arange(size) - (size - 1) / 2) * FIELD_OF_VIEW / size  # mm from the middle
    knots = np.linspace(-FIELD_OF_VIEW / 2, FIELD_OF_VIEW / 2, 5)
    weights = np.stack([np.interp(axis, knots, unit) for unit in np.eye(len(knots))], axis=1)
    field: NDArray[np.float64] = rng.normal(0, 15, (len(knots),) * 3)
    for _ in range(3):  # trilinear: each turn stretches the first axis and moves it last
        field = np.tensordot(field, weights, axes=(0, 1))
    distance = np.sqrt(sum(np.ix_(*((axis - centre) ** 2 for centre in rng.uniform(-6, 6, 3)))))
    cube: NDArray[np.float64] = 100 + field + 60 * np.asarray(0.5 * (1 + np.tanh((radius - distance) / 0.8 / 2)))
    return cube


# format, as in a manifest -> (file or folder next to the manifest, function that writes it)
WRITERS: dict[str, tuple[str, Callable[[Path, str, int, float, Scans], None]]] = {
    "nifti": ("images", _nifti),
    "dicom": ("images", _dicom),
    "npz": ("images.npz", _npz),
}
