"""MLflow's page of a model: the figures of the trained model on the data that tested it, and MLflow's data sets.

Metrics of a model name the run that measured them and a data set: those over all sites the parent and the data set of all sites, those of
one site its child and its own. MLflow keeps one value for a metric, a run and a step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedml.runs.events import Agreed

_DIGEST = 36  # characters of a dataset's digest, of MLflow
ALL = "all sites"
Figures = dict[str, list[Any]]  # MLflow's run -> metrics of the trained model


def dataset_of(site: str, digest: str, persons: Mapping[str, Sequence[int]]) -> Any:
    """The data set of a site for MLflow: its name and the start of its SHA-256. Its location stays at the site."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = json.dumps({part: sum(n) for part, n in persons.items()})
    data = Dataset(site, digest[:_DIGEST], "local", json.dumps({"sha256": digest}), profile=profile)
    return DatasetInput(data, [InputTag("mlflow.data.context", "training")])


def together(event: Agreed, training: Sequence[str]) -> Iterator[Any]:
    """The data of all sites that train as one data set, if each has told its SHA-256; its digest is of those, in the order of the roster."""
    known = {site: row["dataset"] for site, row in (event.disclosed or {}).items() if row["dataset"]}
    sites = [site for site in training if site in event.persons]
    if len(sites) < 2 or not all(site in known for site in sites):
        return
    parts = {part for site in sites for part in event.persons[site]}
    persons = {part: [sum(event.persons[site].get(part, [])) for site in sites] for part in sorted(parts)}
    digest = hashlib.sha256(json.dumps([(site, known[site]) for site in sites]).encode()).hexdigest()
    yield dataset_of(ALL, digest, persons)


def log_figures(client: Any, figures: Figures, runs: tuple[str, Mapping[str, str]], model: str) -> None:
    """Logs the metrics of a model at its step, each with its run and data set.

    Args:
        runs: MLflow's ids of the parent, and by site of the children.
    """
    from mlflow.entities import Metric

    parent, children = runs
    names = {parent: ALL, **{run_id: site for site, run_id in children.items()}}
    for run_id, metrics in figures.items():
        inputs = client.get_run(run_id).inputs
        data = next((i.dataset for i in (inputs.dataset_inputs if inputs else ()) if i.dataset.name == names[run_id]), None)
        about = {} if data is None else {"dataset_name": data.name, "dataset_digest": data.digest}
        rows = [Metric(m.key, m.value, m.timestamp, m.step, model_id=model, run_id=run_id, **about) for m in metrics]
        for at in range(0, len(rows), _METRICS):
            client.log_batch(run_id, metrics=rows[at : at + _METRICS])


_METRICS = 1000  # in a batch, within MLflow's limit
