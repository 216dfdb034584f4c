"""The test files of pydicom and nibabel as installed: read as SimpleITK (or nibabel) reads them, or refused with a reason; every
other difference is named here with what settles it."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from fedml.cohort.dicom.grid import RAS
from fedml.cohort.dicom.series import Volume, read_series
from fedml.cohort.images.formats import FORMATS
from fedml.cohort.images.reasons import ItemError

sitk: Any = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (pip install simpleitk)")
PYDICOM = Path(pydicom.__file__).parent / "data" / "test_files"
NICOM = Path(nibabel.__file__).parent / "nicom" / "tests" / "data"
NIFTI = Path(nibabel.__file__).parent / "tests" / "data"


def plain(path: Path, folder: Path) -> Path:
    copy = folder / "one.dcm"
    copy.write_bytes(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    return copy


def as_simpleitk(path: Path, volume: Volume) -> bool | None:
    """Whether values, and for a placed image positions, are SimpleITK's; None: it does not read the file."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None
    values = sitk.GetArrayFromImage(image)
    own = volume.voxels.transpose(2, 1, 0, *range(3, volume.voxels.ndim))
    if values.shape != own.shape or not np.array_equal(values.astype(np.float32), own):
        return False
    return not volume.placed or bool(np.allclose((RAS @ volume.affine)[:3, 3], image.GetOrigin()[:3], atol=1e-3))


def as_run_lengths(path: Path, volume: Volume) -> bool:
    """SimpleITK takes the bytes of run-length coded colours of 16 and 32 bits in another order; by the standard the most significant byte
    of each sample comes first (PS3.5, annex G.2), which is decoded here by hand."""
    import imagecodecs
    from pydicom.encaps import generate_frames

    dataset = pydicom.dcmread(path)
    stream = next(iter(generate_frames(dataset.PixelData, number_of_frames=1)))
    count, *offsets = np.frombuffer(stream[:64], "<u4")
    ends = [*offsets[1:count], len(stream)]
    planes = [np.frombuffer(imagecodecs.packbits_decode(stream[a:b]), np.uint8)[:10_000] for a, b in zip(offsets, ends, strict=False)]
    width = int(count) // 3
    samples = [sum(planes[width * c + k].astype(np.uint64) << (8 * (width - 1 - k)) for k in range(width)) for c in range(3)]
    return np.array_equal(volume.picture, np.stack(samples, -1).reshape(100, 100, 3).astype(np.float32))


def as_optical_density(path: Path, volume: Volume) -> bool:
    """SimpleITK inverts MONOCHROME1; the values of these plates have a unit (Rescale Type OD), and inverted they would be no densities."""
    dataset = pydicom.dcmread(path)
    stored = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    return dataset.RescaleType == "OD" and np.array_equal(volume.voxels[:, :, 0].T, stored.astype(np.float32))


def as_mosaic(path: Path, volume: Volume) -> bool:
    """SimpleITK reads a mosaic as one slice; nibabel splits it. Slices may run the other way."""
    from nibabel.nicom.dicomwrappers import wrapper_from_data

    with gzip.open(path) as file:
        read = pydicom.dcmread(file)
    other = np.asarray(wrapper_from_data(read).get_data())
    own = volume.voxels.transpose(1, 0, 2)
    return np.array_equal(own, other) or np.array_equal(own[:, :, ::-1], other)


SETTLED: dict[str, Callable[[Path, Volume], bool]] = {
    "SC_rgb_rle_16bit.dcm": as_run_lengths, "SC_rgb_rle_32bit.dcm": as_run_lengths,
    "6154": as_optical_density, "6247": as_optical_density, "6278": as_optical_density,
    "siemens_dwi_0.dcm.gz": as_mosaic, "siemens_dwi_1000.dcm.gz": as_mosaic,
}  # fmt: skip


@pytest.mark.parametrize(("folder", "least"), [(PYDICOM, 70), (NICOM, 3)])
def test_dicom_files_are_read_alike_or_refused(tmp_path: Path, folder: Path, least: int) -> None:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix not in (".py", ".pyc", ".txt", ".json", ".md")]
    if not paths:
        pytest.skip("the package's test files are not installed")
    table: Counter[str] = Counter()
    wrong = []
    for path in paths:
        copy = plain(path, tmp_path)
        try:
            volume = read_series([copy])
        except ItemError as error:
            assert str(error).startswith(f"{copy}: ")  # noqa: PT017
            table[f"refused: {error.reason}"] += 1
            continue
        if path.name in SETTLED:
            found, how = SETTLED[path.name](path, volume), "settled otherwise"
        else:
            found, how = as_simpleitk(copy, volume), "equal"
        table[how if found else "not read by SimpleITK" if found is None else "WRONG"] += 1
        wrong += [path.name] if found is not True else []
    print(f"\n{folder}", *sorted(table.items()), sep="\n")
    assert wrong == []
    assert table["equal"] >= least


def test_nifti_files_of_nibabel_are_read_as_nibabel_reads_them() -> None:
    paths = [p for p in sorted(NIFTI.glob("*")) if p.name.endswith((".nii", ".nii.gz"))]
    if not paths:
        pytest.skip("nibabel's test files are not installed")
    equal = 0
    for path in paths:
        try:
            voxels, affine = FORMATS["nifti"].read(path)
        except ItemError as error:
            print(path.name, error.reason, str(error).removeprefix(str(path)))
            continue
        image: Any = nibabel.load(path)
        np.testing.assert_array_equal(voxels, np.asarray(image.dataobj, np.float32))
        assert affine is None or np.array_equal(affine, image.affine)
        equal += 1
    print(f"{equal} of {len(paths)} equal")
    assert equal >= 5
