"""Multi-frame files without functional groups: reconstructions of nuclear medicine at their places, cine as times, other views refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.sequence import Sequence as Items

from fedml.cohort.dicom.grid import RAS
from fedml.cohort.dicom.series import read_series, read_volumes
from fedml.cohort.found_images import ImageRules
from fedml.cohort.images.reasons import ItemError, TooManyExcluded, Unusable
from fedml.cohort.read_images import read_images
from fedml.study.cohort_section import ImageShape
from tests.dicom_files import AXIAL, item, write_slice

RNG = np.random.default_rng(3)
VOXELS = RNG.integers(0, 3000, (6, 5, 4)).astype(np.int16)  # frames, rows, columns
NM = "1.2.840.10008.5.1.4.1.1.20"
OBLIQUE = (0.8, 0.6, 0, -0.36, 0.48, -0.8)
FIRST = (-5.0, 7.0, 10.0)
ABOUT = {"PatientIdentityRemoved": "YES", "PatientID": "p", "BurnedInAnnotation": "NO"}


def write(path: Path, *, axes: Any = AXIAL, step: float | None = 2.5, detector: bool = True, **changes: Any) -> Path:
    """A tomographic reconstruction of nuclear medicine."""
    about: dict[str, Any] = {
        "Modality": "NM", "SOPClassUID": NM, "NumberOfFrames": len(VOXELS), "ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"],
        "FrameIncrementPointer": [0x00540080], "SliceVector": list(range(1, len(VOXELS) + 1)), "RescaleSlope": 1, "RescaleIntercept": 0,
        "PixelSpacing": [2, 2], "SliceThickness": 2.5, **ABOUT,
    }  # fmt: skip
    if step is not None:
        about["SpacingBetweenSlices"] = step
    if detector:
        about["DetectorInformationSequence"] = Items([item(ImagePositionPatient=list(FIRST), ImageOrientationPatient=list(axes))])
    write_slice(path, VOXELS, None, **{**about, **changes})
    dataset = pydicom.dcmread(path)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(path)
    return path


def refused(word: str, do: Callable[[], Any], reason: Unusable = Unusable.GEOMETRY) -> None:
    with pytest.raises(ItemError, match=word) as caught:
        do()
    assert caught.value.reason is reason


@pytest.mark.parametrize("axes", [AXIAL, (0, 1, 0, 0, 0, -1), OBLIQUE])
@pytest.mark.parametrize("step", [2.5, -2.5])
def test_slices_of_a_reconstruction_lie_where_the_file_says(tmp_path: Path, axes: Any, step: float) -> None:
    volume = read_series([write(tmp_path / "p.dcm", axes=axes, step=step)])
    normal = np.cross(axes[:3], axes[3:])
    lps = RAS @ volume.affine
    for frame in range(6):
        place = np.array(FIRST) + frame * step * normal
        at = np.rint(np.linalg.solve(lps[:3, :3], place - lps[:3, 3])).astype(int)
        np.testing.assert_allclose(lps[:3, :3] @ at + lps[:3, 3], place, atol=1e-4)
        assert at[:2].tolist() == [0, 0]
        np.testing.assert_array_equal(volume.voxels[:, :, at[2]].T, VOXELS[frame])
    assert volume.placed


def test_slice_numbers_say_which_frame_is_which(tmp_path: Path) -> None:
    order = [3, 1, 2, 6, 5, 4]
    volume = read_series([write(tmp_path / "p.dcm", SliceVector=order)])
    for frame, number in enumerate(order):
        np.testing.assert_array_equal(volume.voxels[:, :, number - 1].T, VOXELS[frame])


def test_simpleitk_reads_it_alike(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (pip install simpleitk)")
    path = write(tmp_path / "p.dcm", FrameOfReferenceUID="1.2.3", InstanceNumber=1)
    image, volume = sitk.ReadImage(str(path)), read_series([path])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), volume.voxels)
    lps = RAS @ volume.affine
    np.testing.assert_allclose(image.GetOrigin(), lps[:3, 3], atol=1e-6)
    np.testing.assert_allclose(np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing(), lps[:3, :3], atol=1e-6)


def test_what_is_no_volume_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "p.dcm"

    def no(word: str, reason: Unusable = Unusable.GEOMETRY, **changes: Any) -> None:
        refused(word, lambda: read_series([write(path, **changes)]), reason)

    no("no slices of one volume", ImageType=["ORIGINAL", "PRIMARY", "DYNAMIC", "EMISSION"])
    no(r"\(whole body\)", ImageType=["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"])
    no("not the slices 1 to 6", FrameIncrementPointer=[0x00540070, 0x00540080])
    no("not the slices 1 to 6", SliceVector=[1, 2, 3, 1, 2, 3])
    no("does not state", step=None)
    no("does not state", step=0.0)
    no("does not state", detector=False)
    no("twice, and differently", ImagePositionPatient=[1, 2, 3])
    no("one position", Modality="XA", ImagePositionPatient=[1, 2, 3], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    no("is a dose of radiotherapy", Unusable.NOT_AN_IMAGE, Modality="RTDOSE")
    no("several frames or files without positions", Modality="XA")


def read(folder: Path, size: tuple[int, ...], **shape: Any) -> Any:
    rules = ImageRules(max_quarantined=0.0)
    return read_images(folder / "i", "dicom", ["p"], ImageShape(size=size, **shape), rules=rules).pixels[0]


def test_cine_by_the_rule_of_the_study(tmp_path: Path) -> None:
    write(tmp_path / "i" / "p.dcm", Modality="XA", SOPClassUID="1.2.840.10008.5.1.4.1.1.12.1", ImageType=["ORIGINAL", "PRIMARY"])
    volumes, apart = read_volumes([tmp_path / "i" / "p.dcm"])
    assert (len(volumes), apart) == (6, "time")
    with pytest.raises(TooManyExcluded, match="has 6 volumes"):
        read(tmp_path, (5, 4))
    np.testing.assert_array_equal(read(tmp_path, (5, 4), volumes=3)[0], VOXELS[2])
    np.testing.assert_array_equal(read(tmp_path, (5, 4), volumes="channels", channels=6), VOXELS)
    np.testing.assert_allclose(read(tmp_path, (5, 4), volumes="mean")[0], VOXELS.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(read(tmp_path, (4, 5, 6), volumes="stack")[0], VOXELS.transpose(2, 1, 0))
    with pytest.raises(TooManyExcluded, match="has no affine"):  # a stack lies at no known place
        read(tmp_path, (4, 5, 6), volumes="stack", spacing_mm=(1, 1, 1))


def test_a_stack_is_not_made_of_frames_with_positions(tmp_path: Path) -> None:
    for k, plane in enumerate(VOXELS):
        more = {"TemporalPositionIdentifier": k // 3 + 1, **ABOUT}
        write_slice(tmp_path / "i" / "p" / f"{k}.dcm", plane, (0.0, 0.0, 3.0 * (k % 3)), Modality="MR", RescaleIntercept=0, **more)
    assert read(tmp_path, (4, 5, 3), volumes=2).shape == (1, 4, 5, 3)
    with pytest.raises(TooManyExcluded, match="frames without positions"):
        read(tmp_path, (4, 5, 6), volumes="stack")


def test_palettes_of_sixteen_bits_are_colours_from_0_to_255() -> None:
    files = Path(pydicom.__file__).parent / "data" / "test_files"
    path = next(files.rglob("examples_palette.dcm"), None)
    if path is None:
        pytest.skip("pydicom's test files are not installed")
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (pip install simpleitk)")
    np.testing.assert_array_equal(read_series([path]).picture, sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0])
