"""A site's cohort as a study reads it, from the files that its manifest names."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedml.clients.site import quarantine
from fedml.clients.site.manifest import Site, read_site
from fedml.cohort.groups import read_groups
from fedml.cohort.inputs import Input
from fedml.cohort.persons import Cohort, aligned, drop_unusable_persons
from fedml.cohort.read_images import TooManyAside
from fedml.cohort.table import part_of, read_labels, read_parts, read_table
from fedml.cohort.variants.harmonise import panel_of
from fedml.cohort.variants.model import Dosages, from_text
from fedml.errors import InputError, Reason, SiteError
from fedml.modalities.modality import require
from fedml.modalities.registry import modalities_of, pool, refuse_unbuilt
from fedml.study.study import Study
from fedml.tasks.registry import make_task


def read_cohort(site: Site, study: Study, window: tuple[float, float] | None = None) -> Cohort:
    """All that ``study`` reads of this site's persons, checked.

    Args:
        window: of intensities, where the study has percentiles: what the sites agreed on. Before, images have only histograms.

    Raises:
        InputError: any file that cannot be used: the sentence names it, the column or the person's row, and the mend.
    """
    refuse_unbuilt(study)
    data, folder, plan = site.manifest.data, site.folder, study.cohort
    path = folder / data.persons
    table = read_table(path)
    ids = [str(i) for i in table.index]
    labels = read_labels(table, path, make_task(study))
    if data.split is not None:
        parts = read_parts(folder / data.split, table.index)
    else:
        parts = np.array([part_of(i, study.split_key, plan.split) for i in ids], dtype=np.int8)
    tables = [(table, path)]
    if data.clinical is not None and any(name not in table.columns for name in study.evaluation.labels()):
        beside = folder / data.clinical.path
        tables.append((read_table(beside).reindex(table.index), beside))
    groups = read_groups(study.evaluation, tables)
    inputs: dict[str, Input] = {}
    for modality in modalities_of(study):
        if modality.name in data.inputs:
            read = require(modality.read, modality, "read")
            try:
                inputs[modality.name] = read(site.place(modality.name, window), study, ids)
            except TooManyAside as error:
                quarantine.write(site.state, study.study.name, error.aside)
                raise
    if not inputs:
        raise InputError(f"{site.file}: [data] has none of the study's inputs ({', '.join(plan.inputs)}); add one that the site has.")
    left = [one for value in inputs.values() for one in getattr(value, "aside", ())]
    if any(hasattr(value, "aside") for value in inputs.values()):  # an input of which a person may have several, some unusable
        quarantine.write(site.state, study.study.name, left)
    aside = dict(Counter(reason for _, reason in {(one.person, str(one.reason)) for one in left}))
    cohort = drop_unusable_persons(Cohort(site.name, tuple(ids), labels, parts, inputs, set_aside=aside, groups=groups))
    if not cohort.count("train"):
        raise InputError(f"{site.file}: none of its {len(cohort)} usable persons is in the train part; look at the split.")
    return cohort


@lru_cache(maxsize=128)
def load_cohort(manifests: tuple[str, ...], study: Study, window: tuple[float, float] | None = None) -> Cohort:
    """``read_cohort``, once for each study in this process; several manifests are pooled into one site."""
    cohorts = [read_cohort(read_site(Path(m)), study, window) for m in manifests]
    return cohorts[0] if len(cohorts) == 1 else pool(cohorts, study)


@lru_cache(maxsize=128)
def load_aligned(
    manifests: tuple[str, ...], study: Study, panel: bytes, flips: bytes | None = None, window: tuple[float, float] | None = None
) -> Cohort:
    """``load_cohort`` with its variants as the agreed panel has them, turned where this site's ``flips`` (a byte a variant) are 1; without
    them (a trained model's panel, and nobody to say) as the letters tell.

    Raises:
        SiteError: the panel cannot be read, or has not as many variants as there are flips.
    """
    try:
        keys = from_text(panel)
    except ValueError as error:
        raise SiteError(Reason.BAD_MESSAGE, f"the panel cannot be read: {error}") from error
    # Called as others call it: for the cache, an argument that is left out and one that is None are two.
    cohort = load_cohort(manifests, study) if window is None else load_cohort(manifests, study, window)
    if flips is None:
        dosages = cohort.input("variants", Dosages)
        own = {} if dosages is None else {cohort.site: dosages.keys}
        flips = panel_of(keys, own, study.cohort.variants.match).flips.get(cohort.site, np.zeros(len(keys), np.uint8)).tobytes()
    turns = np.frombuffer(flips, dtype=np.uint8)
    if len(turns) != len(keys) or turns.max(initial=0) > 1:
        raise SiteError(Reason.BAD_MESSAGE, "the panel and its orientation do not fit each other")
    return aligned(cohort, keys, turns, study)
