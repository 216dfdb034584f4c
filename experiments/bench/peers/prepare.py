"""Writes a job's data, before any clock runs: the site folders that `fedml run` reads, and one file of arrays for the other runners.

Both hold the same persons. The project's sites have the values as they come and are standardised by the project; the other runners get
values that are standardised already, with the project's arithmetic, so that none of their time goes there.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedml.experiments.bench.peers.work import COLUMNS, Job

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
CONCENTRATION, SMALLEST = 0.5, 10
TEST_SHARE = 0.3


@dataclass(frozen=True)
class Persons:
    """One site: ``x`` (persons, ...) as in the files, NaN where missing; ``y`` (persons,); ``test`` (persons,): not trained on."""

    x: Floats
    y: Labels
    test: npt.NDArray[np.bool_]


def heart(data: Path, job: Job) -> list[Persons]:
    """UCI heart disease: 13 columns of four hospitals, 30 % of the persons of each for the test. Cholesterol 0 is a missing value."""
    sites = []
    for at, name in enumerate(job.sites):
        rows = np.genfromtxt(data / str(job.data) / f"processed.{name}.data", delimiter=",")
        rows[rows[:, 4] == 0, 4] = np.nan
        test = np.zeros(len(rows), bool)
        test[np.random.default_rng([2, at]).permutation(len(rows))[: round(TEST_SHARE * len(rows))]] = True
        sites.append(Persons(rows[:, :13], (rows[:, 13] > 0).astype(np.int64), test))
    return sites


def pneumonia(data: Path, job: Job) -> list[Persons]:
    """PneumoniaMNIST: each label of the official train images is dealt to the sites by a Dirichlet draw of its own, until every site has
    some of both; the official test images are dealt evenly."""
    with np.load(data / str(job.data), allow_pickle=False) as file:
        images, labels, test_images, test_labels = (file[f"{p}_{k}"] for p in ("train", "test") for k in ("images", "labels"))
    y, test_y = labels.ravel().astype(np.int64), test_labels.ravel().astype(np.int64)
    generator, count = np.random.default_rng(1), len(job.sites)
    while True:
        dealt: list[list[int]] = [[] for _ in range(count)]
        for label in (0, 1):
            those = generator.permutation(np.flatnonzero(y == label))
            ends = np.round(np.cumsum(generator.dirichlet([CONCENTRATION] * count))[:-1] * len(those)).astype(int)
            for site, chosen in zip(dealt, np.split(those, ends), strict=True):
                site.extend(int(row) for row in chosen)
        if all(np.bincount(y[rows], minlength=2).min() >= SMALLEST for rows in dealt):
            break
    sites = []
    for mine, tested in zip(dealt, np.array_split(np.arange(len(test_y)), count), strict=True):
        kept = sorted(mine)
        pixels = np.concatenate([images[kept], test_images[tested]]).astype(np.float64)[:, None]
        sites.append(Persons(pixels, np.concatenate([y[kept], test_y[tested]]), np.arange(len(pixels)) >= len(kept)))
    return sites


def empty(_data: Path, job: Job) -> list[Persons]:
    """Four persons a site, of whom nothing is learned."""
    generator = np.random.default_rng(0)
    part = np.array([False, False, True, True])
    return [Persons(generator.integers(0, 10, (4, COLUMNS)).astype(np.float64), np.array([0, 1, 0, 1]), part) for _ in job.sites]


SOURCES: dict[str, Callable[[Path, Job], list[Persons]]] = {
    "heart": heart, "pneumonia": pneumonia, "empty10": empty, "empty50": empty, "many": empty,
}  # fmt: skip


def why_not(job: Job, data: Path) -> str | None:
    """Why the job cannot be done: its data are not there; None if they are."""
    wanted = data / job.data if job.data else None
    return f"{wanted} does not exist" if wanted is not None and not wanted.exists() else None


def standardised(sites: Sequence[Persons], axes: tuple[int, ...]) -> list[npt.NDArray[np.float32]]:
    """All values by mean and standard deviation of the training persons over ``axes``, from float64 sums; what is missing becomes 0."""
    training = np.concatenate([site.x[~site.test] for site in sites])
    known = ~np.isnan(training)
    count, filled = known.sum(axes), np.where(known, training, 0)
    mean = filled.sum(axes) / count
    std = np.sqrt((filled**2).sum(axes) / count - mean**2)
    shape = (1, -1, *(1,) * (training.ndim - 2))
    centre, scale = mean.astype(np.float32).reshape(shape), (1 / std.astype(np.float32)).reshape(shape)
    return [np.nan_to_num((site.x.astype(np.float32) - centre) * scale) for site in sites]


def write_arrays(file: Path, sites: Sequence[Persons]) -> None:
    """``x0``, ``y0``, ... the training persons of each site; ``test_x``, ``test_y`` all test persons."""
    x = standardised(sites, tuple(i for i in range(sites[0].x.ndim) if i != 1))
    arrays = {f"x{i}": x[i][~site.test] for i, site in enumerate(sites)} | {f"y{i}": site.y[~site.test] for i, site in enumerate(sites)}
    arrays["test_x"] = np.concatenate([values[site.test] for values, site in zip(x, sites, strict=True)])
    arrays["test_y"] = np.concatenate([site.y[site.test] for site in sites])
    np.savez(file, **arrays)  # type: ignore[arg-type]


def _write_table(file: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with file.open("w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows([head, *rows])


def write_site(folder: Path, name: str, site: Persons) -> None:
    """One site's folder: persons.csv, split.csv, and clinical.csv or images.npz."""
    folder.mkdir(parents=True)
    ids = [f"{name}-{i:05d}" for i in range(len(site.y))]
    _write_table(folder / "persons.csv", ("id", "label"), list(zip(ids, site.y.tolist(), strict=True)))
    _write_table(folder / "split.csv", ("id", "part"), [(i, "test" if t else "train") for i, t in zip(ids, site.test, strict=True)])
    if site.x.ndim > 2:
        np.savez(folder / "images.npz", ids=np.array(ids), images=site.x[:, 0].astype(np.uint8))
        data = 'image = { path = "images.npz", format = "npz" }'
    else:
        head = ("id", *(f"c{i}" for i in range(site.x.shape[1])))
        rows = [(i, *("" if np.isnan(v) else repr(float(v)) for v in values)) for i, values in zip(ids, site.x, strict=True)]
        _write_table(folder / "clinical.csv", head, rows)
        data = 'clinical = { path = "clinical.csv" }'
    # The peers suppress no small counts, so the sites must not either.
    manifest = f'[site]\nname = "{name}"\n[data]\npersons = "persons.csv"\nsplit = "split.csv"\n{data}\n[policy]\nmin_count = 1\n'
    (folder / "site.toml").write_text(manifest)


def prepare(job: Job, data: Path, out: Path) -> Path:
    """Writes ``out/JOB/arrays.npz`` and ``out/JOB/sites/NAME``; returns ``out/JOB``."""
    folder, sites = out / job.name, SOURCES[job.name](data, job)
    folder.mkdir(parents=True)
    if job.optimizer is not None:
        write_arrays(folder / "arrays.npz", sites)
    for name, site in zip(job.sites, sites, strict=True):
        write_site(folder / "sites" / name, name, site)
    return folder
