"""Images as people export them: headers that contradict themselves, photographs that are turned, values that say nothing."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image, ImageOps

from fedml.cohort.found_images import ImageRules
from fedml.cohort.images.channels import channels_first
from fedml.cohort.images.images import Images
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.read_images import read_images
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape

RNG = np.random.default_rng(3)
VOXELS = RNG.integers(0, 900, (6, 5, 4)).astype(np.int16)
MM = np.diag([1.5, 1.5, 3.0, 1.0])


def read(folder: Path, kind: str, *, masks: Path | None = None) -> tuple[Images | None, list[tuple[str, str]]]:
    """The images of ``p``, and (reason, sentence) of what is excluded."""
    try:
        found = read_images(
            folder, kind, ["p"], None, codes=None if masks is None else (0, 1), rules=ImageRules(masks=masks, max_quarantined=1.0)
        )
    except InputError as error:
        if "has no usable image" not in str(error):
            raise
        return None, _excluded(folder, kind, masks)
    return found, [(str(e.reason), e.text) for e in found.excluded]


def _excluded(folder: Path, kind: str, masks: Path | None) -> list[tuple[str, str]]:
    from fedml.cohort.images.reasons import TooManyExcluded

    with pytest.raises(TooManyExcluded) as caught:
        read_images(folder, kind, ["p"], None, codes=None if masks is None else (0, 1), rules=ImageRules(masks=masks, max_quarantined=0.0))
    return [(str(e.reason), e.text) for e in caught.value.excluded]


def refused(folder: Path, kind: str, reason: Unusable, *words: str, masks: Path | None = None) -> None:
    found, excluded = read(folder, kind, masks=masks)
    assert found is None
    assert [why for why, _ in excluded] == [reason]
    for word in words:
        assert word in excluded[0][1]


def write_forms(path: Path, sform: Any, qform: Any, codes: tuple[int, int], pixdim: Any = (1.5, 1.5, 3.0)) -> Path:
    image = nibabel.Nifti1Image(VOXELS, None)
    image.header.set_qform(qform, codes[1])
    image.header.set_sform(sform, codes[0])
    image.header["pixdim"][1:4] = pixdim
    nibabel.save(image, path)
    return path.parent


def turned(degrees: float, shift: float = 0.0) -> Any:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    out = np.array([[c, -s, 0, shift], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    return out @ MM


@pytest.mark.parametrize(
    ("sform", "qform", "codes", "word"),
    [
        (np.eye(4), MM, (1, 1), "its sform has voxels of 1 x 1 x 1 mm, its pixdim says 1.5 x 1.5 x 3 mm"),
        (np.eye(4), MM, (1, 0), "pixdim says"),  # pixdim is a voxel's size, whatever the forms are
        (np.diag([-1.5, 1.5, 3, 1.0]), MM, (2, 1), "left and right are not known"),
        (turned(0, 4.0), MM, (1, 1), "both of code 1, place voxels 2.67 voxels apart"),
        (turned(30), MM, (2, 2), "both of code 2"),
    ],
)
def test_sform_and_qform_that_contradict_each_other(tmp_path: Path, sform: Any, qform: Any, codes: tuple[int, int], word: str) -> None:
    refused(write_forms(tmp_path / "p.nii", sform, qform, codes), "nifti", Unusable.GEOMETRY, word)


def test_sform_and_qform_of_two_spaces_are_both_right(tmp_path: Path) -> None:
    """The standard allows it where the codes differ; the sform is used, as nibabel does. A quaternion's rounding is no contradiction."""
    from fedml.cohort.images.formats import FORMATS

    for name, sform, codes in (("a", turned(30, 5.0), (2, 1)), ("b", turned(33.3), (1, 1)), ("c", turned(12), (1, 0))):
        path = tmp_path / name / "p.nii"
        path.parent.mkdir()
        write_forms(path, sform, MM if name == "a" else turned(33.3), codes)
        voxels, affine = FORMATS["nifti"].read(path)
        np.testing.assert_array_equal(voxels, VOXELS)
        assert affine is not None
        np.testing.assert_allclose(affine, sform, atol=1e-6)


def test_no_code_is_no_orientation(tmp_path: Path) -> None:
    from fedml.cohort.images.transforms import prepared
    from fedml.study.imaging import Preprocess

    found, _ = read(write_forms(tmp_path / "p.nii", MM, MM, (0, 0)), "nifti")
    assert found is not None
    assert found.shape == (1, 6, 5, 4)
    from fedml.cohort.images.formats import FORMATS
    from fedml.cohort.images.reasons import ItemError

    voxels, affine = FORMATS["nifti"].read(tmp_path / "p.nii")
    with pytest.raises(ItemError, match="has no affine, which orientation"):
        prepared(Preprocess(orientation="RAS"), voxels[None], affine)


@pytest.mark.parametrize("packed", [False, True])
def test_an_infinite_slope(tmp_path: Path, packed: bool) -> None:
    """nibabel reads it as no slope at all."""
    path = tmp_path / ("p.nii.gz" if packed else "p.nii")
    nibabel.save(nibabel.Nifti1Image(VOXELS, MM), tmp_path / "plain.nii")
    data = bytearray((tmp_path / "plain.nii").read_bytes())
    (tmp_path / "plain.nii").unlink()
    data[112:116] = struct.pack("<f", np.inf)
    path.write_bytes(gzip.compress(bytes(data)) if packed else bytes(data))
    refused(tmp_path, "nifti", Unusable.RESCALE, "scl_slope is infinite")
    data[112:116] = struct.pack("<f", 2.0)
    path.write_bytes(gzip.compress(bytes(data)) if packed else bytes(data))
    found, _ = read(tmp_path, "nifti")
    assert found is not None
    np.testing.assert_array_equal(found.pixels[:][0, 0], 2.0 * VOXELS)


@pytest.mark.parametrize("kind", ["nifti", "png", "npy", "npz"])
def test_an_image_of_one_value_is_excluded(tmp_path: Path, kind: str) -> None:
    flat = np.full((8, 8), 7, np.uint8)
    if kind == "nifti":
        nibabel.save(nibabel.Nifti1Image(np.full((8, 8, 3), 7, np.int16), MM), tmp_path / "p.nii")
    elif kind == "png":
        Image.fromarray(flat).save(tmp_path / "p.png")
    elif kind == "npy":
        np.save(tmp_path / "p.npy", flat)
    else:
        np.savez(tmp_path / "images.npz", ids=np.array(["p"]), images=flat[None])
    refused(tmp_path / "images.npz" if kind == "npz" else tmp_path, kind, Unusable.CONSTANT, "has the value 7 in every voxel")


@pytest.mark.parametrize(("window", "shows"), [((7.0, 9.0), False), ((-5.0, 0.0), False), ((0.0, 1.0), True), ((), True)])
def test_an_image_beyond_the_studys_window_is_excluded(window: tuple[float, ...], shows: bool) -> None:
    """It would be one value everywhere, as where a study for Hounsfield units meets a file of 0 to 1."""
    raw, shape = np.arange(8, dtype=np.uint8).reshape(2, 4), ImageShape(size=(2, 4), window=window)
    if shows:
        assert channels_first(raw, shape, Path("p.png")).shape == (1, 2, 4)
        return
    with pytest.raises(ItemError, match="values from 0 to 7, all beyond") as caught:
        channels_first(raw, shape, Path("p.png"))
    assert caught.value.reason is Unusable.CONSTANT


def photograph(path: Path, orientation: int, pixels: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = Image.Exif()
    about[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=about)
    return path


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_photographs_stand_upright_as_pillow_turns_them(tmp_path: Path, orientation: int, kind: str) -> None:
    """Also in grey and with a palette; 0 is no orientation."""
    colour = RNG.integers(0, 255, (20, 30, 3)).astype(np.uint8)
    path = photograph(tmp_path / ("p.jpg" if kind == "jpeg" else "p.png"), orientation, colour)
    found, _ = read(tmp_path, kind)
    with Image.open(path) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    assert found is not None
    np.testing.assert_array_equal(np.moveaxis(found.pixels[:][0], 0, -1), expected)
    assert expected.shape == ((30, 20, 3) if orientation in (5, 6, 7, 8) else (20, 30, 3))


def test_a_palette_is_turned_too(tmp_path: Path) -> None:
    about = Image.Exif()
    about[0x0112] = 6
    drawn = Image.fromarray(RNG.integers(0, 255, (20, 30, 3)).astype(np.uint8)).quantize(16)
    drawn.save(tmp_path / "p.png", exif=about)
    found, _ = read(tmp_path, "png")
    with Image.open(tmp_path / "p.png") as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    assert found is not None
    np.testing.assert_array_equal(np.moveaxis(found.pixels[:][0], 0, -1), expected)


def test_a_mask_of_a_turned_photograph_must_be_turned_alike(tmp_path: Path) -> None:
    grey, drawn = RNG.integers(0, 255, (16, 16)).astype(np.uint8), RNG.integers(0, 2, (16, 16)).astype(np.uint8)
    photograph(tmp_path / "i" / "p.png", 3, grey)
    photograph(tmp_path / "m" / "p.png", 1, drawn)
    refused(tmp_path / "i", "png", Unusable.MASK_MISMATCH, "its EXIF orientation is 3, that of its mask 1", masks=tmp_path / "m")
    (tmp_path / "m" / "p.png").unlink()
    np.save(tmp_path / "m" / "p.npy", drawn)
    refused(tmp_path / "i", "png", Unusable.MASK_MISMATCH, masks=tmp_path / "m")
    (tmp_path / "m" / "p.npy").unlink()
    for orientation in (3, 6):
        photograph(tmp_path / "i" / "p.png", orientation, RNG.integers(0, 255, (16, 20)).astype(np.uint8))
        mask = RNG.integers(0, 2, (16, 20)).astype(np.uint8)
        path = photograph(tmp_path / "m" / "p.png", orientation, mask)
        found, excluded = read(tmp_path / "i", "png", masks=tmp_path / "m")
        assert found is not None
        assert found.masks is not None, excluded
        with Image.open(path) as picture:
            np.testing.assert_array_equal(found.masks[:][0, 0], np.asarray(ImageOps.exif_transpose(picture)))
