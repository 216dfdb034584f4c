"""Whole slides in DICOM: the pixels of the source, its levels and scale; label and overview are no tissue; identifiers are found."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedml.cohort.deidentification import looked_at, require_clean
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.cohort.slides.cohort import Slides, read_slides
from fedml.cohort.slides.files import files_of_slide, slides_of_person
from fedml.cohort.slides.slide import open_slide, tile_at, tissue_tiles
from fedml.errors import InputError
from fedml.study.tiles import Tiles
from tests.conftest import public_data
from tests.fedml.cohort.slides.dicom_slide import JPEG, write_instance, write_series
from tests.fedml.cohort.slides.test_slide import scene, write_slide


def slides_in(folder: Path, **options: Any) -> Slides:
    return read_slides(folder, ["p1", "p2"], Tiles(size_px=64, mpp=0.5), cache=folder.parent / "cache", max_quarantined=0.5, **options)


def test_tiles_are_those_of_the_tiff_of_the_same_pixels(tmp_path: Path) -> None:
    """A crop of a real slide, as TIFF and as DICOM with two levels: each tile of each level, the tissue, the scale."""
    import tifffile

    whole = tifffile.imread(public_data("wsi") / "CMU-1-Small-Region.svs", key=0)[600:1624, 500:1524]
    levels = [whole, whole.reshape(512, 2, 512, 2, 3).mean((1, 3)).astype(np.uint8)]
    tiff = open_slide(write_slide(tmp_path / "p.tif", levels, mpp=0.5))
    write_series(tmp_path / "slides" / "p1", levels)
    (path,) = slides_of_person(tmp_path / "slides", "p1")
    ours = open_slide(path)
    assert ours.size == tiff.size == (1024, 1024)
    assert [tuple(level) for level in ours.levels] == [tuple(level) for level in tiff.levels]
    assert ours.mpp == pytest.approx((0.5, 0.5))
    for level, pixels in enumerate(levels):
        for x in range(0, pixels.shape[1], 96):
            for y in range(0, pixels.shape[0], 96):
                expected = tiff.tile(x << level, y << level, 96, level)
                np.testing.assert_array_equal(ours.tile(x << level, y << level, 96, level), expected)
    np.testing.assert_array_equal(tissue_tiles(ours, 128), tissue_tiles(tiff, 128))
    assert len(tissue_tiles(ours, 128))
    np.testing.assert_array_equal(tile_at(ours, 128, 256, 64, 1.0), tile_at(tiff, 128, 256, 64, 1.0))


def test_frames_in_jpeg_are_those_that_another_decoder_gives(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = np.asarray(Image.fromarray(rng.integers(60, 200, (8, 10, 3), np.uint8)).resize((320, 256), Image.Resampling.BICUBIC))
    write_series(tmp_path / "p1", [pixels], syntax=JPEG)
    ours = open_slide(slides_of_person(tmp_path, "p1")[0])
    for x in range(0, 320, 64):
        for y in range(0, 256, 64):
            data = io.BytesIO()
            Image.fromarray(pixels[y : y + 64, x : x + 64]).save(data, "jpeg", quality=95)
            expected = np.moveaxis(np.asarray(Image.open(data).convert("RGB")), 2, 0).astype(int)
            assert np.abs(ours.tile(x, y, 64).astype(int) - expected).max() <= 2  # the two decoders round colours in their own ways


def test_label_and_overview_are_no_tissue_and_belong_to_the_slide(tmp_path: Path) -> None:
    """A person whose folder has only these has no slide; what they show changes nothing."""
    write_series(tmp_path / "slides" / "p1", [scene(512, 384, [(64, 64, 320, 256)])])
    write_instance(tmp_path / "slides" / "p2" / "label.dcm", np.full((64, 64, 3), 120, np.uint8), series="2", flavour="LABEL")
    found = slides_in(tmp_path / "slides")
    assert found.person.tolist() == [0]
    assert found.tiles == 12
    assert [path.name for path in files_of_slide(found.slides[0].path)] == ["1.dcm", "label.dcm", "overview.dcm"]
    write_instance(tmp_path / "slides" / "p1" / "label.dcm", np.full((64, 64, 3), (90, 30, 110), np.uint8), number=20, flavour="LABEL")
    np.testing.assert_array_equal(slides_in(tmp_path / "slides").slides[0].sums, found.slides[0].sums)


def test_two_series_are_two_slides_also_in_folders_of_their_own(tmp_path: Path) -> None:
    pixels = scene(256, 256, [(0, 0, 128, 128)])
    write_series(tmp_path / "slides" / "p1" / "a", [pixels], series="1")
    write_series(tmp_path / "slides" / "p1" / "b", [pixels], series="2")
    for k in ("3", "4"):
        write_instance(tmp_path / "slides" / "p2" / f"{k}.dcm", pixels, series=k)
    found = slides_in(tmp_path / "slides")
    assert found.person.tolist() == [0, 0, 1, 1]
    assert found.tiles == 16


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"TotalPixelMatrixFocalPlanes": 3}, "several focal planes"),
        ({"NumberOfOpticalPaths": 2}, "several optical paths"),
        ({"ConcatenationUID": "1.2.3"}, "split instance"),
        ({"DimensionOrganizationType": "TILED_SPARSE"}, "not tiled in full"),
    ],
)
def test_what_would_be_read_in_part_is_not_read(tmp_path: Path, attributes: dict[str, Any], text: str) -> None:
    write_instance(tmp_path / "p1" / "1.dcm", scene(256, 256, [(0, 0, 128, 128)]), **attributes)
    with pytest.raises(ItemError, match=text):
        open_slide(tmp_path / "p1" / "1.dcm")


def test_a_truncated_instance_is_no_slide(tmp_path: Path) -> None:
    write_series(tmp_path / "slides" / "p1", [scene(256, 256, [(0, 0, 256, 256)])])
    write_series(tmp_path / "slides" / "p2", [scene(256, 256, [(0, 0, 256, 256)])], series="2")
    path = tmp_path / "slides" / "p2" / "1.dcm"
    path.write_bytes(path.read_bytes()[:-30_000])
    found = slides_in(tmp_path / "slides")
    assert [(one.person, one.reason) for one in found.excluded] == [("p2", Unusable.UNREADABLE)]


def test_identifiers_of_slides_are_found_as_of_other_dicom(tmp_path: Path) -> None:
    pixels = scene(256, 256, [(0, 0, 128, 128)])
    write_series(tmp_path / "slides" / "p1", [pixels], label=False)
    clean = tmp_path / "slides" / "p1" / "1.dcm"
    require_clean(clean, tmp_path / "slides", "p1", "quarantine")
    write_series(tmp_path / "slides" / "p2", [pixels], series="2", PatientName="Doe^Jane", ContainerIdentifier="S21-4711")
    named = tmp_path / "slides" / "p2" / "1.dcm"
    with pytest.raises(ItemError) as refused:
        require_clean(named, tmp_path / "slides", "p2", "quarantine")
    assert refused.value.reason is Unusable.NOT_DE_IDENTIFIED
    assert "Doe" not in str(refused.value)
    with pytest.raises(InputError):
        require_clean(named, tmp_path / "slides", "p2", "refuse")
    report = {one.where: {finding.why for finding in one.findings} for one in looked_at(tmp_path / "slides", ["p1", "p2"], pixels=False)}
    assert "a picture of the label" in report["p2/label.dcm"]
    assert "a picture of the glass with its label" in report["p2/overview.dcm"]
    assert any("name" in why for why in report["p2/1.dcm"])
    assert not any("picture" in why for why in report["p1/1.dcm"])
