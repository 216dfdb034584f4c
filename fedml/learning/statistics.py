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

from fedml.cohort.genotypes import genotype_counts
from fedml.cohort.persons import Cohort
from fedml.models.fusion import Layout
from fedml.privacy.noise import add_gaussian
from fedml.study import Study

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
    if task == "regression":
        out["target"] = _sums(cohort.labels[rows, None])
    return {name: np.where(sums[0] >= smallest, sums, 0.0) for name, sums in out.items()}


def stated_ranges(study: Study, layout: Layout) -> dict[str, Array]:
    """(2, columns) lowest and highest plausible value by preprocessing module, from the study alone.

    A categorical column is not standardised (-1..1 leaves it as it is); nor is a dosage, whose missing values become 0, two REF alleles.
    """
    plan, out = study.privacy, dict[str, Array]()
    spec = study.cohort.clinical
    if spec is not None:
        out["preprocess.clinical"] = np.array([plan.ranges.get(c, (-2.0, 2.0)) for c in spec.columns]).T
    if "variants" in study.cohort.inputs:
        out["preprocess.variants"] = np.repeat([[-2.0], [2.0]], layout.variants, axis=1)
    if "image" in study.cohort.inputs:
        out["preprocess.image"] = np.repeat(np.array(plan.image_range)[:, None], layout.image_shape[0], axis=1)
    if study.model.task == "regression":
        out["target"] = np.array([plan.ranges[study.cohort.target]]).T
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

    if name == "preprocess.clinical":
        return blank if cohort.clinical is None else _sums(unit(cohort.clinical[rows]))
    if name == "preprocess.variants":
        return blank if cohort.variants is None else _sums(unit(np.where((d := cohort.variants.dosage[rows]) < 0, np.nan, d)))
    if name == "target":
        return _sums(unit(cohort.labels[rows, None]))
    for row in rows if cohort.images is not None else ():
        assert cohort.images is not None  # noqa: S101 - the loop is empty otherwise
        own = cohort.images.pixels[cohort.images.person == row].astype(np.float64)
        if len(own):
            flat = unit(np.moveaxis(own, 1, -1).reshape(-1, len(low)))  # (voxels of all images, channels)
            blank += np.stack([np.ones(len(low)), flat.mean(0), (flat**2).mean(0)])
    return blank


def constants_or_stated(sums: Mapping[str, Array], study: Study, layout: Layout) -> dict[str, torch.Tensor]:
    """``constants_from`` noised sums; where noise left no usable variance or count, what the study states."""
    made, stated = constants_from(sums), stated_constants(study, layout)
    for name, (count, _, _) in sums.items():
        mean, std = f"{name}.mean", f"{name}.std"
        usable = (made[std] > 0) & torch.from_numpy(count > 0)
        made[mean], made[std] = torch.where(usable, made[mean], stated[mean]), torch.where(usable, made[std], stated[std])
    return made


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
