"""Synthetic hospitals with a CT of a lung nodule, its mask and mutations of each person, for ``experiments/studies/radiomics.toml``.

    truth = write_nodules(Path("out/nodules"), persons=80, seed=1)     # site folders, and truth.json with the planted effects

Response to a treatment follows from the coarseness of the nodule's texture and from a mutation of KRAS. Nothing follows from the nodule's
size, from TP53 and STK11, or from the distribution of intensities, which is the same in every nodule's file: only features of texture
can tell the coarseness. Each hospital's scanner has its own voxels. Same arguments, same bytes.
"""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.errors import InputError
from fedml.seeds import derive_seed

SITES = {"oslo": (1.0, 1.0, 1.5), "porto": (0.8, 0.8, 1.25), "utrecht": (1.2, 1.2, 2.0)}  # mm of a voxel
GENES = ("KRAS", "TP53", "STK11")
MUTATED = (0.35, 0.5, 0.2)  # fraction of persons
TEXTURE, MUTATION = 2.0, 1.0  # log odds of response for one standard deviation of coarseness, and for KRAS
_SIDE = 30.0  # mm of the volume along each axis
_LUNG, _TISSUE, _SPREAD = -750.0, 30.0, 80.0  # HU


def write_nodules(out: Path, persons: int = 80, seed: int = 1, texture: float = TEXTURE, mutation: float = MUTATION) -> dict[str, Any]:
    """Writes a folder for each hospital and ``truth.json``; returns what it says.

    Raises:
        InputError: the folder exists.
    """
    if out.exists():
        raise InputError(f"{out}: exists; give the name of a new folder.")
    truth: dict[str, Any] = {"texture": texture, "KRAS": mutation, "without_effect": ["size", *GENES[1:]], "sites": {}}
    for at, (name, spacing) in enumerate(SITES.items()):
        folder = out / name
        for part in ("ct", "masks"):
            (folder / part).mkdir(parents=True)
        random = np.random.default_rng(derive_seed(seed, "nodules", name))
        coarse = random.normal(size=persons)
        mutations = (random.random((persons, len(GENES))) < MUTATED).astype(int)
        odds = texture * coarse + mutation * (mutations[:, 0] - MUTATED[0])
        responds = (random.random(persons) < 1 / (1 + np.exp(-odds))).astype(int)
        ids = [f"{name[:2]}{at}{k:04d}" for k in range(persons)]
        for person, z in zip(ids, coarse.tolist(), strict=True):
            image, mask = _nodule(random, spacing, z)
            _write(folder / "ct" / f"{person}.nii.gz", image, spacing)
            _write(folder / "masks" / f"{person}.nii.gz", mask, spacing)
        _table(folder / "persons.csv", ["id", "response"], zip(ids, responds.tolist(), strict=True))
        rows = ([person, *row] for person, row in zip(ids, mutations.tolist(), strict=True))
        _table(folder / "mutations.csv", ["id", *(f"{gene}_mut" for gene in GENES)], rows)
        (folder / "site.toml").write_text(
            f'[site]\nname = "{name}"\n\n[data]\npersons = "persons.csv"\nomics = {{ path = "mutations.csv" }}\n'
            'radiomics = { path = "ct", format = "nifti", masks = "masks" }\npublic = true # no such person exists\n',
            encoding="utf-8",
        )
        truth["sites"][name] = dict(zip(ids, coarse.round(6).tolist(), strict=True))
    (out / "truth.json").write_text(json.dumps(truth, indent=1), encoding="utf-8")
    return truth


def _nodule(random: np.random.Generator, spacing: tuple[float, ...], coarse: float) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """An ellipsoid in air whose texture has a length of correlation that grows with ``coarse``, and normal intensities in any case."""
    from scipy.ndimage import gaussian_filter
    from scipy.special import ndtri

    mm = np.array(spacing)
    size = np.round(_SIDE / mm).astype(int)
    places = (np.indices(tuple(size.tolist())).transpose(1, 2, 3, 0) - (size - 1) / 2) * mm
    radii = np.clip(random.normal(9, 1.5, 3), 6, 13)
    mask = ((places / radii) ** 2).sum(-1) <= 1
    length = 1.5 * np.exp(0.45 * coarse)  # mm
    field = gaussian_filter(random.normal(size=size), length / mm, mode="wrap")[mask]
    ranks = field.argsort().argsort()
    image = random.normal(_LUNG, 30, size)
    image[mask] = _TISSUE + _SPREAD * ndtri((ranks + 0.5) / len(ranks))
    return image.round().astype(np.int16), mask.astype(np.uint8)


def _write(path: Path, voxels: npt.NDArray[Any], spacing: tuple[float, ...]) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(voxels, np.diag([*spacing, 1.0]))
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))  # no time, no name: same bytes


def _table(path: Path, header: list[str], rows: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
