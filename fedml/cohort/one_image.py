"""Reads one image for prediction with a saved model, prepared as at a site but without the checks of a site.

    image = read_one(Path("scan.nii.gz"), study.cohort.image)     # float32 (channels, *size), as the network expects it
    image = prepare_one(voxels, affine, study.cohort.image)

Masks are not read and de-identification is not checked, because nothing leaves the caller's machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedml.cohort.dicom.files import open_dataset
from fedml.cohort.dicom.series import Volume
from fedml.cohort.images.channels import channels_first
from fedml.cohort.images.combine import one_of_many
from fedml.cohort.images.formats import FORMATS, by_ending
from fedml.cohort.images.items import Raw
from fedml.cohort.images.originals import matrix_of
from fedml.cohort.images.precision import kept_type
from fedml.cohort.images.reasons import ItemError
from fedml.cohort.images.transforms import prepared, windowed
from fedml.errors import InputError
from fedml.quiet import told
from fedml.study.cohort_section import ImageShape

Window = tuple[float, float]


def read_one(path: Path, shape: ImageShape | None, window: Window | None = None) -> npt.NDArray[Any]:
    """The image in ``path``: a file of one of ``fedml.cohort.images.formats.FORMATS``, a DICOM file, or a folder with the DICOM series of
    a person.

    Raises:
        InputError: no such file, an unknown format, or an image that the study cannot use.
    """
    return open_one(path, shape, window).prepared


class Opened(NamedTuple):
    """An image: as its file has it, prepared, and of a DICOM series the volume that it is (a single slice of which may be a picture)."""

    raw: Raw
    prepared: npt.NDArray[Any]
    series: Volume | None


def open_one(path: Path, shape: ImageShape | None, window: Window | None = None) -> Opened:
    """``read_one``, with the voxels and the affine of the file, and its series.

    Raises:
        InputError: as ``read_one``.
    """
    series = None
    if not path.exists():
        raise InputError(f"{path}: no such file; give the path of an image.")
    try:
        if path.is_dir() or path.name.endswith(".dcm"):
            raw, affine, volumes, series = _dicom(path, shape)
        else:
            form = by_ending(path)
            if form is None:
                known = ", ".join(ending for known_form in FORMATS.values() for ending in known_form.endings)
                raise InputError(f"{path}: has no known image extension; give {known}, .dcm or a folder with a DICOM series.")
            if shape is not None and shape.channel_files:
                raise InputError(f"{path}: the study has named channels, a file each; give an array, or a folder with their DICOM series.")
            if shape is not None and shape.orientation and not form.anatomical:
                raise InputError(f"{path}: does not say which side of a body an axis points to, and the study states an orientation.")
            raw, affine = form.read(path)
            volumes = form.volumes
            if shape is not None and volumes and shape.volumes != "one" and raw.ndim == len(shape.size) + 1:
                raw = one_of_many(raw, shape.volumes, path)
        found = Raw(channels_first(raw, shape, path, volumes=volumes), affine)
        return Opened(found, prepare_one(found.image, affine, shape, window), series)
    except InputError:
        raise
    except ItemError as error:
        text = str(error).rstrip(".")
        raise InputError(f"{text}." if str(path) in text else f"{path}: {text}.") from error
    except Exception as error:  # a decoder may raise any exception on a damaged file
        raise InputError(f"{path}: cannot be read as an image ({told(error)}); give another file.") from error


def prepare_one(
    image: npt.NDArray[Any], affine: npt.NDArray[Any] | None, shape: ImageShape | None, window: Window | None = None
) -> npt.NDArray[Any]:
    """Raw voxels (channels, *any size) through the study's preprocessing; unchanged if the study has none.

    Args:
        window: the sites' agreed intensity window, if the study states percentiles (``fedml.runs.log.saved_window``).

    Raises:
        ItemError: as ``fedml.cohort.images.transforms.prepared`` says.
    """
    spec = None if shape is None else shape.preprocess
    if spec is None:
        return np.asarray(image, np.float32)
    image = prepared(windowed(spec, *window) if spec.percentiles and window else spec, image, affine)[0]
    return image.astype(kept_type(spec)).astype(np.float32)  # as in the image cache with which the network was trained


def to_prepared(raw: Raw, shape: ImageShape | None) -> npt.NDArray[np.float64] | None:
    """(axes + 1, axes + 1): a voxel's index in the file to its index in the prepared image, for ``fedml.tasks.original.labels_at``; None if
    the study prepares nothing."""
    spec = None if shape is None else shape.preprocess
    if spec is None:
        return None
    # Any window: it changes intensities, not the grid.
    return matrix_of(windowed(spec, 0.0, 1.0) if spec.percentiles else spec, raw.image.shape[1:], raw.affine)


def _dicom(path: Path, shape: ImageShape | None) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64] | None, bool, Volume]:
    """(voxels, affine, whether it is a volume, the series) of one image; a single slice is 2D unless the study has volumes."""
    from fedml.cohort.dicom.headers import candidates
    from fedml.cohort.dicom.persons import chosen, read_channels

    found, broken = candidates(path)
    if broken or not found:
        if path.is_file():
            open_dataset(path, pixels=False)  # usually raises the specific error
        text = f"{len(broken)} files cannot be read, {broken[0].name} among them" if broken else "no file is a DICOM image"
        raise InputError(f"{path}: {text}; give a folder with one series.")
    rules = None if shape is None else shape.select
    made, problem = chosen(found, shape, rules)
    if problem is not None or len(made) != 1:
        text = f"has {len(made)} series, and one is needed" if problem is None else problem[1]
        raise InputError(f"{path}: {text}; give a folder with one series.")
    volumes, voxels = read_channels(made[0], shape, rules)
    volume = volumes[0]
    affine = volume.affine if volume.placed else None
    if volume.voxels.shape[2] > 1 or (shape is not None and len(shape.size) == 3):
        return voxels, affine, True, volume
    across, down, _ = volume.spacing_mm
    picture = np.ascontiguousarray(voxels[:, :, 0].swapaxes(0, 1))
    return picture, None if affine is None else np.diag([down, across, 1.0, 1.0]), False, volume
