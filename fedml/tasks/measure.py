"""One measure of a task: its value and its interval from counts, and its texts in a report. A new measure is one value.

Measure(name="accuracy", of="all", value=_accuracy, interval=_wilson, printed="accuracy", ...)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from fedml.errors import NotBuilt
from fedml.tasks.interval_tools import FindInterval

# Counts, and the class (None: all classes together) -> the value; NaN if it is undefined, None if the counts do not contain it.
Value = Callable[[Mapping[str, npt.NDArray[Any]], int | None], float | None]


@dataclass(frozen=True)
class Measure:
    """Every field is required.

    Args:
        name: its key in the record of a run; of one class ``name/CLASS``.
        of: whether the measure is of all classes together, of one class, or of both.
        interval: the function that computes the confidence interval (``fedml.tasks.interval_tools.FindInterval``), or why there is none.
        printed: its name in a report. axis: its short name on an axis. meaning: its definition in half a sentence.
        bounds: smallest and largest possible value; None: unbounded. guess: its value for random predictions; None: not defined.
        counted: True for a number of persons, which has no interval.
        additive: True if its value over all persons is the mean of the sites' values, weighted by persons.
        brief: True if the terminal's tables show it.
    """

    name: str
    of: Literal["all", "class", "both"]
    value: Value
    interval: FindInterval | NotBuilt
    printed: str
    axis: str
    meaning: str
    bounds: tuple[float, float] | None
    guess: float | None
    counted: bool
    additive: bool
    brief: bool


def metrics_of(measures: Sequence[Measure], scored: Mapping[int, str], counts: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """``persons``, then every measure of all classes, then ``measure/CLASS``; only ``persons`` if no person is counted.

    Args:
        scored: the classes with separate measures, by their number.
    """
    persons = float(counts["persons"][0])
    if persons <= 0:  # noised counts may be negative
        return {"persons": 0.0}
    out = {"persons": persons}
    wanted: list[tuple[Measure, int | None]] = [(m, None) for m in measures if m.of != "class"]
    wanted += [(m, c) for m in measures if m.of != "all" for c in scored]
    for measure, c in wanted:
        value = measure.value(counts, c)
        if value is not None:
            out[measure.name if c is None else f"{measure.name}/{scored[c]}"] = value
    return out
