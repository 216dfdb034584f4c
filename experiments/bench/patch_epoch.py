"""An epoch on patches of volumes against MONAI's own loop: CacheDataset, RandCropByPosNegLabeld, the same network, loss and optimiser.

    python experiments/bench/patch_epoch.py [THREADS]

Both crop as many patches of one size from prepared volumes (ours: memory-mapped half precision; MONAI's: float32 in memory).
Epochs alternate; of each the fastest counts.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

warnings.simplefilter("ignore")
SIZE, PATCH, PERSONS, EPOCHS, PER_STEP, BATCH = (96, 96, 64), (48, 48, 48), 16, 5, 2, 2
MODEL: dict[str, Any] = {"task": "segmentation", "segmentation": {"channels": [8, 16, 32]}}


def site(folder: Path) -> Path:
    """Volumes with one ball each."""
    rng, ids = np.random.default_rng(0), [f"p{k}" for k in range(PERSONS)]
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for person in ids:
        centre = [int(rng.integers(8, n - 8)) for n in SIZE]
        ball = sum((g - c) ** 2 for g, c in zip(np.indices(SIZE), centre, strict=True)) <= 36
        voxels = (rng.normal(0, 30, SIZE) + 120 * ball).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / "images" / f"{person}.nii.gz")
        nib.save(nib.Nifti1Image(ball.astype(np.uint8), np.eye(4)), folder / "masks" / f"{person}.nii.gz")
    (folder / "persons.csv").write_text("id\n" + "\n".join(ids) + "\n")
    (folder / "split.csv").write_text("id,part\n" + "\n".join(f"{i},train" for i in ids) + "\n")
    (folder / "site.toml").write_text(
        '[site]\nname = "a"\n[data]\npersons = "persons.csv"\nsplit = "split.csv"\npublic = true\n'
        'image = { path = "images", format = "nifti", masks = "masks" }\n'
    )
    return folder / "site.toml"


def study_of() -> Any:
    """Patches, a small U-Net, one pass a round."""
    from fedml.study.study import Study, validate

    plan = {
        "study": {"name": "bench"},
        "cohort": {
            "inputs": ["image"], "target": "mask", "classes": [0, 1],
            "image": {
                "spacing_mm": [1.0, 1.0, 1.0], "window": [-100.0, 200.0],
                "patches": {"size": list(PATCH), "per_step": PER_STEP, "foreground": 0.5},
            },
        },
        "model": MODEL,
        "training": {"batch_size": BATCH, "lr": 1e-3},
        "federation": {"sites": ["a"], "rounds": 1},
    }  # fmt: skip
    return validate(Study, plan, "bench")


def main() -> None:
    """Prints seconds of the fastest epoch of each, and their ratio."""
    from monai.data import CacheDataset, DataLoader
    from monai.losses import DiceCELoss
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandCropByPosNegLabeld, ScaleIntensityRanged, Spacingd

    from fedml.clients.site.manifest import read_site
    from fedml.clients.site.read import read_cohort
    from fedml.learning.training import train
    from fedml.modalities.layout import make_layout
    from fedml.models.fusion import build_model
    from fedml.tasks.registry import make_task

    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        manifest, study = site(Path(name) / "a"), study_of()
        plan = study.training.model_copy(update={"threads": threads})
        cohort = read_cohort(read_site(manifest), study)
        model = build_model(study, make_layout(study, cohort.image_shape, b""))
        keys = ["image", "mask"]
        steps = Compose([
            LoadImaged(keys), EnsureChannelFirstd(keys), Spacingd(keys, (1.0, 1.0, 1.0), mode=("bilinear", "nearest")),
            ScaleIntensityRanged(["image"], -100, 200, 0, 1, clip=True),
            RandCropByPosNegLabeld(keys, label_key="mask", spatial_size=PATCH, pos=1, neg=1, num_samples=PER_STEP),
        ])  # fmt: skip
        folder = Path(name) / "a"
        items = [{"image": folder / "images" / f"p{k}.nii.gz", "mask": folder / "masks" / f"p{k}.nii.gz"} for k in range(PERSONS)]
        loader = DataLoader(CacheDataset(items, steps, progress=False), batch_size=BATCH, shuffle=True, num_workers=0)
        own = build_model(study, make_layout(study, cohort.image_shape, b"")).encoder["image"]
        loss, optimizer = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True), torch.optim.Adam(own.parameters(), 1e-3)
        times: dict[str, list[float]] = {"fedml": [], "monai": []}
        for epoch in range(EPOCHS):
            began = time.perf_counter()
            done = train(model, cohort, plan, make_task(study), seed=epoch)
            times["fedml"].append(time.perf_counter() - began)
            began, seen = time.perf_counter(), 0
            own.train()
            for batch in loader:
                optimizer.zero_grad()
                value = loss(own(batch["image"].as_tensor()), batch["mask"].as_tensor())
                value.backward()
                optimizer.step()
                seen += 1
            times["monai"].append(time.perf_counter() - began)
            assert (done.steps, done.seen) == (seen, PERSONS)
        best = {kind: min(own_times) for kind, own_times in times.items()}
        print(f"threads {threads}: fedml {best['fedml']:.3f} s, MONAI {best['monai']:.3f} s, ratio {best['fedml'] / best['monai']:.3f}")


if __name__ == "__main__":
    main()
