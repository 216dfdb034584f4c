"""Frames of a DICOM file that has no functional groups: nuclear medicine, cine of ultrasound and angiography, multi-frame captures.

    places = reconstructed(header, path)          # (frames, 3) in LPS, or None: the frames have no positions

A tomographic reconstruction of nuclear medicine states the position of its first slice, its orientation and the distance between slices
(PS3.3 sections C.8.4.8, C.8.4.11 and C.8.4.15). All other frames of such a file lie at no known place: they are times of one picture, or
views that are no slices at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.macros import numbers, orthonormal
from fedml.cohort.images.reasons import ItemError, Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SLICES = 0x00540080  # Slice Vector
_SAME = 1e-3  # mm; two statements of one position


def reconstructed(header: Dataset, path: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Positions (frames, 3) and axes (2, 3) of the slices of a reconstruction of nuclear medicine; None: frames of another modality.

    Raises:
        ItemError: geometry: the frames are other views, or the file does not say where its slices lie.
    """
    if str(header.get("Modality") or "") != "NM":
        return None
    kind = [str(value).strip().upper() for value in np.atleast_1d(header.get("ImageType") or [])]
    if kind[2:3] != ["RECON TOMO"]:
        what = " ".join(kind[2:3]).lower() or "unstated kind"
        raise ItemError(Unusable.GEOMETRY, f"{path}: has frames of nuclear medicine ({what}), which are no slices of one volume.")
    count = int(header.NumberOfFrames)
    pointer = [int(tag) for tag in _listed(header.get("FrameIncrementPointer"))]
    order = np.array([int(n) for n in _listed(header.get("SliceVector"))])
    numbered = not len(order) or sorted(order.tolist()) == list(range(1, count + 1))
    if pointer not in ([], [_SLICES]) or not numbered or (pointer and not len(order)):
        text = f"its frames are not the slices 1 to {count} of one volume (gated, or several windows?)"
        raise ItemError(Unusable.GEOMETRY, f"{path}: {text}.")
    order = order if len(order) else np.arange(1, count + 1)
    first, axes = _stated(header, path, "ImagePositionPatient"), _stated(header, path, "ImageOrientationPatient")
    step = numbers(header.get("SpacingBetweenSlices"), 1)
    if first is None or axes is None or step is None or not step[0]:
        raise ItemError(Unusable.GEOMETRY, f"{path}: does not state the position, the orientation or the distance of its slices.")
    plane = orthonormal(axes.tolist(), path)
    assert plane is not None and first is not None  # noqa: S101, PT018 - for the type checker
    normal = np.cross(plane[0], plane[1])  # the sign of the distance says on which side of the first slice the others lie
    return first + (order - 1)[:, None] * (step[0] * normal), plane


def _listed(value: Any) -> list[Any]:
    return [] if value is None or value == "" else list(value) if hasattr(value, "__len__") and not isinstance(value, str) else [value]


def _stated(header: Dataset, path: Path, keyword: str) -> npt.NDArray[np.float64] | None:
    """An attribute of the detector, or of the file; both, if they agree."""
    length = 3 if keyword == "ImagePositionPatient" else 6
    places = [*(header.get("DetectorInformationSequence") or [])[:1], header]
    found = [value for place in places if (value := numbers(place.get(keyword), length)) is not None]
    if len(found) == 2 and np.abs(found[0] - found[1]).max() > _SAME:
        raise ItemError(Unusable.GEOMETRY, f"{path}: states {keyword} twice, and differently.")
    return found[0] if found else None
