"""Who was in the run: the flow of persons, Table 1 with missing values by site, the balance of classes, a remark on the sample's size.

``participants``, ``table_one`` and ``sample`` give numbers for ``figures``; ``section_of`` gives the section of the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedml.experiments.report import words
from fedml.experiments.report.flow_plot import flow_plot
from fedml.experiments.report.markup import Cell, Number, paragraph, picture, section, table, written
from fedml.experiments.report.pointers import pointer
from fedml.experiments.runs.record import Record
from fedml.learning.sample_size import MARGIN, NAGELKERKE, SHRINKAGE, smallest
from fedml.study.section import PARTS
from fedml.study.study import Study
from fedml.tasks.registry import make_task

Found = Mapping[str, Any]
ALL = "all sites"
MOST_SITES = 12  # with a column of their own in Table 1
_REGRESSED = ("clinical", "omics", "radiomics")  # inputs whose columns are the parameters of a regression


def participants(record: Record) -> dict[str, Any]:
    """Sites and persons at each step from the roster to the measures. Persons of a part are null if they are not counted."""
    study, final = record.study, record.final.metrics
    agreed = [s for s in record.sites if s.name in record.agreed.sites]
    training = [s for s in agreed if s.name not in study.federation.evaluate_only]
    two = len(make_task(study).person_classes) == 2
    parts = {p: [s.persons[p] for s in training if p in s.persons] for p in PARTS}
    excluded: dict[str, int] = {}
    for reason, n in ((reason, n) for s in agreed for reason, n in (s.quarantined or {}).items()):
        excluded[reason] = -1 if n < 0 or excluded.get(reason, 0) < 0 else excluded.get(reason, 0) + n  # a few stay a few
    part = next((p for p in ("test", "val") if p in final), "")
    return {
        "roster": len(record.sites),
        "agreed": len(agreed),
        "absent": {s.name: ", ".join(s.missed) or "no-answer" for s in record.sites if s not in agreed} if record.agreed.came else {},
        "persons": {p: sum(map(sum, rows)) if rows else None for p, rows in parts.items()},
        "with": {p: sum(row[1] for row in rows) if two and rows else None for p, rows in parts.items()},
        "stated": sum(study.privacy.persons.values()) if study.privacy.unit == "patient" and study.privacy.persons else None,
        "excluded": excluded,
        "part": part,
        "measured": final[part]["all"].get("persons") if part else None,
        "external": final["external"]["all"].get("persons") if "external" in final else None,
    }


def table_one(record: Record) -> dict[str, Any]:
    """Site (``all sites`` last) -> column -> training persons with a value, those without, mean and standard deviation."""
    told, out = record.agreed.columns or {}, dict[str, Any]()
    for site in record.sites:
        persons = site.count("train")
        if site.name in told and persons:
            out[site.name] = {
                name: {"mean": row["mean"], "sd": row["sd"], "known": row["known"], "missing": persons - row["known"]}
                for name, row in told[site.name].items()
            }
    names = list(next(iter(out.values()), dict[str, Any]()))
    return {**out, ALL: {name: _together([rows[name] for rows in out.values()]) for name in names}} if out else {}


def _together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of all sites' persons from those of each; null where a site with values does not tell them."""
    known, missing = sum(r["known"] for r in rows), sum(r["missing"] for r in rows)
    some = [r for r in rows if r["known"]]
    if not known or any(r["mean"] is None for r in some):
        return {"mean": None, "sd": None, "known": known, "missing": missing}
    mean = sum(r["known"] * r["mean"] for r in some) / known
    square = sum(r["known"] * (r["sd"] ** 2 + r["mean"] ** 2) for r in some) / known
    return {"mean": mean, "sd": math.sqrt(max(square - mean**2, 0.0)), "known": known, "missing": missing}


def sample(record: Record) -> dict[str, Any] | None:
    """What a regression on the same columns would have needed (``fedml.learning.sample_size``); None where the formula does not apply."""
    parameters = candidates(record.study)
    two = len(make_task(record.study).person_classes) == 2
    sums = [s.persons["train"] for s in record.sites if s.name in record.agreed.sites and s.count("train")]
    if not two or not parameters or not sums or record.start.job == "evaluate":
        return None
    persons, cases = sum(map(sum, sums)), sum(row[1] for row in sums)
    if not 0 < cases < persons:
        return None
    needed = smallest(parameters, cases / persons)
    return {
        "parameters": parameters, "persons": persons, "cases": cases, "share": cases / persons,
        "needed": needed.persons, "needed_cases": needed.cases, "because": needed.because,
        "per_parameter": min(cases, persons - cases) / parameters,
    }  # fmt: skip


def candidates(study: Study) -> int:
    """Parameters of a regression on the study's columns: one for a number, one less than its codes for a category; 0 if an input has no
    columns, such as an image."""
    if any(name not in _REGRESSED for name in study.cohort.inputs):
        return 0
    found = 0
    for name in study.cohort.inputs:
        spec = getattr(study.cohort, name)
        codes = getattr(spec, "categories", {})
        found += sum(len(codes[column]) - 1 if column in codes else 1 for column in spec.columns)
    return found


# --- the page


def section_of(record: Record, found: Found) -> str:
    """The section "Participants"."""
    if not record.agreed.came:
        return ""
    flow = found["participants"]
    body = [picture(flow_plot(flow, found["classes"], record.study.cohort.outcome), "Flow of sites and persons", _flow_note(record, flow))]
    body += [_balance(record, found), _table_one(record, found), _sample(record, found)]
    return section("participants", "Participants", *body)


def _flow_note(record: Record, flow: Mapping[str, Any]) -> str:
    text = "Persons before the sites' files were written, and why some were left out there, are not in the record."
    if flow["excluded"]:
        text += " Excluded: persons with an image that the site did not use, by reason; a few: fewer than the site tells."
    if flow["persons"]["train"] is None and flow["stated"] is not None:
        text += " With privacy of a patient, training persons are not counted; the study states about how many there are."
    return text


def _balance(record: Record, found: Found) -> str:
    """Persons of each class, by part and site, and their share."""
    classes, shares = found["classes"], found["balance"]
    if not shares:
        return ""
    rows: list[list[Cell]] = []
    parts = [p for p in ("train", "val", "test") if any(p in shares[s] for s in shares)]
    for site in shares:
        cells: list[Cell] = [site]
        for part in parts:
            for k in range(1, len(classes)) if len(classes) == 2 else range(len(classes)):
                at = ("balance", site, part, k)
                cells += [Number(pointer(*at, "persons"), "count"), Number(pointer(*at, "share"), "percent")]
        rows.append(cells)
    heads = [""]
    for part in parts:
        for name in classes[1:] if len(classes) == 2 else classes:
            heads += [f"{words.PARTS[part]}: {name}", "share"]
    note = "Persons of the class, and their share of the part's persons at the site."
    facts = make_task(record.study).words.balance
    return table(
        found, f"Balance of classes of {record.study.cohort.outcome}", heads, rows, f"{note} {facts}" if isinstance(facts, str) else note
    )


def balance(record: Record) -> dict[str, Any]:
    """Site (``all sites`` last) -> part -> class -> persons and their share of the part; empty if persons have no classes."""
    if not make_task(record.study).person_classes:
        return {}
    out: dict[str, dict[str, Any]] = {}
    for site in record.sites:
        rows = {p: row for p, row in site.persons.items() if sum(row)}
        if rows:
            out[site.name] = {p: _shares(row) for p, row in rows.items()}
    if len(out) > 1:
        every = {p: [rows[p] for rows in (s.persons for s in record.sites) if p in rows] for p in PARTS}
        sums = {p: [sum(column) for column in zip(*rows, strict=True)] for p, rows in every.items() if rows}
        out[ALL] = {p: _shares(row) for p, row in sums.items() if sum(row)}
    return out


def _shares(row: list[int]) -> list[dict[str, Any]]:
    return [{"persons": n, "share": n / sum(row)} for n in row]


def _table_one(record: Record, found: Found) -> str:
    columns = found["columns"]
    if not columns:
        return f'<h3 id="table-1">Table 1</h3>{paragraph(_untold(record))}'
    sites = list(columns) if len(columns) <= MOST_SITES + 1 else [ALL]
    names = list(columns[ALL])
    rows: list[list[Cell]] = [["persons", *(Number(pointer("sites", s, "persons", "train", "persons"), "count") for s in sites if s != ALL),
                               Number("/participants/persons/train", "count")]]  # fmt: skip
    rows += [[name, *(Number(pointer("columns", s, name), "moments") for s in sites)] for name in names]
    note = (
        "Mean (standard deviation) of the persons with a value, and how many have none. Of a column of 0 and 1 the mean is the share of 1. "
        "No mean: codes of categories, or too few persons with one of two values. Rounded to four digits, as in the record. At a site "
        "whose "
        "data are not public, gaps of fewer persons than min_count were filled before the sums, so they are not counted as missing. Test "
        "persons' columns are not in the record: no site sends sums of them."
    )
    rest = [s for s in record.agreed.sites if s not in columns and s in record.study.federation.training]
    note += f" Not told by {words.join(rest)}." if rest else ""
    return f'<div id="table-1">{table(found, "Table 1: training persons by site", ["", *sites], rows, note)}</div>'


def _untold(record: Record) -> str:
    if record.study.privacy.unit != "none":
        return (
            "Not told: with differential privacy no exact sum of a column leaves a site, so the record has no means or missing values "
            "by site."
        )
    if "clinical" not in record.study.cohort.inputs and not record.study.traits.standardised:
        return "Not told: the study reads no table of columns, and sites send no other characteristics of persons."
    return "Not told: the record has no sums of columns by site."


def _sample(record: Record, found: Found) -> str:
    return f"<h3>Size of the sample</h3>{paragraph(*sample_words(record, found))}"


def sample_words(record: Record, found: Found) -> list[str]:
    """The remark on the sample's size as sentences."""
    known = found["sample"]
    if known is None:
        if record.start.job == "evaluate":
            return ["Nothing was trained, so the size of the training sample is that of the model's own record."]
        return [
            "No remark: the formula of Riley et al. 2020 (BMJ 368:m441) is for an outcome of two classes and a regression on columns of a "
            "table, with counted training persons; it does not apply to this run."
        ]
    share, needed = written(known["share"], "percent"), words.count(known["needed"], "training person")
    criterion = {
        "shrinkage": f"so that effects shrink by no more than {100 * (1 - SHRINKAGE):.0f} %",
        "optimism": f"so that the explained variation is too optimistic by no more than {MARGIN:g}",
        "share": f"so that the share with the outcome is known within {MARGIN:g}",
    }[known["because"]]
    enough = "as many or more" if known["persons"] >= known["needed"] else "fewer"
    return [
        f"By the criteria of Riley et al. 2020 (BMJ 368:m441), a regression with the {known['parameters']:,} parameters of these "
        "columns, for "
        f"an outcome that {share} have, needs {needed} ({known['needed_cases']:,} with the outcome), {criterion}, if it is expected to "
        f"explain {100 * NAGELKERKE:.0f} % of the variation that could be explained.",
        f"This run had {enough}: {known['persons']:,} ({known['cases']:,} with the outcome), {written(known['per_parameter'])} persons "
        "of the "
        "rarer class for each parameter.",
        "Columns that mark missing values, hidden layers and penalties are not in the formula.",
    ]
