"""A site's cohort as a study reads it, from the files that its manifest names."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedml.clients.site import quarantine
from fedml.clients.site.manifest import Site, read_site
from fedml.cohort.clinical import code_columns
from fedml.cohort.groups import read_groups
from fedml.cohort.persons import Cohort, aligned, keep, pool
from fedml.cohort.read_images import TooManyAside, read_images
from fedml.cohort.slides.cohort import Slides, read_slides
from fedml.cohort.table import part_of, read_labels, read_parts, read_table
from fedml.cohort.variants.genotypes import read_variants
from fedml.cohort.variants.harmonise import panel_of
from fedml.cohort.variants.model import Selection, from_text
from fedml.errors import InputError, Reason, SiteError
from fedml.study.study import Study
from fedml.tasks.registry import make_task


def read_cohort(site: Site, study: Study, window: tuple[float, float] | None = None) -> Cohort:
    """All that ``study`` reads of this site's persons, checked.

    Args:
        window: of intensities, where the study has percentiles: what the sites agreed on. Before, images have only histograms.

    Raises:
        InputError: any file that cannot be used: the sentence names it, the column or the person's row, and the mend.
    """
    data, folder, plan = site.manifest.data, site.folder, study.cohort
    path = folder / data.persons
    table = read_table(path)
    ids = [str(i) for i in table.index]
    masked = study.traits.label == "mask"
    labels = read_labels(table, path, make_task(study))
    if data.split is not None:
        parts = read_parts(folder / data.split, table.index)
    else:
        parts = np.array([part_of(i, study.split_key, plan.split) for i in ids], dtype=np.int8)
    clinical = present = variants = images = slides = None
    tables = [(table, path)]
    if data.clinical is not None and any(name not in table.columns for name in study.evaluation.labels()):
        beside = folder / data.clinical.path
        tables.append((read_table(beside).reindex(table.index), beside))
    groups = read_groups(study.evaluation, tables)
    if "clinical" in plan.inputs and data.clinical is not None and plan.clinical is not None:
        path = folder / data.clinical.path
        columns = read_table(path)
        present = np.asarray(table.index.isin(columns.index), dtype=bool)
        clinical = code_columns(columns.reindex(table.index), plan.clinical, path)
    if "variants" in plan.inputs and data.variants is not None:
        own, wanted = data.variants, plan.variants
        variants = read_variants(
            folder / own.path, ids, build=own.build, cache=site.state / "cache", memory_mb=own.memory_mb,
            selection=Selection(wanted.regions, frozenset(wanted.listed)),
            reference=None if own.reference is None else folder / own.reference,
        )  # fmt: skip
    if "image" in plan.inputs and _has_slides(site, study):
        slides = _read_slides(site, study, ids)
    elif "image" in plan.inputs and data.image is not None:
        policy, place = site.manifest.policy, data.image
        try:
            images = read_images(
                folder / place.path, place.format, ids, plan.image, codes=plan.classes if masked else None,
                masks=None if place.masks is None else folder / place.masks,
                deidentification=policy.deidentification, max_quarantined=policy.max_quarantined,
                cache=site.state / "cache" / "images", window=window,
            )  # fmt: skip
        except TooManyAside as error:
            quarantine.write(site.state, study.study.name, error.aside)
            raise
        quarantine.write(site.state, study.study.name, images.aside)
    if clinical is None and variants is None and images is None and slides is None:
        raise InputError(f"{site.file}: [data] has none of the study's inputs ({', '.join(plan.inputs)}); add one that the site has.")
    seen = images or slides
    aside = dict(Counter(reason for _, reason in {(a.person, str(a.reason)) for a in seen.aside})) if seen is not None else {}
    everybody = Cohort(site.name, tuple(ids), labels, parts, clinical, present, variants, images, slides, set_aside=aside, groups=groups)
    cohort = keep(everybody, study)
    if not cohort.count("train"):
        raise InputError(f"{site.file}: none of its {len(cohort)} usable persons is in the train part; look at the split.")
    return cohort


def _has_slides(site: Site, study: Study) -> bool:
    """Are the site's images slides?

    Raises:
        InputError: they are and the study reads none, or the other way round.
    """
    place, shape = site.manifest.data.image, study.cohort.image
    if place is None:
        return False
    tiled = shape is not None and shape.tiles is not None
    if tiled and place.format != "slide":
        text = f'{site.file}: data.image has format = "{place.format}", study "{study.study.name}" reads tiles of slides; '
        raise InputError(text + 'give the folder of slides with format = "slide".')
    if place.format == "slide" and not tiled:
        text = f'{site.file}: data.image has format = "slide", study "{study.study.name}" does not say how slides are cut; '
        raise InputError(text + "it needs [cohort.image] tiles = { size_px = 256 }.")
    return tiled


def _read_slides(site: Site, study: Study, ids: list[str]) -> Slides:
    place, shape = site.manifest.data.image, study.cohort.image
    assert place is not None and shape is not None and shape.tiles is not None  # noqa: S101, PT018 - the caller asked
    most = site.manifest.policy.max_quarantined
    try:
        slides = read_slides(site.folder / place.path, ids, shape.tiles, cache=site.state / "cache" / "slides", max_quarantined=most)
    except TooManyAside as error:
        quarantine.write(site.state, study.study.name, error.aside)
        raise
    quarantine.write(site.state, study.study.name, slides.aside)
    return slides


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
        own = {cohort.site: cohort.variants.keys} if cohort.variants is not None else {}
        flips = panel_of(keys, own, study.cohort.variants.match).flips.get(cohort.site, np.zeros(len(keys), np.uint8)).tobytes()
    turns = np.frombuffer(flips, dtype=np.uint8)
    if len(turns) != len(keys) or turns.max(initial=0) > 1:
        raise SiteError(Reason.BAD_MESSAGE, "the panel and its orientation do not fit each other")
    return aligned(cohort, keys, turns, study)
