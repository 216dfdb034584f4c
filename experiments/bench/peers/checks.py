"""Are the results those of the work? Weights where the arithmetic is stable, AUROC where a job trains, the end value where it does not."""

from __future__ import annotations

import numpy as np

from fedml.experiments.bench.peers.figures import Run
from fedml.experiments.bench.peers.work import JOBS, PARAMETERS, Job, Weights, layers

# Largest difference of a weight, as a share of the largest weight: the order of sums is another, and ours reads decimal numbers.
WEIGHTS = {"heart": 1e-4}
# Adam amplifies rounding: on pneumonia, weights that differ by 1e-7 at the start differ in the second digit at the end. Ours counts AUROC
# in 4,096 bins.
AUROC = {"heart": 0.002, "pneumonia": 0.01}
END_VALUE = 1e-3


def apart(a: Weights, b: Weights) -> float:
    """The largest difference as a share of ``b``'s largest value; infinite if names or shapes differ."""
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in b):
        return float("inf")
    largest = max(float(np.abs(value).max()) for value in b.values())
    return max(float(np.abs(a[name].astype(np.float64) - b[name]).max()) for name in b) / largest


def problem(run: Run, bare: Run | None) -> str | None:
    """What is wrong with the results of ``run``; None if they are right, or nothing can be compared."""
    job = JOBS[run.job]
    if run.figures is None:
        return run.error
    if job.optimizer is None:
        return _unmoved(run, job) if run.runner.startswith("ours") else _added(run, job)
    if bare is None or bare.figures is None:
        return None
    if job.name in WEIGHTS and not (distance := apart(run.weights, bare.weights)) <= WEIGHTS[job.name]:
        return f"its weights differ from the bare loop's by {distance:.1e} of the largest"
    if run.auroc is None or bare.auroc is None or not abs(run.auroc - bare.auroc) <= AUROC[job.name]:
        return f"its AUROC is {run.auroc}, the bare loop's {bare.auroc}"
    return None


def _added(run: Run, job: Job) -> str | None:
    """Each site adds 1 in each round."""
    values = np.concatenate([value.ravel() for value in run.weights.values()])
    wrong = float(np.abs(values - job.rounds).max())
    return None if len(values) == PARAMETERS and wrong <= END_VALUE else f"{len(values)} values end up to {wrong:.1e} from {job.rounds}"


def _unmoved(run: Run, job: Job) -> str | None:
    """No site trains, so the first weights must come back, up to the rounding of means."""
    from torch import nn

    first = {name: value.numpy() for name, value in nn.Sequential(*layers(job)).state_dict().items()}
    distance = apart(run.weights, first)
    return None if distance <= END_VALUE else f"its weights moved by {distance:.1e} of the largest although no site trains"
