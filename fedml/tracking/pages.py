"""What MLflow's pages show of a study and a run beside figures: the experiment with its columns, descriptions in Markdown.

MLflow keeps a table's columns in the browser, not on the server; but a link can carry a view that is kept as a tag of the experiment
(``mlflow.sharedViewState.<key>``, what its "Share" button writes). So every study's experiment has one, and `fedml ui` gives the link.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedml.runs.events import Start
from fedml.study.study import Study

VIEW = "fedml"  # of the view's key
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"


def view_link(address: str, experiment: str) -> str:
    """The page with an experiment's runs, with the columns that a reviewer wants."""
    return f"{address}/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}"


def columns(metric: str) -> list[str]:
    """The runs table's columns, as MLflow's view state names them."""
    metrics = (f"test/{metric}", f"test/{metric}_low", f"test/{metric}_high", f"test/{metric}_worst_site")
    tags = ("fedml.study.study", "fedml.worst_site", "fedml.epsilon")
    return [*(f"metrics.`{name}`" for name in metrics), *(f"tags.`{name}`" for name in tags)]


def experiment_of(client: Any, study: Study) -> str:
    """The id of the study's experiment, made or found, with its description, main metric and view."""
    from fedml.tasks.registry import make_task

    task, about = make_task(study), study.study
    view = {"selectedColumns": columns(task.watched), "viewMaximized": True, "runsExpanded": {}}
    tags = {
        "mlflow.note.content": "\n\n".join(line for line in (about.question, f"Purpose: {about.purpose}" if about.purpose else "") if line),
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": f"test/{task.watched}",
        "mlflow.experiment.primaryMetric.greaterIsBetter": str(task.higher),
        VIEW_TAG: json.dumps(view),
    }
    found = client.get_experiment_by_name(about.name)
    number = found.experiment_id if found else client.create_experiment(about.name)
    for key, value in tags.items():
        # A description that somebody wrote in MLflow stays.
        if (found is None or key not in found.tags) or (key == VIEW_TAG and found.tags[key] != value):
            client.set_experiment_tag(number, key, value)
    return str(number)


def description(study: Study, start: Start | None, answer: str, privacy: str) -> str:
    """A run's description: the question, the answer, what privacy it cost, what exactly was run."""
    about = study.study
    told = [("Question", about.question), ("Answer", answer), ("Privacy", privacy), ("Purpose", about.purpose)]
    lines = [f"**{name}.** {text}" for name, text in told if text]
    roster = ", ".join(study.federation.sites)
    lines.append(
        f"**Run.** Study `{about.name}`, SHA-256 `{study.sha256}`; seed {study.study.seed}; {study.federation.rounds} rounds; "
        f"sites {roster}; engine {'unknown' if start is None else start.engine}; "
        f"commit `{'none' if start is None else start.git_commit}`."
    )
    return "\n\n".join(lines)


def answer_of(study: Study, scores: Mapping[str, Any], interval: tuple[float, float] | None) -> str:
    """One sentence on the test persons. ``scores``: {"all": metrics, "sites": {site: metrics}, "worst": site or None}."""
    from fedml.tasks.registry import make_task

    metric = make_task(study).watched
    value = scores["all"].get(metric)
    if value is None:
        return ""
    limits = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    worst = scores["worst"]
    lowest = f"; worst site {worst} with {scores['sites'][worst][metric]:.3f}" if worst else ""
    persons = scores["all"].get("persons")
    over = f", {persons:.0f} test persons of {len(scores['sites'])} sites" if persons is not None else ""
    return f"{metric} {value:.3f}{limits}{over}{lowest}."
