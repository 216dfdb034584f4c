"""The first round: sums over training persons, from which the server makes the preprocessing constants. Never raw values.

Each quantity is three sums (count, sum, sum of squares) in float64, so sites' sums add up to the pooled ones.

Under differential privacy nothing may be taken from the data unnoised: either the study states plausible ranges and the constants follow
from those alone (``stated_constants``), or each person's values are brought into the ranges, scaled to -1..1, and their sums are noised
(``private_sums``): a person changes the vector of all three sums of all columns by at most the square root of its length.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from fedml.cohort.persons import Cohort
from fedml.cohort.variants.genotypes import genotype_counts
from fedml.study.task_traits import traits_of

Array = npt.NDArray[np.float64]


def _sums(values: Array) -> Array:
    """(3, columns): how many are present, their sum, the sum of their squares; NaN is absent."""
    filled = np.nan_to_num(values, nan=0.0)
    return np.stack([(~np.isnan(values)).sum(0).astype(np.float64), filled.sum(0), (filled**2).sum(0)])


def cohort_sums(cohort: Cohort, task: str, smallest: int = 1) -> dict[str, Array]:
    """Sums over the training persons, by the name of the preprocessing module they are for, each (3, columns).

    A column in which fewer than ``smallest`` persons have a value counts as absent here: such a sum would tell about each of them.
    """
    rows = cohort.rows("train")
    out: dict[str, Array] = {}
    if cohort.clinical is not None:
        out["preprocess.clinical"] = _sums(cohort.clinical[rows])
    if cohort.variants is not None:
        none, one, two, _ = genotype_counts(cohort.variants, rows)
        out["preprocess.variants"] = np.stack([none + one + two, one + 2 * two, one + 4 * two]).astype(np.float64)
    if cohort.images is not None:
        channels = cohort.images.shape[0]
        total = np.zeros((3, channels))
        for at in np.flatnonzero(np.isin(cohort.images.person, rows)):  # one at a time: float64 of all would be eight times the cohort
            flat = cohort.images.pixels[int(at)].reshape(channels, -1).astype(np.float64)
            total += np.stack([np.full(channels, flat.shape[1]), flat.sum(1), (flat**2).sum(1)])
        out["preprocess.image"] = total
    if cohort.slides is not None:
        out["preprocess.image"] = cohort.slides.sums(rows)
    if traits_of(task).standardised:
        out["target"] = _sums(cohort.labels[rows, None])
    return {name: np.where(sums[0] >= smallest, sums, 0.0) for name, sums in out.items()}


def constants_from(sums: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Mean and (population) standard deviation by buffer name; mean 0 and std 0 where nothing is present anywhere."""
    out: dict[str, torch.Tensor] = {}
    for name, (count, total, squares) in sums.items():
        mean = total / np.maximum(count, 1)
        variance = squares / np.maximum(count, 1) - mean**2
        # Cancellation leaves about 1e-12 of the mean's square where a column is constant: that is no variance.
        variance = np.where(variance > 1e-10 * mean**2, variance, 0.0)
        out[f"{name}.mean"] = torch.from_numpy(mean.astype(np.float32))
        out[f"{name}.std"] = torch.from_numpy(np.sqrt(variance).astype(np.float32))
    return out
