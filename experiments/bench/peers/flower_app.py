"""Flower's two apps of a job, as its quickstart has them: stock FedAvg, whose ``evaluate_fn`` keeps the time, and one epoch a message."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedml.experiments.bench.peers import work
from fedml.experiments.bench.peers.marks import finish, mark

client = ClientApp()
server = ServerApp()


@cache
def site(number: int) -> work.Site:
    """A site that a process has had before keeps its tensors."""
    return work.Site(work.this_job(), number)


def packed(weights: Mapping[str, Any]) -> ArrayRecord:
    """Weights as Flower sends them."""
    return ArrayRecord({name: Array(value if hasattr(value, "dtype") and not hasattr(value, "numpy") else value.numpy())
                        for name, value in weights.items()})  # fmt: skip


@client.train()
def train(message: Message, context: Context) -> Message:
    """One epoch, or 1 is added."""
    job, number = work.this_job(), int(context.node_config["partition-id"])
    arrays, config = message.content.array_records["arrays"], message.content.config_records["config"]
    weights: dict[str, Any]
    persons = 1
    if job.optimizer is None:
        weights = {"w": arrays["w"].numpy() + 1}
    else:
        import torch  # noqa: F401  Flower converts to tensors only if torch was imported before

        here = site(number)
        weights, persons = here.train(arrays.to_torch_state_dict(), cast(int, config["server-round"])), here.persons
    content = RecordDict({"arrays": packed(weights), "metrics": MetricRecord({"num-examples": persons})})
    return Message(content=content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    job = work.this_job()
    count = len(job.sites)
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=count, min_available_nodes=count)

    def clock(number: int, _: ArrayRecord) -> None:
        mark(number)

    first = packed(work.first_weights(job))
    result = strategy.start(grid=grid, initial_arrays=first, num_rounds=job.rounds, evaluate_fn=clock)
    finish(job, {name: value.numpy() for name, value in result.arrays.items()})
