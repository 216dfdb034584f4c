"""Writes ``study.toml`` and one folder a site from a person's own files."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedml.errors import InputError
from fedml.experiments.new import guess
from fedml.experiments.new.guess import Columns
from fedml.seeds import derive_seed
from fedml.study.task_traits import TRAITS

if TYPE_CHECKING:
    import pandas as pd

Say = Callable[[str], None]
NO_COLUMN = "-"  # in the place of a column's name: there is none


@dataclass(frozen=True)
class Given:
    """A person's files, and what the person says of them; "" or None: to be guessed.

    Args:
        table: persons with columns. images: a folder. variants: VCF, BCF or PLINK bed with the persons as samples.
        simulate: into how many sites the persons are dealt where there is no column of sites.
        label_part, site_part: which part of an image's name is its label or its site, from 1, or from the end: -1.
        positive: the class that is the positive one.
        build: of the variants, if the file's header does not tell.
    """

    table: Path | None = None
    images: Path | None = None
    variants: Path | None = None
    id: str = ""
    target: str = ""
    site_column: str = ""
    simulate: int = 3
    label_part: int | None = None
    site_part: int | None = None
    positive: str = ""
    build: str = ""
    public: bool = False


@dataclass(frozen=True)
class Found:
    """What is written: the persons (index: ids; columns of the table, and the target), classes (None: a number), and files of inputs.
    ``build``: of the variants; "" without."""

    persons: pd.DataFrame
    target: str
    classes: list[str] | None
    columns: Columns
    site: Mapping[str, list[str]]
    images: tuple[str, dict[str, Path]] | None
    build: str
    said: list[str]


def make(given: Given, out: Path, say: Say, *, study: bool = True) -> Path:
    """Writes ``out``/sites and, with ``study``, ``out``/study.toml, completely or not at all; returns ``out``.

    Raises:
        InputError: a file cannot be used, or something cannot be guessed; the message names the option that says it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is in use; give a new folder.")
    found = look(given, target=study)
    anchor = next(parent for parent in out.absolute().parents if parent.is_dir())
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=anchor))
    try:
        for name, ids in found.site.items():
            _write_site(work / "sites" / name, name, ids, given, found)
        if study:
            (work / "study.toml").write_text(_study(given, found, out.name), encoding="utf-8")
        if out.is_dir():
            out.rmdir()
        out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(work, out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    for line in found.said:
        say(line)
    sizes = ", ".join(f"{name} {len(ids)}" for name, ids in found.site.items())
    say(f"{out}: {len(found.site)} sites ({sizes} persons)")
    return out


def look(given: Given, *, target: bool = True) -> Found:
    """Reads the files and guesses what was not said."""
    said: list[str] = []
    images = None
    if given.images is not None:
        kind, files, labels = guess.image_files(given.images)
        images = (kind, files)
        said.append(f"images: {len(files)} files of the format {kind}; each is a person's only image, the name without ending is the id")
    if given.table is not None:
        table, column = guess.read_persons(given.table, given.id, said)
        if images is not None:
            every, table = table, table[table.index.isin(images[1])]
            if not len(table):
                raise _strangers(given.table, column, every, images[1], f"the name of an image in {given.images}")
            if len(table) < len(every):
                said.append(f"{len(every) - len(table)} of {len(every)} persons of {given.table} have no image and are left out")
        path = given.table
    elif images is not None and given.images is not None:
        table, path, column = _of_names(images[1], labels, given, said), given.images, "id"
    else:
        raise InputError("give --table FILE (persons and their columns), --images DIR, or both.")
    build = _build(given, table, path, column, said) if given.variants is not None else ""
    chosen = given.site_column == NO_COLUMN or given.site_part is not None
    site = "" if chosen else guess.site_column(table, given.site_column, said)
    name = guess.target_column(table, given.target, path, said) if target else ""
    classes = guess.classes_of(table[name], path, said, given.positive) if target else None
    columns = guess.columns_of(table, [c for c in (site, name) if c], path)
    said += columns.said
    places = _places(table, site, name, given, said)
    return Found(table, name, classes, columns, _sites(table, places, given, said), images, build, said)


def _of_names(files: Mapping[str, Path], labels: Mapping[str, str], given: Given, said: list[str]) -> pd.DataFrame:
    """A table of the labels that folders or names of images tell."""
    import pandas as pd

    if given.label_part is not None:
        found = guess.part_of(list(files), given.label_part, "--label-part")
    elif all(labels.values()):
        found = dict(labels)
        said.append(f"labels: the folders {', '.join(sorted(set(labels.values())))}")
    else:
        found = guess.labels_in_names(list(files), said)
    if not found:
        raise InputError("no folder and no part of the file names looks like a label: give --label-part N, or --table with the labels.")
    return pd.DataFrame({"label": list(found.values())}, index=pd.Index(list(found), name="id"), dtype=object)


def _strangers(path: Path, column: str, table: pd.DataFrame, known: Iterable[str], what: str) -> InputError:
    """The error that no person of the table is in another file."""
    ids, names = (", ".join(list(map(str, some))[:3]) for some in (table.index, known))
    return InputError(f'{path}: no id of column "{column}" ({ids}, ...) is {what} ({names}, ...); name the right column: --id NAME.')


def _places(table: pd.DataFrame, site: str, target: str, given: Given, said: list[str]) -> list[str] | None:
    """The site of each person, as the files write it; None: they do not tell."""
    if given.site_part is not None:
        if given.images is None:
            raise InputError("--site-part is a part of the images' names; give --images DIR.")
        if given.site_column:
            raise InputError("--site-part and --site-column both name the sites; give one of them.")
        return list(guess.part_of([str(i) for i in table.index], given.site_part, "--site-part").values())
    if site:
        return ["unknown" if v is None or v != v or str(v).strip() == "" else str(v).strip() for v in table[site]]
    if given.images is not None and not given.site_column:
        said += guess.sites_in_names([str(i) for i in table.index], list(table[target]) if target else [])
    return None


def _sites(table: pd.DataFrame, values: list[str] | None, given: Given, said: list[str]) -> dict[str, list[str]]:
    ids = [str(i) for i in table.index]
    if values is not None:
        names = guess.site_names(values)
        out: dict[str, list[str]] = {name: [] for name in names.values()}
        for person, value in zip(ids, values, strict=True):
            out[names[value]].append(person)
        return out
    order = np.random.default_rng(derive_seed(0, "simulated sites")).permutation(len(ids))
    options = ", ".join([*(["--site-column"] if given.table else []), *(["--site-part"] if given.images else []), "--simulate"])
    said.append(f"no column of sites: the persons are dealt at random to {given.simulate} simulated sites ({options})")
    return {f"site-{k + 1}": [ids[i] for i in sorted(order[k :: given.simulate])] for k in range(given.simulate)}


def _write_site(folder: Path, name: str, ids: Sequence[str], given: Given, found: Found) -> None:
    folder.mkdir(parents=True)
    rows = found.persons.loc[list(ids)]
    names = [str(c) for c in rows.columns] if given.table is not None else [found.target]
    _csv(folder / "persons.csv", [found.target] if found.target else [], rows)
    lines = ["[site]", f"name = {json.dumps(name)}", "", "[data]", 'persons = "persons.csv"']
    lines += ["public = true"] if given.public else []
    if given.table is not None and (kept := [c for c in dict.fromkeys(names) if c and c != found.target and names.count(c) == 1]):
        _csv(folder / "clinical.csv", kept, rows)
        lines.append('clinical = { path = "clinical.csv" }')
    if found.images is not None:
        kind, files = found.images
        (folder / "images").mkdir()
        for person in ids:
            target = files[person].resolve()
            (folder / "images" / f"{person}{''.join(target.suffixes[-2:] if target.name.endswith('.gz') else [target.suffix])}").symlink_to(
                target
            )
        lines.append(f'image = {{ path = "images", format = "{kind}" }}')
    if given.variants is not None:
        lines.append(f'variants = {{ path = {json.dumps(str(given.variants.resolve()))}, build = "{found.build}" }}')
    (folder / "site.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _build(given: Given, table: pd.DataFrame, path: Path, column: str, said: list[str]) -> str:
    """The genome build of the variants, whose samples have persons of the table."""
    from fedml.cohort.variants.builds import BUILDS, build_of
    from fedml.cohort.variants.open import open_source

    assert given.variants is not None  # noqa: S101 - the caller has looked
    source = open_source(given.variants)
    if not (persons := table.index.isin(source.samples).sum()):
        raise _strangers(path, column, table, source.samples, f"a sample of {given.variants}")
    said.append(f"variants: {persons} of {len(table)} persons are among the {len(source.samples)} samples of {given.variants}")
    if given.build:
        if given.build not in BUILDS:
            raise InputError(f"--build {given.build}: is one of: {', '.join(BUILDS)}.")
        return given.build
    build = build_of(source.contigs)
    if build is None:
        raise InputError(f"{given.variants}: its header does not tell the genome build; give --build, one of: {', '.join(BUILDS)}.")
    said.append(f"genome build: {build}, by the lengths of chromosomes in the header (--build)")
    return build


def _csv(path: Path, columns: Sequence[str], rows: pd.DataFrame) -> None:
    cells = [["" if v is None or v != v else v for v in rows[c]] for c in columns]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", *columns], *zip(rows.index, *cells, strict=True)])


def _study(given: Given, found: Found, name: str) -> str:
    """The text of the study: defaults that suit a first run."""
    columns = found.columns
    inputs = [*(["image"] if found.images else []), *(["variants"] if given.variants else []), *(["clinical"] if columns.names else [])]
    plan = guess.site_names([name])[name]
    used = ", ".join(p.name for p in (given.table, given.images, given.variants) if p)
    lines = [
        f"# Written by `fedml new` from {used}: correct what was guessed.",
        "[study]", f"name = {json.dumps(plan)}", f"question = {json.dumps(f'Predict {found.target}')}",
        'purpose = "DUO:0000042" # general research use', "seed = 0", "",
        "[cohort]", f"inputs = {json.dumps(inputs)}", f"target = {json.dumps(found.target)}",
    ]  # fmt: skip
    lines += [f"classes = {json.dumps([_code(c) for c in found.classes])}"] if found.classes else []
    lines += [_image(found)] if found.images else []
    if columns.names:
        lines += ["", "[cohort.clinical]", f"columns = {json.dumps(columns.names)}"]
        lines += (
            [f"categories = {_inline({k: [_code(c) for c in v] for k, v in columns.categories.items()})}"] if columns.categories else []
        )
        lines += [f"missing = {_inline(columns.missing)}"] if columns.missing else []
    task = next(name for name, traits in TRAITS.items() if traits.label == ("classes" if found.classes else "number"))
    lines += ["", "[model]", f'task = "{task}"']
    lines += ["", "[training]", f"lr = {1e-3 if found.images else 0.05}", "batch_size = 32"]
    lines += ["", "[federation]", f"sites = {json.dumps(list(found.site))}", "rounds = 20"]
    if given.variants is not None and (found.classes is None or len(found.classes) == 2):
        lines += [
            "",
            "[gwas] # `fedml gwas`: association of each variant",
            f"covariates = {json.dumps(columns.numeric[:10])}",
            "components = 4",
        ]
    return "\n".join(lines) + "\n"


def _image(found: Found) -> str:
    """``[cohort.image]``: the size that most images have."""
    from collections import Counter

    from fedml.cohort.one_image import read_one

    assert found.images is not None  # noqa: S101 - the caller has looked
    files = list(found.images[1].values())
    shapes = Counter(read_one(path, None).shape for path in files[:: max(1, len(files) // 50)])
    (shape, _), more = shapes.most_common(1)[0], len(shapes) > 1
    size = f"channels = {shape[0]}, size = {json.dumps([*shape[1:]])}"
    if more:
        found.said.append(f"images differ in size: they are cropped and padded to {' x '.join(map(str, shape[1:]))}")
    return f"image = {{ {size}{', crop = true' if more else ''} }}"


def _code(text: str) -> Any:
    """A whole number as such, other text as text; ``01`` stays text."""
    return int(text) if text.isdecimal() and str(int(text)) == text else text


def _inline(values: Mapping[str, Any]) -> str:
    return "{ " + ", ".join(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in values.items()) + " }"
