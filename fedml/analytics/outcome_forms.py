"""Names, types and shapes of the arrays in requests and replies of an analysis of outcomes. Gates and server refuse all other arrays.

Letters in shapes: T intervals of the study's grid, E of the merged grid (how many of ``edges`` are 1), G groups, N causes + 2, C columns of
covariates, K = 1 + C (the intercept first), R rows of the table, B bins and levels.

    grid         -> edges, model, from                end of the next interval (``fedml.analytics.grid``), and
                                                      whether all of ``edges`` could stay; from: its start, least end
    times        -> edges                             counts (G, N, E): who enters, has an event of each cause, leaves
    moments      ->                                   moments (4, C), persons, events, event_sum (1 + C,): the sum of case weights over
                                                      events, and of these times each column
    censoring    -> edges                             counts (1, N, E), as times, of everyone (subdistribution hazards)
    hazard       -> edges, design, beta               risk, tied, followed (2, E): persons at risk, with the event
    score        -> the same, rise, tie, at           gradient, second
    means        -> edges, design, beta               risk_x, tied_x
    residuals    -> hazard's, rise, tie, at_event,    meat, total
                    rise_x, tie_x
    alone        -> edges, of survival                estimate, covariance, fitted
    regression   -> design, beta_one, robust          gradient_one, information_one, meat_one, log_likelihood, squares
    description  -> limits                            table, bins
    weighted     -> design, beta_one, at              counts, columns, crude, arms, slope, cross (``fedml.analytics.treatment``); at:
                                                      near the means of the outcome in both arms
    treated      -> edges, design, beta_one           counts (2, N, E) as times, of control and treated; weights and squares: sums of
                                                      weights and of squared weights of the same persons; columns as of weighted
    standardised -> design, beta_one, at              means (L,), products (L, L), slope, cross (L, K), persons; L levels
                                                      (``fedml.analytics.standardise``)

``design``: centre and scale (C,) of the covariates. The steps of a Cox model of subdistribution hazards also have ``free`` (E,), the
probability of no censoring before each interval's end.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from fedml.errors import Reason, SiteError
from fedml.study.outcome_rules import columns_of
from fedml.study.study import Study
from fedml.wire.records import Phase

Shape = tuple[int | str, ...]
Form = dict[str, tuple[str, Shape]]
BINS = 64  # of a histogram of a number, between limits that the server sends

_EDGES: Form = {"edges": ("uint8", ("T",))}
_DESIGN: Form = {"centre": ("float64", ("C",)), "scale": ("float64", ("C",))}
_COX: Form = {**_EDGES, **_DESIGN, "beta": ("float64", ("C",))}
_WEIGHTS: Form = {"rise": ("float64", ("E",)), "tie": ("float64", ("E",))}
REQUEST: dict[Phase, Form] = {
    Phase.GRID: {**_EDGES, "model": ("uint8", (1,)), "from": ("int64", (2,))},
    Phase.TIMES: _EDGES,
    Phase.MOMENTS: {},
    Phase.HAZARD: _COX,
    Phase.SCORE: {**_COX, **_WEIGHTS, "at": ("float64", ("E",))},
    Phase.MEANS: _COX,
    Phase.RESIDUALS: {**_COX, **_WEIGHTS, **dict.fromkeys(("at_event", "rise_x", "tie_x"), ("float64", ("E", "C")))},
    Phase.ALONE: _EDGES,
    Phase.REGRESSION: {**_DESIGN, "beta_one": ("float64", ("K",)), "robust": ("uint8", (1,))},
    Phase.DESCRIPTION: {"limits": ("float64", (2, "Q"))},
    Phase.WEIGHTED: {**_DESIGN, "beta_one": ("float64", ("K",)), "at": ("float64", (2,))},
    Phase.CENSORING: _EDGES,
    Phase.TREATED: {**_EDGES, **_DESIGN, "beta_one": ("float64", ("K",))},
    Phase.STANDARDISED: {**_DESIGN, "beta_one": ("float64", ("K",)), "at": ("float64", ("L",))},
}
GRIDS = ("survival.curves", "survival.cox", "treatment")  # by the ``model`` of a request about the grid
OF_COX = (Phase.HAZARD, Phase.SCORE, Phase.MEANS, Phase.RESIDUALS)
REPLY: dict[Phase, Form] = {
    Phase.GRID: {"end": ("int64", (1,)), "whole": ("uint8", (1,))},
    Phase.TIMES: {"counts": ("int64", ("G", "N", "E"))},
    Phase.MOMENTS: {
        "moments": ("float64", (4, "C")), "persons": ("int64", (1,)), "events": ("int64", (1,)), "event_sum": ("float64", ("K",)),
    },
    Phase.CENSORING: {"counts": ("int64", (1, "N", "E"))},
    Phase.HAZARD: {"risk": ("float64", ("E",)), "tied": ("float64", ("E",)), "followed": ("int64", (2, "E"))},
    Phase.SCORE: {"gradient": ("float64", ("C",)), "second": ("float64", ("C", "C"))},
    Phase.MEANS: {"risk_x": ("float64", ("E", "C")), "tied_x": ("float64", ("E", "C"))},
    Phase.RESIDUALS: {"meat": ("float64", ("C", "C")), "total": ("float64", ("C",))},
    Phase.ALONE: {"estimate": ("float64", ("C",)), "covariance": ("float64", ("C", "C")), "fitted": ("uint8", (1,))},
    Phase.REGRESSION: {
        "gradient": ("float64", ("K",)), "information": ("float64", ("K", "K")), "meat": ("float64", ("K", "K")),
        "log_likelihood": ("float64", (1,)), "squares": ("float64", (1,)), "persons": ("int64", (1,)),
    },
    Phase.DESCRIPTION: {"table": ("float64", ("G", "R")), "bins": ("int64", ("G", "Q", BINS))},
    Phase.WEIGHTED: {
        "counts": ("int64", (2, 2)), "columns": ("float64", (3, 2, "C")), "crude": ("float64", (2, 2)), "arms": ("float64", (2, 4)),
        "slope": ("float64", (2, "K")), "cross": ("float64", (2, "K")),
    },
    Phase.TREATED: {
        "counts": ("int64", (2, "N", "E")), "weights": ("float64", (2, "N", "E")), "squares": ("float64", (2, "N", "E")),
        "columns": ("float64", (3, 2, "C")),
    },
    Phase.STANDARDISED: {
        "means": ("float64", ("L",)), "products": ("float64", ("L", "L")), "slope": ("float64", ("L", "K")),
        "cross": ("float64", ("L", "K")), "persons": ("int64", (1,)),
    },
}  # fmt: skip
SECTIONS: dict[Phase, str] = {
    Phase.GRID: "survival", Phase.TIMES: "survival.curves", Phase.HAZARD: "survival.cox", Phase.SCORE: "survival.cox",
    Phase.MEANS: "survival.cox", Phase.RESIDUALS: "survival.cox", Phase.REGRESSION: "glm", Phase.DESCRIPTION: "describe",
    Phase.WEIGHTED: "treatment", Phase.CENSORING: "survival.cox", Phase.TREATED: "treatment", Phase.STANDARDISED: "glm.standardise",
}  # fmt: skip


def section(study: Study, name: str) -> Any:
    """The section ``name``, such as ``survival.cox``; None if the study has none."""
    found: Any = study
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def covariates(study: Study) -> tuple[str, ...]:
    """The covariates of the study's regression, or of its propensity model; empty if it has none."""
    model = section(study, "survival.cox") or study.glm or study.treatment
    return () if model is None else tuple(model.covariates)


def check_section(study: Study, phase: Phase) -> None:
    """Raises ``SiteError`` if the study has not the section whose analysis has the step ``phase``."""
    name = SECTIONS.get(phase)
    if study.treatment is not None and phase in (Phase.REGRESSION, Phase.ALONE):
        name = "treatment" if phase is Phase.REGRESSION else "glm"  # the propensity model is a regression; no site fits its own
    lacking = not covariates(study) if name is None else section(study, name) is None
    if phase in (Phase.WEIGHTED, Phase.TREATED) and (study.survival is None) != (phase is Phase.WEIGHTED):
        lacking = True  # sums of an outcome that is no time, or of times
    if lacking:
        raise SiteError(Reason.UNDECLARED, f"the study has no [{name or 'survival.cox] or [glm'}]")


def groups_of(study: Study, name: str) -> tuple[Any, ...]:
    """The levels of the groups that section ``name`` compares; one, None, where it compares none."""
    own, spec = section(study, name), study.cohort.clinical
    if own is None or own.groups is None or spec is None:
        return (None,)
    return tuple(spec.categories[own.groups])


def arms_of(study: Study) -> tuple[int, int]:
    """The codes of the two levels that ``[treatment]`` compares, the control first."""
    plan, spec = study.treatment, study.cohort.clinical
    assert plan is not None and spec is not None  # noqa: S101, PT018 - the study was checked
    own = list(spec.categories[plan.column])
    control, treated = (own.index(level) for level in plan.levels or own)
    return control, treated


def sizes(study: Study, phase: Phase, given: Mapping[str, Any]) -> dict[str, int]:
    """The values of the letters in shapes."""
    columns = len(columns_of(study.cohort.clinical, covariates(study)))
    edges = given.get("edges")
    size = {"C": columns, "K": columns + 1, "E": 0 if edges is None else int((edges > 0).sum())}
    if study.survival is not None:
        size |= {"T": len(study.survival.edges), "N": 1 + len(study.cohort.time_to_event.codes)}
    size["G"] = len(groups_of(study, "describe" if phase is Phase.DESCRIPTION else "survival.curves"))
    if study.glm is not None and study.glm.standardise is not None and study.cohort.clinical is not None:
        size["L"] = len(study.cohort.clinical.categories[study.glm.standardise])
    if study.describe is not None:
        numbers, rows = described(study)
        size |= {"Q": len(numbers), "R": rows}
    return size


def described(study: Study) -> tuple[list[str], int]:
    """The numeric columns of the table of ``[describe]``, and how many numbers each group has (``fedml.analytics.describe``)."""
    spec, plan = study.cohort.clinical, study.describe
    names = [] if spec is None or plan is None else list(plan.columns or spec.columns)
    numbers = [name for name in names if spec is not None and name not in spec.categories]
    levels = sum(len(spec.categories[name]) for name in names if spec is not None and name in spec.categories)
    return numbers, 1 + 3 * len(numbers) + levels


def _check(wanted: Form, given: Mapping[str, Any], size: Mapping[str, int]) -> None:
    if given.keys() != wanted.keys():
        raise SiteError(Reason.UNDECLARED, "the analysis record has other arrays than this phase declares")
    for name, (dtype, shape) in wanted.items():
        expected = tuple(size[n] if isinstance(n, str) else n for n in shape)
        if str(given[name].dtype) != dtype or given[name].shape != expected:
            raise SiteError(Reason.UNDECLARED, f"{name} does not have the declared shape and type")


def check_request(study: Study, phase: Phase, given: Mapping[str, Any]) -> None:
    """Raises ``SiteError`` unless the arrays of a request's analysis record are those that its phase declares, with possible values."""
    check_section(study, phase)
    wanted = {} if phase is Phase.ALONE and study.survival is None else REQUEST[phase]  # a regression has no grid
    if phase in OF_COX and section(study, "survival.cox").hazard == "subdistribution":
        wanted = {**wanted, "free": ("float64", ("E",))}
    _check(wanted, given, sizes(study, phase, given))
    if "edges" in given and (given["edges"].max(initial=0) > 1 or given["edges"][-1] != 1):
        raise SiteError(Reason.UNDECLARED, "edges are 0 or 1, and the last is 1")
    if phase is Phase.GRID and section(study, GRIDS[int(given["model"][0])] if given["model"][0] < len(GRIDS) else "none") is None:
        raise SiteError(Reason.UNDECLARED, "the grid is asked about for an analysis that the study has not")
    if "from" in given and not -1 <= given["from"][0] < given["from"][1] < len(given["edges"]):
        raise SiteError(Reason.UNDECLARED, "an interval ends behind its start")
    if "scale" in given and not (given["scale"] > 0).all():
        raise SiteError(Reason.UNDECLARED, "scale is not above 0")
    if "free" in given and (given["free"][0] != 1 or (np.diff(given["free"]) > 0).any() or (given["free"] < 0).any()):
        raise SiteError(Reason.UNDECLARED, "free is not a probability of no censoring: 1 at first, and never rising")
    for name in ("rise", "tie"):
        if name in given and phase is Phase.RESIDUALS and (given[name] < 0).any():
            raise SiteError(Reason.UNDECLARED, f"{name} is below 0")


def reply_shapes(study: Study, phase: Phase, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the arrays in a step's reply to a request with the arrays ``given``."""
    size = sizes(study, phase, given)
    return {name: tuple(size[n] if isinstance(n, str) else n for n in shape) for name, (_, shape) in REPLY[phase].items()}


def reply_type(phase: Phase, name: str) -> str:
    """The type of an array in a reply."""
    return REPLY[phase][name][0]
