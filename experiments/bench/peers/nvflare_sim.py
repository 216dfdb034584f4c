"""NVFLARE's simulator with its FedAvg recipe and defaults: a process for each site. Rounds are timed by the server's own log."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path

import numpy as np

from fedml.experiments.bench.peers import work
from fedml.experiments.bench.peers.marks import finish, mark

CLIENT = Path(__file__).with_name("nvflare_client.py")
_STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")
_EVENT = re.compile(r"Round \d+ started|Finished FedAvg")


def stamps(log: str) -> dict[str, float]:
    """Unix seconds of "Round N started" (from 0) and "Finished FedAvg", the first of each; a line without a stamp has that before it."""
    found, at = dict[str, float](), 0.0
    for line in log.splitlines():
        if stamp := _STAMP.match(line):
            at = datetime.strptime(stamp[0], "%Y-%m-%d %H:%M:%S,%f").timestamp()
        if event := _EVENT.search(line):
            found.setdefault(event[0], at)
    return found


def main() -> None:
    """Does PEERS_JOB."""
    from nvflare.recipe import SimEnv

    job, out = work.this_job(), Path(os.environ["PEERS_OUT"])
    count = len(job.sites)
    if job.optimizer:
        from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe

        model = {"class_path": "fedml.experiments.bench.peers.nvflare_model.Network", "args": {"job": job.name}}
        recipe = FedAvgRecipe(name="peer", min_clients=count, num_rounds=job.rounds, train_script=str(CLIENT), model=model)
    else:
        from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe

        zeros = work.first_weights(job)["w"].tolist()
        recipe = NumpyFedAvgRecipe(name="peer", min_clients=count, num_rounds=job.rounds, train_script=str(CLIENT), model=zeros)
    recipe.execute(SimEnv(num_clients=count, workspace_root=str(out / "ws")))
    server = out / "ws" / "peer" / "server"
    found = stamps(next(server.rglob("log.txt")).read_text(errors="replace"))
    for number in range(job.rounds):
        mark(number, found[f"Round {number} started"])
    mark(job.rounds, found["Finished FedAvg"])
    if job.optimizer:
        import torch

        saved = torch.load(next(server.rglob("FL_global_model.pt")), weights_only=True)
        finish(job, saved.get("model", saved))
    else:
        finish(job, {"w": np.load(next(server.rglob("*.npy")), allow_pickle=False)})


if __name__ == "__main__":
    main()
