"""Whole slides as a study: what marks a person is in a few tiles of their slides; attention finds it, and memory stays bounded."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import command
from conftest import federate, make_plan, make_study, pooled, public_data, to_toml, write_csv, write_manifest

from clients.quarantine import read as read_quarantine
from clients.site import read_cohort, read_site
from fedml.cohort.persons import Cohort, pool
from fedml.cohort.slides import Slides, read_slides
from fedml.errors import InputError
from fedml.learning.statistics import cohort_sums
from fedml.learning.task import make_task
from fedml.learning.training import evaluate
from fedml.models.fusion import Layout, build_model
from fedml.seeds import derive_seed
from fedml.study import Tiles

GLASS, PINK, DARK = (243, 243, 243), (220, 130, 190), (90, 30, 110)
SIDE = 32  # pixels of a tile
SPEC: dict[str, Any] = {"size_px": SIDE, "per_step": 12}


def write_tiff(path: Path, pixels: np.ndarray[Any, Any], mpp: float | None = 0.5) -> Path:
    """A tiled TIFF of uint8 (rows, columns, 3)."""
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    scale: dict[str, Any] = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", compression="zlib", metadata=None, **scale)
    return path


def tissue(rng: np.random.Generator, ill: bool, columns: int = 6, rows: int = 5) -> np.ndarray[Any, Any]:
    """Glass around ``columns`` x ``rows`` tiles of tissue; in two tiles of those who are ill there is a dark spot, and in two of the others
    as many dark pixels as single ones."""
    out = np.full(((rows + 1) * SIDE, (columns + 1) * SIDE, 3), GLASS)
    out[: rows * SIDE, : columns * SIDE] = PINK
    for k in rng.choice(columns * rows, 2, replace=False):
        y, x = k // columns * SIDE, k % columns * SIDE
        if ill:
            a, b = rng.integers(4, SIDE - 14, 2)
            out[y + a : y + a + 10, x + b : x + b + 10] = DARK
        else:
            places = rng.choice(SIDE * SIDE, 100, replace=False)
            out[y + places // SIDE, x + places % SIDE] = DARK
    return (out + rng.integers(-6, 7, out.shape)).clip(0, 255).astype(np.uint8)


def slide_site(folder: Path, name: str, persons: int, seed: int) -> Path:
    """Persons with a slide each; the first has two in a folder."""
    rng = np.random.default_rng(seed)
    ids = [f"{name}{k:03d}" for k in range(persons)]
    y = np.arange(persons) % 2
    for k, person in enumerate(ids):
        for path in (f"{person}/1.tif", f"{person}/2.tif") if not k else (f"{person}.tif",):
            write_tiff(folder / "slides" / path, tissue(rng, bool(y[k])))
    write_csv(folder / "persons.csv", ids, {"y": y})
    return write_manifest(folder, name, image='{ path = "slides", format = "slide" }')


def slide_plan(**changes: Any) -> dict[str, Any]:
    start: dict[str, Any] = {
        "cohort__image": {"tiles": SPEC}, "model__image": {"channels": [8, 16], "pooling": "attention"},
        "training__lr": 0.01, "training__batch_size": 8, "cohort__split": {"train": 0.6, "val": 0.0, "test": 0.4},
    }  # fmt: skip
    return make_plan(("image",), **{**start, **changes})


def test_smoke(tmp_path: Path) -> None:
    sites = [slide_site(tmp_path / n, n, k, s) for n, k, s in (("a", 60, 1), ("b", 40, 2))]
    import time
    from fedml.study import Study, validate

    for pooling in ("attention", "mean"):
        for lr in (0.01, 0.005):
            t = time.time()
            study = validate(
                Study,
                slide_plan(
                    training__local_epochs=4, federation__rounds=6, training__lr=lr, model__image={"channels": [8, 16], "pooling": pooling}
                ),
                "s",
            )
            run = federate(study, sites, tmp_path / f"run{pooling}{lr}")
            print(
                pooling,
                lr,
                time.time() - t,
                run.final["metrics"]["test"]["all"],
                [
                    round(r["metrics"]["train"]["all"]["log_loss"], 3) if "metrics" in r and "train" in r["metrics"] else None
                    for r in run.rounds
                ],
            )
