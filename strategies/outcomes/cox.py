"""The server's part of Cox regression: Newton's steps over the sites, variances, and the test of proportional hazards.

moments -> grid -> hazard, score -> ... -> means -> residuals -> score twice (proportional hazards) -> each site alone
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, norm

from fedml.analytics import cox, outcome_forms
from fedml.analytics.cox import Asked, Deaths, Plan, Solved, Weights
from fedml.analytics.curves import free_before, quadratic_test
from fedml.analytics.pooling import two_stage
from fedml.errors import RunError
from fedml.strategies.agreement.step import Arrays, BySite
from fedml.strategies.outcomes.work import Floats, Work, moments
from fedml.study.study import Study
from fedml.wire.records import Phase

Edges = npt.NDArray[np.uint8]


def fit(work: Work, edges: Edges) -> dict[str, Any]:
    """The fitted model as a dictionary of its tables.

    Raises:
        RunError: no site has an event, columns depend on each other, or there is no finite maximum.
    """
    plan = outcome_forms.section(work.study, "survival.cox")
    design, replies = moments(work)
    by_site = plan.baseline == "site"
    centre = _centre(work, design, replies, by_site=by_site)
    given: dict[str, Any] = {"edges": edges, "centre": centre, "scale": design["scale"]}
    if plan.hazard == "subdistribution":
        given["free"] = _free(work, edges, by_site=by_site)
    asked, remembered = _asked(work, given, {site: int(s["persons"][0]) for site, s in replies.items()}, by_site=by_site)
    width = len(work.names)
    zero = np.zeros(width)
    tied0 = asked.hazard(zero)[1]
    at_risk, number = remembered["followed"]
    if not number.sum():
        raise RunError("no person of any site has the event, so there is no Cox model.")
    events = Deaths(number, np.divide(tied0, number, out=np.ones_like(tied0), where=number > 0))
    own = {site: s["event_sum"][1:] - s["event_sum"][0] * _of(centre, site) for site, s in replies.items()}
    event_sum = np.sum(list(own.values()), axis=0) / design["scale"]
    try:
        found = cox.solve(asked, events, event_sum, Plan(plan.ties, plan.ridge, work.names))
    except (ValueError, np.linalg.LinAlgError) as error:
        raise RunError(f"the Cox model cannot be estimated: {error}.") from error
    return {
        **_estimates(work, plan, given, found, by_site=by_site),
        "proportional": _proportional(work, given, found, events, (at_risk.sum(0), number.sum(0)), remembered),
        "baseline": _baseline(work, edges, found, centre, design, by_site=by_site),
        "persons": {site: int(s["persons"][0]) for site, s in replies.items()},
        "events": {site: int(s["events"][0]) for site, s in replies.items()},
        "hazard": plan.hazard, "weights": plan.weights, "shown": plan.shown,
        "intervals": int(edges.sum()), "steps": found.steps, "ties": plan.ties, "ridge": plan.ridge, "stratified": by_site,
        "log_likelihood": found.log_likelihood,
        "likelihood_ratio": None if plan.shown == "robust" else quadratic(2 * (found.log_likelihood - found.null_log_likelihood), width),
        "alone": alone(work, {"edges": edges}, plan.level),
    }  # fmt: skip


def _free(work: Work, edges: Edges, *, by_site: bool) -> Any:
    """The probability of no censoring before each interval's end, over all sites or of each."""
    counts = {site: s["counts"][0] for site, s in work.take(Phase.CENSORING, {"edges": edges}).items()}
    for site, own in counts.items():
        check_counts(site, own[None])
    if by_site:
        return BySite({site: free_before(own) for site, own in counts.items()})
    return free_before(np.sum(list(counts.values()), axis=0))


def grid_of(study: Study, edges: Any) -> dict[str, Any]:
    """The agreed grid: its ends, and the ends of the study's grid that were merged away."""
    times = np.array(study.times.edges)
    return {"ends": times[np.flatnonzero(edges)], "merged": times[np.flatnonzero(edges == 0)]}


def check_counts(site: str, counts: Any) -> None:
    """Raises ``RunError`` if counts (groups, causes + 2, intervals) cannot be of persons: negative, or more leave than are there."""
    leave = counts[:, -1]
    here = np.cumsum(counts[:, 0], axis=1) - np.concatenate([np.zeros((len(counts), 1), np.int64), np.cumsum(leave, 1)[:, :-1]], 1)
    if (counts < 0).any() or (counts[:, 1:-1].sum(1) > leave).any() or (leave > here).any() or (counts[:, 0].sum(1) != leave.sum(1)).any():
        raise RunError(f"{site} sent counts that contradict each other; run again without it, and ask the site.")


def quadratic(statistic: float, df: int) -> dict[str, float]:
    """A chi-squared statistic with its p value."""
    return {"chi2": statistic, "df": df, "p": float(chi2.sf(statistic, df))}


def _of(value: Any, site: str) -> Floats:
    out: Floats = value[site] if isinstance(value, BySite) else value
    return out


def _centre(work: Work, design: dict[str, Any], replies: dict[str, Arrays], *, by_site: bool) -> Any:
    """Where covariates are 0: the mean of those with the event, over all sites or of each; the likelihood does not depend on it."""

    def mean(parts: list[Arrays]) -> Floats:
        count = sum(int(s["events"][0]) for s in parts)
        out: Floats = np.sum([s["moments"][3] for s in parts], axis=0) / count if count else design["centre"]
        return out

    if by_site:
        return BySite({site: mean([s]) for site, s in replies.items()})
    return mean(list(replies.values()))


def _strata(parts: list[Floats], *, by_site: bool) -> Floats:
    """The sites' sums as (strata, ...)."""
    stacked = np.stack(parts)
    return stacked if by_site else stacked.sum(0)[None]


def _per_site(work: Work, values: Floats, *, by_site: bool) -> Any:
    return BySite({site: values[at] for at, site in enumerate(work.sites)}) if by_site else values[0]


def _asked(work: Work, given: dict[str, Any], persons: dict[str, int], *, by_site: bool) -> tuple[Asked, dict[str, Any]]:
    """What the sites are asked for; the sums at no effect are asked once. The sums S1 and D1 are remembered."""
    width, first, kept = len(work.names), list[tuple[Floats, Floats]](), dict[str, Any]()

    def hazard(beta: Floats) -> tuple[Floats, Floats]:
        if not beta.any() and first:
            return first[0]
        found = work.take(Phase.HAZARD, {**given, "beta": beta})
        for site, own in found.items():
            at_risk, deaths = own["followed"]
            if (deaths < 0).any() or (deaths > at_risk).any() or (at_risk > persons[site]).any():
                raise RunError(f"{site} sent counts that contradict each other; run again without it, and ask the site.")
        replies = found.values()
        sums = tuple(_strata([s[name] for s in replies], by_site=by_site) for name in ("risk", "tied"))
        if not beta.any():
            first.append(sums)  # type: ignore[arg-type]
            counted = _strata([s["followed"].astype(np.float64) for s in replies], by_site=by_site)
            kept["followed"] = counted[:, 0], counted[:, 1]
        return sums  # type: ignore[return-value]

    def score(beta: Floats, weights: Weights) -> tuple[Floats, Floats]:
        rise, tie = (_per_site(work, value, by_site=by_site) for value in (weights.rise, weights.tie))
        sent = {**given, "beta": beta, "rise": rise, "tie": tie, "at": np.ones(weights.rise.shape[1])}
        replies = list(work.take(Phase.SCORE, sent).values())
        return np.sum([s["gradient"] for s in replies], axis=0), np.sum([s["second"] for s in replies], axis=0)

    def firsts(beta: Floats) -> tuple[Floats, Floats]:
        replies = work.take(Phase.MEANS, {**given, "beta": beta}).values()
        kept["firsts"] = tuple(_strata([s[name] for s in replies], by_site=by_site) for name in ("risk_x", "tied_x"))
        return kept["firsts"]  # type: ignore[no-any-return]

    kept["by_site"], kept["width"] = by_site, width
    return Asked(hazard, score, firsts), kept


def _estimates(work: Work, plan: Any, given: dict[str, Any], found: Solved, *, by_site: bool) -> dict[str, Any]:
    scale = given["scale"]
    outer = np.outer(scale, scale)

    def own(value: Floats) -> Any:
        return _per_site(work, value, by_site=by_site)

    sent = {
        **given, "beta": found.beta, "rise": own(found.weights.rise), "tie": own(found.weights.tie), "at_event": own(found.means.at_event),
        "rise_x": own(found.means.rise), "tie_x": own(found.means.tie),
    }  # fmt: skip
    replies = work.take(Phase.RESIDUALS, sent).values()
    meat = np.sum([s["meat"] for s in replies], axis=0)
    clustered = np.sum([np.outer(s["total"], s["total"]) for s in replies], axis=0)
    model = cox.variances(found.information, plan.ridge, None) / outer
    robust = cox.variances(found.information, plan.ridge, meat) / outer
    kinds = {"model": model, "robust": robust}
    if len(replies) > 1:  # the scores of one site sum to 0 at the solution
        kinds["site"] = cox.variances(found.information, plan.ridge, clustered) / outer
    beta = found.beta / scale
    shown = kinds[plan.shown]
    return {
        "coefficients": rows_of(work.names, beta, kinds, plan.level),
        "covariance": model, "robust_covariance": robust,
        "wald": quadratic(float(beta @ np.linalg.solve(shown, beta)), len(beta)),
    }  # fmt: skip


def rows_of(names: list[str], beta: Floats, variances: dict[str, Floats], level: float) -> list[dict[str, Any]]:
    """A row for each coefficient: the estimate, and of each kind of variance its standard error, interval and p."""
    factor, rows = float(norm.ppf(0.5 + level / 2)), []
    for at, name in enumerate(names):
        row: dict[str, Any] = {"term": name, "estimate": float(beta[at])}
        for kind, variance in variances.items():
            error = float(np.sqrt(max(variance[at, at], 0.0)))
            p = float(2 * norm.sf(abs(beta[at]) / error)) if error > 0 else float("nan")
            row[kind] = {"error": error, "lower": float(beta[at] - factor * error), "upper": float(beta[at] + factor * error), "p": p}
        rows.append(row)
    return rows


def _proportional(
    work: Work, given: dict[str, Any], found: Solved, events: Deaths, counts: tuple[Floats, Floats], kept: dict[str, Any]
) -> dict[str, Any]:
    """The score test that no coefficient changes with time, against 1 - Kaplan-Meier before each time (Grambsch and Therneau 1994,
    Biometrika 81:515; as R's cox.zph since survival 3.0)."""
    at_risk, d = counts
    share = np.divide(d, at_risk, out=np.zeros_like(d), where=at_risk > 0)
    before = np.concatenate([[1.0], np.cumprod(1 - share)[:-1]])
    g = 1 - before
    g = g - float((d * g).sum() / d.sum())
    blocks = []
    for at in (g, g**2):
        rise, tie = (_per_site(work, value * at, by_site=kept["by_site"]) for value in (found.weights.rise, found.weights.tie))
        replies = list(work.take(Phase.SCORE, {**given, "beta": found.beta, "rise": rise, "tie": tie, "at": at}).values())
        ties = outcome_forms.section(work.study, "survival.cox").ties
        square = cox.means((found.risk, found.tied), kept["firsts"], events, ties, at).square
        gradient, second = (np.sum([s[name] for s in replies], axis=0) for name in ("gradient", "second"))
        blocks.append((gradient, cox.information(second, square)))
    (score, mixed), (_, own) = blocks
    left = own - mixed @ np.linalg.solve(found.information, mixed)
    rows = [
        {"term": name, **quadratic(float(score[j] ** 2 / left[j, j]) if left[j, j] > 0 else float("nan"), 1)}
        for j, name in enumerate(work.names)
    ]
    return {"terms": rows, "global": quadratic_test(score, left)}


def _baseline(work: Work, edges: Edges, found: Solved, centre: Any, design: dict[str, Any], *, by_site: bool) -> dict[str, Any]:
    """The cumulative hazard at the means of all persons' covariates, at the end of each interval; by site if stratified."""
    ends = np.array(work.study.times.edges)[np.flatnonzero(edges)]
    names = work.sites if by_site else ["all"]
    out = {}
    for at, name in enumerate(names):
        place = (design["centre"] - _of(centre, name)) / design["scale"]
        out[name] = np.cumsum(found.weights.rise[at]) * float(np.exp(place @ found.beta))
    return {"time": ends, "hazard": out, "at": dict(zip(work.names, design["centre"].tolist(), strict=True))}


def alone(work: Work, given: dict[str, Any], level: float) -> dict[str, Any]:
    """Each site's own model, and their meta-analysis (two-stage), to compare with the model of all (one-stage)."""
    replies = work.take(Phase.ALONE, given)
    fitted = {site: bool(s["fitted"][0]) for site, s in replies.items()}
    estimates = np.stack([np.where(fitted[site], s["estimate"], np.nan) for site, s in replies.items()])
    errors = np.stack([np.where(fitted[site], np.sqrt(np.maximum(np.diag(s["covariance"]), 0)), np.nan) for site, s in replies.items()])
    terms = {}
    for j, name in enumerate(work.names):
        found = two_stage(estimates[:, j], errors[:, j], level)
        sites = {site: {"estimate": estimates[i, j], "error": errors[i, j]} for i, site in enumerate(replies)}
        terms[name] = {"sites": sites, "pooled": found}
    return {"fitted": fitted, "terms": terms}
