"""The result sections of the page: by site, by subgroup, curves and calibration, learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedml.experiments.report import across, plots, words
from fedml.experiments.report.markup import Cell, Number, paragraph, picture, section, table, terms, written
from fedml.experiments.report.pointers import pointer
from fedml.experiments.report.words import PARTS, interval_of, join, named, outcome
from fedml.experiments.runs.record import Record
from fedml.tasks.measure import Measure
from fedml.tasks.registry import make_task

Found = Mapping[str, Any]
ALL_SITES = "all sites"
MOST_LINES = 6  # with more sites, only the worst site has a colour


def _lines(found: Found, curves: Mapping[str, Sequence[plots.Value]], x: Sequence[float]) -> list[plots.Series]:
    """One line for each site; with many sites only the worst has a colour."""
    out = []
    for k, (name, y) in enumerate(curves.items()):
        few = len(curves) <= MOST_LINES
        colour = plots.COLOURS[k] if few else plots.VERMILLION if name == found["worst"] else plots.GREY
        dash = plots.DASHES[k] if few else ""
        out.append(plots.Series(name, x, y, colour, dash, 1.8 if few or name == found["worst"] else 0.7))
    return out


def _when(record: Record) -> str:
    """At which rounds the sites evaluated the model."""
    every = record.study.training.evaluate_every
    return "at the start of each round" if every == 1 else f"at the start of round 1 and then once every {every} rounds"


def learning(record: Record, found: Found) -> str:
    """The measure and the loss over rounds."""
    curves, pictures = found["curves"], []
    if not record.rounds:
        return ""
    measure = named(record, found["measure"])
    if curves["rounds"] and any(y is not None for y in curves["all"]):
        whole = plots.Series(ALL_SITES, curves["rounds"], curves["all"], plots.INK, "", 2.8)
        kept = {s: y for s, y in curves["sites"].items() if any(v is not None for v in y)}
        lines = [whole, *_lines(found, kept, curves["rounds"])]
        shown = lines if len(kept) <= MOST_LINES else [line for line in lines if line.colour != plots.GREY]
        first, last = (next(y for y in ys if y is not None) for ys in (curves["all"], curves["all"][::-1]))
        alt = f"{measure} of {PARTS[curves['part']]} persons by round: all sites from {written(first)} to {written(last)}."
        svg = plots.curves(shown, "round", make_task(record.study).described(found["measure"]).axis, alt, least=0.1)
        pictures.append(picture(svg, f"{measure} by round", f"Measured {_when(record)}, on {PARTS[curves['part']]} persons."))
    kept = {s: y for s, y in curves["loss"].items() if any(v is not None for v in y)}
    if kept:
        lines = _lines(found, kept, curves["loss_rounds"])
        shown = lines if len(kept) <= MOST_LINES else [line for line in lines if line.colour != plots.GREY]
        svg = plots.curves(shown or lines[:MOST_LINES], "round", "training loss (mean over persons)", "Training loss by round and site.")
        pictures.append(picture(svg, "Training loss by round", "Mean over a site's training persons during training."))
    if not pictures:
        return section("learning", "Learning curves", paragraph("No metric and no loss was reported in the rounds."))
    at = [0, (len(curves["rounds"]) - 1) // 2, len(curves["rounds"]) - 1] if curves["rounds"] else []
    at = sorted(set(at))
    heads = ["site", *(f"round {curves['rounds'][k]}" for k in at)]
    rows: list[list[Cell]] = [[ALL_SITES, *(Number(pointer("curves", "all", k)) for k in at)]]
    rows += [[s, *(Number(pointer("curves", "sites", s, k)) for k in at)] for s in curves["sites"]]
    numbers = table(found, f"{measure} of {PARTS.get(curves['part'], '')} persons by round", heads, rows) if at else ""
    return section("learning", "Learning curves", f'<div class="plots">{"".join(pictures)}</div>', numbers)


def _columns(record: Record, names: Sequence[str]) -> list[str]:
    return ["", "persons", *(named(record, n) for n in names)]


def _estimates(found: Found, where: tuple[str, ...], label: str, names: Sequence[str]) -> list[Cell]:
    return [label, Number(pointer(*where, "persons"), "count"), *(Number(pointer(*where, "metrics", n), "estimate") for n in names)]


def _whole(found: Found) -> list[str]:
    """Measures over all classes, the main measure first."""
    names = [n for n in found["scores"]["all"]["metrics"] if "/" not in n]
    return sorted(names, key=lambda n: n != found["measure"])


def _methods(record: Record, found: Found) -> str:
    """The method of each interval, and why some measures have none."""
    by: dict[str, list[str]] = {}
    outside = found.get("external", {"all": None, "sites": {}})
    some = [found["scores"]["all"], outside["all"], *found["scores"]["sites"].values(), *outside["sites"].values()]
    clustered = False
    for row in (*some, *found["scores"]["groups"].values()):
        for name, e in row["metrics"].items() if row else ():
            if e["method"] != "count":
                method, _, effect = e["method"].partition("; clusters, ")
                by.setdefault(across.general(method), []).append(name)
                clustered = clustered or bool(effect)
    kinds = {m: ", ".join(dict.fromkeys(named(record, n.partition("/")[0]) for n in ns)) for m, ns in by.items()}
    texts = {m: f"{m.removeprefix('none: ')} ({names})" for m, names in kinds.items()}
    methods = [text for m, text in texts.items() if not m.startswith("none")]
    none = [text for m, text in texts.items() if m.startswith("none")]
    first = f"Below each measure: its 95 % interval over persons such as these, by {'; '.join(methods)}." if methods else ""
    first += across.CLUSTERED if clustered else ""
    return " ".join(filter(None, [first, f"No interval: {'; '.join(none)}." if none else ""]))


def _forest(record: Record, found: Found, rows: Mapping[str, Any], about: str, whole: Mapping[str, Any] | None = None) -> str:
    """A forest plot of the main measure: ``rows``, then all sites, or ``whole``: those with whom the rows are compared."""
    name = found["measure"]
    measure = make_task(record.study).described(name)

    def row(label: str, score: Any, total: bool = False) -> plots.Row:
        e = score["metrics"][name]
        return plots.Row(label, score["persons"], e["value"], e["low"], e["high"], total)

    whole = whole or {ALL_SITES: found["scores"]["all"]}
    plotted = [row(label, score) for label, score in rows.items() if score]
    plotted += [row(label, score, True) for label, score in whole.items()]
    values, last = (
        "; ".join(f"{label} {interval_of(score['metrics'][name])}" for label, score in some.items() if score) for some in (rows, whole)
    )
    guess = measure.guess if measure.guess is not None and _crosses(plotted, measure.guess) else None
    alt = f"{measure.printed} by {about}, with 95 % intervals: {values}; {last}."
    svg = plots.forest(plotted, f"{measure.printed}, with 95 % interval", alt, bounds=measure.bounds, at=guess)
    caption = "Square: value, larger for more persons; bar: 95 % interval; diamond and dashed line: " + (
        "all sites." if len(whole) == 1 and ALL_SITES in whole else "all persons of the sites that are named."
    )
    return picture(svg, f"{measure.printed} by {about}", caption + (" Black line: a random guess." if guess is not None else ""))


def _crosses(rows: Sequence[plots.Row], at: float) -> bool:
    return any(r.low is not None and r.low < at + 0.1 for r in rows)


def by_site(record: Record, found: Found) -> str:
    """The measures of all sites and of each site, with intervals."""
    score = found["scores"]["all"]
    if score is None:
        return ""
    names = _whole(found)
    rows = [_estimates(found, ("scores", "all"), ALL_SITES, names)]
    for site, result in found["scores"]["sites"].items():
        label = f"{site} (worst)" if site == found["worst"] else site
        rows.append(_estimates(found, ("scores", "sites", site), label, names) if result else [site, "no persons", *[""] * len(names)])
    alike: dict[str, list[Measure]] = {}  # by meaning: several measures of HD95 share one
    for measure in dict.fromkeys(make_task(record.study).described(n) for n in (*names, *score["metrics"])):
        alike.setdefault(measure.meaning, []).append(measure)
    meaning = [(some[0].printed if len(some) == 1 else some[0].axis, text) for text, some in alike.items()]
    body = [_forest(record, found, found["scores"]["sites"], "site")]
    body += [table(found, f"Measures on {PARTS[found['part']]} persons", _columns(record, names), rows, _methods(record, found))]
    body += [paragraph(note) for note in found["notes"]]
    body += across.sites(record, found)
    return section("by-site", "Results by site", *body, *_by_class(record, found), "<h3>What the measures mean</h3>", terms(meaning))


def external(record: Record, found: Found) -> str:
    """The measures at the sites that did not train, with intervals, next to those of all sites that did."""
    if "external" not in found:
        return ""
    results, names = found["external"], _whole(found)
    rows = [_estimates(found, ("scores", "all"), f"{ALL_SITES} that trained", names)] if found["scores"]["all"] else []
    for site, result in results["sites"].items():
        label = f"external validation: {site}"
        where = ("external", "sites", site)
        rows.append(_estimates(found, where, label, names) if result else [label, "no persons", *[""] * len(names)])
    if len([r for r in results["sites"].values() if r]) > 1:
        rows.append(_estimates(found, ("external", "all"), "external validation, merged", names))
    known = {site: result for site, result in results["sites"].items() if result}
    plot = _forest(record, found, known, "site of external validation") if known and found["scores"]["all"] else ""
    text = paragraph(
        "These sites did not train the model and had no part in its preprocessing. All of their persons are tested, or the test part of a "
        "site's split file; no result of the other sections contains them."
    )
    heads = _columns(record, names)
    return section("external", "External validation", text, plot, table(found, "Measures at sites that did not train", heads, rows))


def _by_class(record: Record, found: Found) -> list[str]:
    """Measures of single classes, as in segmentation: one table for each class, with all sites and each site."""
    names = [n for n in found["scores"]["all"]["metrics"] if "/" in n]
    kinds = list(dict.fromkeys(n.partition("/")[0] for n in names))
    classes = list(dict.fromkeys(n.partition("/")[2] for n in names))
    out = []
    for c in classes:
        rows: list[list[Cell]] = []
        for label, where in ((ALL_SITES, ("all",)), *((s, ("sites", s)) for s, result in found["scores"]["sites"].items() if result)):
            rows.append([label, *(Number(pointer("scores", *where, "metrics", f"{k}/{c}"), "estimate") for k in kinds)])
        note = "Missed: persons with the class in only one of the two masks; HD95 is not defined for them." if "missed" in kinds else ""
        out.append(table(found, f"Class {c}", ["", *(named(record, k) for k in kinds)], rows, note))
    return out


def subgroups(record: Record, found: Found) -> str:
    """The measures of the subgroups that the study names, and which sites did not report them."""
    groups = found["scores"]["groups"]
    if found["scores"]["all"] is None:
        return ""
    if not groups:
        return section("subgroups", "Subgroups", paragraph("The study names no subgroups (section [evaluation] of a study)."))
    task = make_task(record.study)
    names = [n for n in _whole(found) if not task.described(n).counted]
    measured = [s for s, result in found["scores"]["sites"].items() if result]
    rows: list[list[Cell]] = []
    for label, group in groups.items():
        if group is None:
            rows.append([label, "hidden at every site, or no person", *[""] * (len(names) + 2)])
            continue
        silent = [s for s in measured if s not in group["sites"]]
        share = Number(pointer("scores", "groups", label, "share"), "percent")
        rows.append([*_estimates(found, ("scores", "groups", label), label, names), share, join(silent) or "none"])
    compared, note = across.references(found)
    rows += [[*_estimates(found, ("scores", "groups", label, "reference"), text, names), "", ""] for label, text in compared.items()]
    note = (
        "A site reports a group only if enough of its persons are in the group and outside it (min_count of site and study); the numbers "
        f"do not include persons of other sites. {note} Groups were named before the run. "
        f"Of {len(groups)} groups one may stand out by chance: their intervals are not adjusted for their number. "
    )
    note += task.words.groups
    heads = [*_columns(record, names), "share of test persons", "not reported by"]
    reported = {label: group for label, group in groups.items() if group}
    whole = {text: groups[label]["reference"] for label, text in compared.items()}
    plot = _forest(record, found, reported, "subgroup", whole) if reported else ""
    return section("subgroups", "Subgroups", plot, table(found, f"Measures on {PARTS['test']} persons by subgroup", heads, rows, note))


def discrimination(record: Record, found: Found) -> str:
    """ROC and reliability curves, calibration, confusion."""
    if "by_class" not in found:
        return section("calibration", "Predicted and true classes", _confusion(record, found)) if "confusion" in found else ""
    if not found["by_class"]:
        why = "The counts were noised for privacy, so curves and calibration would show mostly the noise."
        return section("calibration", "Discrimination and calibration", paragraph(why), _confusion(record, found))
    two = len(found["classes"]) == 2
    lines = []
    for k, (c, result) in enumerate(found["by_class"].items()):
        name = outcome(record, found, int(c))
        colour, dash = plots.COLOURS[k % len(plots.COLOURS)], plots.DASHES[k % len(plots.DASHES)]
        lines.append(plots.Series(name, result["roc"]["x"], result["roc"]["y"], colour, dash, 2.2))
    auroc = interval_of(found["scores"]["all"]["metrics"]["auroc"])
    alt = f"ROC curve of {PARTS[found['part']]} persons of all sites; area (AUROC) {auroc}."
    caption = f"All sites, AUROC {auroc}. Each point is a threshold on the risk."
    pictures = [picture(plots.roc_plot(lines, alt), "ROC curve", caption)] if any(line.x for line in lines) else []
    for c, result in found["by_class"].items():
        rows = "; ".join(f"predicted {written(g['predicted'])}, observed {written(g['observed'])}" for g in result["groups"])
        title = f"Reliability of the risk of {outcome(record, found, int(c))}"
        caption = "Groups of about equal size; bars: 95 % intervals; dashed: perfect. Below that line the predicted risk is too high, "
        pictures.append(picture(plots.reliability_plot(result["groups"], f"{title}: {rows}."), title, f"{caption}above it too low."))
    body = [paragraph(words.calibrated(found)), f'<div class="plots">{"".join(pictures)}</div>', _calibration(record, found)]
    body += [_groups(record, found)] if two else []
    return section("calibration", "Discrimination and calibration", *body, _confusion(record, found))


_CALIBRATION = {
    "slope": "slope", "intercept": "intercept", "in_the_large": "in the large", "expected_observed": "expected / observed"
}  # fmt: skip


def _calibration(record: Record, found: Found) -> str:
    rows: list[list[Cell]] = []
    two = len(found["classes"]) == 2
    for c, result in found["by_class"].items():
        label = ALL_SITES if two else f"class {found['classes'][int(c)]}"
        places = [(label, ("all",)), *(((s, ("sites", s)) for s in result["sites"]) if two else ())]
        places += [(label, ("subgroups", label)) for label in result.get("subgroups", {})]
        for name, where in places:
            at = ("by_class", c, *where)
            cells: list[Cell] = [name, Number(pointer(*at, "persons"), "count"), Number(pointer(*at, "cases"), "count")]
            cells += [Number(pointer(*at, key), "estimate") for key in _CALIBRATION]
            rows.append([*cells, Number(pointer(*at, "error"))])
    note = (
        "Slope and intercept: logistic regression of the outcome on the predicted log-odds, 1 and 0 if perfect; slope below 1: risks too "
        "extreme. In the large: the intercept with slope 1; negative if risks are too high. Error: mean absolute difference of predicted "
        "and observed risk in ten equally wide intervals of risk. Subgroups: from their coarser scores, without the persons of sites that "
        "did not report them."
    )
    heads = ["", "persons", "with the outcome", *_CALIBRATION.values(), "error"]
    return table(found, f"Calibration on {PARTS[found['part']]} persons, with 95 % intervals", heads, rows, note)


def _groups(record: Record, found: Found) -> str:
    rows: list[list[Cell]] = []
    for k in range(len(found["by_class"]["1"]["groups"])):
        at = ("by_class", "1", "groups", k)
        cells: list[Cell] = [str(k + 1), Number(pointer(*at, "persons"), "count")]
        rows.append([*cells, *(Number(pointer(*at, key)) for key in ("predicted", "observed", "low", "high"))])
    heads = ["group", "persons", "predicted risk", "observed share", "95 %, low", "95 %, high"]
    return table(found, "Reliability curve as a table", heads, rows)


def _confusion(record: Record, found: Found) -> str:
    classes = found["classes"]
    rows: list[list[Cell]] = [
        [f"true {c}", *(Number(pointer("confusion", k, j), "count") for j in range(len(classes)))] for k, c in enumerate(classes)
    ]
    caption = f"Persons by true and most probable class of {record.study.cohort.outcome}"
    return table(found, caption, ["", *(f"predicted {c}" for c in classes)], rows)
