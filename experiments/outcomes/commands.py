"""``fedml survival STUDY``, ``fedml glm STUDY``, ``fedml describe STUDY``: analyses of outcomes over sites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedml.cli import grouped
from fedml.errors import InputError
from fedml.experiments.options import Json, Overrides, Seed, StudyFile, Track, Where
from fedml.experiments.runs.launch import Launched, closing_line, judge, launch, load_study, make_console

if TYPE_CHECKING:
    from rich.console import Console

    from fedml.experiments.runs.run import Job
    from fedml.study.study import Study


@grouped
def survival(
    study_file: StudyFile, where: Where, changes: Overrides = None, seed: Seed = None, as_json: Json = False, track: Track = True
) -> None:
    """Survival curves, their comparison and Cox regression over the persons of all sites ([survival.curves], [survival.cox]).

    With [treatment] instead: curves of two treatments weighted by a propensity score, with balance.tsv and propensity.tsv.

    Writes curves.tsv, tests.tsv, cox.tsv, meta.tsv, plots, outcomes.json and a page (outcomes.html) to the run's folder.

    Example: fedml survival experiments/studies/brca.toml --sites out/brca
    """
    study = load_study(study_file, changes, seed)
    if study.survival is None or (study.survival.curves is None and study.survival.cox is None and study.treatment is None):
        raise InputError(
            f"{study_file}: has no [survival.curves], [survival.cox] or [treatment] section; add one, [survival.curves] may be empty."
        )
    _run(study_file, study, where, "survival", as_json=as_json, track=track)


@grouped
def glm(
    study_file: StudyFile, where: Where, changes: Overrides = None, seed: Seed = None, as_json: Json = False, track: Track = True
) -> None:
    """Linear, logistic or Poisson regression over the persons of all sites, and a meta-analysis of the sites next to it ([glm]).

    With [treatment] instead: two treatments compared by weights from a propensity score. Writes glm.tsv, meta.tsv and a forest plot, or
    treatment.tsv, balance.tsv and propensity.tsv; outcomes.json and a page (outcomes.html) to the run's folder.

    Example: fedml glm experiments/studies/heart_glm.toml --sites out/heart
    """
    study = load_study(study_file, changes, seed)
    if study.glm is None and study.treatment is None:
        raise InputError(f'{study_file}: has no [glm] and no [treatment] section; add one, such as [glm] covariates = ["age", "sex"].')
    if study.survival is not None:
        raise InputError(f"{study_file}: its target is a time; use fedml survival.")
    _run(study_file, study, where, "glm", as_json=as_json, track=track)


@grouped
def describe(
    study_file: StudyFile, where: Where, changes: Overrides = None, seed: Seed = None, as_json: Json = False, track: Track = True
) -> None:
    """The table of the persons (Table 1), of each site and of all ([describe]).

    Writes table1.csv, table1.md, outcomes.json and a page (outcomes.html) to the run's folder.

    Example: fedml describe experiments/studies/heart_glm.toml --sites out/heart
    """
    study = load_study(study_file, changes, seed)
    if study.describe is None:
        raise InputError(f"{study_file}: has no [describe] section; add one, an empty one for all columns of [cohort.clinical].")
    _run(study_file, study, where, "describe", as_json=as_json, track=track)


def _run(study_file: Path, study: Study, where: Where, job: Job, *, as_json: bool, track: bool) -> None:
    from fedml.runs.events import Outcomes
    from fedml.runs.log import OUTCOMES_PAGE, last

    console = make_console(as_json)
    launched = launch(study_file, study, where, console, job, track=track)
    found = last(launched.outcome.events, Outcomes(analysis=job, seconds=0.0, sites={}, persons={}, found={}))
    if found.came:
        _show(found.found, console)
        console.print(f"tables, plots and {OUTCOMES_PAGE}: {launched.outcome.run}", soft_wrap=True)
    closing_line(launched, console)
    if as_json:
        print(json.dumps(_summary(launched, found)), flush=True)
    judge(launched)


def _summary(launched: Launched, found: Any) -> dict[str, Any]:
    """The object of ``--json``."""
    outcome = launched.outcome
    size = {"out": sum(r["bytes_out"] for r in found.sites.values()), "in": sum(r["bytes_in"] for r in found.sites.values())}
    return {
        "run_id": outcome.run.name, "status": outcome.status, "reason": outcome.reason, "study_sha256": launched.study.sha256,
        "seconds": outcome.seconds, "folder": str(outcome.run), "mlflow_run_id": launched.mlflow_run,
        "mlflow_error": launched.mlflow_error or None, "metrics": found.found, "bytes": size, "sites": list(found.sites),
    }  # fmt: skip


def _show(found: dict[str, Any], console: Console) -> None:
    """The main results as tables."""
    from rich.table import Table

    if "rows" in found:
        table = Table(*found["heads"], title="Table 1", title_justify="left")
        for row in found["rows"]:
            table.add_row(*map(str, row))
        console.print(table)
    for name in ("curves", "cox", "weighted_curves"):
        if name in found and (merged := found[name]["grid"]["merged"]):
            ends = len(found[name]["grid"]["ends"])
            console.print(f"{name}: exact on {ends} intervals; {len(merged)} ends of the study's grid were merged, which would tell of few",
                          soft_wrap=True)  # fmt: skip
    if "curves" in found:
        groups = found["curves"]["groups"]
        some = next(iter(groups.values()))
        table = Table("group", "persons", *(f"quantile {q}" for q in some["quantiles"]), *(f"mean to {h}" for h in some["restricted_mean"]))
        for name, group in groups.items():
            table.add_row(name, str(group["persons"]), *(_limits(v) for v in group["quantiles"].values()),
                          *(f"{_short(v[0])} (SE {_short(v[1])})" for v in group["restricted_mean"].values()))  # fmt: skip
        console.print(table)
        if (test := found["curves"]["log_rank"]) is not None:
            console.print(f"log-rank: chi2 {_short(test['chi2'])}, {test['df']} df, p {_short(test['p'])}")
    if "treatment" in found:
        own = found["treatment"]
        table = Table("difference", "estimate", "robust SE", "lower", "upper", "p", title=f"{own['measure']}, {own['estimand']}")
        for name in ("crude", "weighted"):
            table.add_row(name, *(_short(own[name][key]) for key in ("estimate", "error", "lower", "upper", "p")))
        console.print(table)
        worst = max((abs(row["smd_after"]) for row in own["balance"] if row["smd_after"] is not None), default=0.0)
        console.print(f"largest standardised mean difference after weighting: {worst:.3f}")
        if own["e_value"] is not None:
            console.print(f"E-value {_short(own['e_value']['estimate'])}, of the limit {_short(own['e_value']['limit'])}")
    if "weighted_curves" in found:
        _print_weighted(console, found["weighted_curves"])
    for name in ("cox", "glm"):
        if name in found:
            table = Table("covariate", "estimate", "SE", "p", "robust SE", "robust p")
            for row in found[name]["coefficients"]:
                own = [row[kind] for kind in ("model", "robust")]
                table.add_row(row["term"], _short(row["estimate"]), *(_short(o[k]) for o in own for k in ("error", "p")))
            console.print(table)


def _print_weighted(console: Console, own: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("difference of means", "estimate", "lower", "upper", "p", title=own["estimand"])
    for row in own["differences"]:
        name = f"to {row['horizon']:g}, {'weighted' if row['weighted'] else 'crude'}"
        table.add_row(name, *(_short(row[key]) for key in ("estimate", "lower", "upper", "p")))
    console.print(table)
    if (ratio := own["hazard_ratio"]) is not None:
        console.print(f"weighted log hazard ratio {_short(ratio['estimate'])}, robust SE {_short(ratio['error'])}, p {_short(ratio['p'])}")
    worst = max((abs(row["smd_after"]) for row in own["balance"] if row["smd_after"] is not None), default=0.0)
    console.print(f"largest standardised mean difference after weighting: {worst:.3f}")


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"


def _limits(values: list[Any]) -> str:
    return f"{_short(values[0])} ({_short(values[1])} to {_short(values[2])})"
