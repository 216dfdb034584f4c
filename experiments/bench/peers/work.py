"""What every runner computes: jobs, sites, arrays, network, first weights, order of persons, and the evaluation at the end.

Seeds, batches and first weights are derived as the project derives them, and the sum of replies is weighted by persons as in its FedAvg, so
that all runners end with the same weights up to the order of sums. No federated framework is imported here, and torch only inside
functions: jobs without training do not need it. The peers' environments import this module, so it needs numpy and torch only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from fedml.seeds import derive_seed

if TYPE_CHECKING:
    import torch

SEED = 1
COLUMNS = 13
HIDDEN = {"heart": (64,), "empty": (62, 2)}  # 13-62-2-2 has 1,000 parameters
PARAMETERS = 1000

Array = npt.NDArray[np.float32]
Weights = Mapping[str, Array]


@dataclass(frozen=True)
class Job:
    """One piece of work. ``optimizer`` None: sites do not train; ``data``: the file below the data folder that it needs."""

    name: str
    sites: Sequence[str]
    rounds: int
    optimizer: Literal["sgd", "adam"] | None = None
    lr: float = 0.0
    batch: int = 0
    data: str | None = None


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"site-{i:04d}" for i in range(count))


HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
JOBS = {
    job.name: job
    for job in (
        Job("heart", HOSPITALS, 50, "sgd", 0.05, 16, "uci_heart"),
        Job("pneumonia", _numbered(5), 8, "adam", 1e-3, 32, "medmnist/pneumoniamnist.npz"),
        Job("empty10", _numbered(10), 20),
        Job("empty50", _numbered(50), 20),
        Job("many", _numbered(1000), 20),
    )
}


def this_job() -> Job:
    """The job that the measured process does: PEERS_JOB, with PEERS_ROUNDS in place of its rounds."""
    job = JOBS[os.environ["PEERS_JOB"]]
    return Job(**{**vars(job), "rounds": int(os.environ["PEERS_ROUNDS"])})


def site_arrays(site: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """Training persons of a site, standardised: (persons, ...) float32 and (persons,) int64 labels; from PEERS_ARRAYS."""
    with np.load(os.environ["PEERS_ARRAYS"]) as arrays:
        return arrays[f"x{site}"], arrays[f"y{site}"]


def test_arrays() -> tuple[Array, npt.NDArray[np.int64]]:
    """The test persons of all sites, as ``site_arrays``."""
    with np.load(os.environ["PEERS_ARRAYS"]) as arrays:
        return arrays["test_x"], arrays["test_y"]


def order(job: Job, site: int, number: int, persons: int) -> torch.Tensor:
    """(persons,) int64: the order in which a site takes its persons in round ``number`` (from 1)."""
    import torch

    seed = derive_seed("training", SEED, number, job.sites[site])
    shuffled: torch.Tensor = torch.randperm(persons, generator=torch.Generator().manual_seed(seed))
    return shuffled


def layers(job: Job) -> list[torch.nn.Module]:
    """The network's layers with the first weights; in a job without training, those that only the project has."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("initial weights", SEED))
        if job.name != "pneumonia":
            return _mlp((COLUMNS, *hidden(job), 2))
        found: list[nn.Module] = []
        for before, channels in ((1, 32), (32, 64), (64, 128)):
            found += [nn.Conv2d(before, channels, 3, padding=1), nn.GroupNorm(8, channels), nn.ReLU(), nn.MaxPool2d(2)]
        return [*found, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 2)]


def hidden(job: Job) -> tuple[int, ...]:
    """Widths of the hidden layers of a job on a table."""
    return HIDDEN["empty" if job.optimizer is None else job.name]


def _mlp(widths: Sequence[int]) -> list[torch.nn.Module]:
    from torch import nn

    found: list[nn.Module] = []
    for before, after in pairwise(widths):
        found += [nn.Linear(before, after), nn.ReLU()]
    return found[:-1]


def first_weights(job: Job) -> dict[str, Array]:
    """The weights that the first round starts with; a single vector of zeros in a job without training."""
    if job.optimizer is None:
        return {"w": np.zeros(PARAMETERS, np.float32)}
    from torch import nn

    return {name: value.numpy() for name, value in nn.Sequential(*layers(job)).state_dict().items()}


class Site:
    """One site as the peers' sites have it: arrays as tensors, network and optimiser made once. Final."""

    def __init__(self, job: Job, site: int) -> None:
        self.job, self.site, self.persons = job, site, 1
        if job.optimizer is None:
            return
        import torch

        torch.set_num_threads(1)
        self.x, self.y = (torch.from_numpy(a) for a in site_arrays(site))
        self.persons, self.model = len(self.y), torch.nn.Sequential(*layers(job))
        self.optimizer = make_optimizer(job, list(self.model.parameters()))

    def train(self, weights: Mapping[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
        """The weights after one epoch of round ``number`` from ``weights``."""
        self.model.load_state_dict(weights)
        self.optimizer.state.clear()  # a site starts each round with a new optimiser
        epoch(self.model, self.optimizer, self.batches(number))
        return dict(self.model.state_dict())

    def batches(self, number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of round ``number``: views of the persons, shuffled once."""
        shuffled = order(self.job, self.site, number, self.persons)
        return batches(self.x[shuffled], self.y[shuffled], self.job.batch)


def batches(x: torch.Tensor, y: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """``size`` persons at a time, as views."""
    return [(x[at : at + size], y[at : at + size]) for at in range(0, len(y), size)]


def make_optimizer(job: Job, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The job's optimiser in torch's fastest form for it on a CPU: of the few small arrays of a table's network, a loop over arrays."""
    import torch

    if job.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=job.lr, foreach=False)
    return torch.optim.Adam(parameters, lr=job.lr, fused=True)


def epoch(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """One step for each batch."""
    from torch.nn import functional

    for x, y in batches:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def auroc(score: npt.NDArray[np.float64], label: npt.NDArray[np.int64]) -> float:
    """Area under the ROC curve as the Mann-Whitney statistic, ties one half (Hanley & McNeil 1982)."""
    negative, positive = np.sort(score[label == 0]), score[label == 1]
    below, upto = (np.searchsorted(negative, positive, side=side) for side in ("left", "right"))
    return float((below + upto).sum() / 2 / (len(negative) * len(positive)))


def evaluate(job: Job, weights: Weights) -> float | None:
    """AUROC of the test persons; None in a job without training."""
    if job.optimizer is None:
        return None
    import torch

    model = torch.nn.Sequential(*layers(job))
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    x, y = test_arrays()
    with torch.inference_mode():
        z = torch.cat([model(part) for part, _ in batches(torch.from_numpy(x), torch.from_numpy(y), 256)]).double().numpy()
    return auroc(z[:, 1] - z[:, 0], y)


def data_folder() -> Path:
    """Where the real data are unless the command says otherwise: next to the checkout."""
    return Path(__file__).resolve().parents[3].parent / "shared" / "data"
