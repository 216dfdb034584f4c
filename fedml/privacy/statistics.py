"""Preprocessing constants under differential privacy: from stated ranges, or from noisy sums."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fedml.cohort.persons import Cohort
from fedml.learning.statistics import constants_from
from fedml.modalities.layout import Layout
from fedml.modalities.modality import Array, require, table_sums
from fedml.modalities.registry import MODALITIES, modalities_of
from fedml.privacy.noise import add_gaussian
from fedml.study.study import Study


def stated_ranges(study: Study, layout: Layout) -> dict[str, Array]:
    """Preprocessing module -> (2, columns) lowest and highest plausible value, from the study only.

    Raises:
        InputError: an input has no ranges, so no private study can use it.
    """
    out = {f"preprocess.{m.name}": require(m.ranges, m, "ranges")(study, layout) for m in modalities_of(study)}
    if study.traits.standardised:
        out["target"] = np.array([study.privacy.ranges[study.cohort.outcome]]).T
    return out


def stated_constants(study: Study, layout: Layout) -> dict[str, torch.Tensor]:
    """Buffer name -> constant: the middle of each range as mean, a quarter of its width as standard deviation."""
    out: dict[str, torch.Tensor] = {}
    for name, (low, high) in stated_ranges(study, layout).items():
        out[f"{name}.mean"] = torch.from_numpy(((low + high) / 2).astype(np.float32))
        out[f"{name}.std"] = torch.from_numpy(((high - low) / 4).astype(np.float32))
    return out


def private_sums(cohort: Cohort, study: Study, layout: Layout) -> dict[str, Array]:
    """``cohort_sums`` with noise, over values clipped to the stated ranges; a person's images count as one image.

    The noise's standard deviation is ``statistics_multiplier`` x the L2 sensitivity, the square root of the number of released sums.
    """
    ranges = stated_ranges(study, layout)
    scaled = {name: _unit_sums(cohort, name, low, high) for name, (low, high) in ranges.items()}
    # Each person adds a number from -1 to 1 to each of a column's three sums.
    sensitivity = float(np.sqrt(sum(v.size for v in scaled.values())))
    out = {}
    for name, (low, high) in ranges.items():
        noised = add_gaussian(torch.from_numpy(scaled[name]), study.privacy.statistics_multiplier * sensitivity)
        count, total, squares = noised.double().numpy()
        middle, half = (low + high) / 2, (high - low) / 2
        out[name] = np.stack([count, middle * count + half * total, middle**2 * count + 2 * middle * half * total + half**2 * squares])
    return out


def _unit_sums(cohort: Cohort, name: str, low: Array, high: Array) -> Array:
    """(3, columns): persons with a value, sum of values scaled to -1..1, sum of their squares; for images, means over a person's voxels."""
    rows, blank = cohort.rows("train"), np.zeros((3, len(low)))

    def unit(values: Array) -> Array:
        out: Array = np.clip((values - (low + high) / 2) / ((high - low) / 2), -1, 1)
        return out

    if name == "target":
        return table_sums(unit(cohort.labels[rows, None]))
    modality = MODALITIES[name.removeprefix("preprocess.")]
    value = cohort.inputs.get(modality.name)
    return blank if value is None else require(modality.bounded, modality, "bounded")(value, rows, unit)


def constants_or_stated(sums: Mapping[str, Array], study: Study, layout: Layout) -> dict[str, torch.Tensor]:
    """``constants_from`` noisy sums; where noise left no positive variance or count, the constants from stated ranges."""
    computed, stated = constants_from(sums), stated_constants(study, layout)
    for name, (count, _, _) in sums.items():
        mean, std = f"{name}.mean", f"{name}.std"
        usable = (computed[std] > 0) & torch.from_numpy(count > 0)
        computed[mean] = torch.where(usable, computed[mean], stated[mean])
        computed[std] = torch.where(usable, computed[std], stated[std])
    return computed
