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

# Counts, and the class of the outcome (None: all classes together) -> the value, NaN where it is not defined, None where these counts do
# not hold it.
Value = Callable[[Mapping[str, npt.NDArray[Any]], int | None], float | None]


@dataclass(frozen=True)
class Measure:
    """Every field is required.

    Args:
        name: its key in the record of a run; of one class ``name/CLASS``.
        of: all classes together, one class, or both.
        interval: how far it may be from that of all such persons, or why that is not built.
        printed: its name in a report. axis: its short name on an axis. meaning: what it says, in half a sentence.
        bounds: the least and the largest value; None: there are none. guess: the value of a guess, None: there is none.
        counted: it is a number of persons, which has no interval.
        additive: of all persons it is the mean over sites, weighted by persons.
        brief: the terminal's tables show it.
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
