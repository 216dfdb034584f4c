"""The sections of the page, in order. Each function takes the record and its figures and returns HTML, or "" if it does not apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from itertools import groupby
from typing import Any

from fedml.contract.disclosure import trust_text
from fedml.experiments.checklists.facts import facts_of
from fedml.experiments.report import examples, over_time, persons, plots, results, utility, words
from fedml.experiments.report.markup import Cell, Number, answered, between, listing, paragraph, picture, section, table, terms, written
from fedml.experiments.report.pointers import pointer
from fedml.experiments.report.results import ALL_SITES
from fedml.experiments.report.words import PARTS, count, named, outcome
from fedml.experiments.runs.record import Record, exchanges
from fedml.strategies.describe import caution, leaves
from fedml.tasks.registry import make_task

Found = Mapping[str, Any]


def top(record: Record, found: Found) -> str:
    """Up to four key figures, five questions with their answers, and links to the other sections."""
    score, (spent, unit) = found["scores"]["all"], words.privacy_short(found)
    cards = []
    if score is not None:
        main = score["metrics"][found["measure"]]
        limits = f"95 %: {between(main)}" if between(main) else "no interval"
        cards.append((named(record, found["measure"]), written(main["value"]), limits))
        if (worst := found["worst"]) is not None:
            row = found["scores"]["sites"][worst]
            cards.append(("worst site", written(row["metrics"][found["measure"]]["value"]), f"{worst}, {count(row['persons'], 'person')}"))
    slope = found.get("by_class", {}).get("1", {}).get("all", {}).get("slope") if len(found["classes"]) == 2 else None
    if slope and slope["value"] is not None:
        cards.append(("calibration slope", written(slope["value"]), f"95 %: {between(slope)}; 1 is perfect"))
    cards.append(("privacy", spent, unit))
    items = "".join(
        f'<li><span class="what">{escape(a)}</span><span class="value">{escape(b)}</span><span class="more">{escape(c)}</span></li>'
        for a, b, c in cards
    )
    came = [*words.answer(record, found), *([*words.external(record, found), words.calibrated(found)] if score else [])]
    answers = [
        ("What was asked", [words.asked(record)]), ("What came out", came),
        ("For whom it fails", words.fails(record, found) if score else []),
        ("What it cost in privacy", words.privacy(found)), ("Whom one trusts", words.trusted(record, found)),
    ]  # fmt: skip
    body = [f'<ul class="cards">{items}</ul>', answered(answers)]
    links = [("asked", "question and methods"), ("participants", "participants"), ("sites", "sites"),
             ("learning", "learning curves"), ("by-site", "results by site"),
             ("external", "external validation"), ("subgroups", "subgroups"),
             ("calibration", "discrimination and calibration"), ("over-time", "survival over time"), ("thresholds", "thresholds"),
             ("examples", "examples"), ("privacy", "privacy"),
             ("flow", "what left the sites"), ("limits", "limits"), ("check", "how to check it")]  # fmt: skip
    present = {"by-site": bool(score), "external": "external" in found,
               "subgroups": bool(score), "calibration": bool(found.get("by_class")),
               "participants": record.agreed.came, "thresholds": bool(found.get("utility")), "over-time": bool(found.get("over_time")),
               "examples": bool(examples.section_of(record, found)),
               "learning": bool(record.rounds)}  # fmt: skip
    linked = "".join(f'<li><a href="#{at}">{escape(text)}</a></li>' for at, text in links if present.get(at, True))
    return section("answer", "In short", *body) + f'<nav aria-label="Sections"><ul>{linked}</ul></nav>'


def question(record: Record, found: Found) -> str:
    """The question and the methods."""
    facts = facts_of(record)
    rows = [("Question", "question"), ("Purpose", "purpose"), ("Outcome", "outcome"), ("Inputs", "inputs"),
            ("Columns", "columns"), ("Preparation", "preprocessing"), ("Missing values", "missing"), ("Model", "model"),
            ("Training", "training"), ("Held-out persons", "split"), ("Model selection", "selection")]  # fmt: skip
    return section("asked", "Question and methods", terms([(a, facts[b].text) for a, b in rows if b in facts]))


def sites(record: Record, found: Found) -> str:
    """Participation of each site: persons, rounds, excluded images."""
    counted = [p for p in PARTS if any(row["persons"].get(p, {}).get("persons") for row in found["sites"].values())]
    parts = [p for p in ("train", "val", "test") if p in counted]
    stated = any(row["stated"] for row in found["sites"].values())
    images = "image" in record.study.cohort.inputs
    heads = ["site", *(f"{PARTS[p]} persons" for p in parts), *(["training persons, as stated"] if stated else [])]
    measured = stated and bool(found["scores"]["sites"])
    heads += [f"{PARTS[found['part']]} persons"] if measured else []
    two = len(make_task(record.study).person_classes) == 2 and parts
    heads += [*([f"with {outcome(record, found)}, {PARTS[parts[-1]]}"] if two else []), "rounds", "missed"]
    heads += [*(["images excluded"] if images else []), *(["epsilon"] if found["privacy"].get("claims") else [])]
    rows: list[list[Cell]] = []
    for name in found["sites"]:
        at = ("sites", name)
        cells: list[Cell] = [name, *(Number(pointer(*at, "persons", p, "persons"), "count") for p in parts)]
        cells += [Number(pointer(*at, "stated"), "count")] if stated else []
        cells += [Number(pointer("scores", *at, "persons"), "count")] if measured else []
        cells += [Number(pointer(*at, "persons", parts[-1], "classes", 1), "count")] if two else []
        cells += [Number(pointer(*at, "rounds"), "count"), Number(pointer(*at, "missed"), "reasons")]
        cells += [Number(pointer(*at, "excluded"), "reasons")] if images else []
        cells += [Number(pointer("privacy", "claims", name), "epsilon")] if found["privacy"].get("claims") else []
        rows.append(cells)
    run, roster = found["run"], record.study.federation
    notes = ["Missed: exchanges, including the evaluation, in which the site did not answer or refused, with the code of the reason."]
    if stated:
        notes.append("Under patient-level privacy, training persons are not counted; the study states their approximate number.")
    took = words.took_part(record, found)
    if record.start.job == "evaluate":
        took = "Nothing was trained: a finished model was tested."
    if roster.evaluate_only:
        took += f" External validation only, without training: {words.join(roster.evaluate_only)}."
    if "kept" in run:
        took += f" The result is the model of round {run['kept']}, which had the best validation metrics."
    if record.resumed:
        took += f" {words.resumed(record)}"
    return section(
        "sites",
        "Sites and participation",
        paragraph(took),
        table(found, "Sites of the roster", heads, rows, " ".join(notes)),
        _grid(record),
        _updates(found),
    )


def _updates(found: Found) -> str:
    """Lengths of the sites' updates; a site whose update was left out as implausible is named. Empty if no length is known."""
    known = {name: row["updates"] for name, row in found["sites"].items() if row["updates"] is not None}
    if not known:
        return ""
    rows: list[list[Cell]] = []
    for name, updates in known.items():
        at = ("sites", name, "updates")
        left_out = ", ".join(map(str, updates["implausible"][:20])) + (", ..." if len(updates["implausible"]) > 20 else "")
        rows.append([name, *(Number(pointer(*at, key), "measure") for key in ("first", "median", "longest", "last")), left_out or "none"])
    heads = ["site", "first round", "median", "longest", "last round", "rounds left out as implausible"]
    note = "Euclidean length over all weights, of the rounds in which the update was used; it grows with a site's local steps."
    named = [f"{name} in {count(len(row['implausible']), 'round')}" for name, row in known.items() if row["implausible"]]
    text = f"Left out as implausible, because a reply cannot be that of its persons or stands out from the others: {'; '.join(named)}."
    return (paragraph(text) if named else "") + table(found, "Lengths of the sites' updates", heads, rows, note)


def _grid(record: Record) -> str:
    events = exchanges(record.rounds, record.final)
    if not events or len(record.sites) > 60 or record.start.job == "evaluate":
        return ""
    runs = {}
    for site in (s for s in record.sites if s.name not in record.study.federation.evaluate_only):
        states = [(k + 1, site.name in e.sites) for k, e in enumerate(events)]
        chunks = [list(same) for _, same in groupby(states, key=lambda s: s[1])]
        runs[site.name] = [(chunk[0][0], chunk[-1][0], chunk[0][1]) for chunk in chunks]
    rows = [f"{s.name} took part in {len(s.rounds)} of {count(len(record.rounds), 'round')}" for s in record.sites if s.name in runs]
    svg = plots.grid(runs, max(len(events), 2), ("took part", "missed"), f"Participation by round. {'; '.join(rows)}.")
    return picture(svg, "Participation by round", "Tall blue: took part; short orange: missed. Last column: the evaluation.")


def privacy(record: Record, found: Found) -> str:
    """Unit, adjacency, epsilon, delta, and what the claim covers."""
    claim, facts = found["privacy"], []
    if "epsilon" in claim:
        unit = "one person of a site" if claim["unit"] == "patient" else "one site"
        facts = [("Unit", unit), ("Neighbours", f"{claim['adjacency'].replace('-', ' ')}: data sets of which only one contains {unit}")]
        facts += [("Epsilon", f"{written(claim['epsilon'], 'epsilon')}, rounded up; the largest of all sites. {_method(claim)}")]
        facts += [("Delta", f"{claim['delta']:g}"), ("Covered", "; ".join(claim["covers"]))]
        facts += [("Not covered", "; ".join(claim["not_covered"]) or "none is named")]
    return section("privacy", "Privacy", *(paragraph(line) for line in words.privacy(found)), terms(facts))


def _method(claim: Mapping[str, Any]) -> str:
    return f"Computed with privacy loss distributions; cross-check by Rényi accounting: {written(claim['epsilon_rdp'], 'epsilon')}."


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def flow(record: Record, found: Found) -> str:
    """The kinds of records that left the sites, and their bytes."""
    rows: list[list[Cell]] = []
    for name in found["flow"]["sites"]:
        at = ("flow", "sites", name)
        rows.append([name, *(Number(pointer(*at, way, when), "bytes") for when in ("round", "last", "total") for way in ("to", "from"))])
    rows.append([ALL_SITES, "", "", "", "", Number("/flow/total/to", "bytes"), Number("/flow/total/from", "bytes")])
    heads = ["site", "to, per round", "from, per round", "to, evaluation", "from, evaluation", "to, total", "from, total"]
    note = "Arrays to and from the site, before encryption; per round: mean over its rounds. Messages before round 1 are not counted."
    kinds = [_sentence(text) for text in leaves(record.study)]
    body = [
        "<h3>Kinds of records that leave a site, from the plan</h3>",
        listing(kinds),
        paragraph("No person's id, image, genotype or row of a table as such.", _sentence(caution(record.study))),
    ]
    body += [table(found, "Bytes to and from each site", heads, rows, note)] if record.rounds or record.final.came else []
    return section("flow", "What left the sites", *body, policies(record, found) if record.agreed.came else "")


_POLICIES = {"centre": "the centre is",
             "min_persons": "training persons, least", "min_count": "persons behind a number, least", "max_rounds": "rounds, most",
             "max_epsilon": "epsilon, most", "delta": "delta", "deidentification": "not de-identified",
             "max_quarantined": "largest share excluded", "allow_unprotected": "studies without patient-level privacy"}  # fmt: skip


def policies(record: Record, found: Found) -> str:
    """The limits that the sites disclosed."""
    images = "image" in record.study.cohort.inputs
    columns = {key: head for key, head in _POLICIES.items() if images or key not in ("deidentification", "max_quarantined")}
    rows: list[list[Cell]] = []
    for name, row in found["sites"].items():
        if row["policy"] is None:
            rows.append([name, "not disclosed", *[""] * (len(columns) - 1)])
            continue
        cells: list[Cell] = [name]
        for key in columns:
            if key == "centre":
                cells.append(trust_text(row["policy"]))
                continue
            value = row["policy"][key]
            if isinstance(value, bool):
                # Without a budget, an unprotected study evades no limit, so the site runs it.
                cells.append("run" if value or row["policy"]["max_epsilon"] == 0 else "do not run")
            elif isinstance(value, str):
                cells.append(value)
            elif key == "max_epsilon" and row["policy"].get("public"):
                cells.append("not limited: public data")  # the ledger charges persons of public data nothing
            elif key == "max_epsilon" and value == 0:
                cells.append("none granted")
            else:
                cells.append(Number(pointer("sites", name, "policy", key), "count" if isinstance(value, int) else "epsilon"))
        rows.append(cells)
    return table(found, "Policies of the sites, as they disclosed them", ["site", *columns.values()], rows)


def limits(record: Record, found: Found) -> str:
    """The limits of the result."""
    return section("limits", "Limits", listing(words.limits(record, found)))


def check(record: Record, found: Found) -> str:
    """Identifiers, and how to check this page."""
    facts, run = facts_of(record), found["run"]
    rows = [
        ("Run", f"{run['id']}, engine {run['engine']}, status {run['status']}"),
        ("Study, SHA-256", run["study_sha256"]),
        ("Model, SHA-256", run["weights_sha256"] or ""),
        ("Seed", str(run["seed"])),
        *(
            (a, facts[b].text)
            for a, b in (("Began", "began"), ("Ended", "ended"), ("Code", "code"), ("Versions", "versions"))
            if b in facts
        ),
    ]
    data = [(s, row["dataset"] or "not reported") for s, row in found["sites"].items() if row["agreed"]]
    heads = [(s, f"{row['journal'][0]}, number {row['journal'][1]:,}") for s, row in found["sites"].items() if row["journal"]]
    code = [(s, (row["policy"] or {}).get("code_sha256")) for s, row in found["sites"].items() if row["agreed"]]
    how = (
        "This page is computed from the run's folder alone; the same folder and software give the same page, byte for byte. Measures, "
        "intervals, "
        "curves and calibration are computed from the sites' counts (counts.safetensors). Every number in a table is also in the page as "
        "JSON."
    )
    more = ["<h3>SHA-256 of the data that a site read</h3>", terms(data)] if data else []
    more += ["<h3>Last entry of a site's journal</h3>", terms(heads)] if heads else []
    if any(digest for _, digest in code):
        more += ["<h3>SHA-256 of the code by which a site says it answered</h3>", terms([(s, d or "not reported") for s, d in code])]
    lines = (
        f"fedml report {record.run_id} -o again.html && sha256sum again.html report.html",
        "fedml verify run.zip    # a bundle (fedml bundle), offline: checks hashes and signature, recomputes the figures of the last "
        "evaluation and epsilon",
        _repeated(record),
    )
    commands = "".join(f"<p><code>{escape(line)}</code></p>" for line in lines)
    return section("check", "How to check it", paragraph(how), commands, terms(rows), *more)


def _repeated(record: Record) -> str:
    command = "fedml reproduce run.zip --sites FOLDER    # at the sites' data: "
    if record.study.privacy.unit != "none":
        return f"{command}compares data, agreement, participation and epsilon; the noise is drawn anew, so bits differ"
    return f"{command}confirms identical bits, or reports the first difference"


def closing(record: Record) -> str:
    """The footer."""
    return paragraph(f"Written by fedml report from the run {record.run_id}; colours: Okabe and Ito 2008.")


ALL: tuple[Callable[[Record, Found], str], ...] = (
    top, question, persons.section_of, sites, results.by_site, results.external, results.subgroups,
    results.discrimination, over_time.section_of, utility.section_of, examples.section_of, results.learning, privacy, flow, limits, check,
)  # fmt: skip
