"""The first round: sums over training persons, from which the server computes the preprocessing constants. No raw values are sent.

Each quantity is three sums (count, sum, sum of squares) in float64, so sites' sums add up to the pooled ones.

Under differential privacy nothing may be taken from the data unnoised: either the study states plausible ranges and the constants follow
from those alone (``stated_constants``), or each person's values are brought into the ranges, scaled to -1..1, and their sums are noised
(``private_sums``): a person changes the vector of all three sums of all columns by at most the square root of its length.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch

from fedml.cohort.persons import Cohort
from fedml.cohort.standard import unscaled
from fedml.modalities.modality import Array, require, table_sums
from fedml.modalities.registry import inputs_of
from fedml.study.study import Study
from fedml.study.task_traits import traits_of


def cohort_sums(cohort: Cohort, task: str, smallest: int = 1, without: Collection[str] = ()) -> dict[str, Array]:
    """Sums over the training persons, by the name of the preprocessing module, each (3, columns); not of the inputs ``without``.

    A column with fewer than ``smallest`` values counts as absent here: such a sum would tell about each of them.
    """
    rows = cohort.rows("train")
    out = {}
    for modality, value in inputs_of(cohort):
        if modality.name in without:
            continue
        out[f"preprocess.{modality.name}"] = require(modality.sums, modality, "sums")(value, rows)
    if traits_of(task).standardised:
        out["target"] = table_sums(cohort.labels[rows, None])
    return {name: np.where(sums[0] >= smallest, sums, 0.0) for name, sums in out.items()}


def neutral_constants(study: Study) -> dict[str, torch.Tensor]:
    """Constants that follow from the study alone, by buffer name: mean 0 and standard deviation 1 of the inputs that each site
    standardises itself (``fedml.cohort.standard``), standard deviation 1 of those that keep their units."""
    own, kept = study.cohort.by_site, unscaled(study)
    sizes = {name: len(getattr(study.cohort, name).columns) for name in (*own, *kept)}
    means = {f"preprocess.{name}.mean": torch.zeros(sizes[name]) for name in own}
    return means | {f"preprocess.{name}.std": torch.ones(columns) for name, columns in sizes.items()}


def constants_from(sums: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Mean and (population) standard deviation by buffer name; mean 0 and std 0 if no site has a value."""
    out: dict[str, torch.Tensor] = {}
    for name, (count, total, squares) in sums.items():
        mean = total / np.maximum(count, 1)
        variance = squares / np.maximum(count, 1) - mean**2
        # For a constant column, rounding leaves about 1e-12 of the squared mean; this is set to 0.
        variance = np.where(variance > 1e-10 * mean**2, variance, 0.0)
        out[f"{name}.mean"] = torch.from_numpy(mean.astype(np.float32))
        out[f"{name}.std"] = torch.from_numpy(np.sqrt(variance).astype(np.float32))
    return out
