"""Synthetic persons for a rehearsal: as many as a site has, with the same inputs, parts and classes, and random values.

The real cohort contributes only shapes, counts, the pattern of missing values, and the keys of the variants. An input without a placeholder
is refused, so that no real value is used.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedml.cohort.persons import Cohort
from fedml.modalities.modality import require
from fedml.modalities.registry import inputs_of
from fedml.study.study import Study
from fedml.tasks.registry import make_task


def make_placeholder(cohort: Cohort, study: Study, *, seed: int = 0) -> Cohort:
    """A cohort with the shape of ``cohort``, as ``fedml.clients.site.read.read_cohort`` read it for ``study``; ``seed``: of the noise.

    Raises:
        InputError: an input has no placeholder.
    """
    random = np.random.default_rng(seed)
    placeholder = replace(cohort, ids=tuple(f"synthetic-{n + 1:06d}" for n in range(len(cohort))), excluded={}, excluded_images={})
    placeholder = replace(placeholder, labels=make_task(study).labels.placeholder(cohort.labels, random))
    inputs = {m.name: require(m.placeholder, m, "placeholder")(value, study, random) for m, value in inputs_of(cohort)}
    return replace(placeholder, inputs=inputs)
