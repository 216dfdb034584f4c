"""Quality of tiles, stains and a site's own scale: what is left out is what was planted, and it is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.cohort.images.reasons import Unusable
from fedml.cohort.slides.cohort import Slides, read_slides
from fedml.cohort.slides.quality import REASONS, fault, fold, pen, sharpness
from fedml.cohort.slides.slide import open_slide, tissue_tiles
from fedml.cohort.slides.stain import STAINS, changed, jittered
from fedml.errors import InputError
from fedml.modalities.registry import MODALITIES
from fedml.study.study import parse_study
from fedml.study.tiles import Quality, Tiles
from tests.conftest import federate, make_study, public_data, write_manifest
from tests.experiments.studies.test_slide_run import SPEC, slide_changes, slide_site, write_tiff
from tests.fedml.cohort.slides.dicom_slide import write_series

SIZE = 224


@pytest.fixture(scope="module")
def tiles() -> list[np.ndarray[Any, Any]]:
    """Tiles with tissue of a real slide in focus."""
    slide = open_slide(public_data("wsi") / "CMU-1-Small-Region.svs")
    return [slide.tile(int(x), int(y), SIZE) for x, y in tissue_tiles(slide, SIZE)]


def blurred(tile: np.ndarray[Any, Any], pixels: float) -> np.ndarray[Any, Any]:
    return np.moveaxis(np.asarray(Image.fromarray(np.moveaxis(tile, 0, 2)).filter(ImageFilter.GaussianBlur(pixels))), 2, 0)


def inked(tile: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    out = tile.copy()
    out[:, :80] = np.array(colour, np.uint8)[:, None, None]
    return out


def test_real_tissue_in_focus_is_kept_and_ink_and_blur_are_not(tiles: list[np.ndarray[Any, Any]]) -> None:
    rules = Quality()
    assert len(tiles) == 43
    assert [fault(tile, rules) for tile in tiles] == [None] * 43
    for colour in ((30, 60, 180), (20, 130, 90), (200, 30, 40)):  # of a blue, a green and a red pen
        assert [fault(inked(tile, colour), rules) for tile in tiles] == [0] * 43
    assert [fault(blurred(tile, 3), rules) for tile in tiles] == [1] * 43
    doubled = [((tile / 255) ** 2 * 255).astype(np.uint8) for tile in tiles]  # twice the tissue: twice the optical density
    assert all(fold(two) >= fold(one) for one, two in zip(tiles, doubled, strict=True))
    assert sum(fault(two, Quality(pen=1, blur=0)) == 2 for two in doubled) > 10
    off = Quality(pen=1, blur=0, fold=1)
    assert fault(inked(blurred(tiles[0], 9), (30, 60, 180)), off) is None


def test_each_measure_is_what_it_says() -> None:
    flat = np.full((3, 32, 32), 128, np.uint8)
    assert (pen(flat), sharpness(flat), fold(flat)) == (0, 0, 0)
    spot = flat.copy()
    spot[:, 16, 16] = 138
    values = np.zeros(30 * 30)
    values[:5] = (-40, 10, 10, 10, 10)
    assert sharpness(spot) == pytest.approx(values.var())
    half = flat.copy()
    half[:, :, :16] = np.array((60, 10, 50), np.uint8)[:, None, None]  # saturation .75, intensity .157
    assert fold(half) == 0.5
    half[:, :, :8] = np.array((30, 60, 180), np.uint8)[:, None, None]
    assert pen(half) == 0.25


def marked(folder: Path) -> Path:
    """A slide of 6 x 5 tiles of sharp tissue; three with pen, two out of focus."""
    rng = np.random.default_rng(0)
    pixels = np.full((6 * 32, 7 * 32, 3), 243, np.uint8)
    pixels[: 5 * 32, : 6 * 32] = rng.normal((200, 120, 170), 12, (5 * 32, 6 * 32, 3)).clip(0, 255).astype(np.uint8)
    for k in (0, 7, 11):
        pixels[k // 6 * 32 : k // 6 * 32 + 32, k % 6 * 32 : k % 6 * 32 + 16] = (30, 60, 180)
    for k in (13, 20):
        pixels[k // 6 * 32 : k // 6 * 32 + 32, k % 6 * 32 : k % 6 * 32 + 32] = (200, 120, 170)
    return write_tiff(folder / "p.tif", pixels)


def slides_of(folder: Path, quality: Quality | None) -> Slides:
    return read_slides(folder / "s", ["p", "q"], Tiles(size_px=32, quality=quality), cache=folder / "cache", max_quarantined=1)


def test_what_is_left_out_is_counted_and_kept_with_the_corners(tmp_path: Path) -> None:
    marked(tmp_path / "s")
    every = slides_of(tmp_path, None)
    assert every.tiles == 30
    for _ in range(2):  # the second time from the cache
        found = slides_of(tmp_path, Quality())
        assert dict(zip(REASONS, found.slides[0].left_out, strict=True)) == {"pen": 3, "blur": 2, "fold": 0}
        kept = {tuple(corner) for corner in found.slides[0].corners.tolist()}
        gone = {tuple(corner) for corner in every.slides[0].corners.tolist()} - kept
        assert gone == {(k % 6 * 32, k // 6 * 32) for k in (0, 7, 11, 13, 20)}
    flat = np.stack([tile for part in found.bag(np.array([0])) for tile in part.numpy()]).astype(np.float64)
    np.testing.assert_array_equal(found.sums(np.array([0]))[1], flat.sum((0, 2, 3)))
    write_tiff(tmp_path / "s" / "q.tif", np.full((64, 64, 3), (220, 130, 190), np.uint8))  # tissue, and all of it without a structure
    (excluded,) = slides_of(tmp_path, Quality()).excluded
    assert (excluded.person, excluded.reason) == ("q", Unusable.NO_TISSUE)
    assert "all 4 tiles with tissue are left out (0 pen, 4 blur, 0 fold)" in excluded.text


def test_the_site_is_told_what_was_left_out(tmp_path: Path) -> None:
    study = make_study(("image",), **slide_changes(cohort__image={"tiles": {**SPEC, "quality": {"blur": 0}}}))
    cohort = read_cohort(read_site(slide_site(tmp_path / "a", "a", 5, 1)), study)
    summary: Any = MODALITIES["image"].summary
    lines = summary(cohort.inputs["image"], study)
    assert lines[1] == "tiles left out by [cohort.image.tiles.quality]: 0 for pen, 0 for blur, 0 for fold; on 0 of these slides"


# --- stains


def test_stains_change_as_deconvolution_says() -> None:
    """A pixel of known amounts of stain; and no change gives the same pixels."""
    amounts = np.array([[0.4, 0.1, 0.3], [0.2, 0.5, 0.0], [0.0, 0.1, 0.05]])
    pixels = np.rint(255 * np.exp(-(STAINS.T @ amounts))).astype(np.uint8).reshape(3, 1, 3)
    expected = 255 * np.exp(-(STAINS.T @ (amounts * np.array([1.2, 0.9, 1.0])[:, None] + np.array([0.05, 0.0, -0.02])[:, None])))
    got = changed(pixels, np.array([1.2, 0.9, 1.0]), np.array([0.05, 0.0, -0.02]))
    np.testing.assert_allclose(got.reshape(3, 3), expected, atol=1.5)
    tile = np.random.default_rng(0).integers(1, 256, (3, 16, 16), np.uint8)
    np.testing.assert_array_equal(changed(tile, np.ones(3), np.zeros(3)), tile)
    np.testing.assert_array_equal(jittered(tile, 0.05, 7, 3), jittered(tile, 0.05, 7, 3))
    assert (jittered(tile, 0.05, 7, 3) != jittered(tile, 0.05, 7, 4)).any()
    assert np.abs(jittered(tile, 0.05, 7, 3).astype(int) - tile).max() < 80


def test_stains_change_in_training_only_and_by_the_seed(tmp_path: Path) -> None:
    site = slide_site(tmp_path / "a", "a", 5, 1)
    plain, drawn = (make_study(("image",), **slide_changes(training__augment={"stain": s})) for s in (0.0, 0.1))
    assert "stain" not in plain.canonical
    assert parse_study(drawn.canonical).sha256 == drawn.sha256 != plain.sha256
    one, other = read_cohort(read_site(site), plain), read_cohort(read_site(site), drawn)

    def pixels(cohort: Any, seed: int | None) -> Any:
        draw = None if seed is None else torch.Generator().manual_seed(seed)
        return torch.cat(list(cohort.batch([0, 1], draw)["image"])).float()

    assert torch.equal(pixels(one, None), pixels(other, None))
    assert torch.equal(pixels(other, 3), pixels(other, 3))
    apart = (pixels(one, 3) - pixels(other, 3)).abs()
    assert 1 < apart.mean() < 40
    assert len({tuple(tile.mean((1, 2)).tolist()) for tile in apart}) == len(apart)  # each tile by itself
    sites = [site, slide_site(tmp_path / "b", "b", 5, 2)]
    runs = [federate(drawn, sites, tmp_path / f"r{k}").sha256 for k in range(2)]
    assert runs[0] == runs[1] != federate(plain, sites, tmp_path / "r3").sha256


def test_stains_are_for_tiles() -> None:
    with pytest.raises(InputError, match="stain changes tiles of stained slides"):
        make_study(("image",), training__augment={"stain": 0.1})


# --- a site's own micrometres per pixel


@pytest.mark.parametrize("mpp", ["0.5", '{ "p*" = 0.5 }', '{ "*" = 0.5, "q*" = 0.7 }'])
def test_a_site_states_the_scale_that_its_files_lack(tmp_path: Path, mpp: str) -> None:
    slide_site(tmp_path / "a", "p", 8, 1)
    for path in (tmp_path / "a" / "slides").rglob("*.tif"):
        pixels = np.asarray(Image.open(path))
        write_tiff(path, pixels, mpp=None)
    study = make_study(("image",), **slide_changes(cohort__image={"tiles": {**SPEC, "mpp": 1.0}}))
    plain = write_manifest(tmp_path / "a", "a", image='{ path = "slides", format = "slide" }')
    with pytest.raises(InputError, match="does not state its micrometres per pixel; if you know them, write them as"):
        read_cohort(read_site(plain), study)
    site = write_manifest(tmp_path / "a", "a", image=f'{{ path = "slides", format = "slide", mpp = {mpp} }}')
    found = read_cohort(read_site(site), study).input("image", Slides)
    assert found is not None
    opened = open_slide(found.slides[0].path, 0.5)
    assert opened.mpp == (0.5, 0.5)
    half = np.asarray(Image.fromarray(np.moveaxis(opened.tile(64, 0, 64), 0, 2)).resize((32, 32), Image.Resampling.BOX))
    at = [tuple(corner) for corner in found.slides[0].corners.tolist()].index((64, 0))
    np.testing.assert_array_equal(torch.cat(list(found.bag(np.array([0]))))[at].numpy(), np.moveaxis(half, 2, 0))


def test_a_stated_scale_that_contradicts_a_file_ends_the_reading(tmp_path: Path) -> None:
    slide_site(tmp_path / "a", "p", 8, 1)  # its files state 0.5
    study = make_study(("image",), **slide_changes())
    right = write_manifest(tmp_path / "a", "a", image='{ path = "slides", format = "slide", mpp = 0.505 }')
    read_cohort(read_site(right), study)
    wrong = write_manifest(tmp_path / "a", "a", image='{ path = "slides", format = "slide", mpp = 0.25 }')
    with pytest.raises(InputError, match=r"states 0.5 x 0.5 micrometres per pixel, and site.toml states 0.25 in data.image mpp"):
        read_cohort(read_site(wrong), study)
    two = write_manifest(tmp_path / "a", "a", image='{ path = "slides", format = "slide", mpp = { "*" = 0.5, "p002*" = 0.51 } }')
    with pytest.raises(InputError, match=r"data.image mpp states two numbers for p002.tif"):
        read_cohort(read_site(two), study)


def test_a_slide_in_dicom_is_read_in_a_study(tmp_path: Path) -> None:
    site = slide_site(tmp_path / "a", "p", 4, 1)
    study = make_study(("image",), **slide_changes(cohort__image={"tiles": {**SPEC, "mpp": 0.5}}))
    cohort = read_cohort(read_site(site), study)
    before = [torch.cat(list(cohort[row]["image"])) for row in range(4)]
    for k in (1, 2):
        path = tmp_path / "a" / "slides" / f"p{k:03d}.tif"
        write_series(tmp_path / "a" / "slides" / path.stem, [np.asarray(Image.open(path))], series=str(k), label=False)
        path.unlink()
    after = read_cohort(read_site(site), study)
    for row in range(4):
        assert torch.equal(before[row], torch.cat(list(after[row]["image"])))
