"""The slices of a DICOM volume by their headers, and the regular grid on which they lie (PS3.3 section C.7.6.2.1.1).

alike(slices)                                       # ItemError unless they may be of one volume
order, affine, spacing, off = grid_of(slices)       # ItemError unless they are evenly spaced
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.reasons import ItemError, Unusable

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's LPS to RAS and back
COSINES = 1e-3  # tolerance of orientations: scanners write five or six digits
# Tolerance of positions, as a share of the slice distance: rounding to 0.1 mm stays below it, a missing slice shifts others by half a step.
# The largest distance is reported (``Volume.off_grid_mm``).
_OFF_GRID = 0.2


@dataclass(frozen=True)
class Slice:
    """One slice, or frame, by its header. ``dims``: what tells volumes of one series apart (``fedml.cohort.dicom.volumes``)."""

    path: Path
    frame: int
    series: tuple[str, ...]  # attributes that must be equal in all slices of a volume
    instance: str
    shape: tuple[int, int]
    position: npt.NDArray[np.float64] | None
    axes: npt.NDArray[np.float64] | None  # (2, 3): unit vectors in the direction of increasing column index, of increasing row index
    spacing: tuple[float, float] | None  # of columns, of rows; mm
    thickness: float
    location: float | None  # Slice Location: mm along the normal, with any origin and sign
    slope: float
    intercept: float
    rescale: str | None  # rescale type, "" if the file states none; None: no rescale
    unit: str
    dims: tuple[tuple[float, ...], ...] = ()


def alike(slices: Sequence[Slice]) -> None:
    """Checks that the slices are of one series and agree in kind, size, orientation, pixel spacing and unit.

    Raises:
        ItemError: mixed-series, or rescale.
    """
    first = slices[0]
    for other in slices:
        if other.series[0] != first.series[0]:
            raise ItemError(Unusable.MIXED_SERIES, f"{other.path}: is of another series than {first.path}.")
        if other.series != first.series or other.shape != first.shape or (other.axes is None) != (first.axes is None):
            raise ItemError(Unusable.MIXED_SERIES, f"{other.path}: differs from {first.path} in kind or size (a localizer?).")
        if other.axes is not None and first.axes is not None and np.abs(other.axes - first.axes).max() > COSINES:
            raise ItemError(Unusable.MIXED_SERIES, f"{other.path}: has another orientation than {first.path}.")
        if (other.spacing is None) != (first.spacing is None) or not np.allclose(other.spacing or 0, first.spacing or 0, rtol=1e-3):
            raise ItemError(Unusable.MIXED_SERIES, f"{other.path}: has another pixel spacing than {first.path}.")
        if other.rescale != first.rescale or other.unit != first.unit:
            raise ItemError(Unusable.RESCALE, f"{other.path}: has another rescale type or unit than {first.path}.")


def grid_of(slices: Sequence[Slice]) -> tuple[list[int], npt.NDArray[np.float64], tuple[float, float, float], float]:
    """The slices' order along the normal, the affine (RAS+), the spacing in mm, and the largest distance of a slice from the grid in mm.

    A tilted gantry shifts each slice in its plane by the same step; the affine contains this shear.
    """
    first = slices[0]
    across, down = first.spacing or (1.0, 1.0)
    affine = np.eye(4)
    if first.position is None or first.axes is None:
        if len(slices) > 1:
            raise ItemError(Unusable.GEOMETRY, f"{first.path}: several frames or files without positions are not a volume.")
        thick = first.thickness if first.thickness > 0 else 1.0
        affine[:3, :3] = np.diag([across, down, thick])
        return [0], affine, (across, down, thick), 0.0
    normal = np.cross(first.axes[0], first.axes[1])
    places = np.stack([s.position for s in slices if s.position is not None])
    along = places @ normal
    order = np.argsort(along, kind="stable")
    off_grid = 0.0
    if len(slices) == 1:
        step = normal * (first.thickness if first.thickness > 0 else 1.0)
    else:
        step = (places[order[-1]] - places[order[0]]) / (len(slices) - 1)
        off_grid = _check_grid(slices, order, along, places, step, normal)
    affine[:3, :3] = np.stack([first.axes[0] * across, first.axes[1] * down, step], axis=1)
    affine[:3, 3] = places[order[0]]
    return [int(k) for k in order], RAS @ affine, (across, down, float(np.linalg.norm(step))), off_grid


def _check_grid(
    slices: Sequence[Slice], order: npt.NDArray[np.intp], along: npt.NDArray[np.float64], places: npt.NDArray[np.float64],
    step: npt.NDArray[np.float64], normal: npt.NDArray[np.float64],
) -> float:  # fmt: skip
    """The largest distance of a slice from the even grid, mm."""
    first, steps = slices[0], np.diff(along[order])
    usual = float(np.median(steps))
    twice = np.flatnonzero(steps <= max(_OFF_GRID * usual, 1e-4))
    if len(twice):
        raise ItemError(Unusable.DUPLICATE_SLICES, f"{slices[order[twice[0] + 1]].path}: has the position of another slice of its series.")
    distance = float(step @ normal)
    if np.abs(along[order] - along[order[0]] - distance * np.arange(len(order))).max() > _OFF_GRID * min(distance, usual):
        raise ItemError(Unusable.GAP, f"{first.path}: the slices of its series are not evenly spaced (one is missing?).")
    off = places[order] - places[order[0]] - np.outer(np.arange(len(order)), step)
    in_plane = off - np.outer(off @ normal, normal)
    if np.abs(in_plane).max() > _OFF_GRID * min(first.spacing or (1.0, 1.0)) + 1e-3:
        raise ItemError(Unusable.GEOMETRY, f"{first.path}: the slices of its series are shifted against each other.")
    located = [slices[k].location for k in order]
    steps = np.diff([where for where in located if where is not None])
    if len(steps) == len(order) - 1 and (steps > 0).any() and (steps < 0).any():  # swapped positions cannot be detected in any other way
        raise ItemError(Unusable.GEOMETRY, f"{first.path}: positions and slice locations of its series are in different orders.")
    return float(np.linalg.norm(off, axis=1).max())
