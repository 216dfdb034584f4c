"""Text and layout of MLflow's pages: the experiment with its columns, descriptions of studies and runs in Markdown.

MLflow stores a table's columns in the browser, not on the server. But a link can refer to a view that is stored as a tag of the experiment
(``mlflow.sharedViewState.<key>``, written by the "Share" button). Every study's experiment has such a tag, and `fedml ui` prints the link.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedml.runs.events import Start
from fedml.study.study import Study
from fedml.tracking.known import Watched
from fedml.tracking.store import shared

VIEW = "fedml"  # the view's key
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"


def view_link(address: str, experiment: str) -> str:
    """The link to an experiment's runs, with the columns for a reviewer."""
    return f"{address}/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}"


def columns(metric: str) -> list[str]:
    """The columns of the table of runs, in the names of MLflow's view state."""
    metrics = (f"test/{metric}", f"test/{metric}_low", f"test/{metric}_high", f"test/{metric}_worst_site")
    tags = ("fedml.study.study", "fedml.strategy", "fedml.seed", "fedml.worst_site", "fedml.epsilon", "fedml.engine")
    return [*(f"metrics.`{name}`" for name in metrics), *(f"tags.`{name}`" for name in tags)]


def experiment_of(client: Any, study: Study, watched: Watched) -> str:
    """The id of the study's experiment. The experiment is created if missing and has description, main metric and view."""
    return shared(lambda: _experiment_of(client, study, watched))


def _experiment_of(client: Any, study: Study, watched: Watched) -> str:
    about = study.study
    view = {"selectedColumns": columns(watched.name), "viewMaximized": True, "runsExpanded": {}}
    tags = {
        "mlflow.note.content": "\n\n".join(line for line in (about.question, f"Purpose: {about.purpose}" if about.purpose else "") if line),
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": f"test/{watched.name}",
        "mlflow.experiment.primaryMetric.greaterIsBetter": str(watched.higher),
        VIEW_TAG: json.dumps(view),
    }
    found = client.get_experiment_by_name(about.name)
    number = found.experiment_id if found else client.create_experiment(about.name)
    for key, value in tags.items():
        # A description that was edited in MLflow is kept.
        if (found is None or key not in found.tags) or (key == VIEW_TAG and found.tags[key] != value):
            client.set_experiment_tag(number, key, value)
    return str(number)


def description(study: Study, start: Start | None, answer: str, privacy: str) -> str:
    """A run's description: question, answer, privacy cost, identity of the run."""
    about = study.study
    entries = [("Question", about.question), ("Answer", answer), ("Privacy", privacy), ("Purpose", about.purpose)]
    lines = [f"**{name}.** {text}" for name, text in entries if text]
    roster = ", ".join(study.federation.sites)
    lines.append(
        f"**Run.** Study `{about.name}`, SHA-256 `{study.sha256}`; seed {study.study.seed}; {study.federation.rounds} rounds; "
        f"sites {roster}; engine {'unknown' if start is None else start.engine}; "
        f"commit of the study file's repository `{'none' if start is None else start.git_commit}`."
    )
    return "\n\n".join(lines)


def code_tags(start: Start) -> dict[str, str]:
    """Tags for the code of a run: MLflow's own ones for the commit of the study's folder; of this software, SHA-256 and commit."""
    commit, _, changed = start.git_commit.partition("+")
    tags = {} if commit == "none" else {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(bool(changed)).lower()}
    if start.code is not None:
        tags |= {"fedml.code.sha256": start.code["sha256"], "fedml.code.commit": start.code["commit"]}
    return tags


def result_of(metric: str, scores: Mapping[str, Any], interval: tuple[float, float] | None) -> str:
    """The main ``metric`` on the test persons with its limits, for a column of a table: ``auroc 0.886 [0.850, 0.917]``."""
    value = scores["all"].get(metric)
    limits = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return "" if value is None else f"{metric} {value:.3f}{limits}"


def answer_of(metric: str, scores: Mapping[str, Any], interval: tuple[float, float] | None) -> str:
    """One sentence on the results in the test persons. ``scores``: {"all": metrics, "sites": {site: metrics}, "worst": site or None}."""
    value = scores["all"].get(metric)
    if value is None:
        return ""
    limits = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    worst = scores["worst"]
    lowest = f"; worst site {worst} with {scores['sites'][worst][metric]:.3f}" if worst else ""
    persons = scores["all"].get("persons")
    over = f", {persons:.0f} test persons of {len(scores['sites'])} sites" if persons is not None else ""
    return f"{metric} {value:.3f}{limits}{over}{lowest}."
