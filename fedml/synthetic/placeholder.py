"""Persons who do not exist, as many as a site has, with the same inputs, parts and classes, and noise for values: what a rehearsal runs on.

Of the real cohort only shapes and counts are looked at, where values are missing, and the variants' keys. An input without a placeholder of
its own is refused: no value of a real person stands in for it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedml.cohort.persons import Cohort
from fedml.modalities.modality import require
from fedml.modalities.registry import inputs_of
from fedml.study.study import Study
from fedml.tasks.registry import make_task


def lookalike(cohort: Cohort, study: Study, *, seed: int = 0) -> Cohort:
    """A cohort of the shape of ``cohort``, as ``fedml.clients.site.read.read_cohort`` read it for ``study``; ``seed``: of the noise.

    Raises:
        InputError: an input has no placeholder.
    """
    random = np.random.default_rng(seed)
    made = replace(cohort, ids=tuple(f"synthetic-{n + 1:06d}" for n in range(len(cohort))), excluded={}, excluded_images={})
    made = replace(made, labels=make_task(study).labels.placeholder(cohort.labels, random))
    inputs = {m.name: require(m.placeholder, m, "placeholder")(value, study, random) for m, value in inputs_of(cohort)}
    return replace(made, inputs=inputs)
