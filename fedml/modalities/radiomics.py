"""Radiomics as an input of a person: numbers that describe a region of an image (``fedml.cohort.radiomics``).

A site names its images and masks, from which the features are computed, or a table of features that it has computed with the study's
settings by PyRadiomics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from fedml.cohort.found_images import ImageRules
from fedml.cohort.images.formats import FORMATS, NAMES, known
from fedml.cohort.inputs import Table, pool_tables
from fedml.cohort.omics import numbers_of, read_omics
from fedml.cohort.radiomics.read import NAME, read_radiomics
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
    nothing,
    table_sums,
)
from fedml.modalities.tables import TableData, id_of, inspect_table, network_text, raw_table, write_table
from fedml.study.code_section import is_own
from fedml.study.radiomics import RadiomicsFeatures
from fedml.study.sections import TableNetwork
from fedml.study.series_section import SiteSelect
from fedml.study.study import Study

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedml.modalities.layout import Layout

_TABLE = "table"
_FORMATS = (_TABLE, *(name for name in NAMES if name != "slide"))
_NAMED = 6  # most features in a sentence


def _format(name: str) -> str:
    if name != _TABLE:
        known(name)
    if name not in _FORMATS:
        raise ValueError("whole slides have no regions of which features are computed; give images of another format")
    return name


class RadiomicsData(TableData):
    """Path of the images whose features are computed, or of a table of features; ``id`` is of the table."""

    format: Annotated[str, AfterValidator(_format), WithJsonSchema({"type": "string", "enum": list(_FORMATS)})] = Field(
        description="format of the images, as of data.image; or table: features that the site has computed, with the study's settings"
    )
    masks: str | None = Field(default=None, description="path of the folder of masks; required except with npz and table")
    select: SiteSelect | None = Field(
        default=None, description="how this site names the series that a study selects, in place of the study's patterns; default: as there"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.format in (_TABLE, "npz")) == (self.masks is not None):
            problem = "has no masks of its own; remove masks" if self.masks is not None else 'needs masks = "FOLDER", the regions'
            raise ValueError(f'format = "{self.format}" {problem}')
        if self.id and self.format != _TABLE:
            raise ValueError('id goes with format = "table"; remove it')
        return self


def spec_of(study: Study) -> RadiomicsFeatures:
    """The study's section."""
    assert study.cohort.radiomics is not None  # noqa: S101 - the study was validated
    return study.cohort.radiomics


def network_of(study: Study) -> TableNetwork:
    """The study's network on the features."""
    assert study.model.radiomics is not None  # noqa: S101 - the study was validated
    return study.model.radiomics


def _read(place: Place[RadiomicsData], study: Study, ids: Sequence[str]) -> Table:
    data, path = place.data, place.folder / place.data.path
    if data.format == _TABLE:
        found = read_omics(path, spec_of(study).columns, ids, id_of(place))
        return Table(NAME, found.values, found.present)
    masks = None if data.masks is None else place.folder / data.masks
    rules = ImageRules(masks, place.deidentification, place.max_quarantined, place.cache / "images", data.select)
    return read_radiomics(path, data.format, list(ids), spec_of(study), rules)


def _inspect(place: Place[RadiomicsData], ids: Sequence[str] | None) -> Iterator[InputFinding]:
    data = place.data
    if data.format == _TABLE:
        yield inspect_table(place, ids)
        return
    form = FORMATS.get(data.format)
    for name, what in ((data.path, "path"), (data.masks, "masks")):
        if name is None:
            continue
        path = place.folder / name
        if not path.exists():
            yield InputFinding("fail", f"{path}: does not exist", f"correct data.radiomics {what} in site.toml")
        elif what == "path" and form is not None and not any(file.name.endswith(form.endings) for file in path.rglob("*")):
            fix = "correct data.radiomics path or format in site.toml"
            yield InputFinding("fail", f"{path}: has no file with the extension {' or '.join(form.endings)}", fix)
        else:
            yield InputFinding("ok", f"{path} exists")


def _summary(value: Table, study: Study) -> list[str]:
    present = value.values[value.present]
    missing = np.isnan(present).mean() if present.size else 0
    return [f"radiomics: {value.values.shape[1]} features of the region of {len(present)} persons, {missing:.1%} not defined"]


def _pool(parts: Sequence[tuple[str, Table | None, int]], study: Study) -> Table:
    return pool_tables([(table, persons) for _, table, persons in parts])


def _preprocess(study: Study, layout: Layout) -> nn.Module:
    from fedml.networks.preprocess import TablePreprocess

    return TablePreprocess(len(spec_of(study).columns))


def _encoder(study: Study, layout: Layout, preprocess: nn.Module, outputs: int) -> nn.Module:
    from fedml.networks.own import own_network
    from fedml.networks.variants import build_table_network

    spec, columns = network_of(study), len(spec_of(study).columns)
    return own_network(study.code, spec, columns, outputs) if is_own(spec.net) else build_table_network(spec, columns, outputs)


def _sums(value: Table, rows: Rows) -> Array:
    return table_sums(value.values, rows)


def _bounded(value: Table, rows: Rows, unit: Callable[[Array], Array]) -> Array:
    return table_sums(unit(value.values[rows]))


def _check(study: Study) -> None:
    if study.privacy.unit != "none":
        _ranges_of(study)


def _ranges_of(study: Study) -> Array:
    spec = spec_of(study)
    if missing := [name for name in spec.columns if name not in spec.ranges]:
        raise InputError(
            f"[cohort.radiomics] ranges lacks {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}; a private study needs "
            "plausible values of each feature: choose few by features, and state them."
        )
    return np.array([spec.ranges[name] for name in spec.columns], np.float64).T


def _ranges(study: Study, layout: Layout) -> Array:
    return _ranges_of(study)


def _canary(value: Table, study: Study, ranges: Array, count: int, random: Random) -> Table:
    """Persons with one to three extreme features; the others are in the middle of the range."""
    (low, high), features = ranges, ranges.shape[1]
    values = np.tile((low + high) / 2, (count, 1))
    for person in values:
        for at in random.choice(features, min(features, int(random.integers(1, 4))), replace=False):
            person[at] += random.choice([-1, 1]) * random.uniform(0.5, 1.5) * (high[at] - low[at])
    return Table(NAME, values, np.ones(count, dtype=bool))


def _placeholder(value: Table, study: Study, random: Random) -> Table:
    return Table(NAME, np.where(np.isnan(value.values), np.nan, random.normal(size=value.values.shape)), value.present)


def _write(value: Table, study: Study, ids: Sequence[str], folder: Path) -> Mapping[str, str]:
    return {**write_table(folder / "radiomics.csv", value, ids, dict.fromkeys(spec_of(study).columns)), "format": _TABLE}


def _raw(values: Any, study: Study, given: Raw) -> dict[str, torch.Tensor]:
    columns = spec_of(study).columns
    return raw_table(NAME, values, columns, study, lambda table: numbers_of(table, columns, Path("input")).to_numpy(np.float64))


def _example(study: Study, layout: Layout) -> Array:
    return np.full((1, len(spec_of(study).columns)), np.nan)


def _form(study: Study) -> Form:
    return Form("columns", spec_of(study).columns)


def _plan(study: Study) -> str:
    spec = spec_of(study)
    return (
        f"{len(spec.columns)} radiomics features ({', '.join(spec.features[:_NAMED] or spec.families)}"
        f"{f' and {len(spec.features) - _NAMED} more' if len(spec.features) > _NAMED else ''}) of the region with {spec.region} in the "
        f"{spec.modality} image{spec.source.rules}, {spec.grid}, with {spec.bins}"
    )


def _fact(study: Study) -> Text:
    spec = spec_of(study)
    return f"Radiomics: {len(spec.columns)} features of {', '.join(spec.families)}.", ("study.json#/cohort/radiomics",)


def _preparation(study: Study) -> Text:
    spec = spec_of(study)
    return f"Features are of the region with {spec.region}, {spec.grid}, with {spec.bins}.", ("study.json#/cohort/radiomics",)


def _missing(study: Study) -> Text:
    return "A radiomics feature that is not defined is replaced by the mean.", ("study.json#/cohort/radiomics",)


RADIOMICS: Modality[Table, RadiomicsData] = Modality(
    name=NAME,
    data=RadiomicsData,
    words=Words(
        plan=_plan,
        column="radiomics feature",
        columns="radiomics features",
        sends=nothing,
        uncovered=nothing,
        fact=_fact,
        preparation=_preparation,
        missing=_missing,
        network=lambda study: network_text(NAME, network_of(study)),
    ),
    layout=(),
    described=lambda value: {},
    declared=dict,
    check=_check,
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
