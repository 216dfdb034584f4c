"""Images: every format gives the pixels that were written, and a broken file is refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.cohort.read_images import read_images
from fedml.errors import InputError
from fedml.study.cohort_section import ImageShape
from fedml.study.study import Study, validate
from tests.command import ROOT
from tests.conftest import write_csv, write_manifest, write_picture

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (3, 6, 9), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (3, 6, 9, 3), dtype=np.uint8)
VOLUME = RNG.normal(size=(3, 5, 6, 7)).astype(np.float32)
IDS = ["p1", "p2", "p3"]


def put(folder: Path, ending: str, pictures: np.ndarray[Any, Any]) -> Path:
    for person, picture in zip(IDS, pictures, strict=True):
        write_picture(folder / f"{person}{ending}", picture)
    return folder


@pytest.mark.parametrize(
    ("ending", "kind", "pictures", "shape"),
    [
        (".png", "png", GREY, ImageShape(size=(6, 9))),
        (".png", "png", COLOUR, ImageShape(channels=3, size=(6, 9))),
        (".npy", "npy", GREY, ImageShape(size=(6, 9))),
        (".npy", "npy", COLOUR, ImageShape(channels=3, size=(6, 9))),
        (".npy", "npy", VOLUME, ImageShape(size=(5, 6, 7))),
        (".npy", "npy", VOLUME.astype(np.float64)[..., None], ImageShape(size=(5, 6, 7))),
        (".nii.gz", "nifti", VOLUME, ImageShape(size=(5, 6, 7))),
        (".nii", "nifti", VOLUME, ImageShape(size=(5, 6, 7))),
        (".nii", "nifti", VOLUME[:, 0], ImageShape(size=(6, 7))),
        (".nii.gz", "nifti", VOLUME[:, 0, :, :, None], ImageShape(size=(6, 7))),
        (".nii.gz", "nifti", np.stack([VOLUME, -VOLUME], -1), ImageShape(channels=2, size=(5, 6, 7))),
    ],
    ids=lambda v: str(v.shape) if isinstance(v, np.ndarray) else str(v) if isinstance(v, str) else "",
)
@pytest.mark.parametrize("given", [True, False])
def test_formats_give_the_pixels_that_were_written(
    tmp_path: Path, ending: str, kind: str, pictures: np.ndarray[Any, Any], shape: ImageShape, given: bool
) -> None:
    images = read_images(put(tmp_path, ending, pictures), kind, IDS, shape if given else None)
    expected = pictures if pictures.ndim == len(shape.size) + 1 else np.moveaxis(pictures, -1, 1)
    np.testing.assert_array_equal(images.pixels, expected.reshape(3, shape.channels, *shape.size).astype(images.pixels.dtype))
    assert images.pixels.dtype == (np.uint8 if pictures.dtype == np.uint8 else np.float32)
    assert images.person.tolist() == [0, 1, 2]
    assert images.shape == (shape.channels, *shape.size)


def test_integer_niftis_are_scaled_as_their_header_says(tmp_path: Path) -> None:
    import nibabel

    raw = RNG.integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    image = nibabel.Nifti1Image(raw, np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    nibabel.save(image, tmp_path / "p1.nii.gz")
    np.testing.assert_array_equal(read_images(tmp_path, "nifti", ["p1"], None).pixels[0, 0], raw * 0.5 - 10)


@pytest.mark.parametrize("slices", [3, 4])
def test_a_thin_nifti_volume_is_a_volume(tmp_path: Path, slices: int) -> None:
    write_picture(tmp_path / "p1.nii.gz", VOLUME[0, :, :, :slices])
    assert read_images(tmp_path, "nifti", ["p1"], None).shape == (1, 5, 6, slices)


@pytest.mark.parametrize(("pictures", "channels"), [(GREY, 1), (COLOUR, 3)])
def test_jpeg_gives_what_its_decoder_gives(tmp_path: Path, pictures: np.ndarray[Any, Any], channels: int) -> None:
    from PIL import Image

    put(tmp_path, ".jpeg", pictures)
    (tmp_path / "p2.jpeg").rename(tmp_path / "p2.jpg")
    images = read_images(tmp_path, "jpeg", IDS, ImageShape(channels=channels, size=(6, 9)))
    for person, pixels, name in zip(IDS, images.pixels, ("p1.jpeg", "p2.jpg", "p3.jpeg"), strict=True):
        expected = np.asarray(Image.open(tmp_path / name))
        np.testing.assert_array_equal(pixels, expected[None] if channels == 1 else np.moveaxis(expected, -1, 0), err_msg=person)


def test_pictures_with_a_palette_or_alpha_become_colours_and_16_bits_are_kept(tmp_path: Path) -> None:
    from PIL import Image

    rgb = Image.fromarray(COLOUR[0])
    rgb.quantize(256).save(tmp_path / "p1.png")
    rgb.convert("RGBA").save(tmp_path / "p2.png")
    pixels = read_images(tmp_path, "png", IDS, None).pixels
    assert pixels.shape == (2, 3, 6, 9)
    np.testing.assert_array_equal(pixels[1], np.moveaxis(COLOUR[0], -1, 0))
    deep = RNG.integers(0, 65536, (6, 9)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "p3.png")
    np.testing.assert_array_equal(read_images(tmp_path, "png", ["p3"], None).pixels[0, 0], deep)


@pytest.mark.parametrize(("images", "shape"), [(GREY, (1, 6, 9)), (COLOUR, (3, 6, 9)), (VOLUME, (1, 5, 6, 7))])
def test_npz(tmp_path: Path, images: np.ndarray[Any, Any], shape: tuple[int, ...]) -> None:
    path = tmp_path / "images.npz"
    np.savez_compressed(path, ids=np.array(["p3", "stranger", "p1"]), images=images)
    for given in (None, ImageShape(channels=shape[0], size=shape[1:])):
        read = read_images(path, "npz", IDS, given)
        assert read.person.tolist() == [0, 2]
        expected = np.moveaxis(images, -1, 1) if len(shape) == 3 and shape[0] == 3 else images[:, None]
        np.testing.assert_array_equal(read.pixels, expected[[2, 0]])


def test_several_images_a_person_in_their_order(tmp_path: Path) -> None:
    write_picture(tmp_path / "p1" / "b.npy", GREY[1])
    write_picture(tmp_path / "p1" / "a.npy", GREY[0])
    write_picture(tmp_path / "p1" / "notes.txt.png", GREY[0])
    write_picture(tmp_path / "p3.npy", GREY[2])
    images = read_images(tmp_path, "npy", IDS, None)
    assert images.person.tolist() == [0, 0, 2]
    np.testing.assert_array_equal(images.pixels[:, 0], GREY)
    np.savez(tmp_path / "i.npz", ids=np.array(["p3", "p1", "p1"]), images=GREY[[2, 0, 1]])
    packed = read_images(tmp_path / "i.npz", "npz", IDS, None)
    np.testing.assert_array_equal(packed.pixels, images.pixels)
    assert packed.person.tolist() == [0, 0, 2]


def image_study(**image: Any) -> Study:
    plan: dict[str, Any] = {"study": {"name": "toy"}, "cohort": {"inputs": ["image"], "target": "y"}, "federation": {"sites": ["a"]}}
    if image:
        plan["cohort"]["image"] = image
    return validate(Study, plan, "s")


def test_persons_with_none_one_and_several_images_make_a_batch(tmp_path: Path) -> None:
    write_csv(tmp_path / "persons.csv", IDS + [f"q{k}" for k in range(9)], {"y": [0, 1, 0] + [1] * 9})
    write_picture(tmp_path / "images" / "p1" / "x.npy", GREY[0])
    write_picture(tmp_path / "images" / "p1" / "y.npy", GREY[1])
    for k in range(9):
        write_picture(tmp_path / "images" / f"q{k}.npy", GREY[0] // 2 + k)
    cohort = read_cohort(read_site(write_manifest(tmp_path, "a", image='{ path = "images", format = "npy" }')), image_study())
    assert cohort.ids == ("p1", *(f"q{k}" for k in range(9)))
    assert cohort.excluded == {"no input": 2}
    batch = cohort.batch([4, 0, 1])
    assert batch["image_person"].tolist() == [0, 1, 1, 2]
    np.testing.assert_array_equal(batch["image"].numpy()[:, 0], np.stack([GREY[0] // 2 + 3, GREY[0], GREY[1], GREY[0] // 2]))
    assert batch["image_present"].tolist() == [1, 1, 1]
    one = cohort[0]
    assert one["image"].shape == (2, 1, 6, 9)
    assert one["label"].shape == ()


def refused(path: Path, kind: str, *words: str, shape: ImageShape | None = None) -> None:
    with pytest.raises(InputError) as caught:
        read_images(path, kind, IDS, shape)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.9])
@pytest.mark.parametrize(
    ("ending", "kind", "pictures"),
    [(".png", "png", COLOUR), (".jpg", "jpeg", COLOUR), (".npy", "npy", GREY), (".nii.gz", "nifti", VOLUME), (".nii", "nifti", VOLUME)],
)
def test_a_truncated_file_is_named(tmp_path: Path, ending: str, kind: str, pictures: np.ndarray[Any, Any], kept: float) -> None:
    put(tmp_path, ending, np.tile(pictures, (1, 4, 4, *(1 for _ in pictures.shape[3:]))))
    broken = tmp_path / f"p2{ending}"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: int(kept if kept in (0, 10) else kept * len(whole))])
    with pytest.raises(InputError) as raised:
        read_images(tmp_path, kind, IDS, None)
    reported = str(raised.value)
    assert reported.startswith(str(broken))
    assert any(words in reported for words in (f"cannot be read as {kind}", "is truncated", "is empty"))
    assert "\n" not in reported


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.95])
def test_a_truncated_npz_is_named(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, ids=np.array(IDS), images=VOLUME)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept if kept in (0, 10) else kept * len(whole))])
    refused(path, "npz", str(path), "cannot be read as .npz")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"names": np.array(IDS), "images": GREY}, ["ids"]),
        ({"ids": np.array(IDS), "pictures": GREY}, ["images"]),
        ({"ids": np.array(IDS[:2]), "images": GREY}, ["2 ids but 3 images"]),
        ({"ids": np.array(IDS), "images": np.array([object()] * 3)}, ["cannot be read"]),
        ({"ids": np.array(["q1", "q2", "q3"]), "images": GREY}, ["none of the 3 persons"]),
        pytest.param({"ids": np.array(IDS), "images": np.array([["a"]] * 3)}, []),
        pytest.param({"ids": np.array(IDS), "images": np.float32(1)}, []),
    ],
)
def test_an_npz_that_is_not_ids_and_images_is_named(tmp_path: Path, arrays: dict[str, Any], words: list[str]) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, **arrays)
    refused(path, "npz", str(path), *words, *([] if "persons" in str(words) else ["docs/images.md", "One npz file"]))


def test_the_layout_of_an_npz_in_the_guide_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (ROOT / "docs" / "images.md").read_text(encoding="utf-8").partition("## One npz file\n")[2].partition("\n## ")[0]
    code = guide.partition("```python\n")[2].partition("```")[0]
    assert "np.savez_compressed(" in code
    monkeypatch.chdir(tmp_path)
    run = "import numpy as np\nfirst, second = np.arange(24).reshape(4, 6), np.arange(1, 25).reshape(4, 6)\n" + code
    subprocess.run([sys.executable, "-c", run], check=True)
    read = read_images(tmp_path / "images.npz", "npz", ["p002", "p001"], None)
    assert np.asarray(read.person).tolist() == [0, 1]
    assert np.asarray(read.pixels[:])[:, 0, 0, 0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_no_finite_number_is_refused(tmp_path: Path, bad: float) -> None:
    volumes = VOLUME.copy()
    volumes[1, 2, 3, 4] = bad
    put(tmp_path, ".nii.gz", volumes)
    refused(tmp_path, "nifti", str(tmp_path / "p2.nii.gz"), "not finite")
    np.savez(tmp_path / "v.npz", ids=np.array(IDS), images=volumes)
    refused(tmp_path / "v.npz", "npz", str(tmp_path / "v.npz"), "not finite")


def test_an_image_of_another_shape_is_named(tmp_path: Path) -> None:
    put(tmp_path, ".npy", GREY)
    write_picture(tmp_path / "p2.npy", GREY[1].T)
    refused(tmp_path, "npy", str(tmp_path / "p2.npy"), "(1, 9, 6)", "(1, 6, 9)")
    refused(tmp_path, "npy", str(tmp_path / "p2.npy"), "(9, 6)", "expects (6, 9) with 1 channel", shape=ImageShape(size=(6, 9)))
    refused(tmp_path, "npy", str(tmp_path / "p1.npy"), "3 channel", shape=ImageShape(channels=3, size=(6, 9)))


@pytest.mark.parametrize(
    "array",
    [np.zeros(5), np.float64(1), np.zeros((1, 1, 2, 2, 2)), np.array([["a", "b"]]), np.ones((4, 4)) * 1j],
    ids=["1-D", "0-D", "5-D", "text", "complex"],
)
def test_an_array_that_is_no_image_is_named(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "p1.npy", array)
    refused(tmp_path, "npy", str(tmp_path / "p1.npy"))


def test_absent_folders_files_and_persons_are_reported(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "png", "nowhere: no such folder", "site.toml")
    refused(tmp_path / "nowhere.npz", "npz", "nowhere.npz: no such file")
    refused(tmp_path, "png", str(tmp_path), "has no image of a person", "<id>.png")
    (tmp_path / "p1.png").write_text("not a picture")
    refused(tmp_path, "png", "p1.png: cannot be read as png")


def test_files_of_persons_who_are_not_in_the_table_are_not_read(tmp_path: Path) -> None:
    put(tmp_path, ".png", GREY)
    (tmp_path / "stranger.png").write_bytes(b"broken")
    assert len(read_images(tmp_path, "png", IDS, None).person) == 3


@pytest.mark.parametrize("member", ["images", "masks"])
def test_an_npz_that_unpacks_to_far_more_than_it_is_is_refused_before_it_is(tmp_path: Path, member: str) -> None:
    import tracemalloc

    arrays = {"ids": np.array(["p1"] * 4), "images": np.zeros((4, 8, 8), np.uint8), "masks": np.zeros((4, 8, 8), np.uint8)}
    arrays[member] = np.zeros((4, 5000, 5000), np.uint8)
    np.savez_compressed(tmp_path / "bomb.npz", **arrays)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"bomb.npz: cannot be read as .npz .*(decompresses to|larger than the images)"):
        read_images(tmp_path / "bomb.npz", "npz", ["p1"], None, codes=(0, 1))
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()
