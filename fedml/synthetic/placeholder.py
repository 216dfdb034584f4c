"""Persons who do not exist, as many as a site has, with the same inputs, parts and classes, and noise for values: what a rehearsal runs on.

Of the real cohort only shapes and counts are looked at, where values are missing, and the variants' keys. Slides are as many, of no pixels
yet: ``fedml.synthetic.write_site`` writes one of noise for all of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedml.cohort.persons import Cohort
from fedml.cohort.read_images import Images
from fedml.cohort.slides.cohort import Looked
from fedml.cohort.variants.model import Dosages
from fedml.study.study import Study
from fedml.tasks.registry import make_task

_VARIANTS = 20_000  # of the file's first; a rehearsal needs no more


def lookalike(cohort: Cohort, study: Study, *, seed: int = 0) -> Cohort:
    """A cohort of the shape of ``cohort``, as ``fedml.clients.site.read.read_cohort`` read it for ``study``; ``seed``: of the noise."""
    random = np.random.default_rng(seed)
    made = replace(cohort, ids=tuple(f"synthetic-{n + 1:06d}" for n in range(len(cohort))), left_out={}, set_aside={})
    made = replace(made, labels=make_task(study).labels.placeholder(cohort.labels, random))
    spec = study.cohort.clinical
    if cohort.clinical is not None and spec is not None:
        codes = [spec.categories.get(name) for name in spec.columns]
        columns = [random.choice(len(c), len(cohort)) if c else random.normal(size=len(cohort)) for c in codes]
        made = replace(made, clinical=np.where(np.isnan(cohort.clinical), np.nan, np.stack(columns, axis=1)))
    if cohort.images is not None:
        shape, byte = cohort.images.pixels.shape, cohort.images.pixels.dtype == np.uint8
        pixels = random.integers(0, 256, shape, dtype=np.uint8) if byte else random.random(shape, dtype=np.float32)
        own_masks = cohort.images.masks
        masks = None if own_masks is None else random.integers(0, len(study.cohort.classes), own_masks.shape, dtype=np.uint8)
        made = replace(made, images=Images(pixels, cohort.images.person, masks, cohort.images.spacing))
    if cohort.slides is not None:
        nowhere = Looked(Path(), np.zeros((0, 2), np.int64), np.zeros((3, 3)), (0, 0))
        made = replace(made, slides=replace(cohort.slides, slides=(nowhere,) * len(cohort.slides.slides), aside=()))
    if cohort.variants is not None:
        own, there = cohort.variants, slice(0, _VARIANTS)
        keys = own.keys[there]
        real = np.asarray(own.dosage[:, there] if isinstance(own.dosage, np.ndarray) else own.dosage.block(0, len(keys)))
        dosage = random.binomial(2, random.uniform(0.05, 0.5, len(keys)), real.shape).astype(np.int8)
        made = replace(made, variants=Dosages(keys, np.where(real < 0, -1, dosage).astype(np.int8), own.present))
    return made
