"""Intervals over held-out persons, from counts alone: how far a metric might be from that of all persons such as these.

    interval(counts, "classification", "auroc", seed=7)                    # of merged counts
    interval([counts_a, counts_b], "classification", "auroc", seed=7)      # of all sites together, whose number of persons is fixed

What the counts say of single persons decides the method; ``Interval.method`` names it, or says why there is none:

    auroc                     standard deviation over bootstrap samples, on the logit scale (below 5 persons of a class, or where the
                              AUROC is 0 or 1: Newcombe 2006, Stat Med 25:559, method 5)
    brier, log_loss           standard deviation over bootstrap samples, on the log scale
    accuracy, sensitivity,    Wilson's score interval (1927, JASA 22:209; Brown, Cai and DasGupta 2001, Stat Sci 16:101)
      specificity
    balanced_accuracy         Wilson's of each class put together by MOVER (Zou and Donner 2008, Stat Med 27:1693)
    dice_mean_person          Student's t, from sums of Dice and of its square
    mae, bias                 Student's t, from sums of errors and of their squares
    hd95_median_mm/CLASS      order statistics, from its histogram
    rmse, r2, dice, hd95_mean none: their spread is not in the counts

**Bootstrap** (Efron and Tibshirani 1993). A person is one (class, bin) of the histogram of log-odds, so a multinomial draw over its cells
is a sample of persons with replacement. Each site's persons are drawn from its own, as many as it has (sites below ``STRATUM`` persons
are taken together: a sample of few has too little spread).

**Choice of method.** Over simulated cohorts of 60 to 600 persons, AUROC 0.6 to 0.95, 10 to 80 % cases, the percentile interval had a
coverage of 94.2 %, but 9 % of them were wholly above the truth where a class had fewer than 20 persons; BCa 95.2 %, there 91 %; the
logit interval with the bootstrap's standard deviation 96.1 %, there 94 %, and missed on both sides alike. For Brier (3 to 90 % cases):
percentile 93.4 %, BCa 94.5 %, log scale 95.0 %. ``tests/fedml/learning/test_intervals.py`` measures the coverage of what is here.

**Several classes.** Each class has its own histogram, and how the classes hang together in a person is not in them: intervals of the
mean (AUROC, Dice) or the sum (Brier) are the mean or the sum of the classes' limits, too wide rather than too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import binom, norm
from scipy.stats import t as student

from fedml.learning.classification import BINS, LOGIT_RANGE, class_metrics, histogram_auroc
from fedml.learning.regression import regression_metrics
from fedml.learning.task import add_counts
from fedml.seeds import derive_seed

Floats = npt.NDArray[np.float64]
Parts = Sequence[Mapping[str, npt.NDArray[Any]]]

STRATUM = 20  # a bootstrap sample of n has (n - 1) / n of the variance: at most 5 % is lost
NOISED = "none: the counts are noised"
FEW = 5  # persons of a class: below, the bootstrap's spread of the AUROC is too small
_CELLS = 1 << 21  # numbers in memory at a time

# The log-odds that a bin stands for. The first and the last one hold all beyond them too.
MIDPOINTS: Floats = np.linspace(-LOGIT_RANGE, LOGIT_RANGE, 2 * BINS + 1)[1::2]


@dataclass(frozen=True)
class Interval:
    """A metric, and its limits at ``level``; where it has none, they are NaN and ``method`` says why."""

    value: float
    low: float
    high: float
    level: float
    method: str


def interval(
    counts: Mapping[str, npt.NDArray[Any]] | Parts,
    task: str,
    metric: str,
    *,
    seed: int,
    level: float = 0.95,
    draws: int = 2000,
    classes: Sequence[str] = (),
) -> Interval:
    """The interval of one metric over the persons of ``counts``. ``value`` is what the task's metrics say, to rounding.

    Args:
        counts: of one part, merged or by site (``fedml.learning.task``, ``fedml.learning.segmentation``).
        task: classification, regression or segmentation. metric: as the task names it; ``auroc/CLASS`` is of that class against the rest.
        seed: the study's. The same seed, counts and order of sites give the same interval.
        draws: bootstrap samples. classes: names, needed for a metric of one class only.

    Raises:
        ValueError: the task has no such metric, or ``level`` or ``draws`` make no sense.
    """
    if not 0 < level < 1 or draws < 2:
        raise ValueError(f"level {level} is not between 0 and 1, or {draws} draws are fewer than 2")
    parts = [counts] if isinstance(counts, Mapping) else list(counts)
    parts = [p for p in parts if float(p["persons"][0])]
    name, _, one = metric.partition("/")
    if one and one not in classes:
        raise ValueError(f'"{one}" is none of the classes')
    of = {"classification": _classification, "regression": _regression, "segmentation": _segmentation}
    if task not in of or (one and task != "segmentation" and name != "auroc"):
        raise ValueError(f'a {task} has no metric "{metric}"')
    if not parts:
        return Interval(math.nan, math.nan, math.nan, level, "none: nobody is counted")
    return of[task](parts, name, classes.index(one) if one else None, level, (derive_seed("interval", seed, metric), draws))


def noised(counts: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Are these the noised counts of a private study (``fedml.privacy.counts``)? They hold no persons to be drawn."""
    return "histogram" in counts and "log_loss_sum" not in counts


def strata(parts: Parts, least: int = STRATUM) -> list[dict[str, npt.NDArray[Any]]]:
    """The counts by stratum: sites with at least ``least`` persons each alone, smaller ones put together until they have as many."""
    out: list[dict[str, npt.NDArray[Any]]] = []
    open_: list[Mapping[str, npt.NDArray[Any]]] = []
    for part in sorted(parts, key=lambda p: float(p["persons"][0])):
        open_.append(part)
        if sum(float(p["persons"][0]) for p in open_) >= least:
            out.append(add_counts(open_))
            open_ = []
    return [*out, add_counts(open_)] if open_ else out


def resampled(tables: Sequence[npt.NDArray[Any]], seed: int, draws: int) -> Iterator[npt.NDArray[np.int64]]:
    """Bootstrap samples: (some draws, cells) sums over the tables, each of which keeps its own number of persons in every draw.

    Args:
        tables: by stratum, (cells,) persons. Together the yielded have ``draws`` rows.
    """
    rng = np.random.default_rng(seed)
    cells = len(tables[0])
    taken = [(np.flatnonzero(table), int(table.sum())) for table in tables]
    step = max(1, _CELLS // cells)
    for at in range(0, draws, step):
        rows = min(step, draws - at)
        out = np.zeros((rows, cells), dtype=np.int64)
        for table, (cell, persons) in zip(tables, taken, strict=True):
            if persons:
                out[:, cell] += rng.multinomial(persons, table[cell] / persons, size=rows)
        yield out


def wilson(hits: npt.ArrayLike, persons: npt.ArrayLike, level: float) -> tuple[Floats, Floats]:
    """Wilson's score limits of ``hits`` among ``persons``, elementwise; NaN among nobody."""
    k, n = np.asarray(hits, dtype=np.float64), np.asarray(persons, dtype=np.float64)
    z2 = _z(level) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        half = np.sqrt(z2 * (k * (n - k) / n + z2 / 4))
        low, high = (k + z2 / 2 - half) / (n + z2), (k + z2 / 2 + half) / (n + z2)
    # At 0 and n the limits are exactly 0 and 1; the formula is off by rounding.
    low, high = np.where(k == 0, 0.0, low), np.where(k == n, 1.0, high)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def _z(level: float) -> float:
    return float(norm.ppf(0.5 + level / 2))


def _none(value: float, level: float, why: str) -> Interval:
    return Interval(value, math.nan, math.nan, level, f"none: {why}")


# --- classification


def _classification(parts: Parts, name: str, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    total = add_counts(parts)
    confusion = total["confusion"]
    two = len(confusion) == 2
    if name not in ("auroc", "brier", "log_loss", "accuracy", "balanced_accuracy", *(("sensitivity", "specificity") if two else ())):
        raise ValueError(f'a classification of {len(confusion)} classes has no metric "{name}"')
    if any(noised(p) for p in parts):
        return Interval(class_metrics(total).get(name, math.nan), math.nan, math.nan, level, NOISED)
    groups = strata(parts)
    if name == "auroc":
        return _auroc(groups, total["histogram"], None if one is None or two else one, level, by)
    if name == "brier":
        return _brier(groups, float(total["brier_sum"][0] / total["persons"][0]) / (2 if two else 1), level, by)
    if name == "log_loss":
        return _log_loss(groups, float(total["log_loss_sum"][0] / total["persons"][0]), level, by)
    hits, persons = np.diag(confusion).astype(np.float64), confusion.sum(1).astype(np.float64)
    if name == "balanced_accuracy":
        there = persons > 0
        recall = hits[there] / persons[there]
        low, high = wilson(hits[there], persons[there], level)
        value = float(recall.mean())
        down, up = (float(np.sqrt(((recall - limit) ** 2).sum())) / len(recall) for limit in (low, high))
        return Interval(value, value - down, value + up, level, "Wilson by class, MOVER")
    k, n = {"specificity": (hits[0], persons[0]), "sensitivity": (hits[-1], persons[-1])}.get(name, (hits.sum(), persons.sum()))
    if not n:
        return _none(math.nan, level, "nobody is of that class")
    low, high = wilson(k, n, level)
    return Interval(float(k / n), float(low), float(high), level, "Wilson")


def _auroc(groups: Parts, histogram: npt.NDArray[Any], one: int | None, level: float, by: tuple[int, int]) -> Interval:
    """Of one class's histogram, or the mean over the classes that have an AUROC."""
    each = []
    for c in range(len(histogram)) if one is None else [one]:
        value = histogram_auroc(histogram[c])
        if not math.isnan(value):
            each.append(_auroc_of([g["histogram"][c] for g in groups], histogram[c], value, level, (derive_seed(by[0], c), by[1])))
    if not each:
        return _none(math.nan, level, "everybody, or nobody, is of the class")
    return _mean(each, level)


def _auroc_of(tables: Sequence[npt.NDArray[Any]], total: npt.NDArray[Any], value: float, level: float, by: tuple[int, int]) -> Interval:
    negative, positive = (int(n) for n in total.sum(1))
    few = min(negative, positive)
    if few < 2:
        return _none(value, level, "a class has one person")
    if few < FEW or value in (0.0, 1.0):
        return Interval(value, *_newcombe(value, negative, positive, level), level, "Newcombe's score")
    bins = np.flatnonzero(total.sum(0))
    drawn = []
    for sample in resampled([t[:, bins].ravel() for t in tables], *by):
        n, p = sample[:, : len(bins)].astype(np.float64), sample[:, len(bins) :].astype(np.float64)
        pairs = n.sum(1) * p.sum(1)
        area = (p * (np.cumsum(n, 1) - n / 2)).sum(1)
        drawn.append((area / np.where(pairs > 0, pairs, np.nan))[pairs > 0])
    # A sample that is separated has no logit: it is taken to be half a pair short of it.
    half = 0.5 / (negative * positive)
    spread = _z(level) * float(np.std(logit(np.clip(np.concatenate(drawn), half, 1 - half)), ddof=1))
    return Interval(value, float(expit(logit(value) - spread)), float(expit(logit(value) + spread)), level, "bootstrap, logit scale")


def _newcombe(value: float, negative: int, positive: int, level: float) -> tuple[float, float]:
    """Limits at which the AUROC is ``_z`` standard errors of Hanley and McNeil (1982) away, these taken at the limit."""
    m = (negative + positive) / 2 - 1
    z = _z(level)

    def away(limit: float) -> float:
        variance = limit * (1 - limit) * (1 + m * (1 - limit) / (2 - limit) + m * limit / (1 + limit)) / (negative * positive)
        return abs(value - limit) - z * math.sqrt(max(variance, 0.0))

    edge = 1e-9  # at 0 and 1 themselves the standard error vanishes
    low = brentq(away, 0.0, min(value, 1 - edge)) if value > 0 else 0.0
    return float(low), float(brentq(away, max(value, edge), 1.0)) if value < 1 else 1.0


def _log_spread(tables: Sequence[npt.NDArray[Any]], values: Floats, level: float, by: tuple[int, int]) -> float:
    """Half the width of the interval of log(sum of ``values`` over persons); tables by stratum and values are of one shape."""
    cells = np.flatnonzero(np.sum(tables, axis=0).ravel())
    sums = [sample @ values.ravel()[cells] for sample in resampled([t.ravel()[cells] for t in tables], *by)]
    return _z(level) * float(np.std(np.log(np.concatenate(sums)), ddof=1))


def _brier(groups: Parts, value: float, level: float, by: tuple[int, int]) -> Interval:
    p = expit(MIDPOINTS)
    values = np.stack([p**2, (1 - p) ** 2])
    if not value:
        return _none(value, level, "it is 0 in everybody")
    if sum(float(g["persons"][0]) for g in groups) < 2:
        return _none(value, level, "one person has no spread")
    total = low = high = 0.0
    for c in range(len(groups[0]["histogram"])):
        tables = [g["histogram"][c] for g in groups]
        part = float((np.sum(tables, axis=0) * values).sum())
        factor = math.exp(_log_spread(tables, values, level, (derive_seed(by[0], c), by[1])))
        total, low, high = total + part, low + part / factor, high + part * factor
    # The histogram tells the spread; the sum of each person's own score tells the value.
    return Interval(value, value * low / total, value * high / total, level, "bootstrap, log scale")


def _log_loss(groups: Parts, value: float, level: float, by: tuple[int, int]) -> Interval:
    """A person's log loss is a function of the log-odds of the person's own class, which is in that class's histogram."""
    histograms = [g["histogram"] for g in groups]
    own = np.logaddexp(0, -MIDPOINTS)
    if len(histograms[0]) == 1:
        tables, values = [h[0] for h in histograms], np.stack([np.logaddexp(0, MIDPOINTS), own])
    else:
        tables, values = [h[:, 1] for h in histograms], np.tile(own, (len(histograms[0]), 1))
    together = np.sum(tables, axis=0)
    if (together[:, [0, -1]] * (values[:, [0, -1]] > LOGIT_RANGE / 2)).any():
        return _none(value, level, f"somebody's log-odds are wrong by more than {LOGIT_RANGE:g}")
    if together.sum() < 2 or not value:
        return _none(value, level, "one person has no spread" if value else "it is 0 in everybody")
    factor = math.exp(_log_spread(tables, values, level, by))
    return Interval(value, value / factor, value * factor, level, "bootstrap, log scale")


# --- sums


def _student(values: Sequence[tuple[float, float, float]], level: float) -> Interval:
    """Of a mean, from (persons, sum, sum of squares) by site: variances within sites, or over all where a site has one person."""
    n, total, squares = (
        (np.array(x) for x in zip(*(v for v in values if v[0]), strict=True)) if any(v[0] for v in values) else (np.zeros(1),) * 3
    )
    if len(n) > 1 and n.min() < 2:
        n, total, squares = (np.array([x.sum()]) for x in (n, total, squares))
    persons = float(n.sum())
    if not persons:
        return _none(math.nan, level, "it is not defined in anybody")
    value, free = float(total.sum() / persons), float(persons - len(n))
    if free < 1:
        return _none(value, level, "one person has no spread")
    within = np.maximum(squares - total**2 / n, 0)  # rounding may leave less than nothing
    half = float(student.ppf(0.5 + level / 2, free)) * math.sqrt(float((n * within / (n - 1)).sum())) / persons
    return Interval(value, value - half, value + half, level, f"Student's t, {free:.0f} degrees of freedom")


def _regression(parts: Parts, name: str, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    del one, by
    if name in ("mae", "bias"):
        key = "abs_sum" if name == "mae" else "e_sum"
        found = _student([(float(p["persons"][0]), float(p[key][0]), float(p["e2_sum"][0])) for p in parts], level)
        return Interval(found.value, max(found.low, 0.0) if name == "mae" else found.low, found.high, level, found.method)
    if name not in ("rmse", "r2"):
        raise ValueError(f'a regression has no metric "{name}"')
    return _none(regression_metrics(add_counts(parts))[name], level, "the spread of squared errors is not in the counts")


def _segmentation(parts: Parts, name: str, one: int | None, level: float, by: tuple[int, int]) -> Interval:
    del by
    total = add_counts(parts)
    scored = len(total["scored"])
    if one == 0:
        raise ValueError("the background is not scored")
    if name == "dice_mean_person":
        each = []
        for c in range(scored) if one is None else [one - 1]:
            found = _student([(float(p["scored"][c]), float(p["dice_sum"][c]), float(p["dice_sq_sum"][c])) for p in parts], level)
            if not math.isnan(found.value):
                each.append(found)
        mean = _mean(each, level) if each else _none(math.nan, level, "the class is in nobody")
        return Interval(mean.value, max(mean.low, 0.0), min(mean.high, 1.0), level, mean.method)
    from fedml.learning.segmentation import segmentation_metrics

    metrics = segmentation_metrics([str(k) for k in range(scored + 1)], total)
    key = name if one is None else f"{name}/{one}"
    if key not in metrics:
        raise ValueError(f'these counts of a segmentation have no metric "{key}"')
    if one is not None and name.startswith("hd95_median"):
        return _median(total["hd95_histogram"][one - 1], metrics[key], level)
    return _none(metrics[key], level, "its spread over persons is not in the counts")


def _median(histogram: npt.NDArray[Any], value: float, level: float) -> Interval:
    """Order statistics about the median, whatever the distribution (Conover 1999, Practical Nonparametric Statistics, section 3.2)."""
    from fedml.learning.segmentation import bin_centres

    persons = int(histogram.sum())
    below = (
        int(binom.ppf((1 - level) / 2, persons, 0.5)) if persons else 0
    )  # so many order statistics are left out on either side, less one
    if not below:
        return _none(value, level, "too few persons for limits of a median")
    at = np.searchsorted(np.cumsum(histogram), [below - 1, persons - below], side="right")
    low, high = bin_centres()[at]
    return Interval(value, float(low), float(high), level, "order statistics")


def _mean(each: Sequence[Interval], level: float) -> Interval:
    """The mean of several classes: its limits are the means of theirs, as if the classes rose and fell together."""
    if len(each) == 1:
        return each[0]
    method = f"mean of the limits of {len(each)} classes: " + ", ".join(sorted({e.method for e in each}))
    value, low, high = np.mean([(e.value, e.low, e.high) for e in each], axis=0)
    return Interval(float(value), float(low), float(high), level, method)
