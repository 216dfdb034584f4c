"""The files of a finished run for a person who looks at it in MLflow, made of its folder alone.

    report.html, model_card.md      the report, and the model card
    results.csv                     each metric of all sites, of each site and subgroup, with its interval and method
    plots/NAME.svg, plots/NAME.png  every plot of the report, and the confusion matrix of a classification
    evaluation/                     a result of ``mlflow.evaluate``, as ``mlflow.models.EvaluationResult.load`` reads it

No person is in any of them. ``mlflow.evaluate`` also has a table of each person's prediction, which stays where the data are.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedml.experiments.evidence.model_card import model_card
from fedml.experiments.report.page import NAME, embedded, render, report_facts
from fedml.experiments.runs.record import Record, read_record
from fedml.experiments.tracked.confusion import confusion, confusion_plot
from fedml.experiments.tracked.draw import PLOTS, draw_plots
from fedml.runs.events import Start
from fedml.runs.log import read_log

CARD, RESULTS, EVALUATION = "model_card.md", "results.csv", "evaluation"
_FIGURE = re.compile(r"<figure>(<svg .*?</svg>)<figcaption><strong>(.*?)</strong>", re.DOTALL)
# MLflow's names of what its own evaluation of a classifier calls differently.
_NAMES = {"auroc": "roc_auc", "accuracy": "accuracy_score", "brier": "brier_loss", "log_loss": "log_loss", "sensitivity": "recall_score",
          "mae": "mean_absolute_error", "rmse": "root_mean_squared_error", "r2": "r2_score"}  # fmt: skip


def write_files(run: Path, into: Path) -> None:
    """Writes the files of a run that trained or tested a model; none of a run that did something else.

    Raises:
        InputError: the run's folder cannot be read.
    """
    write_pages(run, into)
    draw_plots(into)


def write_pages(run: Path, into: Path) -> None:
    """``write_files`` without the plots as PNG."""
    start = next((event for event in read_log(run)[0] if isinstance(event, Start)), None)
    if start is None or start.job not in ("train", "evaluate"):
        return
    record = read_record(run)
    page = render(record)
    found = embedded(page)
    (into / NAME).write_text(page, encoding="utf-8")
    (into / CARD).write_text(model_card(record, report_facts(record, found)), encoding="utf-8")
    (into / RESULTS).write_text(_results(found), encoding="utf-8")
    pictures = dict(_pictures(page))
    table = confusion(record)
    if table is not None:
        pictures["confusion-matrix"] = confusion_plot(record, table)
    (into / PLOTS).mkdir()
    for name, svg in pictures.items():
        (into / PLOTS / f"{name}.svg").write_text(svg, encoding="utf-8")
    _write_evaluation(record, into / EVALUATION, found, table)


def _pictures(page: str) -> Iterator[tuple[str, str]]:
    """(name, SVG) of every plot of the report, named by its title."""
    seen = dict[str, int]()
    for svg, title in _FIGURE.findall(page):
        name = re.sub(r"[^a-z0-9]+", "-", html.unescape(title).lower()).strip("-")[:60] or "plot"
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}-{seen[name]}", svg


def _results(found: Mapping[str, Any]) -> str:
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["persons_of", "name", "persons", "metric", "value", "low", "high", "method"])
    scores = found["scores"]
    every = [(found["part"], "all sites", scores["all"])]
    every += [(f"{found['part']}, site", name, row) for name, row in scores["sites"].items()]
    every += [(f"{found['part']}, subgroup", name, row) for name, row in scores["groups"].items()]
    every += [("external validation, site", name, row) for name, row in found.get("external", {}).get("sites", {}).items()]
    for where, name, row in every:
        for metric, e in row["metrics"].items() if row else ():
            rows.writerow([where, name, row["persons"], metric, e["value"], e["low"], e["high"], e["method"]])
    return out.getvalue()


def _write_evaluation(record: Record, folder: Path, found: Mapping[str, Any], table: np.ndarray[Any, Any] | None) -> None:
    """The figures over all sites' test persons as MLflow's own evaluation names them; of what it does not have, our name."""
    score = found["scores"]["all"]
    if score is None:
        return
    final = record.final.metrics[found["part"]]["all"]
    metrics = {_NAMES.get(name, name): value for name, value in final.items() if value is not None}
    metrics["example_count"] = metrics.pop("persons", score["persons"])
    if table is not None and table.shape == (2, 2):
        (tn, fp), (fn, tp) = table.tolist()
        metrics |= {"true_negatives": tn, "false_positives": fp, "false_negatives": fn, "true_positives": tp}
    (folder / "artifacts").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    known = {}
    if table is not None:
        rows = [[int(n) for n in row] for row in table]
        (folder / "artifacts" / "confusion_matrix.json").write_text(json.dumps(rows), encoding="utf-8")
        kind = "mlflow.models.evaluation.artifacts.JsonEvaluationArtifact"
        known["confusion_matrix"] = {"uri": f"{EVALUATION}/artifacts/confusion_matrix.json", "class_name": kind}
    (folder / "artifacts_metadata.json").write_text(json.dumps(known), encoding="utf-8")
