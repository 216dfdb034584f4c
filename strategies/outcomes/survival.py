"""The server's part of ``fedml survival``: counts on the sites' common grid -> curves and tests; sums -> Cox regression.

    grid (each site in turn) -> times -> curves.tsv, tests.tsv; moments -> hazard, score ... -> cox.tsv

All results are exact for times rounded up to the grid that the sites agreed on, which the record states.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedml.analytics import curves, outcome_forms
from fedml.analytics.curves import LifeTable
from fedml.runs.log import OUTCOMES_JSON, write_whole
from fedml.strategies.outcomes import cox, page
from fedml.strategies.outcomes.treated import compare_survival
from fedml.strategies.outcomes.work import Floats, Work, finish, plain
from fedml.study.study import Study
from fedml.wire.records import Phase

CURVES, COX = 0, 1


def analyse_survival(work: Work) -> Path:
    """Runs the analysis and writes its tables to the run's folder; returns the path of all results.

    Raises:
        RunError: a site stopped answering, sent numbers that contradict each other, or a model cannot be estimated.
    """
    study, run = work.study, work.run
    if study.treatment is not None:
        return compare_survival(work)
    found: dict[str, Any] = {"unit": study.times.time_unit, "event": study.cohort.time_to_event.names[0]}
    edges = np.ones(len(study.times.edges), np.uint8)
    persons: dict[str, int] = {}
    if study.times.curves is not None:
        edges = work.edges(CURVES, edges)
        found["curves"], persons = _curves(work, edges)
    if study.times.cox is not None:
        edges = work.edges(COX, edges)
        found["cox"] = cox.fit(work, edges)
        found["cox"]["grid"] = cox.grid_of(study, edges)
        persons = found["cox"]["persons"]
    found = plain(found)
    write_whole(run / OUTCOMES_JSON, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    page.write_survival(run, study, found)
    finish(work, "survival", persons, page.summary(found))
    return run / OUTCOMES_JSON


def _curves(work: Work, edges: Any) -> tuple[dict[str, Any], dict[str, int]]:
    study = work.study
    plan, target = study.times.curves, study.cohort.time_to_event
    assert plan is not None  # noqa: S101
    times = np.array(study.times.edges)[np.flatnonzero(edges)]
    replies = {site: sums["counts"] for site, sums in work.take(Phase.TIMES, {"edges": edges}).items()}
    for site, counts in replies.items():
        cox.check_counts(site, counts)
        counts = counts.copy()
        counts[:, -1] -= counts[:, 1:-1].sum(1)  # of those who leave, who is censored
        replies[site] = counts
    labels = [str(level) for level in outcome_forms.groups_of(study, "survival.curves")] if plan.groups else ["all"]
    total = np.sum(list(replies.values()), axis=0)
    tables = [_table(counts) for counts in total]
    everyone = _table(total.sum(0))
    own = {site: [_table(counts) for counts in groups] for site, groups in replies.items()}
    persons = {site: int(counts[:, 0].sum()) for site, counts in replies.items()}
    shown = dict(zip(labels, tables, strict=True)) | ({"all": everyone} if plan.groups else {})
    groups = {name: _group(table, times, study, level=plan.level, quantiles=plan.quantiles) for name, table in shown.items()}
    for name, counts in zip(shown, [*total, total.sum(0)], strict=False):
        groups[name] |= _follow_up(counts, times)
    found: dict[str, Any] = {
        "grid": cox.grid_of(study, edges), "column": plan.groups, "level": plan.level, "groups": groups, "causes": list(target.names),
        "sites": {site: {label: _counted(counts[g], times) for g, label in enumerate(labels)} for site, counts in replies.items()},
    }  # fmt: skip
    if plan.groups:
        found["log_rank"] = curves.log_rank([[_of_interest(table) for table in tables]])
        found["log_rank_by_site"] = curves.log_rank([[_of_interest(table) for table in groups] for groups in own.values()])
        found["differences"] = _differences(shown, labels, times, study, plan.level)
    return found, persons


def _table(counts: Any) -> LifeTable:
    return curves.life_table(counts[0], counts[1:-1], counts[-1])


def _of_interest(table: LifeTable) -> LifeTable:
    """With the events of interest alone: who has a competing event leaves as who is censored (cause-specific hazards)."""
    return LifeTable(table.at_risk, table.causes[0], table.causes[:1])


def _counted(counts: Any, times: Floats) -> dict[str, Any]:
    table = _table(counts)
    width = np.diff(times, prepend=0.0)
    return {"persons": int(counts[0].sum()), "events": int(table.causes[0].sum()), "person_time": float((table.at_risk * width).sum())}


def _follow_up(counts: Any, times: Floats) -> dict[str, Any]:
    """Persons, events, person-time, and the median follow-up: reverse Kaplan-Meier, in which the end of observation is the event
    (Schemper and Smith 1996, Control Clin Trials 17:343). A person who is censored in an interval leaves behind those with an event."""
    entries, censored = counts[0], counts[-1]
    events = counts[1:-1].sum(0)
    table = curves.life_table(entries, censored[None], events)
    # At a time of both, events come first: who has one is not at risk of being censored then.
    turned = LifeTable(table.at_risk - events, table.events, table.causes)
    curve = curves.kaplan_meier(turned)
    return {**_counted(counts, times), "follow_up": curves.quantile(curve, times, 0.5)}


def _group(table: LifeTable, times: Floats, study: Study, *, level: float, quantiles: tuple[float, ...]) -> dict[str, Any]:
    horizons = study.times.horizons
    out: dict[str, Any] = {
        "time": times, "at_risk": table.at_risk, "causes": table.causes, "survival": curves.kaplan_meier(table, level),
        "hazard": curves.nelson_aalen(_of_interest(table), level),
        "restricted_mean": {f"{h:g}": curves.restricted_mean(table, times, h) for h in horizons},
    }  # fmt: skip
    if len(table.causes) > 1:
        out["incidence"] = {name: curves.aalen_johansen(table, at, level) for at, name in enumerate(study.cohort.time_to_event.names)}
    out["quantiles"] = {f"{q:g}": curves.quantile(curves.kaplan_meier(table, level), times, q) for q in quantiles}
    return out


def _differences(shown: dict[str, LifeTable], labels: list[str], times: Floats, study: Study, level: float) -> list[dict[str, Any]]:
    """The restricted mean of each group less that of the first, at each horizon."""
    rows = []
    for horizon in study.times.horizons:
        first = curves.restricted_mean(shown[labels[0]], times, horizon)
        for label in labels[1:]:
            if not (shown[labels[0]].at_risk.any() and shown[label].at_risk.any()):
                continue
            gap, low, high, p = curves.difference(curves.restricted_mean(shown[label], times, horizon), first, level)
            rows.append({"horizon": horizon, "group": label, "less": labels[0], "estimate": gap, "lower": low, "upper": high, "p": p})
    return rows
