"""What the headers of a person's DICOM files say of each series, without a pixel: by this a series is selected (``choice``).

    found, broken = candidates(folder / person)      # one Candidate a series, sorted; files that may be a missing slice of any
    found[0].about.modality, found[0].about.slices, found[0].files

A localizer among the files of a series is a candidate of its own, and so is each plate (X-ray, photograph) of a series of plates. Reports,
plans, doses and segmentations are no candidates.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedml.cohort.dicom.files import is_image, looks_dicom, open_dataset, reading
from fedml.cohort.dicom.folders import DIRECTORY, named_dicom
from fedml.cohort.dicom.macros import macro
from fedml.cohort.images.reasons import ItemError
from fedml.cohort.state_index import remembered

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ImageType", "Rows",
    "NumberOfFrames", "ConvolutionKernel", "ImageOrientationPatient", "ImagePositionPatient", "SliceThickness", "ViewPosition", "EchoTime",
    "DiffusionBValue", "TemporalPositionIdentifier", "Units", "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime",
)  # fmt: skip
_PRIVATE = (0x00190010, 0x0019100C, 0x00430010, 0x00431039)  # b-values of Siemens and GE, with their creators
READ_AS = "series 4"  # increment when the facts or their order change: the index keeps them
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture, and its multi-frame kinds below it
_PLANES = ("sagittal", "coronal", "axial")  # by the axis of the normal: left, posterior, superior


class About(NamedTuple):
    """Facts of a series. ``slices``: files, or frames. ``thickness``: mm, 0 if unknown. ``echoes`` (ms), ``b_values`` and ``phases``: the
    different ones of its files, in order. ``when``: date and time as the file has them, or empty. ``unit``: of CT and PET."""

    number: str
    modality: str
    image_type: tuple[str, ...]
    description: str
    kernel: str
    plane: str
    slices: int
    thickness: float
    view: str
    echoes: tuple[float, ...]
    b_values: tuple[float, ...]
    phases: tuple[int, ...]
    when: str
    capture: bool
    unit: str

    @property
    def localizer(self) -> bool:
        """True for a scout."""
        return "LOCALIZER" in self.image_type

    @property
    def derived(self) -> bool:
        """True if the pixels were computed from other pixels (PS3.3 section C.7.6.1.1.2, value 1)."""
        return self.image_type[:1] == ("DERIVED",)

    @property
    def secondary(self) -> bool:
        """True if the image was made after the examination (value 2), or is a capture of a screen or a page."""
        return self.image_type[1:2] == ("SECONDARY",) or self.capture

    def words(self, *, described: bool = False) -> str:
        """What it is, such as ``series 3 (CT, axial, 120 slices of 1 mm)``: no identifier, and the description only if ``described``."""
        thick = f" of {self.thickness:g} mm" if self.thickness else ""
        parts = [
            self.modality or "no modality", self.plane, f"{self.slices} {'slice' if self.slices == 1 else 'slices'}{thick}",
            "localizer" if self.localizer else "", "derived" if self.derived else "", "secondary" if self.secondary else "",
            f"echo times {_list(self.echoes)} ms" if len(self.echoes) > 1 else "",
            f"b-values {_list(self.b_values)}" if self.b_values else "", f"{len(self.phases)} phases" if len(self.phases) > 1 else "",
            f"view {self.view}" if self.view else "", f"values in {self.unit}" if self.modality == "PT" else "",
            *([f"kernel {self.kernel}" if self.kernel else "", f'"{self.description}"' if self.description else ""] if described else []),
        ]  # fmt: skip
        return f"series {self.number or '?'} ({', '.join(part for part in parts if part)})"


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values[:6]) + (", ..." if len(values) > 6 else "")


class Candidate(NamedTuple):
    """A series of a person: its UID, its files (sorted), and what their headers say."""

    uid: str
    files: tuple[Path, ...]
    about: About


class _File(NamedTuple):
    """What the header of one file says. ``apart`` splits a series: "LOCALIZER", or "plate": each plate is a series. ``about``: the file
    alone."""

    uid: str
    apart: str
    about: About


def candidates(folder: Path) -> tuple[list[Candidate], list[Path]]:
    """The series below ``folder``, or of the one file ``folder``; and the files that may be a missing slice of any: they begin like DICOM
    but cannot be read or name no series, or are named ``.dcm`` and do not begin like DICOM."""
    broken: list[Path] = []
    series: dict[tuple[str, str], list[tuple[Path, _File]]] = {}
    for path in sorted([folder] if folder.is_file() else below(folder)):
        try:
            found = _file(path)
        except (ItemError, OSError):
            broken.append(path)
            continue
        if found is not None:
            apart = f"plate {path}" if found.apart == "plate" else found.apart
            series.setdefault((found.uid, apart), []).append((path, found))
    out = [
        Candidate(uid, tuple(path for path, _ in files), _about([file.about for _, file in files]))
        for (uid, _), files in sorted(series.items())
    ]
    return out, broken


def below(folder: Path) -> Iterator[Path]:
    """The files below ``folder``, in no order."""
    for where, _, names in os.walk(folder):  # links to folders are not followed, because they may form a cycle
        yield from (path for path in (Path(where, name) for name in names) if path.is_file())


def _file(path: Path) -> _File | None:
    """None: not an image. ``ItemError``: it cannot be read, or names no series."""
    told = remembered(path, lambda: read_header(path), READ_AS)
    if told is None:
        return None
    uid, apart, about = told  # from JSON (``fedml.cohort.state_index``), which has lists for tuples
    values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in about]
    return _File(uid, apart, About(*values))


def read_header(path: Path) -> _File | None:
    """Facts of one file, as lists and texts that JSON can hold; None: not an image.

    Raises:
        ItemError: it cannot be read, or names no series.
    """
    if not looks_dicom(path):
        if named_dicom(path):
            open_dataset(path, pixels=False)
        return None
    with reading(path):
        header = open_dataset(path, pixels=False, tags=[*_keywords(), *_PRIVATE])
        if str(header.file_meta.get("MediaStorageSOPClassUID", "")) == DIRECTORY:
            return None
        facts: Dataset | dict[str, Any] = _present(header)
        uid = str(facts.get("SeriesInstanceUID") or "")
        if not uid:
            raise ValueError("no series")
        if str(facts.get("Modality")) in ("SEG", "RTDOSE") or not ("Rows" in facts or is_image(header)):
            return None
        if int(facts.get("NumberOfFrames") or 1) > 1:
            facts = open_dataset(path, pixels=False)
        plate = facts.get("ImagePositionPatient") is None and "SharedFunctionalGroupsSequence" not in facts
        return _facts(uid, facts, "plate" if plate else "")


@lru_cache(maxsize=1)
def _keywords() -> dict[int, str]:
    from pydicom.tag import Tag

    return {Tag(name): name for name in _TAGS}


def _present(header: Dataset) -> dict[str, Any]:
    """The values of ``_TAGS`` that the file has: pydicom takes as long to say that it has none as to read one."""
    names = _keywords()
    found = {names[tag]: header[tag].value for tag in list(header.keys()) if tag in names}
    if "DiffusionBValue" not in found and any(tag in header for tag in _PRIVATE[1::2]):
        found["DiffusionBValue"] = b_value_of(header, [])
    return found


def _facts(uid: str, header: Dataset | dict[str, Any], apart: str) -> _File:
    kind = tuple(str(value).strip().upper() for value in np.atleast_1d(header.get("ImageType") or []))
    echoes, b_values, phases = set[float](), set[float](), set[int]()
    for groups in _groups(header):
        echoes |= numbers_of(echo_of(header, groups))
        b_values |= numbers_of(b_value_of(header, groups))
        phases |= {int(n) for n in numbers_of(phase_of(header, groups))}
    groups = next(iter(_groups(header)))
    axes = macro(groups, "PlaneOrientationSequence", "ImageOrientationPatient", header)
    thickness = numbers_of(macro(groups, "PixelMeasuresSequence", "SliceThickness", header))
    when = [str(header.get("SeriesDate") or header.get("AcquisitionDate") or ""), str(header.get("SeriesTime") or "")]
    about = About(
        str(header.get("SeriesNumber") or ""), str(header.get("Modality") or ""), kind, str(header.get("SeriesDescription") or ""),
        "/".join(map(str, np.atleast_1d(header.get("ConvolutionKernel") or []))), _plane(axes), int(header.get("NumberOfFrames") or 1),
        max(thickness, default=0.0), str(header.get("ViewPosition") or ""), tuple(sorted(echoes)), tuple(sorted(b_values)),
        tuple(sorted(phases)), " ".join(when).strip() if when[0] else "", str(header.get("SOPClassUID") or "").startswith(_CAPTURE),
        {"CT": "HU", "PT": str(header.get("Units") or "no unit")}.get(str(header.get("Modality") or ""), ""),
    )  # fmt: skip
    return _File(uid, "LOCALIZER" if about.localizer else apart, about)


def _about(files: list[About]) -> About:
    """What the first file says, with the numbers of all."""
    return files[0]._replace(
        slices=sum(file.slices for file in files),
        echoes=tuple(sorted({n for file in files for n in file.echoes})),
        b_values=tuple(sorted({n for file in files for n in file.b_values})),
        phases=tuple(sorted({n for file in files for n in file.phases})),
    )


def _groups(header: Dataset | dict[str, Any]) -> Iterator[list[Dataset]]:
    """For each frame the functional groups that may contain an attribute, the most specific first; one empty list for a single image."""
    shared = list((header.get("SharedFunctionalGroupsSequence") or [])[:1])
    frames = header.get("PerFrameFunctionalGroupsSequence")
    yield from ([frame, *shared] for frame in frames) if frames else [shared]


def echo_of(header: Dataset | dict[str, Any], groups: list[Dataset]) -> Any:
    """The echo time in ms; None if the file states none."""
    found = macro(groups, "MREchoSequence", "EffectiveEchoTime")
    return header.get("EchoTime") if found is None else found


def b_value_of(header: Dataset | dict[str, Any], groups: list[Dataset]) -> Any:
    """The diffusion b-value in s/mm2: the standard's attribute, else Siemens' and GE's private ones; None if the file states none."""
    found = macro(groups, "MRDiffusionSequence", "DiffusionBValue", header)
    if found is not None or groups:
        return found
    for tag, owner in (((0x0019, 0x100C), "SIEMENS MR HEADER"), ((0x0043, 0x1039), "GEMS_PARM_01")):
        creator = None if isinstance(header, dict) else header.get((tag[0], 0x0010))
        if not isinstance(header, dict) and tag in header and creator is not None and str(creator.value).strip() == owner:
            value = np.atleast_1d(header[tag].value)[0]
            return float(value) % 1_000_000_000 if owner.startswith("GEMS") else float(value)  # GE adds 10^9 as a flag
    return None


def phase_of(header: Dataset | dict[str, Any], groups: list[Dataset]) -> Any:
    """The number of the temporal position; None if the file states none."""
    found = macro(groups, "FrameContentSequence", "TemporalPositionIndex")
    return header.get("TemporalPositionIdentifier") if found is None else found


def numbers_of(value: Any) -> set[float]:
    """The finite numbers of an attribute; times are numbers too, with or without colons. What is none, as files may have it, is left out:
    these facts only describe a series."""
    if value is None:
        return set()
    found = set()
    for one in [value] if isinstance(value, str | int | float) else np.atleast_1d(np.asarray(value, object)).ravel().tolist():
        with suppress(ValueError, TypeError):
            found.add(float(str(one).replace(":", "")))
    return {number for number in found if math.isfinite(number)}


def _plane(axes: Any) -> str:
    if axes is None or np.size(axes) != 6:
        return ""
    return _plane_of(tuple(np.asarray(axes, np.float64).tolist()))


@lru_cache(maxsize=256)  # the slices of a series state one orientation
def _plane_of(axes: tuple[float, ...]) -> str:
    return _PLANES[int(np.abs(np.cross(axes[:3], axes[3:])).argmax())]
