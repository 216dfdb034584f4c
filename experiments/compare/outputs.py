"""The outputs of a trained model for each test person, for comparing two models on the same persons.

They are computed at the sites' folders on this machine (the local engine); they are not part of a run and never leave the machine. Figures
of a comparison and their differences are of them, not of the rounded or noised counts that a site sends.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.clients.gate.checks import limits
from fedml.clients.site.manifest import Site
from fedml.clients.site.read import load_aligned
from fedml.runs.log import load_model, saved_window
from fedml.study.study import Study
from fedml.tasks.clusters import design_counts
from fedml.tasks.counts import Counts, add_counts
from fedml.tasks.interval_tools import Interval
from fedml.tasks.registry import make_task
from fedml.tasks.task import built

_BATCH = 64  # persons


@dataclass(frozen=True)
class Outputs:
    """Of all sites' test persons, in one order: ``person`` (site/id), ``site`` (name), ``truth`` (label) and ``output`` (persons, ...),
    the values by which the task compares models (``fedml.tasks.task.Compared``). ``counts``: site -> exact counts of its persons.
    ``cluster``: of each person (site/number), if the study has ``[cohort] cluster``."""

    person: npt.NDArray[np.str_]
    site: npt.NDArray[np.str_]
    truth: npt.NDArray[np.float64]
    output: npt.NDArray[np.float64]
    counts: dict[str, Counts]
    cluster: npt.NDArray[np.str_] | None = None

    def at(self, sites: Collection[str]) -> Outputs:
        """Of the persons of some sites only."""
        rows = np.isin(self.site, list(sites))
        counts = {site: own for site, own in self.counts.items() if site in sites}
        cluster = None if self.cluster is None else self.cluster[rows]
        return Outputs(self.person[rows], self.site[rows], self.truth[rows], self.output[rows], counts, cluster)


def together(many: Sequence[Outputs]) -> Outputs:
    """Outputs of several models at different sites, or for different persons of a site, as if of one model."""
    person, site, truth, output = (np.concatenate([getattr(o, n) for o in many]) for n in ("person", "site", "truth", "output"))
    names = dict.fromkeys(name for o in many for name in o.counts)
    clusters = [o.cluster for o in many if o.cluster is not None]
    cluster = np.concatenate(clusters) if len(clusters) == len(many) else None
    return Outputs(person, site, truth, output, {n: add_counts(o.counts[n] for o in many if n in o.counts) for n in names}, cluster)


def test_outputs(study: Study, sites: Mapping[str, Site], trained: Path) -> Outputs:
    """The outputs of the model in ``trained``, the folder of a finished run, for the test persons of every site."""
    import torch

    from fedml.runs.restore import restore

    trained_study, model = restore(trained)
    task, (arrays, _, panel) = make_task(study), load_model(trained)
    compared = built(task.compared, task.name, "a comparison of two models on the same persons")
    persons: list[str] = []
    names: list[str] = []
    truth: list[npt.NDArray[Any]] = []
    output: list[npt.NDArray[Any]] = []
    counts: dict[str, list[Counts]] = {}
    clusters: list[str] = []
    torch.set_num_threads(trained_study.training.threads)
    for name, site in sites.items():
        cohort = load_aligned((str(site.file.resolve()),), study, panel, window=saved_window(arrays))
        rows = cohort.rows("test")
        size, before = min(task.evaluation_batch, _BATCH), len(output)
        for at in range(0, len(rows), size):
            chosen = rows[at : at + size]
            batch = cohort.batch(chosen)
            with torch.inference_mode():
                out = model(batch)
            persons += [f"{name}/{cohort.ids[row]}" for row in chosen]
            names += [name] * len(chosen)
            truth.append(cohort.labels[chosen])
            output.append(compared.values(out, task.truth(batch)))
            counts.setdefault(name, []).append(task.counts(out.float(), task.truth(batch)))
        if cohort.clusters is not None and len(rows):
            own = cohort.clusters[rows]
            clusters += [f"{name}/{number}" for number in own]
            values = np.concatenate(output[before:])
            counts[name].append(design_counts(study.traits.label, values, cohort.labels[rows], own))
    summed = {name: add_counts(own) for name, own in counts.items()}
    none = [np.zeros(0)]
    labels, values = np.concatenate(truth or none).astype(np.float64), np.concatenate(output or none)
    return Outputs(np.array(persons, dtype=np.str_), np.array(names, dtype=np.str_), labels, values, summed,
                   np.array(clusters, dtype=np.str_) if study.cohort.cluster else None)  # fmt: skip


def tested_outputs(study: Study, sites: Mapping[str, Site], trained: Path, sent: Collection[str]) -> Outputs:
    """``test_outputs`` of the sites that have test figures: those in ``sent``, which sent counts, with at least min_count test persons.
    Noised counts are sent of fewer persons too."""
    found = test_outputs(study, {name: site for name, site in sites.items() if name in sent}, trained)

    def enough(name: str) -> bool:
        manifest = sites[name].manifest
        fewest = 1 if manifest.data.public else limits(manifest.policy, study).min_count
        return int((found.site == name).sum()) >= fewest

    return found.at([name for name in found.counts if enough(name)])


def scores(study: Study, outputs: Outputs) -> dict[str, float]:
    """Metrics of all persons in ``outputs``, the watched one not of a histogram but exact; without it where it is not defined."""
    task = make_task(study)
    if not outputs.counts:
        return {}
    found = dict(task.metrics(add_counts(outputs.counts.values())))
    compared = built(task.compared, task.name, "a comparison of two models on the same persons")
    value = float(compared.statistic(outputs.truth, outputs.output)(np.ones((1, len(outputs.person)), dtype=np.int64))[0])
    return {k: v for k, v in {**found, task.watched: value}.items() if k != task.watched or math.isfinite(v)}


def around(found: Interval, value: float) -> Interval:
    """``value`` with the limits of ``found``, an interval from a histogram of the same outputs, widened to contain it."""
    return replace(found, value=value, low=min(found.low, value), high=max(found.high, value))
