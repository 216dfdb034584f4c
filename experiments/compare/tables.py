"""What a comparison says: means over seeds, intervals over persons, paired differences; by site and by subgroup. Tables and JSON.

*Interval over persons*: bootstrap of persons within their site (Efron and Tibshirani 1993). Where seeds split persons differently, a
person is drawn once for all seeds, so one who is tested with two seeds counts as one person. *Over seeds*: Student's t of the differences
between runs with the same seed. A difference is the row's less the first row's, on the same persons and seeds; of runs that test others
``method`` says how many are shared. p values are of one comparison each, not adjusted for how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.experiments.compare.outputs import Outputs
from fedml.experiments.compare.train import Trained
from fedml.learning.differences import Difference, over_seeds, paired_bootstrap, unpaired
from fedml.study.study import Study
from fedml.tasks.classification_measures import FEW
from fedml.tasks.drawn import Statistic
from fedml.tasks.interval_tools import Interval
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task
from fedml.tasks.task import built

if TYPE_CHECKING:
    from rich.table import Table

_WIDE = 3  # columns with limits that a terminal has room for


def summarise(study: Study, rows: Sequence[Trained]) -> list[dict[str, Any]]:
    """One entry a way to train, the first being what the others are compared with.

    ``watched`` {metric, mean, low, high, method}, ``metrics`` {name: {mean, sd}}, ``difference`` (over persons) and ``over_seeds``
    {value, low, high, p, method} or None, ``sites`` and ``groups`` {name: {mean, low, high, persons}}, ``worst_site``, ``recovery``.
    """
    task = make_task(study)
    whos = list(dict.fromkeys(r.who for r in rows))
    by_who = {who: [r for r in rows if r.who == who] for who in whos}
    first, out = by_who[whos[0]], []
    for who, mine in by_who.items():
        told, difference = _over_persons(study, first, mine)
        gaps = [a.metrics[task.watched] - b.metrics[task.watched] for a, b in zip(mine, first, strict=True)]
        names = [n for n in mine[0].metrics if n != "persons" and task.described(n).brief]
        sites = {s: _where(study, [(r.counts[s], r.sites[s]) for r in mine if s in r.counts]) for s in mine[0].counts}
        labels = list(dict.fromkeys(label for r in mine for label in r.groups))
        groups = {g: _plain([r.groups[g]["all"] for r in mine if g in r.groups], task.watched) for g in labels}
        valid = {s: w["mean"] for s, w in sites.items() if w["mean"] is not None}
        out.append(
            {
                "who": who,
                "seeds": [r.seed for r in mine],
                "watched": {"metric": task.watched, **told},
                "metrics": {n: _spread([r.metrics.get(n, math.nan) for r in mine]) for n in names},
                "difference": _of(difference) if who != whos[0] else None,
                "over_seeds": _of(over_seeds(gaps)) if who != whos[0] and len(mine) > 1 else None,
                "sites": sites,
                "worst_site": (min if task.higher else max)(valid, key=lambda s: valid[s]) if valid else None,
                "groups": groups,
                "recovery": float(np.mean([r.recovery for r in mine if r.recovery is not None])) if mine[0].recovery is not None else None,
                "runs": [str(r.run) for r in mine],
            }
        )
    return out


def _over_persons(study: Study, first: Sequence[Trained], mine: Sequence[Trained]) -> tuple[dict[str, Any], Difference]:
    """The interval of ``mine``, mean over seeds, and its difference from ``first``: on the same persons where their outputs are at hand."""
    task, seed, many = make_task(study), study.study.seed, len(mine) > 1
    counted = None if many else _counted(study, list(mine[0].counts.values()))
    outputs = [r.outputs for r in (*first, *mine) if r.outputs is not None]
    if counted is not None and len(outputs) < len(first) + len(mine):
        return _limits(counted), unpaired(counted, _counted(study, list(first[0].counts.values())))
    everybody, at = np.unique(np.concatenate([o.person for o in outputs]), return_index=True)
    site = np.concatenate([o.site for o in outputs])[at]

    compared = built(task.compared, task.name, "a comparison of two models on the same persons")

    def of(own: Outputs) -> Statistic:
        alone, places = compared.statistic(own.truth, own.output), np.searchsorted(everybody, own.person)
        return lambda drawn: alone(drawn[:, places])

    statistics = [of(own) for own in outputs]
    theirs, ours = _mean_of(statistics[: len(first)]), _mean_of(statistics[len(first) :])
    difference = paired_bootstrap(ours, theirs, len(everybody), seed=seed, site=site)
    both, each = ({p for r in rows if r.outputs for p in r.outputs.person.tolist()} for rows in (first, mine))
    if both != each:
        difference = replace(difference, method=f"bootstrap; {len(both & each)} of {len(everybody)} persons are in both tests")
    few = any(int((o.truth == c).sum()) < FEW for o in outputs for c in range(len(task.person_classes)))
    if few:  # a bootstrap of so few is too sure of itself
        why = f"none: a class has fewer than {FEW} test persons"
        difference = replace(difference, low=math.nan, high=math.nan, p=math.nan, method=why)
    if counted is not None:
        return _limits(counted), difference
    found = paired_bootstrap(ours, lambda drawn: np.zeros(len(drawn)), len(everybody), seed=seed, site=site)
    mean = float(np.mean([r.metrics[task.watched] for r in mine]))
    if few or found.low == found.high:
        return {
            "mean": _number(mean),
            "low": None,
            "high": None,
            "method": "none: too few persons of a class, or no draw differs",
        }, difference
    shift = mean - found.value  # a run tells its AUROC by a histogram, which is off by less than 0.001
    method = f"bootstrap over persons, mean of {len(mine)} seeds"
    return {"mean": mean, "low": found.low + shift, "high": found.high + shift, "method": method}, difference


def _mean_of(statistics: Sequence[Statistic]) -> Statistic:
    def mean(drawn: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        out: npt.NDArray[np.float64] = np.mean([one(drawn) for one in statistics], axis=0)
        return out

    return mean


def plain_rows(rows: Sequence[Trained]) -> list[dict[str, Any]]:
    """Each way to train and seed for a machine, without persons."""
    names = ("who", "seed", "metrics", "sites", "groups", "recovery")
    return [{**{n: getattr(r, n) for n in names}, "run": str(r.run)} for r in rows]


def _counted(study: Study, counts: Sequence[Mapping[str, Any]]) -> Interval:
    task = make_task(study)
    return interval(counts, task, task.watched, seed=study.study.seed)


def _limits(found: Interval) -> dict[str, Any]:
    return {"mean": _number(found.value), "low": _number(found.low), "high": _number(found.high), "method": found.method}


def _where(study: Study, told: Sequence[tuple[Mapping[str, Any], Mapping[str, float]]]) -> dict[str, Any]:
    """One site's mean over seeds; with an interval where there is one seed."""
    task = make_task(study)
    out = _plain([metrics for _, metrics in told], task.watched)
    if len(told) == 1:
        out |= {k: v for k, v in _limits(_counted(study, [told[0][0]])).items() if k in ("low", "high")}
    return out


def _plain(told: Sequence[Mapping[str, float]], metric: str) -> dict[str, Any]:
    values = [m[metric] for m in told if metric in m and math.isfinite(m[metric])]
    persons = float(np.mean([m["persons"] for m in told])) if told else None
    return {"mean": float(np.mean(values)) if values else None, "low": None, "high": None, "persons": persons}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return {"mean": _number(float(np.mean(values))), "sd": _number(sd)}


def _of(found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    told = {name: _number(getattr(found, name)) for name in ("value", "low", "high", "p")}
    return {**told, "method": found.method}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- tables


def main_table(study: Study, told: Sequence[Mapping[str, Any]]) -> Table:
    """One row a way to train: the watched metric with its interval, and the difference from the first row."""
    from rich.table import Table

    watched, seeds = told[0]["watched"]["metric"], len(told[0]["seeds"])
    out = Table(title=f"{study.study.name}: all sites' test persons, {seeds} seed(s)")
    out.add_column("trained", no_wrap=True)
    out.add_column(f"{watched} [95 % over persons]", justify="right", no_wrap=True)
    if len(told) > 1:
        out.add_column(f"less {told[0]['who']} [95 %]", justify="right", no_wrap=True)
        out.add_column("p", justify="right", no_wrap=True)
        if seeds > 1:
            out.add_column("[95 % over seeds]", justify="right", no_wrap=True)
    if told[0]["recovery"] is not None:
        out.add_column("recovery of planted risk", justify="right", no_wrap=True)
    for row in told:
        cells = [row["who"], _with_limits(row["watched"])]
        if len(told) > 1:
            gap, over = row["difference"], row["over_seeds"]
            cells += [_signed(gap), "" if gap is None or gap["p"] is None else f"{gap['p']:.3f}"]
            cells += [_bounds(over, "+.3f") if over else ""] if seeds > 1 else []
        out.add_row(*cells, *([f"{row['recovery']:.3f}"] if row["recovery"] is not None else []))
    return out


def where_table(study: Study, told: Sequence[Mapping[str, Any]]) -> Table:
    """Other metrics of all, then the watched one at each site, at the worst, and in each subgroup that may be told; a column a way."""
    from rich.table import Table

    watched = told[0]["watched"]["metric"]
    out = Table(title=f"{study.study.name}: other metrics; test {watched} by site{' and subgroup' if told[0]['groups'] else ''}")
    out.add_column("", no_wrap=True)
    out.add_column("persons", justify="right", no_wrap=True)
    narrow = len(told) > _WIDE
    for row in told:
        out.add_column(row["who"].replace(" ", "\n") if narrow else row["who"], justify="right")
    for name in (n for n in told[0]["metrics"] if n != watched and "/" not in n):
        means = [row["metrics"][name]["mean"] for row in told]
        out.add_row(f"all: {name}", "", *("" if mean is None else f"{mean:.3f}" for mean in means))
    out.add_section()
    for site in told[0]["sites"]:
        out.add_row(site, _persons(told[0]["sites"][site]), *(_with_limits(row["sites"].get(site), narrow) for row in told))
    out.add_section()
    worst = [(row["worst_site"], row["sites"]) for row in told]
    out.add_row("worst site", "", *(f"{sites[site]['mean']:.3f}\n{site}" if site else "" for site, sites in worst))
    labels = [label for group in study.evaluation.labels().values() for label in group]
    if labels:
        out.add_section()
    for label in labels:
        here = [row["groups"].get(label) for row in told]
        persons = next((_persons(w) for w in here if w), "hidden")
        out.add_row(label, persons, *(_with_limits(w, narrow) for w in here))
    return out


def _with_limits(told: Mapping[str, Any] | None, narrow: bool = False) -> str:
    if told is None or told["mean"] is None:
        return ""
    return f"{told['mean']:.3f}" + (f" {_bounds(told, '.3f')}" if told["low"] is not None and not narrow else "")


def _signed(told: Mapping[str, Any] | None) -> str:
    if told is None or told["value"] is None:
        return ""
    return f"{told['value']:+.3f}" + (f" {_bounds(told, '+.3f')}" if told["low"] is not None else "")


def _bounds(told: Mapping[str, Any], form: str) -> str:
    return rf"\[{told['low']:{form}}, {told['high']:{form}}]" if told["low"] is not None else ""


def _persons(told: Mapping[str, Any]) -> str:
    return "" if told["persons"] is None else f"{told['persons']:.0f}"
