"""AdrenalMNIST3D: shapes of adrenal glands, normal or abnormal, divided over four simulated hospitals of unequal size and prevalence.

Source: Yang et al., MedMNIST v2, Scientific Data 10, 41 (2023), https://doi.org/10.1038/s41597-022-01721-8: 1,584 glands of 792 patients
of Zhongshan Hospital, drawn on computed tomography, each in the middle of a cube of 64 mm with 64 voxels a side, 0 or 255. Licence: CC BY
4.0, as stated by MedMNIST. The hospitals are simulated: the source names one. The source does not state which two glands are of one
patient, so a gland counts as a person; the official parts are by patient.

A hospital's size and its share of abnormal glands come from Dirichlet draws (label and quantity skew as in Li et al. 2022,
https://arxiv.org/abs/2102.02079). Each volume is downsampled to 16 voxels of 4 mm a side; each voxel is the mean of a block of 4 x 4 x 4.
"""

from __future__ import annotations

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

FILE = "adrenalmnist3d_64.npz"
SITES = tuple(f"hospital-{i}" for i in range(1, 5))
PARTS = ("train", "val", "test")
SIDE = 64  # voxels, and millimetres
REDUCED = 16
SIZE_CONCENTRATION = 2.0  # Dirichlet parameter of the hospitals' shares of all glands
LABEL_CONCENTRATION = 1.0  # Dirichlet parameter of the hospitals' shares of each class
MIN_EACH = {"train": 20, "test": 3}  # smallest number of glands of each class at every hospital
MAX_DRAWS = 10_000

Part = tuple["NDArray[np.uint8]", "NDArray[np.int64]"]  # images, labels


def read(path: Path) -> dict[str, Part]:
    """Images (n, 64, 64, 64) uint8 and labels (n,), 1 for an abnormal gland, of each official part.

    Raises:
        InputError: the file is not AdrenalMNIST3D with 64 voxels a side.
    """
    import numpy as np

    parts: dict[str, Part] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for part in PARTS:
                images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
                if images.dtype != np.uint8 or images.shape[1:] != (SIDE,) * 3 or labels.shape != (len(images), 1):
                    raise ValueError(f"{part}: images {images.shape} {images.dtype}, labels {labels.shape}")
                if not np.isin(labels, (0, 1)).all():
                    raise ValueError(f"{part}: a label other than 0 and 1")
                parts[part] = images, labels[:, 0].astype(np.int64)
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not the AdrenalMNIST3D file with 64 voxels a side ({error}); get the original file again") from error
    return parts


def reduced(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Downsamples (n, 64, 64, 64) to (n, 16, 16, 16): the mean of each block of 4 x 4 x 4 voxels, rounded to the nearest whole number."""
    import numpy as np

    step = SIDE // REDUCED
    out = np.empty((len(images), REDUCED, REDUCED, REDUCED), np.uint8)
    for k, image in enumerate(images):  # one by one, because the sums of all images would need more memory than the images
        out[k] = np.rint(image.reshape(REDUCED, step, REDUCED, step, REDUCED, step).sum((1, 3, 5), dtype=np.uint16) / step**3)
    return out


def share_out(labels: dict[str, NDArray[np.int64]], draw_seed: int) -> dict[str, list[NDArray[np.int64]]]:
    """One draw: part -> site -> rows. A site's share of a class is the same in every part."""
    import numpy as np

    generator = np.random.default_rng(draw_seed)
    size = generator.dirichlet([SIZE_CONCENTRATION] * len(SITES))
    shares = [size * generator.dirichlet([LABEL_CONCENTRATION] * len(SITES)) for _ in (0, 1)]
    sites: dict[str, list[NDArray[np.int64]]] = {}
    for part in PARTS:
        dealt: list[list[NDArray[np.int64]]] = [[] for _ in SITES]
        for label, share in enumerate(shares):
            rows = generator.permutation(np.flatnonzero(labels[part] == label))
            edges = np.round(np.cumsum(share / share.sum())[:-1] * len(rows)).astype(int)
            for rows_of_site, chosen in zip(dealt, np.split(rows, edges), strict=True):
                rows_of_site.append(chosen)
        sites[part] = [np.sort(np.concatenate(rows_of_site)) for rows_of_site in dealt]
    return sites


def partition(labels: dict[str, NDArray[np.int64]], seed: int, say: Say) -> dict[str, list[NDArray[np.int64]]]:
    """The first draw in which every hospital has enough glands of each class in train and in test (``MIN_EACH``).

    Raises:
        InputError: no such draw in ``MAX_DRAWS``: there are too few glands.
    """
    import numpy as np

    for draw in range(MAX_DRAWS):
        sites = share_out(labels, derive_seed(seed, "prepare", "adrenal", draw))
        fewest = {part: min(int(np.bincount(labels[part][s], minlength=2).min()) for s in sites[part]) for part in MIN_EACH}
        if all(fewest[part] >= n for part, n in MIN_EACH.items()):
            say(
                f"partition: seed {seed}, Dirichlet({SIZE_CONCENTRATION:g}) for sizes, Dirichlet({LABEL_CONCENTRATION:g}) for each class; "
                f"draw {draw + 1} is the first with {MIN_EACH['train']} glands of each class in train and {MIN_EACH['test']} in test "
                "at every hospital"
            )
            return sites
    raise InputError(
        f"{FILE}: no partition into {len(SITES)} hospitals has {MIN_EACH['train']} glands of each class in train and "
        f"{MIN_EACH['test']} in test at each; use the whole file or another seed"
    )


def build(files: dict[str, Path], out: Path, seed: int, say: Say) -> None:
    """Writes one folder for each hospital; ``seed`` determines the partition.

    Raises:
        InputError: from ``read`` and ``partition``.
    """
    import numpy as np

    parts = read(files[FILE])
    sites = partition({part: labels for part, (_, labels) in parts.items()}, seed, say)
    for index, site in enumerate(SITES):
        chosen = [(part, int(row)) for part in PARTS for row in sites[part][index]]
        ids = [f"adrenal-{part}-{row:04d}" for part, row in chosen]
        labels = [int(parts[part][1][row]) for part, row in chosen]
        images = np.concatenate([reduced(parts[part][0][sites[part][index]]) for part in PARTS])
        about = f"AdrenalMNIST3D, a simulated hospital (partition seed {seed}), CC BY 4.0"
        write_image_site(out / site, ids, [part for part, _ in chosen], labels, images, "abnormal", about)
        counts = "/".join(str(len(sites[part][index])) for part in PARTS)
        say(f"{site}: {len(ids)} glands (train/val/test {counts}), {sum(labels) / len(ids):.0%} abnormal")


DATASET = Dataset(
    name="adrenal",
    about="AdrenalMNIST3D, shapes of adrenal glands, divided over four simulated hospitals",
    homepage="https://zenodo.org/records/10519652",
    licence="CC BY 4.0 (cite https://doi.org/10.1038/s41597-022-01721-8)",
    sources=(
        Source(
            name=FILE,
            folder="medmnist",
            url=f"https://zenodo.org/records/10519652/files/{FILE}?download=1",
            # measured on a copy whose MD5 is that which MedMNIST publishes for the official file, 17721accfe9fb005146a47d33bc54b2f
            sha256=("124a53ea2c66c8ac1985a4c98ea6f34d1ab35bdab1dc50947f80d4a87e54057d",),
        ),
    ),
    build=build,
)
