"""DICOM as archives export it: mosaics, positions that are not quite even, plates without a spacing, coarse segmentations."""

from __future__ import annotations

import gzip
import io
import warnings
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest

from fedml.cohort.dicom.segmentation import read_seg
from fedml.cohort.dicom.series import read_series
from fedml.cohort.images.reasons import ItemError, Unusable
from tests.dicom_files import write_seg, write_series, write_slice

RNG = np.random.default_rng(0)
CUBE = RNG.integers(0, 4000, (5, 6, 4), dtype=np.uint16)  # slices, rows, columns
NICOM = Path(nibabel.__file__).parent / "nicom" / "tests" / "data"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def refuses(reason: Unusable, word: str, *files: Path) -> None:
    with pytest.raises(ItemError, match=word) as caught:
        read_series(files)
    assert caught.value.reason is reason


def nicom(name: str, to: Path) -> Path:
    if not (NICOM / name).exists():
        pytest.skip(f"nibabel's test file {name} is not installed")
    to.write_bytes(gzip.decompress((NICOM / name).read_bytes()) if name.endswith(".gz") else (NICOM / name).read_bytes())
    return to


@pytest.mark.parametrize("name", ["siemens_dwi_0.dcm.gz", "siemens_dwi_1000.dcm.gz"])
def test_a_mosaic_is_the_volume_that_nibabel_makes_of_it(tmp_path: Path, name: str) -> None:
    """Siemens' own files, against nibabel's MosaicWrapper: voxels (rows, columns, slices) and affine to LPS."""
    path = nicom(name, tmp_path / "m.dcm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom.dicomwrappers import wrapper_from_data

        wrapper: Any = wrapper_from_data(pydicom.dcmread(path))
        expected, affine = np.asarray(wrapper.get_data()), np.asarray(wrapper.affine)
    volume = read_series([path])
    assert volume.voxels.shape == (expected.shape[1], expected.shape[0], 48)
    np.testing.assert_array_equal(volume.voxels, expected.swapaxes(0, 1).astype(np.float32))
    for row, column, k in ((0, 0, 0), (5, 3, 7), (expected.shape[0] - 1, 0, 47)):
        np.testing.assert_allclose(LPS @ volume.affine @ [column, row, k, 1], affine @ [row, column, k, 1], atol=1e-3)
    assert volume.placed
    assert volume.spacing_mm == pytest.approx((1.796875, 1.796875, 3.0), abs=1e-5)


def test_a_mosaic_without_its_private_elements_is_refused_for_that(tmp_path: Path) -> None:
    """As after a de-identification that removes private elements."""
    path = nicom("siemens_dwi_0.dcm.gz", tmp_path / "m.dcm")
    dataset = pydicom.dcmread(path)
    dataset.remove_private_tags()
    dataset.save_as(path)
    refuses(Unusable.GEOMETRY, "is a Siemens mosaic, whose private elements .* are missing", path)
    plain = write_slice(tmp_path / "p.dcm", CUBE[0], (0, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])
    refuses(Unusable.GEOMETRY, "is a Siemens mosaic", plain)


def test_a_mosaic_whose_header_lies(tmp_path: Path) -> None:
    refuses(Unusable.GEOMETRY, "48 slices, which do not fit into 256 x 256", nicom("0.dcm", tmp_path / "0.dcm"))  # cut by nibabel
    path = nicom("siemens_dwi_0.dcm.gz", tmp_path / "m.dcm")
    for tag, value, word in (("ImageOrientationPatient", [1, 0, 0, 0, 0, 1], "not stacked along"), ("Rows", 895, "do not fit")):
        dataset = pydicom.dcmread(io.BytesIO(gzip.decompress((NICOM / "siemens_dwi_0.dcm.gz").read_bytes())))
        setattr(dataset, tag, value)
        dataset.save_as(path)
        refuses(Unusable.GEOMETRY, word, path)


@pytest.mark.parametrize(("jitter", "step"), [(0.0, 3.0), (0.05, 3.0), (0.9, 5.0)])
def test_how_far_slices_are_off_an_even_grid_is_told(tmp_path: Path, jitter: float, step: float) -> None:
    """0.9 mm of 5 mm is within the tolerance of a fifth of the step, and is no longer silent; of 3 mm it is a gap."""
    places = [(-5.0, 7.0, 10 + step * k + (jitter if k == 2 else 0)) for k in range(5)]
    files = [write_slice(tmp_path / f"{k}.dcm", plane, place) for k, (plane, place) in enumerate(zip(CUBE, places, strict=True))]
    assert read_series(files).off_grid_mm == pytest.approx(jitter, abs=1e-9)
    write_slice(files[2], CUBE[2], (-5.0, 7.0, 10 + 2.3 * step))
    refuses(Unusable.GAP, "not evenly spaced", *files)


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing"])
def test_a_plate_whose_spacing_is_zero_is_a_picture_of_unknown_spacing(tmp_path: Path, keyword: str) -> None:
    path = write_slice(tmp_path / "cr.dcm", CUBE[0], None, Modality="CR", drop=["PixelSpacing"], **{keyword: [0, 0]})
    volume = read_series([path])
    assert not volume.placed
    assert volume.spacing_mm[:2] == (1.0, 1.0)
    np.testing.assert_array_equal(volume.picture, CUBE[0].astype(np.float32) - 1024)
    both = write_slice(tmp_path / "dx.dcm", CUBE[0], None, Modality="DX", PixelSpacing=[0, 0], ImagerPixelSpacing=[0.2, 0.1])
    assert read_series([both]).spacing_mm[:2] == (0.1, 0.2)


def test_a_placed_slice_whose_spacing_is_zero_is_refused_for_that(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "ct.dcm", CUBE[0], (0, 0, 0), PixelSpacing=[0, 0])
    refuses(Unusable.GEOMETRY, "has a position but a pixel spacing that is not above 0", path)
    path = write_slice(tmp_path / "ct.dcm", CUBE[0], (0, 0, 0), drop=["PixelSpacing"])
    refuses(Unusable.GEOMETRY, "has a position but no pixel spacing", path)


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
def test_an_infinite_rescale_is_refused(tmp_path: Path, name: str) -> None:
    path = write_slice(tmp_path / "a.dcm", CUBE[0], (0, 0, 0), **{name: "1e999"})
    refuses(Unusable.RESCALE, "is not finite", path)


@pytest.mark.parametrize("behind", [b"\xff", b"\xff\0", b"\xff\xff", b"\0\xff\0", b"\0\0"])
def test_fill_bytes_behind_the_end_of_a_jpeg_change_nothing(tmp_path: Path, behind: bytes) -> None:
    """As in pydicom's JPEG-LL and JPGExtended (ISO/IEC 10918-1, B.1.1.2); what ends early is still truncated."""
    grey = RNG.integers(0, 255, (32, 32)).astype(np.uint8)
    stream = imagecodecs.jpeg8_encode(grey, level=95)
    expected = imagecodecs.jpeg8_decode(stream)
    for more, whole in ((b"", True), (behind, True), (b"cut", False)):
        coded = stream + more if whole else stream[: len(stream) // 2] + behind
        coded += b"\0" * (len(coded) % 2)
        path = write_slice(
            tmp_path / "a.dcm",
            grey,
            None,
            coded=[coded],
            syntax="1.2.840.10008.1.2.4.50",
            Modality="OT",
            drop=["RescaleSlope", "RescaleIntercept"],
        )
        if whole:
            np.testing.assert_array_equal(read_series([path]).picture, expected.astype(np.float32))
        else:
            refuses(Unusable.TRUNCATED, "is truncated", path)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_segmentation_of_a_coarser_matrix_is_not_put_into_one_quadrant(tmp_path: Path, factor: int) -> None:
    voxels = RNG.integers(0, 4000, (3, 16, 16), dtype=np.uint16)
    volume = read_series(write_series(tmp_path / "i", voxels))
    drawn = np.ones((16 // factor, 16 // factor), np.uint8)
    frames = [(1, (-5.0, 7.0, 10 + 3.0 * k), drawn) for k in range(3)]
    with pytest.raises(ItemError, match=f"has 1/{factor} of its image's rows") as caught:
        read_seg(write_seg(tmp_path / "s.dcm", frames), volume)
    assert caught.value.reason is Unusable.MASK_MISMATCH
    with pytest.raises(ItemError, match="differ from those of its image in size"):  # with its own spacing: of another grid
        read_seg(write_seg(tmp_path / "s.dcm", frames, spacing=(2 * factor, 1.5 * factor)), volume)
    cropped = [(1, (-5.0 + 1.5 * 3, 7.0 + 2 * 2, 10.0), drawn)]  # a crop elsewhere is what it says
    mask, _ = read_seg(write_seg(tmp_path / "s.dcm", cropped), volume)
    assert mask[3 : 3 + len(drawn), 2 : 2 + len(drawn), 0].all()
    assert mask.sum() == drawn.sum()
