"""Two laboratories with synthetic slides of persons who do not exist, for the study ``slides``.

    write_slides(Path("out/slides"), persons=60, seed=1)             # site folders; fedml synth out/slides --kind slides

Of half of the persons, two tiles of their slide have a dark spot; of the others, two tiles have as many dark pixels apart. The second
laboratory stains paler.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedml.cohort.slides.write import TIFF_TILE, write_tiff

LABORATORIES = {"north": (220, 130, 190), "south": (232, 160, 205)}  # name -> colour of its tissue
_GLASS, _DARK, _TILE, _MPP = (243, 243, 243), (90, 30, 110), 64, 0.5


def tissue(random: np.random.Generator, colour: tuple[int, int, int], *, ill: bool) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (512, 512, 3): 6 x 6 tiles of tissue of 64 pixels, with glass around."""
    side = 6 * _TILE
    out = np.full((2 * TIFF_TILE, 2 * TIFF_TILE, 3), _GLASS)
    out[:side, :side] = colour
    for k in random.choice(36, 2, replace=False):
        y, x = k // 6 * _TILE, k % 6 * _TILE
        if ill:
            a, b = random.integers(4, _TILE - 24, 2)
            out[y + a : y + a + 20, x + b : x + b + 20] = _DARK
        else:
            places = random.choice(_TILE**2, 400, replace=False)
            out[y + places // _TILE, x + places % _TILE] = _DARK
    return (out + random.integers(-8, 9, out.shape)).clip(0, 255).astype(np.uint8)


def write_slides(out: Path, persons: int = 60, seed: int = 1) -> list[Path]:
    """Writes the folders of the two laboratories, each with ``persons`` persons; returns them."""
    written = []
    for number, (name, colour) in enumerate(LABORATORIES.items()):
        random, folder = np.random.default_rng([seed, number]), out / name
        (folder / "slides").mkdir(parents=True)
        labels = np.arange(persons) % 2
        for k, label in enumerate(labels):
            write_tiff(folder / "slides" / f"{name}-{k:03d}.tif", tissue(random, colour, ill=bool(label)), _MPP)
        rows = "".join(f"{name}-{k:03d},{label}\n" for k, label in enumerate(labels))
        (folder / "persons.csv").write_text(f"id,ill\n{rows}", encoding="utf-8")
        data = 'persons = "persons.csv"\npublic = true\nimage = { path = "slides", format = "slide" }'
        (folder / "site.toml").write_text(f'[site]\nname = "{name}"\n\n[data]\n{data}\n', encoding="utf-8")
        written.append(folder)
    return written
