"""The record of a comparison (`fedml compare`) in MLflow: one run with its figures, its table and what was compared.

    deliver_comparison(folder)     # RUNS/compare-heart-1a2b3c4d, as fedml.experiments.compare.recorded writes it; repeating it adds nothing

Metrics: ``test/auroc/<way>`` with ``test/auroc_low/<way>`` and ``test/auroc_high/<way>``; ``versus_first/auroc/<way>`` from the first way;
``test/auroc`` is that of the first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedml.errors import InputError, RunError
from fedml.runs.log import STUDY
from fedml.study.study import Study, parse_study
from fedml.tracking import outbox
from fedml.tracking.knowing import watched_of
from fedml.tracking.names import COMPARISON as ROLE_OF_IT
from fedml.tracking.names import ROLE, allowed
from fedml.tracking.pages import experiment_of
from fedml.tracking.store import connect, runs_of

COMPARISON = "comparison.json"
JOB = "compare"
_TEXT = 5000  # characters of a tag, within MLflow's limit


def deliver_comparison(folder: Path) -> str:
    """Delivers a comparison and returns MLflow's id of its run.

    Raises:
        InputError: the folder is not that of a comparison.
    """
    from mlflow.entities import Metric, Param, RunTag

    try:
        text = (folder / COMPARISON).read_bytes()
        found: dict[str, Any] = json.loads(text)
        study, stamp = parse_study((folder / STUDY).read_text(encoding="utf-8")), int(found["time"] * 1000)
        summary = found["summary"]
        figures, note = dict(_figures(summary)), _note(study, summary, found["notes"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{folder / COMPARISON}: cannot be read ({error!r}); repeat `fedml compare`, which writes it again.") from error
    client = connect()
    experiment, first = experiment_of(client, study, watched_of(study)), summary[0]
    seeds = ", ".join(map(str, first["seeds"]))
    tags = {
        "fedml.run_id": found["id"], "fedml.job": JOB, ROLE: ROLE_OF_IT, "fedml.study.study": study.study.name,
        "fedml.study_sha256": study.sha256, "fedml.strategy": study.strategy.name, "fedml.seed": seeds, "fedml.engine": "local",
        "fedml.result": "; ".join(_result(row) for row in summary), "mlflow.note.content": note, "mlflow.source.name": "fedml",
        "mlflow.source.type": "LOCAL",
    }  # fmt: skip
    known = [r for r in runs_of(client, experiment, found["id"]) if r.data.tags.get("fedml.job") == JOB]
    name = f"comparison, seed {seeds} ({found['id'][-8:]})"
    parent = str((known[0] if known else client.create_run(experiment, stamp, tags={ROLE: ROLE_OF_IT}, run_name=name)).info.run_id)
    compared = {"compared": ", ".join(row["who"] for row in summary), "seeds": seeds}
    client.log_batch(
        parent,
        metrics=[Metric(k, v, stamp, 0) for k, v in figures.items()],
        params=[Param(k, v[:_TEXT]) for k, v in compared.items()],
        tags=[RunTag(k, v[:_TEXT]) for k, v in tags.items()],
    )
    for path in sorted(folder.glob("comparison.*")):
        client.log_artifact(parent, str(path))
    client.log_artifact(parent, str(folder / STUDY), "record")
    client.set_terminated(parent, "FINISHED", stamp)
    outbox.mark_delivered(folder, parent, len(text))
    return parent


def deliver_pending_comparisons(runs: Path, say: Callable[[str], object]) -> None:
    """Delivers every comparison that the current store does not have.

    Raises:
        RunError: MLflow did not accept one; earlier ones are delivered.
    """
    for marker in sorted(runs.glob(f"*/{COMPARISON}")):
        folder = marker.parent
        if outbox.is_tracked(folder) and outbox.delivered_bytes(folder) != marker.stat().st_size:
            try:
                say(f"{folder.name}: {deliver_comparison(folder)}")
            except Exception as error:
                raise RunError(f"{folder}: MLflow did not accept the comparison ({error}); try again later.") from error


def _figures(summary: list[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    first = summary[0]["watched"]  # in the columns of the table of runs
    for end, key in (("", "mean"), ("_low", "low"), ("_high", "high")):
        if first[key] is not None:
            yield allowed(f"test/{first['metric']}{end}"), float(first[key])
    for row in summary:
        who, metric, gap = allowed(row["who"]), row["watched"]["metric"], row["difference"] or {}
        named = {f"test/{metric}{end}/{who}": row["watched"][key] for end, key in (("", "mean"), ("_low", "low"), ("_high", "high"))}
        named |= {f"versus_first/{metric}{end}/{who}": gap.get(key) for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))}
        named |= {f"versus_first/p/{who}": gap.get("p")}
        yield from ((allowed(key), float(value)) for key, value in named.items() if value is not None)


def _result(row: Mapping[str, Any]) -> str:
    watched = row["watched"]
    if watched["mean"] is None:
        return f"{row['who']} undefined"
    limits = "" if watched["low"] is None else f" [{watched['low']:.3f}, {watched['high']:.3f}]"
    return f"{row['who']} {watched['metric']} {watched['mean']:.3f}{limits}"


def _note(study: Study, summary: list[Mapping[str, Any]], more: list[str]) -> str:
    """The description of the run, in Markdown."""
    metric = summary[0]["watched"]["metric"]
    lines = [f"**Question.** {study.study.question}", ""] if study.study.question else []
    lines += [f"| trained | {metric} of the test persons [95 %] | minus {summary[0]['who']} [95 %] | p |", "| --- | --- | --- | --- |"]
    for row in summary:
        gap, shown = row["difference"] or {}, ""
        if gap.get("value") is not None:
            shown = f"{gap['value']:+.3f}" + ("" if gap["low"] is None else f" [{gap['low']:+.3f}, {gap['high']:+.3f}]")
        p = "" if gap.get("p") is None else f"{gap['p']:.3f}"
        lines.append(f"| {row['who']} | {_result(row).removeprefix(row['who'] + ' ' + metric + ' ')} | {shown} | {p} |")
    lines += ["", *more, *(f"Runs of {row['who']}: {', '.join(row['runs'])}." for row in summary)]
    return "\n".join(lines)
