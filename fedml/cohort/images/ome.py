"""OME-XML of an OME-TIFF file (docs.openmicroscopy.org/ome-model): which page is which plane, and the size of a voxel.

planes = planes_of_ome(text, pages, shape, kind, path)
planes.page[t, z, c], planes.spacing_mm
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.reasons import ItemError, Unusable

_LONGEST = 2**24  # bytes of XML
_TO_MM = {"µm": 1e-3, "μm": 1e-3, "um": 1e-3, "nm": 1e-6, "mm": 1.0, "cm": 10.0, "m": 1e3, "pm": 1e-9, "Å": 1e-7}
_TYPES = {
    "uint8": "u1", "uint16": "u2", "uint32": "u4", "int8": "i1", "int16": "i2", "int32": "i4", "float": "f4", "double": "f8",
}  # fmt: skip


class Planes(NamedTuple):
    """``page``: (times, slices, channels) of page numbers. ``spacing_mm``: along x, y, z; None where it is not stated."""

    page: npt.NDArray[np.int64]
    spacing_mm: tuple[float | None, float | None, float | None]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(times, slices, channels)."""
        times, slices, channels = self.page.shape
        return times, slices, channels


def planes_of_ome(text: bytes, pages: int, shape: tuple[int, int, int], kind: np.dtype[Any], path: Path) -> Planes:
    """The planes of a file of ``pages`` pages of ``shape`` (rows, columns, samples).

    Raises:
        ItemError: unreadable: it is no OME-XML, or the image goes on in other files; several-series: more than one image; wrong-length: its
            sizes are not those of the pages; truncated: a plane has no page.
    """
    if len(text) > _LONGEST or b"<!" in text.replace(b"<!--", b""):
        raise ItemError(Unusable.UNREADABLE, f"{path}: its OME-XML is too long, or has a document type.")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - as above
    except ElementTree.ParseError as error:
        raise ItemError(Unusable.UNREADABLE, f"{path}: its OME-XML cannot be read.") from error
    pixels = [one for one in root.iter() if _name(one) == "Pixels"]
    if len(pixels) != 1:
        raise ItemError(Unusable.SEVERAL_SERIES, f"{path}: holds {len(pixels)} images, and one is read; save it by itself.")
    about = pixels[0].attrib
    try:
        sizes = {axis: int(about[f"Size{axis}"]) for axis in "XYZCT"}
        samples = {int(one.get("SamplesPerPixel", 1)) for one in pixels[0] if _name(one) == "Channel"} or {1}
        order, stated = about["DimensionOrder"], _TYPES.get(about["Type"])
        data = [one for one in pixels[0] if _name(one) == "TiffData"]
        found = _page_numbers(data, order, _counts(sizes, max(samples)), pages, path)
        spacing = tuple(_mm(about, axis) for axis in "XYZ")
    except (KeyError, ValueError) as error:
        raise ItemError(Unusable.UNREADABLE, f"{path}: its OME-XML lacks a size, or it is not a number.") from error
    if (sizes["Y"], sizes["X"], max(samples)) != shape or len(samples) > 1 or stated != f"{kind.kind}{kind.itemsize}":
        raise ItemError(Unusable.WRONG_LENGTH, f"{path}: its OME-XML describes other pages than those of the file.")
    return Planes(found, (spacing[0], spacing[1], spacing[2]))


def _name(one: ElementTree.Element) -> str:
    return one.tag.rpartition("}")[2]


def _counts(sizes: dict[str, int], samples: int) -> dict[str, int]:
    counts = {"T": sizes["T"], "Z": sizes["Z"], "C": sizes["C"] // samples}
    if min(counts.values()) < 1 or sizes["C"] % samples:
        raise ValueError("no planes")
    return counts


def _page_numbers(data: list[ElementTree.Element], order: str, counts: dict[str, int], pages: int, path: Path) -> npt.NDArray[np.int64]:
    """(times, slices, channels); each TiffData is a run of planes in DimensionOrder from its first one."""
    if sorted(order) != sorted("XYZCT") or not order.startswith("XY"):
        raise ValueError("no order")
    total = math.prod(counts.values())
    if total > pages:
        raise ItemError(Unusable.TRUNCATED, f"{path}: its OME-XML describes {total} planes, {pages} pages are there.")
    names, sizes = order[2:], [counts[axis] for axis in order[2:]]
    linear = np.full(total, -1, np.int64)
    if (
        len({part.get("FileName") for one in data for part in one if _name(part) == "UUID"}) > 1
    ):  # one name may be an older one of this file
        raise ItemError(Unusable.UNREADABLE, f"{path}: its image goes on in other files; save it as one.")
    for one in data:
        first = [int(one.get(f"First{axis}", 0)) for axis in names]
        if not all(0 <= at < size for at, size in zip(first, sizes, strict=True)):
            raise ValueError("no such plane")
        begin = first[0] + sizes[0] * (first[1] + sizes[1] * first[2])
        stated = one.get("IFD")
        run = int(one.get("PlaneCount", total - begin if stated is None and len(data) == 1 else 1))
        page = int(stated or 0)
        if run < 1 or begin + run > total or page < 0 or page + run > pages or (linear[begin : begin + run] >= 0).any():
            raise ItemError(Unusable.WRONG_LENGTH, f"{path}: its OME-XML puts planes where there are none, or two into one place.")
        linear[begin : begin + run] = page + np.arange(run)
    if not data:
        linear = np.arange(total)
    if (linear < 0).any():
        raise ItemError(Unusable.TRUNCATED, f"{path}: its OME-XML has a plane without a page.")
    stacked = linear.reshape(sizes[::-1])  # slowest first
    return stacked.transpose([names[::-1].index(axis) for axis in "TZC"])


def _mm(about: dict[str, str], axis: str) -> float | None:
    """The physical size along an axis; None if it is not stated, or in no unit of length."""
    value, unit = about.get(f"PhysicalSize{axis}"), about.get(f"PhysicalSize{axis}Unit", "µm")
    if value is None or unit not in _TO_MM:
        return None
    found = float(value) * _TO_MM[unit]
    return found if math.isfinite(found) and found > 0 else None
