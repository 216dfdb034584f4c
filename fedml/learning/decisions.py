"""What a threshold on the risk does, from the histogram of log-odds, that is, from counts that add over sites.

    at_risk(counts, 0.2)                  # persons with and without the outcome, at or above a risk of 0.2 and below it
    chosen(validation_counts)             # the risk with the largest Youden index (Youden 1950, Cancer 3:32)
    precision_recall(counts)              # sensitivity and positive predictive value at no more than 200 thresholds
    net_benefit(counts, 0.2)              # of treating by the model, and of treating everybody

Net benefit: Vickers and Elkin 2006, Med Decis Making 26:565. A bin stands for its middle, so a
person whose risk is within 0.001 of the threshold may be on its other side; where few persons are protected, scores are in groups, and the
numbers are as near as the groups are. Noised counts hold no persons: all is NaN or empty there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from fedml.tasks.classification_counts import MIDPOINTS, noised

Floats = npt.NDArray[np.float64]
Counts = Mapping[str, npt.NDArray[Any]]


class Table(NamedTuple):
    """Persons by risk at or above a threshold, and by outcome."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def persons(self) -> int:
        """All of them."""
        return sum(self)

    @property
    def cases(self) -> int:
        """Those with the outcome."""
        return self.true_positive + self.false_negative


def _sides(counts: Counts) -> npt.NDArray[np.int64]:
    """(without/with the outcome, bin) persons of two classes; empty of noised counts.

    Raises:
        ValueError: the counts are of more than two classes.
    """
    histogram = counts["histogram"]
    if len(histogram) != 1:
        raise ValueError("a threshold needs an outcome of two classes")
    found: npt.NDArray[np.int64] = np.zeros_like(histogram[0], np.int64) if noised(counts) else histogram[0].astype(np.int64)
    return found


def at_risk(counts: Counts, threshold: float) -> Table:
    """Persons on either side of ``threshold``, a risk from 0 to 1; at the threshold is above.

    Raises:
        ValueError: as the module's other functions, of counts of more than two classes.
    """
    without, cases = _sides(counts)
    above = expit(MIDPOINTS) >= threshold
    return Table(int(cases[above].sum()), int(without[above].sum()), int(cases[~above].sum()), int(without[~above].sum()))


def chosen(counts: Counts, fewest: int = 10) -> float:
    """The risk at which sensitivity + specificity - 1 is largest in these persons, with three decimals; the lowest of equals. NaN if a
    class has fewer than ``fewest`` persons."""
    without, cases = _sides(counts)
    if min(without.sum(), cases.sum()) < max(fewest, 1):
        return math.nan
    bins = np.flatnonzero(without + cases)
    above = np.cumsum(cases[::-1])[::-1][bins] / cases.sum() - np.cumsum(without[::-1])[::-1][bins] / without.sum()
    # Between two bins with persons any threshold is as good: three decimals may then fall on either side of the bin's middle, so the
    # largest multiple of 0.001 that is not above it is taken.
    return math.floor(float(expit(MIDPOINTS[bins[int(np.argmax(above))]])) * 1000) / 1000


def precision_recall(counts: Counts, *, points: int = 200) -> tuple[Floats, Floats]:
    """Sensitivity, rising to 1, and positive predictive value, at no more than ``points`` thresholds; empty if a class is empty."""
    without, cases = _sides(counts)[:, ::-1]
    if not without.sum() or not cases.sum():
        return np.zeros(0), np.zeros(0)
    bins = np.flatnonzero(without + cases)
    found, wrong = np.cumsum(cases)[bins], np.cumsum(without)[bins]
    keep = np.unique(np.linspace(0, len(bins) - 1, min(points, len(bins))).round().astype(int))
    return (found / cases.sum())[keep], (found / (found + wrong))[keep]


def average_precision(counts: Counts) -> float:
    """The area under all steps of that curve (the sum over thresholds of the gain in sensitivity times the predictive value); NaN if a
    class is empty."""
    without, cases = _sides(counts)[:, ::-1]
    if not without.sum() or not cases.sum():
        return math.nan
    bins = np.flatnonzero(without + cases)
    found, wrong = np.cumsum(cases)[bins], np.cumsum(without)[bins]
    return float((cases[bins] / cases.sum()) @ (found / (found + wrong)))


def net_benefit(counts: Counts, threshold: float) -> tuple[float, float]:
    """Per person, in units of a true positive: of treating those at or above ``threshold``, and of treating everybody. Treating nobody
    has 0. NaN without persons.

    Raises:
        ValueError: the threshold is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise ValueError("a net benefit needs a threshold between 0 and 1")
    table, odds = at_risk(counts, threshold), threshold / (1 - threshold)
    if not table.persons:
        return math.nan, math.nan
    model = table.true_positive - odds * table.false_positive
    everybody = table.cases - odds * (table.persons - table.cases)
    return model / table.persons, everybody / table.persons
