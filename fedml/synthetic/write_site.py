"""A cohort in memory as a site's folder, in formats that any reader of ours reads back: for rehearsals and audits, never for a hospital."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedml.cohort.persons import Cohort
from fedml.modalities.modality import require
from fedml.modalities.registry import inputs_of
from fedml.study.section import PARTS
from fedml.study.study import Study
from fedml.tasks.registry import make_task


def write_site(folder: Path, cohort: Cohort, study: Study) -> Path:
    """``cohort`` as a site's folder that reads back as the same persons in the same parts; returns its manifest."""
    folder.mkdir(parents=True, mode=0o700)
    data = ['persons = "persons.csv"', 'split = "split.csv"']
    columns = make_task(study).labels.cells(cohort.labels)
    _csv(folder / "persons.csv", ["id", *columns], zip(cohort.ids, *columns.values(), strict=True))
    _csv(folder / "split.csv", ["id", "part"], ((i, PARTS[p]) for i, p in zip(cohort.ids, cohort.parts, strict=True)))
    for modality, value in inputs_of(cohort):
        entry = require(modality.write, modality, "write")(value, study, cohort.ids, folder)
        data.append(f"{modality.name} = {{ {', '.join(f'{key} = {json.dumps(text)}' for key, text in entry.items())} }}")
    manifest = folder / "site.toml"
    manifest.write_text(f'[site]\nname = "{cohort.site}"\n[data]\n' + "\n".join(data) + "\n", encoding="utf-8")
    return manifest


def _csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
