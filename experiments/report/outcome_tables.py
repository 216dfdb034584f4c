"""The sections of the report of an analysis of outcomes, one for each kind of result. Each cell is a figure of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fedml.experiments.report import words
from fedml.experiments.report.markup import Cell, Number, paragraph, picture, section, table, written
from fedml.experiments.report.pointers import pointer
from fedml.experiments.report.survival_plots import curve_plot, ratio_forest
from fedml.study.study import Study

Found = Mapping[str, Any]
_FORESTS = 12  # coefficients whose forest plot is drawn
_FOUR = ("estimate", "error", "lower", "upper")
_MODELS = {"fixed": "sites, one effect", "dersimonian_laird": "DerSimonian-Laird", "reml": "REML", "hartung_knapp": "Hartung-Knapp"}


def estimate(value: float | None, low: float | None, high: float | None, method: str = "Wald") -> dict[str, Any]:
    """A number with its limits, as the tables show it."""
    return {"value": value, "low": low, "high": high, "method": method}


def p_text(value: float | None) -> str:
    """p for a reader."""
    return "not defined" if value is None else "below 0.0001" if value < 1e-4 else f"{value:.4f}"


def grid_words(grid: Found, unit: str) -> str:
    """How times were rounded."""
    ends, merged = grid["ends"], grid["merged"]
    text = f"Times are rounded up to the ends of {words.count(len(ends), 'interval')} ({unit}); all is exact for these times."
    if merged:
        some = ", ".join(f"{end:g}" for end in merged[:20]) + (" and more" if len(merged) > 20 else "")
        text += (
            f" {len(merged)} ends of the study's grid were merged with the next, because some site would have told of few persons: {some}."
        )
    return text


def _shown_groups(found: Found) -> dict[str, Any]:
    groups = found["curves"]["groups"]
    return {name: g for name, g in groups.items() if name != "all" or len(groups) == 1}


def curves(study: Study, found: Found) -> str:
    """Survival curves and their tests."""
    own, unit, event = found["curves"], found["unit"], found["event"]
    groups, level = _shown_groups(found), f"{100 * own['level']:g} %"
    alt = "Kaplan-Meier curves. " + "; ".join(f"{n}: {g['persons']:,} persons, {g['events']:,} with {event}" for n, g in groups.items())
    svg = curve_plot(groups, unit, f"without {event}", f"{alt}.")
    several = f"by {own['column']}" if own["column"] else "all persons"
    caption = f"Kaplan-Meier with {level} bands (log-log), and the persons at risk at the start of the interval after each time."
    rows: list[list[Cell]] = []
    first = next(iter(own["groups"].values()))
    for name in own["groups"]:
        at = ("curves", "groups", name)
        rows.append([name, Number(pointer(*at, "persons"), "count"), Number(pointer(*at, "events"), "count"),
                     Number(pointer(*at, "person_time"), "count"),
                     *(Number(pointer(*at, "quantiles", q), "estimate") for q in first["quantiles"]),
                     *(Number(pointer(*at, "restricted_mean", h), "estimate") for h in first["restricted_mean"]),
                     *([Number(pointer(*at, "follow_up"), "estimate")] if "follow_up" in first else [])])  # fmt: skip
    heads = ["group", "persons", event, f"person-{unit}", *(f"quantile {q} ({unit})" for q in first["quantiles"]),
             *(f"mean to {h} ({unit})" for h in first["restricted_mean"]),
             *(["median follow-up"] if "follow_up" in first else [])]  # fmt: skip
    note = (
        f"Limits of {level}, of means and their differences by their standard errors. Quantile 0.5: the median; a dash: the curve does not "
        "reach it. Mean to a time: restricted mean; a dash: nobody is observed until then. "
        "Median follow-up: reverse Kaplan-Meier (Schemper and Smith 1996)."
    )
    return section(
        "survival", "Survival", paragraph(grid_words(own["grid"], unit)), picture(svg, f"Survival, {several}", caption),
        table(found, "Survival by group", heads, rows, note), *_tests(found), _by_site(found),
    )  # fmt: skip


def _tests(found: Found) -> list[str]:
    own, out = found["curves"], []
    rows: list[list[Cell]] = []
    for name, label in (("log_rank", "log-rank"), ("log_rank_by_site", "log-rank, stratified by site")):
        if own.get(name):
            rows.append([label, *(Number(pointer("curves", name, key), kind) for key, kind in _TEST)])
    if rows:
        out.append(table(found, "Tests of no difference between groups", ["test", "chi-squared", "df", "p"], rows))
    gaps: list[list[Cell]] = [
        [f"{row['group']} less {row['less']}, to {row['horizon']:g}",
         *(Number(pointer("curves", "differences", k, key)) for key in ("estimate", "lower", "upper")),
         Number(pointer("curves", "differences", k, "p"), "p")] for k, row in enumerate(own.get("differences") or [])
    ]  # fmt: skip
    if gaps:
        heads = [f"restricted mean ({found['unit']})", "difference", "lower", "upper", "p"]
        out.append(table(found, "Differences of restricted means", heads, gaps))
    return out


_TEST: tuple[tuple[str, Any], ...] = (("chi2", "measure"), ("df", "count"), ("p", "p"))


def _by_site(found: Found) -> str:
    rows: list[list[Cell]] = [
        [site, label, *(Number(pointer("curves", "sites", site, label, key), "count") for key in ("persons", "events", "person_time"))]
        for site, groups in found["curves"]["sites"].items()
        for label in groups
    ]
    return table(found, "By site", ["site", "group", "persons", found["event"], f"person-{found['unit']}"], rows)


def model(key: str, study: Study, found: Found) -> str:
    """A Cox model or another regression (``key``)."""
    own = found[key]
    cox = key == "cox"
    ratio = cox or own["family"] != "gaussian"
    effect = hazard_word(own) if cox else own["effect"]
    rows: list[list[Cell]] = []
    for k in range(len(own["coefficients"])):
        at = (key, "coefficients", k)
        rows.append([own["coefficients"][k]["term"], *([Number(pointer(*at, "ratio"), "estimate")] if ratio else []),
                     Number(pointer(*at, "estimate")),
                     Number(pointer(*at, "model", "error")), Number(pointer(*at, "robust", "error")),
                     Number(pointer(*at, "model", "p"), "p"),
                     Number(pointer(*at, "robust", "p"), "p"),
                     *([Number(pointer(key, "proportional", "terms", k, "p"), "p")] if cox else [])])  # fmt: skip
    heads = ["covariate", *([effect] if ratio else []), f"log {effect}" if ratio else effect, "SE", "robust SE", "p", "robust p",
             *(["p, proportional hazards"] if cox else [])]  # fmt: skip
    persons, events = sum(own["persons"].values()), sum((own.get("events") or {}).values())
    about = f"{persons:,} persons" + (f", {events:,} with {found['event'] if cox else 'the outcome'}" if events else "")
    lead = [f"{about}; {_how(own, cox)}."]
    if cox:
        lead.append(grid_words(own["grid"], found["unit"]))
        lead.append(f"Proportional hazards, all together: p {p_text(own['proportional']['global']['p'])}.")
    note = "Robust: the sandwich variance (Lin and Wei 1989; of a regression HC0). Limits are by the "
    note += "robust variance." if shown(own) == "robust" else "model's variance."
    name = "Cox regression" if cox else f"{_family(own)} regression"
    return section(
        key,
        name,
        paragraph(*lead),
        table(found, name, heads, rows, note),
        _standardised(key, found),
        _forests(key, own, effect, ratio),
        _meta(key, found, ratio),
    )


def _standardised(key: str, found: Found) -> str:
    """The mean outcome if everyone had each level of a category."""
    own = found[key].get("standardised")
    if own is None:
        return ""
    first, rows = own["levels"][0]["level"], list[list[Cell]]()
    for k, row in enumerate(own["levels"]):
        names = {"mean": row["level"], "difference": f"{row['level']} less {first}", "log_ratio": f"log of {row['level']} / {first}"}
        for what, name in names.items():
            if row[what] is not None:
                at = (key, "standardised", "levels", k, what)
                numbers = [Number(pointer(*at, field)) for field in ("estimate", "error", "lower", "upper")]
                rows.append([name, *numbers, Number(pointer(*at, "p"), "p") if what != "mean" else ""])
    note = (
        "By the regression (g-formula), over all persons; the errors allow for its coefficients being estimated. An effect only if every "
        "common cause is among the covariates and the regression has their right form."
    )
    heads = ["mean outcome if all had", "estimate", "robust SE", "lower", "upper", "p"]
    return table(found, f"Standardised by {own['column']}", heads, rows, note)


def _family(own: Found) -> str:
    return {"gaussian": "Linear", "binomial": "Logistic", "poisson": "Poisson"}[own["family"]]


def _how(own: Found, cox: bool) -> str:
    if cox:
        weighted = f", case weights {own['weights']}" if own.get("weights") else ""
        return (
            f"ties by {own['ties'].title()}{weighted}, {'a baseline hazard for each site' if own['stratified'] else 'one baseline hazard'}"
        )
    return "an intercept for each site" if len(own.get("intercepts") or []) > 1 else "one intercept"


def shown(own: Found) -> str:
    """The variance by which a model's limits are: ``model`` or ``robust``."""
    return str(own.get("shown", "model"))


def hazard_word(own: Found) -> str:
    """What the exponent of a coefficient of a Cox model is."""
    return "subdistribution hazard ratio" if own.get("hazard") == "subdistribution" else "hazard ratio"


def ratio_of(own: Found, row: Found) -> dict[str, Any]:
    """The ratio of a coefficient of the model ``own``, with its limits."""
    return estimate(*_exponents(own, row))


def _exponents(own: Found, row: Found) -> tuple[float, float, float]:
    limits = row[shown(own)]
    value, low, high = (math.exp(min(v, 700.0)) for v in (row["estimate"], limits["lower"], limits["upper"]))
    return value, low, high


def _ratio(own: Found, row: Found) -> str:
    values = _exponents(own, row)
    return f"{written(values[0])} ({written(values[1])} to {written(values[2])})"


def _forests(key: str, own: Found, effect: str, ratio: bool) -> str:
    """The sites alone, combined in a second stage, and the model of all persons, of each coefficient."""
    out = []
    for row in own["coefficients"][:_FORESTS]:
        term, half = own["alone"]["terms"][row["term"]], own.get("quantile") or 1.959964
        drawn = [
            (
                site,
                {"value": one["estimate"], "low": one["estimate"] - half * one["error"], "high": one["estimate"] + half * one["error"]},
                "site",
            )
            for site, one in term["sites"].items()
            if one["estimate"] is not None and one["error"] is not None
        ]
        if (pooled := term["pooled"]) is not None:
            reml = pooled["random"]["reml"]
            drawn.append(("two stages (REML)", {"value": reml["estimate"], "low": reml["lower"], "high": reml["upper"]}, "two"))
        drawn.append(("one stage", {"value": row["estimate"], "low": row[shown(own)]["lower"], "high": row[shown(own)]["upper"]}, "one"))
        drawn = [line for line in drawn if None not in line[1].values()]
        alt = f"{row['term']}: " + "; ".join(f"{name} {one['value']:.3g} ({one['low']:.3g} to {one['high']:.3g})" for name, one, _ in drawn)
        out.append(f"<figure>{ratio_forest(drawn, (row['term'], effect), f'{alt}.', ratio=ratio)}</figure>")
    lacking = [site for site, fitted in own["alone"]["fitted"].items() if not fitted]
    without = f" Not fitted alone (too few events, or no finite maximum): {words.join(lacking)}." if lacking else ""
    more = f" The first {_FORESTS} of {len(own['coefficients'])} coefficients are drawn." if len(own["coefficients"]) > _FORESTS else ""
    note = (
        "One stage: the model of the persons of all sites. Two stages: each site's own model, combined with effects that differ between "
        f"sites (REML). Intervals of {100 * _level(own):.4g} %; an arrow: the interval goes on.{without}{more}"
    )
    return f'<h3 id="{key}-forest">One stage and two</h3>{paragraph(note, kind="note")}<div class="plots">{"".join(out)}</div>'


def _level(own: Found) -> float:
    half = own.get("quantile") or 1.959964
    return math.erf(half / math.sqrt(2))


def _meta(key: str, found: Found, ratio: bool) -> str:
    rows: list[list[Cell]] = []
    for row in found[key]["coefficients"]:
        name, pooled = row["term"], found[key]["alone"]["terms"][row["term"]]["pooled"]
        if pooled is None:
            continue
        at = (key, "alone", "terms", name, "pooled")
        for model in ("fixed", *pooled["random"]):
            place = (*at, model) if model == "fixed" else (*at, "random", model)
            rows.append([f"{name}, {_MODELS.get(model, model)}", *(Number(pointer(*place, k)) for k in _FOUR),
                         Number(pointer(*place, "p"), "p"), Number(pointer(*place, "between")),
                         Number(pointer(*at, "i2"), "percent") if model == "fixed" else "",
                         Number(pointer(*at, "q_p"), "p") if model == "fixed" else ""])  # fmt: skip
    if not rows:
        return paragraph("Fewer than two sites could be fitted alone, so there is no second stage.")
    heads = ["coefficient, combination", "log ratio" if ratio else "effect", "SE", "lower", "upper", "p", "tau²", "I²", "p of Q"]
    return table(found, "The sites' own models, combined", heads, rows)


def table1(study: Study, found: Found) -> str:
    """The table of the persons."""
    rows: list[list[Cell]] = [
        [str(row[0]), *(Number(pointer("rows", k, j), "plain") for j in range(1, len(row)))] for k, row in enumerate(found["rows"])
    ]
    note = "SD: standard deviation. SMD: the largest standardised mean difference between two groups." if "SMD" in found["heads"] else ""
    hidden = " Cells with … are hidden: a site has there fewer persons than it may tell of, or the cell would tell of such a one."
    return section("table-1", "Table 1", table(found, "The persons", found["heads"], rows, note + (hidden if found["hidden"] else "")))


def say_curves(study: Study, found: Found) -> list[str]:
    """The summary's sentences."""
    own, unit = found["curves"], found["unit"]
    out = []
    for name, group in _shown_groups(found).items():
        middle = group["quantiles"].get("0.5")
        who = f"{own['column']} {name}" if own["column"] else "All persons"
        events = f"{group['events']:,} of {group['persons']:,} with {found['event']}"
        median = f"median {written(middle, 'estimate')} {unit}" if middle and middle["value"] is not None else "the median is not reached"
        out.append(f"{who}: {events}, {median}.")
    if own.get("log_rank"):
        out.append(f"Log-rank test: p {p_text(own['log_rank']['p'])}; stratified by site: p {p_text(own['log_rank_by_site']['p'])}.")
    return out


def say_model(key: str) -> Callable[[Study, Found], list[str]]:
    """A function for the summary's sentences."""

    def say(study: Study, found: Found) -> list[str]:
        rows = found[key]["coefficients"]
        small = [row for row in rows if (row["robust"]["p"] if row["robust"]["p"] is not None else 1) < 0.05]
        what = "Cox model" if key == "cox" else "regression model"
        if not small:
            return [f"No coefficient of the {what} has a robust p below 0.05."]
        ratio = key == "cox" or found[key]["family"] != "gaussian"
        shown = [
            f"{row['term']} {_ratio(found[key], row) if ratio else written(row['estimate'])}"
            for row in sorted(small, key=lambda r: r["robust"]["p"])[:5]
        ]
        return [f"{len(small)} of {len(rows)} coefficients of the {what} have a robust p below 0.05, the smallest: {'; '.join(shown)}."]

    return say


def say_table(study: Study, found: Found) -> list[str]:
    """The summary's sentences."""
    return [f"{words.count(len(found['rows']) - 1, 'line')} over {found['all']:,} persons, by site and in all."]


def cards_curves(found: Found) -> list[tuple[str, str, str]]:
    """The page's cards."""
    groups = found["curves"]["groups"]
    whole = groups.get("all") or next(iter(groups.values()))
    test = found["curves"].get("log_rank")
    return [(found["event"], f"{whole['events']:,}", "events"),
            *([("log-rank", f"p {p_text(test['p'])}", "no difference between groups")] if test else [])]  # fmt: skip


def cards_model(key: str) -> Callable[[Found], list[tuple[str, str, str]]]:
    """A function for the page's cards."""

    def cards(found: Found) -> list[tuple[str, str, str]]:
        own = found[key]
        return [("coefficients", f"{len(own['coefficients'])}", "Cox model" if key == "cox" else _family(own).lower())]

    return cards
