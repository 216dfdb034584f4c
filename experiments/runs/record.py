"""A run's folder read as one value: what the report, the model card, the checklists, the bundle and comparisons are made from.

record = read_record(Path("fedml-runs/heart-20260131-101500-3fa2b1"))
record.sites[0].persons, record.final.metrics["test"]["all"]["auroc"], record.counts["test"]["cleveland"]["histogram"]
"""

from __future__ import annotations

from collections.abc import Sequence
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
    Round,
    SiteTold,
    Start,
)
from fedml.runs.log import STUDY, last, load_counts, read_log
from fedml.study.section import PARTS
from fedml.study.study import Study, parse_study

Counts = dict[str, dict[str, dict[str, npt.NDArray[Any]]]]  # part or test@LABEL -> site -> counts by name
Journal = tuple[str, int]  # head of the chain, entries


@dataclass(frozen=True)
class SiteRecord:
    """One site of the roster, as the run saw it.

    persons: part -> persons a class (empty under privacy of a patient, where nobody counts). rounds: those it took part in. missed: reason
    -> rounds. policy: what it disclosed, None if nothing. quarantined: reason -> persons (-1: a few). dataset: SHA-256 of what it read.
    metrics: part -> its own. epsilon: what its persons have borne, None without. journal: head and entries as last told. bytes_in,
    bytes_out: from and to the site (as the server sees them) over the rounds and the last evaluation.
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
        """Persons in ``part``; None where they are not told."""
        return sum(self.persons[part]) if part in self.persons else None


@dataclass(frozen=True)
class Record:
    """A whole run. ``start``, ``agreed``, ``rounds``, ``final``, ``privacy``, ``end`` are its events (``fedml.runs.events``); an event that
    the run did not reach is empty, and its ``came`` is False."""

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

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self.start.run_id

    @property
    def status(self) -> str:
        """``finished``, ``failed``, ``stopped``, or ``unfinished`` where the log has no end."""
        return self.end.status

    def site(self, name: str) -> SiteRecord:
        """The site of that name; ``KeyError`` if the roster has none."""
        return {site.name: site for site in self.sites}[name]


def read_record(run: Path) -> Record:
    """Reads a run's folder.

    Raises:
        InputError: the folder is none of a training run, or its log cannot be read; the message names the event and field.
    """
    try:
        study = parse_study((run / STUDY).read_text())
        events = read_log(run, strict=True)[0]
    except (OSError, ValueError) as error:
        raise InputError(f"{run}: is no run's folder ({error}); give one from fedml-runs.") from error
    start = next((e for e in reversed(events) if isinstance(e, Start)), None)
    if start is None or start.job != "train":
        raise InputError(f"{run}: is not the folder of a training run; give one that `fedml run` made.")
    agreed, final, privacy = last(events, NOT_AGREED), last(events, NO_FINAL), last(events, NO_PRIVACY)
    rounds = tuple(e for e in events if isinstance(e, Round))
    checks = tuple(last(events, Checks(checks=[])).checks)
    sites = tuple(_site(name, agreed, rounds, final, privacy) for name in study.federation.sites)
    return Record(run, study, start, agreed, rounds, final, privacy, checks, last(events, NO_END), sites, load_counts(run))


def exchanges(rounds: Sequence[Round], final: Final) -> list[Round | Final]:
    """The rounds, and the last evaluation if it came."""
    return [*rounds, *([final] if final.came else [])]


def _site(name: str, agreed: Agreed, rounds: Sequence[Round], final: Final, privacy: Privacy) -> SiteRecord:
    told = (agreed.told or {}).get(name) or SiteTold(policy=None, dataset=None, quarantined=None)
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
        policy=told["policy"],
        quarantined=told["quarantined"],
        dataset=told["dataset"],
        metrics={part: m["sites"][name] for part, m in final.metrics.items() if name in m["sites"]},
        epsilon=None if claim is None else claim["epsilon"],
        journal=(str(heads[-1][0]), int(heads[-1][1])) if heads else None,
        bytes_in=sum(row["bytes_in"] for row in answered),
        bytes_out=sum(row["bytes_out"] for row in answered),
    )
