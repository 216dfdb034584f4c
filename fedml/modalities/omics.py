"""Omics as an input of a person: a matrix of persons x features, such as the expression of genes or the abundance of proteins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fedml.cohort.inputs import Table
from fedml.cohort.omics import LARGEST, numbers_of, read_features
from fedml.cohort.somatic.read import Somatic, people_in, read_somatic
from fedml.cohort.wide.matrix import Matrix, pool_numbers
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
    block_sums,
    no_text,
    nothing,
    table_sums,
)  # fmt: skip
from fedml.modalities.tables import TableData, id_of, inspect_table, network_text, raw_table, write_table
from fedml.study.code_section import is_own
from fedml.study.omics import OmicsColumns
from fedml.study.sections import TableNetwork
from fedml.study.study import Study

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedml.modalities.layout import Layout

NAME = "omics"
_NAMED = 10  # most features in a sentence; a study may have thousands
_TOO_LARGE = f"[cohort.omics]: a matrix of more than {LARGEST >> 20} MB (persons x features x 8 bytes) cannot be"


class OmicsData(TableData):
    """Path of the matrix: a CSV, TSV or Parquet file (``fedml.cohort.omics``), or of somatic files (``fedml.cohort.somatic``)."""

    format: Literal["table", "maf", "cna"] = Field(
        default="table", description="table: a row each person; maf: mutations; cna: copy numbers of genes x samples"
    )
    copy_number: str = Field(default="", description="with maf: path of a table of copy numbers besides; empty: none")
    sequenced: str = Field(
        default="", description="with maf, required: path of the list of sequenced samples, with those without mutations"
    )
    genes: str = Field(default="", description="with maf: path of the list of sequenced genes; empty: a gene without a row is refused")
    samples: str = Field(
        default="",
        description="with maf and cna: tcga (the person is the first 12 characters of a barcode), or path of a table with SAMPLE_ID and "
        "PATIENT_ID; empty: samples have the persons' ids",
    )
    several: Literal["refuse", "any"] = Field(
        default="refuse", description="with maf: a person with several samples is refused, or has each mutation of any of them"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        only = {"copy_number": "maf", "sequenced": "maf", "genes": "maf", "several": "maf", "samples": "maf cna", "id": "table"}
        for key, formats in only.items():
            if getattr(self, key) != type(self).model_fields[key].default and self.format not in formats.split():
                raise ValueError(f'{key} goes with format = "{formats.split()[0]}"; remove it, or correct format')
        if self.format == "maf" and not self.sequenced:
            raise ValueError(
                'format = "maf" needs sequenced = "FILE", the list of sequenced samples (such as cases_sequenced.txt): a person without a '
                "row in the file has no mutation, or was not sequenced"
            )
        return self


def files_of(place: Place[OmicsData]) -> Somatic:
    """The somatic files that the manifest names."""
    data, folder = place.data, place.folder
    maf = data.format == "maf"
    copies = data.copy_number if maf else data.path
    return Somatic(
        mutations=folder / data.path if maf else None, copies=folder / copies if copies else None,
        sequenced=folder / data.sequenced if data.sequenced else None, genes=folder / data.genes if data.genes else None,
        samples=data.samples, folder=folder, several=data.several,
    )  # fmt: skip


def spec_of(study: Study) -> OmicsColumns:
    """The study's features."""
    assert study.cohort.omics is not None  # noqa: S101 - the study was validated
    return study.cohort.omics


def network_of(study: Study) -> TableNetwork:
    """The study's network on the features."""
    assert study.model.omics is not None  # noqa: S101 - the study was validated
    return study.model.omics


def _read(place: Place[OmicsData], study: Study, ids: Sequence[str]) -> Table | Matrix:
    if place.data.format != "table":
        if len(ids) * len(spec_of(study).columns) * 8 > LARGEST:
            raise InputError(f"{_TOO_LARGE} read from {place.data.format}; list fewer features, or write the matrix as Parquet.")
        return read_somatic(files_of(place), spec_of(study).columns, ids)
    return read_features(place.folder / place.data.path, spec_of(study).columns, ids, id_of(place), place.cache)


def _inspect(place: Place[OmicsData], ids: Sequence[str] | None) -> Iterator[InputFinding]:
    if place.data.format != "table":
        yield _inspect_somatic(place, ids)
        return
    path = place.folder / place.data.path
    yield inspect_table(place, ids, () if path.is_file() and path.stat().st_size > LARGEST else None)


def _inspect_somatic(place: Place[OmicsData], ids: Sequence[str] | None) -> InputFinding:
    """Whose samples there are. No text has an id or a cell, which the errors of the files quote."""
    path = place.folder / place.data.path
    try:
        people = people_in(files_of(place))
    except InputError:
        return InputFinding("fail", f"{path}: cannot be read with its lists", "run fedml-site check, which names the file and the row")
    known = len(people) if ids is None else len(set(people) & set(ids))
    if ids and not known:
        return InputFinding("fail", f"{path}: no sample is of a person in the persons table", "correct samples in [data] omics")
    return InputFinding("ok", f"{known} persons sequenced or profiled")


def _summary(value: Table | Matrix, study: Study) -> list[str]:
    if isinstance(value, Matrix):
        persons, columns = int(value.present.sum()), value.shape[1]
        missing = 1 - value.known()[value.present].sum() / max(persons * columns, 1)
    else:
        present = value.values[value.present]
        persons, columns, missing = len(present), value.values.shape[1], np.isnan(present).mean() if present.size else 0
    return [f"omics: {columns} features of {persons} persons, {missing if persons else 0:.1%} missing"]


def _pool(parts: Sequence[tuple[str, Table | Matrix | None, int]], study: Study) -> Table | Matrix:
    return pool_numbers([(table, persons) for _, table, persons in parts])


def _preprocess(study: Study, layout: Layout) -> nn.Module:
    from fedml.networks.preprocess import TablePreprocess

    return TablePreprocess(len(spec_of(study).columns))


def _encoder(study: Study, layout: Layout, preprocess: nn.Module, outputs: int) -> nn.Module:
    from fedml.networks.own import own_network
    from fedml.networks.variants import build_table_network

    spec, columns = network_of(study), len(spec_of(study).columns)
    return own_network(study.code, spec, columns, outputs) if is_own(spec.net) else build_table_network(spec, columns, outputs)


def _sums(value: Table | Matrix, rows: Rows) -> Array:
    return block_sums(value.blocks(rows), value.shape[1]) if isinstance(value, Matrix) else table_sums(value.values, rows)


def _bounded(value: Table | Matrix, rows: Rows, unit: Callable[[Array], Array]) -> Array:
    if isinstance(value, Matrix):
        return block_sums((unit(block) for block in value.blocks(rows)), value.shape[1])
    return table_sums(unit(value.values[rows]))


def _ranges(study: Study, layout: Layout) -> Array:
    spec = spec_of(study)
    if spec.range is None:
        raise InputError("[cohort.omics] range is missing, a private study needs it; state plausible values, such as range = [-4, 4].")
    return np.repeat(np.array(spec.range)[:, None], len(spec.columns), axis=1)


def _canary(value: Table | Matrix, study: Study, ranges: Array, count: int, random: Random) -> Table:
    """Persons with one to three extreme features; the others are in the middle of the range."""
    (low, high), features = ranges, ranges.shape[1]
    values = np.tile((low + high) / 2, (count, 1))
    for person in values:
        for at in random.choice(features, min(features, int(random.integers(1, 4))), replace=False):
            person[at] += random.choice([-1, 1]) * random.uniform(0.5, 1.5) * (high[at] - low[at])
    return Table(NAME, values, np.ones(count, dtype=bool))


def _placeholder(value: Table | Matrix, study: Study, random: Random) -> Table:
    if isinstance(value, Matrix):
        raise InputError(f"{_TOO_LARGE} rehearsed; rehearse the study with fewer features, or start without --dry-run.")
    return Table(NAME, np.where(np.isnan(value.values), np.nan, random.normal(size=value.values.shape)), value.present)


def _write(value: Table | Matrix, study: Study, ids: Sequence[str], folder: Path) -> Mapping[str, str]:
    if isinstance(value, Matrix):
        raise InputError(f"{_TOO_LARGE} written for canaries; audit the study with fewer features.")
    return write_table(folder / "omics.csv", value, ids, dict.fromkeys(spec_of(study).columns))


def _raw(values: Any, study: Study, given: Raw) -> dict[str, torch.Tensor]:
    columns = spec_of(study).columns
    return raw_table(NAME, values, columns, study, lambda table: numbers_of(table, columns, Path("input")).to_numpy(np.float64))


def _example(study: Study, layout: Layout) -> Array:
    return np.full((1, len(spec_of(study).columns)), np.nan)


def _form(study: Study) -> Form:
    return Form("columns", spec_of(study).columns)


def _listed(study: Study) -> str:
    columns = spec_of(study).columns
    more = f" and {len(columns) - _NAMED} more" if len(columns) > _NAMED else ""
    return f"{', '.join(columns[:_NAMED])}{more}"


def _fact(study: Study) -> Text:
    return f"Omics features: {len(spec_of(study).columns)} ({_listed(study)}).", ("study.json#/cohort/omics/columns",)


def _missing(study: Study) -> Text:
    return "A missing omics value is replaced by the mean.", ("study.json#/cohort/omics",)


OMICS: Modality[Table | Matrix, OmicsData] = Modality(
    name=NAME,
    data=OmicsData,
    words=Words(
        plan=lambda study: f"{len(spec_of(study).columns)} omics features ({_listed(study)})",
        column="omics feature",
        columns="omics features",
        sends=nothing,
        uncovered=nothing,
        fact=_fact,
        preparation=no_text,
        missing=_missing,
        network=lambda study: network_text(NAME, network_of(study)),
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
