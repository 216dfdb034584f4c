"""The server's part of a comparison of treatments whose outcome is a time: weighted curves, restricted means, the hazard ratio.

moments -> glm (the propensity model) -> grid -> treated, once
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedml.analytics import curves, outcome_forms
from fedml.analytics import weighted_curves as weighted
from fedml.errors import RunError
from fedml.runs.log import OUTCOMES_JSON, OUTCOMES_PAGE, write_whole
from fedml.strategies.agreement.step import Arrays
from fedml.strategies.outcomes import page
from fedml.strategies.outcomes.cox import check_counts, grid_of
from fedml.strategies.outcomes.plots import curve_plot
from fedml.strategies.outcomes.treatment import OF, balance_rows, model_parts, propensity
from fedml.strategies.outcomes.work import Work, finish, plain
from fedml.study.study import Study
from fedml.wire.records import Phase

TREATED = 2  # whose grid the sites are asked about
KEY = "weighted_curves"


def compare_survival(work: Work) -> Path:
    """Runs the comparison and writes its tables to the run's folder; returns the path of all results.

    Raises:
        RunError: a site stopped answering or sent counts that contradict each other, or the propensity model has no finite maximum.
    """
    study, run = work.study, work.run
    found = plain({"unit": study.times.time_unit, "event": study.cohort.time_to_event.names[0], KEY: _compare(work)})
    write_whole(run / OUTCOMES_JSON, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    page.write_page(run / OUTCOMES_PAGE, study, _parts(run, study, found))
    finish(work, "survival", found[KEY]["sites"], page.summary(found))
    return run / OUTCOMES_JSON


def _compare(work: Work) -> dict[str, Any]:
    plan, study = work.study.treatment, work.study
    assert plan is not None  # noqa: S101 - the command has checked
    model = propensity(work)
    edges = work.edges(TREATED, np.ones(len(study.times.edges), np.uint8))
    replies = work.take(Phase.TREATED, {**model.asked, "edges": edges})
    for site, sums in replies.items():
        check_counts(site, sums["counts"])
        if not all(_possible(sums[name], sums["counts"]) for name in ("weights", "squares")):
            raise RunError(f"{site} sent weights that contradict its counts; run again without it, and ask the site.")
    total: Arrays = {name: np.sum([s[name] for s in replies.values()], axis=0) for name in next(iter(replies.values()))}
    times = np.array(study.times.edges)[np.flatnonzero(edges)]
    arms = [weighted.weighted_arm(*(total[name][arm] for name in ("counts", "weights", "squares"))) for arm in (0, 1)]
    groups = {
        name: _group(arm, total["counts"][k], times, study, plan.level) for k, (name, arm) in enumerate(zip(model.arms, arms, strict=True))
    }
    try:
        ratio, test = weighted.hazard_ratio(arms, plan.level)
    except ValueError as error:
        raise RunError(f"the weighted hazard ratio cannot be estimated: {error}.") from error
    in_arms = {"counts": total["counts"][:, :1].sum(2), "columns": total["columns"], "arms": total["weights"][:, 0].sum(1)[:, None]}
    return {
        "column": plan.column, "estimand": plan.estimand, "level": plan.level, "grid": grid_of(study, edges), "groups": groups,
        "filled": int((total["counts"][:, -1].sum(0) > 0).sum()),
        "differences": _differences(groups, model.arms, study, plan.level), "hazard_ratio": ratio, "log_rank": test,
        "propensity": model.rows, "balance": balance_rows(work, in_arms, model.design), "sites": model.persons, "treated": model.treated,
        "steps": model.fitted.steps,
    }  # fmt: skip


def _possible(sums: Any, counts: Any) -> bool:
    """Whether sums (2, causes + 2, intervals) of weights can be of the persons counted: not below 0, and 0 of nobody."""
    censored = sums[:, -1] - sums[:, 1:-1].sum(1)
    return not ((sums < 0).any() or ((sums > 0) & (counts == 0)).any() or (censored < -1e-9 * (1 + sums.max())).any())


def coarse_words(found: Mapping[str, Any]) -> str:
    """A warning where persons leave in so few intervals that curves and means are coarse; "" elsewhere."""
    if found["filled"] >= page.FEW_INTERVALS or not found["grid"]["merged"]:
        return ""
    return (
        f" Persons leave in {found['filled']} of these intervals only: curves and means are coarse, and a mean is too large by up to an "
        "interval. Take fewer covariates, or covariates without rare levels."
    )


def _group(arm: weighted.Arm, counts: Any, times: Any, study: Study, level: float) -> dict[str, Any]:
    table = curves.life_table(counts[0], counts[1:-1], counts[-1] - counts[1:-1].sum(0))
    return {
        "time": times, "at_risk": table.at_risk, "weighted_at_risk": arm.at_risk, "persons": int(counts[0].sum()),
        "events": int(counts[1].sum()), "effective": float(arm.weights.sum() ** 2 / arm.squares.sum()),
        "survival": weighted.kaplan_meier(arm, level), "crude": curves.kaplan_meier(table, level),
        "restricted_mean": {f"{h:g}": weighted.restricted_mean(arm, times, h) for h in study.times.horizons},
        "crude_restricted_mean": {f"{h:g}": curves.restricted_mean(table, times, h) for h in study.times.horizons},
    }  # fmt: skip


def _differences(groups: dict[str, Any], arms: tuple[str, str], study: Study, level: float) -> list[dict[str, Any]]:
    """The restricted mean of the treated less that of the control at each horizon, weighted and crude."""
    rows = []
    for key in ("restricted_mean", "crude_restricted_mean"):
        for horizon in study.times.horizons:
            one, other = (groups[name][key][f"{horizon:g}"] for name in (arms[1], arms[0]))
            gap, low, high, p = curves.difference(one, other, level)
            rows.append({"horizon": horizon, "weighted": key == "restricted_mean", "estimate": gap, "lower": low, "upper": high, "p": p})
    return rows


def _parts(run: Path, study: Study, whole: dict[str, Any]) -> list[str]:
    """``curves.tsv``, ``tests.tsv``, the tables of the propensity model, the plot, and the parts of the page."""
    found, unit, event = whole[KEY], whole["unit"], whole["event"]
    control, treated = found["groups"]
    fields = ("estimate", "error", "lower", "upper")
    rows: page.Rows = [
        [
            name,
            time,
            group["at_risk"][k],
            group["weighted_at_risk"][k],
            *(group[curve][f][k] for curve in ("survival", "crude") for f in fields),
        ]
        for name, group in found["groups"].items()
        for k, time in enumerate(group["time"])
    ]
    four = ("", "_se", "_lower", "_upper")
    heads = ["group", f"time_{unit}", "at_risk", "weighted_at_risk", *(f"{curve}{end}" for curve in ("survival", "crude") for end in four)]
    page.write_table(run / "curves.tsv", heads, rows)
    svg = curve_plot(found, unit, event)
    write_whole(run / "curves.svg", svg.encode())
    tests: page.Rows = [
        [f"mean to {row['horizon']:g} {unit}, {'weighted' if row['weighted'] else 'crude'}: {treated} less {control}",
         *(row[key] for key in ("estimate", "lower", "upper", "p"))] for row in found["differences"]
    ]  # fmt: skip
    if (ratio := found["hazard_ratio"]) is not None:
        values = [None if ratio[key] is None else page.exponent(ratio[key]) for key in ("estimate", "lower", "upper")]
        tests.append([f"hazard ratio of {event}, weighted: {treated} to {control}", *values, ratio["p"]])
    tests.append(["log-rank, weighted (robust score)", None, None, None, found["log_rank"]["p"]])
    page.write_table(run / "tests.tsv", ["effect", "estimate", "lower", "upper", "p"], tests)
    shown: page.Rows = [[row[0], *(page.number(v) for v in row[1:4]), page.p_value(row[4])] for row in tests]
    arms: page.Rows = [
        [name, g["persons"], g["events"], page.number(g["effective"]),
         *(f"{page.number(mean)} ({page.number(error, 3)})" for mean, error in g["restricted_mean"].values())]
        for name, g in found["groups"].items()
    ]  # fmt: skip
    level = f"{100 * found['level']:g} %"
    horizons = [f"weighted mean to {h} (SE)" for h in next(iter(found["groups"].values()))["restricted_mean"]]
    grid = page.grid_sentence(found["grid"], unit, len(study.times.edges)) + coarse_words(found) + page.unknown_sentence(found["groups"])
    text = (
        f"{treated} and {control} in {OF[found['estimand']]} ({found['estimand'].upper()} weights), "
        f"{sum(found['sites'].values())} persons; intervals of {level}. {grid} Standard errors are robust and take the weights as known. "
        "The persons at risk below the curves are not weighted. The comparison is of treatments alone only if every common cause of "
        f"treatment and {event} is in the propensity model: {', '.join(outcome_forms.covariates(study))}."
    )
    return [
        f"<p>{html.escape(text)}</p>", svg,
        page.html_table(["effect", "estimate", "lower", "upper", "p"], shown, "Effect"),
        page.html_table(["treatment", "persons", event, "effective persons", *horizons], arms, "Treatments"),
        *model_parts(run, found, (control, treated)),
    ]  # fmt: skip
