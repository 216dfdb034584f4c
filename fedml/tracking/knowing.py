"""Computes ``fedml.tracking.known``: importing this file loads PyTorch.

known_of(run, study, TESTED)       # of a finished run
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from fedml.runs.log import MODEL, load_counts
from fedml.study.study import Study
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task
from fedml.tracking.across import across_of
from fedml.tracking.known import ALL, Known, Watched
from fedml.tracking.signature import interface_of


def watched_of(study: Study) -> Watched:
    """The watched metric of a study."""
    task = make_task(study)
    return Watched(task.watched, task.higher)


def known_of(run: Path, study: Study, parts: Collection[str]) -> Known:
    """``Known`` of a finished run, with the intervals of some parts; with the model if the test persons are among them."""
    limits = {part: dict(_limits(run, study, part)) for part in parts}
    model = interface_of(run, study) if "test" in parts and (run / MODEL).exists() else None
    return Known(limits, across_of(run, study, "test"), model)


def _limits(run: Path, study: Study, part: str) -> Iterable[tuple[str, tuple[float, float]]]:
    task, counts = make_task(study), load_counts(run).get(part, {})
    reporting = [site for site in study.federation.sites if site in counts]
    for name, sites in {ALL: reporting, **{site: [site] for site in reporting}}.items() if reporting else ():
        found = interval([counts[s] for s in sites], task, task.watched, seed=study.study.seed)
        if found.low == found.low:  # not NaN: an interval exists
            yield name, (found.low, found.high)
