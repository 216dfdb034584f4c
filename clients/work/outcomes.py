"""The site's part of an analysis of outcomes: sums over its persons for each step (``fedml.analytics.outcome_forms``).

Nothing about a person is sent: counts and sums of intervals that hold nobody or enough persons, and sums over all persons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import RecordDict

from fedml.analytics import glm, grid, outcome_forms, standardise, treatment
from fedml.clients.site.read import load_cohort
from fedml.clients.work import describe, outcome_cox
from fedml.clients.work.effective import effective_persons, few_effective
from fedml.clients.work.outcome_people import FEW_VALUES, Floats, Persons, analysed, cells_of, column_of, floor_of, grid_model
from fedml.clients.work.request import Request
from fedml.errors import Reason, SiteError
from fedml.study.outcome_rules import columns_of
from fedml.study.outcomes_section import FAMILIES
from fedml.wire.records import ANALYSIS, Phase, array_record, pack, unpack

PER_COEFFICIENT = 5  # persons of a site for each coefficient; of events, where a site is analysed alone
_FEWEST_SHARE = 0.02  # of the persons, by their weights in the sums of a Cox model


def analyse(request: Request, content: RecordDict) -> RecordDict:
    """The reply of a step."""
    given = unpack(array_record(content, ANALYSIS))
    check(request, given)
    if request.phase is Phase.DESCRIPTION:
        return _reply(describe.answer(request, given, floor_of(request)))
    people = analysed(request.manifests, request.study)
    match request.phase:
        case Phase.GRID:
            cells = cells_of(request, int(given["model"][0]))
            end = grid.next_end(cells, given["edges"], *given["from"].tolist())
            if end < 0:
                raise SiteError(
                    Reason.TOO_FEW, "not even one interval has enough persons of each kind: fewer groups or covariates are needed"
                )
            whole = np.array([grid.possible(cells, given["edges"])], np.uint8)
            return _reply({"end": np.array([end]), "whole": whole})
        case Phase.TIMES:
            return _reply({"counts": _counts(request, people, given["edges"])})
        case Phase.MOMENTS:
            return _reply(_moments(request, people))
        case Phase.ALONE:
            return _reply(_alone(request, people, given.get("edges")))
        case Phase.REGRESSION:
            return _reply(_regression(request, people, given))
        case Phase.WEIGHTED:
            z = (people.x - given["centre"]) / given["scale"]
            return _reply(treatment.site_sums(z, people.y, people.groups[1], _weights(request, people, given), given["at"]))
        case Phase.STANDARDISED:
            return _reply(_standardised(request, people, given))
        case Phase.TREATED:
            return _reply(_treated(request, people, given))
        case Phase.CENSORING:
            everyone = replace(people, groups=np.ones((1, len(people.rows)), bool))
            return _reply({"counts": _counts(request, everyone, given["edges"])})
    return _reply(outcome_cox.sums(request, people, given))


def _reply(values: dict[str, Any]) -> RecordDict:
    return RecordDict({ANALYSIS: pack(values)})


def check(request: Request, given: Mapping[str, Any]) -> None:
    """Raises ``SiteError`` if the numbers that a request asks for would be about few persons, or about fewer than its model needs.

    It is asked again by the gate about the reply, from the cohort alone.
    """
    if request.phase is Phase.DESCRIPTION:
        describe.check_groups(request, floor_of(request))
        return
    people, floor = analysed(request.manifests, request.study), floor_of(request)
    persons, columns = len(people.rows), people.x.shape[1]
    if persons < floor:
        raise SiteError(Reason.TOO_FEW, f"{persons} persons have every column of the analysis, min_count requires {floor}")
    if columns and persons < PER_COEFFICIENT * (columns + 1):
        raise SiteError(Reason.TOO_FEW, f"{persons} persons for {columns} columns of covariates; {PER_COEFFICIENT} for each are needed")
    outcome_cox.check_weights(request, people)
    if request.phase not in (Phase.GRID, Phase.TIMES):
        kinds, binary = _kinds(request, people)
        # Sums of products of two columns tell how many have a level of both, and the same sums of residuals who of them has the outcome.
        masks = np.vstack([np.ones((1, persons), bool), people.levels]).astype(np.int64)
        for kind in [np.ones(persons, bool), *([kinds, ~kinds] if binary else [])]:
            counts = (masks * kind) @ masks.T
            if ((counts > 0) & (counts < floor)).any():
                raise SiteError(
                    Reason.TOO_FEW,
                    f"a level of a covariate, or of two covariates together, has fewer than {floor} persons (min_count), or so few of one "
                    "outcome; merge levels, or leave a covariate out",
                )
    if request.phase in (Phase.WEIGHTED, Phase.TREATED):
        _check_weights(request, people, _weights(request, people, given), floor)
    if "edges" in given and request.phase is not Phase.GRID:
        cells = cells_of(request, grid_model(request.phase))
        if not grid.possible(cells, given["edges"]):
            raise SiteError(Reason.TOO_FEW, "an interval of the grid would tell of few persons")


def _kinds(request: Request, people: Persons) -> tuple[Any, bool]:
    """(persons,) who has the event, or is treated; and whether the two kinds are told apart."""
    if request.study.treatment is not None:
        if request.study.traits.label == "classes":
            cells = np.array([(mask & (people.y == value)).sum() for mask in people.groups for value in (0, 1)])
            if ((cells > 0) & (cells < floor_of(request))).any():
                raise SiteError(Reason.TOO_FEW, f"a treatment has fewer than {floor_of(request)} persons (min_count) of one outcome")
        return people.groups[1], True
    if people.times is not None:
        return people.times.event == 1, True
    return people.y > 0, request.study.traits.label == "classes"


def _weights(request: Request, people: Persons, given: Mapping[str, Any]) -> treatment.Weights:
    plan = request.study.treatment
    assert plan is not None  # noqa: S101 - the form of the request was checked
    eta = given["beta_one"][0] + (people.x - given["centre"]) / given["scale"] @ given["beta_one"][1:]
    weights = treatment.weights_of(eta, people.groups[1], treatment.Weighing(plan.estimand, plan.trim))
    if not all(np.isfinite(one).all() for one in weights):
        raise SiteError(Reason.NON_FINITE, "at these coefficients a weight cannot be computed")
    return weights


def _check_weights(request: Request, people: Persons, weights: treatment.Weights, floor: int) -> None:
    kept, y = weights.weight > 0, people.y
    values = [y == 0, y == 1] if request.study.traits.label == "classes" else [np.ones(len(y), bool)]
    masks = np.vstack([np.ones((1, len(y)), bool), people.levels]).astype(np.int64)
    for arm in people.groups:
        # Weighted sums tell of each level and outcome of those who are left; the counts, of how many are not.
        counts = np.concatenate([*(masks @ (arm & kept & value) for value in values), [int((arm & ~kept).sum())]])
        if ((counts > 0) & (counts < floor)).any():
            raise SiteError(
                Reason.TOO_FEW,
                f"a treatment, or a level of a covariate in it, has fewer than {floor} persons (min_count) of one outcome, or within, or "
                "beyond, [treatment] trim; merge levels, leave a covariate out, or choose another trim",
            )
        # Where all weights are nearly alike, their derivatives may still be those of one person.
        for one in weights if floor > 1 and (arm & kept).any() else ():
            own = np.abs(one[arm & kept])
            if own.any() and effective_persons(own) < max(floor, _FEWEST_SHARE * len(own)):
                raise SiteError(Reason.TOO_FEW, "at these coefficients the weighted sums would be about few persons")


def _treated(request: Request, people: Persons, given: Mapping[str, Any]) -> dict[str, Any]:
    weights = _weights(request, people, given).weight
    z = (people.x - given["centre"]) / given["scale"]
    columns = [[z[mask].sum(0), (z[mask] ** 2).sum(0), weights[mask] @ z[mask]] for mask in people.groups]
    sums = {name: _counts(request, people, given["edges"], own) for name, own in (("weights", weights), ("squares", weights**2))}
    return {"counts": _counts(request, people, given["edges"]), **sums, "columns": np.array(columns).transpose(1, 0, 2).copy()}


def _counts(request: Request, people: Persons, edges: Any, weights: Floats | None = None) -> Any:
    """(groups, causes + 2, intervals) who enters, has an event of each cause, leaves; or the sums of their ``weights``."""
    assert people.times is not None  # noqa: S101
    at, size, codes = grid.places(edges), int(edges.sum()), len(request.study.cohort.time_to_event.codes)
    first, last = at[people.times.at_risk_from()], at[people.times.time]

    def counted(places: Any, mask: Any) -> Any:
        return np.bincount(places[mask], None if weights is None else weights[mask], minlength=size)

    rows = []
    for mask in people.groups:
        kinds = [counted(last, mask & (people.times.event == code)) for code in range(1, codes)]
        rows.append(np.stack([counted(first, mask), *kinds, counted(last, mask)]))
    return np.stack(rows).astype(np.int64 if weights is None else np.float64)


def _moments(request: Request, people: Persons) -> dict[str, Any]:
    event = people.times.event == 1 if people.times is not None else np.zeros(len(people.rows), bool)
    if request.study.traits.label == "classes":
        event = people.y == 1
    if request.study.treatment is not None:
        event = people.groups[1]
    total = int(people.y.sum()) if request.study.traits.label == "count" else int(event.sum())
    x = people.x
    moments = np.stack([np.full(x.shape[1], float(len(x))), x.sum(0), (x**2).sum(0), x[event].sum(0)])
    weights = np.where(event, 1.0, 0.0) if people.weights is None else np.where(event, people.weights, 0.0)
    event_sum = np.concatenate([[weights.sum()], weights @ x])
    return {"moments": moments, "persons": np.array([len(x)]), "events": np.array([total]), "event_sum": event_sum}


def _alone(request: Request, people: Persons, edges: Any) -> dict[str, Any]:
    """The site's own model, for a meta-analysis; not fitted where it has few events for each coefficient."""
    columns = people.x.shape[1]
    empty = {"estimate": np.zeros(columns), "covariance": np.zeros((columns, columns)), "fitted": np.zeros(1, np.uint8)}
    names = columns_of(request.study.cohort.clinical, outcome_forms.covariates(request.study))
    scale = people.x.std(0)
    varies = scale > 0
    if not varies.all():
        return empty
    x = (people.x - people.x.mean(0)) / scale
    try:
        if people.times is not None:
            found = outcome_cox.alone(request, people, edges, x, PER_COEFFICIENT * columns)
            if found is None:
                return empty
            beta, covariance = found
        else:
            family = FAMILIES[request.study.traits.label]
            cases = int(people.y.sum())
            few = min(cases, len(people.y) - cases) if family == "binomial" else cases if family == "poisson" else len(people.y)
            if few < PER_COEFFICIENT * columns:
                return empty
            one = np.hstack([np.ones((len(x), 1)), x])

            def asked(beta: Floats, robust: bool) -> glm.Sums:
                return glm.site_sums(one, people.y, beta, family, people.offset, robust=robust)  # type: ignore[arg-type]

            solved = glm.solve(asked, family, ["(intercept)", *names], np.zeros(columns + 1))  # type: ignore[arg-type]
            beta, covariance = solved.beta[1:], glm.variances(solved)[1:, 1:]
    except (ValueError, np.linalg.LinAlgError):
        return empty
    return {"estimate": beta / scale, "covariance": covariance / np.outer(scale, scale), "fitted": np.ones(1, np.uint8)}


def _regression(request: Request, people: Persons, given: Mapping[str, Any]) -> dict[str, Any]:
    x = np.hstack([np.ones((len(people.rows), 1)), (people.x - given["centre"]) / given["scale"]])
    beta, floor = given["beta_one"], floor_of(request)
    if request.study.treatment is not None:  # the propensity model
        family, y, offset = "binomial", people.groups[1].astype(np.float64), None
    else:
        family, y, offset = FAMILIES[request.study.traits.label], people.y, people.offset
    eta = x @ beta
    _check_effective(eta, family, floor)
    sums = glm.site_sums(x, y, beta, family, offset, robust=bool(given["robust"][0]))  # type: ignore[arg-type]
    return {
        "gradient": sums.gradient, "information": sums.information, "meat": sums.meat,
        "log_likelihood": np.array([sums.log_likelihood]), "squares": np.array([sums.squares]), "persons": np.array([sums.persons]),
    }  # fmt: skip


def _standardised(request: Request, people: Persons, given: Mapping[str, Any]) -> dict[str, Any]:
    plan, spec, family = request.study.glm, request.study.cohort.clinical, FAMILIES[request.study.traits.label]
    assert plan is not None and plan.standardise is not None and spec is not None  # noqa: S101, PT018 - the form of the request was checked
    names = columns_of(spec, plan.covariates)
    one, beta, floor = np.ones((len(people.rows), 1)), given["beta_one"], floor_of(request)

    def design(x: Floats) -> Floats:
        return np.hstack([one, (x - given["centre"]) / given["scale"]])

    levels = []
    for level in spec.categories[plan.standardise]:
        x = people.x.copy()
        for at, name in enumerate(names):
            if name.startswith(f"{plan.standardise}="):
                x[:, at] = name == f"{plan.standardise}={level}"
        levels.append(design(x))
    for own in (design(people.x), *levels):
        _check_effective(own @ beta + (0.0 if people.offset is None else people.offset), family, floor)
    own_persons = standardise.Persons(design(people.x), people.y, people.offset)
    found = standardise.site_sums(own_persons, levels, beta, family, given["at"])  # type: ignore[arg-type]
    return {**found, "persons": np.array([len(people.rows)])}


def _check_effective(eta: Floats, family: str, floor: int) -> None:
    """Raises ``SiteError`` if sums with the weights of a regression are about few persons at these log odds or log rates."""
    few = family == "binomial" and few_effective(eta, floor)
    few = few or (family == "poisson" and effective_persons(np.exp(eta - eta.max())) < max(floor, _FEWEST_SHARE * len(eta)))
    if floor > 1 and few:
        raise SiteError(Reason.TOO_FEW, "at these coefficients the model's sums would be about few persons")


def person_sets(request: Request) -> list[list[str]]:
    """Ids of the persons of each set about whom the analysis releases exact values: everyone, and each group."""
    cohort, study = load_cohort(request.manifests, request.study), request.study
    sets = []
    if study.describe is not None:
        sets += describe.person_sets(request)
    if study.describe is None or outcome_forms.covariates(study) or outcome_forms.section(study, "survival.curves") is not None:
        people = analysed(request.manifests, study)
        sets += [people.rows, *(people.rows[mask] for mask in people.groups)]
    return [[cohort.ids[row] for row in rows] for rows in sets if len(rows)]


def columns_told(request: Request) -> list[tuple[Any, Floats]]:
    """Rows of the cohort and values of each column whose sums the analysis releases: covariates, case weights, the outcome and exposure of
    a regression, the numbers of a table."""
    cohort, study = load_cohort(request.manifests, request.study), request.study
    found = list[tuple[Any, Floats]]()
    if covariates := outcome_forms.covariates(study):
        people = analysed(request.manifests, study)
        values = [column_of(cohort, study, name)[people.rows] for name in covariates]
        values += [one for one in (people.weights, people.offset, people.y if people.times is None else None) if one is not None]
        found += [(people.rows, one) for one in values]
    if study.describe is not None:
        found += describe.numbers_told(request, floor_of(request))
    return found


def level_sets(request: Request) -> list[list[str]]:
    """Ids of who has each level of a covariate, and each value of a column of few values: whatever levels are called, and in whatever order
    a study lists them, sums over two of these sets that differ in few persons would tell of these."""
    ids = load_cohort(request.manifests, request.study).ids
    if not outcome_forms.covariates(request.study):  # what a table tells of levels is in ``leaving_sets``
        return []
    people = analysed(request.manifests, request.study)
    sets = [people.rows[mask] for mask in people.levels]
    if people.times is None and len(values := np.unique(people.y)) <= FEW_VALUES:
        sets += [people.rows[people.y == value] for value in values]
    return [[ids[row] for row in rows] for rows in sets if len(rows)]


def leaving_sets(request: Request, given: Mapping[str, Any]) -> list[list[str]]:
    """Ids of the sets about which the reply tells and which follow from the request: who has left, who has had each event, and with left
    truncation who has entered, by the end of each interval of its grid, in each group; of a comparison of treatments, who is left after
    trimming; of a table, who has each level."""
    if request.phase is Phase.WEIGHTED:
        people, cohort = analysed(request.manifests, request.study), load_cohort(request.manifests, request.study)
        kept = _weights(request, people, given).weight > 0
        return [[cohort.ids[row] for row in people.rows[mask & kept]] for mask in people.groups if (mask & kept).any()]
    if request.phase is Phase.DESCRIPTION:
        ids = load_cohort(request.manifests, request.study).ids
        return [[f"{what}{ids[row]}" for row in rows] for what, rows in describe.told_sets(request, floor_of(request))]
    if "edges" not in given or request.phase is Phase.GRID:
        return []
    people, cohort = analysed(request.manifests, request.study), load_cohort(request.manifests, request.study)
    assert people.times is not None  # noqa: S101
    by_group = request.phase in (Phase.TIMES, Phase.TREATED)
    at, groups = grid.places(given["edges"]), people.groups if by_group else np.ones((1, len(people.rows)), bool)
    place = at[people.times.time]
    every = request.phase in (Phase.TIMES, Phase.CENSORING, Phase.TREATED)
    codes = range(1, len(request.study.cohort.time_to_event.codes)) if every else (1,)
    kinds = {"": np.ones(len(people.rows), bool)} | {f"event {code} of ": people.times.event == code for code in codes}
    last = int(given["edges"].sum()) - 1  # by whose end everyone has left and entered, but not had an event
    # Who has an event is compared with who has the same event: the name before an id makes it another person to the comparison.
    sets = [
        (kind, people.rows[mask & has & (place <= k)]) for mask in groups for kind, has in kinds.items() for k in range(last + bool(kind))
    ]
    if people.times.first is not None:
        begun = at[people.times.at_risk_from()]
        sets += [("entered ", people.rows[mask & (begun <= k)]) for mask in groups for k in range(last)]
    return [[f"{kind}{cohort.ids[row]}" for row in rows] for kind, rows in sets if len(rows)]


def persons(request: Request) -> list[str]:
    """Ids of the persons in the analysis, for the site's ledger."""
    cohort = load_cohort(request.manifests, request.study)
    if request.phase is Phase.DESCRIPTION:
        return list(cohort.ids)
    return [cohort.ids[row] for row in analysed(request.manifests, request.study).rows]
