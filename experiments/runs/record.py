"""A run's folder read as one value: what the report, the model card, the checklists, the bundle and comparisons are made from.

record = read_record(Path("fedml-runs/heart-20260131-101500-3fa2b1"))
record.sites[0].persons, record.final["metrics"]["test"]["all"]["auroc"], record.counts["test"]["cleveland"]["histogram"]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fedml.errors import InputError
from fedml.runs.log import STUDY, load_counts, read_events
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
    """A whole run. ``rounds``, ``final``, ``privacy``, ``start``, ``end`` are its events as they stand (``fedml.runs.log``); ``final`` and
    ``privacy`` are empty where the run did not get so far."""

    run: Path
    study: Study
    start: dict[str, Any]
    agreed: dict[str, Any]
    rounds: tuple[dict[str, Any], ...]
    final: dict[str, Any]
    privacy: dict[str, Any]
    checks: tuple[dict[str, Any], ...]
    end: dict[str, Any]
    sites: tuple[SiteRecord, ...]
    counts: Counts

    @property
    def run_id(self) -> str:
        """The run's name."""
        return str(self.start["run_id"])

    @property
    def status(self) -> str:
        """``finished``, ``failed``, ``stopped``, or ``unfinished`` where the log has no end."""
        return str(self.end.get("status", "unfinished"))

    def site(self, name: str) -> SiteRecord:
        """The site of that name; ``KeyError`` if the roster has none."""
        return {site.name: site for site in self.sites}[name]


def read_record(run: Path) -> Record:
    """Reads a run's folder.

    Raises:
        InputError: the folder is none of a training run, or its log cannot be read.
    """
    try:
        study = parse_study((run / STUDY).read_text())
        events = read_events(run)[0]
    except (OSError, ValueError) as error:
        raise InputError(f"{run}: is no run's folder ({error}); give one from fedml-runs.") from error
    start = _one(events, "start")
    if not start or start.get("job", "train") != "train":
        raise InputError(f"{run}: is not the folder of a training run; give one that `fedml run` made.")
    agreed, final, privacy = _one(events, "agreed"), _one(events, "final"), _one(events, "privacy")
    rounds = tuple(e for e in events if e["event"] == "round")
    checks = tuple(_one(events, "checks").get("checks", ()))
    sites = tuple(_site(name, agreed, rounds, final, privacy) for name in study.federation.sites)
    return Record(run, study, start, agreed, rounds, final, privacy, checks, _one(events, "end"), sites, load_counts(run))


def _one(events: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The last event of that kind; empty if there is none."""
    return next((e for e in reversed(events) if e["event"] == kind), {})


def _site(
    name: str, agreed: dict[str, Any], rounds: Sequence[dict[str, Any]], final: dict[str, Any], privacy: dict[str, Any]
) -> SiteRecord:
    told = agreed.get("told", {}).get(name, {})
    persons = agreed.get("persons", {}).get(name, {})
    both = [*rounds, *([final] if final else [])]
    answered = [e["sites"][name] for e in both if name in e["sites"]]
    missed: dict[str, list[int]] = {}
    for event in both:
        if name in event["refused"]:
            missed.setdefault(event["refused"][name], []).append(event["round"])
    heads = [row["journal"] for row in answered if row.get("journal")]
    claims = privacy.get("claims", {})
    claim = claims.get(name, claims.get("", {}))
    return SiteRecord(
        name=name,
        persons={part: list(persons[part]) for part in PARTS if part in persons},
        rounds=tuple(e["round"] for e in rounds if name in e["sites"]),
        missed={reason: tuple(numbers) for reason, numbers in missed.items()},
        policy=told.get("policy"),
        quarantined=told.get("quarantined"),
        dataset=told.get("dataset"),
        metrics={part: m["sites"][name] for part, m in final.get("metrics", {}).items() if name in m["sites"]},
        epsilon=claim.get("epsilon"),
        journal=(str(heads[-1][0]), int(heads[-1][1])) if heads else None,
        bytes_in=sum(int(row.get("bytes_in") or 0) for row in answered),
        bytes_out=sum(int(row.get("bytes_out") or 0) for row in answered),
    )
