"""The job's network as a class: NVFLARE's server makes it from a path and arguments, so it must make its own first weights."""

from __future__ import annotations

from torch import nn

from fedml.experiments.bench.peers import work


class Network(nn.Sequential):
    """The network of the job named ``job``. Final."""

    def __init__(self, job: str) -> None:
        super().__init__(*work.layers(work.JOBS[job]))
