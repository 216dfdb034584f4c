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


def dataset_of(site: str, digest: str, persons: Mapping[str, Sequence[int]]) -> Any:
    """The data set of a site for MLflow: its name and the start of its SHA-256. Its location stays at the site."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = json.dumps({part: sum(n) for part, n in persons.items()})
    data = Dataset(site, digest[:_DIGEST], "local", json.dumps({"sha256": digest}), profile=profile)
    return DatasetInput(data, [InputTag("mlflow.data.context", "training")])


def together(event: Agreed, training: Sequence[str]) -> Iterator[Any]:
    """The data of all sites that train as one data set, if each has told its SHA-256: its digest is of those, in the roster's order."""
    known = {site: row["dataset"] for site, row in (event.disclosed or {}).items() if row["dataset"]}
    sites = [site for site in training if site in event.persons]
    if len(sites) < 2 or not all(site in known for site in sites):
        return
    parts = {part for site in sites for part in event.persons[site]}
    persons = {part: [sum(event.persons[site].get(part, [])) for site in sites] for part in sorted(parts)}
    digest = hashlib.sha256(json.dumps([(site, known[site]) for site in sites]).encode()).hexdigest()
    yield dataset_of(ALL, digest, persons)


def of_model(metric: Any, run_id: str, data: Any, model: str) -> Any:
    """The metric of a run as one of a model too. ``data``: the data set that it is of, a ``DatasetInput``, or None."""
    from mlflow.entities import Metric

    about = {} if data is None else {"dataset_name": data.dataset.name, "dataset_digest": data.dataset.digest}
    return Metric(metric.key, metric.value, metric.timestamp, metric.step, model_id=model, run_id=run_id, **about)
