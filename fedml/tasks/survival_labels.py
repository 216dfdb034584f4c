"""Times to an event as labels: the place of each person's time on the study's grid, and what happened then.

    times = times_of(cohort.labels)        # in the order of cohort.ids
    times.time                             # (persons,) int64: place of the rounded time among study.times.edges, from 0
    times.event                            # (persons,) int64: 0 censored, 1 the event of interest, 2.. competing events in the order of
                                           # study.cohort.time_to_event.names
    times.first                            # (persons,) int64 or None: the first place at which the person is at risk (left truncation)

A person is at risk at the places ``first`` (or 0) to ``time``, both included. The exact time is rounded up to the grid as it is read, so a
label holds no exact time: nothing that is counted, trained on or sent can. Who is observed beyond the grid's end is censored at the end.
A person who enters within an interval counts as at risk in it, as every person's event in it is at its end: entry < end of the interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.errors import InputError, NotBuilt
from fedml.study.study import Study
from fedml.tasks.task import Cells, Floats, Labels


@dataclass(frozen=True)
class Times:
    """See the module's docstring; every array is (persons,)."""

    time: npt.NDArray[np.int64]
    event: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64] | None

    def at_risk_from(self) -> npt.NDArray[np.int64]:
        """(persons,) ``first``, 0 where no entry is known."""
        return np.zeros_like(self.time) if self.first is None else self.first


def times_of(labels: Floats) -> Times:
    """Of (persons, 2) or (persons, 3) labels of ``time_labels`` without NaN, such as of a ``Cohort``."""
    whole = labels.astype(np.int64)
    return Times(whole[:, 0], whole[:, 1], whole[:, 2] if whole.shape[1] == 3 else None)


def time_labels(study: Study) -> Labels:
    """Labels of a study whose target is the time to an event: (persons, 2), with an entry (persons, 3)."""
    target, edges = study.cohort.time_to_event, np.array(study.times.edges)
    unit = study.times.time_unit

    def read(cells: Cells) -> Floats:
        event = cells.codes(target.event, target.codes)
        time = cells.numbers(target.time, "[cohort] target time")
        _refuse(cells.path, target.time, time, unit)
        if (missing := np.isnan(event)).any():
            raise InputError(
                f'{cells.path}: column "{target.event}" is empty for {int(missing.sum())} person(s); write the code of what happened, '
                f"{_of(target.codes[0])} for a person who was censored, or take the person out of the table."
            )
        place = np.searchsorted(edges, time, side="left")  # the first end that is not before the time
        event = np.where(place == len(edges), 0.0, event)
        place = np.minimum(place, len(edges) - 1).astype(np.float64)
        if target.entry is None:
            return np.stack([place, event], 1)
        entry = cells.numbers(target.entry, "[cohort] target entry")
        if (wrong := ~((entry >= 0) & (entry < time))).any():
            raise InputError(
                f'{cells.path}: column "{target.entry}" is empty, negative or not before the time in column "{target.time}" for '
                f"{int(wrong.sum())} person(s); correct the cells, or take those persons out of the table."
            )
        # Who enters at or after the end of follow-up is never observed in it.
        first = np.searchsorted(edges, entry, side="right").astype(np.float64)
        return np.where((first >= len(edges))[:, None], np.nan, np.stack([place, event, first], 1))

    def cells_of(labels: Floats) -> Mapping[str, list[Any]]:
        known = ~np.isnan(labels[:, 0])
        at = np.where(known[:, None], labels, 0).astype(np.int64)
        starts = np.concatenate([[0.0], edges])
        columns = {target.time: edges[at[:, 0]].tolist(), target.event: [target.codes[code] for code in at[:, 1]]}
        if target.entry is not None:
            columns[target.entry] = starts[at[:, 2]].tolist()
        return {name: [value if there else None for value, there in zip(cells, known, strict=True)] for name, cells in columns.items()}

    def show(label: Any) -> str:
        if np.isnan(np.asarray(label, np.float64)).any():
            return ""
        code = int(label[1])
        return f"{target.names[code - 1] if code else 'censored'} at {edges[int(label[0])]:g} {unit}"

    def placeholder(labels: Floats, random: np.random.Generator) -> Floats:
        place = random.integers(0, len(edges), len(labels)).astype(np.float64)
        event = random.integers(0, len(target.codes), len(labels)).astype(np.float64)
        rows = [place, event] if target.entry is None else [place, event, np.floor(random.random(len(labels)) * (place + 1))]
        return np.stack(rows, 1)

    return Labels(read=read, cells=cells_of, show=show, placeholder=placeholder, canary=NotBuilt("no audit of times is built"))


def _of(code: Any) -> str:
    return f'"{code}"' if isinstance(code, str) else f"{code}"


def _refuse(path: Path, name: str, time: Floats, unit: str) -> None:
    """``InputError`` if a time is missing, 0 or negative: one sentence with each kind and its number of persons."""
    kinds = {"empty": np.isnan(time), "0": time == 0, "negative": time < 0}
    found = [f"{text} for {int(those.sum())} person(s)" for text, those in kinds.items() if those.any()]
    if found:
        raise InputError(
            f'{path}: column "{name}" is {" and ".join(found)}; [cohort] target needs {unit} to the event or the last contact, above 0: '
            "correct the cells, or take those persons out of the table."
        )
