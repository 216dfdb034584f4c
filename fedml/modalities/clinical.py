"""Clinical columns as an input of a person."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedml.cohort.clinical import code_columns
from fedml.cohort.dates import as_dates, with_dates
from fedml.cohort.ids import check_ids
from fedml.cohort.inputs import Table, pool_tables
from fedml.cohort.sheet import read_table
from fedml.cohort.wild import check_wild
from fedml.errors import InputError
from fedml.modalities.modality import (
    Array,
    Form,
    InputFinding,
    Modality,
    Place,
    Random,
    Raw,
    Rows,
    Text,
    Words,
    no_text,
    nothing,
    table_sums,
)
from fedml.modalities.tables import TableData, id_of, inspect_table, network_text, raw_table, write_table
from fedml.study import date_rules
from fedml.study.code_section import is_own
from fedml.study.cohort_section import ClinicalColumns
from fedml.study.section import normal
from fedml.study.study import Study

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedml.modalities.layout import Layout

NAME = "clinical"
_NAMED = 60  # most columns in the plan's sentence; a study may have thousands


class ClinicalData(TableData):
    """Path of the table of clinical columns."""


def spec_of(study: Study) -> ClinicalColumns:
    """The study's columns."""
    assert study.cohort.clinical is not None  # noqa: S101 - the study was validated
    return study.cohort.clinical


def _read(place: Place[ClinicalData], study: Study, ids: Sequence[str]) -> Table:
    path = place.folder / place.data.path
    table = read_table(path, id_of(place), {*spec_of(study).read})
    check_ids(ids, table.index, str(path))
    known = set(table.index)  # np.isin compares objects one by one: 5 s for 20,000 persons
    present = np.fromiter((person in known for person in ids), bool, len(ids))
    if not len(table):
        raise InputError(f"{path}: has no row; correct the path in site.toml, or export the table again.")
    spec = spec_of(study)
    table = with_dates(table, spec, path, id_of(place))
    values = code_columns(table.reindex(list(ids)), spec, path)
    if study.privacy.unit != "patient":  # there, a refusal would tell of one person, and values are clipped to the study's ranges
        check_wild(values, ["" if name in spec.categories else name for name in spec.columns], path, place.extremes)
    return Table(NAME, values, present)


def _inspect(place: Place[ClinicalData], ids: Sequence[str] | None) -> Iterator[InputFinding]:
    yield inspect_table(place, ids)


def _summary(value: Table, study: Study) -> list[str]:
    spec, rows = spec_of(study), len(value.values)
    absent = rows - int(value.present.sum())
    lines = [f"clinical: {absent} of {rows} persons have no row"] if absent else []
    texts = [_column_text(value.values[:, at], spec.categories.get(name)) for at, name in enumerate(spec.columns)]
    return lines + [f"{_named(name, spec)}: {text}" for name, text in zip(spec.columns, texts, strict=True)]


def _named(name: str, spec: ClinicalColumns) -> str:
    """The column, and of a date which number it becomes."""
    return f"{name} ({date_rules.words(spec.dates[name])})" if name in spec.dates else name


def _column_text(values: Array, categories: Sequence[Any] | None) -> str:
    """Range and median of a column, or its categories, and how much is missing."""
    known = values[~np.isnan(values)]
    missing = f"{1 - len(known) / max(len(values), 1):.0%} missing"
    if not len(known):
        return "missing for every person"
    if categories is not None:
        counts = np.bincount(known.astype(int), minlength=len(categories))
        return f"{', '.join(f'{code} {count}' for code, count in zip(categories, counts, strict=True))}; {missing}"
    if known.min() == known.max():
        return f"{known[0]:g} for every person, which teaches nothing; {missing}"
    return f"{known.min():g} to {known.max():g}, median {np.median(known):g}; {missing}"


def _pool(parts: Sequence[tuple[str, Table | None, int]], study: Study) -> Table:
    return pool_tables([(table, persons) for _, table, persons in parts])


def _preprocess(study: Study, layout: Layout) -> nn.Module:
    from fedml.networks.preprocess import ClinicalPreprocess

    return ClinicalPreprocess(spec_of(study))


def _encoder(study: Study, layout: Layout, preprocess: nn.Module, outputs: int) -> nn.Module:
    from fedml.networks.own import own_network
    from fedml.networks.preprocess import ClinicalPreprocess
    from fedml.networks.variants import build_table_network

    assert isinstance(preprocess, ClinicalPreprocess)  # noqa: S101 - from _preprocess
    spec = study.model.clinical
    if is_own(spec.net):
        return own_network(study.code, spec, preprocess.width, outputs)
    return build_table_network(spec, preprocess.width, outputs)


def _sums(value: Table, rows: Rows) -> Array:
    return table_sums(value.values[rows])


def _bounded(value: Table, rows: Rows, unit: Callable[[Array], Array]) -> Array:
    return table_sums(unit(value.values[rows]))


def _ranges(study: Study, layout: Layout) -> Array:
    # A categorical column is not standardised; the range -2..2 leaves it unchanged.
    return np.array([study.privacy.ranges.get(c, (-2.0, 2.0)) for c in spec_of(study).columns]).T


def _canary(value: Table, study: Study, ranges: Array, count: int, random: Random) -> Table:
    """Persons with one to three columns that are extreme, missing or of a random category; the others are in the middle of their range."""
    spec, (low, high) = spec_of(study), ranges
    values = np.tile((low + high) / 2, (count, 1))
    numeric = [at for at, name in enumerate(spec.columns) if name not in spec.categories]
    coded = [(at, len(spec.categories[name])) for at, name in enumerate(spec.columns) if name in spec.categories]
    values[:, [at for at, _ in coded]] = np.nan
    for person in values:
        for at in random.choice(len(spec.columns), min(len(spec.columns), int(random.integers(1, 4))), replace=False):
            far = random.choice([-1, 1]) * random.uniform(0.5, 1.5) * (high[at] - low[at])
            person[at] = (np.nan if random.random() < 0.3 else person[at] + far) if at in numeric else random.integers(dict(coded)[at])
    return Table(NAME, values, np.ones(count, dtype=bool))


def _placeholder(value: Table, study: Study, random: Random) -> Table:
    persons, spec = len(value.values), spec_of(study)
    codes = [spec.categories.get(name) for name in spec.columns]
    columns = [random.choice(len(c), persons) if c else random.normal(size=persons) for c in codes]
    return Table(NAME, np.where(np.isnan(value.values), np.nan, np.stack(columns, axis=1)), value.present)


def _write(value: Table, study: Study, ids: Sequence[str], folder: Path) -> Mapping[str, str]:
    spec = spec_of(study)
    texts = as_dates({name: value.values[:, at] for at, name in enumerate(spec.columns)}, spec) if spec.dates else {}
    return write_table(folder / "clinical.csv", value, ids, {name: spec.categories.get(name) for name in spec.columns}, texts)


def _raw(values: Any, study: Study, given: Raw) -> dict[str, torch.Tensor]:
    spec = spec_of(study)
    coded = [at for at, name in enumerate(spec.columns) if name in spec.categories]
    return raw_table(NAME, values, spec.columns, study, lambda table: code_columns(table, spec, Path("input")), coded)


def _example(study: Study, layout: Layout) -> Array:
    return np.full((1, len(spec_of(study).columns)), np.nan)


def _form(study: Study) -> Form:
    return Form("columns", spec_of(study).columns)


def _plan(study: Study) -> str:
    columns = spec_of(study).columns
    more = f" and {len(columns) - _NAMED} more" if len(columns) > _NAMED else ""
    named = [_named(name, spec_of(study)) for name in columns[:_NAMED]]
    return f"{len(columns)} clinical columns ({', '.join(named)}{more})"


def _fact(study: Study) -> Text:
    spec = spec_of(study)
    kinds = spec.categories
    names = [f"{c} ({', '.join(normal(v) for v in kinds[c])})" if c in kinds else _named(c, spec) for c in spec.columns]
    text = f"Clinical columns, with the codes of categories: {', '.join(names)}."
    dated = ("study.json#/cohort/clinical/dates",) if spec.dates else ()
    return text, ("study.json#/cohort/clinical/columns", "study.json#/cohort/clinical/categories", *dated)


def imputed(study: Study) -> str:
    """What stands for a missing number."""
    if NAME in study.cohort.by_site:
        return "the mean of its site"
    if study.privacy.unit == "none":
        return "the mean"
    return "the middle of the range that the study states" if study.privacy.statistics == "stated" else "the mean, which is noised"


def _missing(study: Study) -> Text:
    spec = spec_of(study)
    texts = [f"A missing clinical number is replaced by {imputed(study)}" + (" and marked by an indicator." if spec.indicate else ".")]
    codes = [f"{column}: {', '.join(normal(v) for v in values)}" for column, values in spec.missing.items()]
    texts += [f"Codes read as missing: {'; '.join(codes)}."] if codes else []
    return " ".join(texts), ("study.json#/cohort/clinical/indicate", "study.json#/cohort/clinical/missing")


CLINICAL: Modality[Table, ClinicalData] = Modality(
    name=NAME,
    data=ClinicalData,
    words=Words(
        plan=_plan,
        column="clinical column",
        columns="clinical numbers",
        sends=nothing,
        uncovered=nothing,
        fact=_fact,
        preparation=no_text,
        missing=_missing,
        network=lambda study: network_text(NAME, study.model.clinical),
    ),
    layout=(),
    described=lambda value: {},
    declared=dict,
    check=nothing,
    read=_read,
    inspect=_inspect,
    summary=_summary,
    pool=_pool,
    preprocess=_preprocess,
    encoder=_encoder,
    sums=_sums,
    bounded=_bounded,
    ranges=_ranges,
    canary=_canary,
    placeholder=_placeholder,
    write=_write,
    raw=_raw,
    example=_example,
    form=_form,
    packages=nothing,
)
