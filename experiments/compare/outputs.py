"""The outputs of a trained model for each test person, for comparing two models on the same persons.

They are computed at the sites' folders on this machine (the local engine); they are not part of a run and never leave the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedml.clients.site.manifest import Site
from fedml.clients.site.read import load_aligned
from fedml.runs.log import load_model, saved_window
from fedml.study.study import Study
from fedml.tasks.registry import make_task
from fedml.tasks.task import built

_BATCH = 64  # persons


@dataclass(frozen=True)
class Outputs:
    """Of all sites' test persons, in one order: ``person`` (site/id), ``site`` (name), ``truth`` (label) and ``output`` (persons, ...),
    the values by which the task compares models (``fedml.tasks.task.Compared``)."""

    person: npt.NDArray[np.str_]
    site: npt.NDArray[np.str_]
    truth: npt.NDArray[np.float64]
    output: npt.NDArray[np.float64]


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
    torch.set_num_threads(trained_study.training.threads)
    for name, site in sites.items():
        cohort = load_aligned((str(site.file.resolve()),), study, panel, window=saved_window(arrays))
        rows = cohort.rows("test")
        size = min(task.evaluation_batch, _BATCH)
        for at in range(0, len(rows), size):
            chosen = rows[at : at + size]
            batch = cohort.batch(chosen)
            with torch.inference_mode():
                out = model(batch)
            persons += [f"{name}/{cohort.ids[row]}" for row in chosen]
            names += [name] * len(chosen)
            truth.append(cohort.labels[chosen])
            output.append(compared.values(out, task.truth(batch)))
    return Outputs(np.array(persons), np.array(names), np.concatenate(truth).astype(np.float64), np.concatenate(output))
