"""What a measured process writes: a mark after each round, and at its end the weights and the AUROC. Files in PEERS_OUT."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fedml.experiments.bench.peers import work


@dataclass(frozen=True)
class Marks:
    """Unix seconds: ``rounds[0]`` just before round 1, ``rounds[n]`` after round n."""

    rounds: tuple[float, ...]


def mark(number: int, at: float | None = None) -> None:
    """Round ``number`` ended at ``at`` (now); 0: the first round begins."""
    line = json.dumps({"round": number, "time": time.time() if at is None else at})
    with (Path(os.environ["PEERS_OUT"]) / "marks.jsonl").open("a") as file:
        file.write(line + "\n")


def finish(job: work.Job, weights: Mapping[str, Any]) -> None:
    """Evaluates the last weights, arrays or tensors, and writes both."""
    out, arrays = Path(os.environ["PEERS_OUT"]), {name: np.asarray(value) for name, value in weights.items()}
    np.savez(out / "weights.npz", **arrays)  # type: ignore[arg-type]
    (out / "result.json").write_text(json.dumps({"auroc": work.evaluate(job, arrays)}))


def read(out: Path, rounds: int) -> Marks:
    """The marks of a run.

    Raises:
        ValueError: a round has no mark, or the marks are not in order.
    """
    file, found = out / "marks.jsonl", dict[int, float]()
    for line in file.read_text().splitlines() if file.exists() else ():
        row = json.loads(line)
        found.setdefault(int(row["round"]), float(row["time"]))
    if missing := [number for number in range(rounds + 1) if number not in found]:
        raise ValueError(f"{len(missing)} of {rounds + 1} marks are missing, the first is that of round {missing[0]}")
    times = tuple(found[number] for number in range(rounds + 1))
    if any(b < a for a, b in pairwise(times)):
        raise ValueError("the marks of the rounds are not in order of time")
    return Marks(times)
