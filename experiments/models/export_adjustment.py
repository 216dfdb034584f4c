"""`fedml export-adjustment`: the linear models of a score, and of its squared residual, on principal components, as one file for
`fedml-site adjust`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fedml.cohort.scores.ancestry import Adjustment, Line
from fedml.errors import InputError
from fedml.experiments.models.export_score import finished
from fedml.runs.log import write_whole
from fedml.runs.restore import restore
from fedml.study.study import Study


def export_adjustment(mean: Path, variance: Path | None, out: Path) -> str:
    """Writes ``out`` from the runs ``mean`` and ``variance``; returns a summary.

    Raises:
        InputError: a run is not finished, its study is no regression on clinical numbers alone, its model is not linear, or the two have
            other columns.
    """
    columns, line, study = _line(mean)
    found, studies = None, [study.sha256]
    if variance is not None:
        others, found, other = _line(variance)
        if others != columns:
            raise InputError(f"{variance}: its columns are {', '.join(others)}, those of {mean} are {', '.join(columns)}; use the same.")
        studies.append(other.sha256)
    adjustment = Adjustment(columns=columns, mean=line, variance=found, source=tuple(studies))
    try:
        write_whole(out, (adjustment.model_dump_json(indent=1) + "\n").encode())
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); give --out another file.") from error
    what = "mean and variance" if found is not None else "the mean alone"
    return f"{out}: {what} of {study.cohort.outcome} by {', '.join(columns)}"


def _line(run: Path) -> tuple[tuple[str, ...], Line, Study]:
    """The model of a run as a line in its columns, in their own units."""
    study, _ = finished(run)
    spec = study.cohort.clinical
    fits = study.traits.label == "number" and study.cohort.inputs == ("clinical",) and spec is not None and not study.cohort.by_site
    if not fits or spec is None or spec.categories or spec.dates:
        raise InputError(f"{run}: is no regression on numbers of clinical alone; give the run of the score on principal components.")
    _, model = restore(run)
    model = model.double().eval()
    rng, count = np.random.default_rng(0), len(spec.columns)
    mean, std = (model.get_buffer(f"preprocess.clinical.{name}").double().numpy() for name in ("mean", "std"))
    at = np.vstack([np.zeros(count), np.eye(count), rng.normal(size=(8, count))]) * std + mean
    with torch.no_grad():
        batch = {"clinical": torch.from_numpy(at), "clinical_present": torch.ones(len(at), dtype=torch.float64)}
        y = model(batch)[:, 0].double().numpy()
    weights = np.divide(y[1 : count + 1] - y[0], std, out=np.zeros(count), where=std > 0)
    intercept = y[0] - float(mean @ weights)
    off = np.abs(intercept + at @ weights - y).max()
    if not np.isfinite(y).all() or off > 1e-6 * max(float(np.ptp(y)), 1e-300):
        raise InputError(f'{run}: its model is not linear; set [model.clinical] net = "linear".')
    return spec.columns, Line(intercept=float(intercept), weights=tuple(weights.tolist())), study
