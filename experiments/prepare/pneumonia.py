"""PneumoniaMNIST: chest X-rays of children, 28 x 28, divided over five simulated hospitals with unequal prevalence of pneumonia.

Source: Yang et al., MedMNIST v2, Scientific Data 10, 41 (2023), https://doi.org/10.1038/s41597-022-01721-8, from images of Kermany et al.,
Cell 172 (2018). Licence: CC BY 4.0, as stated by MedMNIST. The hospitals are simulated: the source names none. The source does not identify
the children, so an image counts as a person, although a child may have several images. Label skew by a Dirichlet draw for each class is
common practice (Yurochkin et al., 2019, https://arxiv.org/abs/1905.12022).
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from fedml.errors import InputError
from fedml.experiments.prepare.source import Dataset, Say, Source, write_image_site
from fedml.seeds import derive_seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "pneumoniamnist.npz"
SITES = tuple(f"hospital-{i}" for i in range(1, 6))
PARTS = ("train", "val", "test")
CONCENTRATION = 0.5
MIN_TRAIN = 20
MAX_DRAWS = 1000

Part = tuple["NDArray[np.uint8]", "NDArray[np.int64]"]  # images, labels


def read(path: Path) -> dict[str, Part]:
    """Images (n, height, width[, channels]) uint8 and labels (n,) 0/1 of each official part.

    Raises:
        InputError: the file is not PneumoniaMNIST.
    """
    import numpy as np

    parts: dict[str, Part] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for part in PARTS:
                images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
                labels = labels.reshape(len(labels), -1)
                if images.dtype != np.uint8 or images.ndim not in {3, 4} or labels.shape != (len(images), 1):
                    raise ValueError(f"{part}: images {images.shape} {images.dtype}, labels {labels.shape}")
                if not np.isin(labels, (0, 1)).all():
                    raise ValueError(f"{part}: a label other than 0 and 1")
                parts[part] = images, labels[:, 0].astype(np.int64)
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not the PneumoniaMNIST file ({error}); get the original file again") from error
    return parts


def without_repeats(parts: dict[str, Part], say: Say) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """The rows of each part without images that are in another part, and the hash of every row's image.

    The official test part is unchanged: an image of it is dropped from train and val; an image in train and val is dropped from val.
    """
    hashes = {part: [hashlib.sha256(image.tobytes()).hexdigest() for image in parts[part][0]] for part in PARTS}
    test, train = set(hashes["test"]), set(hashes["train"])
    barred = {"train": test, "val": test | train, "test": set[str]()}
    rows = {part: [i for i, image in enumerate(hashes[part]) if image not in barred[part]] for part in PARTS}
    say(f"images of train that are in val too: {len(train & set(hashes['val']))}, dropped from val")
    for part in ("train", "val"):
        say(f"images of test that are in {part} too: {len(test & set(hashes[part]))}, dropped from {part}")
    repeats = {part: len(hashes[part]) - len(set(hashes[part])) for part in PARTS}
    say("images twice within a part, kept and both at one hospital: " + ", ".join(f"{repeats[p]} in {p}" for p in PARTS))
    return rows, hashes


def share_out(
    parts: dict[str, Part], rows: dict[str, list[int]], hashes: dict[str, list[str]], draw_seed: int
) -> dict[str, list[list[int]]]:
    """One draw: part -> site -> rows. The proportions of a class are the same in every part."""
    import numpy as np

    generator = np.random.default_rng(draw_seed)
    sites: dict[str, list[list[int]]] = {part: [[] for _ in SITES] for part in PARTS}
    for label in (0, 1):
        edges = np.cumsum(generator.dirichlet([CONCENTRATION] * len(SITES)))[:-1]
        for part in PARTS:
            # Identical images are assigned together, so that an image that is twice in a part is at one hospital.
            groups: dict[str, list[int]] = {}
            for row in rows[part]:
                if parts[part][1][row] == label:
                    groups.setdefault(hashes[part][row], []).append(row)
            order = generator.permutation(len(groups))
            images = list(groups.values())
            for site, chosen in enumerate(np.split(order, np.round(edges * len(order)).astype(int))):
                sites[part][site].extend(row for image in chosen for row in images[image])
    return {part: [sorted(site) for site in sites[part]] for part in PARTS}


def partition(
    parts: dict[str, Part], rows: dict[str, list[int]], hashes: dict[str, list[str]], seed: int, say: Say
) -> dict[str, list[list[int]]]:
    """The first draw in which every hospital has at least ``MIN_TRAIN`` persons and both classes in train.

    Raises:
        InputError: no such draw in ``MAX_DRAWS``: there are too few images.
    """
    for draw in range(MAX_DRAWS):
        sites = share_out(parts, rows, hashes, derive_seed(seed, "prepare", "pneumonia", draw))
        labels = [parts["train"][1][site] for site in sites["train"]]
        if all(len(site) >= MIN_TRAIN and 0 < site.sum() < len(site) for site in labels):
            say(
                f"partition: seed {seed}, Dirichlet({CONCENTRATION}) for each class; draw {draw + 1} is the first with "
                f"{MIN_TRAIN} persons and both classes in train at every hospital"
            )
            return sites
    raise InputError(
        f"{FILE}: no partition into {len(SITES)} hospitals has {MIN_TRAIN} persons and both classes at each; "
        "use the whole file or another seed"
    )


def build(files: dict[str, Path], out: Path, seed: int, say: Say) -> None:
    """Writes one folder for each hospital; ``seed`` determines the partition.

    Raises:
        InputError: from ``read`` and ``partition``.
    """
    import numpy as np

    parts = read(files[FILE])
    rows, hashes = without_repeats(parts, say)
    sites = partition(parts, rows, hashes, seed, say)
    for index, site in enumerate(SITES):
        chosen = [(part, row) for part in PARTS for row in sites[part][index]]
        ids = [f"pneumonia-{part}-{row:05d}" for part, row in chosen]
        labels = [int(parts[part][1][row]) for part, row in chosen]
        images = np.concatenate([parts[part][0][sites[part][index]] for part in PARTS])
        about = f"PneumoniaMNIST, a simulated hospital (partition seed {seed}), CC BY 4.0"
        write_image_site(out / site, ids, [part for part, _ in chosen], labels, images, "pneumonia", about)
        counts = "/".join(str(len(sites[part][index])) for part in PARTS)
        say(f"{site}: {len(ids)} persons (train/val/test {counts}), {sum(labels) / len(ids):.0%} with pneumonia")


DATASET = Dataset(
    name="pneumonia",
    about="PneumoniaMNIST, chest X-rays of children, divided over five simulated hospitals",
    homepage="https://zenodo.org/records/10519652",
    licence="CC BY 4.0 (cite https://doi.org/10.1038/s41597-022-01721-8)",
    sources=(
        Source(
            name=FILE,
            folder="medmnist",
            url=f"https://zenodo.org/records/10519652/files/{FILE}?download=1",
            # SHA-256 of a copy whose archive differs from the official file. The SHA-256 of the official file was not measured;
            # the MD5 is that which MedMNIST publishes in its package.
            sha256=("ce8250bf5debc3c389b89affcc1d9feac579b26e875a848301e9f937bb0c2eee",),
            md5="28209eda62fecd6e6a2d98b1501bb15f",
        ),
    ),
    build=build,
)
