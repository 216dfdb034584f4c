"""fedml-site preview: what is drawn is what the network gets; the sheet stays at the site and names no person."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fedml.clients.cli import app
from fedml.clients.desk.preview import preview
from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import load_cohort
from fedml.errors import InputError, SiteError
from fedml.pictures import COLOURS, plane, planes, sheet, spread
from fedml.study.study import Study
from tests.conftest import clinical_site, image_site, make_study, public_data, to_toml, write_csv, write_manifest, write_picture


def rgb(colour: str) -> list[int]:
    return [int(colour[k : k + 2], 16) for k in (1, 3, 5)]


def pixels(data: bytes | Path) -> np.ndarray:
    with Image.open(data if isinstance(data, Path) else io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def count(picture: np.ndarray, colour: str, off: int = 12) -> int:
    return int((abs(picture - rgb(colour)).max(-1) <= off).sum())


def volume_study() -> Study:
    image = {"size": [12, 10, 8], "orientation": "RAS", "spacing_mm": [1.0, 1.0, 2.0], "window": [0, 100]}
    return make_study(("image",), ("a",), cohort__image=image, cohort__classes=[0, 1, 2], model__task="segmentation",
                      model__segmentation={"channels": [4, 8]})  # fmt: skip


def volume_site(folder: Path, persons: int = 5) -> Path:
    """Volumes whose second class is one voxel wide and far from the middle."""
    rng = np.random.default_rng(1)
    ids = [f"a{k}" for k in range(persons)]
    folder.mkdir()
    write_csv(folder / "persons.csv", ids, {"y": [0] * persons})
    write_csv(folder / "split.csv", ids, {"part": ["train"] * (persons - 1) + ["test"]})
    for person in ids:
        mask = np.zeros((12, 10, 16), np.uint8)
        mask[3:6, 3:6, 4:8], mask[9, 7, 13] = 1, 2
        write_picture(folder / "images" / f"{person}.nii.gz", (rng.normal(50, 10, mask.shape) + 20 * mask).astype(np.int16))
        write_picture(folder / "masks" / f"{person}.nii.gz", mask)
    place = '{ path = "images", format = "nifti", masks = "masks" }'
    return write_manifest(folder, "a", image=place, split='"split.csv"')


def test_a_plane_is_the_network_s_own_voxels_with_most_of_the_mask(tmp_path: Path) -> None:
    study, site = volume_study(), read_site(volume_site(tmp_path / "a"))
    cohort = load_cohort((str(site.file),), study)
    batch = cohort.batch([0])
    image, mask = batch["image"][0].numpy(), batch["mask"][0, 0].numpy()
    assert (image.shape, image.min() >= 0, image.max() <= 1) == ((1, 12, 10, 8), True, True)
    first, second, third = planes(image, mask, "1", spacing=batch["image_spacing"][0].tolist(), orientation="RAS")
    at = (mask > 0).sum((0, 1)).argmax()
    np.testing.assert_array_equal(first.pixels, image[0, :, :, at].T)
    np.testing.assert_array_equal(first.labels, mask[:, :, at].T)
    np.testing.assert_array_equal(second.pixels, image[0, :, (mask > 0).sum((0, 2)).argmax()].T)
    np.testing.assert_array_equal(third.pixels, image[0, (mask > 0).sum((1, 2)).argmax()].T)
    assert (first.aspect, second.aspect, third.aspect) == (1.0, 2.0, 2.0)
    assert first.across == f"L - R, slice {at + 1} of 8"
    assert (first.along, second.along) == ("P - A", "I - S")
    assert plane(image, mask, "", axis=2, at=0).labels.max() == mask[:, :, 0].max()


def test_each_class_has_its_contour_and_a_sheet_without_masks_has_none() -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[5:15, 5:20], mask[20:, 30:] = 1, 2  # the second touches the border
    image = np.full((1, 30, 40), 50.0)
    image[0, 2] = 100
    with_masks = pixels(sheet(planes(image, mask, "1"), columns=1, title="t"))
    without = pixels(sheet(planes(image, None, "1"), columns=1, title="t"))
    for colour in COLOURS[:2]:
        assert count(with_masks, colour) > 40
        assert count(without, colour) == 0
    assert count(with_masks, COLOURS[2]) == 0
    assert sheet(planes(image, mask, "1"), columns=1, title="t") == sheet(planes(image, mask, "1"), columns=1, title="t")


@pytest.mark.parametrize(("rows", "wanted", "chosen"), [(3, 6, [0, 1, 2]), (10, 4, [0, 3, 6, 9]), (5, 1, [0])])
def test_persons_are_spread_over_the_table(rows: int, wanted: int, chosen: list[int]) -> None:
    assert spread(np.arange(rows), wanted).tolist() == chosen


def test_the_command_writes_for_this_account_alone_and_names_no_person_in_the_picture(tmp_path: Path) -> None:
    volume_site(tmp_path / "a")
    (tmp_path / "study.toml").write_text(to_toml(volume_study().model_dump(mode="json", exclude_defaults=True)))
    done = CliRunner().invoke(app, ["preview", str(tmp_path / "study.toml"), "--site", str(tmp_path / "a"), "--persons", "3"])
    assert done.exit_code == 0, done.output
    path = tmp_path / "a" / ".fedml" / "preview.png"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert sorted(p.name for p in path.parent.iterdir()) == ["cache", "preview.png"]
    assert "it is not sent" in done.output
    assert [line.strip() for line in done.output.splitlines() if line.startswith("  ")] == ["1: a0", "2: a2", "3: a4"]
    with Image.open(path) as picture:
        assert not {k for k in picture.info if k not in ("dpi",)}  # no text chunk: neither a name nor a program
    assert count(pixels(path), COLOURS[0]) > 100


@pytest.mark.parametrize(
    ("out", "says"), [("nowhere/p.png", "folder does not exist"), ("p.jpg", "ends with .png"), ("d.png", "is a folder")]
)
def test_an_impossible_output_path_is_reported_before_anything_is_read(tmp_path: Path, out: str, says: str) -> None:
    site = read_site(image_site(tmp_path / "a", "a", 4, 1))
    (tmp_path / "d.png").mkdir()
    (tmp_path / "a" / "persons.csv").unlink()
    with pytest.raises(InputError, match=says):
        preview(site, make_study(("image",)), out=tmp_path / out)


def test_a_study_or_site_without_images_and_a_site_off_the_roster_are_reported(tmp_path: Path) -> None:
    site = read_site(clinical_site(tmp_path / "a", "a", 20, 1))
    with pytest.raises(InputError, match="reads no images"):
        preview(site, make_study())
    with pytest.raises(InputError, match="has no image"):
        preview(site, make_study(("image", "clinical")))
    with pytest.raises(SiteError, match="not in the roster"):
        preview(site, make_study(("image",), ("b",)))
    assert not (tmp_path / "a" / ".fedml").exists()


def test_a_real_series_and_its_segmentation_are_drawn(tmp_path: Path) -> None:
    real = public_data("dicom_mr") / "UCSF-BR-06"
    folder = tmp_path / "a"
    for there, name in (("image_dce_ser", "images"), ("mask", "masks")):
        (folder / name).mkdir(parents=True)
        (folder / name / "UCSF-BR-06").symlink_to(real / there)
    write_csv(folder / "persons.csv", ["UCSF-BR-06"], {"y": [0]})
    write_csv(folder / "split.csv", ["UCSF-BR-06"], {"part": ["train"]})
    place = '{ path = "images", format = "dicom", masks = "masks" }'
    site = read_site(write_manifest(folder, "a", image=place, split='"split.csv"'))
    image = {"size": [64, 96, 80], "orientation": "RAS", "spacing_mm": [4.0, 2.0, 2.0]}
    study = make_study(("image",), ("a",), cohort__image=image, model__task="segmentation")
    reported: list[str] = []
    assert count(pixels(preview(site, study, say=reported.append)), COLOURS[0]) > 200
    assert reported[-1].strip() == "1: UCSF-BR-06"
