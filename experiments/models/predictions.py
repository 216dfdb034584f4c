"""A finished run's predictions for persons whose data are on this machine: one row a person. They never leave the machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedml.clients.site.manifest import Site
from fedml.clients.site.read import load_aligned
from fedml.errors import InputError, SiteError
from fedml.runs.log import load_model, saved_window
from fedml.study.section import PARTS
from fedml.tasks.registry import make_task

if TYPE_CHECKING:
    import pandas as pd

_BATCH = 64  # persons


def predictions(run: Path, sites: Mapping[str, Site]) -> pd.DataFrame:
    """Columns ``site``, ``id``, ``part`` (train, val, test), ``label`` (of classes: the class; ``label_COLUMN`` for each column of a label
    of several) and those of the model's answer, such as ``predicted`` and ``probability_1``; one row a person, in the order of the sites'
    persons tables.

    Raises:
        InputError: ``run`` has no model, its answer is a mask, or a site's data cannot be read.
    """
    import pandas as pd
    import torch

    from fedml.runs.restore import restore

    if not (run / "model.safetensors").exists():
        raise InputError(f"{run}: has no model.safetensors; give the folder of a run that finished.")
    study, model = restore(run)
    if study.traits.label == "mask":
        raise InputError(f"{run}: predicts a mask for each image, which is no row of a table; load the model, as README shows, for images.")
    task, (arrays, _, panel) = make_task(study), load_model(run)
    torch.set_num_threads(study.training.threads)
    found = []
    for name, site in sites.items():
        new, window = name not in study.federation.sites, saved_window(arrays)
        try:
            cohort = load_aligned((str(site.file.resolve()),), study, panel, window=window, new=new)
        except SiteError as error:
            raise InputError(f"{site.file}: {error}.") from error
        for chosen in np.split(np.arange(len(cohort)), range(_BATCH, len(cohort), _BATCH)):
            batch = cohort.batch(chosen)
            with torch.inference_mode():
                columns = task.answer.columns(model(batch), batch)
            labels = cohort.labels[chosen]
            known = task.person_classes
            frame = pd.DataFrame(columns)
            if labels.ndim == 1:
                frame.insert(0, "label", [known[int(v)] for v in labels] if known else labels)
            else:
                for column, cells in reversed(list(task.labels.cells(labels).items())):
                    frame.insert(0, f"label_{column}", cells)
            frame.insert(0, "part", [PARTS[part] for part in cohort.parts[chosen]])
            frame.insert(0, "id", [cohort.ids[row] for row in chosen])
            frame.insert(0, "site", name)
            found.append(frame)
    return pd.concat(found, ignore_index=True)
