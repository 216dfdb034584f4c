"""Tables, plots and the page of an analysis of outcomes, from its results as they are in ``outcomes.json``.

Every table is written from those results and nothing else, so it can be made again from the file.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

from fedml.runs.log import OUTCOMES_PAGE, write_whole
from fedml.strategies.outcomes.plots import curve_plot, forest_plot
from fedml.study.study import Study

Rows = list[list[Any]]
NORMAL = NormalDist()
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:76rem;padding:1rem;color:#1a1a1a}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.2rem .6rem;text-align:right;"
    "border-bottom:1px solid #ddd;white-space:nowrap}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
    "@media(max-width:40rem){td,th{padding:.15rem .3rem;font-size:.8rem;white-space:normal}}"
)


def number(value: Any, digits: int = 4) -> str:
    """A number for a reader; a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return str(value) if isinstance(value, int | str) else f"{value:.{digits}g}"


def p_value(value: Any) -> str:
    """p for a reader."""
    return "–" if value is None else "<0.0001" if value < 1e-4 else f"{value:.4f}"


def write_table(path: Path, heads: Sequence[str], rows: Rows, *, separator: str = "\t") -> None:
    """A table of plain text, numbers in full."""

    def cell(value: Any) -> str:
        text = "" if value is None else repr(value) if isinstance(value, float) else str(value)
        return f'"{text.replace(chr(34), chr(34) * 2)}"' if separator in text or '"' in text or "\n" in text else text

    lines = [separator.join(map(cell, line)) for line in ([*heads], *rows)]
    write_whole(path, ("\n".join(lines) + "\n").encode())


def html_table(heads: Sequence[str], rows: Rows, caption: str = "") -> str:
    """A table of the page, in a box that scrolls on a small screen."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    title = f"<h2>{html.escape(caption)}</h2>" if caption else ""
    return f'{title}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def write_page(path: Path, study: Study, parts: Sequence[str]) -> None:
    """The page ``path`` of these parts."""
    name, question = html.escape(study.study.name), html.escape(study.study.question)
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name}</title><style>{_STYLE}</style></head><body><h1>{name}</h1><p>{question}</p>{''.join(parts)}</body></html>\n"
    )
    write_whole(path, text.encode())


def grid_sentence(grid: Mapping[str, Any], unit: str, public_grid: int) -> str:
    """What the grid of an analysis was, and where intervals were merged."""
    ends, merged = grid["ends"], grid["merged"]
    text = f"Times are rounded up to {len(ends)} ends of intervals; everything is exact for these times."
    if merged:
        shown = ", ".join(f"{end:g}" for end in merged[:30]) + (" and more" if len(merged) > 30 else "")
        text += (
            f" {len(merged)} of the {public_grid} intervals of the study's grid were merged with the next, because some site would have "
            f"told of few persons; these ends ({unit}) were left out: {shown}."
        )
    return text


FEW_INTERVALS = 10


def unknown_sentence(groups: Mapping[str, Any]) -> str:
    """Why a restricted mean is missing; "" if none is."""
    if all(mean is not None for group in groups.values() for mean, _ in group["restricted_mean"].values()):
        return ""
    return " A mean to a time is missing where nobody of the group is observed until then and not everybody has had the event."


def coarse_sentence(found: Mapping[str, Any]) -> str:
    """A warning where the grid of a Cox model is so coarse that its coefficients are too small."""
    if found["intervals"] >= FEW_INTERVALS or not found["grid"]["merged"]:
        return ""
    other = ', or set ties = "breslow", which sends less of each interval' if found["ties"] == "efron" else ""
    return (
        f" With {found['intervals']} intervals many events are ties and the coefficients are too near 0: use fewer covariates with rare "
        f"levels{other}."
    )


def write_survival(run: Path, study: Study, found: Mapping[str, Any]) -> None:
    """``curves.tsv``, ``tests.tsv``, ``cox.tsv``, ``meta.tsv``, the plots and the page."""
    parts, unit, intervals = list[str](), found["unit"], len(study.times.edges)
    if "curves" in found:
        parts += _curves(run, found["curves"], unit, found["event"], intervals)
    if "cox" in found:
        parts += _cox(run, found["cox"], unit, intervals)
    write_page(run / OUTCOMES_PAGE, study, parts)


def _curves(run: Path, found: Mapping[str, Any], unit: str, event: str, intervals: int) -> list[str]:
    rows: Rows = []
    for name, group in found["groups"].items():
        curve, hazard = group["survival"], group["hazard"]
        incidence = [group["incidence"][cause] for cause in group.get("incidence", {})]
        for k, time in enumerate(group["time"]):
            rows.append([name, time, group["at_risk"][k], *(cause[k] for cause in group["causes"]),
                         *(curve[field][k] for field in ("estimate", "error", "lower", "upper")),
                         *(hazard[field][k] for field in ("estimate", "error", "lower", "upper")),
                         *(one[field][k] for one in incidence for field in ("estimate", "error", "lower", "upper"))])  # fmt: skip
    four = ("", "_se", "_lower", "_upper")
    heads = ["group", f"time_{unit}", "at_risk", *(f"events_{cause}" for cause in found["causes"]),
             *(f"survival{end}" for end in four), *(f"hazard{end}" for end in four)]  # fmt: skip
    if len(found["causes"]) > 1:
        heads += [f"incidence_{cause}{end}" for cause in found["causes"] for end in four]
    write_table(run / "curves.tsv", heads, rows)
    svg = curve_plot(found, unit, event)
    write_whole(run / "curves.svg", svg.encode())
    summary: Rows = []
    for name, group in found["groups"].items():
        cells = [name, group["persons"], group["events"], number(group["person_time"], 6)]
        cells += [_interval(value) for value in group["quantiles"].values()]
        cells += [f"{number(mean)} ({number(error, 2)})" for mean, error in group["restricted_mean"].values()]
        cells.append(_interval(group["follow_up"]))
        summary.append(cells)
    first = next(iter(found["groups"].values()))
    level = f"{100 * found['level']:g} % interval"
    heads = ["group", "persons", event, f"person-{unit}", *(f"quantile {q} ({level})" for q in first["quantiles"]),
             *(f"mean to {h} (SE)" for h in first["restricted_mean"]), "median follow-up"]  # fmt: skip
    words = grid_sentence(found["grid"], unit, intervals) + unknown_sentence(found["groups"])
    parts = [f"<p>{html.escape(words)}</p>", svg, html_table(heads, summary, "Survival")]
    tests: Rows = []
    for name, label in (("log_rank", "log-rank"), ("log_rank_by_site", "log-rank, stratified by site")):
        if name in found:
            tests.append([label, found[name]["chi2"], found[name]["df"], found[name]["p"]])
    for row in found.get("differences", []):
        tests.append([f"mean to {row['horizon']:g}: {row['group']} less {row['less']}, {number(row['estimate'], 6)} "
                      f"({number(row['lower'], 6)} to {number(row['upper'], 6)})", None, None, row["p"]])  # fmt: skip
    if tests:
        write_table(run / "tests.tsv", ["test", "chi2", "df", "p"], tests)
        parts.append(html_table(["test", "chi2", "df", "p"], [[r[0], number(r[1]), number(r[2]), p_value(r[3])] for r in tests], "Tests"))
    sites: Rows = [[site, group, c["persons"], c["events"], number(c["person_time"], 6)] for site, own in found["sites"].items()
                   for group, c in own.items()]  # fmt: skip
    parts.append(html_table(["site", "group", "persons", event, f"person-{unit}"], sites, "Sites"))
    return parts


def _interval(value: Sequence[Any]) -> str:
    return f"{number(value[0])} ({number(value[1])} to {number(value[2])})"


def _cox(run: Path, found: Mapping[str, Any], unit: str, intervals: int) -> list[str]:
    write_coefficients(run / "cox.tsv", found["coefficients"])
    rows: Rows = []
    for row, test in zip(found["coefficients"], found["proportional"]["terms"], strict=True):
        own = row[found["shown"]]
        ratio = " ".join(
            [number(math.exp(row["estimate"]), 3), f"({number(exponent(own['lower']), 3)} to {number(exponent(own['upper']), 3)})"]
        )
        rows.append([row["term"], ratio, number(row["estimate"]), number(own["error"], 3), number(row["robust"]["error"], 3),
                     p_value(own["p"]), p_value(row["robust"]["p"]), p_value(test["p"])])  # fmt: skip
    ratio_word = "subdistribution hazard ratio" if found["hazard"] == "subdistribution" else "hazard ratio"
    heads = ["covariate", ratio_word, f"log {ratio_word}", "SE", "robust SE", "p", "robust p", "p, proportional hazards"]
    whole = found["proportional"]["global"]
    stratified = ", stratified by site" if found["stratified"] else ""
    kind = " of subdistribution hazards (Fine and Gray)" if found["hazard"] == "subdistribution" else ""
    weighted = f", weighted by {found['weights']}" if found["weights"] else ""
    robust = found["shown"] == "robust"  # with weights there is no likelihood ratio
    test = found["wald"] if robust else found["likelihood_ratio"]
    whole_test = f"{'Wald test' if robust else 'Likelihood ratio'} {number(test['chi2'])} on {test['df']} df, p {p_value(test['p'])}"
    text = (
        f"Cox regression{kind} of {sum(found['persons'].values())} persons with {sum(found['events'].values())} events, ties by "
        f"{found['ties']}{stratified}{weighted}. {'Intervals and the test of all are by the robust variance. ' if robust else ''}"
        f"{grid_sentence(found['grid'], unit, intervals)}{coarse_sentence(found)} {whole_test}; proportional hazards, all together: p "
        f"{p_value(whole['p'])}."
    )
    parts = ["<h2>Cox regression</h2>", f"<p>{html.escape(text)}</p>", html_table(heads, rows)]
    return parts + write_meta(run, found, ratio=True)


def exponent(value: float) -> float:
    """exp of a coefficient, finite for any."""
    return math.exp(min(value, 700.0))


def write_coefficients(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A row for each coefficient, with each kind of variance."""
    kinds = [kind for kind in rows[0] if kind not in ("term", "estimate")]
    heads = ["term", "estimate", *(f"{kind}_{field}" for kind in kinds for field in ("error", "lower", "upper", "p"))]
    write_table(
        path, heads, [[r["term"], r["estimate"], *(r[k][f] for k in kinds for f in ("error", "lower", "upper", "p"))] for r in rows]
    )


def _alone(one: Mapping[str, Any]) -> list[Any]:
    """Estimate, standard error, Wald limits of 95 % and p of a site by itself; None where it was not fitted."""
    if one["estimate"] is None or one["error"] is None:
        return [one["estimate"], one["error"], None, None, None]
    half = NORMAL.inv_cdf(0.975) * one["error"]
    p = 2 * NORMAL.cdf(-abs(one["estimate"] / one["error"]))
    return [one["estimate"], one["error"], one["estimate"] - half, one["estimate"] + half, p]


def write_meta(run: Path, found: Mapping[str, Any], *, ratio: bool) -> list[str]:
    """``meta.tsv`` and ``forest.svg``: each site alone and combined, next to the model of all; the part of the page."""
    rows: Rows = []
    for row in found["coefficients"]:
        term = found["alone"]["terms"][row["term"]]
        own = row[found.get("shown", "model")]
        rows.append([row["term"], "one-stage", row["estimate"], *(own[key] for key in ("error", "lower", "upper", "p")), *[None] * 3])
        rows += [[row["term"], f"site {site}", *_alone(one), *[None] * 3] for site, one in term["sites"].items()]
        pooled = term["pooled"]
        if pooled is None:
            continue
        for name, one in {"fixed": pooled["fixed"], **pooled["random"]}.items():
            rows.append([row["term"], name, one["estimate"], one["error"], one["lower"], one["upper"], one["p"], one["between"],
                         pooled["i2"], pooled["q_p"]])  # fmt: skip
        rows.append([row["term"], "prediction", None, None, *pooled["prediction"], *[None] * 4])
        for site, one in zip(term["sites"], pooled["without"], strict=True):
            if one is not None:
                rows.append([row["term"], f"without {site}", one["estimate"], one["error"], one["lower"], one["upper"], one["p"],
                             one["between"], None, None])  # fmt: skip
    heads = ["term", "model", "estimate", "error", "lower", "upper", "p", "tau2", "i2", "q_p"]
    write_table(run / "meta.tsv", heads, rows)
    svg = forest_plot(found, ratio=ratio)
    write_whole(run / "forest.svg", svg.encode())
    names = {"fixed": "fixed effect", "dersimonian_laird": "DerSimonian-Laird", "reml": "REML", "hartung_knapp": "Hartung-Knapp"}
    heads = ["", "", "log ratio" if ratio else "estimate", "SE", "lower", "upper", "p", "tau²", "I²", "p of Q"]
    shown = [
        [
            row[0] if row[1] == "one-stage" else "",
            names.get(row[1], row[1]),
            *(number(v, 3) for v in row[2:6]),
            p_value(row[6]),
            *(number(v) for v in row[7:9]),
            p_value(row[9]),
        ]
        for row in rows
    ]
    lacking = [site for site, fitted in found["alone"]["fitted"].items() if not fitted]
    note = f"<p>Not fitted alone (too few events, or no finite maximum): {html.escape(', '.join(lacking))}.</p>" if lacking else ""
    return ["<h2>One stage and two</h2>", note, svg, html_table(heads, shown)]


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the run's log has of the results: coefficients, tests, persons and the grid."""
    out: dict[str, Any] = {}
    if "curves" in found:
        own = found["curves"]
        out["curves"] = {
            "grid": own["grid"], "log_rank": own.get("log_rank"), "log_rank_by_site": own.get("log_rank_by_site"),
            "groups": {name: {k: group[k] for k in ("persons", "person_time", "quantiles", "restricted_mean", "follow_up")}
                       for name, group in own["groups"].items()},
        }  # fmt: skip
    if "cox" in found:
        out["cox"] = {k: found["cox"][k] for k in ("grid", "coefficients", "persons", "events", "log_likelihood", "proportional")}
    if "treatment" in found:
        own = found["treatment"]
        kept = ("estimand", "measure", "arms", "crude", "weighted", "ratio", "e_value", "balance", "propensity")
        out["treatment"] = {k: own[k] for k in kept}
    if "weighted_curves" in found:
        own = found["weighted_curves"]
        parts = ("estimand", "grid", "differences", "hazard_ratio", "log_rank", "balance", "propensity")
        short = ("persons", "events", "effective", "restricted_mean")
        out["weighted_curves"] = {k: own[k] for k in parts} | {
            "groups": {name: {k: group[k] for k in short} for name, group in own["groups"].items()}
        }
    if "glm" in found:
        out["glm"] = {k: found["glm"][k] for k in ("family", "coefficients", "persons", "log_likelihood", "standardised")}
    return out
