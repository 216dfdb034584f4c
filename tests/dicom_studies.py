"""A DICOM study as an archive exports it: a folder of a person with several series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.dicom_files import write_series, write_slice

RNG = np.random.default_rng(11)
CORONAL = (1, 0, 0, 0, 0, -1)
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def cube(slices: int = 4) -> np.ndarray[Any, Any]:
    return RNG.integers(0, 2000, (slices, 6, 5)).astype(np.int16)


def uid(number: int) -> str:
    return f"1.2.826.0.1.3680043.8.498.{number}"


def pacs(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """What a CT of the chest looks like in an archive: a scout, two kernels of two thicknesses, a reformatted plane, a dose page."""
    about = {
        "PatientIdentityRemoved": "YES", "DeidentificationMethod": "x", "PatientID": folder.name, "BurnedInAnnotation": "NO",
        "LongitudinalTemporalInformationModified": "MODIFIED",
    }  # fmt: skip
    soft, lung = cube(5), cube(9)
    write_slice(
        folder / "1" / "s.dcm", cube(1)[0], (0, 0, 0), axes=CORONAL, SeriesNumber=1, SeriesInstanceUID=uid(11),
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesDescription="Topogram", **about,
    )  # fmt: skip
    write_series(
        folder / "2", soft, SeriesNumber=2, SeriesInstanceUID=uid(12), SeriesDescription="Thorax 3.0 B30f", ConvolutionKernel="B30f",
        SeriesDate="20010101", **about,
    )  # fmt: skip
    write_series(
        folder / "3", lung, SeriesNumber=3, SeriesInstanceUID=uid(13), SeriesDescription="LUNG 1.0 B70f", ConvolutionKernel="B70f",
        SliceThickness=1, step=1.0, SeriesDate="20010102", **about,
    )  # fmt: skip
    write_series(
        folder / "4", cube(7), SeriesNumber=4, SeriesInstanceUID=uid(14), SeriesDescription="cor MPR", axes=CORONAL,
        ImageType=["DERIVED", "SECONDARY", "MPR"], **about,
    )  # fmt: skip
    page = write_slice(
        folder / "5" / "p.dcm", cube(1)[0], None, SeriesNumber=5, SeriesInstanceUID=uid(15), SeriesDescription="Patient Protocol",
        SOPClassUID=CAPTURE, Modality="CT", drop=["RescaleSlope", "RescaleIntercept"], **about,
    )  # fmt: skip
    assert page.exists()
    return {"soft": soft, "lung": lung}
