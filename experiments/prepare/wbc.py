"""White blood cells of two laboratories: one photograph of each cell, with a mask of nucleus and cytoplasm.

Source: Zheng, Wang, Wang and Liu, Fast and robust segmentation of white blood cell images by self-supervised learning, Micron 107, 55-71
(2018), https://doi.org/10.1016/j.micron.2018.01.010. Licence: the repository states GPL-3; no part of it is in this program. Acknowledge
Jiangxi Tecom Science Corporation for the first laboratory and the CellaVision blog for the second.

A mask is 255 in the nucleus, 128 in the cytoplasm, 0 elsewhere, red cells included. Some masks of the second laboratory have other grey
values at borders, which are set to the nearest of the three. Photographs are 88 to 120 pixels wide in the first laboratory and 300 in the
second: each is padded to a square and resampled to 96 x 96, masks by the nearest pixel. A photograph counts as a person; the source does
not identify the persons.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedml.errors import InputError
from fedml.experiments.prepare.source import Dataset, Say, Source, write_manifest, write_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HOMEPAGE = "https://github.com/zxaoyou/segmentation_WBC"
LABS = {"tecom": (1, 300), "cellavision": (2, 100)}
SIZE = 96
LEVELS = (0, 128, 255)
SHA256 = {
    1: "25bc0d0aca66a982866c74da4824f61c53aff89cea00af15ca2abdd8fa5d9aef",
    2: "e511533f00d46d2bca67c8ed5035e766083f96daf0230c4891cbe41ef456b0d6",
}
# SHA-256 over the names and SHA-256 of all photographs and masks, in order
PIXELS = "913174866526c3f6dd49554f217712229f5e6e55e725665d59e616c1789f1507"


def labels_file(number: int) -> str:
    """The name of a laboratory's table of cell classes."""
    return f"Class Labels of Dataset {number}.csv"


def square(pixels: NDArray[np.uint8], *, mask: bool) -> NDArray[np.uint8]:
    """Pads (height, width[, 3]) to a square and resamples it to (SIZE, SIZE[, 3]): a mask with background and by the nearest pixel, a
    photograph with its border and by Pillow's bilinear filter."""
    import numpy as np
    from PIL import Image

    edge = max(pixels.shape[:2])
    missing = [(edge - n) // 2 for n in pixels.shape[:2]]
    pads = [(before, edge - n - before) for before, n in zip(missing, pixels.shape[:2], strict=True)] + [(0, 0)] * (pixels.ndim - 2)
    padded = np.pad(pixels, pads, mode="constant" if mask else "edge")
    how = Image.Resampling.NEAREST if mask else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(padded).resize((SIZE, SIZE), how))


def three_levels(mask: NDArray[Any]) -> tuple[NDArray[np.uint8], int]:
    """The mask with each value set to the nearest of ``LEVELS``, and the number of pixels that changed."""
    import numpy as np

    levels = np.array(LEVELS)
    out = levels[np.abs(mask[..., None].astype(int) - levels).argmin(-1)].astype(np.uint8)
    return out, int((out != mask).sum())


def _open(path: Path, mode: str) -> NDArray[np.uint8]:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode))
    except Exception as error:  # decoders raise many types of errors
        action = f"download the repository ({HOMEPAGE}) as wbc_two_labs and give its parent folder with --data"
        raise InputError(f"{path}: the photograph or mask is missing or broken; {action}") from error


def build(files: dict[str, Path], out: Path, seed: int, say: Say) -> None:
    """Writes one folder for each laboratory. ``seed`` has no effect.

    Raises:
        InputError: a photograph or mask is missing or broken, or a table has other rows or columns.
    """
    from PIL import Image

    digest = hashlib.sha256()
    for site, (number, count) in LABS.items():
        table = files[labels_file(number)]
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
        if len(rows) != count or any(len(row) < 2 for row in rows):
            raise InputError(f"{table}: has {len(rows)} rows, {count} cells with a class are expected; get the original file again")
        folder, moved = out / site, 0
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        ids = []
        for row in rows:
            cell = int(row[0])
            source = table.parent / f"Dataset {number}" / f"{cell:03d}"
            photograph, drawn = _open(source.with_suffix(".bmp"), "RGB"), _open(source.with_suffix(".png"), "L")
            if photograph.shape[:2] != drawn.shape:
                raise InputError(
                    f"{source}.png: the mask is {drawn.shape}, the photograph {photograph.shape[:2]}; get the original file again"
                )
            for path in (source.with_suffix(".bmp"), source.with_suffix(".png")):
                digest.update(f"{number}/{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
            mask, other = three_levels(drawn)
            moved += other
            ids.append(f"{site}-{cell:03d}")
            Image.fromarray(square(photograph, mask=False)).save(folder / "images" / f"{ids[-1]}.png")
            Image.fromarray(square(mask, mask=True)).save(folder / "masks" / f"{ids[-1]}.png")
        write_table(folder / "persons.csv", ("id", "cell"), zip(ids, (row[1].strip() for row in rows), strict=True))
        write_manifest(
            folder,
            f"White blood cells, laboratory {number}; see {HOMEPAGE}",
            'image = { path = "images", format = "png", masks = "masks" }',
        )
        say(f"{site}: {len(ids)} cells; {moved} pixels of masks were not {', '.join(map(str, LEVELS))} and were set to the nearest")
    if digest.hexdigest() != PIXELS:
        say("warning: the photographs and masks are not the tested copy")


DATASET = Dataset(
    name="wbc",
    about="white blood cells of two laboratories, with masks of nucleus and cytoplasm (the photographs only by --data)",
    homepage=HOMEPAGE,
    licence="GPL-3, as the repository states (cite https://doi.org/10.1016/j.micron.2018.01.010)",
    sources=tuple(
        Source(
            name=labels_file(number),
            folder="wbc_two_labs",
            url=f"https://raw.githubusercontent.com/zxaoyou/segmentation_WBC/master/Class%20Labels%20of%20Dataset%20{number}.csv",
            sha256=(SHA256[number],),
            max_bytes=1 << 16,
        )
        for number, _ in LABS.values()
    ),
    build=build,
)
