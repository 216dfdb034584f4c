"""Federated averaging as a loop over sites in one process, without a framework or a record."""

from __future__ import annotations

import numpy as np

from fedml.experiments.bench.peers import work
from fedml.experiments.bench.peers.marks import finish, mark


def without_training(job: work.Job) -> dict[str, work.Array]:
    """Each site adds 1, so the end value is the number of rounds."""
    weights = work.first_weights(job)["w"]
    mark(0)
    for number in range(1, job.rounds + 1):
        total = np.zeros_like(weights)
        for _ in job.sites:
            total += weights + 1
        weights = total / np.float32(len(job.sites))
        mark(number)
    return {"w": weights}


def training(job: work.Job) -> dict[str, work.Array]:
    """One network and one optimiser for all sites; replies are summed as they come."""
    import torch

    torch.set_num_threads(1)
    model = torch.nn.Sequential(*work.layers(job))
    names, parameters = zip(*model.named_parameters(), strict=True)
    optimizer = work.make_optimizer(job, list(parameters))
    sites = [tuple(torch.from_numpy(a) for a in work.site_arrays(site)) for site in range(len(job.sites))]
    weights, persons = [p.detach().clone() for p in parameters], sum(len(y) for _, y in sites)
    mark(0)
    for number in range(1, job.rounds + 1):
        total = [torch.zeros_like(w) for w in weights]
        for site, (x, y) in enumerate(sites):
            with torch.no_grad():
                torch._foreach_copy_(parameters, weights)
            optimizer.state.clear()
            shuffled = work.order(job, site, number, len(y))
            work.epoch(model, optimizer, work.batches(x[shuffled], y[shuffled], job.batch))
            with torch.no_grad():
                torch._foreach_add_(total, parameters, alpha=len(y))
        weights = [t / persons for t in total]
        mark(number)
    return {name: value.numpy() for name, value in zip(names, weights, strict=True)}


def main() -> None:
    """Does PEERS_JOB."""
    job = work.this_job()
    finish(job, without_training(job) if job.optimizer is None else training(job))


if __name__ == "__main__":
    main()
