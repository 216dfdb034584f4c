"""Genetic variants as an input of a person."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from fedml.cohort.variants.builds import BUILDS, Build, check_build
from fedml.cohort.variants.companions import companions
from fedml.cohort.variants.fine import Fine
from fedml.cohort.variants.fit import Fit, fit
from fedml.cohort.variants.genotypes import Genome, concat_dosages, genotype_counts, person_chunks, read_variants, shared_panel
from fedml.cohort.variants.harmonise import align
from fedml.cohort.variants.keys import to_text
from fedml.cohort.variants.matching import place as place_of
from fedml.cohort.variants.matching import unique
from fedml.cohort.variants.model import Dosages, Selection, stated_keys
from fedml.cohort.variants.normalise import NOTES
from fedml.cohort.variants.open import open_source
from fedml.errors import InputError
from fedml.modalities.modality import (
    Array,
    DataSection,
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
    shaped,
    table_sums,
)
from fedml.modalities.tables import network_text
from fedml.study.code_section import is_own
from fedml.study.study import Study

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedml.modalities.layout import Layout

NAME = "variants"
_PLACEHOLDERS = 20_000  # of the file's first variants; a rehearsal needs no more
_ALLELE = r"[A-Za-z*.<>:0-9\[\]_=+-]{1,1000}"  # symbolic ones and breakends too (<NON_REF>, N]13:123456])
_NO_VARIANT = re.compile(rf"(?m)^(?![A-Za-z0-9._:*-]{{1,40}}\t\d{{1,10}}\t[A-Za-z0-9._:;-]{{1,80}}\t{_ALLELE}\t{_ALLELE}$)")


class VariantData(DataSection):
    """Path of the genotype file, genome build of its positions, an indexed FASTA of that build to check REF, and the memory limit in MB."""

    build: Build = Field(description="genome build of the positions")
    reference: str | None = Field(
        default=None,
        description="path of an indexed FASTA of the build; with it REF is checked and indels are left-aligned; default: neither",
    )
    memory_mb: Annotated[int, Field(ge=16)] = Field(default=512, description="memory for reading, MB")


def _described(value: Dosages) -> Mapping[str, Any]:
    """The variants in the file, its build, the counts of normalisation, and whether REF was checked against a reference."""
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
    lines = value.tobytes().decode("ascii", "replace").removesuffix("\n")
    return "has a line that is not a variant" if _NO_VARIANT.search(lines) else ""


def _wrong_build(value: Any) -> str:
    if text := shaped("uint8", None)(value):
        return text
    return "" if value.tobytes().decode("ascii", "replace") in BUILDS else "is not a known build"


def _read(place: Place[VariantData], study: Study, ids: Sequence[str]) -> Dosages:
    data, wanted = place.data, study.cohort.variants
    return read_variants(
        place.folder / data.path, ids, cache=place.cache, memory_mb=data.memory_mb,
        genome=Genome(data.build, None if data.reference is None else place.folder / data.reference, place.sex),
        selection=Selection(
            wanted.regions, frozenset(wanted.listed), wanted.filter == "pass",
            wanted.dosage, wanted.min_gq, wanted.min_dp, wanted.min_info,
        ),
    )  # fmt: skip


def _inspect(place: Place[VariantData], ids: Sequence[str] | None) -> Iterator[InputFinding]:
    """Inspects only the header: samples, and whether the contig lengths match the stated build."""
    data, path = place.data, place.folder / place.data.path
    if absent := [str(file) for file in companions(path) if not file.exists()]:
        yield InputFinding("fail", f"{', '.join(absent)}: does not exist", "correct the path in site.toml, or put the file there")
        return
    try:
        source = open_source(path)
    except InputError as error:
        yield InputFinding("fail", str(error), "replace the file, or correct the path in site.toml")
        return
    try:
        found = check_build(source.contigs, data.build, str(path))
    except InputError as error:
        yield InputFinding("fail", str(error), "correct data.variants build in site.toml, or the header of the file")
        return
    if data.reference is not None and not (place.folder / data.reference).exists():
        yield InputFinding("fail", f"{place.folder / data.reference}: does not exist", "correct data.variants reference in site.toml")
        return
    text = f"{path}: {len(source.samples)} samples" + (f", {found}" if found else ", build not stated in the header")
    known = set() if ids is None else set(ids)
    unknown = 0 if ids is None else sum(sample not in known for sample in source.samples)
    if unknown:
        fix = "check that sample names equal the ids of persons; these samples will not be used"
        yield InputFinding("warn", f"{text}; {unknown} samples are not in the persons table", fix)
    else:
        yield InputFinding("ok", text)


def _summary(value: Dosages, study: Study) -> list[str]:
    counts = genotype_counts(value)
    notes = zip(NOTES[1:], value.notes[1:] if value.notes is not None else (), strict=False)
    lines = [f"variants: {len(value.keys)}, {counts[3].sum() / max(counts.sum(), 1):.1%} missing"]
    lines += [f"  {name}: {count}" for name, count in notes if count]
    stated, there = stated_keys(study.cohort.variants.stated), unique(value.keys, "position")
    places = [there.get(place_of(key, "position")) for key in stated]
    if lacks := [key for key, at in zip(stated, places, strict=True) if at is None or fit(value.keys[at], key) is Fit.OTHER]:
        example = f"{lacks[0].contig}:{lacks[0].position}:{lacks[0].ref}:{lacks[0].alt}"
        lines.append(f"  {len(lacks)} of {len(stated)} stated variants are not in the file, such as {example}: missing for every person")
    return lines


def _pool(parts: Sequence[tuple[str, Dosages | None, int]], study: Study) -> Dosages:
    """The dosages of the variants that all sites share, with the agreed orientation."""
    spec = study.cohort.variants
    panel = shared_panel({site: dosages for site, dosages, _ in parts if dosages is not None}, spec, counted=study.privacy.unit == "none")
    blank = np.zeros(0, np.uint8)
    aligned = [None if d is None else align(d, panel.keys, panel.flips.get(site, blank), spec.match) for site, d, _ in parts]
    return concat_dosages([(d, persons) for d, (_, _, persons) in zip(aligned, parts, strict=True)], panel)


def _preprocess(study: Study, layout: Layout) -> nn.Module:
    from fedml.networks.preprocess import VariantPreprocess

    return VariantPreprocess(layout.variants)


def _encoder(study: Study, layout: Layout, preprocess: nn.Module, outputs: int) -> nn.Module:
    from fedml.networks.own import own_network
    from fedml.networks.variants import build_variant_network

    if is_own(study.model.variants.net):
        return own_network(study.code, study.model.variants, layout.variants, outputs)
    return build_variant_network(study.model.variants, layout.variants, outputs, layout.groups)


def _sums(value: Dosages, rows: Rows) -> Array:
    if isinstance(value.dosage, Fine):
        return _fine_sums(value.dosage, rows[value.present[rows]])
    no_alt, one_alt, two_alt, _ = genotype_counts(value, rows)
    return np.stack([no_alt + one_alt + two_alt, one_alt + 2 * two_alt, one_alt + 4 * two_alt]).astype(np.float64)


def _fine_sums(table: Fine, rows: Rows) -> Array:
    out = np.zeros((3, table.shape[1]))
    for chunk in person_chunks(rows, 8 * table.shape[1]):
        dosage = table.floats(chunk).astype(np.float64)
        known = np.where(dosage < 0, 0.0, dosage)
        out += np.stack([(dosage >= 0).sum(0), known.sum(0), (known**2).sum(0)])
    return out


def _bounded(value: Dosages, rows: Rows, unit: Callable[[Array], Array]) -> Array:
    dosage = value.dosage.floats(rows) if isinstance(value.dosage, Fine) else value.dosage[rows]
    return table_sums(unit(np.where(dosage < 0, np.nan, dosage)))


def _ranges(study: Study, layout: Layout) -> Array:
    # This range means no standardisation; a missing dosage becomes 0, as two REF alleles.
    return np.repeat([[-2.0], [2.0]], layout.variants, axis=1)


def _canary(value: Dosages, study: Study, ranges: Array, count: int, random: Random) -> Dosages:
    dosage = random.choice(np.array([0, 2], dtype=np.int8), (count, len(value.keys)))
    return Dosages(value.keys, dosage, np.ones(count, dtype=bool))


def _placeholder(value: Dosages, study: Study, random: Random) -> Dosages:
    """The first variants of the file, with random genotypes in place of real ones; missing ones stay missing."""
    first = slice(0, _PLACEHOLDERS)
    keys = value.keys[first]
    real = np.asarray(value.dosage[:, first] if isinstance(value.dosage, np.ndarray) else value.dosage.block(0, len(keys)))
    dosage = random.binomial(2, random.uniform(0.05, 0.5, len(keys)), real.shape).astype(np.int8)
    return Dosages(keys, np.where(real < 0, -1, dosage).astype(np.int8), value.present)


def _write(value: Dosages, study: Study, ids: Sequence[str], folder: Path) -> Mapping[str, str]:
    if study.cohort.variants.fractions or study.cohort.variants.qualified:
        from fedml.cohort.variants.write_vcf import write_vcf

        write_vcf(folder / "cohort.vcf", value, ids)
        return {"path": "cohort.vcf", "build": value.build or "GRCh38"}
    from bed_reader import to_bed

    keys, has = value.keys, value.present
    people = [i for i, present in zip(ids, has, strict=True) if present]
    properties = {
        "iid": people, "fid": people, "sid": [k.id or "." for k in keys], "chromosome": [k.contig for k in keys],
        "bp_position": [k.position for k in keys], "allele_1": [k.alt for k in keys], "allele_2": [k.ref for k in keys],
    }  # fmt: skip
    dosage = value.dosage[has]
    to_bed(folder / "cohort.bed", np.where(dosage < 0, -127, dosage).astype(np.int8), properties=properties)
    return {"path": "cohort.bed", "build": value.build or "GRCh38"}


def _raw(values: Any, study: Study, given: Raw) -> dict[str, torch.Tensor]:
    import torch

    array = np.asarray(values)
    x = torch.from_numpy(array.astype(np.float32 if study.cohort.variants.fractions else np.int8))
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
    return ("the variants in its file",)


def _uncovered(study: Study) -> tuple[str, ...]:
    return ("the variants in a site's file",)


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
