"""A cohort in memory as a site's folder, in formats that any reader of ours reads back: for rehearsals and audits, never for a hospital."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fedml.cohort.persons import Cohort
from fedml.study import PARTS, Study


def write_site(folder: Path, cohort: Cohort, study: Study) -> Path:
    """``cohort`` as a site's folder that reads back as the same persons in the same parts; returns its manifest."""
    folder.mkdir(parents=True, mode=0o700)
    data = ['persons = "persons.csv"', 'split = "split.csv"']
    labels = cohort.labels.tolist()
    target = labels if study.model.task == "regression" else [study.cohort.classes[int(v)] for v in labels]
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
        np.savez(folder / "images.npz", ids=np.array([cohort.ids[p] for p in cohort.images.person]), images=pixels)
        data.append('image = { path = "images.npz", format = "npz" }')
    if cohort.variants is not None:
        _bed(folder / "cohort.bed", cohort)
        data.append(f'variants = {{ path = "cohort.bed", build = "{cohort.variants.build or "GRCh38"}" }}')
    manifest = folder / "site.toml"
    manifest.write_text(f'[site]\nname = "{cohort.site}"\n[data]\n' + "\n".join(data) + "\n", encoding="utf-8")
    return manifest


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
