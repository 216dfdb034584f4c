"""What the columns of a table and the names of image files mean. Every guess is a sentence, so that a person can correct it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedml.cohort.images.formats import FORMATS
from fedml.cohort.sheet import MISSING_WORDS, header, read_table
from fedml.cohort.table import column, numbers
from fedml.cohort.wild import CODES, wild
from fedml.errors import InputError, nearest
from fedml.text import printable

if TYPE_CHECKING:
    import pandas as pd

_IDS = (
    *("id", "patientid", "patient", "personid", "person", "subjectid", "subject", "participant", "participantid", "sampleid", "sample"),
    *("iid", "pid", "eid", "mrn", "caseid"),
)
_SITES = ("site", "siteid", "hospital", "centre", "center", "institution", "clinic", "cohort", "tissuesourcesite")
_TARGETS = ("y", "label", "target", "outcome", "disease", "diagnosis", "status", "phenotype", "class", "case", "event", "death")
_NEGATIVE = ("0", "no", "false", "negative", "neg", "control", "healthy", "normal", "benign", "absent", "none", "alive")
_LEVELS = 20  # text of more values is no category
_CLASSES = 10  # a number of more values is predicted as a number
_EACH = 5  # images that have a part of a name in common, at least, if it is a label or a site
_PLACES = 50  # a part of names of more values is no site


@dataclass
class Columns:
    """The columns that a model may use. ``said``: what was guessed, sentence by sentence."""

    numeric: list[str] = field(default_factory=list)
    categories: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, list[float]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """All columns, in the table's order of kinds."""
        return [*self.numeric, *self.categories]


def read_persons(path: Path, id_column: str, said: list[str]) -> tuple[pd.DataFrame, str]:
    """The table, indexed by its ids, and the name of their column: as given, or the first that has a usual name and is no id twice.

    Raises:
        InputError: there is no such column; the message names those that there are.
    """
    if id_column:
        return read_table(path, id_column), id_column
    try:
        names = header(path)[0] if path.suffix != ".parquet" else _parquet_names(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a table ({error}); give --table a CSV, TSV or Parquet file.") from error
    likely = [name for name in names if _plain(name) in _IDS]
    for name in likely:
        try:
            table = read_table(path, name)
        except InputError:
            continue
        said.append(f'ids: column "{name}" (--id)')
        return table, name
    raise InputError(f"{path}: no column looks like ids of persons, each once; name it: --id NAME, one of: {_listed(names)}.")


def _parquet_names(path: Path) -> list[str]:
    from pyarrow import parquet

    try:
        return [str(name) for name in parquet.read_schema(path).names]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as Parquet; save it again, or as CSV.") from error


def find_column(table: pd.DataFrame, given: str, usual: Sequence[str], what: str, option: str, said: list[str]) -> str:
    """The column ``given``, or the first with a usual name; "" if there is none.

    Raises:
        InputError: ``given`` is no column.
    """
    if given:
        if given not in table.columns:
            raise InputError(f'no column "{given}"{nearest(given, table.columns)}; {option} is one of: {_listed(table.columns)}.')
        return given
    found = next((str(name) for word in usual for name in table.columns if _plain(str(name)) == word), "")
    if found:
        said.append(f'{what}: column "{found}" ({option})')
    return found


def site_column(table: pd.DataFrame, given: str, said: list[str]) -> str:
    """The column of sites; "" without one."""
    return find_column(table, given, _SITES, "sites", "--site-column", said)


def target_column(table: pd.DataFrame, given: str, path: Path, said: list[str]) -> str:
    """The column of what is predicted. Raises ``InputError`` without one."""
    found = find_column(table, given, _TARGETS, "predicted", "--target", said)
    if not found:
        raise InputError(f"{path}: what is to be predicted? Name its column: --target NAME, one of: {_listed(table.columns)}.")
    return found


def classes_of(values: pd.Series[Any], path: Path, said: list[str], positive: str = "") -> list[str] | None:
    """The classes, the one without the disease first and ``positive`` last; None: the target is a number.

    Raises:
        InputError: it is neither a number nor one of a few classes, or no class is ``positive``.
    """
    texts = [text for text in (_text(v) for v in values) if text not in MISSING_WORDS]
    different = sorted(set(texts), key=lambda t: (t.lower() not in _NEGATIVE, _as_number(t), t))
    if len(different) < 2:
        raise InputError(f'{path}: column "{values.name}" has {len(different)} value(s); what is predicted needs two or more.')
    try:
        numeric = numbers(values, path)
    except InputError:
        numeric = None
    if numeric is not None and len(different) > _CLASSES:
        if positive:
            raise InputError(f'--positive {positive}: "{values.name}" is predicted as a number and has no classes; leave the option out.')
        said.append(f'"{values.name}" is predicted as a number ({len(different)} different values)')
        return None
    if len(different) > _LEVELS:
        raise InputError(
            f'{path}: column "{values.name}" is text of {len(different)} different values; a class needs fewer than {_LEVELS}.'
        )
    if positive:
        if positive not in different:
            raise InputError(f"--positive {positive}: no such class{nearest(positive, different)}; the classes are {_listed(different)}.")
        different = [*(text for text in different if text != positive), positive]
    last = f"{printable(different[-1])} is the positive one" if len(different) == 2 else "in this order"
    said.append(f'"{values.name}" has the classes {", ".join(map(printable, different))}; {last} (--positive VALUE puts another one last)')
    return different


def columns_of(table: pd.DataFrame, without: Sequence[str], path: Path) -> Columns:
    """The columns that are numbers or categories of a few levels; what is left out is said."""
    out = Columns()
    for name in dict.fromkeys(str(n) for n in table.columns):
        if not name or name in without:
            continue
        try:
            values = column(table, name, path, "")
        except InputError:
            out.said.append(f'column "{name}" is left out: there are two of that name')
            continue
        texts = {text for text in (_text(v) for v in values) if text not in MISSING_WORDS}
        if len(texts) < 2:
            out.said.append(f'column "{name}" is left out: {"it is empty" if not texts else "it has one value"}')
            continue
        try:
            found = numbers(values, path)
        except InputError as error:
            if "date" in str(error):
                out.said.append(f'column "{name}" is left out: dates; make a number of them, such as an age in years')
            elif len(texts) > min(_LEVELS, len(table) // 5 + 2):
                out.said.append(f'column "{name}" is left out: text of {len(texts)} different values')
            else:
                out.categories[name] = sorted(texts)
            continue
        out.numeric.append(name)
        far = wild(found[np.isfinite(found)])
        if far is not None and far[0] in CODES:
            out.missing[name] = [far[0]]
            out.said.append(f'column "{name}": {far[0]:g} is read as missing ({far[1]} persons; the others are {far[2]:g} to {far[3]:g})')
    return out


def image_files(folder: Path) -> tuple[str, dict[str, Path], dict[str, str]]:
    """(format, id -> file, id -> label "" where unknown) of a folder of images, or of a folder with one folder a class.

    Raises:
        InputError: there is no image, or two have the same name.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give --images a folder of image files.")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    kinds = {kind: [p for p in files if p.name.lower().endswith(form.endings)] for kind, form in FORMATS.items()}
    kind = max(kinds, key=lambda k: len(kinds[k]))
    if not kinds[kind]:
        raise InputError(f"{folder}: has no image file ({', '.join(e for f in FORMATS.values() for e in f.endings)}).")
    found, labels = dict[str, Path](), dict[str, str]()
    for path in kinds[kind]:
        ending = next(e for e in FORMATS[kind].endings if path.name.lower().endswith(e))
        stem = path.name[: -len(ending)]
        if stem in found:
            stem = f"{path.parent.name}-{stem}"
        if stem in found:
            raise InputError(f"{path}: another image has the same name; give every image its person's id as name.")
        found[stem], labels[stem] = path, path.parent.name if path.parent != folder else ""
    return kind, found, labels


def labels_in_names(names: Sequence[str], said: list[str]) -> dict[str, str]:
    """Name -> the part of it that is a class: the place, counted from the end or the start, with the fewest different words, each often.

    Empty if no part is.
    """
    split = {name: _parts(name) for name in names}
    least = min((len(words) for words in split.values()), default=0)
    best: tuple[int, int, dict[str, str]] | None = None
    for place in [*range(-1, -least - 1, -1), *range(least)]:
        found = {name: words[place] for name, words in split.items()}
        counts = {word: list(found.values()).count(word) for word in set(found.values())}
        if 2 <= len(counts) <= _CLASSES and min(counts.values()) >= _EACH and (best is None or len(counts) < best[0]):
            best = (len(counts), place, found)
    if best is None:
        return {}
    said.append(
        f'labels: part {best[1] + 1 if best[1] >= 0 else best[1]} of the file names, between "_", "-", "." or spaces (--label-part)'
    )
    return best[2]


def part_of(names: Sequence[str], part: int, option: str) -> dict[str, str]:
    """Name -> its part of this number, from 1, or from the end: -1. Raises ``InputError``: a name has no such part."""
    if part == 0:
        raise InputError(f"{option} 0: parts are counted 1, 2, ... from the start or -1, -2, ... from the end.")
    at, found = part - 1 if part > 0 else part, {name: _parts(name) for name in names}
    for name, words in found.items():
        if not -len(words) <= at < len(words):
            raise InputError(f'{option} {part}: the file name "{printable(name)}" has {len(words)} parts between _, -, . and spaces.')
    return {name: words[at] for name, words in found.items()}


def sites_in_names(names: Sequence[str], labels: Sequence[Any]) -> list[str]:
    """A sentence on the one part of the names that may be sites: of 2 to 50 values, each of several images, and not the label.

    Empty if no part, or more than one, is so.
    """
    split = [_parts(name) for name in names]
    least = min(map(len, split), default=0)
    found = dict[int, list[str]]()
    for place in [*range(least), *range(-1, -least - 1, -1)]:
        words = [parts[place] for parts in split]
        counts = Counter(words)
        known = any(_same_groups(words, others) for others in (labels, *found.values()))
        if 2 <= len(counts) <= _PLACES and min(counts.values()) >= _EACH and not known:
            found[place] = words
    if len(found) != 1:
        return []
    ((place, words),) = found.items()
    part, values = place + 1 if place >= 0 else place, sorted(set(words))
    return [f"part {part} of the names has {len(values)} values ({_listed(values)}); if these are sites: --site-part {part}"]


def _same_groups(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether two columns differ only by the names of their values."""
    return len(some) == len(others) and len(set(some)) == len(set(others)) == len(set(zip(some, others, strict=True)))


def _parts(name: str) -> list[str]:
    return [word for word in re.split(r"[_\-. ]+", name) if word]


def site_names(values: Sequence[str]) -> dict[str, str]:
    """Value of the site column -> name of a site: lower case letters, digits and hyphens, each once."""
    out = dict[str, str]()
    for value in sorted(set(values)):
        name = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:60] or "site"
        while name in out.values():
            name += "-2"
        out[value] = name
    return out


def _text(value: Any) -> str:
    from fedml.study.section import normal

    return "" if value is None or value != value else normal(value) if isinstance(value, float) else str(value).strip()


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _listed(names: Any) -> str:
    texts = [printable(str(name)) for name in names if str(name)]
    return ", ".join(texts[:20]) + (f" and {len(texts) - 20} more" if len(texts) > 20 else "")
