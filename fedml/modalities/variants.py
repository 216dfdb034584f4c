"""Genetic variants as an input of a person."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from fedml.cohort.variants.builds import BUILDS, Build, build_of
from fedml.cohort.variants.genotypes import Genome, genotype_counts, read_variants, shared_panel, stack
from fedml.cohort.variants.harmonise import align
from fedml.cohort.variants.model import Dosages, Selection, to_text
from fedml.cohort.variants.normalise import NOTES
from fedml.cohort.variants.open import open_source
from fedml.errors import InputError
from fedml.modalities.modality import (
    Array,
    DataSection,
    Form,
    Look,
    Modality,
    Place,
    Random,
    Raw,
    Rows,
    Text,
    Words,
    no_text,
    nothing,
    shaped,
    table_sums,
)
from fedml.modalities.tables import network_text
from fedml.study.study import Study

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedml.modalities.layout import Layout

NAME = "variants"
_PLACEHOLDERS = 20_000  # of the file's first variants; a rehearsal needs no more
_VARIANT = re.compile(r"[A-Za-z0-9._-]{1,40}\t\d{1,10}\t[A-Za-z0-9._:;-]{1,80}\t[A-Za-z*.<>:0-9]{1,1000}\t[A-Za-z*.<>:0-9]{1,1000}")


class VariantData(DataSection):
    """Where genotypes are, the genome build of their positions, a FASTA of it (with its index) to hold REF against, and how much memory
    reading may take."""

    build: Build
    reference: str | None = None
    memory_mb: Annotated[int, Field(ge=16)] = 512


def _described(value: Dosages) -> Mapping[str, Any]:
    """Which variants the file holds, its build, what was done to it, whether REF was held against a reference."""
    from fedml.wire import records

    return {
        records.PANEL: np.frombuffer(to_text(value.keys), dtype=np.uint8),
        records.BUILD: np.frombuffer(value.build.encode(), dtype=np.uint8),
        records.CHECKED: np.array([value.checked], np.uint8),
        records.NOTES: np.zeros(len(NOTES), np.int64) if value.notes is None else value.notes,
    }


def _declared() -> Mapping[str, Callable[[Any], str]]:
    from fedml.wire import records

    whole = {records.PANEL: _wrong_panel, records.BUILD: _wrong_build}
    return {**whole, records.CHECKED: shaped("uint8", 1), records.NOTES: shaped("int64", len(NOTES))}


def _wrong_panel(value: Any) -> str:
    if text := shaped("uint8", None)(value):
        return text
    lines = value.tobytes().decode("ascii", "replace").removesuffix("\n").split("\n")
    return "" if all(_VARIANT.fullmatch(line) for line in lines) else "holds a line that is no variant"


def _wrong_build(value: Any) -> str:
    if text := shaped("uint8", None)(value):
        return text
    return "" if value.tobytes().decode("ascii", "replace") in BUILDS else "is no build that is known"


def _read(place: Place[VariantData], study: Study, ids: Sequence[str]) -> Dosages:
    own, wanted = place.data, study.cohort.variants
    return read_variants(
        place.folder / own.path, ids, cache=place.cache, memory_mb=own.memory_mb,
        genome=Genome(own.build, None if own.reference is None else place.folder / own.reference),
        selection=Selection(wanted.regions, frozenset(wanted.listed)),
    )  # fmt: skip


def _inspect(place: Place[VariantData], ids: Sequence[str] | None) -> Iterator[Look]:
    """The header alone: samples, and whether its contigs' lengths are those of the stated build."""
    own, path = place.data, place.folder / place.data.path
    companions = [path.with_suffix(ending) for ending in (".bim", ".fam")] if path.suffix == ".bed" else []
    if absent := [str(one) for one in companions if not one.exists()]:
        yield Look("fail", f"{', '.join(absent)}: does not exist", "correct the path in site.toml, or put the file there")
        return
    try:
        source = open_source(path)
    except InputError as error:
        yield Look("fail", str(error), "write the file anew, or correct the path in site.toml")
        return
    found = build_of(source.contigs)
    if found is not None and found != own.build:
        yield Look("fail", f"{path}: its contigs are {found}, site.toml says {own.build}", "correct data.variants build in site.toml")
        return
    if own.reference is not None and not (place.folder / own.reference).exists():
        yield Look("fail", f"{place.folder / own.reference}: does not exist", "correct data.variants reference in site.toml")
        return
    told = f"{path}: {len(source.samples)} samples" + (f", {found}" if found else ", build not told by the header")
    known = set() if ids is None else set(ids)
    strangers = 0 if ids is None else sum(sample not in known for sample in source.samples)
    if strangers:
        mend = "see whether sample names and ids are written alike; those samples will not be used"
        yield Look("warn", f"{told}; {strangers} samples are not in the persons table", mend)
    else:
        yield Look("ok", told)


def _summary(value: Dosages, study: Study) -> list[str]:
    counts = genotype_counts(value)
    notes = zip(NOTES[1:], value.notes[1:] if value.notes is not None else (), strict=False)
    lines = [f"variants: {len(value.keys)}, {counts[3].sum() / max(counts.sum(), 1):.1%} missing"]
    return lines + [f"  {name}: {count}" for name, count in notes if count]


def _pool(parts: Sequence[tuple[str, Dosages | None, int]], study: Study) -> Dosages:
    """Of the variants that all sites share, oriented as they agree on it."""
    spec = study.cohort.variants
    panel = shared_panel({site: own for site, own, _ in parts if own is not None}, spec, counted=study.privacy.unit == "none")
    blank = np.zeros(0, np.uint8)
    turned = [None if own is None else align(own, panel.keys, panel.flips.get(site, blank), spec.match) for site, own, _ in parts]
    return stack([(own, persons) for own, (_, _, persons) in zip(turned, parts, strict=True)], panel)


def _preprocess(study: Study, layout: Layout) -> nn.Module:
    from fedml.networks.preprocess import VariantPreprocess

    return VariantPreprocess(layout.variants)


def _encoder(study: Study, layout: Layout, preprocess: nn.Module, outputs: int) -> nn.Module:
    from fedml.networks.variants import build_variant_network

    return build_variant_network(study.model.variants, layout.variants, outputs, layout.groups)


def _sums(value: Dosages, rows: Rows) -> Array:
    none, one, two, _ = genotype_counts(value, rows)
    return np.stack([none + one + two, one + 2 * two, one + 4 * two]).astype(np.float64)


def _bounded(value: Dosages, rows: Rows, unit: Callable[[Array], Array]) -> Array:
    dosage = value.dosage[rows]
    return table_sums(unit(np.where(dosage < 0, np.nan, dosage)))


def _ranges(study: Study, layout: Layout) -> Array:
    # A dosage is not standardised, and a missing one becomes 0: two REF alleles.
    return np.repeat([[-2.0], [2.0]], layout.variants, axis=1)


def _canary(value: Dosages, study: Study, ranges: Array, count: int, random: Random) -> Dosages:
    dosage = random.choice(np.array([0, 2], dtype=np.int8), (count, len(value.keys)))
    return Dosages(value.keys, dosage, np.ones(count, dtype=bool))


def _placeholder(value: Dosages, study: Study, random: Random) -> Dosages:
    """The first variants of the file, with random genotypes where there is one."""
    there = slice(0, _PLACEHOLDERS)
    keys = value.keys[there]
    real = np.asarray(value.dosage[:, there] if isinstance(value.dosage, np.ndarray) else value.dosage.block(0, len(keys)))
    dosage = random.binomial(2, random.uniform(0.05, 0.5, len(keys)), real.shape).astype(np.int8)
    return Dosages(keys, np.where(real < 0, -1, dosage).astype(np.int8), value.present)


def _write(value: Dosages, study: Study, ids: Sequence[str], folder: Path) -> Mapping[str, str]:
    from bed_reader import to_bed

    keys, has = value.keys, value.present
    people = [i for i, there in zip(ids, has, strict=True) if there]
    properties = {
        "iid": people, "fid": people, "sid": [k.id or "." for k in keys], "chromosome": [k.contig for k in keys],
        "bp_position": [k.position for k in keys], "allele_1": [k.alt for k in keys], "allele_2": [k.ref for k in keys],
    }  # fmt: skip
    dosage = value.dosage[has]
    to_bed(folder / "cohort.bed", np.where(dosage < 0, -127, dosage).astype(np.int8), properties=properties)
    return {"path": "cohort.bed", "build": value.build or "GRCh38"}


def _raw(values: Any, study: Study, given: Raw) -> dict[str, torch.Tensor]:
    import torch

    x = torch.from_numpy(np.asarray(values).astype(np.int8))
    return {f"{NAME}_present": (~(x < 0).all(1)).float(), NAME: x}


def _example(study: Study, layout: Layout) -> Any:
    return np.zeros((1, layout.variants), np.int8)


def _form(study: Study) -> Form:
    return Form("array")


def _plan(study: Study) -> str:
    spec = study.cohort.variants
    chosen = [*spec.regions, *([f"{len(spec.listed)} listed"] if spec.listed else [])]
    which = f" ({', '.join(chosen)})" if chosen else ""
    return f"variants{which}, matched between sites by {spec.match}"


def _file(study: Study) -> tuple[str, ...]:
    return ("which variants its file holds",)


def _uncovered(study: Study) -> tuple[str, ...]:
    return ("which variants a site's file holds",)


def _missing(study: Study) -> Text:
    return "A missing genotype is replaced by the mean dosage.", ("study.json#/cohort/inputs",)


VARIANTS: Modality[Dosages, VariantData] = Modality(
    name=NAME,
    data=VariantData,
    words=Words(
        plan=_plan,
        column="variant",
        columns="variants",
        sends=_file,
        uncovered=_uncovered,
        fact=no_text,
        preparation=no_text,
        missing=_missing,
        network=lambda study: network_text(NAME, study.model.variants),
    ),
    layout=("variants", "groups"),
    described=_described,
    declared=_declared,
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
