"""MetaImage and NRRD against SimpleITK, TIFF against tifffile; headers that promise more than there is, and voxels in other places."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from fedml.cohort.found_images import ImageRules, found_images
from fedml.cohort.images.formats import FORMATS, by_ending
from fedml.cohort.images.reasons import ItemError, TooManyExcluded, Unusable
from fedml.cohort.read_images import read_images
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape

RNG = np.random.default_rng(17)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
TURNED = (0.8, -0.36, 0.48, 0.6, 0.48, -0.64, 0.0, 0.8, 0.6)


@pytest.fixture
def sitk() -> Any:
    return pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (pip install simpleitk)")


def refused(reason: Unusable, word: str, path: Path, size: Any = None) -> None:
    form = by_ending(path)
    assert form is not None
    with pytest.raises(ItemError, match=word) as caught:
        form.read(path) if size is None else form.mask(path, size)  # type: ignore[misc]
    assert (caught.value.reason, str(caught.value).startswith("/")) == (reason, True)


KINDS = [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.float32, np.float64]


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_simpleitk_writes_is_read_as_it_reads_it(tmp_path: Path, sitk: Any, ending: str, compressed: bool, kind: Any) -> None:
    values = RNG.integers(0, 120, (5, 6, 7)).astype(kind)  # slices, rows, columns
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.7, 1.3, 2.5))
    image.SetOrigin((-11.0, 23.5, 4.25))
    image.SetDirection(TURNED)
    path = tmp_path / f"p{ending}"
    sitk.WriteImage(image, str(path), useCompression=compressed)
    back = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(back.GetDirection()).reshape(3, 3) @ np.diag(back.GetSpacing())
    affine[:3, 3] = back.GetOrigin()
    voxels, own = by_ending(path).read(path)  # type: ignore[union-attr]
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(back).transpose(2, 1, 0))
    np.testing.assert_allclose(own, LPS @ affine, atol=1e-9)
    others = by_ending(path).others(path)  # type: ignore[union-attr,misc]
    assert len(others) == (1 if ending in (".mhd", ".nhdr") else 0)


def test_channels_and_pictures_of_metaimage(tmp_path: Path, sitk: Any) -> None:
    colour = RNG.integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    path = tmp_path / "p.mha"
    sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), str(path))
    np.testing.assert_array_equal(FORMATS["mha"].read(path)[0], colour.transpose(2, 1, 0, 3))
    flat = sitk.GetImageFromArray(colour[0, ..., 0])
    flat.SetSpacing((0.5, 0.25))
    sitk.WriteImage(flat, str(path))
    voxels, affine = FORMATS["mha"].read(path)
    np.testing.assert_array_equal(voxels, colour[0, ..., 0].T)
    np.testing.assert_array_equal(affine, np.diag([0.5, 0.25, 1, 1]))


HEAD = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
    "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 2\nDimSize = 4 3 2\nElementType = MET_SHORT\n"
    "ElementDataFile = LOCAL\n"
)  # fmt: skip
BODY = np.arange(24, dtype="<i2").tobytes()


@pytest.mark.parametrize(
    ("reason", "word", "change"),
    [
        (Unusable.TRUNCATED, "cut short, 46 of 48", lambda h, b: (h, b[:-2])),
        (Unusable.WRONG_LENGTH, "more than the 48 bytes", lambda h, b: (h, b + b"\1")),
        (Unusable.TRUNCATED, "no ElementDataFile", lambda h, b: (h[:80], b"")),
        (Unusable.NOT_AN_IMAGE, "is not MetaImage", lambda h, b: ("NRRD0004\n", b)),
        (Unusable.TOO_LARGE, "declares", lambda h, b: (h.replace("4 3 2", "40000 30000 20000"), b)),
        (Unusable.WRONG_LENGTH, "on 3 axes", lambda h, b: (h.replace("4 3 2", "4 3"), b)),
        (Unusable.WRONG_LENGTH, "declares", lambda h, b: (h.replace("4 3 2", "4 3 -2"), b)),
        (Unusable.UNREADABLE, "not made of numbers", lambda h, b: (h.replace("4 3 2", "4 3 two"), b)),
        (Unusable.GEOMETRY, "spacing that is not above 0", lambda h, b: (h.replace("1 1 2", "1 0 2"), b)),
        (Unusable.GEOMETRY, "finite numbers", lambda h, b: (h.replace("1 1 2", "1 nan 2"), b)),
        (Unusable.GEOMETRY, "orthogonal unit vectors", lambda h, b: (h.replace("1 0 0 0 1 0", "1 0 0 1 0 0"), b)),
        (Unusable.GEOMETRY, "no ElementSpacing", lambda h, b: (h.replace("ElementSpacing = 1 1 2\n", ""), b)),
        (Unusable.UNREADABLE, "little or big endian", lambda h, b: (h.replace("BinaryDataByteOrderMSB = False\n", ""), b)),
        (Unusable.UNREADABLE, "has Offset twice", lambda h, b: (h.replace("Offset = 0 0 0\n", "Offset = 0 0 0\nOrigin = 1 1 1\n"), b)),
        (Unusable.NOT_AN_IMAGE, "not plain numbers", lambda h, b: (h.replace("MET_SHORT", "MET_LONG"), b)),
        (Unusable.NOT_AN_IMAGE, "no image in binary", lambda h, b: (h.replace("BinaryData = True", "BinaryData = False"), b)),
        (Unusable.RESCALE, "a slope", lambda h, b: (h.replace("NDims", "ElementToIntensityFunctionSlope = 2\nNDims"), b)),
        (Unusable.UNREADABLE, "HeaderSize", lambda h, b: (h.replace("NDims", "HeaderSize = 12\nNDims"), b)),
        (Unusable.UNREADABLE, "not in its own folder", lambda h, b: (h.replace("LOCAL", "../p.raw"), b"")),
        (Unusable.UNREADABLE, "not in its own folder", lambda h, b: (h.replace("LOCAL", "/etc/passwd"), b"")),
        (Unusable.UNREADABLE, "not in its own folder", lambda h, b: (h.replace("LOCAL", "LIST"), b"")),
    ],
)
def test_metaimage_headers_that_do_not_hold(tmp_path: Path, reason: Unusable, word: str, change: Callable[..., Any]) -> None:
    path = tmp_path / "p.mha"
    path.write_bytes(HEAD.encode() + BODY)
    np.testing.assert_array_equal(FORMATS["mha"].read(path)[0].ravel(order="F"), np.arange(24))
    header, body = change(HEAD, BODY)
    path.write_bytes(header.encode() + body)
    refused(reason, word, path)


def test_voxels_beside_a_header_are_those_of_its_person(tmp_path: Path) -> None:
    folder = tmp_path / "i"
    folder.mkdir()
    secret = tmp_path / "other.raw"
    secret.write_bytes(BODY)
    for person in ("p", "q"):
        (folder / f"{person}.mhd").write_text(HEAD.replace("LOCAL", f"{person}.raw"))
        (folder / f"{person}.raw").write_bytes(BODY)
    (read,) = found_images(folder, "mha", ["p"], None)
    assert read.files == (folder / "p.mhd", folder / "p.raw")
    assert read.load().image.shape == (1, 4, 3, 2)
    (folder / "p.mhd").write_text(HEAD.replace("LOCAL", "q.raw"))
    refused(Unusable.UNREADABLE, "voxels of another name", folder / "p.mhd")
    (folder / "q.mhd").unlink()
    assert FORMATS["mha"].read(folder / "p.mhd")[0].shape == (4, 3, 2)  # the only header of the folder
    (folder / "p.raw").unlink()
    (folder / "p.raw").symlink_to(secret)
    (folder / "p.mhd").write_text(HEAD.replace("LOCAL", "p.raw"))
    refused(Unusable.UNREADABLE, "not in its own folder", folder / "p.mhd")
    (folder / "p.raw").unlink()
    (folder / "p.raw").write_bytes(bytes(2**18))
    refused(Unusable.WRONG_LENGTH, "more than the 48 bytes", folder / "p.mhd")


def test_compressed_metaimage_within_bounds(tmp_path: Path) -> None:
    import zlib

    path = tmp_path / "p.mha"
    packed = zlib.compress(BODY)
    head = HEAD.replace("CompressedData = False", f"CompressedData = True\nCompressedDataSize = {len(packed)}")
    path.write_bytes(head.encode() + packed)
    assert FORMATS["mha"].read(path)[0][3, 2, 1] == 23
    path.write_bytes(head.encode() + packed[:-3])
    refused(Unusable.TRUNCATED, "states .* bytes of compressed", path)
    plain = head.replace(f"CompressedDataSize = {len(packed)}\n", "")
    path.write_bytes(plain.encode() + packed[:-3])
    refused(Unusable.TRUNCATED, "cut short", path)
    path.write_bytes(plain.encode() + packed[:10] + bytes([packed[10] ^ 8]) + packed[11:])
    refused(Unusable.UNREADABLE, "damaged", path)
    bomb = zlib.compress(bytes(2**28), 9)
    path.write_bytes(plain.replace("4 3 2", "512 512 512").encode() + bomb)
    refused(Unusable.TOO_LARGE, "decompresses to", path)
    path.write_bytes(plain.encode() + bomb[:10_000])
    refused(Unusable.WRONG_LENGTH, "more than the 48", path)
    refused(Unusable.MASK_MISMATCH, "its image", path, (4, 3, 3))


def test_nrrd_in_bzip2(tmp_path: Path) -> None:
    import bz2

    path = tmp_path / "p.nrrd"
    head = b"NRRD0004\ntype: int16\ndimension: 3\nsizes: 4 3 2\nendian: little\nencoding: bzip2\n\n"
    path.write_bytes(head + bz2.compress(BODY))
    np.testing.assert_array_equal(FORMATS["nrrd"].read(path)[0].ravel(order="F"), np.arange(24))
    path.write_bytes(head + bz2.compress(BODY)[:-4])
    refused(Unusable.TRUNCATED, "cut short", path)
    path.write_bytes(head + bz2.compress(bytes(2**26)))
    refused(Unusable.WRONG_LENGTH, "more than the 48", path)


OPTIONS: list[dict[str, Any]] = [
    {}, {"compression": "zlib"}, {"compression": "lzw"}, {"compression": "zstd"}, {"compression": "zlib", "predictor": True},
    {"tile": (16, 32)}, {"tile": (16, 16), "compression": "lzw", "predictor": True}, {"rowsperstrip": 7}, {"bigtiff": True},
    {"byteorder": ">", "compression": "zlib", "predictor": True}, {"compression": "packbits"},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32])
def test_tiff_as_tifffile_writes_it(tmp_path: Path, options: dict[str, Any], kind: Any) -> None:
    if kind is np.float32 and options.get("byteorder") == ">":
        pytest.skip("tifffile does not write it")
    path = tmp_path / "p.tif"
    picture = RNG.integers(0, 200, (45, 37)).astype(kind)
    colour = RNG.integers(0, 200, (45, 37, 3)).astype(kind)
    stack = RNG.integers(0, 200, (5, 45, 37)).astype(kind)
    for values, more in ((picture, {}), (colour, {"photometric": "rgb"}), (colour.transpose(2, 0, 1), {"photometric": "rgb"})):
        tifffile.imwrite(path, values, metadata=None, **options, **more)
        voxels, affine = FORMATS["tiff"].read(path)
        own = tifffile.imread(path)
        np.testing.assert_array_equal(voxels, own if own.ndim == 2 or own.shape[-1] == 3 else own.transpose(1, 2, 0))
        assert affine is None
    tifffile.imwrite(path, stack, photometric="minisblack", metadata=None, **options)
    np.testing.assert_array_equal(FORMATS["tiff"].read(path)[0], tifffile.imread(path).transpose(2, 1, 0)[..., None])


@pytest.mark.parametrize("order", ["TZCYX", "ZCYX", "CZYX", "ZYX", "CYX", "TYX"])
def test_ome_tiff_says_which_page_is_which_plane(tmp_path: Path, order: str) -> None:
    sizes = {"T": 1 if "Z" in order else 4, "Z": 5, "C": 3, "Y": 20, "X": 30}
    values = RNG.integers(0, 60_000, [sizes[axis] for axis in order]).astype(np.uint16)
    path = tmp_path / "p.ome.tif"
    about = {"axes": order, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2.0, "PhysicalSizeZUnit": "µm"}
    tifffile.imwrite(path, values, ome=True, photometric="minisblack", metadata=about)
    voxels, affine = FORMATS["tiff"].read(path)
    with tifffile.TiffFile(path) as file:
        assert file.series[0].axes == order.replace("T", "") if sizes["T"] == 1 else order
        read, axes = file.series[0].asarray(squeeze=False), file.series[0].get_axes(squeeze=False)
    moved = np.moveaxis(read, [axes.index(axis) for axis in "TZCYX"], range(5))
    full = moved.reshape(moved.shape[:5])
    if "Z" in order:
        np.testing.assert_array_equal(voxels, full[0].transpose(3, 2, 0, 1))
        np.testing.assert_allclose(affine, np.diag([0.0005, 0.00025, 0.002, 1]))
    else:
        planes = full[:, 0].reshape(-1, 20, 30)
        np.testing.assert_array_equal(voxels, planes.transpose(1, 2, 0))
        np.testing.assert_allclose(affine, np.diag([0.00025, 0.0005, 1, 1]))


def test_imagej_stacks(tmp_path: Path) -> None:
    path = tmp_path / "p.tif"
    for axes, shape, expected in (("ZYX", (4, 9, 8), (8, 9, 4, 1)), ("ZCYX", (4, 2, 9, 8), (8, 9, 4, 2)), ("CYX", (2, 9, 8), (9, 8, 2))):
        values = RNG.integers(0, 200, shape).astype(np.uint8)
        tifffile.imwrite(path, values, imagej=True, metadata={"axes": axes})
        voxels = FORMATS["tiff"].read(path)[0]
        assert voxels.shape == expected
        np.testing.assert_array_equal(voxels, {"ZYX": lambda v: v.transpose(2, 1, 0)[..., None], "ZCYX": lambda v: v.transpose(3, 2, 0, 1),
                                               "CYX": lambda v: v.transpose(1, 2, 0)}[axes](values))  # fmt: skip


def place_of(data: bytes, field: int) -> int:
    """Where the number of a tag of the first directory is."""
    return next(at for kind in (3, 4) if (at := data.find(struct.pack("<HHI", field, kind, 1))) >= 0) + 8


def test_tiff_that_does_not_hold_what_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "p.tif"
    values = RNG.integers(0, 60_000, (3, 40, 50)).astype(np.uint16)

    def write(**options: Any) -> bytes:
        tifffile.imwrite(path, values, photometric="minisblack", metadata=None, **options)
        return path.read_bytes()

    whole = write(compression="zlib")
    for cut in (len(whole) // 3, len(whole) - 5):
        path.write_bytes(whole[:cut])
        refused(Unusable.TRUNCATED, "truncated", path)
    data = bytearray(write())
    at = place_of(data, 256)  # ImageWidth of the first page
    data[at : at + 2] = struct.pack("<H", 60)
    path.write_bytes(data)
    refused(Unusable.SEVERAL_SERIES, "different sizes", path)
    tifffile.imwrite(path, values[0], metadata=None)
    data = bytearray(path.read_bytes())
    for field, value, word in (
        (256, 60, "4000 of 4800 bytes"), (256, 40, "4000 of 3200 bytes"),
        (257, 65_535, "strips or tiles|bytes"), (258, 1, "1. bits|values of"),
        (262, 3, "colours 3"), (262, 0, "inverted"),
        (259, 7, "compression 7"), (259, 8, "damaged"),
    ):  # fmt: skip
        changed = bytearray(data)
        at = place_of(changed, field)
        changed[at : at + 2] = struct.pack("<H", value)
        path.write_bytes(changed)
        with pytest.raises(ItemError, match=word):
            FORMATS["tiff"].read(path)
    ome = tmp_path / "p.ome.tif"
    tifffile.imwrite(ome, values, ome=True, photometric="minisblack", metadata={"axes": "ZYX"})
    text = ome.read_bytes()
    for old, new, word in (
        (b'SizeZ="3"', b'SizeZ="9"', "planes"), (b'SizeX="50"', b'SizeX="51"', "other pages"),
        (b'Type="uint16"', b'Type="int16" ', "other pages"),
        (b"<?xml version", b"<!DOCTYPE x ><", "document type|cannot be read"),
    ):  # fmt: skip
        assert old in text
        ome.write_bytes(text.replace(old, new, 1))
        with pytest.raises(ItemError, match=word):
            FORMATS["tiff"].read(ome)


def test_new_formats_as_images_and_masks_of_a_study(tmp_path: Path, sitk: Any) -> None:
    values = RNG.integers(0, 900, (4, 5, 6)).astype(np.int16)
    mask = (RNG.random((4, 5, 6)) < 0.4).astype(np.uint8)
    for folder, kind, ending in ((tmp_path / "a", "mha", ".mha"), (tmp_path / "b", "tiff", ".tif")):
        for part, array in (("i", values), ("m", mask)):
            (folder / part).mkdir(parents=True)
            path = folder / part / f"p{ending}"
            if kind == "mha":
                sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
            else:
                tifffile.imwrite(path, array, photometric="minisblack", metadata=None)
        rules = ImageRules(folder / "m", max_quarantined=0.0)
        images = read_images(folder / "i", kind, ["p"], ImageShape(size=(6, 5, 4)), codes=(0, 1), rules=rules)
        assert images.masks is not None
        np.testing.assert_array_equal(images.pixels[0, 0], values.transpose(2, 1, 0))
        np.testing.assert_array_equal(images.masks[:][0, 0], mask.transpose(2, 1, 0))
    with pytest.raises(InputError, match="which side of a body"):
        read_images(tmp_path / "b" / "i", "tiff", ["p"], ImageShape(size=(6, 5, 4), orientation="RAS"))
    with pytest.raises(TooManyExcluded, match="has no affine"):
        read_images(
            tmp_path / "b" / "i", "tiff", ["p"], ImageShape(size=(6, 5, 4), spacing_mm=(1, 1, 1)), rules=ImageRules(max_quarantined=0.0)
        )
