"""Writes a mask as a DICOM segmentation (PS3.3 section A.51) of the series that it was drawn on, by highdicom.

    data = segmentation(mask, volume, (Segment("spleen", ("SCT:78961009",)),), Author(...))
    path.write_bytes(data)            # one binary SEG: segment k is value k of the mask, and frames without a voxel are left out

Each frame has the position, orientation and spacing of its slice's header, not of a fitted grid, and refers to that slice (SOP instance,
frame). Patient and study are copied from the slices, as an archive files by them; what else the series says of the patient is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.files import open_dataset, reading
from fedml.cohort.dicom.grid import Slice
from fedml.cohort.dicom.series import Volume
from fedml.cohort.images.reasons import ItemError, Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PRIVATE = "99FEDML"  # scheme of codes that no standard has: a class by its name alone (a private scheme begins with 99: PS3.3, 8.2)
# Which category the standard's lists of property types (PS3.16) belong to; a code in none of them is of ``_OTHER``.
_CATEGORIES = {7194: "49755003", 7192: "123037004", 7191: "85756007", 7193: "260787004", 7197: "91720002"}
_MEANINGS = {
    "49755003": "Morphologically Altered Structure", "123037004": "Anatomical Structure", "85756007": "Tissue",
    "260787004": "Physical object", "91720002": "Body Substance", "309825002": "Spatial and Relational Concept",
}  # fmt: skip
_OTHER = "309825002"
_NEEDED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime")
_SERIES_NUMBER = 9000  # far from those of a scanner


class Segment(NamedTuple):
    """A class: its name, and the codes that the study gives it as ``SCHEME:VALUE``, of which the first is written."""

    label: str
    codes: tuple[str, ...] = ()


class Author(NamedTuple):
    """Who drew it: the study, the SHA-256 of its text and of the model's weights (64 digits each), this software's version."""

    study: str
    study_sha256: str
    weights_sha256: str
    version: str


def segmentation(mask: npt.NDArray[np.uint8], volume: Volume, segments: Sequence[Segment], author: Author) -> bytes:
    """The file's bytes.

    Args:
        mask: (columns, rows, slices) of ``volume``: 0 is background, k is the k-th of ``segments``. volume: as it was read, with its
            slices.

    Raises:
        ItemError: unreadable: a slice has changed since; geometry: the series is not ``referable``, or highdicom cannot describe it.
    """
    from highdicom.content import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    if mask.shape != volume.voxels.shape[:3] or len(volume.slices) != mask.shape[2]:
        raise ValueError(f"a mask of {mask.shape} and a series of {volume.voxels.shape[:3]}, {len(volume.slices)} slices")
    algorithm = AlgorithmIdentificationSequence(
        name=author.study[:64], family=codes.cid7162.ArtificialIntelligence, version=author.weights_sha256[:16], source="fedml-cohorts",
        parameters={"weights_sha256": author.weights_sha256, "study_sha256": author.study_sha256},
    )  # fmt: skip
    described = [
        SegmentDescription(k, segment.label[:64] or str(k), *_kind(segment), SegmentAlgorithmTypeValues.AUTOMATIC, algorithm)
        for k, segment in enumerate(segments, start=1)
    ]
    where = volume.slices[0].path
    if not referable(volume):
        raise ItemError(Unusable.GEOMETRY, f"{where}: has no position or frame of reference, which a segmentation must name.")
    headers = [_header(one, volume.slices[0]) for one in volume.slices]
    with reading(where):
        try:
            made = Segmentation(
                source_images=headers, pixel_array=np.ascontiguousarray(mask.transpose(2, 1, 0)), segmentation_type="BINARY",
                segment_descriptions=described, series_instance_uid=generate_uid(), series_number=_SERIES_NUMBER,
                sop_instance_uid=generate_uid(), instance_number=1, manufacturer="fedml-cohorts", manufacturer_model_name=author.study[:64],
                software_versions=author.version[:64], device_serial_number=author.weights_sha256[:64],
                content_description=f"predicted by study {author.study}"[:64], series_description=f"{author.study} segmentation"[:64],
            )  # fmt: skip
        except (ValueError, TypeError, AttributeError) as error:
            raise ItemError(Unusable.GEOMETRY, f"{where}: a DICOM segmentation cannot describe its series; write NIfTI instead.") from error
        _refer(made, volume.slices)
        out = BytesIO()
        made.save_as(out)
    return out.getvalue()


def referable(volume: Volume) -> bool:
    """Whether a segmentation can say where it is: it must name a frame of reference, which radiographs and photographs have not."""
    return volume.placed and bool(volume.frame_of_reference)


def _header(one: Slice, first: Slice) -> Dataset:
    """The header of a slice as a file of one frame; a frame of a larger file gets its own position, and orientations are those of ``first``
    (they are equal within the tolerance of reading)."""
    from pydicom.uid import MRImageStorage
    from pydicom.valuerep import DSfloat

    with reading(one.path):
        out = deepcopy(open_dataset(one.path, pixels=False))
        whole = _whole(out, one)
        for keyword in _NEEDED:
            if keyword not in out:
                setattr(out, keyword, "")
        for keyword in ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            if keyword in out:
                delattr(out, keyword)
        out.Rows, out.Columns = one.shape

        def written(values: Any) -> list[Any]:
            return [DSfloat(float(v), auto_format=True) for v in np.ravel(values)]

        if not whole and one.position is not None and one.spacing is not None:
            out.ImagePositionPatient = written(one.position)
            out.PixelSpacing = written(one.spacing[::-1])
            if one.thickness > 0:
                out.SliceThickness = written(one.thickness)[0]
        if "SliceThickness" not in out or not out.SliceThickness:
            out.SliceThickness = 1.0
        out.ImageOrientationPatient = written(first.axes)
        if not whole:
            out.SOPClassUID = MRImageStorage  # highdicom takes one file of several frames only; ``_refer`` names the real class
        return out


def _whole(header: Dataset, one: Slice) -> bool:
    """Whether the slice is all of its file, not a frame or a tile."""
    return "PerFrameFunctionalGroupsSequence" not in header and one.shape == (int(header.Rows), int(header.Columns))


def _refer(made: Dataset, slices: Sequence[Slice]) -> None:
    """Names the frames of larger files that the slices are, the class of these files, and each file once."""
    parts: dict[str, list[Slice]] = {}
    kinds: dict[str, tuple[Any, bool]] = {}
    for one in slices:
        header = open_dataset(one.path, pixels=False)
        if not _whole(header, one):
            parts.setdefault(one.instance, []).append(one)
            kinds[one.instance] = header.SOPClassUID, "PerFrameFunctionalGroupsSequence" in header
    if not parts:
        return
    for series in made.get("ReferencedSeriesSequence") or []:
        series.ReferencedInstanceSequence = _once(series.ReferencedInstanceSequence)
    for place, source in _references(made):
        uid = str(source.ReferencedSOPInstanceUID)
        if uid not in kinds:
            continue
        source.ReferencedSOPClassUID, framed = kinds[uid]
        if place is None:
            continue
        nearest = min(parts[uid], key=lambda one: float(np.abs(np.asarray(one.position) - place).sum()))
        if framed:
            source.ReferencedFrameNumber = nearest.frame + 1
        else:  # a tile of a mosaic, which has no number
            source.SpatialLocationsPreserved = "NO"


def _references(made: Dataset) -> Iterator[tuple[npt.NDArray[np.float64] | None, Dataset]]:
    """Each reference to an instance, and the position of the frame that it is of."""
    for series in made.get("ReferencedSeriesSequence") or []:
        yield from ((None, one) for one in series.ReferencedInstanceSequence)
    for one in made.get("SourceImageSequence") or []:
        yield None, one
    for group in made.PerFrameFunctionalGroupsSequence:
        place = np.asarray(group.PlanePositionSequence[0].ImagePositionPatient, np.float64)
        for derived in group.get("DerivationImageSequence") or []:
            yield from ((place, one) for one in derived.SourceImageSequence)


def _once(items: Any) -> list[Any]:
    return list({str(one.ReferencedSOPInstanceUID): one for one in items}.values())


def _kind(segment: Segment) -> tuple[Any, Any]:
    """Category and type of a segment: of the first code the standard's, else the name in a private scheme."""
    from pydicom.sr.coding import Code

    if not segment.codes:
        return Code(_OTHER, "SCT", _MEANINGS[_OTHER]), Code(_short(segment.label), PRIVATE, segment.label[:64] or "class")
    scheme, _, value = segment.codes[0].partition(":")
    category, meaning = _listed(scheme, value)
    return Code(category, "SCT", _MEANINGS[category]), Code(value, scheme, meaning or segment.label[:64] or value)


def _short(label: str) -> str:
    """A code value has 16 characters at most."""
    from hashlib import sha256

    plain = "".join(c if c.isalnum() else "-" for c in label)
    return plain if 0 < len(plain) <= 16 and plain == label else sha256(label.encode()).hexdigest()[:16]


def _listed(scheme: str, value: str) -> tuple[str, str]:
    """The category of a code by the standard's lists, and its meaning; "" if they do not have it."""
    from pydicom.sr._cid_dict import cid_concepts
    from pydicom.sr._concepts_dict import concepts

    names: dict[str, dict[str, Any]] = cast(Any, concepts).get(scheme, {})
    found = [
        (cid, name) for cid in _CATEGORIES for name in cast(Any, cid_concepts).get(cid, {}).get(scheme, ()) if value in names.get(name, {})
    ]
    if found:
        cid, name = found[0]
        return _CATEGORIES[cid], str(names[name][value][0])
    meaning = next((str(own[value][0]) for own in names.values() if value in own), "")
    return _OTHER, meaning
