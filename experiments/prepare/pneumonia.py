"""PneumoniaMNIST: chest films of children, 28 x 28, shared out over five hospitals with unequal shares of pneumonia.

Source: Yang et al., MedMNIST v2, Scientific Data 10, 41 (2023), https://doi.org/10.1038/s41597-022-01721-8, from films
of Kermany et al., Cell 172 (2018). Licence: CC BY 4.0, as stated by MedMNIST. The hospitals are made up: the source
names none. It names no child either, so a film counts as a person here, though a child may have several films. Label
skew by a Dirichlet draw for each class is common practice (Yurochkin et al., 2019, https://arxiv.org/abs/1905.12022).
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
        InputError: not such a file.
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
        raise InputError(f"{path}: not the PneumoniaMNIST file ({error}); get the original again") from error
    return parts


def keep(parts: dict[str, Part], say: Say) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """The rows of each part that stay, so that no image is in two parts, and every row's image hash.

    The official test part is never touched: a copy leaves train or val, and a copy in train and val leaves val.
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
            # Identical images are dealt as one: a film that is twice in a part belongs to one hospital.
            groups: dict[str, list[int]] = {}
            for row in rows[part]:
                if parts[part][1][row] == label:
                    groups.setdefault(hashes[part][row], []).append(row)
            order = generator.permutation(len(groups))
            films = list(groups.values())
            for site, chosen in enumerate(np.split(order, np.round(edges * len(order)).astype(int))):
                sites[part][site].extend(row for film in chosen for row in films[film])
    return {part: [sorted(site) for site in sites[part]] for part in PARTS}


def partition(
    parts: dict[str, Part], rows: dict[str, list[int]], hashes: dict[str, list[str]], seed: int, say: Say
) -> dict[str, list[list[int]]]:
    """The first draw in which every hospital has 20 persons or more, and both classes, in train.

    Raises:
        InputError: none of 1,000 draws does: there are too few images.
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
    """One folder a hospital; ``seed`` fixes which.

    Raises:
        InputError: from ``read`` and ``partition``.
    """
    import numpy as np

    parts = read(files[FILE])
    rows, hashes = keep(parts, say)
    sites = partition(parts, rows, hashes, seed, say)
    for index, site in enumerate(SITES):
        chosen = [(part, row) for part in PARTS for row in sites[part][index]]
        ids = [f"pneumonia-{part}-{row:05d}" for part, row in chosen]
        labels = [int(parts[part][1][row]) for part, row in chosen]
        images = np.concatenate([parts[part][0][sites[part][index]] for part in PARTS])
        told = f"PneumoniaMNIST, a made-up hospital (partition seed {seed}), CC BY 4.0"
        write_image_site(out / site, ids, [part for part, _ in chosen], labels, images, "pneumonia", told)
        counts = "/".join(str(len(sites[part][index])) for part in PARTS)
        say(f"{site}: {len(ids)} persons (train/val/test {counts}), {sum(labels) / len(ids):.0%} with pneumonia")


DATASET = Dataset(
    name="pneumonia",
    about="PneumoniaMNIST, chest films of children, shared out over five made-up hospitals",
    homepage="https://zenodo.org/records/10519652",
    licence="CC BY 4.0 (cite https://doi.org/10.1038/s41597-022-01721-8)",
    sources=(
        Source(
            name=FILE,
            folder="medmnist",
            url=f"https://zenodo.org/records/10519652/files/{FILE}?download=1",
            # Measured on a copy whose archive differs from the official one. The official bytes could not be measured:
            # for them there is the MD5 that MedMNIST publishes in its package.
            sha256=("ce8250bf5debc3c389b89affcc1d9feac579b26e875a848301e9f937bb0c2eee",),
            md5="28209eda62fecd6e6a2d98b1501bb15f",
        ),
    ),
    build=build,
)
