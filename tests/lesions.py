"""Volumes with one bright ball each, in the middle or near an edge, as files of a site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.conftest import write_csv, write_manifest

SIZE = (24, 24, 12)
MIDDLE, EDGE = (12, 12, 6), (3, 3, 6)


def lesion_site(
    folder: Path, name: str, places: Sequence[tuple[int, int, int]], *, sizes: Sequence[tuple[int, int, int]] = (SIZE,), public: bool = True
) -> Path:
    """A site with a ball of radius 2 at each of ``places``, one a person; ``sizes``: of the volumes, one after another. Without ``public``
    the site's default policy holds."""
    rng = np.random.default_rng(sum(map(ord, name)))
    ids = [f"{name}{k:03d}" for k in range(len(places))]
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for k, (person, place) in enumerate(zip(ids, places, strict=True)):
        size = sizes[k % len(sizes)]
        voxels, grid = rng.normal(0, 20, size).astype(np.float32), np.indices(size)
        ball = sum((g - c) ** 2 for g, c in zip(grid, place, strict=True)) <= 4
        voxels[ball] += 150
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / "images" / f"{person}.nii.gz")
        nib.save(nib.Nifti1Image(ball.astype(np.uint8), np.eye(4)), folder / "masks" / f"{person}.nii.gz")
    write_csv(folder / "persons.csv", ids, {"sex": [0] * len(ids)})
    image = '{ path = "images", format = "nifti", masks = "masks" }'
    return write_manifest(folder, name, image=image, **({} if public else {"public": "false"}))


def plan(size: Sequence[int], **changes: object) -> dict[str, object]:
    """Keys of a segmentation study of such volumes."""
    image = {"size": list(size), "orientation": "RAS", "spacing_mm": [1.0, 1.0, 1.0], "window": [-100.0, 250.0]}
    return {
        "cohort__image": image, "cohort__classes": [0, 1], "model__task": "segmentation",
        "model__segmentation": {"channels": [4, 8], "distances": False}, "training__batch_size": 8, "training__lr": 0.02,
        "federation__rounds": 1, **changes,
    }  # fmt: skip
