"""Results of a comparison as tables and JSON: means over seeds, intervals over persons, paired differences; by site and by subgroup.

*Interval over persons*: bootstrap of persons within their site (Efron and Tibshirani 1993). If seeds split persons differently, a
person is drawn once for all seeds, so a person who is tested with two seeds counts once. *Over seeds*: Student's t of the differences
between runs with the same seed. A difference is the row minus the first row, on the same persons and seeds; if the test persons differ,
``method`` states how many are shared. ``p_adjusted`` is adjusted for the number of differences (Holm 1979). Where each seed splits persons
anew, the interval over seeds is corrected for training persons that runs share (Nadeau and Bengio 2003).

Values and differences are of one source: the outputs of the test persons, where their data are on this machine, otherwise the counts of the
runs' records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.experiments.compare.outputs import Outputs, around, scores
from fedml.experiments.compare.train import Trained
from fedml.learning.differences import Difference, People, bootstrap, holm, over_seeds, paired_bootstrap, unpaired
from fedml.study.study import Study
from fedml.tasks.across_sites import plain
from fedml.tasks.classification_measures import FEW
from fedml.tasks.drawn import Statistic
from fedml.tasks.interval_tools import Interval
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task
from fedml.tasks.task import built

if TYPE_CHECKING:
    from rich.table import Table

TOO_FEW = "no figures: each site needs at least min_count test persons ([policy] of the study and of the site)"
_WIDE = 3  # a table with more columns than this has no confidence limits in a terminal


def summarise(study: Study, rows: Sequence[Trained]) -> list[dict[str, Any]]:
    """One entry for each way to train; the others are compared with the first.

    ``watched`` {metric, mean, low, high, method}, ``metrics`` {name: {mean, sd}}, ``difference`` (over persons) and ``over_seeds``
    {value, low, high, p, method} or None, ``sites`` and ``groups`` {name: {mean, low, high, persons}}, ``worst_site``, ``recovery``.
    """
    task = make_task(study)
    ways = list(dict.fromkeys(r.who for r in rows))
    by_who = {who: [r for r in rows if r.who == who] for who in ways}
    first, out = by_who[ways[0]], []
    for who, group in by_who.items():
        watched, difference = _over_persons(study, first, group)
        overlap = overlapping(study, group)
        pairs = [(a.metrics.get(task.watched), b.metrics.get(task.watched)) for a, b in zip(group, first, strict=True)]
        gaps = [a - b for a, b in pairs if a is not None and b is not None]
        every = dict.fromkeys(n for r in rows for n in r.metrics)  # noised counts may have no value of some
        names = [n for n in every if n != "persons" and task.described(n).brief]
        sites = {s: _at_site(study, [(r.counts[s], r.sites[s]) for r in group if s in r.counts]) for s in group[0].counts}
        external = {s: _at_site(study, [r.external[s] for r in group if s in r.external]) for s in group[0].external}
        labels = list(dict.fromkeys(label for r in group for label in r.groups))
        groups = {g: _group(study, g, group) for g in labels}
        valid = {s: w["mean"] for s, w in sites.items() if w["mean"] is not None}
        out.append(
            {
                "who": who,
                "seeds": [r.seed for r in group],
                "watched": {"metric": task.watched, **watched},
                "metrics": {n: _spread([r.metrics.get(n, math.nan) for r in group]) for n in names},
                "difference": _of(difference) if who != ways[0] else None,
                "over_seeds": _of(over_seeds(gaps, overlap=overlap)) if who != ways[0] and len(gaps) > 1 else None,
                "sites": sites,
                **({"external": external} if external else {}),
                "worst_site": (min if task.higher else max)(valid, key=lambda s: valid[s]) if valid else None,
                "groups": groups,
                "recovery": float(np.mean([r.recovery for r in group if r.recovery is not None]))
                if group[0].recovery is not None
                else None,
                **({"across": found} if (found := _across(study, group)) else {}),
                "runs": [str(r.run) for r in group],
            }
        )
    return adjusted(out)


def adjusted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``rows`` whose differences have a ``p_adjusted``, and ``comparisons``: of how many differences with a p it is one."""
    found = [row["difference"] for row in rows if row["difference"] is not None]
    tests = sum(gap["p"] is not None for gap in found)
    for gap, p in zip(found, holm([gap["p"] for gap in found]), strict=True):
        gap |= {"p_adjusted": p, "comparisons": tests}
    return rows


def overlapping(study: Study, rows: Sequence[Trained]) -> float | None:
    """Test persons by training persons, where the seeds of ``rows`` test different persons; None where all test the same."""
    tested = [frozenset(r.outputs.person.tolist()) for r in rows if r.outputs is not None]
    split = study.cohort.split
    return split.test / split.train if len(set(tested)) > 1 and split.train else None


def _across(study: Study, rows: Sequence[Trained]) -> dict[str, Any]:
    """Pairs within sites and the spread between them; only of one seed, as persons of several seeds are not those of one run."""
    if len(rows) > 1 or rows[0].outputs is None:
        return {}
    return _finite(plain(make_task(study), rows[0].counts, seed=study.study.seed))


def _finite(found: dict[str, Any]) -> dict[str, Any]:
    """For JSON: None for NaN."""
    return {k: _finite(v) if isinstance(v, dict) else None if v != v else v for k, v in found.items()}


def _over_persons(study: Study, first: Sequence[Trained], rows: Sequence[Trained]) -> tuple[dict[str, Any], Difference]:
    """The mean of ``rows`` over seeds with its interval, and the difference from ``first``, paired by person if all outputs are known."""
    task, seed, many = make_task(study), study.study.seed, len(rows) > 1
    counted = None if many else _figure(study, rows[0])
    if not {s for r in first for s in r.counts} & {s for r in rows for s in r.counts} and counted is not None:
        return _limits(counted), _no_difference("the runs have no site in common")
    outputs = [r.outputs for r in (*first, *rows) if r.outputs is not None]
    if counted is not None and len(outputs) < len(first) + len(rows):
        return _limits(counted), unpaired(counted, _figure(study, first[0]))
    persons, at = np.unique(np.concatenate([o.person for o in outputs]), return_index=True)
    site = np.concatenate([o.site for o in outputs])[at]

    compared = built(task.compared, task.name, "a comparison of two models on the same persons")

    def statistic_of(result: Outputs) -> Statistic:
        single, places = compared.statistic(result.truth, result.output), np.searchsorted(persons, result.person)
        return lambda drawn: single(drawn[:, places])

    statistics = [statistic_of(result) for result in outputs]
    reference, mean_of_rows = _mean_of(statistics[: len(first)]), _mean_of(statistics[len(first) :])
    of = _people(outputs, at, bool(task.person_classes))
    difference = paired_bootstrap(mean_of_rows, reference, len(persons), seed=seed, site=site, of=of)
    in_first, in_rows = ({p for r in group if r.outputs for p in r.outputs.person.tolist()} for group in (first, rows))
    if not in_first & in_rows:
        difference = _no_difference("no person is in both tests")
    elif in_first != in_rows and not difference.method.startswith("none"):
        method = f"{difference.method.removeprefix('paired ')}; {len(in_first & in_rows)} of {len(persons)} persons are in both tests"
        difference = replace(difference, method=method)
    too_few = any(int((o.truth == c).sum()) < FEW for o in outputs for c in range(len(task.person_classes)))
    if counted is not None:
        return _limits(counted), difference
    low, high = bootstrap(mean_of_rows, len(persons), seed=seed, site=site, of=of)
    known = [r.metrics[task.watched] for r in rows if task.watched in r.metrics]
    mean = float(np.mean(known)) if known else math.nan
    if too_few or not low < high or not known:
        return {
            "mean": _number(mean),
            "low": None,
            "high": None,
            "method": "none: too few persons of a class, or no draw differs",
        }, difference
    method = f"bootstrap over {'persons' if of.cluster is None else 'clusters'}, percentile, mean of {len(rows)} seeds"
    return {"mean": mean, "low": low, "high": high, "method": method}, difference


def _people(outputs: Sequence[Outputs], at: npt.NDArray[Any], classes: bool) -> People:
    """Class and cluster of each person of ``outputs``, taken together and once each (``at``)."""
    label = np.concatenate([o.truth for o in outputs])[at] if classes else None
    if any(o.cluster is None for o in outputs):
        return People(label)
    names = np.concatenate([o.cluster for o in outputs if o.cluster is not None])[at]
    return People(label, np.unique(names, return_inverse=True)[1].ravel())


def _no_difference(why: str) -> Difference:
    return Difference(math.nan, math.nan, math.nan, math.nan, 0.95, f"none: {why}")


def _mean_of(statistics: Sequence[Statistic]) -> Statistic:
    def mean(drawn: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        out: npt.NDArray[np.float64] = np.mean([statistic(drawn) for statistic in statistics], axis=0)
        return out

    return mean


def plain_rows(rows: Sequence[Trained]) -> list[dict[str, Any]]:
    """Each way to train and each seed for JSON, without outputs of persons."""
    names = ("who", "seed", "metrics", "sites", "groups", "recovery")
    return [{**{n: getattr(r, n) for n in names}, "run": str(r.run)} for r in rows]


def _figure(study: Study, row: Trained) -> Interval:
    return _counted(study, list(row.counts.values()), row.metrics)


def _counted(study: Study, counts: Sequence[Mapping[str, Any]], metrics: Mapping[str, float]) -> Interval:
    """The watched metric with its interval from counts, whose AUROC is of a histogram and differs from the outputs' by less than 0.001."""
    task = make_task(study)
    return around(interval(counts, task, task.watched, seed=study.study.seed), metrics.get(task.watched, math.nan))


def _limits(found: Interval) -> dict[str, Any]:
    return {"mean": _number(found.value), "low": _number(found.low), "high": _number(found.high), "method": found.method}


def _group(study: Study, label: str, rows: Sequence[Trained]) -> dict[str, Any]:
    """A subgroup's mean over seeds; with ``reference`` where not all sites report it: all test persons of the ``sites`` that do."""
    watched = make_task(study).watched
    out = _plain([r.groups[label]["all"] for r in rows if label in r.groups], watched)
    told = {tuple(s for s in r.counts if s in r.groups[label]["sites"]) for r in rows if label in r.groups}
    if len(told) != 1 or not (sites := told.copy().pop()) or len(sites) == len(rows[0].counts):
        return out
    same = [scores(study, r.outputs.at(sites)) for r in rows if r.outputs is not None]
    return {**out, "sites": list(sites), "reference": _plain(same, watched)} if len(same) == len(rows) else out


def _at_site(study: Study, results: Sequence[tuple[Mapping[str, Any], Mapping[str, float]]]) -> dict[str, Any]:
    """One site's mean over seeds; with an interval if there is only one seed."""
    task = make_task(study)
    out = _plain([metrics for _, metrics in results], task.watched)
    if len(results) == 1:
        out |= {k: v for k, v in _limits(_counted(study, [results[0][0]], results[0][1])).items() if k in ("low", "high")}
    return out


def _plain(results: Sequence[Mapping[str, float]], metric: str) -> dict[str, Any]:
    values = [value for m in results if (value := m.get(metric)) is not None and math.isfinite(value)]
    persons = float(np.mean([m["persons"] for m in results])) if results else None
    return {"mean": float(np.mean(values)) if values else None, "low": None, "high": None, "persons": persons}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return {"mean": _number(float(np.mean(values))), "sd": _number(sd)}


def _of(found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    numbers = {name: _number(getattr(found, name)) for name in ("value", "low", "high", "p")}
    return {**numbers, "method": found.method}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- tables


def main_table(study: Study, summary: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each way to train: the watched metric with its interval, and the difference from the first row."""
    from rich.table import Table

    watched, seeds = summary[0]["watched"]["metric"], len(summary[0]["seeds"])
    out = Table(title=f"{study.study.name}: all sites' test persons, {_seeds(summary)}")
    out.add_column("trained", no_wrap=True)
    out.add_column(f"{watched} [95 % over persons]", justify="right", no_wrap=True)
    if len(summary) > 1:
        out.add_column(f"minus {summary[0]['who']} [95 %]", justify="right", no_wrap=True)
        tests = sum(row["difference"] is not None and row["difference"]["p"] is not None for row in summary)
        out.add_column("p", justify="right", no_wrap=True)
        if tests > 1:
            out.add_column(f"p, Holm of {tests}", justify="right", no_wrap=True)
        if seeds > 1:
            out.add_column("[95 % over seeds]", justify="right", no_wrap=True)
    if summary[0]["recovery"] is not None:
        out.add_column("recovery of planted risk", justify="right", no_wrap=True)
    for row in summary:
        cells = [row["who"], with_limits(row["watched"])]
        if len(summary) > 1:
            gap, over = row["difference"], row["over_seeds"]
            cells += [signed(gap), p_value(gap, "p"), *([p_value(gap, "p_adjusted")] if tests > 1 else [])]
            cells += [_bounds(over, "+.3f") if over else ""] if seeds > 1 else []
        out.add_row(*cells, *([f"{row['recovery']:.3f}"] if row["recovery"] is not None else []))
    return out


def p_value(difference: Mapping[str, Any] | None, name: str) -> str:
    """``p`` or ``p_adjusted`` of a difference, "" where it has none."""
    return "" if difference is None or difference.get(name) is None else f"{difference[name]:.3f}"


def _seeds(summary: Sequence[Mapping[str, Any]]) -> str:
    """The seeds of the rows: of each row alike, or one seed a run."""
    seeds = list(dict.fromkeys(seed for row in summary for seed in row["seeds"]))
    text = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return text if all(row["seeds"] == summary[0]["seeds"] for row in summary) else f"runs of {text}"


def notes(study: Study, summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which sites have no figures; how each difference was found, where that is not a bootstrap over the same persons."""
    few = [f"{site}: {TOO_FEW}" for site in study.federation.training if not any(site in row["sites"] for row in summary)]
    found = [(row["who"], row["difference"]["method"]) for row in summary if row["difference"] is not None]
    return few + [
        f"{who}: difference from {summary[0]['who']}: {method}" for who, method in found if not method.startswith("paired bootstrap")
    ]


def where_table(study: Study, summary: Sequence[Mapping[str, Any]]) -> Table:
    """Other metrics of all persons, then the watched metric by site, at the worst site, and by reported subgroup; a column for each way."""
    from rich.table import Table

    watched = summary[0]["watched"]["metric"]
    out = Table(title=f"{study.study.name}: other metrics; test {watched} by site{' and subgroup' if summary[0]['groups'] else ''}")
    out.add_column("", no_wrap=True)
    out.add_column("persons", justify="right", no_wrap=True)
    narrow = len(summary) > _WIDE
    for row in summary:
        out.add_column(row["who"].replace(" ", "\n") if narrow else row["who"], justify="right")
    for name in (n for n in summary[0]["metrics"] if n != watched and "/" not in n):
        means = [row["metrics"][name]["mean"] for row in summary]
        out.add_row(f"all: {name}", "", *("" if mean is None else f"{mean:.3f}" for mean in means))
    out.add_section()
    for site in summary[0]["sites"]:
        out.add_row(site, _persons(summary[0]["sites"][site]), *(with_limits(row["sites"].get(site), narrow) for row in summary))
    for site in summary[0].get("external", ()):
        cells = [row.get("external", {}).get(site) for row in summary]
        persons = next((_persons(cell) for cell in cells if cell), "")
        out.add_row(f"external validation: {site}", persons, *(with_limits(cell, narrow) for cell in cells))
    for name, text in (("within", "all: AUROC, pairs of one site"), ("further", "further site, 95 % prediction")):
        if any(name in row.get("across", {}) for row in summary):
            out.add_row(text, "", *(_beside(row.get("across", {}).get(name), narrow) for row in summary))
    out.add_section()
    worst = [(row["worst_site"], row["sites"]) for row in summary]
    out.add_row("worst site", "", *(f"{sites[site]['mean']:.3f}\n{site}" if site else "" for site, sites in worst))
    labels = [label for group in study.evaluation.labels().values() for label in group]
    if labels:
        out.add_section()
    for label in labels:
        cells = [row["groups"].get(label) for row in summary]
        persons = next((_persons(w) for w in cells if w), "hidden")
        out.add_row(label, persons, *(with_limits(w, narrow) for w in cells))
        if any(w and w.get("reference") for w in cells):
            same = [w.get("reference") if w else None for w in cells]
            out.add_row(f"  all at {_told(cells)}", next(_persons(w) for w in same if w), *(with_limits(w, narrow) for w in same))
    return out


def _told(cells: Sequence[Mapping[str, Any] | None]) -> str:
    return ", ".join(next(w["sites"] for w in cells if w and w.get("reference")))


def _beside(found: Mapping[str, Any] | None, narrow: bool) -> str:
    if found is None:
        return ""
    return with_limits({"mean": found["value"], "low": found["low"], "high": found["high"]}, narrow)


def with_limits(result: Mapping[str, Any] | None, narrow: bool = False) -> str:
    """A mean with its interval, if it has one."""
    if result is None or result["mean"] is None:
        return ""
    return f"{result['mean']:.3f}" + (f" {_bounds(result, '.3f')}" if result["low"] is not None and not narrow else "")


def signed(difference: Mapping[str, Any] | None) -> str:
    """A difference with its sign and its interval, if it has one."""
    if difference is None or difference["value"] is None:
        return ""
    return f"{difference['value']:+.3f}" + (f" {_bounds(difference, '+.3f')}" if difference["low"] is not None else "")


def _bounds(result: Mapping[str, Any], form: str) -> str:
    return rf"\[{result['low']:{form}}, {result['high']:{form}}]" if result["low"] is not None else ""


def _persons(result: Mapping[str, Any]) -> str:
    return "" if result["persons"] is None else f"{result['persons']:.0f}"
