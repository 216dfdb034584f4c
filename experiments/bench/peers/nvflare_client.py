"""A site's script for NVFLARE's Client API: receive, one epoch, send."""

from __future__ import annotations

from typing import Any

import numpy as np
import nvflare.client as flare

from fedml.experiments.bench.peers import work


def main() -> None:
    """Until the server ends the job."""
    job = work.this_job()
    params: dict[str, Any]
    flare.init()
    site = work.Site(job, int(flare.get_site_name().removeprefix("site-")) - 1)  # NVFLARE counts its sites from 1
    while flare.is_running():
        model = flare.receive()
        if job.optimizer is None:
            (key,) = model.params  # the recipe for NumPy has one array under a name of its own
            params = {key: np.asarray(model.params[key]) + np.float32(1)}
        else:
            import torch

            weights = {name: torch.as_tensor(value) for name, value in model.params.items()}
            params = site.train(weights, model.current_round + 1)
        # Its FedAvg weights a reply by this number; the number of persons makes the weights those of the others.
        flare.send(flare.FLModel(params=params, meta={"NUM_STEPS_CURRENT_ROUND": site.persons}))


if __name__ == "__main__":
    main()
