"""A site's sums for the steps of an association, over blocks of persons and variants of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.analytics import forms, linear, logistic
from fedml.clients.work import fractions
from fedml.clients.work.effective import FEWEST_SHARE
from fedml.clients.work.people import Analysed, Floats
from fedml.cohort.variants.counting import counts_of, products
from fedml.cohort.variants.genotypes import person_chunks
from fedml.cohort.variants.model import Dosages
from fedml.cohort.variants.packed import Packed
from fedml.study.study import Study
from fedml.wire.records import Phase

_VARIANTS = 4096  # in a block
_PACKED = 16_384  # in a block of packed genotypes


def plus(eta: Floats, offset: Floats | None) -> Floats:
    """``eta`` (persons,) or (persons, variants) plus the ``offset`` (persons,) of a whole-genome regression."""
    return eta if offset is None else eta + (offset if eta.ndim == 1 else offset[:, None])


def null_sums(study: Study, x: Floats, y: Floats, theta: Floats, offset: Floats | None) -> dict[str, Any]:
    """Sums of the model without variants."""
    if forms.kind(study) == "linear":
        sums = linear.null_sums(x, y)
        return {"xx": sums.xx, "xy": sums.xy, "yy": np.array([sums.yy]), "n": np.array([sums.n])}
    fit = logistic.likelihood_sums(None, None, x, y, theta[:, None], offset=offset)
    return {
        "gradient": fit.gradient, "information": fit.information, "log_likelihood": fit.log_likelihood,
        "n": np.asarray(fit.n, np.int64), "cases": np.array([int(y.sum())]),
    }  # fmt: skip


def _dosage_blocks(dosages: Dosages, people: Analysed) -> Iterator[tuple[slice, slice, Any]]:
    """Yields (slice of persons, slice of variants, dosages (persons, variants)) in blocks of bounded memory."""
    at = 0
    for chunk in person_chunks(people.rows, min(len(dosages.keys), _VARIANTS)):
        for start in range(0, len(dosages.keys), _VARIANTS):
            stop = min(start + _VARIANTS, len(dosages.keys))
            yield slice(at, at + len(chunk)), slice(start, stop), fractions.block(dosages, start, stop, chunk)
        at += len(chunk)


def association_sums(
    study: Study, dosages: Dosages, people: Analysed, design: tuple[Floats, Floats], given: Mapping[str, Any], offset: Floats | None
) -> dict[str, Any]:
    """Sums of every variant: of the linear model, or of the score test of the logistic model."""
    out: dict[str, Any] = {}
    x, y = design
    if forms.kind(study) == "linear" and isinstance(dosages.dosage, Packed):
        return _packed_sums(dosages.dosage, people, np.column_stack([x, y]).T, given["frequency"])
    for persons_, variants, dosage in _dosage_blocks(dosages, people):
        frequency = given["frequency"][variants]
        if forms.kind(study) == "linear":
            effect = linear.variant_sums(dosage, frequency, x[persons_], y[persons_])
            sums = {"xg": effect.xg, "gg": effect.gg, "gy": effect.gy}
        else:
            own = None if offset is None else offset[persons_]
            test = logistic.score_sums(dosage, frequency, x[persons_], y[persons_], given["theta"][:, None], own)
            sums = {"xwg": test.xwg, "gwg": test.gwg, "score": test.score}
        _add(out, sums, variants, len(dosages.keys))
    return out or _zeros(study, Phase.ASSOCIATION, len(dosages.keys))


def _packed_sums(table: Packed, people: Analysed, both: Floats, frequency: Floats) -> dict[str, Any]:
    """The linear model's sums from packed genotypes; ``both`` (K + 1, persons): covariates, and the trait."""
    variants = table.shape[1]
    out = {"xg": np.empty((len(both) - 1, variants)), "gg": np.empty(variants), "gy": np.empty(variants)}
    counts, total = counts_of(table, [people.rows])[0], both.sum(1)
    for start in range(0, variants, _PACKED):
        part = slice(start, min(start + _PACKED, variants))
        if (found := products(table, people.rows, both, part.start, part.stop)) is not None:
            sums = linear.sums_of_products(found, counts[:, part], frequency[part], total)
        else:
            sums = linear.variant_sums(table.block(part.start, part.stop, people.rows), frequency[part], both[:-1].T, both[-1])
        out["xg"][:, part], out["gg"][part], out["gy"][part] = sums.xg, sums.gg, sums.gy
    return out


def fit_sums(
    study: Study, dosages: Dosages, people: Analysed, design: tuple[Floats, Floats], given: Mapping[str, Any], offset: Floats | None
) -> dict[str, Any]:
    """Sums of each variant's logistic model at that model's coefficients; with leverages if Firth's penalty is requested."""
    out: dict[str, Any] = {}
    x, y = design
    penalised = bool(given["penalised"][0]) and bool(given["inverse"].any())
    for persons_, variants, dosage in _dosage_blocks(dosages, people):
        inverse = given["inverse"][:, variants] if penalised else None
        fit = logistic.likelihood_sums(
            dosage, given["frequency"][variants], x[persons_], y[persons_], given["theta_fit"][:, variants], inverse,
            None if offset is None else offset[persons_],
        )  # fmt: skip
        sums = {"gradient": fit.gradient, "information": fit.information, "log_likelihood": fit.log_likelihood, "n": fit.n}
        _add(out, sums, variants, len(dosages.keys))
    return out or _zeros(study, Phase.FIT, len(dosages.keys))


def few_in_fit(
    dosages: Dosages, people: Analysed, x: Floats, given: Mapping[str, Any], smallest: int, offset: Floats | None
) -> npt.NDArray[np.bool_]:
    """(variants,) whether the sums of a variant's model would be about few persons."""
    total, squares = np.zeros(len(dosages.keys)), np.zeros(len(dosages.keys))
    for persons_, variants, dosage in _dosage_blocks(dosages, people):
        theta = given["theta_fit"][:, variants]
        called = dosage >= 0
        eta = x[persons_] @ theta[:-1] + np.where(called, dosage - 2 * given["frequency"][variants], 0) * theta[-1]
        small = np.exp(-np.abs(plus(eta, None if offset is None else offset[persons_])))
        weights = np.where(called, small / (1 + small) ** 2, 0)
        total[variants] += weights.sum(0)
        squares[variants] += (weights**2).sum(0)
    effective = np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0)
    few: npt.NDArray[np.bool_] = effective < max(smallest, FEWEST_SHARE * len(people.rows))
    return few


def _add(out: dict[str, Any], sums: Mapping[str, Any], variants: slice, total: int) -> None:
    for name, value in sums.items():
        if name not in out:
            out[name] = np.zeros((*value.shape[:-1], total), dtype=value.dtype)
        out[name][..., variants] += value


def _zeros(study: Study, phase: Phase, variants: int) -> dict[str, Any]:
    """The sums over zero persons: zeros."""
    shapes = forms.reply_shapes(study, phase, variants)
    return {name: np.zeros(shape, np.int64 if name == "n" else np.float64) for name, shape in shapes.items() if name != "used"}
