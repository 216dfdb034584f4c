"""Several finished runs of one question on one page: what differs between their studies, and each run's figures next to the others'.

    write_page(out, render_side_by_side([read_record(run) for run in runs]))     # fedml report --compare RUN RUN ...

The figures are those of each run's own report. Whether a difference is more than chance cannot be seen from two intervals: ``fedml compare
RUN RUN`` tests it on the same persons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedml.errors import InputError
from fedml.experiments.report import plots, words
from fedml.experiments.report.markup import Cell, Number, paragraph, picture, section, table
from fedml.experiments.report.page import figures, page
from fedml.experiments.report.pointers import pointer
from fedml.experiments.runs.record import Record
from fedml.tasks.registry import make_task

MOST = 12  # runs
_MOST_KEYS = 40  # that differ, in the table


def render_side_by_side(records: Sequence[Record]) -> str:
    """The page.

    Raises:
        InputError: fewer than two runs or more than ``MOST``, one twice, another task or outcome, or a run without a result.
    """
    _check(records)
    found: dict[str, Any] = {"runs": {record.run_id: figures(record) for record in records}}
    found["persons"] = _same_persons(found["runs"])
    first = records[0]
    parts = [_figures(records, found), _by_site(records, found), _differences(records), _how(records)]
    question = " ".join(first.study.study.question.split()) or first.study.study.name
    names = ", ".join(found["runs"])
    foot = paragraph(f"Written by fedml report --compare from the runs {names}; colours: Okabe and Ito 2008.")
    head = [f"{len(records)} runs side by side", question, f"{len(records)} runs of {first.study.study.name}"]
    return page(f"{first.study.study.name}: {len(records)} runs side by side", head, parts, foot, found)


def _check(records: Sequence[Record]) -> None:
    if not 2 <= len(records) <= MOST:
        raise InputError(f"--compare takes 2 to {MOST} runs, not {len(records)}; give the folders of the runs after it.")
    names = [record.run_id for record in records]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise InputError(f"{twice}: is given twice; give each run once.")
    first = records[0].study
    for record in records:
        own = record.study
        for key, a, b in (("[model] task", first.model.task, own.model.task), ("[cohort] target", first.cohort.outcome, own.cohort.outcome),
                          ("[cohort] classes", first.cohort.classes, own.cohort.classes)):  # fmt: skip
            if a != b:
                raise InputError(f"{record.run}: has {key} {b}, {records[0].run} has {a}; compare runs that answer one question.")
        if not record.final.came:
            raise InputError(f"{record.run}: has no result (status {record.status}); give runs that finished.")


def _same_persons(runs: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether every run measured as many persons of each class at each site: where not, they were others."""
    measured = [
        {site: (row["persons"], tuple(row["classes"] or ())) for site, row in found["scores"]["sites"].items() if row}
        for found in runs.values()
    ]
    return all(one == measured[0] for one in measured)


def _figures(records: Sequence[Record], found: Mapping[str, Any]) -> str:
    measure, task = found["runs"][records[0].run_id]["measure"], make_task(records[0].study)
    described = task.described(measure)
    rows: list[list[Cell]] = []
    plotted: list[plots.Row] = []
    for k, record in enumerate(records, start=1):
        own, at = found["runs"][record.run_id], ("runs", record.run_id)
        score = own["scores"]["all"]
        worst = own["worst"]
        cells: list[Cell] = [f"{k}", record.study.strategy.name, Number(pointer(*at, "run", "seed"), "plain"),
                             Number(pointer(*at, "run", "rounds"), "count"), Number(pointer(*at, "scores", "all", "persons"), "count"),
                             Number(pointer(*at, "scores", "all", "metrics", measure), "estimate")]  # fmt: skip
        cells += [worst or "", Number(pointer(*at, "scores", "sites", worst or "", "metrics", measure), "estimate")]
        cells += [Number(pointer(*at, "privacy", "epsilon"), "epsilon") if "epsilon" in own["privacy"] else "none"]
        rows.append(cells)
        if score:
            e = score["metrics"][measure]
            plotted.append(plots.Row(f"run {k}", score["persons"], e["value"], e["low"], e["high"]))
    heads = ["run", "strategy", "seed", "rounds", "persons", described.printed, "worst site", "its value", "epsilon"]
    alt = f"{described.printed} of each run: " + "; ".join(
        f"run {k} {words.interval_of(found['runs'][r.run_id]['scores']['all']['metrics'][measure])}"
        for k, r in enumerate(records, start=1)
        if found["runs"][r.run_id]["scores"]["all"]
    )  # fmt: skip
    svg = plots.forest(plotted, f"{described.printed}, with 95 % interval", f"{alt}.", bounds=described.bounds) if plotted else ""
    note = (
        "Intervals are over persons, each run for itself. Runs that measured the same persons have results that go together, so "
        "overlapping "
        "intervals do not show that runs are alike: fedml compare RUN RUN gives the difference with its own interval."
    )
    same = (
        "The runs measured as many persons of each class at each site; their record does not say whether they are the same ones."
        if found["persons"]
        else "The runs did not measure the same persons: part of a difference is a difference of persons."
    )
    listed = "".join(paragraph(f"Run {k}: {record.run_id}") for k, record in enumerate(records, start=1))
    drawn = picture(svg, f"{described.printed} by run", "Square: value; bar: 95 % interval.") if svg else ""
    return section("runs", "The runs", listed, drawn, table(found, "Results on held-out persons", heads, rows, note), paragraph(same))


def _by_site(records: Sequence[Record], found: Mapping[str, Any]) -> str:
    measure = found["runs"][records[0].run_id]["measure"]
    sites = list(dict.fromkeys(site for own in found["runs"].values() for site in own["scores"]["sites"]))
    rows: list[list[Cell]] = [
        [site, *(Number(pointer("runs", r.run_id, "scores", "sites", site, "metrics", measure), "estimate") for r in records)]
        for site in sites
    ]
    heads = ["site", *(f"run {k}" for k in range(1, len(records) + 1))]
    return section("sites", "By site", table(found, f"{words.named(records[0], measure)} by site and run", heads, rows))


def _differences(records: Sequence[Record]) -> str:
    """Keys of the studies that are not the same in all runs, with the value of each run."""
    flat = [_flat("", record.study.model_dump(mode="json")) for record in records]
    keys = [key for key in dict.fromkeys(k for own in flat for k in own) if len({own.get(key) for own in flat}) > 1]
    if not keys:
        return section("differences", "What differs", paragraph("Nothing: the runs are of one study, word for word."))
    text = [
        f"{key}: {'; '.join(f'run {k} {own.get(key, chr(8211))}' for k, own in enumerate(flat, start=1))}." for key in keys[:_MOST_KEYS]
    ]
    more = [f"{len(keys) - _MOST_KEYS} more keys differ."] if len(keys) > _MOST_KEYS else []
    return section("differences", "What differs", paragraph("Keys of the studies:"), *(paragraph(line) for line in [*text, *more]))


def _flat(place: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _flat(f"{place}.{key}".lstrip("."), inner).items()}
    return {place: str(value)}


def _how(records: Sequence[Record]) -> str:
    text = (
        "Each figure is that of the run's own report (fedml report RUN), from the run's folder alone. Runs that are shown here were "
        "chosen by "
        "whoever wrote this page: others may exist."
    )
    return section("check", "How to check it", paragraph(text))
