"""The server's part of ``fedml glm``: Newton's steps over the sites, variances, and the two-stage meta-analysis next to it."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from fedml.analytics import glm, standardise
from fedml.errors import RunError
from fedml.runs.log import OUTCOMES_JSON, OUTCOMES_PAGE, write_whole
from fedml.strategies.gwas.intercepts import Intercepts
from fedml.strategies.outcomes import page
from fedml.strategies.outcomes.cox import alone, rows_of
from fedml.strategies.outcomes.regression import at_sites, newton, places_of, units
from fedml.strategies.outcomes.treatment import compare_treatments
from fedml.strategies.outcomes.work import Floats, Work, finish, moments, plain
from fedml.study.outcomes_section import FAMILIES
from fedml.wire.records import Phase


def regress(work: Work) -> Path:
    """Runs the regression and writes its tables to the run's folder; returns the path of all results.

    Raises:
        RunError: a site stopped answering, columns depend on each other, or there is no finite maximum.
    """
    study, run, plan = work.study, work.run, work.study.glm
    if study.treatment is not None:
        return compare_treatments(work)
    assert plan is not None  # noqa: S101 - the command has checked
    found = plain({"glm": _fit(work)})
    write_whole(run / OUTCOMES_JSON, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    own = found["glm"]
    page.write_coefficients(run / "glm.tsv", own["coefficients"])
    heads = ["term", own["effect"], "estimate", "SE", "robust SE", "p", "robust p"]
    rows = [
        [r["term"], _effect(r, own["family"]), page.number(r["estimate"]), page.number(r["model"]["error"], 3),
         page.number(r["robust"]["error"], 3), page.p_value(r["model"]["p"]), page.p_value(r["robust"]["p"])]
        for r in own["coefficients"]
    ]  # fmt: skip
    intercept = "an intercept for each site" if plan.intercept == "site" else "one intercept"
    text = f"{own['family']} regression of {study.cohort.outcome}, {sum(own['persons'].values())} persons, {intercept}."
    page.write_page(run / OUTCOMES_PAGE, study, [f"<p>{text}</p>", page.html_table(heads, rows),
                                                 *_standardised_parts(run, own),
                                                 *page.write_meta(run, own, ratio=own["family"] != "gaussian")])  # fmt: skip
    finish(work, "glm", own["persons"], page.summary(found))
    return run / OUTCOMES_JSON


def _effect(row: dict[str, Any], family: str) -> str:
    values = [row["estimate"], row["model"]["lower"], row["model"]["upper"]]
    shown = [page.number(v if family == "gaussian" else float(np.exp(min(v, 700.0))), 3) for v in values]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def _fit(work: Work) -> dict[str, Any]:
    plan, family = work.study.glm, FAMILIES[work.study.traits.label]
    assert plan is not None  # noqa: S101
    design, replies = moments(work)
    each = plan.intercept == "site"
    places, names = places_of(work, each=each)
    found, last = newton(work, design, family, places, _start(work, family, replies, places))
    clustered = np.sum([np.outer(g, g) for g in last], axis=0)
    turn = units(places, design)
    beta = turn @ found.beta
    kinds = {"model": glm.variances(found), "robust": glm.variances(found, found.meat), "site": glm.variances(found, clustered)}
    # The scores of a site sum to 0 at its own intercept, and those of one site anyway, and say nothing of clusters there.
    if len(work.sites) < 2 or (each and len(work.sites) <= len(work.names)):
        del kinds["site"]
    variances = {name: turn @ value @ turn.T for name, value in kinds.items()}
    rows = rows_of(names, beta, variances, plan.level)
    width = len(names) - len(work.names)
    return {
        "family": family, "effect": {"gaussian": "effect", "binomial": "odds ratio", "poisson": "rate ratio"}[family],
        "coefficients": rows[width:], "intercepts": rows[:width], "covariance": variances["model"],
        "robust_covariance": variances["robust"], "dispersion": found.dispersion, "log_likelihood": found.log_likelihood,
        "steps": found.steps, "persons": {site: int(s["persons"][0]) for site, s in replies.items()},
        "events": {site: int(s["events"][0]) for site, s in replies.items()} if family != "gaussian" else None,
        "alone": alone(work, {}, plan.level), "quantile": float(norm.ppf(0.5 + plan.level / 2)),
        "standardised": _standardised(work, design, places, found),
    }  # fmt: skip


def _standardised(work: Work, design: dict[str, Any], places: Intercepts, found: glm.Solved) -> dict[str, Any] | None:
    """The mean outcome if everyone had each level of ``[glm] standardise``."""
    plan, spec = work.study.glm, work.study.cohort.clinical
    assert plan is not None  # noqa: S101
    if plan.standardise is None or spec is None:
        return None
    levels = [str(level) for level in spec.categories[plan.standardise]]
    asked = {**design, "beta_one": at_sites(work, places, found.beta)}

    def sums(at: Floats) -> dict[str, Any]:
        replies = work.take(Phase.STANDARDISED, {**asked, "at": at}).values()
        each = [{**s, **{name: places.vector(s[name].T, k).T for name in ("slope", "cross")}} for k, s in enumerate(replies)]
        return {name: np.sum([s[name] for s in each], axis=0) for name in each[0]}

    first = sums(np.zeros(len(levels)))
    persons = int(first["persons"][0])
    if persons != found.persons:
        raise RunError("a site sent standardised sums of other persons than its regression; run again, and ask the sites.")
    at = first["means"] / persons  # asked again about the means, or large ones would cost digits
    means, covariance = standardise.estimates(sums(at), persons, at, found.information, found.meat)
    ratio = FAMILIES[work.study.traits.label] != "gaussian"
    rows = standardise.contrasts(means, covariance, plan.level, ratio=ratio)
    return {"column": plan.standardise, "levels": [{"level": level, **row} for level, row in zip(levels, rows, strict=True)]}


def _standardised_parts(run: Path, own: dict[str, Any]) -> list[str]:
    """``standardised.tsv`` and its part of the page."""
    found = own["standardised"]
    if found is None:
        return []
    rows: page.Rows = []
    first = found["levels"][0]["level"]
    for row in found["levels"]:
        for key, name in (
            ("mean", row["level"]),
            ("difference", f"{row['level']} less {first}"),
            ("log_ratio", f"log of {row['level']} / {first}"),
        ):
            if row[key] is not None:
                p = None if key == "mean" else row[key]["p"]
                rows.append([name, *(row[key][f] for f in ("estimate", "error", "lower", "upper")), p])
    heads = ["", "estimate", "robust SE", "lower", "upper", "p"]
    page.write_table(run / "standardised.tsv", ["what", "estimate", "robust_error", "lower", "upper", "p"], rows)
    shown = [[row[0], *(page.number(v) for v in row[1:5]), page.p_value(row[5])] for row in rows]
    text = (
        f"The mean outcome if everyone had each level of {found['column']}, by the regression above (g-formula), over the persons of all "
        "sites. The differences are the column's effect only if every common cause of it and the outcome is among the covariates, and the "
        "regression has their right form."
    )
    return [page.html_table(heads, shown, f"Standardised by {found['column']}"), f"<p>{html.escape(text)}</p>"]


def _start(work: Work, family: str, replies: Any, places: Intercepts) -> Floats:
    """No effect, at the mean of all where it is known: counts of one intercept far from 0 would need many steps."""
    start = np.zeros(places.width)
    if family == "poisson" and work.study.cohort.exposure is None:
        events, persons = (sum(int(s[name][0]) for s in replies.values()) for name in ("events", "persons"))
        start[: places.width - places.columns + 1] = np.log(max(events, 1) / persons)
    return start
