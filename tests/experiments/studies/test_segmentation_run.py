"""Segmentation as a study: discs are found, two sites give what one site with all persons gives, and the same twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.conftest import federate, make_study, pooled, write_csv, write_manifest


def disc_site(folder: Path, name: str, persons: int, seed: int) -> Path:
    """Pictures of 20 x 17 with up to two discs, brighter by their class; some persons lack one."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    ids = [f"{name}{k:04d}" for k in range(persons)]
    y, x = np.mgrid[:20, :17]
    masks = np.zeros((persons, 20, 17), np.uint8)
    for mask in masks:
        for label in (1, 2):
            if rng.random() < 0.85:
                a, b, r = rng.uniform(4, 14), rng.uniform(4, 12), rng.uniform(2, 4)
                mask[(y - a) ** 2 + (x - b) ** 2 < r * r] = label
    images = (60 * masks + rng.normal(50, 20, masks.shape)).clip(0, 255).astype(np.uint8)
    write_csv(folder / "persons.csv", ids, {"y": [0] * persons})
    np.savez(folder / "images.npz", ids=np.array(ids), images=images, masks=masks)
    return write_manifest(folder, name, image='{ path = "images.npz", format = "npz" }')


def test_discs_are_found_and_two_sites_give_what_one_gives(tmp_path: Path) -> None:
    sites = [disc_site(tmp_path / n, n, k, s) for n, k, s in (("a", 30, 1), ("b", 18, 2))]
    plan = {"cohort__classes": [0, 1, 2], "model__task": "segmentation"}
    study = make_study(
        ("image",), **plan, model__segmentation={"channels": [8, 16], "window": [16, 16]},
        training__lr=0.02, training__batch_size=8, federation__rounds=6,
    )  # fmt: skip
    assert federate(study, sites, tmp_path / "run").final["metrics"]["test"]["all"]["dice_mean_person"] > 0.6
    full = make_study(
        ("image",), **plan, model__segmentation={"channels": [8, 16]},
        training__optimizer="sgd", training__lr=0.1, training__batch_size=0, federation__rounds=3,
    )  # fmt: skip
    apart, together = federate(full, sites, tmp_path / "r1"), pooled(full, sites, tmp_path / "r2")
    for name, values in apart.learned().items():
        torch.testing.assert_close(values, together.learned()[name], rtol=1e-4, atol=1e-5)
    assert apart.final["metrics"]["test"]["all"].keys() == together.final["metrics"]["test"]["all"].keys()
    assert federate(full, sites, tmp_path / "r3").sha256 == apart.sha256
