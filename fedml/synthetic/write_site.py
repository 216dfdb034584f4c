"""A cohort in memory as a site's folder, in formats that any reader of ours reads back: for rehearsals and audits, never for a hospital."""

from __future__ import annotations

import csv
import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedml.cohort.images.masks import as_values
from fedml.cohort.persons import Cohort
from fedml.study.sections import PARTS
from fedml.study.study import Study
from fedml.tasks.registry import make_task

_TIFF_TILE = 256  # pixels a side of what is stored together; a multiple of 16


def write_site(folder: Path, cohort: Cohort, study: Study) -> Path:
    """``cohort`` as a site's folder that reads back as the same persons in the same parts; returns its manifest."""
    folder.mkdir(parents=True, mode=0o700)
    data = ['persons = "persons.csv"', 'split = "split.csv"']
    target = make_task(study).labels.cells(cohort.labels)
    _csv(folder / "persons.csv", ["id", study.cohort.target], zip(cohort.ids, target, strict=True))
    _csv(folder / "split.csv", ["id", "part"], ((i, PARTS[p]) for i, p in zip(cohort.ids, cohort.parts, strict=True)))
    spec = study.cohort.clinical
    if cohort.clinical is not None and cohort.clinical_present is not None and spec is not None:
        known = [spec.categories.get(name) for name in spec.columns]
        cells = [["" if v != v else k[int(v)] if k else v for v, k in zip(row, known, strict=True)] for row in cohort.clinical.tolist()]
        there = ([i, *row] for i, row, has in zip(cohort.ids, cells, cohort.clinical_present, strict=True) if has)
        _csv(folder / "clinical.csv", ["id", *spec.columns], there)
        data.append('clinical = { path = "clinical.csv" }')
    if cohort.images is not None:
        # Where the study states no shape, a reader takes the last axis of an image for its channels.
        stored = cohort.images.pixels[:]
        pixels = stored if study.cohort.image is not None else np.moveaxis(stored, 1, -1)
        arrays: dict[str, Any] = {"ids": np.array([cohort.ids[p] for p in cohort.images.person]), "images": pixels}
        if cohort.images.masks is not None:
            arrays["masks"] = as_values(cohort.images.masks[:][:, 0], study.cohort.classes)
        np.savez(folder / "images.npz", **arrays)
        data.append('image = { path = "images.npz", format = "npz" }')
    if cohort.slides is not None:
        _slides(folder / "slides", cohort)
        data.append('image = { path = "slides", format = "slide" }')
    if cohort.variants is not None:
        _bed(folder / "cohort.bed", cohort)
        data.append(f'variants = {{ path = "cohort.bed", build = "{cohort.variants.build or "GRCh38"}" }}')
    manifest = folder / "site.toml"
    manifest.write_text(f'[site]\nname = "{cohort.site}"\n[data]\n' + "\n".join(data) + "\n", encoding="utf-8")
    return manifest


def _slides(folder: Path, cohort: Cohort) -> None:
    """One slide of noise that is all tissue, as many tiles as a step of training draws, under the name of each of the cohort's slides."""
    assert cohort.slides is not None  # noqa: S101 - the caller asked
    spec, random = cohort.slides.spec, np.random.default_rng(0)
    side = spec.size_px * min(8, math.isqrt(spec.per_step - 1) + 1)
    side = -(-side // _TIFF_TILE) * _TIFF_TILE
    pixels = random.integers(0, 90, (side, side, 3), dtype=np.uint8) + np.array([160, 70, 130], np.uint8)
    folder.mkdir(mode=0o700)
    write_tiff(folder.parent / "noise.tif", pixels, spec.mpp)
    for k, row in enumerate(cohort.slides.person):
        own = folder / cohort.ids[row]
        own.mkdir(exist_ok=True)
        (own / f"{k}.tif").hardlink_to(folder.parent / "noise.tif")


def write_tiff(path: Path, pixels: np.ndarray[Any, np.dtype[np.uint8]], mpp: float | None) -> None:
    """A tiled, uncompressed TIFF (TIFF 6.0, sections 2 and 15) that OpenSlide reads as a slide of one level.

    Args:
        pixels: uint8 (rows, columns, 3), both sides multiples of ``_TIFF_TILE``. mpp: micrometres a pixel, None: not told.
    """
    (rows, columns), size = pixels.shape[:2], _TIFF_TILE**2 * 3
    tiles = pixels.reshape(rows // _TIFF_TILE, _TIFF_TILE, columns // _TIFF_TILE, _TIFF_TILE, 3).swapaxes(1, 2).reshape(-1, size)
    extra, entries = b"", list[bytes]()
    values: dict[int, tuple[str, list[int]]] = {  # by tag: width, length, bits, compression, photometric, samples, planes, tiles
        256: ("I", [columns]), 257: ("I", [rows]), 258: ("H", [8, 8, 8]), 259: ("H", [1]), 262: ("H", [2]), 277: ("H", [3]),
        282: ("Q", []), 283: ("Q", []), 284: ("H", [1]), 296: ("H", [3]), 322: ("H", [_TIFF_TILE]), 323: ("H", [_TIFF_TILE]),
        324: ("I", []), 325: ("I", [size] * len(tiles)),
    }  # fmt: skip
    if mpp is None:
        values = {tag: value for tag, value in values.items() if tag not in (282, 283, 296)}
    start = 8 + 2 + 12 * len(values) + 4
    after = start + 6 + 16 * (mpp is not None) + 8 * len(tiles) * (len(tiles) > 1)
    values[324] = ("I", [after + k * size for k in range(len(tiles))])
    for tag, (kind, numbers) in values.items():
        if kind == "Q":  # a fraction: pixels a centimetre
            count, packed, code = 1, struct.pack("<II", round(1e7 / (mpp or 1.0)), 1000), 5
        else:
            count, packed, code = len(numbers), struct.pack(f"<{len(numbers)}{kind}", *numbers), {"H": 3, "I": 4}[kind]
        if len(packed) > 4:
            packed, extra = struct.pack("<I", start + len(extra)), extra + packed
        entries.append(struct.pack("<HHI", tag, code, count) + packed.ljust(4, b"\0"))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + extra + tiles.tobytes())


def _bed(path: Path, cohort: Cohort) -> None:
    from bed_reader import to_bed

    assert cohort.variants is not None  # noqa: S101 - the caller asked
    keys, has = cohort.variants.keys, cohort.variants.present
    people = [i for i, there in zip(cohort.ids, has, strict=True) if there]
    properties = {
        "iid": people, "fid": people, "sid": [k.id or "." for k in keys], "chromosome": [k.contig for k in keys],
        "bp_position": [k.position for k in keys], "allele_1": [k.alt for k in keys], "allele_2": [k.ref for k in keys],
    }  # fmt: skip
    dosage = cohort.variants.dosage[has]
    to_bed(path, np.where(dosage < 0, -127, dosage).astype(np.int8), properties=properties)


def _csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
