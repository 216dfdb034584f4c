"""Persons who are no independent draws: a family, or several images of one person (``[cohort] cluster``). What leaves a site about them.

    design = design_counts(task.traits.label, values, labels, clusters)     # at a site, of one part
    effect_of([{**counts, **design}], "auroc")                              # of all sites: Effect(design=1.8, clusters=75)

A measure is to first order a mean of one influence value a person; for the AUROC these are DeLong's structural components. Its variance
with clusters is that of their sums by cluster (Liang and Zeger 1986, Biometrika 73:13; AUROC: Obuchowski 1997, Biometrics 53:567), with
clusters in place of persons in the divisor. The **design effect** is this variance by that of independent persons, not below 1. A site
sends it for each measure, times its persons so that it adds, and its number of clusters; no sum of a cluster leaves it. For real persons
it is rounded up to a twentieth, clusters down to a multiple of ``min_count``, and it is withheld with fewer clusters than that
(``hidden``).

An interval of independent persons is widened on its scale by the root of the design effect and by t with (clusters - sites) degrees of
freedom in place of the normal. The structural components are those of the site's own persons, so that of the AUROC of all sites is the mean
of the sites', weighted by persons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.tasks.counts import Counts
from fedml.tasks.interval_tools import Floats, Interval, Parts, expit, no_interval, quantile

DESIGN = "design"  # (3, measures): persons times design effect, persons of sites that tell it, sites that tell it
CLUSTERS = "clusters"  # (1,)
SILENT = "persons are clustered, and a site with too few clusters does not tell by how much"
_STEP = 20  # of a design effect that leaves a site: a twentieth

_OF_CLASSES = ("auroc", "accuracy", "balanced_accuracy", "brier", "log_loss", "specificity", "sensitivity", "f1", "f1_macro")
_MEASURES: dict[str, tuple[str, ...]] = {"classes": _OF_CLASSES, "number": ("mae", "bias"), "mask": ("dice_mean_person",)}
_OF_SCORES = ("auroc",)  # of persons in the histogram alone
_LOG = ("brier", "log_loss", "mae")  # measures above 0


@dataclass(frozen=True)
class Effect:
    """``design``: how many times the variance is that of independent persons; ``free``: degrees of freedom of its estimate. NaN: a site
    with such persons does not tell."""

    design: float
    free: float


def measures_of(label: str) -> tuple[str, ...]:
    """The measures with a design effect, of a task with this kind of label; none: clusters are not built for it."""
    return _MEASURES.get(label, ())


def design_fields(label: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array of ``design_counts``."""
    return {DESIGN: ("float64", (3, len(measures_of(label)))), CLUSTERS: ("float64", (1,))}


def design_counts(label: str, values: npt.NDArray[Any], labels: npt.NDArray[Any], clusters: npt.NDArray[np.int64]) -> Counts:
    """The design effects of one part of a site.

    Args:
        values: (persons, ...): probabilities of classes, the predicted number, or Dice by class (NaN: not scored). labels: (persons,).
        clusters: (persons,) number of each person's cluster.
    """
    names, persons = measures_of(label), len(clusters)
    out = np.zeros((3, len(names)))
    code = np.unique(clusters, return_inverse=True)[1].ravel()
    count = int(code.max()) + 1 if persons else 0
    if count >= 2:
        for name, influence in zip(names, _INFLUENCE[label](values, labels), strict=True):
            if influence is not None and (effect := _design(influence, code, count)) is not None:
                out[:, names.index(name)] = persons * effect, persons, 1
    return {DESIGN: out, CLUSTERS: np.array([float(count)])}


def _design(influence: Floats, code: npt.NDArray[np.int64], count: int) -> float | None:
    """Variance of the mean of (persons, k) influence values by cluster, by that of independent persons; the largest of k columns."""
    persons, found = len(code), list[float]()
    for column in influence.reshape(persons, -1).T:
        apart = float((column**2).sum()) * persons / (persons - 1)
        together = float((np.bincount(code, weights=column, minlength=count) ** 2).sum()) * count / (count - 1)
        if apart > 0:
            found.append(max(together / apart, 1.0))
    return max(found, default=None)


def hidden(counts: Mapping[str, npt.NDArray[Any]], sizes: npt.NDArray[np.int64], smallest: int) -> Counts:
    """``counts`` of one part with the design effects that may leave: rounded, or none where fewer than ``smallest`` clusters are there.

    Fewer than ``smallest`` persons with another of their cluster are taken for independent, since the effect would be about them.

    Args:
        sizes: (clusters,) persons in each.
    """
    if DESIGN not in counts or smallest <= 1:
        return dict(counts)
    design, persons = counts[DESIGN].copy(), float(counts["persons"][0])
    together = int(sizes[sizes > 1].sum())
    if 0 <= together < smallest:
        told = design[2] > 0
        design[0], design[1] = np.where(told, persons, 0.0), np.where(told, persons, 0.0)
    if len(sizes) < smallest:
        design[:] = 0
    of_classes = counts.get("confusion")
    if of_classes is not None and ((of_classes.sum(1) > 0) & (of_classes.sum(1) < smallest)).any():
        keep = [_OF_CLASSES.index(name) for name in ("brier", "log_loss")]  # the others are about persons of one class
        design[:, [k for k in range(design.shape[1]) if k not in keep]] = 0
    told = design[1] > 0
    each = np.divide(design[0], design[1], out=np.zeros(len(told)), where=told)
    design[0] = np.ceil(each * _STEP - 1e-9) / _STEP * design[1]
    return {**counts, DESIGN: design, CLUSTERS: np.floor(counts[CLUSTERS] / smallest) * smallest}


def implausible(counts: Mapping[str, npt.NDArray[Any]]) -> str:
    """What is impossible about the design effects of one site's part; "" if nothing is."""
    if DESIGN not in counts:
        return ""
    (total, told, sites), clusters = counts[DESIGN], float(counts[CLUSTERS][0]) if CLUSTERS in counts else -1.0
    persons = float(counts["persons"][0]) if "persons" in counts else -1.0
    if not 0 <= clusters <= persons:
        return "has clusters without persons, or more than persons"
    if not np.isin(told, (0.0, persons)).all() or (sites != (told > 0)).any():
        return "tells of other persons than those counted"
    if ((told > 0) & ((total < told * (1 - 1e-9)) | (total > told * persons))).any() or ((told == 0) & (total != 0)).any():
        return "has a design effect below 1, or above the number of persons"
    return ""


def effect_of(parts: Parts, measure: str) -> Effect | None:
    """Of the persons of ``parts`` together; None where persons are not clustered, or the measure has none."""
    found = [p for p in parts if DESIGN in p]
    if not found:
        return None
    label = next((label for label, names in _MEASURES.items() if found[0][DESIGN].shape[1] == len(names)), "")
    if measure not in _MEASURES.get(label, ()):
        return None
    at = _MEASURES[label].index(measure)
    total, told, sites = (float(sum(p[DESIGN][k, at] for p in found)) for k in range(3))
    scored = [p["histogram"][0].any() if measure in _OF_SCORES and "histogram" in p else True for p in parts]
    persons = sum(float(p["persons"][0]) for p, there in zip(parts, scored, strict=True) if there)
    clusters = float(sum(p[CLUSTERS][0] for p in found))
    if told < persons * (1 - 1e-9) or not told:
        return Effect(math.nan, math.nan)
    return Effect(total / told, max(clusters - sites, 1.0))


def widened(found: Interval, effect: Effect | None, bounds: tuple[float, float] | None, *, log: bool = False) -> Interval:
    """``found``, an interval of independent persons, for clustered ones.

    Args:
        bounds: of the measure: between 0 and 1 the scale is the logit. log: the scale is the logarithm.
    """
    if effect is None or not found.low <= found.high:
        return found
    if math.isnan(effect.design):
        return no_interval(found.value, found.level, SILENT)
    from scipy.special import stdtrit

    factor = math.sqrt(effect.design) * float(stdtrit(effect.free, 0.5 + found.level / 2)) / quantile(found.level)
    method = f"{found.method}; clusters, design effect {effect.design:.2f}"
    to, back = _scale(found, bounds, log)
    middle = to(found.value)
    if math.isfinite(middle) and math.isfinite(to(found.low)) and math.isfinite(to(found.high)):
        low, high = (back(middle + factor * (to(limit) - middle)) for limit in (found.low, found.high))
    else:  # at the end of the range a score interval is as wide as the variance, not as its root
        low, high = (found.value + factor**2 * (limit - found.value) for limit in (found.low, found.high))
        low, high = (low, high) if bounds is None else (max(low, bounds[0]), min(high, bounds[1]))
    return replace(found, low=float(low), high=float(high), method=method)


def _scale(found: Interval, bounds: tuple[float, float] | None, log: bool) -> tuple[Callable[[float], float], Callable[[float], float]]:
    if log and found.low > 0:
        return math.log, math.exp
    if bounds == (0.0, 1.0):
        return (lambda p: math.log(p / (1 - p)) if 0 < p < 1 else math.inf), expit
    return float, float


def for_measure(found: Interval, parts: Parts, name: str, bounds: tuple[float, float] | None, *, clustered: bool) -> Interval:
    """``found`` of the measure ``name`` for the persons of ``parts``. ``clustered``: the study says so; without a word of the sites about
    it there is no interval."""
    effect = effect_of(parts, name)
    if effect is None and clustered:
        effect = Effect(math.nan, math.nan)
    return widened(found, effect, bounds, log=name in _LOG)


# --- influence of each person


def _classes(p: npt.NDArray[Any], labels: npt.NDArray[Any]) -> list[Floats | None]:
    persons, classes = p.shape
    y, guess = labels.astype(np.int64), p.argmax(1)
    own, said = np.eye(classes)[y], np.eye(classes)[guess]
    right = (guess == y).astype(np.float64)
    with np.errstate(divide="ignore"):
        lost = -np.log(np.maximum(p[np.arange(persons), y], 1e-300))
    recall = [_among(right, own[:, c] > 0) for c in range(classes)]
    f1 = [_ratio(2 * own[:, c] * said[:, c], own[:, c] + said[:, c]) for c in range(classes)]
    ranked = range(1, 2) if classes == 2 else range(classes)
    area = _mean([auroc_influence(own[:, c] > 0, p[:, c]) for c in ranked])
    two = classes == 2
    return [
        area, right - right.mean(), _mean(recall), ((p - own) ** 2).sum(1) - ((p - own) ** 2).sum(1).mean(), lost - lost.mean(),
        recall[0] if two else None, recall[1] if two else None, f1[1] if two else None, _mean(f1),
    ]  # fmt: skip


def _number(guess: npt.NDArray[Any], labels: npt.NDArray[Any]) -> list[Floats | None]:
    error = guess - labels
    return [np.abs(error) - np.abs(error).mean(), error - error.mean()]


def _mask(dice: npt.NDArray[Any], labels: npt.NDArray[Any]) -> list[Floats | None]:
    """The largest of the classes' and of their mean's."""
    each = [e for c in range(dice.shape[1]) if (e := _among(np.nan_to_num(dice[:, c]), ~np.isnan(dice[:, c]))) is not None]
    return [np.stack([*each, np.mean(each, axis=0)], 1) if each else None]


_INFLUENCE: dict[str, Callable[[Any, Any], list[Floats | None]]] = {"classes": _classes, "number": _number, "mask": _mask}


def auroc_influence(own: npt.NDArray[np.bool_], score: Floats) -> Floats | None:
    """(persons,) whose mean is 0: DeLong's components about the AUROC, by the share of the person's class. None: one class only."""
    from scipy.stats import rankdata

    m, n = int(own.sum()), int((~own).sum())
    if not m or not n:
        return None
    ranks = rankdata(score)
    out = np.zeros(len(score))
    out[own] = (ranks[own] - rankdata(score[own])) / n
    out[~own] = 1 - (ranks[~own] - rankdata(score[~own])) / m
    area = float(out[own].mean())
    out -= area
    out[own] *= len(score) / m
    out[~own] *= len(score) / n
    return out


def _among(values: Floats, there: npt.NDArray[np.bool_]) -> Floats | None:
    """Influence on the mean of ``values`` over the persons ``there``."""
    n = int(there.sum())
    return np.where(there, values - values[there].mean(), 0.0) * (len(values) / n) if n else None


def _ratio(above: Floats, below: Floats) -> Floats | None:
    total = float(below.mean())
    return (above - above.mean() / total * below) / total if total else None


def _mean(each: Sequence[Floats | None]) -> Floats | None:
    there = [e for e in each if e is not None]
    return np.mean(there, axis=0) if there else None
