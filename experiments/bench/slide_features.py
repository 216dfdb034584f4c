"""A round of attention on slides: on features computed once, against tiles through the encoder in each round.

    python experiments/bench/slide_features.py [--slides 50] [--side 20000] [--tissue 5] [--net resnet18] [--rounds 3]

Both read the same slides (synthetic, compressed, mostly glass, with ``tissue`` x ``tissue`` tiles of tissue), draw as many tiles of each
person in a step and have the same encoder; through the tiles it is trained, or frozen (``[training] freeze``). Rounds alternate; medians.
At the end the kept features are compared with those of the encoder applied to the pixels that tifffile reads.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

TILE, BATCH = 256, 10


def slide(path: Path, side: int, tissue: int, ill: bool, seed: int) -> None:
    """A slide of three levels: glass, and a square of tissue with a dark spot in one tile of those who are ill."""
    import tifffile

    random = np.random.default_rng(seed)
    begin = side // TILE // 3 * TILE
    spot = divmod(int(random.integers(tissue**2)), tissue)
    with tifffile.TiffWriter(path, bigtiff=True) as out:
        for level, down in enumerate((1, 4, 16)):
            width = side // down
            each = -(-width // TILE)
            first, last = begin // down, (begin + tissue * TILE) // down  # pixels of this level

            def pixels(row: int, column: int, first: int = first, last: int = last, level: int = level) -> Any:
                top, left = (max(first - at * TILE, 0) for at in (row, column))
                bottom, right = (min(last - at * TILE, TILE) for at in (row, column))
                if (top >= bottom or left >= right) and (row or column):
                    return None  # nothing is stored: glass
                part = np.full((TILE, TILE, 3), 243)
                if top < bottom and left < right:
                    part[top:bottom, left:right] = np.array((220, 130, 190))
                    part += random.integers(-12, 13, part.shape)
                if ill and not level and (row - first // TILE, column - first // TILE) == spot:
                    part[64:192, 64:192] = (90, 30, 110)
                return part.clip(0, 255).astype(np.uint8)

            tiles = (pixels(row, column) for row in range(each) for column in range(each))
            out.write(tiles, shape=(width, width, 3), dtype=np.uint8, tile=(TILE, TILE), compression="zlib", photometric="rgb",
                      subfiletype=int(level > 0), resolution=(20000 / down,) * 2, resolutionunit="CENTIMETER", metadata=None)  # fmt: skip


def site(folder: Path, slides: int, side: int, tissue: int) -> Path:
    """A site of as many persons with a slide each."""
    (folder / "slides").mkdir(parents=True)
    ids = [f"p{k}" for k in range(slides)]
    for k, person in enumerate(ids):
        slide(folder / "slides" / f"{person}.tif", side, tissue, bool(k % 2), k)
    (folder / "persons.csv").write_text("id,y\n" + "".join(f"{i},{k % 2}\n" for k, i in enumerate(ids)))
    (folder / "split.csv").write_text("id,part\n" + "".join(f"{i},train\n" for i in ids))
    (folder / "site.toml").write_text(
        '[site]\nname = "a"\n[data]\npersons = "persons.csv"\nsplit = "split.csv"\npublic = true\n'
        'image = { path = "slides", format = "slide" }\n[policy]\nmax_quarantined = 0.0\n'
    )
    return folder / "site.toml"


def study_of(net: str, per_step: int, *, features: bool, frozen: bool = False) -> Any:
    """Attention over tiles of 256 pixels of the finest level."""
    from fedml.study.study import Study, validate

    tiles: dict[str, Any] = {"size_px": TILE, "per_step": per_step}
    image: dict[str, Any] = {"pooling": "attention"}
    plan: dict[str, Any] = {
        "study": {"name": "bench"},
        "cohort": {"inputs": ["image"], "target": "y", "classes": [0, 1], "image": {"tiles": tiles}},
        "model": {"image": image},
        "training": {"batch_size": BATCH, "lr": 1e-3},
        "federation": {"sites": ["a"], "rounds": 1},
    }
    if features:
        tiles["encoder"] = {"net": net, "untrained": True}
    else:
        image["net"] = net
        plan["training"] |= {"freeze": ["encoder.image.*"]} if frozen else {}
    return validate(Study, plan, "bench")


def main() -> None:
    """Prints the medians of each way, their ratios and how far features are from the encoder applied directly."""
    import tifffile

    from fedml.clients.site.manifest import read_site
    from fedml.clients.site.read import read_cohort
    from fedml.cohort.slides.features import SlideFeatures
    from fedml.learning.training import train
    from fedml.modalities.layout import make_layout
    from fedml.models.fusion import build_model
    from fedml.networks.frozen import build_encoder
    from fedml.tasks.registry import make_task

    parser = argparse.ArgumentParser()
    for name, default in (("slides", 50), ("side", 20_000), ("tissue", 5), ("per-step", 16), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--net", default="resnet18")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        manifest = site(Path(name) / "a", given.slides, given.side, given.tissue)
        here, seconds = read_site(manifest), dict[str, list[float]]()
        studies = {
            "tiles, trained encoder": study_of(given.net, given.per_step, features=False),
            "tiles, frozen encoder": study_of(given.net, given.per_step, features=False, frozen=True),
            "features": study_of(given.net, given.per_step, features=True),
        }
        began = time.perf_counter()
        cohorts = {"tiles": read_cohort(here, studies["tiles, trained encoder"])}
        print(f"{given.slides} slides of {given.side} x {given.side} pixels, tissue: {time.perf_counter() - began:.1f} s once", flush=True)
        began = time.perf_counter()
        cohorts["features"] = read_cohort(here, studies["features"])
        first = time.perf_counter() - began
        began = time.perf_counter()
        found = read_cohort(here, studies["features"]).inputs["image"]
        assert isinstance(found, SlideFeatures)
        print(f"features of {found.tiles} tiles: {first:.1f} s once, {time.perf_counter() - began:.2f} s from the cache", flush=True)
        models = {kind: build_model(s, make_layout(s, cohorts[kind.split(",")[0]].image_shape, b"")) for kind, s in studies.items()}
        for turn in range(given.rounds):
            for kind, study in studies.items():
                began = time.perf_counter()
                done = train(models[kind], cohorts[kind.split(",")[0]], study.training, make_task(study), seed=turn)
                seconds.setdefault(kind, []).append(time.perf_counter() - began)
                assert done.seen == given.slides
                print(f"round {turn + 1}, {kind}: {seconds[kind][-1]:.3f} s", flush=True)
        median = {kind: statistics.median(values) for kind, values in seconds.items()}
        for kind in list(studies)[:2]:
            print(f"{kind}: {median[kind]:.2f} s a round, features {median['features']:.3f} s: {median[kind] / median['features']:.0f} x")
        spec = studies["features"].cohort.image.tiles.encoder
        encoder, apart = build_encoder(spec, TILE, weights=None, seed=0), 0.0
        for k in range(3):
            slide_of = found.slides.slides[k]
            whole = tifffile.imread(slide_of.path, key=0)
            tiles = np.stack([np.moveaxis(whole[y : y + TILE, x : x + TILE], 2, 0) for x, y in slide_of.corners])
            direct = encoder(tiles).astype(np.float32)
            apart = max(apart, float(np.abs(direct - found.arrays[k]).max() / np.abs(direct).max()))
        print(f"features against the encoder applied to tifffile's pixels: largest difference {apart:.1e} of the largest feature")


if __name__ == "__main__":
    main()
