"""Cross-validation by person: each person is tested once, by a model that did not train on the person.

    result = cross_validate(study, 5, sites, Path("fedml-runs"), console)
    console.print(folds_table(study, result))

The keyed hash of a person's id (``fedml.cohort.table.part_of``) tells the fold in which the person is tested: a person with the same id at
two sites is tested in the same fold, and no person changes fold as a cohort grows. Pooled figures are of the outputs of all folds together:
predictions of as many models as folds, whose scores need not be on one scale. Their intervals are over persons and do not include that the
models would be others with other training persons; the spread over the folds is given beside them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedml.clients.site.manifest import Site
from fedml.clients.site.read import load_cohort
from fedml.errors import InputError
from fedml.experiments.compare.outputs import Outputs, scores, together
from fedml.experiments.compare.shown import ALL, measures
from fedml.experiments.compare.train import Trained, plan_training, train_all
from fedml.study.study import Study, parse_study
from fedml.tasks.registry import make_task

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class Validated:
    """``folds``: the trained model of each. ``rows``: one for each site, then one for all, with ``site``, ``persons``, ``metrics`` {name:
    {value, low, high, method}} and ``folds`` {name: {mean, sd, low, high}}. ``persons``: who could be tested, by site."""

    folds: list[Trained]
    rows: list[dict[str, Any]]
    persons: dict[str, int]


def fold_study(study: Study, folds: int, fold: int) -> Study:
    """The same study in which fold ``fold`` (from 1) of ``folds`` is tested; the others train, with as large a share for val as before."""
    split = study.cohort.split
    whole, test = split.train + split.val, 1 / folds
    train = (1 - test) * (split.train / whole if whole else 1.0)
    plan = study.model_dump(mode="json")
    plan["cohort"]["split"] = {"train": train, "val": max(1 - test - train, 0.0), "test": test, "folds": folds, "fold": fold}
    return parse_study(json.dumps(plan))


def cross_validate(study: Study, folds: int, sites: Mapping[str, Site], runs: Path, console: Console) -> Validated:
    """Trains a model for each fold and tests it on the fold's persons.

    Args:
        sites: those of the study; of its ``evaluate_only`` none is used.

    Raises:
        InputError: a site has a split file, the study has privacy, fewer than two folds, bad site data. RunError: a run failed.
    """
    if folds < 2:
        raise InputError(f"--folds {folds}: give 2 or more.")
    if study.privacy.unit != "none":
        raise InputError(
            f'--folds is not built for [privacy] unit = "{study.privacy.unit}": each person would train {folds - 1} models; give '
            "--set privacy.unit=none where the data are yours."
        )
    names = study.federation.training
    for name in names:
        if sites[name].manifest.data.split is not None:
            raise InputError(f"{sites[name].file}: [data] split fixes who is tested, so --folds cannot; remove the split file.")
    plan = study.model_dump(mode="json")
    plan["federation"] |= {"sites": list(names), "evaluate_only": []}
    only = parse_study(json.dumps(plan))
    found = {name: sites[name] for name in names}
    studies = [fold_study(only, folds, k) for k in range(1, folds + 1)]
    planned = [plan_training(s, found, f"fold {k} of {folds}", list(names), runs) for k, s in enumerate(studies, start=1)]
    trained = train_all(planned, found, runs, console)
    persons = {name: len(load_cohort((str(site.file),), studies[0])) for name, site in found.items()}
    pooled = together([row.outputs for row in trained if row.outputs is not None])
    rows = [
        _row(only, name, pooled.at([name]), [r.sites[name] for r in trained if name in r.sites]) for name in names if name in pooled.counts
    ]
    rows.append(_row(only, ALL, pooled, [row.metrics for row in trained]))
    return Validated(trained, rows, persons)


def _row(study: Study, site: str, pooled: Outputs, each: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    found = measures(study, list(pooled.counts.values()), scores(study, pooled))
    spread = {name: _spread([values.get(name, math.nan) for values in each]) for name in found["metrics"]}
    return {"site": site, **found, "folds": spread}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, lowest and highest value of the folds in which a measure is defined."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return dict.fromkeys(("mean", "sd", "low", "high"))
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "sd": sd, "low": min(known), "high": max(known)}


def untested(result: Validated) -> list[str]:
    """Sentences about sites of whose persons not all were tested."""
    tested = {row["site"]: int(row["persons"]) for row in result.rows}
    return [
        f"{name}: {tested.get(name, 0)} of {persons} persons were tested: in some folds it has fewer test persons than min_count allows; "
        "use fewer folds"
        for name, persons in result.persons.items()
        if tested.get(name, 0) < persons
    ]


def folds_table(study: Study, result: Validated) -> Table:
    """A row for each site and for all: pooled predictions with interval, then mean, SD and range over the folds."""
    from rich.table import Table

    watched = make_task(study).watched
    out = Table(title=f"{study.study.name}: {len(result.folds)}-fold cross-validation by person, {watched}", title_justify="left")
    for title, right in (("site", False), ("persons", True), ("pooled predictions [95 % over persons]", True), ("mean of folds", True),
                         ("SD", True), ("lowest - highest fold", True)):  # fmt: skip
        out.add_column(title, justify="right" if right else "left", no_wrap=title == "site")
    for at, row in enumerate(result.rows):
        if at == len(result.rows) - 1:
            out.add_section()
        pooled, folds = row["metrics"].get(watched), row["folds"].get(watched) or _spread([])
        limits = "" if pooled is None or pooled["low"] is None else rf" \[{pooled['low']:.3f}, {pooled['high']:.3f}]"
        cells = (_number(pooled and pooled["value"]) + limits, _number(folds["mean"]), _number(folds["sd"]))
        out.add_row(row["site"], f"{row['persons']:.0f}", *cells, f"{_number(folds['low'])} - {_number(folds['high'])}")
    return out


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"
