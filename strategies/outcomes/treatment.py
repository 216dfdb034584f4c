"""The server's part of a comparison of treatments: the propensity model over the sites, balance, and the weighted difference.

Each site computes its persons' weights from the final coefficients; only sums over each treatment come back.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedml.analytics import glm, outcome_forms, treatment
from fedml.errors import RunError
from fedml.runs.log import OUTCOMES_JSON, OUTCOMES_PAGE, write_whole
from fedml.strategies.agreement.step import Arrays
from fedml.strategies.gwas.intercepts import Intercepts
from fedml.strategies.outcomes import page
from fedml.strategies.outcomes.cox import rows_of
from fedml.strategies.outcomes.regression import at_sites, newton, places_of, units
from fedml.strategies.outcomes.work import Work, finish, moments, plain
from fedml.study.study import Study
from fedml.wire.records import Phase

OF = {"ate": "everyone", "att": "the treated", "overlap": "those who might get either treatment"}


def compare_treatments(work: Work) -> Path:
    """Runs the comparison and writes its tables to the run's folder; returns the path of all results.

    Raises:
        RunError: a site stopped answering, the propensity model has no finite maximum, or nobody of a treatment is left.
    """
    study, run = work.study, work.run
    found = plain({"treatment": _compare(work)})
    write_whole(run / OUTCOMES_JSON, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    page.write_page(run / OUTCOMES_PAGE, study, _parts(run, study, found["treatment"]))
    finish(work, "glm", found["treatment"]["sites"], page.summary(found))
    return run / OUTCOMES_JSON


class Propensity(NamedTuple):
    """The propensity model over the sites: ``asked`` is what every later step sends, ``rows`` its coefficients, ``arms`` the words for
    control and treated, ``persons`` and ``treated`` of each site."""

    fitted: glm.Solved
    places: Intercepts
    design: dict[str, Any]
    asked: dict[str, Any]
    rows: list[dict[str, Any]]
    arms: tuple[str, str]
    persons: dict[str, int]
    treated: dict[str, int]


def propensity(work: Work) -> Propensity:
    """Fits the model. Raises ``RunError`` as ``compare_treatments``."""
    plan, study = work.study.treatment, work.study
    assert plan is not None  # noqa: S101 - the command has checked
    design, replies = moments(work)
    persons, treated = ({site: int(s[name][0]) for site, s in replies.items()} for name in ("persons", "events"))
    control, label = (_level(study, code) for code in outcome_forms.arms_of(study))
    for count, level in ((sum(persons.values()) - sum(treated.values()), control), (sum(treated.values()), label)):
        if count == 0:
            raise RunError(f"no person of any site has {level}; correct [treatment] levels.")
    places, names = places_of(work, each=plan.intercept == "site")
    fitted, _ = newton(work, design, "binomial", places, np.zeros(places.width), "the propensity model")
    turn = units(places, design)
    rows = rows_of(names, turn @ fitted.beta, {"model": turn @ glm.variances(fitted) @ turn.T}, plan.level)
    asked = {**design, "beta_one": at_sites(work, places, fitted.beta)}
    return Propensity(fitted, places, design, asked, rows, (control, label), persons, treated)


def balance_rows(work: Work, sums: Arrays, design: dict[str, Any]) -> list[dict[str, Any]]:
    """The balance of each column of the propensity model."""
    rows = treatment.balance(sums, design["centre"], design["scale"])
    return [{"column": name, **row} for name, row in zip(work.names, rows, strict=True)]


def _compare(work: Work) -> dict[str, Any]:
    plan, study = work.study.treatment, work.study
    assert plan is not None  # noqa: S101 - the command has checked
    model = propensity(work)

    def sums(at: Any) -> Arrays:
        replies = work.take(Phase.WEIGHTED, {**model.asked, "at": at}).values()
        each = [{**s, **{name: model.places.vector(s[name].T, k).T for name in ("slope", "cross")}} for k, s in enumerate(replies)]
        total: Arrays = {name: np.sum([s[name] for s in each], axis=0) for name in each[0]}
        if (total["counts"][:, 1] == 0).any() or not (total["arms"][:, 0] > 0).all():
            raise RunError("nobody of a treatment is left within [treatment] trim; choose a smaller one.")
        return total

    first = sums(np.zeros(2))["arms"]
    at = first[:, 2] / first[:, 0]  # asked again about the means, or a large mean would cost digits
    total = sums(at)
    arms = treatment.arms_of(total, at, model.fitted.information, model.fitted.meat)
    binary, counts, weights = study.traits.label == "classes", total["counts"], total["arms"]
    return {
        "outcome": str(study.cohort.outcome), "column": plan.column, "estimand": plan.estimand, "trim": plan.trim, "level": plan.level,
        "propensity": model.rows, "balance": balance_rows(work, total, model.design),
        "arms": [
            {"level": level, "persons": int(counts[k, 0]), "trimmed": int(counts[k, 0] - counts[k, 1]),
             "effective": float(weights[k, 0] ** 2 / weights[k, 1]), "crude_mean": arms.crude[k], "mean": arms.mean[k],
             "error": float(np.sqrt(arms.covariance[k, k]))}
            for k, level in enumerate(model.arms)
        ],
        "measure": "risk" if binary else "mean", **treatment.effects(arms, plan.level, binary=binary), "steps": model.fitted.steps,
        "sites": model.persons, "treated": model.treated,
    }  # fmt: skip


def _level(study: Study, code: int) -> str:
    plan, spec = study.treatment, study.cohort.clinical
    assert plan is not None and spec is not None  # noqa: S101, PT018 - the study was checked
    return f"{plan.column}={spec.categories[plan.column][code]}"


def _parts(run: Path, study: Study, found: dict[str, Any]) -> list[str]:
    """``propensity.tsv``, ``balance.tsv``, ``treatment.tsv`` and the parts of the page."""
    (control, treated), measure = (arm["level"] for arm in found["arms"]), found["measure"]
    effects = [(f"{measure} difference, crude", found["crude"]), (f"{measure} difference, weighted", found["weighted"])]
    ratio, e_value = found["ratio"], found["e_value"]
    if ratio is not None:
        name = "risk ratio, weighted" if measure == "risk" else "risk ratio, approximate (0.91 x standardised difference)"
        effects.append((name, {**ratio, "error": None}))
    rows: page.Rows = [[name, *(one[key] for key in ("estimate", "error", "lower", "upper", "p"))] for name, one in effects]
    if e_value is not None:
        rows += [["E-value of the ratio", e_value["estimate"], *[None] * 4],
                 ["E-value of its limit", e_value["limit"], *[None] * 4]]  # fmt: skip
    heads = ["effect", "estimate", "robust SE", "lower", "upper", "p"]
    page.write_table(run / "treatment.tsv", ["effect", "estimate", "robust_error", "lower", "upper", "p"], rows)
    trimmed = f" Left out by their score, below {found['trim']:g} or above {1 - found['trim']:g}: see the table." if found["trim"] else ""
    text = (
        f"{found['outcome']} of {treated} less {control}, in {OF[found['estimand']]} ({found['estimand'].upper()} weights), "
        f"{sum(found['sites'].values())} persons.{trimmed} Standard errors are robust and allow for the propensity score being "
        "estimated. The comparison is of treatments alone "
        f"only if every common cause of treatment and outcome is in the propensity model: {', '.join(_covariates(study))}."
    )
    arms: page.Rows = [[a["level"], a["persons"], a["trimmed"], page.number(a["effective"]), page.number(a["crude_mean"]),
                        f"{page.number(a['mean'])} ({page.number(a['error'], 3)})"] for a in found["arms"]]  # fmt: skip
    return [
        f"<p>{html.escape(text)}</p>",
        page.html_table(heads, [[r[0], *(page.number(v) for v in r[1:5]), page.p_value(r[5])] for r in rows], "Effect"),
        page.html_table(["treatment", "persons", "left out", "effective persons", f"crude {measure}", f"weighted {measure} (SE)"], arms,
                        "Treatments"),
        *model_parts(run, found, (control, treated)),
    ]  # fmt: skip


def model_parts(run: Path, found: dict[str, Any], arms: tuple[str, str]) -> list[str]:
    """``propensity.tsv``, ``balance.tsv`` and their parts of the page."""
    page.write_coefficients(run / "propensity.tsv", found["propensity"])
    fields = [f"{who}_{when}" for when in ("before", "after") for who in ("control", "treated", "smd")]
    page.write_table(run / "balance.tsv", ["column", *fields], [[r["column"], *(r[f] for f in fields)] for r in found["balance"]])
    balance: page.Rows = [[r["column"], *(page.number(r[f], 3) for f in fields)] for r in found["balance"]]
    shown = [f"{who}, {when}" for when in ("before", "weighted") for who in (*arms, "SMD")]
    model: page.Rows = [[r["term"], page.number(r["estimate"]), page.number(r["model"]["error"], 3), page.p_value(r["model"]["p"])]
                        for r in found["propensity"]]  # fmt: skip
    return [
        page.html_table(["column", *shown], balance, "Balance"),
        page.html_table(["term", "log odds ratio", "SE", "p"], model, "Propensity model"),
    ]


def _covariates(study: Study) -> tuple[str, ...]:
    return outcome_forms.covariates(study)
