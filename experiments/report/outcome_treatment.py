"""The sections of a comparison of treatments in the report of an analysis of outcomes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedml.experiments.report.markup import Cell, Number, paragraph, picture, section, table, written
from fedml.experiments.report.outcome_tables import estimate, grid_words, p_text
from fedml.experiments.report.pointers import pointer
from fedml.experiments.report.survival_plots import curve_plot
from fedml.strategies.outcomes.treated import coarse_words
from fedml.study.study import Study

Found = Mapping[str, Any]
_BALANCE = [f"{who}_{when}" for when in ("before", "after") for who in ("control", "treated", "smd")]
_ARM: tuple[tuple[str, Any], ...] = (
    ("persons", "count"), ("trimmed", "count"), ("effective", "measure"), ("crude_mean", "measure"), ("mean", "measure"),
    ("error", "measure"),
)  # fmt: skip
_CAUSES = "treatments alone only if every common cause of treatment and outcome is in the propensity model."


def treatment(study: Study, found: Found) -> str:
    """The weighted difference of a number or two classes."""
    own = found["treatment"]
    control, treated = (arm["level"] for arm in own["arms"])
    labels = {
        "crude": f"{own['measure']} difference, crude",
        "weighted": f"{own['measure']} difference, weighted",
        "ratio": "risk ratio, weighted",
    }
    rows: list[list[Cell]] = [
        [label, *(Number(pointer("treatment", name, k)) for k in ("estimate", "error", "lower", "upper")),
         Number(pointer("treatment", name, "p"), "p")] for name, label in labels.items() if own.get(name)
    ]  # fmt: skip
    if own.get("e_value"):
        rows += [[f"E-value of the {what}", Number(pointer("treatment", "e_value", k)), "", "", "", ""] for what, k in
                 (("ratio", "estimate"), ("limit nearer to 1", "limit"))]  # fmt: skip
    arms: list[list[Cell]] = [
        [arm["level"], *(Number(pointer("treatment", "arms", k, key), kind) for key, kind in _ARM)] for k, arm in enumerate(own["arms"])
    ]
    text = (
        f"{own['outcome']} of {treated} less {control}, weighted by a propensity score ({own['estimand'].upper()}). The comparison is of "
        f"{_CAUSES}"
    )
    arm_heads = ["treatment", "persons", "left out", "effective persons", f"crude {own['measure']}", f"weighted {own['measure']}", "SE"]
    return section(
        "treatment", "Comparison of treatments", paragraph(text),
        table(found, "Effect", ["effect", "estimate", "SE", "lower", "upper", "p"], rows),
        table(found, "Treatments", arm_heads, arms), *_balance("treatment", found, (control, treated)),
    )  # fmt: skip


def _balance(key: str, found: Found, arms: tuple[str, str]) -> list[str]:
    """Tables of the balance and of the propensity model."""
    own = found[key]
    balance: list[list[Cell]] = [
        [row["column"], *(Number(pointer(key, "balance", k, field)) for field in _BALANCE)] for k, row in enumerate(own["balance"])
    ]
    heads = ["column", *(f"{who}, {when}" for when in ("before", "weighted") for who in (*arms, "SMD"))]
    model: list[list[Cell]] = [
        [row["term"], Number(pointer(key, "propensity", k, "estimate")), Number(pointer(key, "propensity", k, "model", "error")),
         Number(pointer(key, "propensity", k, "model", "p"), "p")] for k, row in enumerate(own["propensity"])
    ]  # fmt: skip
    note = "SMD: difference of means over the standard deviation before weighting; below 0.1 is usually called balanced."
    return [
        table(found, "Balance", heads, balance, note),
        table(found, "Propensity model", ["term", "log odds ratio", "SE", "p"], model),
    ]


def weighted_curves(study: Study, found: Found) -> str:
    """Weighted survival of two treatments."""
    own, unit, event = found["weighted_curves"], found["unit"], found["event"]
    groups, level = own["groups"], f"{100 * own['level']:g} %"
    control, treated = groups
    alt = "Weighted Kaplan-Meier curves. " + "; ".join(
        f"{n}: {g['persons']:,} persons, {g['events']:,} with {event}" for n, g in groups.items()
    )
    svg = curve_plot(groups, unit, f"without {event}", f"{alt}.")
    caption = f"Weighted Kaplan-Meier with {level} bands (log-log, robust), and the persons at risk, not weighted."
    at = ("weighted_curves", "groups")
    first = groups[control]
    arms: list[list[Cell]] = [
        [name, Number(pointer(*at, name, "persons"), "count"), Number(pointer(*at, name, "events"), "count"),
         Number(pointer(*at, name, "effective")),
         *(Number(pointer(*at, name, "restricted_mean", h), "estimate") for h in first["restricted_mean"])] for name in groups
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [f"mean to {row['horizon']:g} {unit}, {'weighted' if row['weighted'] else 'crude'}",
         *(Number(pointer("weighted_curves", "differences", k, key)) for key in ("estimate", "lower", "upper")),
         Number(pointer("weighted_curves", "differences", k, "p"), "p")] for k, row in enumerate(own["differences"])
    ]  # fmt: skip
    if own["hazard_ratio"] is not None:
        rows.append([f"log hazard ratio of {event}, weighted",
                     *(Number(pointer("weighted_curves", "hazard_ratio", key)) for key in ("estimate", "lower", "upper")),
                     Number(pointer("weighted_curves", "hazard_ratio", "p"), "p")])  # fmt: skip
        rows.append(["log-rank, weighted (robust score)", "", "", "", Number(pointer("weighted_curves", "log_rank", "p"), "p")])
    text = f"{treated} less {control}, weighted by a propensity score ({own['estimand'].upper()}). The comparison is of {_CAUSES}"
    note = f"Limits of {level}. Standard errors are robust and take the weights as known. A dash: nobody is observed until then."
    return section(
        "weighted-curves", "Comparison of treatments", paragraph(text, grid_words(own["grid"], unit) + coarse_words(own)),
        picture(svg, "Survival, weighted", caption),
        table(found, "Effect", ["effect", "estimate", "lower", "upper", "p"], rows, note),
        table(found, "Treatments", ["treatment", "persons", event, "effective persons",
                                    *(f"weighted mean to {h} ({unit})" for h in first["restricted_mean"])], arms),
        *_balance("weighted_curves", found, (control, treated)),
    )  # fmt: skip


def _worst(own: Found) -> str:
    worst = max((abs(r["smd_after"]) for r in own["balance"] if r["smd_after"] is not None), default=0.0)
    return f"Largest standardised mean difference after weighting: {worst:.3f}."


def say_treatment(study: Study, found: Found) -> list[str]:
    """The summary's sentences."""
    own, one = found["treatment"], found["treatment"]["weighted"]
    text = f"Weighted difference {written(estimate(one['estimate'], one['lower'], one['upper']), 'estimate')}, p {p_text(one['p'])}."
    return [text, _worst(own)]


def say_weighted_curves(study: Study, found: Found) -> list[str]:
    """The summary's sentences."""
    own, out = found["weighted_curves"], list[str]()
    if (one := own["hazard_ratio"]) is not None:
        value, low, high = (math.exp(min(one[key], 700.0)) for key in ("estimate", "lower", "upper"))
        out.append(f"Weighted hazard ratio {written(estimate(value, low, high), 'estimate')}, p {p_text(one['p'])}.")
    known = [row for row in own["differences"] if row["weighted"] and row["estimate"] is not None]
    for last in known[-1:]:
        gap = written(estimate(last["estimate"], last["lower"], last["upper"]), "estimate")
        out.append(f"Weighted difference of means to {last['horizon']:g} {found['unit']} {gap}, p {p_text(last['p'])}.")
    return [*out, _worst(own)]


def cards_treatment(found: Found) -> list[tuple[str, str, str]]:
    """The page's cards."""
    return [("weighted difference", written(found["treatment"]["weighted"]["estimate"]), found["treatment"]["measure"])]


def cards_weighted_curves(found: Found) -> list[tuple[str, str, str]]:
    """The page's cards."""
    own = found["weighted_curves"]
    return [(found["event"], f"{sum(g['events'] for g in own['groups'].values()):,}", "events")]
