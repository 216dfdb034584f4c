"""Results of a sweep: validation metrics of each combination with intervals, the choice, and what the choice is worth.

The choice is the combination with the best mean of the validation metric over its seeds. Test metrics are read of that combination alone.

**Interval of a combination.** All seeds have the same validation persons, so their intervals do not average out: the limits are the means
of the seeds' limits over persons (``fedml.tasks.intervals``), too wide rather than too narrow. ``sd`` is the spread over seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedml.experiments.runs.hints import choosers, without_score
from fedml.experiments.runs.run import Outcome
from fedml.experiments.sweep.plan import Sweep, Try
from fedml.experiments.sweep.values import as_text, short_names, shown
from fedml.runs.log import load_counts
from fedml.study.study import Study
from fedml.tasks.intervals import interval
from fedml.tasks.registry import make_task

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval over persons; NaN where there is none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        limits = f" [{self.low:.3f}, {self.high:.3f}]" if math.isfinite(self.low) and math.isfinite(self.high) else ""
        return f"{self.value:.3f}{limits}" if math.isfinite(self.value) else "undefined"

    def plain(self) -> dict[str, float | None]:
        """For JSON."""
        return {k: v if math.isfinite(v) else None for k, v in (("value", self.value), ("low", self.low), ("high", self.high))}


@dataclass(frozen=True)
class Row:
    """One combination: its runs, one for each seed, and the mean of their validation metrics. ``failed``: why it is no candidate, or "".
    ``lacking``: sites without a validation metric of their own in some run."""

    tried: Try
    runs: tuple[Path, ...]
    seconds: float
    val: Estimate
    sd: float
    persons: float
    failed: str = ""
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """All combinations, the best first and those without a value last. ``best``: the chosen one; None: none has a value.
    ``test``: of the chosen one."""

    sweep: Sweep
    metric: str
    rows: tuple[Row, ...]
    best: Row | None
    test: Estimate | None
    folder: Path

    @property
    def runs(self) -> int:
        """Number of runs."""
        return sum(len(row.tried.studies) for row in self.rows)

    def frame(self) -> pd.DataFrame:
        """A row for each combination; NaN where it has no value."""
        import pandas as pd

        estimates = [
            {f"val_{self.metric}": r.val.value, "low": r.val.low, "high": r.val.high, "sd_over_seeds": r.sd, "failed": r.failed}
            for r in self.rows
        ]
        return pd.DataFrame([{**row.tried.point, **found} for row, found in zip(self.rows, estimates, strict=True)])


def row_of(tried: Try, outcomes: Sequence[Outcome]) -> Row:
    """The row of a combination, from validation persons alone."""
    runs, seconds = tuple(o.run for o in outcomes), sum(o.seconds for o in outcomes)
    failed = next((f"seed {s.study.seed}: {o.reason}" for s, o in zip(tried.studies, outcomes, strict=True) if o.status != "finished"), "")
    nothing = Estimate(math.nan, math.nan, math.nan)
    if failed:
        return Row(tried, runs, seconds, nothing, math.nan, math.nan, failed)
    found = [_estimate(study, o, "val") for study, o in zip(tried.studies, outcomes, strict=True)]
    values = [estimate.value for estimate in found]
    persons = statistics.fmean(o.final.metrics["val"]["all"]["persons"] for o in outcomes) if _has_val(outcomes) else math.nan
    why = "" if all(map(math.isfinite, values)) else f"no {make_task(tried.studies[0]).watched} of the validation persons"
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    lacking = dict.fromkeys(
        site
        for study, o in zip(tried.studies, outcomes, strict=True) if "val" in o.final.metrics
        for site in without_score(study, o.final.metrics["val"], study.federation.training)
    )  # fmt: skip
    return Row(tried, runs, seconds, nothing if why else _mean(found), sd, persons, why, tuple(lacking))


def _has_val(outcomes: Sequence[Outcome]) -> bool:
    return all("val" in o.final.metrics for o in outcomes)


def _estimate(study: Study, outcome: Outcome, part: str) -> Estimate:
    task = make_task(study)
    value = outcome.final.metrics[part]["all"].get(task.watched) if part in outcome.final.metrics else None
    counts = load_counts(outcome.run).get(part, {})
    sites = [counts[site] for site in study.federation.sites if site in counts]
    if value is None or not sites:
        return Estimate(math.nan if value is None else value, math.nan, math.nan)
    found = interval(sites, task, task.watched, seed=study.study.seed)
    return Estimate(float(value), found.low, found.high)


def _mean(found: Sequence[Estimate]) -> Estimate:
    return Estimate(*(statistics.fmean(getattr(e, name) for e in found) for name in ("value", "low", "high")))


def choose(sweep: Sweep, rows: Sequence[tuple[Row, Sequence[Outcome]]], folder: Path) -> Result:
    """The result of a sweep whose runs are all made. Ties: the combination that was tried first."""
    task = make_task(sweep.study)
    order = sorted(rows, key=lambda pair: -pair[0].val.value if task.higher else pair[0].val.value) if rows else []
    order = [p for p in order if not p[0].failed] + [p for p in rows if p[0].failed]
    best, outcomes = order[0] if order and not order[0][0].failed else (None, ())
    test = None if best is None else _mean([_estimate(s, o, "test") for s, o in zip(best.tried.studies, outcomes, strict=True)])
    return Result(sweep, task.watched, tuple(row for row, _ in order), best, test, folder)


def table_of(result: Result) -> Table:
    """A row for each combination, the chosen one first."""
    from rich.markup import escape
    from rich.table import Table

    names, many = short_names(result.sweep.search.space), len(result.sweep.search.seeds) > 1
    out = Table(title=f"{result.sweep.study.study.name}: all sites' validation persons", title_justify="left")
    for name in names.values():
        out.add_column(name)
    out.add_column(f"val {result.metric} \\[95 %]", justify="right", no_wrap=True)
    if many:
        out.add_column("sd over seeds", justify="right")
    for row in result.rows:
        cells = [escape(as_text(row.tried.point[key])) for key in names]
        cells.append("failed" if row.failed else escape(str(row.val)))
        out.add_row(
            *cells, *([f"{row.sd:.3f}" if math.isfinite(row.sd) else ""] if many else []), style="bold" if row is result.best else None
        )
    return out


def sentences(result: Result) -> list[str]:
    """The choice, how much of it may be chance, and the test metric of the choice."""
    best, rows, metric = result.best, result.rows, result.metric
    if best is None:
        return []
    count, seeds = len(rows), len(result.sweep.search.seeds)
    out = [f"Chosen by validation {metric} alone: {shown(best.tried.point)} (best of {count} tries, {result.runs} runs)."]
    if text := choosers(best.tried.studies[0], best.lacking, len(best.tried.studies[0].federation.training)):
        out.append(f"{text[0].upper()}{text[1:]}.")
    close = [row for row in rows if row is not best and not row.failed and best.val.low <= row.val.value <= best.val.high]
    if count > 1:
        text = f"The best of {count} tries is optimistic: {best.val.value:.3f} was chosen because it is the best, which is partly chance."
        if close:
            text += f" {len(close)} other {'tries lie' if len(close) > 1 else 'try lies'} within its interval."
        out.append(text)
    if len({row.persons for row in rows if not row.failed}) > 1:
        out.append("The tries differ in their number of validation persons: a value that is varied excludes persons.")
    mean = f", mean of {seeds} seeds" if seeds > 1 else ""
    out.append(
        f"Test {metric} of the choice: {result.test}{mean}. Test persons chose nothing; test metrics of other tries were not looked at."
    )
    out += [f"failed: {shown(row.tried.point)}: {row.failed}" for row in rows if row.failed]
    out += [f"run of the choice, seed {study.study.seed}: {run}" for study, run in zip(best.tried.studies, best.runs, strict=True)]
    return out


def plain_result(result: Result) -> dict[str, Any]:
    """For ``--json``."""
    best = result.best
    return {
        "study": result.sweep.study.study.name,
        "study_sha256": result.sweep.study.sha256,
        "folder": str(result.folder),
        "metric": result.metric,
        "tries": len(result.rows),
        "runs": result.runs,
        "seeds": list(result.sweep.search.seeds),
        "rows": [
            {
                "values": row.tried.point,
                "val": row.val.plain(),
                "sd_over_seeds": row.sd if math.isfinite(row.sd) else None,
                "failed": row.failed or None,
                "runs": [str(run) for run in row.runs],
            }
            for row in result.rows
        ],
        "best": None if best is None else {"values": best.tried.point, "runs": [str(run) for run in best.runs]},
        "test_of_best": None if result.test is None else result.test.plain(),
    }


def recorded(result: Result, ended: float) -> dict[str, Any]:
    """What MLflow shows of the sweep (``fedml.tracking.sweeps``). ``ended``: when its last run ended, Unix seconds."""
    search, best, names = result.sweep.search, result.best, short_names(result.sweep.search.space)
    found = {"tries": float(len(result.rows)), "runs": float(result.runs)}
    for part, estimate in (("val", None if best is None else best.val), ("test", result.test)):
        if estimate is not None:
            named = {"": estimate.value, "_low": estimate.low, "_high": estimate.high}
            found |= {f"{part}/{result.metric}{end}": value for end, value in named.items() if math.isfinite(value)}
    params = {
        names[key]: str(values) if not isinstance(values, tuple) else ", ".join(map(as_text, values))
        for key, values in search.space.items()
    }
    params["seeds"] = ", ".join(map(str, search.seeds))
    note = "\n\n".join(sentences(result)) or "No try has a value of the validation metric."
    return {"time": ended, "metrics": found, "params": params, "tags": {"mlflow.note.content": note}}
