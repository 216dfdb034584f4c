"""The state that every step of an analysis of outcomes uses."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid

from fedml.analytics import outcome_forms
from fedml.errors import RunError
from fedml.runs.events import Outcomes, Step
from fedml.runs.log import emit
from fedml.strategies.agreement.agree import agree
from fedml.strategies.agreement.agreement import Agreement
from fedml.strategies.agreement.recorded import Recorded
from fedml.strategies.agreement.step import Arrays, Traffic, take
from fedml.strategies.rounds import agreed_event, check_reporter
from fedml.study.outcome_rules import columns_of
from fedml.study.study import Study
from fedml.wire.records import Phase

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """The study, the connection to the sites or their recorded answers, who takes part, when the analysis began, network traffic,
    and how often each phase was asked."""

    study: Study
    grid: Grid | Recorded
    run: Path
    agreement: Agreement
    began: float
    traffic: Traffic = field(default_factory=Traffic)
    asked: Counter[Phase] = field(default_factory=Counter)

    @property
    def sites(self) -> list[str]:
        """The participating sites, in the roster's order."""
        return list(self.agreement.nodes.values())

    @property
    def names(self) -> list[str]:
        """The names of the design's columns."""
        return columns_of(self.study.cohort.clinical, outcome_forms.covariates(self.study))

    def take(self, phase: Phase, given: Mapping[str, Any]) -> dict[str, Arrays]:
        """Site -> its sums of the next step of ``phase``."""
        number = self.asked[phase]
        self.asked[phase] += 1
        emit(self.run, Step(doing=f"{phase}, step {number + 1}", done=sum(self.asked.values()), total=None, log=False))
        return take(self.study, self.grid, self.agreement, phase, number, given, self.traffic)

    def edges(self, model: int, start: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The common grid, a part of ``start``: the ends of intervals that every site may tell about, each as early as possible."""
        edges, last = np.zeros_like(start), -1
        while last < len(start) - 1:
            least = last + 1
            while True:
                given = {"edges": start, "model": np.array([model], np.uint8), "from": np.array([last, least])}
                replies = self.take(Phase.GRID, given)
                if last < 0 and all(sums["whole"][0] for sums in replies.values()):
                    return start  # nothing has to be merged
                ends = {site: int(sums["end"][0]) for site, sums in replies.items()}
                for site, end in ends.items():
                    if not least <= end < len(start) or not start[end]:
                        raise RunError(f"{site} named an end that is not of the grid; run again without it, and ask the site.")
                least = max(ends.values())
                if set(ends.values()) == {least}:
                    break
            edges[least], last = 1, least
        return edges


def begin(study: Study, grid: Grid, run: Path) -> Work:
    """Who takes part. Raises ``RunError`` as ``agree``."""
    began = time.monotonic()
    agreement = agree(study, grid, check_reporter(run), train=False)
    emit(run, replace(agreed_event(agreement, disclosures=None, parameters=0), image_shape=[]))  # images are not read
    return Work(study, grid, run, agreement, began, Traffic(run))


def moments(work: Work) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """Centre and scale (columns,) of the covariates, of persons of all sites; and the sites' replies."""
    replies = work.take(Phase.MOMENTS, {})
    for site, sums in replies.items():
        if len(sums["moments"][0]) and (sums["moments"][0] != sums["persons"][0]).any():
            raise RunError(f"{site} sent moments of other persons than it counts; run again without it, and ask the site.")
    total = np.sum([sums["moments"] for sums in replies.values()], axis=0)
    centre = total[1] / total[0]
    scale = np.sqrt(np.maximum(total[2] / total[0] - centre**2, 0))
    scale = np.where(scale > 1e-12 * (1 + np.abs(centre)), scale, 1.0)
    return {"centre": centre, "scale": scale}, replies


def plain(value: Any) -> Any:
    """``value`` as JSON: arrays as lists, NaN and infinity as None, named tuples as objects."""
    if hasattr(value, "_asdict"):
        return {key: plain(one) for key, one in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finish(work: Work, analysis: str, persons: Mapping[str, int], found: dict[str, Any]) -> None:
    """Emits the event of the analysis."""
    seconds = time.monotonic() - work.began
    emit(work.run, Outcomes(analysis=analysis, seconds=seconds, sites=work.traffic.rows, persons=dict(persons), found=found))
