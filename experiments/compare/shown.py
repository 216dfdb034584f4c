"""Results of an evaluated model as JSON values and as a table: each measure with its interval, for each site and for all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedml.experiments.compare.outputs import around
from fedml.experiments.runs.record import Record
from fedml.study.study import Study
from fedml.tasks.counts import add_counts
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task

if TYPE_CHECKING:
    from rich.table import Table

Counts = Mapping[str, Any]
ALL = "all, merged"


def evaluated(record: Record) -> list[dict[str, Any]]:
    """One entry for each site and for all of a part with several sites: ``site``, ``part``, ``persons``, ``metrics`` {name: {value, low,
    high, method}}. The part ``test`` is of sites that trained the model, if the roster has any."""
    out = []
    for part in ("test", "external"):
        counts = {site: own for site, own in record.counts.get(part, {}).items() if float(own["persons"][0]) > 0}
        ordered = [site for site in record.study.federation.sites if site in counts]
        out += [{"site": site, "part": part, **measures(record.study, [counts[site]])} for site in ordered]
        if len(ordered) > 1:
            out.append({"site": ALL, "part": part, **measures(record.study, [counts[site] for site in ordered])})
    return out


def measures(study: Study, parts: Sequence[Counts], exact: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Persons and measures of the merged counts of ``parts``; ``exact``: measures of the same persons' outputs."""
    task, found = make_task(study), dict[str, Any]()
    values = task.metrics(add_counts(parts)) if exact is None else exact
    for name, value in values.items():
        if name == "persons" or task.described(name).counted:
            continue
        limits = around(interval(parts, task, name, seed=study.study.seed), value)
        found[name] = {"value": _number(value), "low": _number(limits.low), "high": _number(limits.high), "method": limits.method}
    return {"persons": float(values["persons"]), "metrics": found}


def evaluated_table(record: Record, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each site, measures below each other with their intervals."""
    from rich.table import Table

    task = make_task(record.study)
    names = [name for name in rows[0]["metrics"] if "/" not in name and task.described(name).brief]
    out = Table(title=f"{record.study.study.name}: the finished model, 95 % intervals over persons", title_justify="left")
    out.add_column("site", no_wrap=True)
    out.add_column("persons", justify="right")
    for name in names:
        out.add_column(name.replace("_", " "), justify="right", overflow="fold")
    trained = set(record.study.federation.training)
    for at, row in enumerate(rows):
        if at and rows[at - 1]["part"] != row["part"]:
            out.add_section()
        label = f"{row['site']} (trained the model)" if row["site"] in trained else row["site"]
        out.add_row(label, f"{row['persons']:.0f}", *(_cell(row["metrics"].get(name)) for name in names))
    return out


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "-"
    limits = f"{found['low']:.3f}-{found['high']:.3f}" if found["low"] is not None else ""
    return f"{found['value']:.3f}\n{limits}"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
