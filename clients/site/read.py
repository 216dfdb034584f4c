"""A site's cohort as a study reads it, from the files that its manifest names."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedml.clients.site import quarantine
from fedml.clients.site.manifest import Site, read_site
from fedml.clients.site.remember import remembered
from fedml.cohort.clusters import cluster_names, cluster_numbers
from fedml.cohort.dates import with_dates
from fedml.cohort.groups import POPULATION, read_groups, read_population, read_sex
from fedml.cohort.images.reasons import TooManyExcluded
from fedml.cohort.inputs import Input
from fedml.cohort.persons import Cohort, aligned, drop_unusable_persons, has_label, select
from fedml.cohort.sheet import read_table
from fedml.cohort.standard import standardise_site
from fedml.cohort.table import part_of, read_labels, read_parts
from fedml.cohort.variants.harmonise import panel_of
from fedml.cohort.variants.keys import from_text
from fedml.cohort.variants.model import Dosages
from fedml.cohort.wild import check_wild
from fedml.errors import InputError, Reason, SiteError
from fedml.modalities.modality import require
from fedml.modalities.registry import modalities_of, pool, refuse_unbuilt
from fedml.study.section import PARTS
from fedml.study.study import Study
from fedml.tasks.registry import make_task

_KEPT, _KEPT_BYTES = 128, 2**29  # cohorts of a process: so many in any case, and more as long as they are small together


def read_cohort(site: Site, study: Study, window: tuple[float, float] | None = None) -> Cohort:
    """All data of this site's persons that ``study`` reads, checked.

    Args:
        window: the sites' agreed intensity window, if the study has percentiles; None: images have only histograms.

    Raises:
        InputError: a file cannot be used; the message names the file, the column or row, and how to fix it.
    """
    refuse_unbuilt(study)
    data, folder, plan = site.manifest.data, site.folder, study.cohort
    path = folder / data.persons
    table = read_table(path, data.id)
    ids = [str(i) for i in table.index]
    labels = read_labels(table, path, make_task(study))
    if study.traits.label in ("number", "count") and study.privacy.unit != "patient":
        numbers = labels if labels.ndim == 2 else labels[:, None]
        check_wild(numbers, [name for name in (plan.outcome, plan.exposure) if name is not None], path, data.extremes, clinical=False)
    together = ids if plan.cluster is None else cluster_names(table, plan.cluster, path)
    if data.split is not None:
        parts = read_parts(folder / data.split, table.index, data.id)
    elif site.name in study.federation.evaluate_only:
        parts = np.full(len(ids), PARTS.index("test"), dtype=np.int8)
    else:
        parts = np.array([part_of(i, study.split_key, plan.split) for i in together], dtype=np.int8)
    tables, sex = [(table, path)], plan.variants.sex
    lookup = study.frequencies if study.frequencies is not None and study.frequencies.population else None
    wanted = [*study.evaluation.labels(), *([] if sex is None else [sex.column]), *([] if lookup is None else [lookup.population])]
    if data.clinical is not None and any(name not in table.columns for name in wanted):
        clinical = folder / data.clinical.path
        own, spec = data.clinical.id or data.id, plan.clinical
        read_too = read_table(clinical, own)
        read_too = with_dates(read_too, spec, clinical, own) if spec is not None else read_too
        tables.append((read_too.reindex(table.index), clinical))
    groups = read_groups(study.evaluation, tables)
    if lookup is not None:
        groups[POPULATION] = read_population(lookup, tables)
    known = None if sex is None else read_sex(sex, tables)
    inputs: dict[str, Input] = {}
    for modality in modalities_of(study):
        if modality.name in data.inputs:
            read = require(modality.read, modality, "read")
            try:
                inputs[modality.name] = read(replace(site.place(modality.name, window), sex=known), study, ids)
            except TooManyExcluded as error:
                quarantine.write(site.state, study.study.name, error.excluded)
                raise
    if not inputs:
        raise InputError(f"{site.file}: [data] has none of the study's inputs ({', '.join(plan.inputs)}); add one that the site has.")
    excluded = [e for value in inputs.values() for e in getattr(value, "excluded", ())]
    if any(hasattr(value, "excluded") for value in inputs.values()):
        quarantine.write(site.state, study.study.name, excluded)
    counts = dict(Counter(reason for _, reason in {(e.person, str(e.reason)) for e in excluded}))
    clusters = None if plan.cluster is None else cluster_numbers(together, parts, path)
    cohort = Cohort(site.name, tuple(ids), labels, parts, inputs, excluded_images=counts, groups=groups, clusters=clusters)
    cohort = drop_unusable_persons(cohort)
    if site.name in study.federation.evaluate_only:
        return _tested(site, cohort)
    if not cohort.count("train"):
        raise InputError(_no_training(site, study, cohort, labels[parts == 0]))
    return cohort


def _tested(site: Site, cohort: Cohort) -> Cohort:
    """Only the test persons of a site that does not train: all, or the test part of its split file. ``InputError``: there are none."""
    if not cohort.count("test"):
        why = "none of its usable persons is in the test part of its split file" if site.manifest.data.split else "it has no usable person"
        raise InputError(f"{site.file}: {why}, and [federation] evaluate_only names the site; correct the table, its labels or its split.")
    return select(cohort, cohort.rows("test"))


def _no_training(site: Site, study: Study, cohort: Cohort, labels: npt.NDArray[np.float64]) -> str:
    """Why the site has no training person. ``labels``: of all persons in the train part, also of those who were left out."""
    path, target, missing = site.folder / site.manifest.data.persons, study.cohort.outcome, int((~has_label(labels)).sum())
    if not len(labels):
        return f"{site.file}: none of its {len(cohort)} usable persons is in the train part; correct the split file, or [cohort] split."
    if missing == len(labels):
        who = "person" if not len(cohort) and cohort.excluded.keys() == {"no label"} else "person in the train part"
        return f'{path}: no {who} has a label: column "{target}" is empty; fill it, or correct [cohort] target.'
    why = f"{len(labels) - missing} have none of the study's inputs" + (f", {missing} have no label" if missing else "")
    return (
        f"{site.file}: none of the {len(labels)} persons in the train part can be used: {why}; correct the ids of the inputs or the labels."
    )


def _in_memory(cohort: Cohort) -> int:
    """Bytes of a cohort's arrays that are in memory, about, and of what an entry itself takes."""
    arrays = [array for value in cohort.inputs.values() for array in vars(value).values() if isinstance(array, np.ndarray)]
    return 10_000 + sum(array.nbytes for array in arrays if not isinstance(array, np.memmap))


@remembered(_KEPT_BYTES, weigh=_in_memory, least=_KEPT)
def load_cohort(manifests: tuple[str, ...], study: Study, window: tuple[float, float] | None = None) -> Cohort:
    """``read_cohort``, once for each study in this process; several manifests are pooled into one site."""
    cohorts = [read_cohort(read_site(Path(m)), study, window) for m in manifests]
    return cohorts[0] if len(cohorts) == 1 else pool(cohorts, study)


@remembered(_KEPT_BYTES, weigh=_in_memory, least=_KEPT)
def load_aligned(
    manifests: tuple[str, ...],
    study: Study,
    panel: bytes,
    flips: bytes | None = None,
    window: tuple[float, float] | None = None,
    *,
    new: bool = False,
) -> Cohort:
    """``load_cohort`` as the model gets it: with the variants of the agreed panel, REF and ALT exchanged where this site's ``flips`` (one
    byte for each variant) are 1; and with tables that the site standardises itself, if the study says so. Without ``flips`` (a trained
    model's panel), the alleles decide.

    Args:
        new: the site is none of the study's, so none of its persons has trained.

    Raises:
        SiteError: the panel cannot be read, the number of flips differs from the number of variants, or too few persons to standardise by.
    """
    try:
        keys = from_text(panel)
    except ValueError as error:
        raise SiteError(Reason.BAD_MESSAGE, f"the panel cannot be read: {error}") from error
    cohort = _standardised(manifests, study, window, new) if study.cohort.by_site else _loaded(manifests, study, window)
    if flips is None:
        dosages = cohort.input("variants", Dosages)
        keys_of_site = {} if dosages is None else {cohort.site: dosages.keys}
        flips = panel_of(keys, keys_of_site, study.cohort.variants.match).flips.get(cohort.site, np.zeros(len(keys), np.uint8)).tobytes()
    turns = np.frombuffer(flips, dtype=np.uint8)
    if len(turns) != len(keys) or turns.max(initial=0) > 1:
        raise SiteError(Reason.BAD_MESSAGE, "the number of flips differs from the number of variants in the panel")
    return aligned(cohort, keys, turns, study)


def _loaded(manifests: tuple[str, ...], study: Study, window: tuple[float, float] | None) -> Cohort:
    # ``lru_cache`` treats a missing argument and None as different keys, so the call must have the form of other calls.
    return load_cohort(manifests, study) if window is None else load_cohort(manifests, study, window)


def _standardised(manifests: tuple[str, ...], study: Study, window: tuple[float, float] | None, new: bool) -> Cohort:
    """The cohort, each site's tables standardised by its own persons also where sites are pooled."""
    found = []
    for manifest in manifests:
        smallest = max(study.policy.min_count, read_site(Path(manifest)).manifest.policy.min_count)
        found.append(standardise_site(_loaded((manifest,), study, window), study, smallest, new=new))
    return found[0] if len(found) == 1 else pool(found, study)
