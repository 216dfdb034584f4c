"""The report of an analysis of outcomes: survival curves with the persons at risk, regressions with forest plots, treatments, Table 1.

    write_page(out, render_outcomes(run))        # fedml report RUN, of a run of `fedml survival`, `fedml glm` or `fedml describe`

All is from the run's folder: the log and ``outcomes.json``, whose numbers are in the page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedml.errors import InputError
from fedml.experiments.report import outcome_parts as parts_of
from fedml.experiments.report import outcome_tables as tables
from fedml.experiments.report import words
from fedml.experiments.report.markup import Cell, Number, answered, paragraph, section, table, terms
from fedml.experiments.report.page import page
from fedml.experiments.report.pointers import pointer
from fedml.runs.events import NO_END, End, Outcomes, Start
from fedml.runs.log import OUTCOMES_JSON, last, read_log, study_of
from fedml.runs.software import words as code_words
from fedml.study.study import Study

Found = Mapping[str, Any]
_DIGITS = 8  # of a number in the page
_NAMES = {"survival": "Survival", "glm": "Regression", "describe": "Table of persons"}


def render_outcomes(run: Path) -> str:
    """The page as HTML.

    Raises:
        InputError: this is not the folder of a finished analysis of outcomes, or a file of it is missing or cannot be read.
    """
    study, start, event, end = _read(run)
    try:
        results = json.loads((run / OUTCOMES_JSON).read_bytes())
        found = _figures(start, event, end, results)
        parts = [_short(study, found, start)]
        parts += [build(study, found) for key, build in parts_of.PARTS.items() if key in found]
        parts += [_left(start), _check(start, found)]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{run / OUTCOMES_JSON}: cannot be read ({error!r}); give the unchanged folder of a run.") from error
    question = " ".join(study.study.question.split()) or study.study.name
    foot = paragraph(f"Written by fedml report from the run {start.run_id}; colours: Okabe and Ito 2008.")
    head = [f"Report of an analysis of outcomes · {start.run_id}", question, start.run_id]
    return page(f"{study.study.name}: report of an analysis of outcomes", head, [part for part in parts if part], foot, found)


def _read(run: Path) -> tuple[Study, Start, Outcomes, End]:
    try:
        study, events = study_of(run), read_log(run, strict=True)[0]
    except (OSError, ValueError) as error:
        raise InputError(f"{run}: is not a run's folder ({error}); give a folder from fedml-runs.") from error
    start = next((e for e in reversed(events) if isinstance(e, Start)), None)
    event = next((e for e in reversed(events) if isinstance(e, Outcomes)), None)
    end = last(events, NO_END)
    if start is None or event is None:
        raise InputError(f"{run}: has no results (status {end.status}); give the folder of a finished analysis of outcomes.")
    return study, start, event, end


def _figures(start: Start, event: Outcomes, end: End, results: Found) -> dict[str, Any]:
    """All numbers of the page: those of outcomes.json, and of the run."""
    out = {key: value for key, value in results.items() if key not in ("persons", "limits", "values")}
    if "curves" in out:
        out["curves"] = {**out["curves"], "groups": {n: _group(g) for n, g in out["curves"]["groups"].items()}}
    if "weighted_curves" in out:
        own = out["weighted_curves"]
        out["weighted_curves"] = {**own, "groups": {n: {**g, "restricted_mean": _means(g)} for n, g in own["groups"].items()}}
    for key in ("cox", "glm"):
        if key in out:
            out[key] = {**out[key], "coefficients": [{**row, "ratio": tables.ratio_of(out[key], row)} for row in out[key]["coefficients"]]}
    run = {"id": start.run_id, "engine": start.engine, "study_sha256": start.study_sha256, "seed": start.seed, "status": end.status}
    shown: dict[str, Any] = _plain({
        **out, "run": run, "analysis": event.analysis, "persons": dict(event.persons), "all": sum(event.persons.values()),
        "bytes": sum(row["bytes_in"] for row in event.sites.values()), "seconds": event.seconds,
    })  # fmt: skip
    return shown


def _group(group: Found) -> dict[str, Any]:
    """A group's curve as a plot needs it, and its quantiles and means as estimates with limits."""
    out = {key: group[key] for key in ("time", "at_risk", "persons", "events", "person_time") if key in group}
    out["survival"] = group["survival"]
    out["quantiles"] = {q: _three(value, "log-log") for q, value in group["quantiles"].items()}
    out["restricted_mean"] = _means(group)
    if "follow_up" in group:
        out["follow_up"] = _three(group["follow_up"], "reverse Kaplan-Meier")
    return out


def _means(group: Found) -> dict[str, Any]:
    return {h: _by_error(*value) for h, value in group["restricted_mean"].items()}


def _three(value: Any, method: str) -> dict[str, Any]:
    middle, low, high = value
    return tables.estimate(middle, low, high, method)


def _by_error(mean: float | None, error: float | None) -> dict[str, Any]:
    if mean is None or error is None:
        return tables.estimate(mean, None, None)
    return tables.estimate(mean, mean - 1.959964 * error, mean + 1.959964 * error)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _short(study: Study, found: Found, start: Start) -> str:
    sites = words.count(len(found["persons"]), "site")
    asked = f"{_NAMES[found['analysis']]} over {found['all']:,} persons of {sites}, as if all persons were in one table."
    out = [text for key, say in parts_of.SENTENCES.items() if key in found for text in say(study, found)]
    trust = (
        "One trusts whoever ran this on one machine with the data of all sites."
        if start.engine != "deployment"
        else "One trusts each site for its own sums, and the coordinator for the tables; with the bundle, the tables follow from the sums."
    )
    limits = (
        "Persons with a missing column of the analysis are not in it. An association is not an effect: what is not adjusted for stays "
        "in it. Nobody else than these persons was looked at."
    )
    rows = [("What was asked", [asked]), ("What came out", out), ("What it does not show", [limits]),
            ("What it cost in privacy", ["No noise was added. Exact sums over as many persons as the sites ask for left the sites."]),
            ("Whom one trusts", [trust])]  # fmt: skip
    cards = [
        ("persons", f"{found['all']:,}", sites),
        *(card for key, make in parts_of.CARDS.items() if key in found for card in make(found)),
    ]
    items = "".join(
        f'<li><span class="what">{a}</span><span class="value">{b}</span><span class="more">{c}</span></li>' for a, b, c in cards
    )
    return section("answer", "In short", f'<ul class="cards">{items}</ul>', answered(rows))


def _left(start: Start) -> str:
    text = (
        "Sums over persons, step by step: counts of who enters, has an event and leaves in each interval; sums of covariates; gradients "
        "and matrices of a regression. No row, no exact time and no person's own value. Each site's gate checked each step; the sums are "
        "in the run's folder, and whoever gets its bundle sees what the coordinator saw."
        if start.engine == "deployment"
        else "The run was on one machine with the data of all sites, so nothing left anything; its folder has the sums that would have."
    )
    return section("left", "What left the sites", paragraph(text))


def _check(start: Start, found: Found) -> str:
    rows: list[list[Cell]] = [[site, Number(pointer("persons", site), "count")] for site in found["persons"]]
    rows.append(["all sites", Number("/all", "count")])
    about = [("Run", f"{start.run_id}, engine {start.engine}, status {found['run']['status']}"), ("Study, SHA-256", start.study_sha256),
             ("Seed", str(start.seed)), ("Code", "not recorded" if start.code is None else code_words(start.code))]  # fmt: skip
    text = (
        "fedml bundle writes this run with the sums of its sites to one signed file. fedml verify computes the analysis again from them, "
        "offline, and compares every number of the tables and of this page."
    )
    return section("check", "How to check it", paragraph(text), table(found, "Persons by site", ["site", "persons"], rows), terms(about))
