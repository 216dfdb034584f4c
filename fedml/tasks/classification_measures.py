"""Measures of a classification, from its counts. A new measure is one value of ``MEASURES``.

AUROC is the Mann-Whitney statistic on a histogram of the log-odds, ties counting one half (Hanley and McNeil 1982), plus the pairs of a
site's own persons that a grouped histogram does not show (``fedml.tasks.classification_counts``). Brier score: Brier 1950, over all
classes. F1 of a class: 2 TP / (2 TP + FP + FN); macro F1 is its mean over the classes that occur or are predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.seeds import derive_seed
from fedml.tasks.bootstrap_t import studentised
from fedml.tasks.classification_counts import BEYOND, LOGIT_RANGE, MIDPOINTS, concordant, noised
from fedml.tasks.counts import add_counts
from fedml.tasks.interval_tools import (
    FindInterval,
    Floats,
    Interval,
    Parts,
    mean_of,
    no_interval,
    quantile,
    resampled,
    strata,
    wilson,
)
from fedml.tasks.measure import Measure, Value
from fedml.tasks.root import root

WITHHELD = "a class has so few persons that the histogram of scores was not sent"
FEW = 5  # persons of a class; with fewer, the bootstrap interval is too narrow
NOISED = "none: the counts are noised"
_WIDEST = 20.0  # of the logarithm of a mean loss: a limit 500 million times the mean is none


# --- values


def histogram_auroc(histogram: npt.NDArray[Any], beyond: float = 0.0) -> float:
    """AUROC of one (2, bins) histogram, row 0 the negatives; NaN if either is empty. ``beyond``: concordant pairs that it does not show."""
    negative, positive = (float(n) for n in histogram.sum(1))
    pairs = negative * positive
    return min(max((concordant(histogram) + beyond) / pairs, 0.0), 1.0) if pairs else float("nan")


def _auroc(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    # A class without persons, or without persons of other classes, has no AUROC; the mean is over the other classes.
    values = (histogram_auroc(counts["histogram"][c], _beyond(counts, c)) for c in _ranked(counts, one))
    each = [a for a in values if not np.isnan(a)]
    return float(np.mean(each)) if each else float("nan")


def _ranked(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> Sequence[int]:
    """Class ``one`` or all; two classes have one histogram, whose AUROC is that of either."""
    classes = len(counts["histogram"])
    return range(classes) if one is None or classes == 1 else (one,)


def _beyond(counts: Mapping[str, npt.NDArray[Any]], c: int) -> float:
    """Records before 2026-12 and noised counts have none."""
    return float(counts[BEYOND][c]) if BEYOND in counts else 0.0


def _recall(counts: Mapping[str, npt.NDArray[Any]]) -> Floats:
    confusion = counts["confusion"]
    truly = confusion.sum(1)
    out: Floats = np.divide(np.diag(confusion), truly, out=np.full(len(truly), np.nan), where=truly > 0)
    return out


def f1_by_class(confusion: npt.NDArray[Any]) -> Floats:
    """(..., classes) of (..., classes, classes) persons: true, predicted; NaN for a class that neither occurs nor is predicted."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    either = confusion.sum(-1) + confusion.sum(-2)
    out: Floats = np.divide(2.0 * hits, either, out=np.full(hits.shape, np.nan), where=either > 0)
    return out


def _two(counts: Mapping[str, npt.NDArray[Any]]) -> bool:
    return len(counts["confusion"]) == 2


def _accuracy(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    return float(np.trace(counts["confusion"]) / counts["persons"][0])


def _balanced(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    return float(np.nanmean(_recall(counts)))


def _recall_of_two(row: int, counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float | None:
    """Of the persons of class ``row`` of two; more classes have none."""
    return float(_recall(counts)[row]) if _two(counts) else None


def _f1(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float | None:
    return float(f1_by_class(counts["confusion"])[1]) if _two(counts) else None


def _f1_macro(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    return float(np.nanmean(f1_by_class(counts["confusion"])))


def _brier(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float:
    # Two classes: the usual (p1 - y)^2, half of the sum over both.
    return float(counts["brier_sum"][0] / counts["persons"][0] / (2 if _two(counts) else 1))


def _log_loss(counts: Mapping[str, npt.NDArray[Any]], one: int | None) -> float | None:
    # Log loss has no bound, so it cannot be computed from noised counts.
    return float(counts["log_loss_sum"][0] / counts["persons"][0]) if "log_loss_sum" in counts else None


# --- intervals


def _of_persons(value: Value, find: FindInterval) -> FindInterval:
    """``find`` over strata of sites; noised counts give only the value."""

    def found(parts: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval | None:
        total = add_counts(parts)
        there = value(total, one) if float(total["persons"][0]) > 0 else None
        if any(noised(part) for part in parts):
            return Interval(math.nan if there is None else there, math.nan, math.nan, level, NOISED)
        return None if there is None else find(strata(parts), one, level, by)

    return found


def _auroc_interval(groups: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    """Of one class's histogram, or the mean over the classes that have an AUROC."""
    total = add_counts(groups)
    histogram, each = total["histogram"], []
    for c in _ranked(total, one):
        value = histogram_auroc(histogram[c], _beyond(total, c))
        if not math.isnan(value):
            each.append(_auroc_of([g["histogram"][c] for g in groups], histogram[c], value, level, (derive_seed(by[0], c), by[1])))
    if not each:
        return no_interval(math.nan, level, "all persons, or none, are of the class")
    return mean_of(each, level)


def _auroc_of(tables: Sequence[npt.NDArray[Any]], total: npt.NDArray[Any], value: float, level: float, by: tuple[int, int]) -> Interval:
    negative, positive = (int(n) for n in total.sum(1))
    few = min(negative, positive)
    if few < 2:
        return no_interval(value, level, "a class has one person")
    if few < FEW or value in (0.0, 1.0):
        return Interval(value, *_newcombe(value, negative, positive, level), level, "Newcombe's score")
    bins = np.flatnonzero(total.sum(0))
    drawn = []
    for sample in resampled([t[:, bins].ravel() for t in tables], *by):
        n, p = sample[:, : len(bins)].astype(np.float64), sample[:, len(bins) :].astype(np.float64)
        pairs = n.sum(1) * p.sum(1)
        area = (p * (np.cumsum(n, 1) - n / 2)).sum(1)
        drawn.append((area / np.where(pairs > 0, pairs, np.nan))[pairs > 0])
    # A separated sample has no logit; half a pair is subtracted.
    return _on_logit_scale(value, np.concatenate(drawn), 0.5 / (negative * positive), level)


def _on_logit_scale(value: float, drawn: Floats, edge: float, level: float) -> Interval:
    """Normal limits on the logit scale, from bootstrap values clipped to ``edge`` from 0 and 1."""
    from scipy.special import expit, logit

    spread = quantile(level) * float(np.std(logit(np.clip(drawn, edge, 1 - edge)), ddof=1))
    return Interval(value, float(expit(logit(value) - spread)), float(expit(logit(value) + spread)), level, "bootstrap, logit scale")


def _newcombe(value: float, negative: int, positive: int, level: float) -> tuple[float, float]:
    """Limits at which the AUROC is ``quantile`` standard errors of Hanley and McNeil (1982) away, these taken at the limit."""
    m = (negative + positive) / 2 - 1
    z = quantile(level)

    def away(limit: float) -> float:
        variance = limit * (1 - limit) * (1 + m * (1 - limit) / (2 - limit) + m * limit / (1 + limit)) / (negative * positive)
        return abs(value - limit) - z * math.sqrt(max(variance, 0.0))

    edge = 1e-9  # at 0 and 1 themselves the standard error vanishes
    low = root(away, 0.0, min(value, 1 - edge)) if value > 0 else 0.0
    return float(low), float(root(away, max(value, edge), 1.0)) if value < 1 else 1.0


def _log_spread(tables: Sequence[npt.NDArray[Any]], values: Floats, level: float, by: tuple[int, int]) -> float:
    """Half the width of the interval of log(sum of ``values`` over persons); tables by stratum and values are of one shape."""
    cells = np.flatnonzero(np.sum(tables, axis=0).ravel())
    sums = [sample @ values.ravel()[cells] for sample in resampled([t.ravel()[cells] for t in tables], *by)]
    return quantile(level) * float(np.std(np.log(np.concatenate(sums)), ddof=1))


def _brier_interval(groups: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    from scipy.special import expit

    value, p = _brier(add_counts(groups), None), expit(MIDPOINTS)
    values = np.stack([p**2, (1 - p) ** 2])
    if not value:
        return no_interval(value, level, "it is 0 in every person")
    if sum(float(g["persons"][0]) for g in groups) < 2:
        return no_interval(value, level, "one person has no spread")
    if not any(g["histogram"].any() for g in groups):
        return no_interval(value, level, WITHHELD)
    total = low = high = 0.0
    for c in range(len(groups[0]["histogram"])):
        tables = [g["histogram"][c] for g in groups]
        part = float((np.sum(tables, axis=0) * values).sum())
        factor = math.exp(_log_spread(tables, values, level, (derive_seed(by[0], c), by[1])))
        total, low, high = total + part, low + part / factor, high + part * factor
    # The histogram gives the standard deviation; the sum of the persons' exact scores gives the value.
    return Interval(value, value * low / total, value * high / total, level, "bootstrap, log scale")


def _log_loss_interval(groups: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    """A person's log loss is a function of the log-odds of the person's own class, which is in that class's histogram."""
    value, histograms = float(_log_loss(add_counts(groups), None) or 0.0), [g["histogram"] for g in groups]
    own = np.logaddexp(0, -MIDPOINTS)
    if len(histograms[0]) == 1:
        tables, values = [h[0] for h in histograms], np.stack([np.logaddexp(0, MIDPOINTS), own])
    else:
        tables, values = [h[:, 1] for h in histograms], np.tile(own, (len(histograms[0]), 1))
    together = np.sum(tables, axis=0)
    if (together[:, [0, -1]] * (values[:, [0, -1]] > LOGIT_RANGE / 2)).any():
        return no_interval(value, level, f"a person's log-odds are wrong by more than {LOGIT_RANGE:g}")
    if not together.any() and sum(float(g["persons"][0]) for g in groups) > 1:
        return no_interval(value, level, WITHHELD)
    if together.sum() < 2 or not value:
        return no_interval(value, level, "one person has no spread" if value else "it is 0 in every person")
    down, up = studentised(tables, values, level, by)
    if not (math.isfinite(down) and up < _WIDEST):
        return no_interval(value, level, "so few different persons that resampling gives no limit")
    return Interval(value, value * math.exp(down), value * math.exp(up), level, "bootstrap-t, log scale")


def _share_interval(row: int | None, groups: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    """Of the persons found among those of class ``row``, or among all."""
    confusion = add_counts(groups)["confusion"]
    hits, persons = np.diag(confusion).astype(np.float64), confusion.sum(1).astype(np.float64)
    k, n = (hits.sum(), persons.sum()) if row is None else (hits[row], persons[row])
    if not n:
        return no_interval(math.nan, level, "the counts have no person of that class")
    low, high = wilson(k, n, level)
    return Interval(float(k / n), float(low), float(high), level, "Wilson")


def _balanced_interval(groups: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    confusion = add_counts(groups)["confusion"]
    hits, persons = np.diag(confusion).astype(np.float64), confusion.sum(1).astype(np.float64)
    there = persons > 0
    recall = hits[there] / persons[there]
    low, high = wilson(hits[there], persons[there], level)
    value = float(recall.mean())
    down, up = (float(np.sqrt(((recall - limit) ** 2).sum())) / len(recall) for limit in (low, high))
    return Interval(value, value - down, value + up, level, "Wilson by class, MOVER")


def f1_interval_of(confusion: npt.NDArray[Any], c: int, level: float) -> Interval:
    """Of one class. Among the persons who are of it or are predicted to be, those who are both are a share j, and F1 is 2 j / (1 + j)."""
    hits = float(confusion[c, c])
    union = float(confusion[c].sum() + confusion[:, c].sum()) - hits
    if not union:
        return no_interval(math.nan, level, "no person is, or is predicted to be, of that class")
    low, high = (2 * j / (1 + j) for j in wilson(hits, union, level))
    return Interval(float(f1_by_class(confusion)[c]), float(low), float(high), level, "Wilson of the overlap")


def _f1_interval(groups: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    return f1_interval_of(add_counts(groups)["confusion"], 1, level)


def _f1_macro_interval(groups: Parts, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    """The classes' limits combined by MOVER for dependent estimates (Zou 2007, Psychol Methods 12:399). Their correlation is that of
    bootstrap samples of persons, each a cell of the confusion matrix; 1 where a class does not vary in them."""
    confusion = add_counts(groups)["confusion"]
    classes, there = len(confusion), np.flatnonzero(~np.isnan(f1_by_class(confusion)))
    each = [f1_interval_of(confusion, int(c), level) for c in there]
    samples = resampled([g["confusion"].ravel() for g in groups], *by)
    drawn = np.concatenate([f1_by_class(sample.reshape(-1, classes, classes))[:, there] for sample in samples])
    drawn -= np.nanmean(drawn, axis=0)
    covariance = np.nan_to_num(drawn).T @ np.nan_to_num(drawn)
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    together = np.divide(covariance, spread, out=np.ones_like(spread), where=spread > 0)
    value = float(np.mean([e.value for e in each]))
    below, above = (np.array([abs(e.value - limit) for e, limit in zip(each, limits, strict=True)])
                    for limits in ([e.low for e in each], [e.high for e in each]))  # fmt: skip
    down, up = (math.sqrt(max(float(d @ together @ d), 0.0)) / len(each) for d in (below, above))
    return Interval(
        value, max(value - down, 0.0), min(value + up, 1.0), level, "Wilson of each class's overlap, MOVER with bootstrap correlation"
    )


# --- the measures, in the order of records and reports

MEASURES: tuple[Measure, ...] = (
    Measure(
        name="accuracy", of="all", value=_accuracy, interval=_of_persons(_accuracy, partial(_share_interval, None)),
        printed="accuracy", axis="accuracy", meaning="the share of persons whose most probable class is the right one",
        bounds=(0.0, 1.0), guess=None, counted=False, additive=True, brief=True,
    ),
    Measure(
        name="balanced_accuracy", of="all", value=_balanced, interval=_of_persons(_balanced, _balanced_interval),
        printed="balanced accuracy", axis="balanced accuracy", meaning="the mean over classes of the share of its persons that were found",
        bounds=(0.0, 1.0), guess=None, counted=False, additive=False, brief=True,
    ),
    Measure(
        name="auroc", of="both", value=_auroc, interval=_of_persons(_auroc, _auroc_interval), printed="AUROC", axis="AUROC",
        meaning="the share of pairs, one person of the class and one not, in which the model gives the higher risk to the right one: "
        "0.5 is a guess, 1 is perfect", bounds=(0.0, 1.0), guess=0.5, counted=False, additive=False, brief=True,
    ),
    Measure(
        name="brier", of="all", value=_brier, interval=_of_persons(_brier, _brier_interval), printed="Brier score", axis="Brier score",
        meaning="the mean squared distance of the risk from what came out: 0 is perfect",
        bounds=(0.0, 2.0), guess=None, counted=False, additive=True, brief=True,
    ),
    Measure(
        name="log_loss", of="all", value=_log_loss, interval=_of_persons(_log_loss, _log_loss_interval), printed="log loss",
        axis="log loss",
        meaning="how surprised the model was by what came out, on average, in nats: 0 is perfect",
        bounds=None, guess=None, counted=False, additive=True, brief=False,
    ),
    Measure(
        name="specificity", of="all", value=partial(_recall_of_two, 0),
        interval=_of_persons(partial(_recall_of_two, 0), partial(_share_interval, 0)), printed="specificity", axis="specificity",
        meaning="the share of persons of the first class that the model leaves in it",
        bounds=(0.0, 1.0), guess=None, counted=False, additive=False, brief=True,
    ),
    Measure(
        name="sensitivity", of="all", value=partial(_recall_of_two, 1),
        interval=_of_persons(partial(_recall_of_two, 1), partial(_share_interval, 1)), printed="sensitivity", axis="sensitivity",
        meaning="the share of persons of the second class that the model finds",
        bounds=(0.0, 1.0), guess=None, counted=False, additive=False, brief=True,
    ),
    Measure(
        name="f1", of="all", value=_f1, interval=_of_persons(_f1, _f1_interval), printed="F1", axis="F1",
        meaning="of the second class: twice the persons who are of it and predicted so, by those who are of it plus those predicted so: 0 "
        "none is found, 1 is perfect", bounds=(0.0, 1.0), guess=None, counted=False, additive=False, brief=False,
    ),
    Measure(
        name="f1_macro", of="all", value=_f1_macro, interval=_of_persons(_f1_macro, _f1_macro_interval), printed="macro F1",
        axis="macro F1", meaning="F1 of each class against the rest, the mean over classes: 0 no person is right, 1 is perfect",
        bounds=(0.0, 1.0), guess=None, counted=False, additive=False, brief=False,
    ),
)  # fmt: skip


def measure_of_classes(name: str) -> Measure:
    """The measure of this name, for another task whose counts hold the same arrays."""
    return next(measure for measure in MEASURES if measure.name == name)
