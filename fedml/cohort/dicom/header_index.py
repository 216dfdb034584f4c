"""What groups and selects DICOM files: series, class, modality, whether it is an image. Read once for each state of a file.

    told = header_of(path)           # kept by fedml.cohort.state_index
    told.series, told.modality

Most files are in Little Endian with all lengths given: they are walked here, element by element, up to the pixel data. All others are
read by pydicom, as ``open_dataset`` does, which also decides what is damaged.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from fedml.cohort.dicom.files import is_image, looks_dicom, open_dataset, reading
from fedml.cohort.images.reasons import ItemError
from fedml.cohort.state_index import remembered

_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT = frozenset(
    (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI",
     b"UL", b"US")
)  # fmt: skip
_CLASS, _SYNTAX, _MODALITY, _SERIES, _ROWS, _PIXELS = 0x00020002, 0x00020010, 0x00080060, 0x0020000E, 0x00280010, 0x7FE00008
_IMPLICIT, _EXPLICIT, _CODED = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.4."
_READ = 2**14  # bytes at first; headers are mostly shorter
_MOST = 2**20  # of a header that is walked here
_ELEMENTS = 5_000


class Header(NamedTuple):
    """``series``: UID, "" if none or if the file cannot be read; ``kind``: SOP class of the file; ``image``: has Rows, or is of a class of
    images; ``dicom``: begins like DICOM."""

    series: str
    kind: str
    modality: str
    image: bool
    dicom: bool
    readable: bool


def header_of(path: Path) -> Header:
    """The header of a file.

    Raises:
        OSError: it cannot be opened.
    """
    return Header(*remembered(path, lambda: _read(path)))


def _read(path: Path) -> Header:
    if not looks_dicom(path):
        return Header("", "", "", False, False, False)
    if (quick := walked(path)) is not None:
        return quick
    try:
        with reading(path):
            dataset = open_dataset(path, pixels=False, tags=["SeriesInstanceUID", "SOPClassUID", "Modality", "Rows"])
            kind = str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))
            series, modality = str(dataset.get("SeriesInstanceUID") or ""), str(dataset.get("Modality") or "")
            return Header(series, kind, modality, "Rows" in dataset or is_image(dataset), True, True)
    except ItemError:
        return Header("", "", "", False, True, False)


def walked(path: Path) -> Header | None:
    """The header of a plain file; None if it is not plain, or not whole: pydicom then decides."""
    with path.open("rb") as file:
        data = file.read(_READ)
        found = _walk(data)
        if found is None and len(data) == _READ:
            found = _walk(data + file.read(_MOST))
    return found


def _walk(data: bytes) -> Header | None:
    if data[128:132] != b"DICM":
        return None
    at, explicit, last, told = 132, True, 0, dict[int, bytes]()
    try:
        for _ in range(_ELEMENTS):
            group, element = struct.unpack_from("<HH", data, at)
            tag = group << 16 | element
            if group > 2 and _SYNTAX in told and last >> 16 == 2:
                syntax = told[_SYNTAX]
                if syntax != _IMPLICIT and syntax != _EXPLICIT and not syntax.startswith(_CODED):
                    return None
                explicit = syntax != _IMPLICIT
            if tag <= last or (group > 2 and _SYNTAX not in told):
                return None
            if _PIXELS <= tag <= 0x7FE00010:
                return _header(told) if _SERIES in told and _ROWS in told and _CLASS in told else None
            vr = data[at + 4 : at + 6]
            if not explicit:
                (length,), begin = struct.unpack_from("<I", data, at + 4), at + 8
            elif vr in _SHORT:
                (length,), begin = struct.unpack_from("<H", data, at + 6), at + 8
            elif vr in _LONG:
                (length,), begin = struct.unpack_from("<I", data, at + 8), at + 12
            else:
                return None
            if length == 0xFFFFFFFF or begin + length > len(data):
                return None
            if tag in (_CLASS, _SYNTAX, _MODALITY, _SERIES, _ROWS):
                told[tag] = data[begin : begin + length].rstrip(b"\0 ")
            at, last = begin + length, tag
    except struct.error:  # it ends before its pixel data
        pass
    return None


def _header(told: dict[int, bytes]) -> Header | None:
    series, kind, modality = told[_SERIES], told[_CLASS], told.get(_MODALITY, b"")
    if not series.replace(b".", b"").isdigit() or not kind.replace(b".", b"").isdigit() or not (modality.isalnum() and modality.isascii()):
        return None
    return Header(series.decode(), kind.decode(), modality.decode(), True, True, True)
