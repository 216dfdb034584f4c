"""The size of a study's model, counted before any weight is created."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from fedml.study import limits
from fedml.study.cohort_section import Cohort
from fedml.study.sections import Model
from fedml.study.task_traits import traits_of


def check_parameters(model: Model, cohort: Cohort, variants: int = 0) -> None:
    """Raises ``ValueError`` if the model has more than ``fedml.study.limits.PARAMETERS`` weights, before any of them is created.

    Args:
        variants: of the agreed panel; 0: not known yet.
    """
    found = dict(_weights(model, cohort, variants))
    if (total := sum(found.values())) > limits.PARAMETERS:
        key = max(found, key=lambda k: found[k])
        raise ValueError(
            f"{key} gives the model {found[key]:,} of its {total:,} weights, the limit is {limits.PARAMETERS:,}; choose narrower layers"
        )


def _weights(model: Model, cohort: Cohort, variants: int) -> Iterator[tuple[str, int]]:
    """(key, least number of weights) of each part of the model whose size the study chooses."""
    columns = {
        "clinical": len(cohort.clinical.columns) if cohort.clinical is not None else 0,
        "omics": len(cohort.omics.columns) if cohort.omics is not None else 0,
        "radiomics": len(cohort.radiomics.columns) if cohort.radiomics is not None else 0,
        "variants": variants,
    }
    tables = {"clinical": model.clinical, "omics": model.omics, "radiomics": model.radiomics, "variants": model.variants}
    outputs = model.width if len(cohort.inputs) > 1 else 1
    for name, network in tables.items():
        if name not in cohort.inputs or network is None:
            continue
        first = columns[name]
        if network.net == "genes":
            genes = len(model.variants.intervals) * model.variants.width
            yield f"[model] {name} width", first * model.variants.width
            yield f"[model] {name} hidden", _dense([genes, *network.hidden, outputs])
        else:
            yield f"[model] {name} hidden" if network.hidden else f"[model] {name}", _dense([first, *network.hidden, outputs])
    if len(cohort.inputs) > 1:
        yield "[model] hidden", _dense([(model.width + 1) * len(cohort.inputs), *model.hidden])
    if "image" in cohort.inputs:
        masks = traits_of(model.task).label == "mask"
        channels = model.segmentation.channels if masks else model.image.channels
        kernel = 3 ** (len(cohort.image.size) if cohort.image is not None else 2)
        yield "[model] segmentation channels" if masks else "[model] image channels", kernel * _dense(channels)


def _dense(widths: Sequence[int]) -> int:
    return sum(a * b for a, b in pairwise(widths))
