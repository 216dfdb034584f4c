"""Intervals over held-out persons, from counts alone: the uncertainty of a metric for the population of these persons.

    interval(counts, task, "auroc", seed=7)                    # of merged counts
    interval([counts_a, counts_b], task, "auroc", seed=7)      # of all sites together, whose number of persons is fixed

The method depends on the information in the counts; ``Interval.method`` names it, or the reason why there is no interval:

    auroc                     standard deviation over bootstrap samples, on the logit scale (below 5 persons of a class, or where the
                              AUROC is 0 or 1: Newcombe 2006, Stat Med 25:559, method 5)
    brier                     standard deviation over bootstrap samples, on the log scale
    log_loss                  bootstrap-t on the log scale (``bootstrap_t.py``)
    accuracy, sensitivity,    Wilson's score interval (1927, JASA 22:209; Brown, Cai and DasGupta 2001, Stat Sci 16:101)
      specificity
    f1                        Wilson's of j, the share of those who are of the class and predicted so among those who are either; F1 is
                              2 j / (1 + j)
    f1_macro                  that of each class put together by MOVER for dependent estimates (Zou 2007, Psychol Methods 12:399), their
                              correlation being that of bootstrap samples
    balanced_accuracy         Wilson's of each class put together by MOVER (Zou and Donner 2008, Stat Med 27:1693)
    dice_mean_person          Student's t on the logit scale, from sums of Dice and of its square
    mae, bias                 Student's t, from sums of errors and of their squares
    hd95_median_mm/CLASS      order statistics, from its histogram
    rmse, r2, dice, hd95_mean none: their spread is not in the counts

**Bootstrap** (Efron and Tibshirani 1993). A person is one (class, bin) of the histogram of log-odds, so a multinomial draw over its cells
is a sample of persons with replacement. Each site's persons are drawn from its own, as many as it has (sites below ``STRATUM`` persons
are taken together: a sample of few has too little spread).

**Choice of method.** Over simulated cohorts of 60 to 600 persons, AUROC 0.6 to 0.95, 10 to 80 % cases, the percentile interval had a
coverage of 94.2 %, but 9 % of them were wholly above the truth where a class had fewer than 20 persons; BCa 95.2 %, there 91 %; the
logit interval with the bootstrap's standard deviation 96.1 %, there 94 %, and missed on both sides alike. For Brier (3 to 90 % cases):
percentile 93.4 %, BCa 94.5 %, log scale 95.0 %. ``tests/fedml/privacy/test_intervals.py`` measures the coverage of what is here.

**Clusters.** Where ``[cohort] cluster`` says which persons belong together, each of these is widened by the design effect that the sites
tell (``clusters.py``).

**Few persons.** Dice of 12 persons has 94 to 95 % coverage where its distribution has one peak. A failure that happens to one person in ten
is in no such sample one time in four, and no interval of these persons alone can cover it (72 %). See ``experiments/bench/coverage.py``.

**Several classes.** Each class has its own histogram, and how the classes hang together in a person is not in them: intervals of the
mean (AUROC, Dice) or the sum (Brier) are the mean or the sum of the classes' limits, too wide rather than too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from fedml.errors import NotBuilt
from fedml.seeds import derive_seed
from fedml.tasks.classification_counts import noised
from fedml.tasks.clusters import DESIGN, for_measure
from fedml.tasks.counts import add_counts
from fedml.tasks.interval_tools import Interval, Parts, no_interval
from fedml.tasks.task import Task


def interval(
    counts: Mapping[str, npt.NDArray[Any]] | Parts, task: Task, metric: str, *, seed: int, level: float = 0.95, draws: int = 2000
) -> Interval:
    """The interval of one metric over the persons of ``counts``. ``value`` is what ``task.metrics`` says, to rounding.

    Args:
        counts: of one part, merged or by site.
        metric: as the task names it; ``auroc/CLASS`` is of that class against the rest.
        seed: the study's. The same seed, counts and order of sites give the same interval.
        draws: bootstrap samples.

    Raises:
        ValueError: the task has no such metric, or ``level`` or ``draws`` make no sense.
    """
    if not 0 < level < 1 or draws < 2:
        raise ValueError(f"level {level} is not between 0 and 1, or {draws} draws are fewer than 2")
    parts = [counts] if isinstance(counts, Mapping) else list(counts)
    parts = [p for p in parts if float(p["persons"][0]) or noised(p)]
    name, _, one = metric.partition("/")
    if one and one not in task.classes:
        raise ValueError(f'"{one}" is not one of the classes')
    measure = next((m for m in task.measures if m.name == name), None)
    if measure is None or (one and measure.of == "all") or (not one and measure.of == "class"):
        raise ValueError(f'a {task.name} has no metric "{metric}"')
    if one and task.scored and one not in task.scored.values():
        raise ValueError(f'class "{one}" is not scored')
    if not parts:
        return Interval(math.nan, math.nan, math.nan, level, "none: no person is counted")
    c = task.classes.index(one) if one else None
    if isinstance(measure.interval, NotBuilt):
        value = measure.value(add_counts(parts), c)
        found = None if value is None else no_interval(value, level, measure.interval.reason)
    else:
        found = measure.interval(parts, c, level, (derive_seed("interval", seed, metric), draws))
    if found is None:
        raise ValueError(f'these counts of a {task.name} have no metric "{metric}"')
    return for_measure(found, parts, name, measure.bounds, clustered=DESIGN in task.fields)
