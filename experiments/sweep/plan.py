"""The studies of a sweep, and everything that is checked before the first run starts: studies, data, validation persons, privacy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedml.clients.gate.local import Plan, check_budgets
from fedml.clients.site.manifest import Site
from fedml.clients.site.read import load_aligned, load_cohort
from fedml.errors import InputError
from fedml.experiments.runs.run import read_all
from fedml.experiments.sweep.values import Point, Space, corners, drawn, grid, plain, shown
from fedml.modalities.registry import check_inputs
from fedml.privacy.accounting import epsilon
from fedml.privacy.claims import rounded_up
from fedml.privacy.releases import events_by_site, whole_events
from fedml.runs.software import code_digest
from fedml.strategies.algorithms.registry import make_strategy
from fedml.study.study import Study
from fedml.tracking.store import versions

Make = Callable[[Mapping[str, Any]], Study]  # changed keys -> the study with them


@dataclass(frozen=True)
class Search:
    """What is tried: the values, the seeds of each combination, and how combinations are found.

    Args:
        random, optuna: number of combinations that are drawn, or found by Optuna; both 0: the whole grid.
    """

    space: Space
    seeds: tuple[int, ...]
    random: int = 0
    optuna: int = 0


@dataclass(frozen=True)
class Try:
    """One combination of values, and its study for each seed."""

    point: Point
    studies: tuple[Study, ...]


@dataclass(frozen=True)
class Sweep:
    """A study, how its keys are changed, and the search."""

    study: Study
    make: Make
    search: Search

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the study and the search: a repeated command has the same."""
        search = self.search
        text = json.dumps([self.study.sha256, plain(search.space), search.seeds, search.random, search.optuna], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def folder(self) -> str:
        """Name of the folder of ``sweep.json``."""
        return f"sweep-{self.study.study.name}-{self.identity[:8]}"

    @property
    def most(self) -> int:
        """Number of combinations: of the grid, or as asked."""
        return self.search.optuna or len(self.points())

    def points(self) -> list[Point]:
        """The combinations that are known before the first run; none with Optuna."""
        search = self.search
        if search.optuna:
            return []
        return drawn(search.space, search.random, self.study.study.seed) if search.random else grid(search.space)

    def build(self, point: Point) -> Try:
        """The studies of a combination.

        All runs have the parts of the study's own seed, so that no run validates on persons who test another.

        Raises:
            InputError: a value does not fit; the message has the combination.
        """
        changes: dict[str, Any] = dict(point)
        if self.search.seeds != (self.study.study.seed,):
            changes["cohort.split_key"] = self.study.split_key
        try:
            studies = tuple(self.make({**changes, "study.seed": seed}) for seed in self.search.seeds)
            for study in studies[:1]:
                make_strategy(study)
                check_inputs(study)
        except InputError as error:
            raise InputError(f"{shown(point)}: {error}") from error
        return Try(point, studies)


class Data:
    """The sites' data, as studies read them: checked once for all studies that read alike. Final."""

    def __init__(self, sites: Mapping[str, Site], say: Callable[[str], None] = lambda _: None) -> None:
        self.sites, self._say, self._keys = sites, say, dict[str, str]()

    def key(self, study: Study) -> str:
        """SHA-256 of what a run's result depends on besides its study: the sites' data, the versions of packages and this software's code.

        Raises:
            InputError: data cannot be used, or no site has validation persons.
        """
        plan = study.model_dump(mode="json", exclude={"training", "strategy", "federation", "policy"})
        plan["study"], plan["cohort"]["split_key"] = study.study.name, study.split_key
        read = json.dumps(plan, sort_keys=True)
        if read not in self._keys:
            cohorts = read_all(study, self.sites, (lambda _: None) if self._keys else self._say)
            if not any(cohort.count("val") for cohort in cohorts.values()):
                raise InputError(
                    f'study "{study.study.name}": no site has validation persons, by which a sweep chooses; give [cohort] split a val '
                    'part, such as --set "cohort.split={ train = 0.5, val = 0.2, test = 0.3 }", or put val into the split files.'
                )
            found = {name: cohort.digest.hex() for name, cohort in cohorts.items()}
            self._keys[read] = hashlib.sha256(json.dumps([found, versions(), code_digest()], sort_keys=True).encode()).hexdigest()
            if len(self._keys) > 1:
                forget()
        return self._keys[read]


def forget() -> None:
    """Frees the data of studies that were read; each of a sweep's runs reads its own, so that memory does not grow with their number."""
    load_cohort.cache_clear()
    load_aligned.cache_clear()


def checked(sweep: Sweep, data: Data) -> list[Try]:
    """Every combination that is known before the first run, after all checks but that of budgets. With Optuna, none.

    Raises:
        InputError: a combination is invalid, two are the same study, data cannot be used, or no site has validation persons.
    """
    search = sweep.search
    if search.optuna and sweep.study.privacy.unit != "none":
        raise InputError(
            "--optuna finds values during the sweep, so what all tries cost together is not known before; use --grid alone or --random."
        )
    tries = [sweep.build(point) for point in (corners(search.space) if search.optuna else sweep.points())]
    first: dict[str, Try] = {}
    for tried in tries:
        same = first.setdefault(tried.studies[0].sha256, tried)
        if same is not tried and not (search.random or search.optuna):
            raise InputError(f"--grid: {shown(same.point)} and {shown(tried.point)} are the same study; list each value once.")
    for tried in first.values():
        data.key(tried.studies[0])
    return [] if search.optuna else list(first.values())


def check_privacy(ahead: Sequence[Study], sites: Mapping[str, Site]) -> None:
    """Raises ``InputError`` if the runs that are to be made would exceed a site's budget."""
    check_budgets([Plan(study, name, site) for study in ahead for name, site in sites.items()])


def privacy_lines(studies: Sequence[Study]) -> Iterator[str]:
    """What all runs together cost, a line for each site (unit patient) or one (unit site), and what is not covered; none without privacy.

    Raises:
        InputError: the cost of all together cannot be computed.
    """
    unit, delta = studies[0].privacy.unit, min(study.privacy.delta for study in studies)
    if unit == "none":
        return
    for name in studies[0].federation.sites if unit == "patient" else ("",):
        single, together = _cost(studies[:1], name, delta), _cost(studies, name, delta)
        who = f"{name}: {len(studies)} runs cost each person" if name else f"{len(studies)} runs cost each site"
        yield (
            f"Privacy: {who} at most epsilon {rounded_up(together)} together at delta {delta:g} (composed by the accountant; the first run "
            f"alone: {rounded_up(single)})"
        )
    if studies[0].privacy.metrics == "exact":
        yield "Privacy: the choice uses exact metrics of validation persons, which no epsilon covers."


def _cost(studies: Sequence[Study], site: str, delta: float) -> float:
    """Epsilon of all studies at a site, of the part of persons that it costs most: the parts are the same in all runs."""
    if site:
        by_study = [whole_events(study, site) for study in studies]
        parts = [[event for events in by_study for event in events.get(part, [])] for part in ("train", "val", "test")]
    else:
        parts = [[event for study in studies for event in events_by_site(study)[""]]]
    try:
        return max((epsilon(events, delta) for events in parts if events), default=0.0)
    except ValueError as error:
        raise InputError(f"the epsilon of all runs together cannot be computed: {error}; try fewer combinations or seeds.") from error
