"""A run's folder as one value: the source of the report, the model card, the checklists, the bundle and comparisons.

record = read_record(Path("fedml-runs/heart-20260131-101500-3fa2b1"))
record.sites[0].persons, record.final.metrics["test"]["all"]["auroc"], record.counts["test"]["cleveland"]["histogram"]
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fedml.errors import InputError
from fedml.runs.events import (
    NO_END,
    NO_FINAL,
    NO_PRIVACY,
    NOT_AGREED,
    Agreed,
    CheckRow,
    Checks,
    End,
    Final,
    Privacy,
    Resumed,
    Round,
    SiteDisclosure,
    Start,
)
from fedml.runs.log import last, load_counts, read_log, study_of
from fedml.study.section import PARTS
from fedml.study.study import Study

TRAININGS, ANALYSES = ("train", "evaluate"), ("gwas", "survival", "glm", "describe")
Counts = dict[str, dict[str, dict[str, npt.NDArray[Any]]]]  # part or test@LABEL -> site -> counts by name
Journal = tuple[str, int]  # head of the chain, entries


@dataclass(frozen=True)
class SiteRecord:
    """One site of the roster in the run.

    persons: part -> persons of each class (empty under patient-level privacy, where persons are not counted).
    rounds: the rounds in which the site took part. missed: reason -> rounds. policy: as disclosed; None: not disclosed.
    quarantined: reason -> excluded persons (-1: suppressed). dataset: SHA-256 of the data that the site read.
    metrics: part -> metrics of the site. epsilon: privacy cost to its persons; None: no claim.
    journal: head and number of entries in its last reply. bytes_in, bytes_out: from and to the site, over all exchanges.
    """

    name: str
    persons: dict[str, list[int]]
    rounds: tuple[int, ...]
    missed: dict[str, tuple[int, ...]]
    policy: dict[str, Any] | None
    quarantined: dict[str, int] | None
    dataset: str | None
    metrics: dict[str, dict[str, float]]
    epsilon: float | None
    journal: Journal | None
    bytes_in: int
    bytes_out: int

    def count(self, part: str) -> int | None:
        """Persons in ``part``; None if not reported."""
        return sum(self.persons[part]) if part in self.persons else None


@dataclass(frozen=True)
class Record:
    """A whole run. ``start``, ``agreed``, ``rounds``, ``final``, ``privacy``, ``end`` are its events (``fedml.runs.events``); an event that
    did not occur is empty, and its ``came`` is False. ``resumed``: the times that the run went on after it had stopped."""

    run: Path
    study: Study
    start: Start
    agreed: Agreed
    rounds: tuple[Round, ...]
    final: Final
    privacy: Privacy
    checks: tuple[CheckRow, ...]
    end: End
    sites: tuple[SiteRecord, ...]
    counts: Counts
    resumed: tuple[Resumed, ...] = ()

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self.start.run_id

    @property
    def status(self) -> str:
        """``finished``, ``failed``, ``stopped``, or ``unfinished`` if the log has no end event."""
        return self.end.status

    def site(self, name: str) -> SiteRecord:
        """The site of that name; ``KeyError`` if the roster has none."""
        return {site.name: site for site in self.sites}[name]


def job_of(run: Path) -> str:
    """What the run was to do (``Start.job``); "" if its log cannot be read, of which its reader tells what is wrong."""
    try:
        return last(
            read_log(run)[0], Start(run_id="", study="", study_sha256="", git_commit="", seed=0, versions={}, engine="", job="", code=None)
        ).job
    except (OSError, ValueError):
        return ""


def read_record(run: Path, jobs: Collection[str] = TRAININGS) -> Record:
    """Reads a run's folder. A run of an analysis has no rounds, no last evaluation and no counts.

    Args:
        jobs: kinds of runs that are read.

    Raises:
        InputError: this is not the folder of such a run, or its log cannot be read; the message names event and field.
    """
    try:
        study = study_of(run)
        events = read_log(run, strict=True)[0]
    except (OSError, ValueError) as error:
        raise InputError(f"{run}: is not a run's folder ({error}); give a folder from fedml-runs.") from error
    start = next((e for e in reversed(events) if isinstance(e, Start)), None)
    if start is None or start.job not in jobs:
        raise InputError(f"{run}: is not the folder of a training run; give a folder that `fedml run` wrote.")
    agreed, final, privacy = last(events, NOT_AGREED), last(events, NO_FINAL), last(events, NO_PRIVACY)
    rounds = tuple(e for e in events if isinstance(e, Round))
    checks = tuple(last(events, Checks(checks=[])).checks)
    sites = tuple(_site(name, agreed, rounds, final, privacy) for name in study.federation.sites)
    again = tuple(e for e in events if isinstance(e, Resumed))
    return Record(run, study, start, agreed, rounds, final, privacy, checks, last(events, NO_END), sites, load_counts(run), again)


def exchanges(rounds: Sequence[Round], final: Final) -> list[Round | Final]:
    """The rounds, and the last evaluation if there was one."""
    return [*rounds, *([final] if final.came else [])]


def _site(name: str, agreed: Agreed, rounds: Sequence[Round], final: Final, privacy: Privacy) -> SiteRecord:
    disclosed = (agreed.disclosed or {}).get(name) or SiteDisclosure(policy=None, dataset=None, quarantined=None)
    persons = agreed.persons.get(name, {})
    both = exchanges(rounds, final)
    answered = [e.sites[name] for e in both if name in e.sites]
    missed: dict[str, list[int]] = {}
    for event in both:
        if name in event.refused:
            missed.setdefault(event.refused[name], []).append(event.round)
    heads = [row["journal"] for row in answered if row["journal"]]
    claim = privacy.claims.get(name, privacy.claims.get(""))
    return SiteRecord(
        name=name,
        persons={part: list(persons[part]) for part in PARTS if part in persons},
        rounds=tuple(e.round for e in rounds if name in e.sites),
        missed={reason: tuple(numbers) for reason, numbers in missed.items()},
        policy=disclosed["policy"],
        quarantined=disclosed["quarantined"],
        dataset=disclosed["dataset"],
        metrics={part: m["sites"][name] for part, m in final.metrics.items() if name in m["sites"]},
        epsilon=None if claim is None else claim["epsilon"],
        journal=(str(heads[-1][0]), int(heads[-1][1])) if heads else None,
        bytes_in=sum(row["bytes_in"] for row in answered),
        bytes_out=sum(row["bytes_out"] for row in answered),
    )
