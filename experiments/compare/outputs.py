"""What a trained model says of each test person, at the sites' own folders: what comparing two models on the same persons needs.

It is for data at hand (the local engine): nothing of it is part of a run, and none of it leaves.
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
from fedml.learning.differences import Statistic, statistic
from fedml.learning.tasks import make_task
from fedml.runs.log import load_model, saved_window
from fedml.study.study import Study

_PERSONS = 64  # at a time


@dataclass(frozen=True)
class Outputs:
    """Of all sites' test persons, in one order: ``person`` (site/id), ``site`` (its name), ``truth`` (class or number) and ``output``:
    (persons, classes) probabilities, (persons,) numbers, or (persons, classes) Dice, NaN where a class neither is nor is said to be."""

    person: npt.NDArray[np.str_]
    site: npt.NDArray[np.str_]
    truth: npt.NDArray[np.float64]
    output: npt.NDArray[np.float64]

    def statistic(self, task: str, metric: str) -> Statistic:
        """The task's watched metric of persons drawn so often."""
        if task == "segmentation":
            each = [statistic("mean", self.truth, dice) for dice in self.output.T]
            return lambda drawn: np.nanmean([one(drawn) for one in each], axis=0)
        return statistic(metric, self.truth, self.output)


def test_outputs(study: Study, sites: Mapping[str, Site], trained: Path) -> Outputs:
    """Of a finished run's model (its folder) on every site's test persons."""
    import torch

    from fedml.runs.restore import restore

    own, model = restore(trained)
    task, (arrays, _, panel) = make_task(study), load_model(trained)
    persons: list[str] = []
    names: list[str] = []
    truth: list[npt.NDArray[Any]] = []
    output: list[npt.NDArray[Any]] = []
    torch.set_num_threads(own.training.threads)
    for name, site in sites.items():
        cohort = load_aligned((str(site.file.resolve()),), study, panel, window=saved_window(arrays))
        rows = cohort.rows("test")
        size = 1 if task.name == "segmentation" else _PERSONS
        for at in range(0, len(rows), size):
            chosen = rows[at : at + size]
            batch = cohort.batch(chosen)
            with torch.inference_mode():
                out = model(batch)
            persons += [f"{name}/{cohort.ids[row]}" for row in chosen]
            names += [name] * len(chosen)
            truth.append(cohort.labels[chosen])
            if task.name == "segmentation":
                counts = task.counts(out, task.truth(batch))
                output.append(np.where(counts["scored"] > 0, counts["dice_sum"], np.nan)[None])
            elif task.name == "regression":
                output.append(out[:, 0].double().numpy())
            else:
                output.append(torch.softmax(out.double(), 1).numpy())
    return Outputs(np.array(persons), np.array(names), np.concatenate(truth).astype(np.float64), np.concatenate(output))
