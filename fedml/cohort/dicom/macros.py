"""Attributes of a DICOM file or frame: from its functional groups, as checked numbers.

macro([frame, shared], "PixelMeasuresSequence", "PixelSpacing", dataset)
orthonormal(dataset.ImageOrientationPatient, path)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.grid import COSINES
from fedml.cohort.images.reasons import ItemError, Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def macro(places: Sequence[Dataset], sequence: str, keyword: str, plain: Dataset | Mapping[str, Any] | None = None) -> Any:
    """An attribute of the first functional group that has it (PS3.3 section C.7.6.16), else of ``plain``, else None."""
    for place in places:
        items = place.get(sequence)
        if items and items[0].get(keyword) is not None:
            return items[0].get(keyword)
    return None if plain is None else plain.get(keyword)


def numbers(value: Any, count: int) -> npt.NDArray[np.float64] | None:
    """(count,) finite numbers, or None if the attribute is empty.

    Raises:
        ItemError: geometry: another count, or a number that is not finite.
    """
    if value is None or value == "" or not np.size(value):
        return None
    found = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ItemError(Unusable.GEOMETRY, f"has {found.size} numbers where {count} finite numbers are expected.")
    return found


def orthonormal(value: Any, path: Path) -> npt.NDArray[np.float64] | None:
    """Image Orientation (Patient) as (2, 3) unit vectors: along increasing column index, along increasing row index; None if it is empty.

    Raises:
        ItemError: geometry: the vectors are not orthonormal.
    """
    found = numbers(value, 6)
    if found is None:
        return None
    axes = found.reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > COSINES:
        raise ItemError(Unusable.GEOMETRY, f"{path}: the orientation is not two orthogonal unit vectors.")
    along = axes[0] / np.linalg.norm(axes[0])
    down = axes[1] - (axes[1] @ along) * along
    return np.stack([along, down / np.linalg.norm(down)])
