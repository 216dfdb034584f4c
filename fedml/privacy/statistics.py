"""Preprocessing constants under privacy: stated ranges, or noised sums."""

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
    """(2, columns) lowest and highest plausible value by preprocessing module, from the study alone.

    Raises:
        InputError: an input has no ranges, so no private study can use it.
    """
    out = {f"preprocess.{m.name}": require(m.ranges, m, "ranges")(study, layout) for m in modalities_of(study)}
    if study.model.task == "regression":
        out["target"] = np.array([study.privacy.ranges[study.cohort.target]]).T
    return out


def stated_constants(study: Study, layout: Layout) -> dict[str, torch.Tensor]:
    """Constants by buffer name: the middle of each range as mean, a quarter of its width as standard deviation."""
    out: dict[str, torch.Tensor] = {}
    for name, (low, high) in stated_ranges(study, layout).items():
        out[f"{name}.mean"] = torch.from_numpy(((low + high) / 2).astype(np.float32))
        out[f"{name}.std"] = torch.from_numpy(((high - low) / 4).astype(np.float32))
    return out


def private_sums(cohort: Cohort, study: Study, layout: Layout) -> dict[str, Array]:
    """``cohort_sums`` with noise: of values brought into the stated ranges, a person's images counting as one.

    The noise's standard deviation is ``statistics_multiplier`` x the L2 sensitivity, the square root of the number of released sums.
    """
    ranges = stated_ranges(study, layout)
    scaled = {name: _unit_sums(cohort, name, low, high) for name, (low, high) in ranges.items()}
    # Each person adds to each of a column's three sums a number from -1 to 1.
    sensitivity = float(np.sqrt(sum(v.size for v in scaled.values())))
    out = {}
    for name, (low, high) in ranges.items():
        noised = add_gaussian(torch.from_numpy(scaled[name]), study.privacy.statistics_multiplier * sensitivity)
        count, total, squares = noised.double().numpy()
        middle, half = (low + high) / 2, (high - low) / 2
        out[name] = np.stack([count, middle * count + half * total, middle**2 * count + 2 * middle * half * total + half**2 * squares])
    return out


def _unit_sums(cohort: Cohort, name: str, low: Array, high: Array) -> Array:
    """(3, columns): persons who have a value, sums of their values brought to -1..1, and of the squares; of an image, its mean of both."""
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
    """``constants_from`` noised sums; where noise left no usable variance or count, what the study states."""
    made, stated = constants_from(sums), stated_constants(study, layout)
    for name, (count, _, _) in sums.items():
        mean, std = f"{name}.mean", f"{name}.std"
        usable = (made[std] > 0) & torch.from_numpy(count > 0)
        made[mean], made[std] = torch.where(usable, made[mean], stated[mean]), torch.where(usable, made[std], stated[std])
    return made
