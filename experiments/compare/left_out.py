"""Leave one site out: for each site, a model that the other sites trained, tested at the site; next to the federated model, on the same
persons. It tells how a model does at a hospital that it has not seen.

    rows = left_out(studies, sites, Path("fedml-runs"), console)      # a row for each site, then one for all
    console.print(left_out_table(study, rows))

The last row puts the sites' test persons together, each under the model that had not seen their site: several models, one figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedml.clients.site.manifest import Site
from fedml.errors import InputError
from fedml.experiments.compare.outputs import scores, together
from fedml.experiments.compare.tables import TOO_FEW, adjusted, p_value, signed, summarise, with_limits
from fedml.experiments.compare.train import FEDERATED, Trained, plan_training, train_all
from fedml.study.study import Study

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ALL = "all, each by the model without its site"


def left_out(
    studies: Sequence[Study], sites: Mapping[str, Site], runs: Path, console: Console
) -> tuple[list[Trained], list[dict[str, Any]]]:
    """The trained models, and one entry for each site, then one for all: ``site``, ``persons``, ``federated`` and ``without`` {mean, low,
    high, method}, ``difference`` (without minus federated, paired by person).

    Args:
        studies: the study, once for each seed.

    Raises:
        InputError: fewer than two sites train, bad site data, or a privacy budget that does not suffice. RunError: a run failed.
    """
    names = studies[0].federation.training
    if len(names) < 2:
        raise InputError("--leave-one-site-out needs at least two sites that train; [federation] sites has one.")
    planned = []
    for study in studies:
        planned.append(plan_training(study, sites, FEDERATED, list(sites), runs))
        planned += [plan_training(study, sites, without(name), [s for s in names if s != name], runs) for name in names]
    trained = train_all(planned, sites, runs, console)
    by_way = {who: [row for row in trained if row.who == who] for who in dict.fromkeys(row.who for row in trained)}
    study, federated = studies[0], by_way[FEDERATED]
    rows = [_entry(study, name, *([_at(study, r, [name]) for r in some] for some in (federated, by_way[without(name)]))) for name in names]
    unseen = [_merged(study, [_at(study, by_way[without(name)][k], [name]) for name in names]) for k in range(len(studies))]
    rows.append(_entry(study, ALL, [_at(study, r, names) for r in federated], unseen))
    return trained, adjusted(rows)


def without(site: str) -> str:
    """The name of the way to train that leaves ``site`` out."""
    return f"without {site}"


def _entry(study: Study, site: str, federated: Sequence[Trained], others: Sequence[Trained]) -> dict[str, Any]:
    first, second = summarise(study, [*federated, *(replace(row, who=without(site)) for row in others)])
    persons = [sum(own["persons"] for own in row.sites.values()) for row in others]
    return {
        "site": site, "persons": float(np.mean(persons)), "metric": first["watched"]["metric"],
        "federated": {k: v for k, v in first["watched"].items() if k != "metric"},
        "without": {k: v for k, v in second["watched"].items() if k != "metric"},
        "difference": second["difference"], "runs": second["runs"],
    }  # fmt: skip


def _at(study: Study, row: Trained, sites: Sequence[str]) -> Trained:
    """A trained model's results at some sites only."""
    if row.outputs is None:
        raise ValueError(f"{row.who} was not tested on this machine")
    own = row.outputs.at(sites)
    by_site = {site: row.sites[site] for site in own.counts}
    return replace(row, metrics=scores(study, own), counts=own.counts, sites=by_site, groups={}, external={}, outputs=own)


def _merged(study: Study, rows: Sequence[Trained]) -> Trained:
    """The results of several models at a site each, as if of one."""
    outputs = together([row.outputs for row in rows if row.outputs is not None])
    by_site = {site: own for row in rows for site, own in row.sites.items()}
    return replace(rows[0], metrics=scores(study, outputs), counts=outputs.counts, sites=by_site, outputs=outputs)


def left_out_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why a row has no figures or no difference."""
    return [
        f"{row['site']}: {TOO_FEW}" if not row["persons"] else f"{row['site']}: no difference: {row['difference']['method']}"
        for row in rows
        if row["difference"]["value"] is None
    ]


def left_out_table(study: Study, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each site: the federated model there, the model without the site, and the difference."""
    from rich.table import Table

    metric = rows[0]["metric"]
    out = Table(title=f"{study.study.name}: each site tested by a model that it did not train ({metric}, 95 % over persons)")
    for title, right in (("site", False), ("persons", True), ("federated", True), ("trained without it", True), ("difference", True)):
        out.add_column(title, justify="right" if right else "left", no_wrap=True)
    tests = sum(row["difference"] is not None and row["difference"]["p"] is not None for row in rows)
    for title in ("p", f"p, Holm of {tests}"):
        out.add_column(title, justify="right", no_wrap=True)
    for at, row in enumerate(rows):
        if at == len(rows) - 1:
            out.add_section()
        gap = row["difference"]
        p = (p_value(gap, "p"), p_value(gap, "p_adjusted"))
        persons = f"{row['persons']:.0f}" if row["persons"] else "too few"
        out.add_row(row["site"], persons, with_limits(row["federated"]), with_limits(row["without"]), signed(gap), *p)
    return out
