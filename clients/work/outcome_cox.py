"""The site's sums for a Cox regression: of cause-specific hazards or the subdistribution's, with case weights if the study has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedml.analytics import cox, cox_sites, curves, grid, outcome_forms
from fedml.analytics.cox_sites import Followed, Staying
from fedml.clients.work.effective import effective_persons
from fedml.clients.work.outcome_people import Floats, Persons, floor_of
from fedml.clients.work.request import Request
from fedml.errors import Reason, SiteError
from fedml.study.outcome_rules import columns_of
from fedml.wire.records import Phase

_FEWEST_SHARE = 0.02  # of the persons, by their weights in the sums
MOST_RATIO = 20.0  # of two case weights


def _followed(people: Persons, given: Mapping[str, Any], x: Floats) -> Followed:
    assert people.times is not None  # noqa: S101
    at, event = grid.places(given["edges"]), people.times.event
    last, competing = at[people.times.time], event > 1
    staying = Staying(competing, given["free"]) if "free" in given else None
    if staying is not None and (staying.free[last[competing]] <= 0).any():
        raise SiteError(Reason.UNDECLARED, "free is 0 where persons are observed")
    return Followed(x, at[people.times.at_risk_from()], last, event == 1, people.weights, staying)


def check_weights(request: Request, people: Persons) -> None:
    """Raises ``SiteError`` if case weights are not above 0, or sums with them would be about few persons."""
    if people.weights is None:
        return
    column, floor = outcome_forms.section(request.study, "survival.cox").weights, floor_of(request)
    if (people.weights <= 0).any():
        raise SiteError(Reason.BAD_DATA, f"[survival.cox] weights: column {column} has values of 0 or below; every weight is above 0")
    ratio = float(people.weights.max() / people.weights.min())
    if floor > 1 and ratio > MOST_RATIO:
        raise SiteError(
            Reason.TOO_FEW,
            f"[survival.cox] weights: column {column} has weights {ratio:.4g} times as large as others; at most {MOST_RATIO:g} times "
            "is answered, or sums would be about the few who weigh most; truncate the weights",
        )


def sums(request: Request, people: Persons, given: Mapping[str, Any]) -> dict[str, Any]:
    """The reply of a step."""
    followed = _followed(people, given, (people.x - given["centre"]) / given["scale"])
    beta, intervals, floor = given["beta"], int(given["edges"].sum()), floor_of(request)
    eta, efron = followed.x @ beta, outcome_forms.section(request.study, "survival.cox").ties == "efron"
    if np.abs(eta).max(initial=0.0) > 500:
        raise SiteError(Reason.NON_FINITE, "at these coefficients a hazard cannot be computed")
    own = 1.0 if people.weights is None else people.weights
    if floor > 1 and effective_persons(own * np.exp(eta - eta.max(initial=0.0))) < max(floor, _FEWEST_SHARE * len(eta)):
        raise SiteError(Reason.TOO_FEW, "at these coefficients the sums would be about few persons")
    match request.phase:
        case Phase.HAZARD:
            risk, tied = cox_sites.hazard_sums(followed, beta, intervals)
            tied = tied if efron or not beta.any() else np.zeros_like(tied)
            return {"risk": risk, "tied": tied, "followed": _counted(followed, intervals)}
        case Phase.SCORE:
            gradient, second = cox_sites.score_sums(followed, beta, given["rise"], given["tie"], given["at"])
            return {"gradient": gradient, "second": second}
        case Phase.MEANS:
            risk_x, tied_x = cox_sites.mean_sums(followed, beta, intervals)
            return {"risk_x": risk_x, "tied_x": tied_x if efron else np.zeros_like(tied_x)}
    means = (given["at_event"], given["rise_x"], given["tie_x"])
    residuals = cox_sites.score_residuals(followed, beta, (given["rise"], given["tie"]), means)
    return {"meat": residuals.T @ residuals, "total": residuals.sum(0)}


def _counted(followed: Followed, intervals: int) -> Any:
    """(2, intervals) persons at risk, who stay there by a competing event too, and persons with the event."""
    staying = None if followed.staying is None else Staying(followed.staying.competing, np.ones(intervals))
    everyone = followed._replace(x=np.zeros((len(followed.last), 0)), weight=None, staying=staying)
    at_risk, deaths = cox_sites.hazard_sums(everyone, np.zeros(0), intervals)
    return np.rint(np.stack([at_risk, deaths])).astype(np.int64)


def alone(request: Request, people: Persons, edges: Any, x: Floats, fewest: int) -> tuple[Floats, Floats] | None:
    """Coefficients (C,) and their covariance of the site's own model of standardised ``x``; None with fewer than ``fewest`` events."""
    plan, given = outcome_forms.section(request.study, "survival.cox"), {"edges": edges}
    names = columns_of(request.study.cohort.clinical, outcome_forms.covariates(request.study))
    size = int(edges.sum())
    followed = _followed(people, given, x)
    if followed.event.sum() < fewest:
        return None
    if plan.hazard == "subdistribution":
        assert people.times is not None  # noqa: S101
        event = people.times.event > 0
        kinds = [np.bincount(followed.first, minlength=size), np.bincount(followed.last[event], minlength=size)]
        free = curves.free_before(np.stack([*kinds, np.bincount(followed.last, minlength=size)]))
        followed = _followed(people, {**given, "free": free}, x)
    found = cox_sites.fit(followed, size, cox.Plan(plan.ties, plan.ridge, names))
    meat = None
    if plan.shown == "robust":
        means = (found.means.at_event[0], found.means.rise[0], found.means.tie[0])
        residuals = cox_sites.score_residuals(followed, found.beta, (found.weights.rise[0], found.weights.tie[0]), means)
        meat = residuals.T @ residuals
    return found.beta, cox.variances(found.information, plan.ridge, meat)
