"""DICOM series and segmentations: the voxels and places of a hand-made reading, and a reason for whatever is no volume."""

from __future__ import annotations

import shutil
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.sequence import Sequence as Items

from fedml.cohort.dicom.files import frames, open_dataset
from fedml.cohort.dicom.folders import group_series
from fedml.cohort.dicom.segmentation import read_seg
from fedml.cohort.dicom.series import Volume, read_series
from fedml.cohort.images.reasons import ItemError, Unusable
from tests.conftest import public_data
from tests.dicom_files import AXIAL, REFERENCE, SERIES, edit, item, write_enhanced, write_seg, write_series, write_slice

RNG = np.random.default_rng(0)
CUBE = RNG.integers(0, 4000, (5, 6, 4), dtype=np.uint16)  # slices, rows, columns
REAL = ["UCSF-BR-06/image_dce_ser", "CMB-CRC-SCAN_001/adc_image"]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def refuses(reason: Unusable, read: Callable[[], Any]) -> None:
    with pytest.raises(ItemError) as caught:
        read()
    assert caught.value.reason is reason, str(caught.value)


def real(name: str) -> list[Path]:
    return sorted((public_data("dicom_mr") / name).glob("*.dcm"))


@pytest.mark.parametrize("name", REAL)
def test_real_series_have_the_voxels_and_places_of_a_reading_by_hand(name: str) -> None:
    """PS3.3 equation C.7.6.2.1-1 for each slice of the files, against the one affine of the volume."""
    files = real(name)
    volume = read_series(files)
    normal = np.cross(*np.array(pydicom.dcmread(files[0]).ImageOrientationPatient, float).reshape(2, 3))
    slices = sorted((pydicom.dcmread(p) for p in files), key=lambda d: float(normal @ np.array(d.ImagePositionPatient, float)))
    assert volume.voxels.shape == (slices[0].Columns, slices[0].Rows, len(files))
    assert volume.voxels.dtype == np.float32
    for k, one in enumerate(slices):
        expected = one.pixel_array * float(one.get("RescaleSlope", 1)) + float(one.get("RescaleIntercept", 0))
        np.testing.assert_array_equal(volume.voxels[:, :, k].T, expected.astype(np.float32))
        place = np.array(one.ImagePositionPatient, float)
        across, down = np.array(one.ImageOrientationPatient, float).reshape(2, 3)
        for column, row in ((0, 0), (17, 5), (one.Columns - 1, one.Rows - 1)):
            patient = place + across * float(one.PixelSpacing[1]) * column + down * float(one.PixelSpacing[0]) * row
            np.testing.assert_allclose((LPS @ volume.affine @ [column, row, k, 1])[:3], patient, atol=1e-4)
        assert volume.instances[k] == one.SOPInstanceUID
    gaps = {round(float(d), 3) for d in np.diff([normal @ np.array(s.ImagePositionPatient, float) for s in slices])}
    assert {round(volume.spacing_mm[2], 3)} == gaps
    assert volume.spacing_mm[:2] == (float(slices[0].PixelSpacing[1]), float(slices[0].PixelSpacing[0]))
    assert (volume.modality, volume.unit, volume.placed) == ("MR", "", True)
    assert (volume.series_uid, volume.frame_of_reference) == (slices[0].SeriesInstanceUID, slices[0].FrameOfReferenceUID)


@pytest.mark.parametrize("name", REAL)
def test_names_and_order_of_files_change_nothing(tmp_path: Path, name: str) -> None:
    files = real(name)
    for n, k in enumerate(RNG.permutation(len(files))):
        (tmp_path / f"d{n % 3}" / "deep").mkdir(parents=True, exist_ok=True)
        shutil.copy(files[k], tmp_path / f"d{n % 3}" / "deep" / f"IM{n:05d}")
    (tmp_path / "readme.txt").write_text("no image")
    grouped = group_series(tmp_path)
    one, other = read_series(files), read_series(next(iter(grouped.values())))
    assert list(grouped) == [one.series_uid]
    np.testing.assert_array_equal(one.voxels, other.voxels)
    np.testing.assert_array_equal(one.affine, other.affine)
    assert one.instances == other.instances


def test_monai_reads_the_same_image(tmp_path: Path) -> None:
    """Peer: MONAI's own DICOM reader, both brought to the same orientation by nibabel."""
    import nibabel
    from monai.data import PydicomReader

    files = real(REAL[0])
    for path in files:
        shutil.copy(path, tmp_path)
    reader = PydicomReader()
    data, about = reader.get_data(reader.read(tmp_path))
    volume = read_series(files)
    ours = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.voxels, volume.affine))
    theirs = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.asarray(data, dtype=np.float32), np.asarray(about["affine"])))
    np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)


def test_series_of_one_folder_are_distinguished_and_broken_files_are_named(tmp_path: Path) -> None:
    ours = write_series(tmp_path / "a" / "b", CUBE)
    other = write_series(tmp_path / "c", CUBE, SeriesInstanceUID="1.2.3")
    broken = tmp_path / "c" / "9.dcm"
    broken.write_bytes(ours[0].read_bytes()[:150])
    assert group_series(tmp_path) == {"": [broken], "1.2.3": sorted(other), SERIES: sorted(ours)}
    refuses(Unusable.MIXED_SERIES, lambda: read_series([*ours, *other]))
    refuses(Unusable.NOT_AN_IMAGE, lambda: read_series([]))


def test_ct_is_in_hounsfield_units_and_slices_keep_their_own_rescale(tmp_path: Path) -> None:
    files = [
        write_slice(tmp_path / f"{k}", plane, (0, 0, -2.0 * k), RescaleSlope=k + 1, RescaleIntercept=-k) for k, plane in enumerate(CUBE)
    ]
    volume = read_series(files)
    expected = np.stack([plane.T * (k + 1.0) - k for k, plane in enumerate(CUBE)], axis=-1)
    np.testing.assert_array_equal(volume.voxels, expected[:, :, ::-1].astype(np.float32))  # the last file lies lowest
    assert volume.unit == "HU"
    assert read_series(write_series(tmp_path / "us", CUBE, RescaleType="US")).unit == ""


def test_bits_outside_of_those_stored_are_cleared_and_the_sign_is_kept(tmp_path: Path) -> None:
    signed = RNG.integers(-2048, 2048, (1, 6, 4), dtype=np.int16)
    overlaid = ((signed & 0x0FFF) | (RNG.integers(0, 16, signed.shape) << 12)).astype(np.int16)
    volume = read_series(write_series(tmp_path, overlaid, bits=12))
    np.testing.assert_array_equal(volume.voxels[:, :, 0].T, signed[0] - 1024.0)


def test_monochrome1_is_turned_over_unless_it_is_in_units(tmp_path: Path) -> None:
    plain = {"photometric": "MONOCHROME1", "drop": ("RescaleSlope", "RescaleIntercept"), "bits": 12}
    picture = write_slice(tmp_path / "dx", CUBE[0], None, **plain, Modality="DX", ImagerPixelSpacing=[0.2, 0.1])
    dataset = pydicom.dcmread(picture)
    del dataset.PixelSpacing
    dataset.save_as(picture)
    volume = read_series([picture])
    np.testing.assert_array_equal(volume.picture, 4095.0 - CUBE[0])
    assert (volume.placed, volume.spacing_mm[:2]) == (False, (0.1, 0.2))
    in_units = read_series(write_series(tmp_path / "ct", CUBE, photometric="MONOCHROME1"))
    np.testing.assert_array_equal(in_units.voxels, CUBE.T - 1024.0)


def test_a_signed_and_rescaled_monochrome1_is_turned_over_within_its_own_range(tmp_path: Path) -> None:
    """12 signed bits, slope 2 and intercept 10: values run from -4086 to 4104, so a stored value s becomes -4086 + 4104 - (2 s + 10)."""
    stored = RNG.integers(-2048, 2048, (6, 4), dtype=np.int16)
    stored[0, :2] = -2048, 2047
    plain = {"photometric": "MONOCHROME1", "bits": 12, "Modality": "DX", "RescaleSlope": 2, "RescaleIntercept": 10, "RescaleType": "US"}
    found = read_series([write_slice(tmp_path / "film", stored, None, **plain)]).picture
    np.testing.assert_array_equal(found, 8.0 - 2.0 * stored)
    assert found[0, :2].tolist() == [4104, -4086], "the least stored value is the brightest"


def test_colours_are_rgb(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8)
    plain = {"drop": ("RescaleSlope", "RescaleIntercept"), "Modality": "XC"}
    np.testing.assert_array_equal(read_series([write_slice(tmp_path / "rgb", rgb, None, photometric="RGB", **plain)]).picture, rgb)
    grey = np.full((6, 4, 3), [90, 128, 128], dtype=np.uint8)  # YCbCr without colour
    found = read_series([write_slice(tmp_path / "ybr", grey, None, photometric="YBR_FULL", **plain)]).picture
    np.testing.assert_array_equal(found, np.full((6, 4, 3), 90))
    table = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 8] for c in ("Red", "Green", "Blue")}
    levels = np.arange(256, dtype=np.uint8)
    data = {"RedPaletteColorLookupTableData": levels.tobytes(), "GreenPaletteColorLookupTableData": levels[::-1].tobytes()}
    data["BluePaletteColorLookupTableData"] = bytes(256)
    index = RNG.integers(0, 256, (6, 4), dtype=np.uint8)
    found = read_series([write_slice(tmp_path / "palette", index, None, photometric="PALETTE COLOR", **plain, **table, **data)]).picture
    np.testing.assert_array_equal(found, np.stack([index, 255 - index, 0 * index], axis=-1))


def test_enhanced_frames_are_slices_with_their_own_rescale(tmp_path: Path) -> None:
    order = [3, 0, 4, 1, 2]
    path = write_enhanced(tmp_path / "e", CUBE[order], [(1, 2, 3.0 * k) for k in order], [(k + 1, -k) for k in order])
    volume = read_series([path])
    np.testing.assert_array_equal(volume.voxels, np.stack([p.T * (k + 1.0) - k for k, p in enumerate(CUBE)], -1).astype(np.float32))
    assert volume.spacing_mm == (1.5, 2.0, 3.0)
    refuses(Unusable.WRONG_LENGTH, lambda: read_series([edit(path, tmp_path / "lie", NumberOfFrames=6)]))
    twice = write_enhanced(tmp_path / "t", CUBE, [(1, 2, 3.0 * (k % 3)) for k in range(5)], [(1, 0)] * 5)
    refuses(Unusable.DUPLICATE_SLICES, lambda: read_series([twice]))


@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3), spacing=st.tuples(*[st.floats(0.2, 8)] * 3), origin=st.tuples(*[st.floats(-300, 300)] * 3),
    seed=st.integers(0, 999), tilt=st.floats(-0.4, 0.4),
)  # fmt: skip
@settings(max_examples=25)
def test_any_regular_grid_is_found_whatever_its_direction(
    tmp_path_factory: pytest.TempPathFactory, angles: Any, spacing: Any, origin: Any, seed: int, tilt: float
) -> None:
    from scipy.spatial.transform import Rotation

    folder = tmp_path_factory.mktemp("grid")
    along, down, normal = Rotation.from_euler("xyz", angles).as_matrix().T
    step = normal * spacing[2] + down * tilt  # a tilted gantry
    files = []
    for n, k in enumerate(np.random.default_rng(seed).permutation(len(CUBE))):
        place = [float(f"{v:.6f}") for v in np.array(origin) + k * step]
        axes = [float(f"{v:.8f}") for v in (*along, *down)]
        where = [float(f"{spacing[1]:.8f}"), float(f"{spacing[0]:.8f}")]
        files.append(write_slice(folder / f"{n}", CUBE[k], place, axes=axes, PixelSpacing=where, InstanceNumber=n))
    volume = read_series(files)
    np.testing.assert_array_equal(volume.voxels, CUBE.T - 1024.0)
    expected = np.stack([along * spacing[0], down * spacing[1], step, origin], axis=1)
    np.testing.assert_allclose(LPS[:3, :3] @ volume.affine[:3], expected, atol=1e-4)


def test_positions_rounded_to_tenths_are_still_a_grid(tmp_path: Path) -> None:
    files = [write_slice(tmp_path / f"{k}", CUBE[k % 5], (0, 0, round(0.625 * k, 1))) for k in range(40)]
    assert read_series(files).spacing_mm[2] == pytest.approx(0.625, abs=0.005)


@pytest.mark.parametrize(
    ("reason", "last"),
    [
        (Unusable.GAP, {"position": (-5, 7, 10 + 3 * 6)}),
        (Unusable.DUPLICATE_SLICES, {"position": (-5, 7, 10 + 3 * 2)}),
        (Unusable.GEOMETRY, {"position": (-5, 9, 10 + 3 * 5)}),
        (Unusable.MIXED_SERIES, {"axes": (0, 1, 0, 0, 0, -1)}),
        (Unusable.MIXED_SERIES, {"pixels": CUBE[0][:4]}),
        (Unusable.MIXED_SERIES, {"PixelSpacing": [2, 1.6]}),
        (Unusable.MIXED_SERIES, {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        (Unusable.MIXED_SERIES, {"photometric": "MONOCHROME1"}),
        (Unusable.MIXED_SERIES, {"FrameOfReferenceUID": "1.2.9"}),
        (Unusable.MIXED_SERIES, {"Modality": "MR"}),
        (Unusable.MIXED_SERIES, {"position": None}),
        (Unusable.RESCALE, {"drop": ("RescaleSlope", "RescaleIntercept")}),
        (Unusable.RESCALE, {"RescaleType": "US"}),
        (Unusable.RESCALE, {"RescaleSlope": 0}),
        (Unusable.GEOMETRY, {"axes": (1, 0, 0, 1, 0, 0)}),
        (Unusable.GEOMETRY, {"axes": (2, 0, 0, 0, 2, 0)}),
        (Unusable.GEOMETRY, {"PixelSpacing": [0, 1]}),
        (Unusable.GEOMETRY, {"drop": ("PixelSpacing",)}),
        (Unusable.TRUNCATED, {"drop": ("Rows", "Columns", "PixelData")}),
        (Unusable.TRUNCATED, {"drop": ("PixelData",)}),
        (Unusable.NON_FINITE, {"RescaleSlope": 1e38}),
        (Unusable.WRONG_LENGTH, {"Rows": 5}),
        (Unusable.WRONG_LENGTH, {"Rows": 0}),
        (Unusable.WRONG_LENGTH, {"BitsAllocated": 8, "BitsStored": 8}),
        (Unusable.TOO_LARGE, {"NumberOfFrames": 2_000_000_000}),
        (Unusable.GEOMETRY, {"NumberOfFrames": 2}),
    ],
    ids=lambda v: str(v)[:60],
)
def test_a_series_with_one_wrong_slice_is_refused_by_reason(tmp_path: Path, reason: Unusable, last: dict[str, Any]) -> None:
    files = write_series(tmp_path, CUBE)
    args = {"pixels": CUBE[0], "position": (-5, 7, 10 + 3 * 5), **last}
    wrong = write_slice(tmp_path / "last.dcm", args.pop("pixels"), args.pop("position"), **args)
    if reason in (Unusable.WRONG_LENGTH, Unusable.TOO_LARGE, Unusable.TRUNCATED, Unusable.NOT_AN_IMAGE):
        refuses(reason, lambda: read_series([wrong]))
    refuses(Unusable.MIXED_SERIES if last == {"Rows": 5} else reason, lambda: read_series([*files, wrong]))


def test_frames_without_positions_are_no_volume(tmp_path: Path) -> None:
    cine = write_slice(tmp_path / "us", CUBE, None, NumberOfFrames=5, Modality="US", drop=("RescaleSlope", "RescaleIntercept"))
    refuses(Unusable.GEOMETRY, lambda: read_series([cine]))


def coded(name: str, frame: np.ndarray[Any, Any], **options: Any) -> bytes:
    return bytes(getattr(imagecodecs, f"{name}_encode")(frame, **options))


J2K = {"codecformat": "j2k", "reversible": True, "level": 0}
CODINGS: list[tuple[str, str, dict[str, Any]]] = [
    (uid.JPEGLosslessSV1, "ljpeg", {"bitspersample": 12}),
    (uid.JPEGLossless, "jpeg8", {"lossless": True, "predictor": 6, "bitspersample": 12}),
    (uid.JPEGLSLossless, "jpegls", {}),
    (uid.JPEG2000Lossless, "jpeg2k", J2K),
    (uid.HTJ2KLossless, "htj2k", {}),
]


@pytest.mark.parametrize(("syntax", "name", "options"), CODINGS)
def test_lossless_codings_give_the_pixels_back(tmp_path: Path, syntax: str, name: str, options: dict[str, Any]) -> None:
    cube = RNG.integers(0, 4096, (3, 32, 40), dtype=np.uint16)
    files = [
        write_slice(tmp_path / f"{k}", plane, (0, 0, k), coded=[coded(name, plane, **options)], syntax=syntax, bits=12)
        for k, plane in enumerate(cube)
    ]
    np.testing.assert_array_equal(read_series(files).voxels, cube.T - 1024.0)
    whole = coded(name, cube[0], **options)
    cut = write_slice(tmp_path / "cut", cube[0], (0, 0, 0), coded=[whole[: len(whole) * 9 // 10]], syntax=syntax, bits=12)
    with pytest.raises(ItemError):
        read_series([cut])
    signed = (cube[0].astype(np.int16) - 2048) & 0x0FFF  # the scanner's 12 bits of two's complement
    path = write_slice(tmp_path / "s", signed.astype(np.int16), (0, 0, 0), coded=[coded(name, signed.astype(np.uint16), **options)],
                       syntax=syntax, bits=12)  # fmt: skip
    np.testing.assert_array_equal(read_series([path]).picture, cube[0] - 2048.0 - 1024.0)


def test_lossy_jpeg_colours_and_run_lengths(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(32) * 4, np.arange(40) * 3).astype(np.uint8)
    rgb = np.stack([smooth, smooth[::-1], 255 - smooth], axis=-1)
    plain: dict[str, Any] = {"drop": ("RescaleSlope", "RescaleIntercept"), "Modality": "XC"}
    for photometric, options in (("YBR_FULL_422", {}), ("RGB", {"colorspace": "RGB", "outcolorspace": "RGB"})):
        stream = coded("jpeg8", rgb, level=98, **options)
        path = write_slice(tmp_path / "j", rgb, None, coded=[stream], syntax=uid.JPEGBaseline8Bit, photometric=photometric, **plain)
        assert np.abs(read_series([path]).picture - rgb).max() < 12
    for photometric, name, syntax in (("YBR_RCT", "jpeg2k", uid.JPEG2000Lossless), ("RGB", "jpegls", uid.JPEGLSLossless)):
        stream = coded(name, rgb, **(J2K if name == "jpeg2k" else {}))
        path = write_slice(tmp_path / "l", rgb, None, coded=[stream], syntax=syntax, photometric=photometric, **plain)
        np.testing.assert_array_equal(read_series([path]).picture, rgb)
    dataset = pydicom.dcmread(write_slice(tmp_path / "r", CUBE[0], (0, 0, 0)))
    dataset.compress(uid.RLELossless)
    dataset.save_as(tmp_path / "rle")
    np.testing.assert_array_equal(read_series([tmp_path / "rle"]).picture, CUBE[0] - 1024.0)
    bomb = write_slice(tmp_path / "bomb", CUBE[0], (0, 0, 0), coded=[bytes(4096)], syntax=uid.RLELossless)
    refuses(Unusable.WRONG_LENGTH, lambda: read_series([bomb]))


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian])
def test_other_native_codings_give_the_same_pixels(tmp_path: Path, syntax: str) -> None:
    dataset = pydicom.dcmread(write_slice(tmp_path / "s", CUBE[0], (0, 0, 0)))
    if syntax == uid.ExplicitVRBigEndian:
        dataset.PixelData = CUBE[0].astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    big = syntax == uid.ExplicitVRBigEndian
    pydicom.dcmwrite(tmp_path / "n", dataset, implicit_vr=syntax == uid.ImplicitVRLittleEndian, little_endian=not big, force_encoding=True)
    np.testing.assert_array_equal(read_series([tmp_path / "n"]).picture, CUBE[0] - 1024.0)


def test_a_file_without_preamble_is_read_and_a_text_is_not(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "s", CUBE[0], (0, 0, 0))
    dataset = pydicom.dcmread(path)
    del dataset.file_meta
    dataset.save_as(tmp_path / "old", implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(read_series([tmp_path / "old"]).voxels, read_series([path]).voxels)
    (tmp_path / "note").write_text("a note " * 100)
    refuses(Unusable.NOT_AN_IMAGE, lambda: read_series([tmp_path / "note"]))
    refuses(Unusable.UNREADABLE, lambda: read_series([tmp_path / "absent"]))
    del dataset.Rows, dataset.Columns, dataset.PixelData
    dataset.save_as(tmp_path / "report", implicit_vr=True, little_endian=True)
    refuses(Unusable.NOT_AN_IMAGE, lambda: read_series([tmp_path / "report"]))


def test_what_cannot_be_decoded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = RNG.integers(0, 4096, (32, 40), dtype=np.uint16)
    stream = coded("jpeg2k", plane, **J2K)

    def written(data: list[bytes], syntax: str = uid.JPEG2000Lossless, **more: Any) -> list[Path]:
        return [write_slice(tmp_path / "c", plane, (0, 0, 0), coded=data, syntax=syntax, bits=12, **more)]

    assert read_series(written([stream])).voxels.shape == (40, 32, 1)
    refuses(Unusable.COMPRESSED, lambda: read_series(written([stream], uid.MPEG2MPML)))
    refuses(Unusable.COMPRESSED, lambda: read_series(written([stream[:60] + bytes(40)])))
    refuses(Unusable.WRONG_LENGTH, lambda: read_series(written([stream[40:]])))
    refuses(Unusable.WRONG_LENGTH, lambda: read_series(written([stream], Rows=31)))
    lie = written([stream, stream], NumberOfFrames=3)[0]
    refuses(Unusable.WRONG_LENGTH, lambda: list(frames(open_dataset(lie), lie)))
    huge = stream[:8] + struct.pack(">II", 60_000, 60_000) + stream[16:]
    tracemalloc.start()
    refuses(Unusable.WRONG_LENGTH, lambda: read_series(written([huge])))
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    refuses(Unusable.COMPRESSED, lambda: read_series(written([stream])))


def test_bombs_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "s", CUBE[0], (0, 0, 0))
    refuses(Unusable.TOO_LARGE, lambda: read_series([edit(path, tmp_path / "wide", Rows=65535, Columns=65535)]))
    refuses(Unusable.TOO_LARGE, lambda: read_series([path], max_mb=0))
    refuses(Unusable.GEOMETRY, lambda: read_series([edit(path, tmp_path / "film", Rows=1, Columns=1, NumberOfFrames=400_000_000)]))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "deflated", force_encoding=True, implicit_vr=False, little_endian=True)
    head = (tmp_path / "deflated").read_bytes()
    head = head[: 144 + int(pydicom.dcmread(tmp_path / "deflated").file_meta.FileMetaInformationGroupLength)]
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = squeeze.compress(bytes(2**26)) + squeeze.flush()
    (tmp_path / "bomb").write_bytes(head + bomb)
    tracemalloc.start()
    refuses(Unusable.TOO_LARGE, lambda: read_series([tmp_path / "bomb"], max_mb=8))
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()
    (tmp_path / "cut").write_bytes(head + bomb[: len(bomb) // 2])
    refuses(Unusable.TRUNCATED, lambda: read_series([tmp_path / "cut"]))


@pytest.mark.parametrize("deep", [300, 5000])
def test_sequences_in_sequences_end_in_a_reason(tmp_path: Path, deep: int) -> None:
    plain = write_slice(tmp_path / "s", CUBE[0], (0, 0, 0))
    nest = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    data = plain.read_bytes()
    (tmp_path / "deep").write_bytes(data[: data.index(b"\xe0\x7f\x10\x00")] + nest * deep)
    refuses(Unusable.UNREADABLE, lambda: open_dataset(tmp_path / "deep"))
    with pytest.raises(ItemError):
        read_series([tmp_path / "deep"])


@given(data=st.data())
@settings(max_examples=150)
def test_a_damaged_file_gives_a_volume_or_a_reason(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    name = data.draw(st.sampled_from(["slice", "enhanced", "jpegls"]))
    path = {
        "slice": lambda: write_slice(folder / "s", CUBE[0], (0, 0, 0)),
        "enhanced": lambda: write_enhanced(folder / "e", CUBE, [(0, 0, k) for k in range(5)], [(1, 0)] * 5),
        "jpegls": lambda: write_slice(folder / "j", CUBE[0], (0, 0, 0), coded=[coded("jpegls", CUBE[0])], syntax=uid.JPEGLSLossless),
    }[name]()
    whole = bytearray(path.read_bytes())
    cut = data.draw(st.integers(0, len(whole)) | st.just(len(whole)))
    for at in data.draw(st.lists(st.integers(128, len(whole) - 1), max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(whole[:cut]))
    try:
        volume = read_series([path])
    except ItemError:
        return
    assert np.isfinite(volume.voxels).all()


@given(cut=st.integers(1, 400))
@settings(max_examples=25)
def test_a_cut_file_is_never_read_as_whole(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = write_slice(tmp_path_factory.mktemp("cut") / "s", CUBE[0], (0, 0, 0))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ItemError):
        read_series([path])


# Segmentations


def ct(folder: Path) -> Volume:
    return read_series(write_series(folder, CUBE))


def plane(*marked: tuple[int, int], shape: tuple[int, int] = (6, 4)) -> np.ndarray[Any, Any]:
    out = np.zeros(shape, dtype=np.uint8)
    for row, column in marked:
        out[row, column] = 1
    return out


def at(k: float, x: float = -5.0, y: float = 7.0) -> tuple[float, float, float]:
    return x, y, 10 + 3.0 * k


def marks(mask: np.ndarray[Any, Any]) -> set[tuple[int, ...]]:
    return {tuple(int(v) for v in (*where, mask[tuple(where)])) for where in np.argwhere(mask)}


def test_the_real_segmentation_lies_where_a_reading_by_hand_puts_it() -> None:
    volume = read_series(real(REAL[0]))
    path = public_data("dicom_mr") / "UCSF-BR-06" / "mask" / "1-1.dcm"
    mask, labels = read_seg(path, volume)
    seg = pydicom.dcmread(path)
    expected = np.zeros(volume.voxels.shape, dtype=np.uint8)
    slices = {float(pydicom.dcmread(p).ImagePositionPatient[0]): p for p in real(REAL[0])}
    by_uid = {u: k for k, u in enumerate(volume.instances)}
    for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        x = float(group.PlanePositionSequence[0].ImagePositionPatient[0])
        near = min(slices, key=lambda other: abs(other - x))  # sagittal: the slice at the same x
        assert abs(near - x) < 0.01
        k = by_uid[pydicom.dcmread(slices[near]).SOPInstanceUID]
        expected[:, :, k] = (frame >= 127.5).T
    np.testing.assert_array_equal(mask, expected)
    assert (len(seg.PerFrameFunctionalGroupsSequence), mask.any(axis=(0, 1)).sum(), volume.voxels.shape[2]) == (42, 42, 60)
    assert labels == {1: "Breast"}


def test_frames_are_placed_by_position_and_packed_bits_may_end_within_a_byte(tmp_path: Path) -> None:
    volume = ct(tmp_path / "ct")
    path = write_seg(tmp_path / "seg", [(2, at(3), plane((5, 1))), (1, at(0), plane((0, 0), (4, 2))), (1, at(3), plane((2, 3)))])
    mask, labels = read_seg(path, volume)
    assert marks(mask) == {(1, 5, 3, 2), (0, 0, 0, 1), (2, 4, 0, 1), (3, 2, 3, 1)}
    assert labels == {1: "part 1", 2: "part 2"}
    odd = read_series(write_series(tmp_path / "odd", CUBE[:, :5, :3]))
    small = [(1, at(k), plane((k, 2), shape=(5, 3))) for k in (4, 1, 2)]
    assert marks(read_seg(write_seg(tmp_path / "s", small), odd)[0]) == {(2, 4, 4, 1), (2, 1, 1, 1), (2, 2, 2, 1)}


@pytest.mark.parametrize("off", [(0.75, 1.0, 0.0), (-0.75, -1.0, 0.0), (0.3, 0.0, 1.2), (0.0, 0.0, -1.4)])
def test_an_origin_off_by_half_a_voxel_moves_nothing(tmp_path: Path, off: tuple[float, float, float]) -> None:
    x, y, z = at(2)
    path = write_seg(tmp_path / "seg", [(1, (x + off[0], y + off[1], z + off[2]), plane((3, 1)))])
    assert marks(read_seg(path, ct(tmp_path / "ct"))[0]) == {(1, 3, 2, 1)}


@pytest.mark.parametrize(
    "change",
    [
        {"position": at(2, x=-5 + 0.8)},
        {"position": at(2, y=7 - 1.1)},
        {"position": at(2.5)},
        {"position": at(5)},
        {"position": at(-1)},
        {"spacing": (2.3, 1.5)},
        {"axes": (0, 1, 0, 1, 0, 0)},
        {"axes": (0.9553365, 0.2955202, 0, -0.2955202, 0.9553365, 0)},
        {"FrameOfReferenceUID": "1.2.9"},
        {"ReferencedSeriesSequence": Items([item(SeriesInstanceUID="1.2.9")])},
    ],
    ids=str,
)
def test_a_mask_of_another_place_or_image_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write_seg(tmp_path / "seg", [(1, change.pop("position", at(2)), plane((3, 1)))], **change)
    refuses(Unusable.MASK_MISMATCH, lambda: read_seg(path, ct(tmp_path / "ct")))


def test_its_own_series_and_slice_are_held_against_it(tmp_path: Path) -> None:
    volume = ct(tmp_path / "ct")
    own = Items([item(SeriesInstanceUID=SERIES)])
    good = write_seg(tmp_path / "g", [(1, at(2), plane((3, 1)))], sources=[volume.instances[2]], ReferencedSeriesSequence=own)
    assert marks(read_seg(good, volume)[0]) == {(1, 3, 2, 1)}
    shifted = write_seg(tmp_path / "b", [(1, at(3), plane((3, 1)))], sources=[volume.instances[2]])
    refuses(Unusable.MASK_MISMATCH, lambda: read_seg(shifted, volume))
    assert str(REFERENCE) == volume.frame_of_reference


def test_flipped_and_cropped_frames_find_their_voxels(tmp_path: Path) -> None:
    volume = ct(tmp_path / "ct")
    flipped = write_seg(tmp_path / "f", [(1, at(1, x=-5 + 3 * 1.5, y=7 + 5 * 2), plane((0, 0), (1, 2)))], axes=(-1, 0, 0, 0, -1, 0))
    assert marks(read_seg(flipped, volume)[0]) == {(3, 5, 1, 1), (1, 4, 1, 1)}
    cropped = write_seg(tmp_path / "c", [(1, at(1, x=-5 + 1.5, y=7 + 2 * 2), plane((0, 0), (1, 1), shape=(3, 2)))])
    assert marks(read_seg(cropped, volume)[0]) == {(1, 2, 1, 1), (2, 3, 1, 1)}
    outside = write_seg(tmp_path / "o", [(1, at(1, x=-5 + 3 * 1.5), plane((0, 1), shape=(3, 2)))])
    refuses(Unusable.MASK_MISMATCH, lambda: read_seg(outside, volume))


def test_overlapping_segments_need_an_order(tmp_path: Path) -> None:
    volume = ct(tmp_path / "ct")
    path = write_seg(tmp_path / "seg", [(2, at(1), plane((1, 1))), (1, at(1), plane((1, 1), (2, 2)))])
    refuses(Unusable.OVERLAPPING_SEGMENTS, lambda: read_seg(path, volume))
    assert marks(read_seg(path, volume, segments=[1, 2])[0]) == {(1, 1, 1, 2), (2, 2, 1, 1)}
    assert marks(read_seg(path, volume, segments=[2, 1])[0]) == {(1, 1, 1, 1), (2, 2, 1, 1)}
    assert read_seg(path, volume, segments=[2])[1] == {2: "part 2"}
    refuses(Unusable.MASK_MISMATCH, lambda: read_seg(path, volume, segments=[7]))
    twice = write_seg(tmp_path / "t", [(1, at(1), plane((1, 1))), (1, at(1), plane((2, 2)))])
    refuses(Unusable.DUPLICATE_SLICES, lambda: read_seg(twice, volume))


def test_fractional_segments_begin_at_half_and_label_maps_are_read(tmp_path: Path) -> None:
    volume = ct(tmp_path / "ct")
    shares = np.zeros((6, 4), dtype=np.uint8)
    shares[0, :3] = 127, 128, 255
    path = write_seg(tmp_path / "f", [(1, at(0), shares)], kind="FRACTIONAL")
    assert marks(read_seg(path, volume)[0]) == {(1, 0, 0, 1), (2, 0, 0, 1)}
    labels = np.zeros((6, 4), dtype=np.uint8)
    labels[2, 1], labels[3, 2] = 4, 9
    path = write_seg(tmp_path / "l", [(0, at(4), labels)], kind="LABELMAP")
    assert marks(read_seg(path, volume)[0]) == {(1, 2, 4, 4), (2, 3, 4, 9)}
    assert marks(read_seg(path, volume, segments=[9])[0]) == {(2, 3, 4, 9)}


def test_an_image_is_no_segmentation_and_the_other_way_round(tmp_path: Path) -> None:
    files = write_series(tmp_path / "ct", CUBE)
    seg = write_seg(tmp_path / "seg", [(1, at(1), plane((1, 1)))], axes=AXIAL)
    refuses(Unusable.NOT_AN_IMAGE, lambda: read_seg(files[0], read_series(files)))
    refuses(Unusable.NOT_AN_IMAGE, lambda: read_series([seg]))
