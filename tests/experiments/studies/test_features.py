"""The network of fixed features: formulas of one image alone, nothing but the last layer trained or sent, and a private run that learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedml.errors import InputError
from fedml.modalities.layout import Layout
from fedml.models.fusion import build_model, learned
from fedml.networks.image import build_image_network
from fedml.study.sections import ImageNetwork
from tests.conftest import federate, image_site, make_study

GABOR = ImageNetwork(net="gabor")


def features(images: torch.Tensor) -> torch.Tensor:
    network = build_image_network(GABOR, images.shape[1:], 2)
    assert isinstance(network, torch.nn.Sequential)
    made: torch.Tensor = network[0](images)
    return made


def waves(angle: float, length: float, side: int = 28) -> torch.Tensor:
    """(1, 1, side, side): a plane wave whose crests are ``length`` places apart along ``angle`` (radians from the horizontal)."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    along = x * np.cos(angle) + y * np.sin(angle)
    return torch.sin(2 * np.pi * along / length)[None, None].float()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 30, 17), (2, 5, 7), (1, 3, 3), (1, 200, 90)])
def test_every_size_gives_features_of_length_one_and_an_output(shape: tuple[int, ...]) -> None:
    images = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    made = features(images)
    assert made.norm(dim=1) == pytest.approx(torch.ones(5), abs=1e-5)
    assert build_image_network(GABOR, shape, 3)(images).shape == (5, 3)
    assert features(images[:0]).shape == (0, made.shape[1])


def test_features_follow_from_the_image_alone() -> None:
    images = torch.randn(150, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    together, reverse = features(images), features(images.flip(0)).flip(0)
    alone = torch.cat([features(one[None]) for one in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(together, reverse, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


def test_brightness_and_contrast_of_a_whole_film_hardly_matter() -> None:
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    smooth = torch.nn.functional.avg_pool2d(images, 5, 1, 2) * 3
    apart = (features(smooth) - features(1.5 * smooth + 0.7)).norm(dim=1)
    assert (apart < 0.05).all()
    assert ((features(smooth) - features(smooth.flip(0))).norm(dim=1) > 0.5).all()


def test_a_blank_image_has_no_features() -> None:
    assert features(torch.full((2, 1, 28, 28), 3.0)).abs().max() < 1e-3


@pytest.mark.parametrize("direction", range(8))
@pytest.mark.parametrize(("group", "length"), [(0, 8 / 3), (1, 16 / 3)])
def test_a_wave_is_strongest_in_its_own_direction_and_length(direction: int, group: int, length: float) -> None:
    pixels, places = 14 * 14, 8 * 7 * 7
    network = build_image_network(GABOR, (1, 28, 28), 2)
    assert isinstance(network, torch.nn.Sequential)
    strengths = network[0]._strength(waves(np.pi * direction / 8, length), group)
    assert strengths.mean((0, 2, 3)).argmax() == direction
    other = network[0]._strength(waves(np.pi * direction / 8, 8.0), 1 - group)
    assert strengths.mean((0, 2, 3)).max() > other.mean((0, 2, 3)).max()
    assert features(waves(0.0, length)).shape == (1, pixels + 2 * places)


def test_only_the_last_layer_is_learned_and_it_starts_at_nothing() -> None:
    study = make_study(("image",), model__image={"net": "gabor"})
    model = build_model(study, Layout((1, 28, 28)))
    sent = learned(model)
    assert {name: tuple(v.shape) for name, v in sent.items()} == {"encoder.image.1.weight": (2, 980), "encoder.image.1.bias": (2,)}
    assert all(not v.any() for v in sent.values())
    assert all(name.startswith(("encoder.image.1.", "preprocess.")) for name in model.state_dict())
    assert [n for n, p in model.named_parameters() if p.requires_grad] == list(sent)


def test_images_of_three_dimensions_are_refused_with_the_fix() -> None:
    with pytest.raises(InputError, match=r'is for images of two dimensions.*take "cnn"'):
        build_image_network(GABOR, (1, 8, 8, 8), 2)


def striped_site(folder: Path, name: str, persons: int, seed: int) -> Path:
    """A site of ``image_site`` whose images are stripes in noise: steep where the label is 1, flat where it is 0."""
    manifest = image_site(folder, name, persons, seed, size=(16, 16))
    labels = np.array([int(line.split(",")[1]) for line in (folder / "persons.csv").read_text().split()[1:]])
    held = np.load(folder / "images.npz")
    stripes = np.stack([waves(np.pi / 2 * (1 - label), 16 / 3, 16)[0, 0].numpy() for label in labels])
    noise = np.random.default_rng(seed).normal(0, 40, stripes.shape)
    np.savez(folder / "images.npz", ids=held["ids"], images=(128 + 40 * stripes + noise).clip(0, 255).astype(np.uint8))
    return manifest


def test_a_private_run_learns_what_no_mean_of_pixels_tells(tmp_path: Path) -> None:
    manifests = [striped_site(tmp_path / name, name, 250, i) for i, name in enumerate("ab")]
    study = make_study(
        ("image",),
        model__image={"net": "gabor"},
        training={"optimizer": "sgd", "lr": 40.0, "batch_size": 0, "evaluate_every": 0},
        federation__rounds=20,
        strategy={"name": "fedavgm"},
        privacy={"unit": "patient", "epsilon": 3.0, "delta": 1e-4, "clipping_norm": 0.1, "persons": {"a": 180, "b": 180}},
    )
    run = federate(study, manifests, tmp_path / "run")
    assert set(run.learned()) == {"encoder.image.1.weight", "encoder.image.1.bias"}
    assert run.final["metrics"]["test"]["all"]["auroc"] > 0.8
