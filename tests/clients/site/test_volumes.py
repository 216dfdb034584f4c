"""Patches are parts of the prepared image and its mask, centred as stated, and follow from one generator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.cohort.images.images import Images
from fedml.cohort.images.volumes import Volumes
from fedml.cohort.persons import Cohort
from fedml.study.study import Study
from fedml.tasks.several import Several
from tests.conftest import make_study
from tests.lesions import lesion_site, plan

SIZES = ((24, 24, 12), (18, 30, 9), (10, 16, 20))


def study_of(**patches: object) -> Study:
    image = {"orientation": "RAS", "spacing_mm": [1.0, 1.0, 1.0], "window": [-100.0, 250.0], "patches": {"size": [8, 10, 12], **patches}}
    return make_study(("image",), **plan((), cohort__image=image))


def cohort_of(folder: Path, study: Study) -> tuple[Cohort, Images]:
    site = lesion_site(folder / "a", "a", [(4, 5, 4), (8, 12, 6), (3, 3, 3)] * 10, sizes=SIZES)
    cohort = read_cohort(read_site(site), study)
    images = cohort.input("image", Images)
    assert images is not None
    return cohort, images


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_images_keep_their_size_and_patches_are_parts_of_them(tmp_path: Path) -> None:
    study = study_of(per_step=3, foreground=0.5)
    cohort, images = cohort_of(tmp_path, study)
    assert isinstance(images.pixels, Volumes)
    assert isinstance(images.masks, Volumes)
    # padded to a patch, never cropped
    assert {images.pixels[k].shape[1:] for k in range(len(images.pixels))} == {(24, 24, 12), (18, 30, 12), (10, 16, 20)}
    rows = np.arange(4)
    batch = cohort.batch(rows, generator())
    assert batch["image"].shape == (12, 1, 8, 10, 12)
    assert batch["image_person"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    for k, (patch, mask) in enumerate(zip(batch["image"].numpy(), batch["mask"].numpy(), strict=True)):
        whole, drawn = images.pixels[k // 3][0], images.masks[k // 3][0]
        windows = np.lib.stride_tricks.sliding_window_view(whole, patch.shape[1:])
        found = np.argwhere((windows == patch[0]).all((3, 4, 5)))
        assert len(found) == 1
        a, b, c = found[0]
        np.testing.assert_array_equal(drawn[a : a + 8, b : b + 10, c : c + 12], mask[0])
    again = cohort.batch(rows, generator())
    assert torch.equal(again["image"], batch["image"])
    assert not torch.equal(cohort.batch(rows, generator(1))["image"], batch["image"])


@pytest.mark.parametrize("foreground", [0.0, 0.3, 1.0])
def test_the_share_of_patches_on_the_foreground_is_as_stated(tmp_path: Path, foreground: float) -> None:
    """A lesion far from every edge of a large image: a centre is in it by this share, and otherwise by its volume's."""
    image = {"window": [-100.0, 250.0], "patches": {"size": [3, 3, 3], "foreground": foreground, "per_step": 200}}
    study = make_study(("image",), **plan((), cohort__image=image))
    site = lesion_site(tmp_path / "a", "a", [(15, 15, 15)] * 12, sizes=((31, 31, 31),))
    cohort = read_cohort(read_site(site), study)
    drawn = torch.cat([cohort.batch([row], generator(row))["mask"] for row in range(10)])
    centre = drawn[:, 0, 1, 1, 1].float().mean().item()
    expected = foreground + (1 - foreground) * 33 / 31**3
    assert centre == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / len(drawn)) + 1e-12)


def test_balanced_patches_are_of_each_class_alike_often(tmp_path: Path) -> None:
    folder, ids = tmp_path / "a", [f"p{k}" for k in range(12)]
    folder.mkdir()
    masks = np.zeros((12, 40, 40), np.uint8)
    masks[:, 5:25, 5:25], masks[:, 35, 35] = 1, 2  # 400 pixels, and one
    np.savez(folder / "images.npz", ids=np.array(ids), images=masks * 50, masks=masks)
    (folder / "persons.csv").write_text("id\n" + "\n".join(ids))
    (folder / "site.toml").write_text(
        '[site]\nname = "a"\n[data]\npersons = "persons.csv"\npublic = true\nimage = { path = "images.npz", format = "npz" }\n'
    )
    shares = []
    for balanced in (False, True):
        image = {"window": [0.0, 100.0], "patches": {"size": [3, 3], "foreground": 1.0, "per_step": 100, "balanced": balanced}}
        study = make_study(("image",), **plan((), cohort__image=image, cohort__classes=[0, 1, 2]))
        cohort = read_cohort(read_site(folder / "site.toml"), study)
        centre = torch.cat([cohort.batch([row], generator(row))["mask"][:, 0, 1, 1] for row in range(10)])
        shares.append((centre == 2).float().mean().item())
        assert not (centre == 0).any()
    assert shares[0] < 0.02
    assert shares[1] == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(1000))


def test_evaluation_gets_whole_images_also_of_different_sizes(tmp_path: Path) -> None:
    cohort, images = cohort_of(tmp_path, study_of())
    batch = cohort.batch([0, 1, 2])
    assert isinstance(batch["image"], Several)
    assert [tuple(one.shape) for one in batch["image"]] == [(1, 24, 24, 12), (1, 18, 30, 12), (1, 10, 16, 20)]
    np.testing.assert_array_equal(batch["image"][1].numpy(), images.pixels[1])
    one = cohort.batch([3])
    assert one["image"].shape == (1, 1, 24, 24, 12)
    assert one["original"][0].size == (24, 24, 12)
    with pytest.raises(ValueError, match="one by one"):
        images.pixels[np.arange(2)]


def test_selected_and_pooled_images_are_the_same_images(tmp_path: Path) -> None:
    from fedml.cohort.images.images import pool_images

    _, images = cohort_of(tmp_path, study_of())
    some = images.select(np.array([2, 5, 7]))
    both = pool_images([(images, 30), (some, 3)])
    for k, at in enumerate([2, 5, 7]):
        np.testing.assert_array_equal(some.pixels[k], images.pixels[at])
        np.testing.assert_array_equal(both.pixels[30 + k], images.pixels[at])
        np.testing.assert_array_equal(both.originals[30 + k].mask(), images.originals[at].mask())  # type: ignore[index]
    assert both.content().keys() == images.content().keys()
