"""The table of all modalities by name, and functions over the inputs of a study or a cohort.

for modality, value in inputs_of(cohort): ...       # every input that the site has
for modality in modalities_of(study): ...           # every input that the study lists
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fedml.cohort.clusters import pooled_clusters
from fedml.cohort.inputs import Input
from fedml.cohort.persons import Cohort
from fedml.errors import InputError
from fedml.modalities.clinical import CLINICAL
from fedml.modalities.image import IMAGE
from fedml.modalities.modality import Modality, require
from fedml.modalities.omics import OMICS
from fedml.modalities.radiomics import RADIOMICS
from fedml.modalities.variants import VARIANTS
from fedml.study.study import Study

ALL: tuple[Modality[Any, Any], ...] = (CLINICAL, IMAGE, VARIANTS, OMICS, RADIOMICS)
MODALITIES: Mapping[str, Modality[Any, Any]] = {modality.name: modality for modality in ALL}


def modalities_of(study: Study) -> list[Modality[Any, Any]]:
    """The modalities of the study's inputs, in the study's order."""
    return [MODALITIES[name] for name in study.cohort.inputs]


def inputs_of(cohort: Cohort) -> Iterator[tuple[Modality[Any, Any], Input]]:
    """Each input that the cohort has, in the order of the table, so that random numbers do not depend on the study's order."""
    if unknown := sorted(cohort.inputs.keys() - MODALITIES.keys()):
        raise InputError(f'site {cohort.site}: no modality is named "{unknown[0]}"; its inputs are {", ".join(MODALITIES)}.')
    return ((modality, cohort.inputs[name]) for name, modality in MODALITIES.items() if name in cohort.inputs)


def refuse_unbuilt(study: Study) -> None:
    """Refuses a study that needs a function that a modality does not have. Called before every reading and every run.

    Raises:
        InputError: the input cannot be read, modelled or standardised, or has no ranges in a private study.
    """
    for modality in modalities_of(study):
        for field in ("read", "preprocess", "encoder", "sums", *(["ranges"] if study.privacy.unit != "none" else [])):
            require(getattr(modality, field), modality, field)
        if study.privacy.unit != "none" and study.privacy.statistics == "private":
            require(modality.bounded, modality, "bounded")


def check_inputs(study: Study) -> None:
    """``refuse_unbuilt``, and whether the networks that the study names are known.

    Raises:
        InputError: as above, or a network's name is not known.
    """
    refuse_unbuilt(study)
    for modality in modalities_of(study):
        modality.check(study)


def pool(cohorts: Sequence[Cohort], study: Study, site: str = "pooled") -> Cohort:
    """All persons of several sites as one site, for comparison with the federation. A person at two sites is included twice."""
    inputs: dict[str, Input] = {}
    for modality in modalities_of(study):
        parts = [(c.site, c.inputs.get(modality.name), len(c)) for c in cohorts]
        if any(value is not None for _, value, _ in parts):
            inputs[modality.name] = require(modality.pool, modality, "pool")(parts, study)
    return Cohort(
        site=site,
        ids=tuple(f"{c.site}/{i}" for c in cohorts for i in c.ids),
        labels=np.concatenate([c.labels for c in cohorts]),
        parts=np.concatenate([c.parts for c in cohorts]),
        inputs=inputs,
        groups={name: np.concatenate([c.groups[name] for c in cohorts]) for name in cohorts[0].groups},
        clusters=None if cohorts[0].clusters is None else pooled_clusters([c.clusters for c in cohorts if c.clusters is not None]),
    )
