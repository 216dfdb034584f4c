"""MONAI's transforms by name: the deterministic ones are in the cache, the random ones are drawn for each image; arguments are checked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai import transforms as mt

from fedml.clients.site.manifest import read_site
from fedml.clients.site.read import read_cohort
from fedml.cohort.images.images import Images
from fedml.cohort.images.transforms import prepared
from fedml.errors import InputError
from fedml.learning.augment import augmentation
from fedml.study.imaging import Augment, OwnTransform, Preprocess
from fedml.study.monai_transforms import DETERMINISTIC, MOVES, RANDOM, transform_problem
from fedml.study.read import read_study
from tests.conftest import make_study, to_toml
from tests.lesions import MIDDLE, SIZE, lesion_site, plan

NEEDED: dict[str, dict[str, Any]] = {
    "ScaleIntensityRangePercentilesd": {"lower": 2, "upper": 98, "b_min": 0.0, "b_max": 1.0},
    "ClipIntensityPercentilesd": {"lower": 2, "upper": 98}, "ThresholdIntensityd": {"threshold": 0.2}, "AdjustContrastd": {"gamma": 1.5},
    "GaussianSmoothd": {"sigma": 1.2}, "MedianSmoothd": {"radius": 1},
    "RandScaleIntensityd": {"factors": 0.3}, "RandShiftIntensityd": {"offsets": 0.3}, "RandFlipd": {"spatial_axis": 1},
    "RandRotated": {"range_x": (0.1, 0.4)}, "RandZoomd": {"min_zoom": 0.7, "max_zoom": 1.4}, "RandAffined": {"rotate_range": 0.3},
}  # fmt: skip


def picture(size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(1, *size, dtype=torch.uint8)
    mask[(0, *(slice(2, 7) for _ in size))] = 1
    return torch.rand(1, *size, generator=generator) + mask, mask


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("size", [(13, 11), (9, 10, 11)])
def test_a_deterministic_transform_is_monais_and_moves_nothing(name: str, size: tuple[int, ...]) -> None:
    options, (image, mask) = NEEDED.get(name, {}), picture(size)
    spec = Preprocess(size=size, transforms=(OwnTransform(name=name, options=options),))
    found, drawn = prepared(spec, image.numpy(), None, mask.numpy())
    reference = getattr(mt, name)(["image"], **options)({"image": image.clone()})["image"]
    np.testing.assert_allclose(found, np.asarray(reference, np.float32), rtol=1e-6, atol=1e-6)
    assert drawn is not None
    np.testing.assert_array_equal(drawn, mask.numpy())


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("size", [(13, 11), (9, 10, 11)])
def test_a_random_transform_follows_from_person_image_and_epoch_alone(name: str, size: tuple[int, ...]) -> None:
    change = augmentation(Augment(), (OwnTransform(name=name, options=NEEDED.get(name, {})),), seed=5)
    assert change is not None
    image, mask = picture(size)
    batch = {"image": image.repeat(3, *(1 for _ in range(len(size) + 1))), "image_person": torch.tensor([0, 1, 1])}
    batch["mask"] = mask.repeat(3, *(1 for _ in range(len(size) + 1)))
    out = change(batch, ["p", "q"], 0)
    assert out["image"].shape == batch["image"].shape
    assert bool(torch.isfinite(out["image"]).all())
    turned = change({key: value[[1]] if key != "image_person" else torch.tensor([0]) for key, value in batch.items()}, ["q"], 0)
    assert torch.equal(turned["image"][0], out["image"][1])
    later = change(batch, ["p", "q"], 1)
    if name != "RandFlipd":  # which either flips or does not
        assert not torch.equal(out["image"][0], later["image"][0])
        assert not torch.equal(out["image"][1], out["image"][2])
    assert set(out["mask"].unique().tolist()) <= {0, 1}
    if name not in MOVES:
        assert torch.equal(out["mask"], batch["mask"])


def test_masks_move_with_their_image() -> None:
    for name in MOVES:
        change = augmentation(Augment(), (OwnTransform(name=name, options=NEEDED[name]),), seed=5)
        mask = torch.zeros(1, 1, 24, 24, dtype=torch.uint8)
        mask[..., 6:15, 4:12] = 1
        assert change is not None
        out = change({"image": mask.float(), "mask": mask, "image_person": torch.tensor([0])}, ["p"], 0)
        assert not torch.equal(out["mask"], mask)
        assert ((out["image"] > 0.5) == (out["mask"] > 0)).float().mean() > 0.97


def test_a_study_file_names_them_and_the_cache_holds_the_deterministic_ones(tmp_path: Path) -> None:
    lesion_site(tmp_path / "a", "a", [MIDDLE] * 12)
    base = to_toml(make_study(("image",), **plan(SIZE)).model_dump(mode="json", exclude_none=True))
    extra = '[[cohort.image.transforms]]\nname = "GaussianSmoothd"\nsigma = 1.5\n'
    extra += '[[cohort.image.transforms]]\nname = "RandGaussianNoised"\nprob = 0.5\nstd = 0.1\n'
    (tmp_path / "plain.toml").write_text(base)
    (tmp_path / "study.toml").write_text(base + extra)
    tomllib.loads(base + extra)
    study, plain = read_study(tmp_path / "study.toml"), read_study(tmp_path / "plain.toml")
    assert study.sha256 != plain.sha256
    site = read_site(tmp_path / "a" / "site.toml")
    smooth, raw = (read_cohort(site, s).input("image", Images) for s in (study, plain))
    assert smooth is not None
    assert raw is not None
    assert [t.name for t in smooth.drawn] == ["RandGaussianNoised"]
    assert raw.drawn == ()
    expected = mt.GaussianSmooth(1.5)(torch.from_numpy(raw.pixels[0]))
    np.testing.assert_allclose(smooth.pixels[0], expected, atol=2e-3)
    assert [t.name for t in smooth.select(np.array([0, 1])).drawn] == ["RandGaussianNoised"]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("RandGaussianNoised", {"prob": 2}, "RandGaussianNoised takes a number from 0 to 1"),
        ("RandGaussianNoised", {"sd": 1}, '"sd" is not an argument of RandGaussianNoised here'),
        ("RandAdjustContrastd", {"gamma": [2, 1]}, "the lower first"),
        ("NormalizeIntensityd", {"nonzero": 1}, "true or false"),
        ("ClipIntensityPercentilesd", {"lower": 5}, "needs upper"),
        ("ClipIntensityPercentilesd", {"lower": 5, "upper": 4}, "the first must be smaller"),
        ("MedianSmoothd", {"radius": 1.5}, "a whole number"),
        ("RandFlipd", {"spatial_axis": 3}, "a whole number from 0 to 2"),
    ],
)
def test_arguments_are_checked(name: str, options: dict[str, Any], says: str) -> None:
    assert says in transform_problem(name, options)


@pytest.mark.parametrize("name", ["LoadImaged", "Lambdad", "RandCropByPosNegLabeld", "SaveImaged", "os:system", "RandGaussianNoise"])
def test_no_other_transform_is_accepted(name: str) -> None:
    with pytest.raises(InputError):
        make_study(("image",), **plan(SIZE, cohort__image={"size": list(SIZE), "transforms": [{"name": name}]}))


def test_random_ones_are_refused_where_they_do_not_hold() -> None:
    image = {"size": [8, 8], "transforms": [{"name": "RandGaussianNoised", "std": 0.1}]}
    privacy = {"unit": "patient", "noise_multiplier": 1.0, "persons": {"a": 90, "b": 90}}
    with pytest.raises(InputError, match=r'RandGaussianNoised is not built for unit = "patient"'):
        make_study(("image",), cohort__image=image, privacy=privacy)
    with pytest.raises(InputError, match="RandFlipd names axis 2; the axes of 2 start at 0"):
        make_study(("image",), cohort__image={"size": [8, 8], "transforms": [{"name": "RandFlipd", "spatial_axis": 2}]})
    with pytest.raises(InputError, match="RandGaussianNoised is not built for tiles"):
        make_study(("image",), cohort__image={"tiles": {"size_px": 64}, "transforms": [{"name": "RandGaussianNoised"}]})
