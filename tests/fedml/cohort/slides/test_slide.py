"""Tiles of whole-slide images against OpenSlide's and tifffile's pixels, tissue, and slides that are damaged."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.slides.slide import open_slide, otsu, tile_at, tissue_tiles, tissue_tiles_at
from tests.command import ROOT
from tests.conftest import huge_slide, public_data

GLASS, PINK = (243, 243, 243), (220, 130, 190)


@pytest.fixture(scope="module")
def biopsy() -> Path:
    """An Aperio region of 2,220 x 2,967 pixels with a label and a macro image."""
    return public_data("wsi") / "CMU-1-Small-Region.svs"


def write_slide(path: Path, levels: Sequence[np.ndarray[Any, Any]], mpp: float | None = 0.25, side: int = 64) -> Path:
    """A tiled TIFF; each of ``levels`` is uint8 (rows, columns, 3)."""
    import tifffile

    with tifffile.TiffWriter(path) as out:
        for k, pixels in enumerate(levels):
            a_cm = 1e4 / (mpp or 1.0) * pixels.shape[1] / levels[0].shape[1]
            scale = {} if mpp is None else {"resolution": (a_cm, a_cm), "resolutionunit": "CENTIMETER"}
            out.write(pixels, tile=(side, side), photometric="rgb", subfiletype=int(k > 0), metadata=None, **scale)
    return path


def scene(width: int, height: int, tissue: Sequence[tuple[int, int, int, int]]) -> np.ndarray[Any, Any]:
    """Glass with a little noise and ``tissue`` as (left, top, right, bottom): uint8 (height, width, 3)."""
    noise = np.random.default_rng(0).integers(-2, 3, (height, width, 3))
    out = np.full((height, width, 3), GLASS)
    for left, top, right, bottom in tissue:
        out[top:bottom, left:right] = PINK
    return (out + noise).astype(np.uint8)


def test_what_a_slide_says(biopsy: Path) -> None:
    slide = open_slide(biopsy)
    assert slide.size == (2220, 2967)
    assert [tuple(level) for level in slide.levels] == [(2220, 2967, 1.0)]
    assert slide.mpp == (0.499, 0.499)
    assert slide.magnification == 20.0


def test_tiles_are_the_pixels_of_openslide_and_of_tifffile(biopsy: Path) -> None:
    import openslide
    import tifffile

    slide, reference = open_slide(biopsy), openslide.OpenSlide(biopsy)
    whole = tifffile.imread(biopsy, key=0)
    for x, y, size in ((0, 0, 240), (100, 333, 256), (1900, 2700, 256), (7, 11, 1)):
        tile = slide.tile(x, y, size)
        assert tile.shape == (3, size, size)
        assert tile.dtype == np.uint8
        assert tile.flags.c_contiguous
        np.testing.assert_array_equal(tile, np.moveaxis(np.asarray(reference.read_region((x, y), 0, (size, size)))[..., :3], 2, 0))
        np.testing.assert_array_equal(tile, np.moveaxis(whole[y : y + size, x : x + size], 2, 0))


def test_beyond_the_edge_is_background(biopsy: Path) -> None:
    tile = open_slide(biopsy).tile(2200, 2900, 100)
    assert (tile[:, 67:, :] == 255).all()
    assert (tile[:, :, 20:] == 255).all()
    assert (tile[:, :67, :20] < 255).any()


def test_levels_and_places_of_a_pyramid(tmp_path: Path) -> None:
    fine = np.random.default_rng(1).integers(0, 256, (256, 512, 3), dtype=np.uint8)
    slide = open_slide(write_slide(tmp_path / "a.tif", [fine, fine[::2, ::2], fine[::4, ::4]]))
    assert [level.downsample for level in slide.levels] == [1.0, 2.0, 4.0]
    assert slide.mpp == (0.25, 0.25)
    assert slide.magnification is None
    np.testing.assert_array_equal(slide.tile(64, 32, 16, level=1), np.moveaxis(fine[32:64:2, 64:96:2], 2, 0))
    np.testing.assert_array_equal(slide.tile(64, 32, 16, level=2), np.moveaxis(fine[32:96:4, 64:128:4], 2, 0))


@pytest.mark.parametrize(
    ("x", "y", "size", "level"), [(-1, 0, 8, 0), (512, 0, 8, 0), (0, 0, 8, 1), (0, 0, 0, 0), (0, 0, 9000, 0), (0, 0, 8, -1)]
)
def test_a_tile_that_cannot_be(tmp_path: Path, x: int, y: int, size: int, level: int) -> None:
    slide = open_slide(write_slide(tmp_path / "a.tif", [scene(512, 128, [])]))
    with pytest.raises(ValueError, match=r"slide|level|tile"):
        slide.tile(x, y, size, level)


def test_the_same_scale_from_unlike_scanners(tmp_path: Path) -> None:
    """A 40x slide averages 2 x 2 pixels where a 20x slide has them."""
    coarse = np.random.default_rng(2).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    forty = open_slide(write_slide(tmp_path / "40.tif", [coarse.repeat(2, 0).repeat(2, 1)], mpp=0.25))
    twenty = open_slide(write_slide(tmp_path / "20.tif", [coarse], mpp=0.502))
    np.testing.assert_array_equal(tile_at(forty, 32, 64, 32, mpp=0.5), tile_at(twenty, 16, 32, 32, mpp=0.5))
    with pytest.raises(ItemError) as reported:
        tile_at(twenty, 0, 0, 32, mpp=0.25)
    assert reported.value.reason == Unusable.GEOMETRY
    unknown = open_slide(write_slide(tmp_path / "unknown.tif", [coarse], mpp=None))
    assert unknown.mpp is None
    with pytest.raises(ItemError):
        tile_at(unknown, 0, 0, 32, mpp=0.5)


def test_a_tile_is_of_the_coarsest_level_that_is_fine_enough(tmp_path: Path) -> None:
    """Levels of 0.25, 0.5 and 1 micrometre a pixel, each with pixels of its own."""
    levels = [np.random.default_rng(k).integers(0, 256, (256 >> k, 256 >> k, 3), dtype=np.uint8) for k in range(3)]
    slide = open_slide(write_slide(tmp_path / "a.tif", levels, mpp=0.25))
    for k, mpp in enumerate((0.25, 0.5, 1.0)):
        np.testing.assert_array_equal(tile_at(slide, 0, 0, 32, mpp=mpp), np.moveaxis(levels[k][:32, :32], 2, 0))
    between = Image.fromarray(levels[1][:48, :48]).resize((32, 32), Image.Resampling.BOX)  # 48 pixels of 0.5 are 32 of 0.75
    np.testing.assert_array_equal(tile_at(slide, 0, 0, 32, mpp=0.75), np.moveaxis(np.asarray(between), 2, 0))


def test_a_camera_s_resolution_is_no_scale(tmp_path: Path) -> None:
    assert open_slide(write_slide(tmp_path / "a.tif", [scene(128, 128, [])], mpp=1e4 / 28.3)).mpp is None  # 72 dots an inch


@pytest.mark.parametrize("block", [2048, 48])
@pytest.mark.parametrize("pyramid", [False, True])
def test_tissue_tiles_are_those_over_tissue(tmp_path: Path, pyramid: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedml.cohort.slides.slide._BLOCK", block)
    pixels = scene(1024, 768, [(256, 128, 640, 512)])
    slide = open_slide(write_slide(tmp_path / "a.tif", [pixels, pixels[::4, ::4]] if pyramid else [pixels]))
    wanted = [(x, y) for y in range(128, 512, 128) for x in range(256, 640, 128)]
    assert [tuple(corner) for corner in tissue_tiles(slide, 128)] == wanted
    assert [tuple(corner) for corner in tissue_tiles_at(slide, 64, mpp=0.5)] == wanted
    if pyramid:
        assert [tuple(corner) for corner in tissue_tiles(slide, 32, level=1)] == wanted


def test_min_tissue_counts_the_share_of_a_tile(tmp_path: Path) -> None:
    slide = open_slide(write_slide(tmp_path / "a.tif", [scene(512, 512, [(0, 0, 160, 512)])]))  # a quarter of the second column
    columns = {share: sorted({int(x) for x, _ in tissue_tiles(slide, 128, min_tissue=share)}) for share in (0.2, 0.3, 1.0)}
    assert columns == {0.2: [0, 128], 0.3: [0], 1.0: [0]}


def test_glass_has_no_tissue_and_tissue_alone_is_all_tissue(tmp_path: Path) -> None:
    assert len(tissue_tiles(open_slide(write_slide(tmp_path / "glass.tif", [scene(256, 256, [])])), 64)) == 0
    assert len(tissue_tiles(open_slide(write_slide(tmp_path / "full.tif", [scene(256, 256, [(0, 0, 256, 256)])])), 64)) == 16
    black = np.zeros((256, 256, 3), np.uint8) + np.array((9, 0, 6), np.uint8)
    assert len(tissue_tiles(open_slide(write_slide(tmp_path / "black.tif", [black])), 64)) == 0


def test_tissue_of_a_real_slide_is_darker_than_its_glass(biopsy: Path) -> None:
    slide = open_slide(biopsy)
    found = {(int(x), int(y)) for x, y in tissue_tiles(slide, 128)}
    others = {(x, y) for x in range(0, 2220 - 127, 128) for y in range(0, 2967 - 127, 128)} - found
    assert found
    assert others
    light = [np.mean([slide.tile(x, y, 128).mean() for x, y in corners]) for corners in (found, others)]
    assert light[0] < light[1] - 20


@given(st.lists(st.integers(0, 30), min_size=2, max_size=40).filter(lambda counts: sum(c > 0 for c in counts) > 1))
def test_otsu_parts_where_variance_between_is_largest(counts: list[int]) -> None:
    values = np.repeat(np.arange(len(counts)), counts)

    def between(threshold: int) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        return float(len(low) * len(high) * (low.mean() - high.mean()) ** 2) if len(low) and len(high) else -1.0

    best = max(between(k) for k in range(len(counts)))
    assert between(otsu(np.array(counts, np.int64))) == pytest.approx(best)


def test_label_and_macro_are_not_read(biopsy: Path, tmp_path: Path) -> None:
    """With their bytes destroyed, nothing changes."""
    import openslide
    import tifffile

    data = bytearray(biopsy.read_bytes())
    with tifffile.TiffFile(biopsy) as file:
        for page in file.pages[1:]:
            for at, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                data[at : at + count] = bytes(count)
    (tmp_path / "blind.svs").write_bytes(data)
    with pytest.raises(openslide.OpenSlideError):
        openslide.OpenSlide(tmp_path / "blind.svs").associated_images["macro"]
    slide, whole = open_slide(tmp_path / "blind.svs"), open_slide(biopsy)
    np.testing.assert_array_equal(tissue_tiles(slide, 256), tissue_tiles(whole, 256))
    np.testing.assert_array_equal(slide.tile(512, 512, 256), whole.tile(512, 512, 256))


def broken(biopsy: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files that are no slide."""
    data = biopsy.read_bytes()
    yield "empty", b""
    yield "text", b"no slide\n" * 100
    yield "half", data[: len(data) // 2]
    yield "without the end", data[:-1000]
    yield "header alone", data[:16]
    yield "noise", np.random.default_rng(4).bytes(10_000)
    yield "noise after a header", data[:8] + np.random.default_rng(5).bytes(10_000)


def test_files_that_are_no_slides(biopsy: Path, tmp_path: Path) -> None:
    for name, content in broken(biopsy):
        (tmp_path / "a.svs").write_bytes(content)
        with pytest.raises(ItemError) as reported:
            open_slide(tmp_path / "a.svs")
        assert reported.value.reason in (Unusable.UNREADABLE, Unusable.TRUNCATED), name
    for path in (tmp_path, tmp_path / "nowhere.svs"):
        with pytest.raises(ItemError):
            open_slide(path)


def test_a_tile_that_is_damaged(biopsy: Path, tmp_path: Path) -> None:
    import tifffile

    data = bytearray(biopsy.read_bytes())
    with tifffile.TiffFile(biopsy) as file:
        at = file.pages[0].dataoffsets[5]
    data[at : at + 500] = bytes(500)
    (tmp_path / "a.svs").write_bytes(data)
    slide = open_slide(tmp_path / "a.svs")
    assert slide.tile(0, 0, 64).shape == (3, 64, 64)
    with pytest.raises(ItemError) as reported:
        slide.tile(1200, 0, 64)
    assert reported.value.reason == Unusable.UNREADABLE
    with pytest.raises(ItemError):
        tissue_tiles(open_slide(tmp_path / "a.svs"), 256)


def test_a_slide_that_says_it_is_absurdly_large(tmp_path: Path) -> None:
    import tifffile

    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=True) as out:
        tiles = iter([np.zeros((64, 64, 3), np.uint8)] + [None] * (2**15 - 1))
        out.write(tiles, shape=(64, 2**21, 3), dtype=np.uint8, tile=(64, 64), photometric="rgb", metadata=None)
    with pytest.raises(ItemError) as reported:
        open_slide(tmp_path / "a.tif")
    assert reported.value.reason == Unusable.TOO_LARGE


def test_workers_and_closing(biopsy: Path) -> None:
    from torch.utils.data import DataLoader

    slide = open_slide(biopsy)
    corners = [tuple(map(int, corner)) for corner in tissue_tiles(slide, 256)[:8]]
    alone = [slide.tile(x, y, 256) for x, y in corners]
    loader: Any = DataLoader(corners, batch_size=None, num_workers=2, collate_fn=lambda corner: slide.tile(*corner, 256))
    for mine, theirs in zip(alone, loader, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    handle = slide._handle()
    assert slide._handle() is handle
    assert list(DataLoader([0], batch_size=None, num_workers=1, collate_fn=lambda _: slide._handle() is handle)) == [False]
    slide.close()
    np.testing.assert_array_equal(slide.tile(*corners[0], 256), alone[0])
    np.testing.assert_array_equal(copy.copy(slide).tile(*corners[0], 256), alone[0])  # as a spawned worker gets it


@pytest.mark.long
def test_a_slide_of_ten_thousand_million_pixels_takes_little_memory(tmp_path: Path) -> None:
    """100,000 x 100,000 pixels, three levels, few tiles that are not empty: opened, looked over and read below 2 GB."""
    from tests.measured import run_process

    size = huge_slide(tmp_path / "a.tif")
    script = (
        "import sys; from pathlib import Path; from fedml.cohort.slides.slide import open_slide, tissue_tiles\n"
        "slide = open_slide(Path(sys.argv[1])); found = tissue_tiles(slide, 256)\n"
        "assert slide.size == (100_000, 100_000) and len(slide.levels) == 3 and len(found) == 4096, (slide.levels, len(found))\n"
        "for x, y in found[:: max(1, len(found) // 200)]: slide.tile(int(x), int(y), 256)\n"
        "whole = slide.tile(0, 0, 6250, level=2)\n"
    )
    ended = run_process([sys.executable, "-c", script, str(tmp_path / "a.tif")], tmp_path, {"PYTHONPATH": str(ROOT)})
    print(f"peak {ended.peak_mb:.0f} MB in {ended.seconds:.1f} s, file {size / 1e6:.1f} MB")
    assert ended.peak_mb < 2000
