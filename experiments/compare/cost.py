"""What a comparison of a private study costs: each training and each evaluation is about the same persons, so their releases compose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedml.clients.gate.local import Plan, check_budgets, has_ledger, ledger_of
from fedml.clients.site.manifest import Site
from fedml.clients.site.read import load_cohort
from fedml.errors import InputError
from fedml.privacy.accounting import epsilon
from fedml.privacy.claims import rounded_up
from fedml.privacy.releases import whole_events
from fedml.study.study import Study, for_roster


@dataclass(frozen=True)
class Training:
    """One way to train with one seed: on the nodes of ``roster``, of which ``run`` is an earlier one that is used again."""

    study: Study
    who: str
    roster: tuple[str, ...]
    run: Path | None

    def plans(self, sites: Mapping[str, Site], *, pooled: bool) -> list[Plan]:
        """The training, for each site whose persons take part."""
        study, names = for_roster(self.study, self.roster), self.study.federation.training if pooled else self.roster
        return [Plan(study, self.roster[0] if pooled else name, site) for name, site in sites.items() if name in names]


def check(trainings: Sequence[Training], sites: Mapping[str, Site], pooled: str) -> None:
    """Raises ``InputError`` if what is still to be trained and evaluated would exceed a site's budget, or if the cost of all together
    cannot be computed."""
    for name, site in sites.items():
        _together(trainings, name, site, pooled)
    plans = [plan for t in trainings if t.run is None for plan in t.plans(sites, pooled=t.who == pooled)]
    check_budgets(plans + [Plan(t.study, name, site, only_evaluated=True) for t in trainings for name, site in sites.items()])


def note_outputs(study: Study, sites: Mapping[str, Site], run: Path) -> None:
    """Lists in the ledgers that exact outputs of test persons were compared: they stay on the machine, and what is printed is exact."""
    for site in sites.values():
        if has_ledger(site, study) and (rows := (cohort := load_cohort((str(site.file),), study)).rows("test")).size:
            ledger_of(site).note_unprotected(
                [cohort.ids[row] for row in rows], run=f"local {run.name}", study=study.sha256, study_name=study.study.name,
                phase="compare", round=0,
            )  # fmt: skip


def totals(trainings: Sequence[Training], sites: Mapping[str, Site], pooled: str) -> dict[str, dict[str, Any]]:
    """Site -> epsilon at delta of all trainings and evaluations together, those used again included; empty without privacy of a patient.

    Their events are composed by the accountant, as if one person were in the training, validation and test part of each: seeds may put a
    person into different parts. ``spent`` and ``max_epsilon``: of the site's ledger, over all studies; None if it has none.
    """
    out: dict[str, dict[str, Any]] = {}
    for name, site in sites.items():
        if not any(_events(t, name, site, pooled) for t in trainings):
            continue
        delta, policy = trainings[0].study.privacy.delta, site.manifest.policy
        charged = has_ledger(site, trainings[0].study)
        out[name] = {
            "epsilon": _together(trainings, name, site, pooled),
            "delta": delta,
            "trainings": sum(t.who == pooled or name in t.roster for t in trainings if name in t.study.federation.training),
            "evaluations": len(trainings),
            "spent": ledger_of(site).spent(policy.delta) if charged else None,
            "max_epsilon": policy.max_epsilon if charged else None,
        }
    return out


def _together(trainings: Sequence[Training], name: str, site: Site, pooled: str) -> float:
    events = [event for t in trainings for event in _events(t, name, site, pooled)]
    try:
        return epsilon(events, trainings[0].study.privacy.delta) if events else 0.0
    except ValueError as error:
        raise InputError(f"the epsilon of all runs together cannot be computed: {error}; compare fewer seeds.") from error


def _events(training: Training, name: str, site: Site, pooled: str) -> list[Any]:
    """All events about a person of the site in a training and in the evaluation of its model at all sites."""
    plans = training.plans({name: site}, pooled=training.who == pooled)
    found = [whole_events(plan.study, plan.node) for plan in plans] + [whole_events(training.study, name, only_evaluated=True)]
    return [event for parts in found for part in ("train", "val") for event in parts.get(part, [])]


def lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The totals as text, one line for each site."""
    out = []
    for name, cost in found.items():
        text = (
            f"Privacy: {name}: {cost['trainings']} trainings and {cost['evaluations']} evaluations cost each person at most epsilon "
            f"{rounded_up(cost['epsilon'])} together at delta {cost['delta']:g} (composed by the accountant)"
        )
        ledger = "public data, no ledger"
        if cost["spent"] is not None:
            ledger = f"spent in its ledger over all studies: {rounded_up(cost['spent'])} of {cost['max_epsilon']:g} (max_epsilon)"
        out.append(f"{text}; {ledger}")
    if found:
        out.append(
            "The figures above are of exact outputs of test persons, which no epsilon covers; they are computed on this machine only."
        )
    return out
