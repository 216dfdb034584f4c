"""pfl-research: FederatedAveraging on its SimulatedBackend, one process, defaults.

pfl has its own local loop and takes the persons in the order in which they are handed over, so they are shuffled before. It evaluates at
iteration 0 whatever the frequency; the metrics of the network are therefore none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.context import LocalResultMetaData
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel

from fedml.experiments.bench.peers import work
from fedml.experiments.bench.peers.marks import finish, mark


class Network(torch.nn.Sequential):
    """The job's network with pfl's two methods. Final."""

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Of one batch."""
        return torch.nn.functional.cross_entropy(self(x), y)

    def metrics(self, *_: torch.Tensor) -> dict[str, Any]:
        """None."""
        return {}


class Vector(torch.nn.Module):
    """The single array of a job without training. Final."""

    def __init__(self, values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.from_numpy(values))

    def loss(self, *_: torch.Tensor) -> torch.Tensor:
        """Not called."""
        raise AssertionError("a job without training has no loss")

    def metrics(self, *_: torch.Tensor) -> dict[str, Any]:
        """None."""
        return {}


class Adds(PyTorchModel):  # type: ignore[misc]
    """A site that adds 1 in place of training. Final."""

    def do_multiple_epochs_of(self, *_: Any, **__: Any) -> Any:
        """Adds 1."""
        with torch.no_grad():
            self.pytorch_model.w += 1
        return LocalResultMetaData(num_steps=1)


class Clock(TrainingProcessCallback):  # type: ignore[misc]
    """Marks the rounds. Final."""

    def on_train_begin(self, *, model: Any) -> Any:
        """The first round begins."""
        mark(0)
        return Metrics()

    def after_central_iteration(self, _metrics: Any, _model: Any, *, central_iteration: int) -> tuple[bool, Any]:
        """A round ended."""
        mark(central_iteration + 1)
        return False, Metrics()


def datasets(job: work.Job) -> Any:
    """pfl's function from a site to its persons, called once a round."""
    visits = [0] * len(job.sites)
    sites = [tuple(torch.from_numpy(a) for a in work.site_arrays(i)) for i in range(len(job.sites))] if job.optimizer else []
    nothing = [torch.zeros(1), torch.zeros(1)]

    def dataset(site: int) -> Any:
        if not sites:
            return Dataset(nothing, user_id=str(site))
        visits[site] += 1
        shuffled = work.order(job, site, visits[site], len(sites[site][1]))
        return Dataset([values[shuffled] for values in sites[site]], user_id=str(site))

    return dataset


def main() -> None:
    """Does PEERS_JOB."""
    job = work.this_job()
    torch.set_num_threads(1)
    network: torch.nn.Module = Network(*work.layers(job)) if job.optimizer else Vector(work.first_weights(job)["w"])
    local = torch.optim.Adam if job.optimizer == "adam" else torch.optim.SGD
    # A central SGD of rate 1 adds the mean difference as it is: federated averaging.
    model = (PyTorchModel if job.optimizer else Adds)(network, local, torch.optim.SGD(network.parameters(), 1.0))
    sampler = get_user_sampler("minimize_reuse", list(range(len(job.sites))))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=job.rounds, evaluation_frequency=10**9, train_cohort_size=len(job.sites), val_cohort_size=None
        ),
        backend=SimulatedBackend(
            training_data=FederatedDataset(datasets(job), sampler), val_data=None, postprocessors=[WeightByDatapoints()]
        ),
        model=model,
        model_train_params=NNTrainHyperParams(local_learning_rate=job.lr or 1.0, local_num_epochs=1, local_batch_size=job.batch or None),
        callbacks=[Clock()],
    )
    finish(job, {name: value.detach() for name, value in network.state_dict().items()})


if __name__ == "__main__":
    main()
