"""RT structure sets made by pydicom alone: outlines in patient coordinates, and one wrong thing at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage

from tests.dicom_files import REFERENCE, SERIES, _file, item

Outline = Any  # (n, 3) mm in LPS, or a dict with points and more of its elements


def write_structures(
    path: Path, regions: Mapping[str, Sequence[Outline]], *, series: str = SERIES, reference: str = REFERENCE,
    codes: Mapping[str, str] | None = None, **changes: Any,
) -> Path:  # fmt: skip
    """A structure set of named regions; ``codes``: SNOMED codes of some."""
    dataset = _file(RTStructureSetStorage, "1.2.826.0.1.3680043.8.498.77", ExplicitVRLittleEndian)
    dataset.Modality, dataset.SeriesInstanceUID, dataset.StructureSetLabel = "RTSTRUCT", "1.2.826.0.1.3680043.8.498.78", "set"
    referenced = item(RTReferencedSeriesSequence=Items([item(SeriesInstanceUID=series)]))
    frame = item(FrameOfReferenceUID=reference, RTReferencedStudySequence=Items([referenced]))
    dataset.ReferencedFrameOfReferenceSequence = Items([frame])
    numbers = {name: 3 * k + 2 for k, name in enumerate(regions)}
    dataset.StructureSetROISequence = Items(
        [item(ROINumber=n, ReferencedFrameOfReferenceUID=reference, ROIName=name, ROIGenerationAlgorithm="") for name, n in numbers.items()]
    )
    dataset.ROIContourSequence = Items(
        [
            item(ReferencedROINumber=numbers[name], ContourSequence=Items([_contour(one) for one in drawn]))
            for name, drawn in regions.items()
        ]
    )
    dataset.RTROIObservationsSequence = Items(
        [
            item(
                ObservationNumber=n, ReferencedROINumber=n, RTROIInterpretedType="ORGAN",
                RTROIIdentificationCodeSequence=Items([item(CodeValue=codes[name], CodingSchemeDesignator="SCT", CodeMeaning="x")]),
            )
            for name, n in numbers.items()
            if codes and name in codes
        ]
    )  # fmt: skip
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _contour(outline: Outline) -> Any:
    more = dict(outline) if isinstance(outline, dict) else {"points": outline}
    points = np.asarray(more.pop("points"), np.float64).reshape(-1, 3)
    source = more.pop("source", None)
    if source is not None:
        more["ContourImageSequence"] = Items([item(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=source)])
    data = [f"{v:.9g}" for v in points.ravel()]
    return item(**{"ContourGeometricType": "CLOSED_PLANAR", "NumberOfContourPoints": len(points), "ContourData": data, **more})
