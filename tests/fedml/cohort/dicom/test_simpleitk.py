"""Peer: SimpleITK reads every plain series with the same voxels at the same places (and float32 of its values)."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from fedml.cohort.dicom.folders import group_series
from fedml.cohort.dicom.series import Volume, read_series, read_volumes
from fedml.cohort.images.reasons import ItemError
from tests.conftest import public_data
from tests.dicom_files import write_series, write_slice

sitk: Any = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (pip install simpleitk)")
RNG = np.random.default_rng(8)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
TURNED = (0.8, 0.6, 0, -0.36, 0.48, -0.8)  # double oblique


def reference(folder: Path) -> tuple[Any, Any]:
    """(columns, rows, slices), and the affine in RAS+."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.moveaxis(sitk.GetArrayFromImage(image), (0, 1, 2), (2, 1, 0)), LPS @ affine


def same(volume: Volume, folder: Path) -> None:
    """As a map from places to values: SimpleITK may stack the slices the other way."""
    voxels, affine = reference(folder)
    assert voxels.shape == volume.voxels.shape
    if not np.allclose(affine[:3, 2], volume.affine[:3, 2], atol=1e-3):
        flip = np.eye(4)
        flip[2, 2], flip[2, 3] = -1, voxels.shape[2] - 1
        voxels, affine = voxels[:, :, ::-1], affine @ flip
    np.testing.assert_array_equal(volume.voxels, voxels.astype(np.float32))
    np.testing.assert_allclose(volume.affine, affine, atol=2e-3)


@pytest.mark.parametrize("name", ["UCSF-BR-06/image_dce_ser", "CMB-CRC-SCAN_001/adc_image"])
def test_real_series(tmp_path: Path, name: str) -> None:
    for path in (public_data("dicom_mr") / name).glob("*.dcm"):
        shutil.copy(path, tmp_path)
    ((_, files),) = group_series(tmp_path).items()
    same(read_series(files), tmp_path)


@pytest.mark.parametrize("axes", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (-1, 0, 0, 0, 1, 0), TURNED])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("about", [{}, {"RescaleSlope": 2.5, "RescaleIntercept": -7.25}, {"PixelSpacing": [0.7, 0.3], "SliceThickness": 1}])
def test_series_in_any_direction(tmp_path: Path, axes: Any, down: bool, about: dict[str, Any]) -> None:
    voxels = RNG.integers(-1000, 3000, (5, 6, 4)).astype(np.int16)
    normal = np.cross(axes[:3], axes[3:])
    for k, plane in enumerate(voxels):
        place = np.array([10.0, -20.0, 5.0]) + (-3.0 if down else 3.0) * k * normal
        write_slice(tmp_path / f"{k}.dcm", plane, place.tolist(), axes=axes, **about)
    same(read_volumes(sorted(tmp_path.iterdir()))[0][0], tmp_path)


def test_unsigned_twelve_bits(tmp_path: Path) -> None:
    write_series(tmp_path, RNG.integers(0, 4096, (4, 6, 5)).astype(np.uint16), bits=12)
    same(read_series(sorted(tmp_path.iterdir())), tmp_path)


def test_placed_files_of_pydicom_and_nibabel(tmp_path: Path) -> None:
    """Their own test files of one placed slice: what both read is equal; a thickness is not compared, as SimpleITK's is 1 for one slice."""
    import nibabel

    folders = Path(pydicom.__file__).parent / "data" / "test_files", Path(nibabel.__file__).parent / "nicom" / "tests" / "data"
    paths = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size < 2**22]
    compared = 0
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    for path in paths:
        copy = tmp_path / "one.dcm"
        copy.write_bytes(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
        try:
            volume = read_series([copy])
            image = sitk.ReadImage(str(copy))
        except (ItemError, RuntimeError):
            continue
        if not volume.placed or image.GetDimension() != 3 or volume.voxels.shape[2] != 1 or image.GetNumberOfComponentsPerPixel() > 1:
            continue
        np.testing.assert_array_equal(volume.voxels[:, :, 0].T, sitk.GetArrayFromImage(image)[0].astype(np.float32), err_msg=path.name)
        np.testing.assert_allclose((LPS @ volume.affine)[:3, 3], image.GetOrigin(), atol=1e-3, err_msg=path.name)
        plane = np.array(image.GetDirection()).reshape(3, 3)[:, :2] * image.GetSpacing()[:2]
        np.testing.assert_allclose((LPS @ volume.affine)[:3, :2], plane, atol=1e-3, err_msg=path.name)
        compared += 1
    if not paths:
        pytest.skip("the packages' test files are not installed")
    assert compared >= 20
