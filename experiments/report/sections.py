"""The page's sections, in their order: each takes the record and its figures, and gives HTML, or nothing where it has no subject."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from experiments.checklists.facts import facts_of
from experiments.record import Record
from experiments.report import plots, words
from experiments.report.markup import Cell, Number, between, listing, paragraph, picture, section, table, terms, written
from experiments.report.numbers import COUNTED, pointer
from experiments.report.words import PARTS, count, interval_of, join, named, outcome
from fedml.plan import leaves

Found = Mapping[str, Any]
ALL_SITES = "all sites"
MOST_LINES = 6  # sites with a colour of their own


def top(record: Record, found: Found) -> str:
    """The answer, four figures, and where to read on."""
    score, (spent, unit) = found["scores"]["all"], words.privacy_short(found)
    cards = []
    if score is not None:
        main = score["metrics"][found["measure"]]
        cards.append((named(found["measure"]), written(main["value"]), f"95 %: {between(main)}" if between(main) else "no interval"))
        if (worst := found["worst"]) is not None:
            own = found["scores"]["sites"][worst]
            cards.append(("worst site", written(own["metrics"][found["measure"]]["value"]), f"{worst}, {count(own['persons'], 'person')}"))
    slope = found.get("by_class", {}).get("1", {}).get("all", {}).get("slope") if len(found["classes"]) == 2 else None
    if slope and slope["value"] is not None:
        cards.append(("calibration slope", written(slope["value"]), f"95 %: {between(slope)}; 1 is perfect"))
    cards.append(("privacy", spent, unit))
    shown = "".join(
        f'<li><span class="what">{escape(a)}</span><span class="value">{escape(b)}</span><span class="more">{escape(c)}</span></li>'
        for a, b, c in cards
    )
    lead = paragraph(*words.answer(record, found), kind="lead")
    rest = [*words.weak(record, found), words.calibrated(found)] if score else []
    cost = words.privacy(found)[0]
    cost = f"Privacy: {cost[:1].lower()}{cost[1:]}"
    body = [lead, f'<ul class="cards">{shown}</ul>', *(paragraph(line) for line in rest), paragraph(cost)]
    links = [("asked", "what was asked"), ("sites", "sites"), ("learning", "learning curves"), ("by-site", "results by site"),
             ("subgroups", "subgroups"), ("calibration", "discrimination and calibration"), ("privacy", "privacy"),
             ("flow", "what left the sites"), ("limits", "limits"), ("check", "how to check it")]  # fmt: skip
    have = {"by-site": bool(score), "subgroups": bool(score), "calibration": bool(found.get("by_class")), "learning": bool(record.rounds)}
    items = "".join(f'<li><a href="#{at}">{escape(text)}</a></li>' for at, text in links if have.get(at, True))
    return section("answer", "The answer", *body) + f'<nav aria-label="Sections"><ul>{items}</ul></nav>'


def asked(record: Record, found: Found) -> str:
    """The question, and what was done to answer it."""
    facts = facts_of(record)
    rows = [("Question", "question"), ("Purpose", "purpose"), ("Outcome", "outcome"), ("Read of a person", "inputs"),
            ("Columns", "columns"), ("Preparation", "preprocessing"), ("Missing values", "missing"), ("Model", "model"),
            ("Training", "training"), ("Held-out persons", "split"), ("Which model", "selection")]  # fmt: skip
    return section("asked", "What was asked, and how", terms([(a, facts[b].text) for a, b in rows if b in facts]))


def sites(record: Record, found: Found) -> str:
    """Who took part: persons, rounds, what was set aside."""
    shown = [p for p in PARTS if any(row["persons"].get(p, {}).get("persons") for row in found["sites"].values())]
    parts = [p for p in ("train", "val", "test") if p in shown]
    stated = any(row["stated"] for row in found["sites"].values())
    images = "image" in record.study.cohort.inputs
    heads = ["site", *(f"{PARTS[p]} persons" for p in parts), *(["training persons, as stated"] if stated else [])]
    two = record.study.model.task == "classification" and len(found["classes"]) == 2 and parts
    heads += [*([f"with {outcome(record, found)}, {PARTS[parts[-1]]}"] if two else []), "rounds", "missed"]
    heads += [*(["images set aside"] if images else []), *(["epsilon"] if found["privacy"].get("claims") else [])]
    rows: list[list[Cell]] = []
    for name, row in found["sites"].items():
        at = ("sites", name)
        cells: list[Cell] = [name, *(Number(pointer(*at, "persons", p, "persons"), "count") for p in parts)]
        cells += [Number(pointer(*at, "stated"), "count")] if stated else []
        cells += [Number(pointer(*at, "persons", parts[-1], "classes", 1), "count")] if two else []
        cells += [Number(pointer(*at, "rounds"), "count"), "; ".join(f"{n}: {r}" for r, n in row["missed"].items()) or "none"]
        cells += [_aside(row["aside"])] if images else []
        cells += [Number(pointer(*at, "epsilon"), "epsilon")] if found["privacy"].get("claims") else []
        rows.append(cells)
    run = found["run"]
    notes = ["Missed: exchanges in which the site did not answer or refused, with the reason's code, the evaluation among them."]
    if stated:
        notes.append("Under privacy of a person nobody counts training persons; the study states about how many there are.")
    took = f"{count(len([s for s in found['sites'].values() if s['agreed']]), 'site')} of {len(found['sites'])} took part in "
    took += f"{run['rounds']} of {count(run['planned'], 'planned round')}; a round needs {record.study.federation.needed} of them."
    return section(
        "sites", "Sites and participation", paragraph(took), table(found, "Sites of the roster", heads, rows, " ".join(notes)), _grid(record)
    )


def _aside(aside: Mapping[str, int] | None) -> str:
    """Reason and persons; a count below the site's limit is not told."""
    if aside is None:
        return "not told"
    return "; ".join(f"{'a few' if n < 0 else f'{n:,}'}: {reason}" for reason, n in aside.items()) or "none"


def _grid(record: Record) -> str:
    events = [*record.rounds, *([record.final] if record.final else [])]
    if not events or len(record.sites) > 60:
        return ""
    runs = {}
    for site in record.sites:
        states = [(k + 1, site.name in e["sites"]) for k, e in enumerate(events)]
        chunks = [list(same) for _, same in groupby(states, key=lambda s: s[1])]
        runs[site.name] = [(chunk[0][0], chunk[-1][0], chunk[0][1]) for chunk in chunks]
    told = [f"{s.name} took part in {len(s.rounds)} of {count(len(record.rounds), 'round')}" for s in record.sites]
    svg = plots.grid(runs, max(len(events), 2), ("took part", "missed"), f"Participation by round. {'; '.join(told)}.")
    return picture(svg, "Participation by round", "High blue: the site took part; low orange: it missed. Last column: the evaluation.")


def _lines(found: Found, curves: Mapping[str, Sequence[plots.Value]], x: Sequence[float]) -> list[plots.Series]:
    """A line a site; of many sites only the worst has a colour."""
    out = []
    for k, (name, y) in enumerate(curves.items()):
        few = len(curves) <= MOST_LINES
        colour = plots.COLOURS[k] if few else plots.VERMILLION if name == found["worst"] else plots.GREY
        dash = plots.DASHES[k] if few else ""
        out.append(plots.Series(name, x, y, colour, dash, 1.8 if few or name == found["worst"] else 0.7))
    return out


def learning(record: Record, found: Found) -> str:
    """The measure and the loss over rounds."""
    curves, made = found["curves"], []
    if not record.rounds:
        return ""
    measure = named(found["measure"])
    if curves["rounds"] and any(y is not None for y in curves["all"]):
        whole = plots.Series(ALL_SITES, curves["rounds"], curves["all"], plots.INK, "", 2.8)
        kept = {s: y for s, y in curves["sites"].items() if any(v is not None for v in y)}
        lines = [whole, *_lines(found, kept, curves["rounds"])]
        shown = lines if len(kept) <= MOST_LINES else [line for line in lines if line.colour != plots.GREY]
        first, last = (next(y for y in ys if y is not None) for ys in (curves["all"], curves["all"][::-1]))
        alt = f"{measure} of {PARTS[curves['part']]} persons by round: all sites from {written(first)} to {written(last)}."
        svg = plots.curves(shown, "round", f"{measure} ({PARTS[curves['part']]} persons)", alt, least=0.1)
        made.append(picture(svg, f"{measure} by round", f"Of the model as it arrives in a round, on {PARTS[curves['part']]} persons."))
    kept = {s: y for s, y in curves["loss"].items() if any(v is not None for v in y)}
    if kept:
        lines = _lines(found, kept, curves["loss_rounds"])
        shown = lines if len(kept) <= MOST_LINES else [line for line in lines if line.colour != plots.GREY]
        svg = plots.curves(shown or lines[:MOST_LINES], "round", "training loss (mean over persons)", "Training loss by round and site.")
        made.append(picture(svg, "Training loss by round", "Mean over a site's training persons while it trains."))
    if not made:
        return section("learning", "Learning curves", paragraph("No measure and no loss was told in the rounds."))
    at = [0, (len(curves["rounds"]) - 1) // 2, len(curves["rounds"]) - 1] if curves["rounds"] else []
    at = sorted(set(at))
    heads = ["site", *(f"round {curves['rounds'][k]}" for k in at)]
    rows: list[list[Cell]] = [[ALL_SITES, *(Number(pointer("curves", "all", k)) for k in at)]]
    rows += [[s, *(Number(pointer("curves", "sites", s, k)) for k in at)] for s in curves["sites"]]
    numbers = table(found, f"{measure} of {PARTS.get(curves['part'], '')} persons by round", heads, rows) if at else ""
    return section("learning", "Learning curves", f'<div class="plots">{"".join(made)}</div>', numbers)


def _columns(found: Found, names: Sequence[str]) -> list[str]:
    return ["", "persons", *(named(n) for n in names)]


def _estimates(found: Found, where: tuple[str, ...], label: str, names: Sequence[str]) -> list[Cell]:
    return [label, Number(pointer(*where, "persons"), "count"), *(Number(pointer(*where, "metrics", n), "estimate") for n in names)]


def _whole(found: Found) -> list[str]:
    """Measures of all classes together, the first one first."""
    names = [n for n in found["scores"]["all"]["metrics"] if "/" not in n]
    return sorted(names, key=lambda n: n != found["measure"])


def _methods(found: Found) -> str:
    """How each interval was made, and why some have none."""
    by: dict[str, list[str]] = {}
    for row in (found["scores"]["all"], *found["scores"]["sites"].values(), *found["scores"]["groups"].values()):
        for name, e in row["metrics"].items() if row else ():
            if e["method"] != "count" and (e["method"].startswith("none") or "degrees" not in e["method"]):
                by.setdefault(e["method"], []).append(name)
            elif e["method"] != "count":
                by.setdefault("Student's t", []).append(name)
    said = [f"{m} ({', '.join(dict.fromkeys(named(n.partition('/')[0]) for n in names))})" for m, names in by.items()]
    return f"Below a measure: its 95 % interval over persons such as these. Method: {'; '.join(said)}."


def _bounds(found: Found) -> tuple[float, float] | None:
    return None if found["measure"] == "mae" else (0.0, 1.0)


def _forest(found: Found, rows: Mapping[str, Any], about: str) -> str:
    """Values of the main measure by ``rows``, then of all."""
    name = found["measure"]

    def row(label: str, own: Any, total: bool = False) -> plots.Row:
        e = own["metrics"][name]
        return plots.Row(label, own["persons"], e["value"], e["low"], e["high"], total)

    made = [*(row(label, own) for label, own in rows.items() if own), row(ALL_SITES, found["scores"]["all"], True)]
    told = "; ".join(f"{label} {interval_of(own['metrics'][name])}" for label, own in rows.items() if own)
    guess = 0.5 if name == "auroc" else None
    alt = f"{named(name)} by {about}, with 95 % intervals: {told}; {ALL_SITES} {interval_of(found['scores']['all']['metrics'][name])}."
    svg = plots.forest(made, f"{named(name)}, with 95 % interval", alt, bounds=_bounds(found), at=guess if _crosses(made, 0.5) else None)
    caption = "Square: value, larger for more persons; bar: 95 % interval; diamond and dashed line: all sites together."
    return picture(svg, f"{named(name)} by {about}", caption + (" Black line: a guess." if guess and _crosses(made, 0.5) else ""))


def _crosses(rows: Sequence[plots.Row], at: float) -> bool:
    return any(r.low is not None and r.low < at + 0.1 for r in rows)


def by_site(record: Record, found: Found) -> str:
    """The measures of all and of each site, with intervals."""
    score = found["scores"]["all"]
    if score is None:
        return ""
    names = _whole(found)
    rows = [_estimates(found, ("scores", "all"), ALL_SITES, names)]
    for site, own in found["scores"]["sites"].items():
        label = f"{site} (worst)" if site == found["worst"] else site
        rows.append(_estimates(found, ("scores", "sites", site), label, names) if own else [site, "nobody", *[""] * len(names)])
    kinds = dict.fromkeys(n.partition("/")[0] for n in (*names, *score["metrics"]))
    kinds = dict.fromkeys("hd95" if n.startswith("hd95") else n for n in kinds)
    meaning = [(named(n) if n != "hd95" else "HD95", words.MEANING[n]) for n in kinds if n in words.MEANING]
    body = [_forest(found, found["scores"]["sites"], "site")]
    body += [table(found, f"Measures on {PARTS[found['part']]} persons", _columns(found, names), rows, _methods(found))]
    return section("by-site", "Results by site", *body, *_by_class(found), "<h3>What the measures mean</h3>", terms(meaning))


def _by_class(found: Found) -> list[str]:
    """Measures of a class, as those of segmentation are: a table of all sites, and one of sites by class."""
    names = [n for n in found["scores"]["all"]["metrics"] if "/" in n]
    kinds = list(dict.fromkeys(n.partition("/")[0] for n in names))
    classes = list(dict.fromkeys(n.partition("/")[2] for n in names))
    out = []
    for c in classes:
        rows: list[list[Cell]] = []
        for label, where in ((ALL_SITES, ("all",)), *((s, ("sites", s)) for s, own in found["scores"]["sites"].items() if own)):
            rows.append([label, *(Number(pointer("scores", *where, "metrics", f"{k}/{c}"), "estimate") for k in kinds)])
        note = "Missed: persons with the class in one mask only; HD95 is not defined in them." if "missed" in kinds else ""
        out.append(table(found, f"Class {c}", ["", *(words.NAMES.get(k, k) for k in kinds)], rows, note))
    return out


def subgroups(record: Record, found: Found) -> str:
    """The measures by the groups that the study names; who is hidden is said."""
    groups = found["scores"]["groups"]
    if found["scores"]["all"] is None:
        return ""
    if not groups:
        return section("subgroups", "Subgroups", paragraph("The study names none ([evaluation] in a study does)."))
    names = [n for n in _whole(found) if n.partition("/")[0] not in COUNTED]
    measured = [s for s, own in found["scores"]["sites"].items() if own]
    rows: list[list[Cell]] = []
    for label, own in groups.items():
        if own is None:
            rows.append([label, "hidden at every site, or nobody", *[""] * (len(names) + 1)])
            continue
        silent = [s for s in measured if s not in own["sites"]]
        rows.append([*_estimates(found, ("scores", "groups", label), label, names), join(silent) or "none"])
    note = (
        "A site tells of a group only where enough persons are in it and outside it (its min_count, and the study's); persons of sites "
        "that do not tell are in no number here. Groups were named before the run. Many groups are looked at: one that stands out may do so by chance."
    )
    heads = [*_columns(found, names), "not told by"]
    shown = {label: own for label, own in groups.items() if own}
    plot = _forest(found, shown, "subgroup") if shown else ""
    return section("subgroups", "Subgroups", plot, table(found, f"Measures on {PARTS['test']} persons by subgroup", heads, rows, note))


def discrimination(record: Record, found: Found) -> str:
    """ROC and reliability curves, calibration, confusion."""
    if "by_class" not in found:
        return ""
    if not found["by_class"]:
        why = "The counts were noised for privacy: a curve or a calibration of them would be of the noise."
        return section("calibration", "Discrimination and calibration", paragraph(why), _confusion(record, found))
    two = len(found["classes"]) == 2
    lines = []
    for k, (c, own) in enumerate(found["by_class"].items()):
        name = outcome(record, found, int(c))
        colour, dash = plots.COLOURS[k % len(plots.COLOURS)], plots.DASHES[k % len(plots.DASHES)]
        lines.append(plots.Series(name, own["roc"]["x"], own["roc"]["y"], colour, dash, 2.2))
    auroc = interval_of(found["scores"]["all"]["metrics"]["auroc"])
    alt = f"ROC curve of {PARTS[found['part']]} persons of all sites; area (AUROC) {auroc}."
    caption = f"All sites together, AUROC {auroc}. Each point is a threshold on the risk."
    made = [picture(plots.roc_plot(lines, alt), "ROC curve", caption)] if any(line.x for line in lines) else []
    for c, own in found["by_class"].items():
        rows = "; ".join(f"predicted {written(g['predicted'])}, observed {written(g['observed'])}" for g in own["groups"])
        title = f"Reliability of the risk of {outcome(record, found, int(c))}"
        caption = "Groups of about equally many persons; bars: 95 % intervals; dashed: perfect. Below it the model says too much risk, "
        made.append(picture(plots.reliability_plot(own["groups"], f"{title}: {rows}."), title, f"{caption}above it too little."))
    body = [paragraph(words.calibrated(found)), f'<div class="plots">{"".join(made)}</div>', _calibration(record, found)]
    body += [_groups(record, found)] if two else []
    return section("calibration", "Discrimination and calibration", *body, _confusion(record, found))


_CALIBRATION = {
    "slope": "slope", "intercept": "intercept", "in_the_large": "in the large", "expected_observed": "expected / observed"
}  # fmt: skip


def _calibration(record: Record, found: Found) -> str:
    rows: list[list[Cell]] = []
    two = len(found["classes"]) == 2
    for c, own in found["by_class"].items():
        label = ALL_SITES if two else f"class {found['classes'][int(c)]}"
        places = [(label, ("all",)), *(((s, ("sites", s)) for s in own["sites"]) if two else ())]
        for name, where in places:
            at = ("by_class", c, *where)
            cells: list[Cell] = [name, Number(pointer(*at, "persons"), "count"), Number(pointer(*at, "cases"), "count")]
            cells += [Number(pointer(*at, key), "estimate") for key in _CALIBRATION]
            rows.append([*cells, Number(pointer(*at, "error"))])
    note = (
        "Slope and intercept: of the outcome's log-odds on the model's, 1 and 0 if perfect; slope below 1: risks too extreme. In the large: "
        "the intercept with slope 1; below 0 if risks are too high. Error: mean distance of predicted from observed, ten equally wide groups."
    )
    heads = ["", "persons", "with it", *_CALIBRATION.values(), "error"]
    return table(found, f"Calibration on {PARTS[found['part']]} persons, with 95 % intervals", heads, rows, note)


def _groups(record: Record, found: Found) -> str:
    rows: list[list[Cell]] = []
    for k in range(len(found["by_class"]["1"]["groups"])):
        at = ("by_class", "1", "groups", k)
        cells: list[Cell] = [str(k + 1), Number(pointer(*at, "persons"), "count")]
        rows.append([*cells, *(Number(pointer(*at, key)) for key in ("predicted", "observed", "low", "high"))])
    heads = ["group", "persons", "predicted risk", "observed share", "95 %, low", "95 %, high"]
    return table(found, "Reliability curve, in numbers", heads, rows)


def _confusion(record: Record, found: Found) -> str:
    kind = "measure" if found["noised"] else "count"
    rows: list[list[Cell]] = []
    for k, name in enumerate(found["classes"]):
        cells = [Number(pointer("confusion", k, j), "count" if kind == "count" else "measure") for j in range(len(found["classes"]))]
        rows.append([f"truly {name}", *cells])
    return table(
        found, f"Persons by true and most probable class of {record.study.cohort.target}", ["", *(f"held for {c}" for c in found["classes"])], rows
    )  # fmt: skip


def privacy(record: Record, found: Found) -> str:
    """Unit, adjacency, epsilon, delta, what is covered and what is not."""
    told, facts = found["privacy"], []
    if "epsilon" in told:
        unit = "one person of a site" if told["unit"] == "patient" else "one site"
        facts = [("Unit", unit), ("Neighbours", f"{told['adjacency'].replace('-', ' ')}: data sets that differ by {unit}, there or not")]
        facts += [("Epsilon", f"{written(told['epsilon'], 'epsilon')}, rounded up; of the site that spent most. {_checked(told)}")]
        facts += [("Delta", f"{told['delta']:g}"), ("Covered", "; ".join(told["covers"]))]
        facts += [("Not covered", "; ".join(told["not_covered"]) or "nothing is named")]
    return section("privacy", "Privacy", *(paragraph(line) for line in words.privacy(found)), terms(facts))


def _checked(told: Mapping[str, Any]) -> str:
    return f"Counted with privacy loss distributions; cross-check by Rényi: {written(told['epsilon_rdp'], 'epsilon')}."


def flow(record: Record, found: Found) -> str:
    """What left the sites, and how many bytes."""
    rows: list[list[Cell]] = []
    for name in found["flow"]["sites"]:
        at = ("flow", "sites", name)
        rows.append([name, *(Number(pointer(*at, way, when), "bytes") for when in ("round", "last", "total") for way in ("to", "from"))])
    rows.append([ALL_SITES, "", "", "", "", Number("/flow/total/to", "bytes"), Number("/flow/total/from", "bytes")])
    heads = ["site", "to it, a round", "from it, a round", "to it, evaluation", "from it, evaluation", "to it, all", "from it, all"]
    note = "Arrays only, before encryption; a round: mean of those it took part in. Messages before the first round are not counted."
    kinds = [text[:1].upper() + text[1:] + "." for text in leaves(record.study)]
    body = ["<h3>Kinds of records that left a site</h3>", listing(kinds), paragraph("No person's id, image, genotype or row of a table.")]
    return section("flow", "What left the sites", *body, table(found, "Bytes to and from each site", heads, rows, note), policies(found))


_POLICIES = {"min_persons": "training persons, least", "min_count": "persons behind a number, least", "max_rounds": "rounds, most",
             "max_epsilon": "epsilon, most", "delta": "delta", "deidentification": "not de-identified",
             "max_quarantined": "set aside, most (share)", "allow_unprotected": "studies without privacy"}  # fmt: skip


def policies(found: Found) -> str:
    """What sites disclosed of their own limits."""
    rows: list[list[Cell]] = []
    for name, row in found["sites"].items():
        if row["policy"] is None:
            rows.append([name, "not disclosed", *[""] * (len(_POLICIES) - 1)])
            continue
        cells: list[Cell] = [name]
        for key in _POLICIES:
            value = row["policy"][key]
            if isinstance(value, bool | str):
                cells.append({True: "allowed", False: "not allowed"}.get(value, str(value)) if isinstance(value, bool) else str(value))
            elif key == "max_epsilon" and value == 0:
                cells.append("none granted")
            else:
                cells.append(Number(pointer("sites", name, "policy", key), "count" if isinstance(value, int) else "epsilon"))
        rows.append(cells)
    return table(found, "Sites' own policies, as they disclosed them", ["site", *_POLICIES.values()], rows)


def limits(record: Record, found: Found) -> str:
    """What to hold against the result."""
    return section("limits", "Limits", listing(words.limits(record, found)))


def check(record: Record, found: Found) -> str:
    """Identities, and how to make this page again."""
    facts, run = facts_of(record), found["run"]
    rows = [("Run", f"{run['id']}, engine {run['engine']}, status {run['status']}"), ("Study, SHA-256", run["study_sha256"]),
            ("Model, SHA-256", run["weights_sha256"] or ""), ("Seed", str(run["seed"])),
            *((a, facts[b].text) for a, b in (("Began", "began"), ("Ended", "ended"), ("Code", "code"), ("Versions", "versions")) if b in facts)]
    data = [(s, row["dataset"] or "not told") for s, row in found["sites"].items() if row["agreed"]]
    heads = [(s, f"{row['journal'][0]}, number {row['journal'][1]:,}") for s, row in found["sites"].items() if row["journal"]]
    how = (
        "This page is made from the run's folder alone, and the same folder gives the same page, byte for byte. Measures, intervals, curves "
        "and calibration are computed from the counts that the sites told (counts.safetensors); every number of a table is also in the page as JSON."
    )
    more = ["<h3>SHA-256 of the data that a site read</h3>", terms(data)] if data else []
    more += ["<h3>Last entry of a site's journal</h3>", terms(heads)] if heads else []
    line = f"<p><code>fedml report {escape(record.run_id)} -o again.html &amp;&amp; sha256sum again.html report.html</code></p>"
    return section("check", "How to check it", paragraph(how), line, terms(rows), *more)


def closing(record: Record) -> str:
    """The last line."""
    return paragraph(f"Made by fedml report from the run {record.run_id}; colours: Okabe and Ito 2008.")


ALL: tuple[Callable[[Record, Found], str], ...] = (
    top, asked, sites, by_site, subgroups, discrimination, learning, privacy, flow, limits, check,
)  # fmt: skip
