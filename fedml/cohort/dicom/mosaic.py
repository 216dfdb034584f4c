"""Siemens mosaics: all slices of a volume as tiles of one frame (``MOSAIC`` in Image Type), as functional and diffusion MR is stored.

    about = mosaic_of(header, path)                    # None: not a mosaic
    tiles(frame, about)                                # (slices, rows, columns)

The number of tiles and the direction of the slices are in private elements only (``SIEMENS MR HEADER`` and the CSA header); a file whose
private elements were removed cannot be read. The position in the header is that of the first pixel if the whole frame were one slice, so
the tile's is half a frame less half a tile further on (nibabel's documentation, "DICOM mosaics").
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.reasons import ItemError, Unusable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MOST = 1024  # tiles
_PARALLEL = 1e-3


class Mosaic(NamedTuple):
    """``slices`` tiles, ``across`` in a row; ``shape``: (rows, columns) of one; ``step``: mm from a slice to the next, (3,) in LPS."""

    slices: int
    across: int
    shape: tuple[int, int]
    step: npt.NDArray[np.float64]


def mosaic_of(header: Dataset, path: Path) -> Mosaic | None:
    """What the header says of its tiles; None if it is not a mosaic.

    Raises:
        ItemError: geometry: the header does not say how many slices there are or where they lie.
    """
    if "MOSAIC" not in [str(value).strip() for value in np.atleast_1d(header.get("ImageType") or [])]:
        return None
    count, normal = _private(header)
    spacing = header.get("SpacingBetweenSlices") or header.get("SliceThickness")
    if not count or normal is None or not spacing:
        raise ItemError(
            Unusable.GEOMETRY,
            f"{path}: is a Siemens mosaic, whose private elements say how its tiles are slices, and they are missing; convert it before it "
            "is de-identified, or export single slices.",
        )
    rows, columns = int(header.Rows), int(header.Columns)
    across = math.ceil(math.sqrt(count))
    if not 1 <= count <= _MOST or rows % across or columns % across or int(header.get("NumberOfFrames") or 1) != 1:
        raise ItemError(
            Unusable.GEOMETRY, f"{path}: is a Siemens mosaic of {count} slices, which do not fit into {rows} x {columns} pixels."
        )
    axes = np.asarray(header.get("ImageOrientationPatient") or np.full(6, np.nan), np.float64).reshape(2, 3)
    if not abs(abs(float(np.cross(*axes) @ normal)) - 1) < _PARALLEL:
        raise ItemError(Unusable.GEOMETRY, f"{path}: is a Siemens mosaic whose slices are not stacked along the normal of the image.")
    return Mosaic(count, across, (rows // across, columns // across), normal / np.linalg.norm(normal) * abs(float(spacing)))


def _private(header: Dataset) -> tuple[int, npt.NDArray[np.float64] | None]:
    """(number of slices, 0 if it is not stated; direction from a slice to the next)."""
    from nibabel.nicom.csareader import get_csa_header

    csa = get_csa_header(header, "image") or {"tags": {}}
    stated = {name: csa["tags"].get(name, {}).get("items") or [] for name in ("NumberOfImagesInMosaic", "SliceNormalVector")}
    plain = header.get((0x0019, 0x100A))
    count = int(stated["NumberOfImagesInMosaic"][0]) if stated["NumberOfImagesInMosaic"] else int(plain.value) if plain is not None else 0
    vector = np.asarray(stated["SliceNormalVector"], np.float64)
    return count, vector if vector.shape == (3,) and np.isfinite(vector).all() else None


def tile_position(
    about: Mosaic, whole: tuple[int, int], position: npt.NDArray[np.float64], across: npt.NDArray[np.float64], down: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(slices, 3): the first pixel of each slice in LPS. ``position``: as the header has it; ``across``, ``down``: mm from a pixel to the
    next in its row and in its column, (3,) each; ``whole``: rows and columns of the frame."""
    first = position + (whole[1] - about.shape[1]) / 2 * across + (whole[0] - about.shape[0]) / 2 * down
    return np.asarray(first + np.arange(about.slices)[:, None] * about.step)


def tiles(frame: npt.NDArray[Any], about: Mosaic) -> npt.NDArray[Any]:
    """(slices, rows, columns) of a frame."""
    rows, columns = about.shape
    split = frame.reshape(about.across, rows, about.across, columns).swapaxes(1, 2)
    return split.reshape(-1, rows, columns)[: about.slices]
