"""A site's files with nobody in them: synthetic persons as many, with the same inputs, parts and classes as a real cohort's, and noise for
values. What a rehearsal runs on. Of the real cohort only shapes and counts are looked at, and the variants' keys.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fedml.cohort.persons import Cohort
from fedml.study import PARTS, Study


def write_lookalike(folder: Path, cohort: Cohort, study: Study, *, seed: int = 0) -> None:
    """Writes ``site.toml`` and its files into the empty ``folder``.

    Args:
        cohort: as ``clients.site.read_cohort`` read it for ``study``.
        seed: of the noise.
    """
    random = np.random.default_rng(seed)
    ids = [f"synthetic-{n + 1:06d}" for n in range(len(cohort))]
    data = ['persons = "persons.csv"', 'split = "split.csv"']
    classes = study.cohort.classes
    target = [classes[int(c)] for c in cohort.labels] if study.model.task == "classification" else random.normal(size=len(ids)).tolist()
    _csv(folder / "persons.csv", ["id", study.cohort.target], zip(ids, target, strict=True))
    _csv(folder / "split.csv", ["id", "part"], ((i, PARTS[p]) for i, p in zip(ids, cohort.parts, strict=True)))
    spec = study.cohort.clinical
    if cohort.clinical is not None and cohort.clinical_present is not None and spec is not None:
        columns: list[list[object]] = []
        for at, name in enumerate(spec.columns):
            known = spec.categories.get(name)
            values = random.choice(len(known), len(ids)).tolist() if known else random.normal(size=len(ids)).round(4).tolist()
            absent = np.isnan(cohort.clinical[:, at])
            columns.append(["" if gone else known[v] if known else v for v, gone in zip(values, absent, strict=True)])
        rows = (row for row, there in zip(zip(ids, *columns, strict=True), cohort.clinical_present, strict=True) if there)
        _csv(folder / "clinical.csv", ["id", *spec.columns], rows)
        data.append('clinical = { path = "clinical.csv" }')
    if cohort.images is not None:
        shape, dtype = cohort.images.pixels.shape, cohort.images.pixels.dtype
        pixels = random.integers(0, 256, shape, dtype=np.uint8) if dtype == np.uint8 else random.random(shape, dtype=np.float32)
        np.savez(folder / "images.npz", ids=np.array([ids[p] for p in cohort.images.person]), images=pixels)
        data.append('image = { path = "images.npz", format = "npz" }')
    if cohort.variants is not None:
        _write_bed(folder, cohort, ids, random)
        data.append('variants = { path = "cohort.bed", build = "GRCh38" }')
    (folder / "site.toml").write_text(f'[site]\nname = "{cohort.site}"\n[data]\n' + "\n".join(data) + "\n", encoding="utf-8")


def _write_bed(folder: Path, cohort: Cohort, ids: list[str], random: np.random.Generator) -> None:
    from bed_reader import to_bed

    assert cohort.variants is not None  # noqa: S101 - the caller asked
    keys, has = cohort.variants.keys, cohort.variants.present
    people = [i for i, there in zip(ids, has, strict=True) if there]
    dosage = random.binomial(2, random.uniform(0.05, 0.5, len(keys)), (len(people), len(keys))).astype(np.int8)
    properties = {
        "iid": people,
        "fid": people,
        "sid": [k.id or "." for k in keys],
        "chromosome": [k.contig for k in keys],
        "bp_position": [k.position for k in keys],
        "allele_1": [k.alt for k in keys],
        "allele_2": [k.ref for k in keys],
    }
    to_bed(folder / "cohort.bed", dosage, properties=properties)


def _csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
