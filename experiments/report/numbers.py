"""All numbers of a report as one JSON value, computed from the record alone.

    found = figures(record)
    resolve(found, "/scores/sites/cleveland/metrics/auroc/value")

Measures of the last evaluation, their intervals, curves and calibration are recomputed from the sites' counts. A run without counts has
the measures of its log, without intervals. Numbers have six significant digits; an undefined number is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedml.errors import Reason
from fedml.experiments.checklists.facts import held_out
from fedml.experiments.report import persons
from fedml.experiments.report.pointers import pointer, resolve
from fedml.experiments.report.utility import utility
from fedml.experiments.runs.record import Record, SiteRecord
from fedml.learning.calibration import calibration, reliability, roc
from fedml.runs.events import Round, SiteRow
from fedml.study.section import PARTS
from fedml.tasks import across_sites
from fedml.tasks.classification_counts import noised as is_noised
from fedml.tasks.counts import add_counts
from fedml.tasks.few import few_notes, withheld
from fedml.tasks.interval_tools import Interval
from fedml.tasks.intervals import interval
from fedml.tasks.lost import lost_notes
from fedml.tasks.own import NO_INTERVAL
from fedml.tasks.registry import make_task
from fedml.tasks.task import Task

__all__ = ["figures", "pointer", "resolve"]
Counts = dict[str, dict[str, npt.NDArray[Any]]]

MOST_POINTS = 120  # of a learning curve
ROC_POINTS = 100
MOST_CLASSES = 12  # with separate curves


def figures(record: Record) -> dict[str, Any]:
    """All numbers of the report by name; the report shows no other number."""
    task = make_task(record.study)
    part, logged = held_out(record)
    counts = _roster(record, part)
    scores = _scores(record, task, part, logged)
    merged = add_counts(counts.values()) if counts else {}
    noised = record.study.privacy.metrics == "private"
    end, start = record.end, record.start
    found = {
        "run": {
            "id": record.run_id, "status": record.status, "engine": start.engine, "began": start.time,
            "seconds": end.time - start.time if end.came else None, "rounds": len(record.rounds),
            "planned": record.study.federation.rounds, "seed": record.study.study.seed, "study_sha256": record.start.study_sha256,
            "weights_sha256": record.final.weights_sha256 or None,
            "parameters": record.agreed.parameters if record.agreed.came else None,
            **({} if record.final.kept is None else {"kept": record.final.kept}),
            **({"resumed": [{"round": e.round, "status": e.status} for e in record.resumed]} if record.resumed else {}),
        },
        "measure": task.measure, "part": part, "higher": task.higher, "classes": list(task.classes), "scores": scores,
        "worst": _worst(task, scores), "notes": _notes(task, counts, merged), "noised": bool(merged) and noised,
        "sites": {s.name: _site(record, s) for s in record.sites},
        "curves": _curves(record, task.measure), "flow": _flow(record), "privacy": _privacy(record),
    }  # fmt: skip
    found |= {"participants": persons.participants(record), "columns": persons.table_one(record), "balance": persons.balance(record),
              "sample": persons.sample(record)}  # fmt: skip
    if merged and (across := across_sites.plain(task, counts, seed=record.study.study.seed)):
        found["across"] = across
    if "external" in record.final.metrics:
        found["external"] = _external(record, task)
    if task.person_classes and merged:
        found["confusion"] = merged["confusion"].tolist()
    if task.risks and merged:
        by_class = _by_class(merged, counts, len(task.classes)) if not noised else {}
        if by_class and len(task.classes) == 2:
            by_class["1"]["subgroups"] = _calibration_by_subgroup(record)
        found["by_class"] = by_class
        if by_class and len(task.classes) == 2:
            found["utility"] = utility(record, merged, part)
    if task.over_time is not None and merged and (over_time := task.over_time(merged)):
        found["over_time"] = over_time
    rounded: dict[str, Any] = _plain(found)
    return rounded


def _notes(task: Task, counts: Counts, merged: Mapping[str, Any]) -> list[str]:
    persons = float(merged["persons"][0]) if merged else 0.0
    return [*few_notes(counts), *lost_notes(task.scored, counts), *across_sites.notes(task, persons)]


def _plain(value: Any) -> Any:
    """For JSON: six significant digits, NaN as null, infinity as the text "infinite"."""
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else "infinite" if math.isinf(value) else float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value]


def _interval(found: Interval) -> dict[str, Any]:
    return {"value": found.value, "low": found.low, "high": found.high, "method": found.method}


def _roster(record: Record, part: str) -> Counts:
    """Site -> its counts of ``part``, in the order of the roster, because intervals depend on the order."""
    counts = record.counts.get(part, {})
    return {site.name: counts[site.name] for site in record.sites if site.name in counts}


def _scores(record: Record, task: Task, part: str, logged: Mapping[str, Any]) -> dict[str, Any]:
    """ "all", "sites" -> site, "groups" -> label: persons and measures with their intervals; a group that no site reported is null.

    A group's ``reference`` is of all test persons of the ``sites`` that report it, and ``share`` its persons by all test persons."""
    if not part:
        return {"all": None, "sites": {}, "groups": {}}
    counts, groups = _roster(record, part), dict[str, Any]()
    logged_groups = record.final.groups
    for label in (label for labels in record.study.evaluation.labels().values() for label in labels):
        group_counts = _roster(record, f"test@{label}")
        group = logged_groups.get(label)
        row = _score(record, task, list(group_counts.values()), None if group is None else group["all"])
        reporting = [s.name for s in record.sites if s.name in group_counts or (group is not None and s.name in group["sites"])]
        if row is None:
            groups[label] = None
            continue
        same = [counts[site] for site in reporting if site in counts]
        alike = None if len(same) < len(reporting) else _score(record, task, same, None)
        every = sum(float(own["persons"][0]) for own in counts.values())
        groups[label] = {**row, "sites": reporting, "reference": alike, "share": row["persons"] / every if every > 0 else math.nan}
    return {
        "all": _score(record, task, list(counts.values()), logged["all"]),
        "sites": {
            s.name: _score(record, task, [counts[s.name]] if s.name in counts else [], logged["sites"].get(s.name))
            for s in record.sites
            if s.name in _tested(record)
        },
        "groups": groups,
    }


def _tested(record: Record) -> tuple[str, ...]:
    """The sites whose test persons are in the main results: those that train, or all where none does."""
    return record.study.federation.training or record.study.federation.sites


def _external(record: Record, task: Task) -> dict[str, Any]:
    """ "all", "sites" -> site: persons and measures of the sites that do not train."""
    counts, logged = _roster(record, "external"), record.final.metrics["external"]
    sites = {
        name: _score(record, task, [counts[name]] if name in counts else [], logged["sites"].get(name))
        for name in record.study.federation.evaluate_only
    }
    return {"all": _score(record, task, list(counts.values()), logged["all"]), "sites": sites}


def _score(record: Record, task: Task, parts: Sequence[Any], logged: Mapping[str, Any] | None) -> dict[str, Any] | None:
    parts = [p for p in parts if float(p["persons"][0]) or is_noised(p)]  # noise may make persons 0
    if not parts:
        if not logged or not logged.get("persons"):
            return None
        nothing = {"low": math.nan, "high": math.nan, "method": "none: the run kept no counts"}
        measures = {n: {"value": math.nan if v is None else v, **nothing} for n, v in logged.items() if n != "persons"}
        return {"persons": logged["persons"], "classes": None, "metrics": measures}
    total = add_counts(parts)
    values = task.metrics(total)
    if len(values) == 1:
        return None
    # Own measures as the server recorded them: a reader of the record need not run the study's own code.
    own = [measure.partition(":")[2] for measure in record.study.evaluation.metrics]
    recorded = {name: (logged or {}).get(name) for name in own}
    measures = {}
    for name, value in {**values, **recorded}.items():
        if name == "persons":
            continue
        if name in own:
            measures[name] = {
                "value": math.nan if value is None else value,
                "low": math.nan,
                "high": math.nan,
                "method": f"none: {NO_INTERVAL.reason}",
            }
        elif task.described(name).counted:
            measures[name] = {"value": value, "low": math.nan, "high": math.nan, "method": "count"}
        else:
            measures[name] = {**_interval(interval(parts, task, name, seed=record.study.study.seed)), "value": value}
    by_class = total["confusion"].sum(1) if task.person_classes and record.study.privacy.metrics != "private" else None
    if len(parts) == 1 and withheld(parts[0]):  # also the numbers of its classes are rounded
        by_class = None
    return {"persons": values["persons"], "classes": by_class, "metrics": measures}


def _worst(task: Task, scores: Mapping[str, Any]) -> str | None:
    """The site with the worst value of the main measure; None if fewer than two sites have a value."""
    measure = task.measure
    value = {site: row["metrics"][measure]["value"] for site, row in scores["sites"].items() if row and measure in row["metrics"]}
    value = {site: v for site, v in value.items() if not math.isnan(v)}
    if len(value) < 2:
        return None
    return str((min if task.higher else max)(value, key=value.__getitem__))


def _site(record: Record, site: SiteRecord) -> dict[str, Any]:
    persons = {part: {"persons": site.count(part), "classes": site.persons[part]} for part in PARTS if part in site.persons}
    return {
        "agreed": site.name in record.agreed.sites,
        "persons": persons,
        "stated": record.study.privacy.persons.get(site.name),
        "rounds": len(site.rounds),
        "missed": {reason: len(numbers) for reason, numbers in site.missed.items()},
        "evaluated": site.name in record.final.sites,
        "updates": _updates(record, site),
        "excluded": site.quarantined,
        "policy": site.policy,
        "dataset": site.dataset,
        "journal": list(site.journal) if site.journal else None,
    }


def _updates(record: Record, site: SiteRecord) -> dict[str, Any] | None:
    """Lengths of the site's updates over the rounds, and the rounds in which it was left out as implausible; None if none is known."""
    norms = [norm for e in record.rounds if (row := e.sites.get(site.name)) and (norm := row["update_norm"]) is not None]
    left_out = [e.round for e in record.rounds if e.refused.get(site.name) == Reason.IMPLAUSIBLE]
    if not norms and not left_out:
        return None
    lengths = {"first": norms[0], "median": median(norms), "longest": max(norms), "last": norms[-1]} if norms else {}
    return {**{key: lengths.get(key, math.nan) for key in ("first", "median", "longest", "last")}, "implausible": left_out}


def _curves(record: Record, measure: str) -> dict[str, Any]:
    """The measure and the training loss by round, at no more than ``MOST_POINTS`` evenly spaced rounds, including the last."""
    part = next((p for p in ("val", "train") if any(p in e.metrics for e in record.rounds)), "")
    sites = [s.name for s in record.sites if s.name in _tested(record)]
    selected = _thinned([e for e in record.rounds if part and part in e.metrics])
    metrics = [e.metrics[part] for e in selected]
    trained = _thinned(record.rounds)
    return {
        "part": part,
        "rounds": [e.round for e in selected],
        "all": [_or_nan(m["all"].get(measure)) for m in metrics],
        "sites": {s: [_or_nan(m["sites"].get(s, {}).get(measure)) for m in metrics] for s in sites},
        "loss_rounds": [e.round for e in trained],
        "loss": {s: [_or_nan(e.sites[s]["train_loss"] if s in e.sites else None) for e in trained] for s in sites},
    }


def _thinned(events: Sequence[Round]) -> list[Round]:
    if len(events) <= MOST_POINTS:
        return list(events)
    return [events[int(k)] for k in np.linspace(0, len(events) - 1, MOST_POINTS).round()]


def _or_nan(value: Any) -> float:
    return math.nan if value is None else float(value)


def _flow(record: Record) -> dict[str, Any]:
    """Bytes of arrays to and from each site: per round (mean over its rounds), at the last evaluation, and in total."""
    out: dict[str, Any] = {"sites": {}}
    for site in record.sites:
        rows: list[SiteRow] = [e.sites[site.name] for e in record.rounds if site.name in e.sites]
        last = record.final.sites.get(site.name)
        every = [*rows, *([last] if last else [])]
        row: dict[str, Any] = {}
        ways: tuple[tuple[str, Literal["bytes_out", "bytes_in"]], ...] = (("to", "bytes_out"), ("from", "bytes_in"))
        for direction, key in ways:  # the log counts from the server's point of view
            row[direction] = {
                "round": sum(r[key] for r in rows) / len(rows) if rows else math.nan,
                "last": last[key] if last else math.nan,
                "total": sum(r[key] for r in every),
            }
        out["sites"][site.name] = row
    out["total"] = {direction: sum(r[direction]["total"] for r in out["sites"].values()) for direction in ("to", "from")}
    return out


def _privacy(record: Record) -> dict[str, Any]:
    from fedml.privacy.accounting import best_accuracy, events_from_json
    from fedml.privacy.releases import evaluation_events

    event = record.privacy
    if event.unit == "none" or not event.claims:
        return {"unit": record.study.privacy.unit, "stated": event.came}
    worst = max(event.claims.values(), key=lambda c: _inf(c["epsilon"]))
    epsilon = _up(_inf(worst["epsilon"]))
    releases = [events_from_json(claim["events_json"]) for claim in event.claims.values()]
    guess = max(best_accuracy(events) for events in [*releases, evaluation_events(record.study)])
    guess = math.ceil(round(guess * 1000, 6)) / 1000  # rounded up as in print
    return {"unit": event.unit, "stated": True, "adjacency": worst["adjacency"], "epsilon": epsilon, "delta": worst["delta"],
            "epsilon_rdp": _up(_inf(worst["epsilon_rdp"])), "guess": guess, "covers": worst["covers"], "not_covered": worst["not_covered"],
            "claims": {site: _up(_inf(c["epsilon"])) for site, c in event.claims.items() if site}}  # fmt: skip


def _inf(value: float | None) -> float:
    return math.inf if value is None else float(value)


def _up(epsilon: float) -> float:
    """Rounded up as in print, so that it remains an upper bound."""
    from fedml.privacy.claims import rounded_up

    return epsilon if math.isinf(epsilon) else float(rounded_up(epsilon))


def _by_class(merged: Any, counts: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Class number -> curves and calibration of this class against the others; for two classes, only the second."""
    out = {}
    for c in range(1, 2) if classes == 2 else range(min(classes, MOST_CLASSES)):
        groups = reliability(merged, c)
        x, y = roc(merged, c, points=ROC_POINTS)
        rows = zip(groups.predicted, groups.observed, groups.low, groups.high, groups.persons, strict=True)
        out[str(c)] = {
            "roc": {"x": x, "y": y},
            "groups": [dict(zip(("predicted", "observed", "low", "high", "persons"), row, strict=True)) for row in rows],
            "all": _calibration(merged, c),
            "sites": {site: _calibration(local, c) for site, local in counts.items() if float(local["persons"][0]) > 0},
        }
    return out


def _calibration_by_subgroup(record: Record) -> dict[str, Any]:
    """Label -> calibration of two classes, from the counts of the sites that reported the subgroup."""
    labels = [label for labels in record.study.evaluation.labels().values() for label in labels]
    reported = {label: list(_roster(record, f"test@{label}").values()) for label in labels}
    return {label: _calibration(add_counts(counts), 1) for label, counts in reported.items() if counts}


def _calibration(counts: Any, c: int) -> dict[str, Any]:
    found = calibration(counts, c)
    intervals = {name: _interval(getattr(found, name)) for name in ("slope", "intercept", "in_the_large", "expected_observed")}
    return {"persons": found.persons, "cases": found.cases, "saturated": found.saturated, **intervals, "error": found.error}
