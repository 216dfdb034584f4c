"""Epochs over a cohort of volumes: whole images from the image cache, as a study reads them, against MONAI's ``PersistentDataset`` of the
same transforms through torch's ``DataLoader``, from the second epoch on (in the first each makes what it keeps).

The volumes are a spleen CT (public data; a synthetic volume where it is not there) brought to 128 x 128 x 128 voxels with other noise
each, with a mask. Both read from the page cache on one thread, in batches of 4, in an order drawn for each epoch. MONAI's mask is kept as
its tutorials have it (float32), or as uint8. Its volumes must be ours within half precision.

    .venv/bin/python experiments/bench/image_cache.py [REPEATS] [VOLUMES]
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import monai.transforms as mt
import nibabel
import numpy as np
import numpy.typing as npt
import torch
from monai.data import PersistentDataset
from torch.utils.data import DataLoader

from fedml.cohort.images.cache import ImageCache, Reader, open_cache
from fedml.cohort.images.items import Item, Raw
from fedml.cohort.images.mapped import mapped
from fedml.cohort.images.transforms import deterministic
from fedml.experiments.bench.timing import machine, paired, seconds, table
from fedml.study.imaging import Preprocess

DATA = Path(__file__).parents[3] / "shared" / "data" / "nifti" / "spleen_ct"
SPEC = Preprocess(orientation="RAS", window=(-57.0, 164.0), size=(128, 128, 128))
HALF = 2**-12
BATCH = 4


def scan() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """The CT in HU and its mask, 128 voxels along each axis."""
    if not DATA.exists():
        rng = np.random.default_rng(0)
        return rng.normal(0, 100, (128, 128, 128)).astype(np.float32), rng.integers(0, 2, (128, 128, 128), dtype=np.uint8)
    image = np.asarray(nibabel.load(DATA / "sub-spleen2/ct/sub-spleen2_ct.nii.gz").dataobj, np.float32)
    mask = np.asarray(nibabel.load(DATA / "derivatives/labels/sub-spleen2/ct/sub-spleen2_ct_seg-manual.nii.gz").dataobj, np.uint8)
    rows = np.linspace(0, image.shape[2] - 1, 128).round().astype(int)
    return image[18:146, 19:147][:, :, rows], mask[18:146, 19:147][:, :, rows]


def write_cohort(folder: Path, count: int) -> list[dict[str, str]]:
    """Writes NIfTI files; returns their paths in the form that MONAI takes."""
    image, mask = scan()
    for k in range(count):
        noise = np.random.default_rng(k).normal(0, 8, image.shape)
        nibabel.save(nibabel.Nifti1Image((image + noise).astype(np.float32), np.eye(4)), folder / f"{k}.nii")
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), folder / f"{k}_mask.nii")
    return [{"image": str(folder / f"{k}.nii"), "mask": str(folder / f"{k}_mask.nii")} for k in range(count)]


def read(item: Item) -> Raw:
    """Reads the image and its mask from NIfTI files."""
    image, mask = (nibabel.load(path) for path in item.files)
    return Raw(np.asarray(image.dataobj, np.float32)[None], image.affine, np.asarray(mask.dataobj)[None])


def peer(data: list[dict[str, str]], folder: Path, small_mask: bool) -> PersistentDataset:
    """MONAI's way: load, the same deterministic part, kept."""
    keys = ("image", "mask")
    steps: list[Any] = [mt.LoadImaged(keys, ensure_channel_first=True), *deterministic(SPEC, keys).transforms]
    steps += [mt.CastToTyped("mask", dtype=torch.uint8)] if small_mask else []
    return PersistentDataset(data, mt.Compose(steps), cache_dir=folder)


def check(theirs: PersistentDataset, cache: ImageCache) -> None:
    """The peer's volumes are ours."""
    for at in range(len(cache)):
        item, mask = theirs[at], cache.mask(at)
        assert item["image"].shape == cache.shapes[at]
        assert float((cache.image(at) - item["image"]).abs().max()) <= HALF
        assert mask is not None
        assert torch.equal(mask, item["mask"].to(torch.uint8))


def on_disk(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def megabytes(ours: int, theirs: int) -> tuple[str, str, str]:
    """Both sizes in MB, and ours relative to the peer's."""
    return f"{ours / 2**20:.0f}", f"{theirs / 2**20:.0f}", f"{100 * ours / theirs:.1f} %"


def our_epoch(cache: ImageCache) -> float:
    """Seconds of one pass over the cache in batches of 4, as a cohort takes its rows."""
    at = np.arange(len(cache))
    images, masks = mapped(cache, at), mapped(cache, at, masks=True)

    def run() -> None:
        order = np.random.default_rng().permutation(len(cache))
        for begin in range(0, len(order), BATCH):
            rows = order[begin : begin + BATCH]
            image, mask = torch.from_numpy(images[rows]), torch.from_numpy(masks[rows])
            assert image.dtype == torch.float32
            assert mask.shape == image.shape

    return seconds(run)


def their_epoch(dataset: PersistentDataset) -> float:
    """Seconds of one pass over the peer's loader."""

    def run() -> None:
        for batch in DataLoader(dataset, batch_size=BATCH, shuffle=True):
            assert batch["image"].dtype == torch.float32
            assert batch["mask"].shape == batch["image"].shape

    return seconds(run)


def main() -> None:
    """Measures, compares and prints."""
    repeats, count = (*map(int, sys.argv[1:3]), *(7, 24)[len(sys.argv[1:3]) :])
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory(prefix="fedml-bench-") as temporary:
        root = Path(temporary)
        (root / "images").mkdir()
        data = write_cohort(root / "images", count)
        items = [Item(str(k), (Path(pair["image"]), Path(pair["mask"]))) for k, pair in enumerate(data)]
        caches: list[ImageCache] = []
        first = seconds(lambda: caches.append(open_cache(root / "ours", root / "images", items, SPEC, Reader(read, "nifti"))))
        again = seconds(lambda: caches.append(open_cache(root / "ours", root / "images", items, SPEC, Reader(read, "nifti"))))
        cache = caches[-1]
        assert len(cache) == count
        assert cache.shapes[0] == (1, 128, 128, 128)
        rows, disks = [], []
        our_bytes = on_disk(root / "ours")
        for small_mask in (False, True):
            folder, kind = root / f"peer{small_mask}", "uint8" if small_mask else "float32"
            theirs = peer(data, folder, small_mask)
            took = seconds(partial(list, map(theirs.__getitem__, range(count))))
            theirs_mb = on_disk(folder)
            disks.append((f"image and mask, the peer's mask {kind}", *megabytes(our_bytes, theirs_mb), f"{first:.1f}", f"{took:.1f}"))
            check(theirs, cache)
            pairs = paired(partial(our_epoch, cache), partial(their_epoch, theirs), repeats)
            rows.append((*pairs.row(f"128^3, peer's mask {kind}", 1e3 / count), f"{1 / pairs.ratio:.1f}"))
        image_bytes = sum(path.stat().st_size for path in (root / "ours").rglob("image.bin"))
        disks.append(("images only, against float32 voxels", *megabytes(image_bytes, count * 128**3 * 4), "", ""))
        heads = ("", "ours (MB)", "peer (MB)", "ours / peer", "ours built (s)", "peer built (s)")
        table(f"disk for {count} volumes of 128^3", heads, disks)
        print(f"  ours reopened, with a check of all bytes of the sources and, if small, of the cache: {again:.2f} s")
        head = ("", "ours (ms)", "peer (ms)", "ratio", "range", "ours is x faster")
        table(f"a whole volume in batches of 4, epoch 2 and later, median of {repeats} epochs of {count} volumes", head, rows)


if __name__ == "__main__":
    main()
