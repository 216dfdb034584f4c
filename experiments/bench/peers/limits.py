"""The limits that ours must keep on a quiet machine, and the decision whether it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedml.experiments.bench.peers.figures import Run, medians

SLACK = 0.15  # a limit is broken if a second measurement, too, is worse by more than this


@dataclass(frozen=True)
class Limit:
    """``figure`` of ``runner`` in ``job`` is at most ``most``: times that of ``than``, or absolute (seconds, MB) if ``than`` is None."""

    job: str
    runner: str
    figure: str
    most: float
    than: str | None = None

    def __str__(self) -> str:
        unit = f" x {self.than}" if self.than else {"memory": " MB", "growth": ""}.get(self.figure, " s")
        return f"{self.job}, {self.runner}, {self.figure}: at most {self.most:g}{unit}"


LIMITS = (
    Limit("heart", "ours", "total", 1.25, "bare"),
    Limit("heart", "ours", "total", 1.0, "pfl"),
    Limit("heart", "ours", "start", 1.3, "bare"),
    Limit("heart", "ours", "round", 1.15, "bare"),
    Limit("heart", "ours", "memory", 400),
    Limit("heart", "ours", "after", 1.0),
    Limit("pneumonia", "ours", "total", 1.08, "bare"),
    Limit("pneumonia", "ours", "memory", 450),
    Limit("pneumonia", "ours2", "total", 0.6, "bare"),
    Limit("pneumonia", "ours2", "total", 1.0, "flower"),
    Limit("empty10", "ours", "round", 0.002),
    Limit("empty10", "ours", "round", 1.0, "pfl"),
    Limit("empty50", "ours", "round", 0.010),
    Limit("empty50", "ours", "round", 1.0, "pfl"),
    Limit("many", "ours", "round", 0.25),
    Limit("many", "ours", "growth", 1.05),
)


def value(limit: Limit, runs: Sequence[Run]) -> float | None:
    """The ratio of medians, or the median; None where it was not measured."""
    ours = medians(runs, limit.job, limit.runner)
    if ours is None:
        return None
    measured = float(getattr(ours, limit.figure))
    if limit.than is not None:
        peer = medians(runs, limit.job, limit.than)
        if peer is None:
            return None
        measured /= float(getattr(peer, limit.figure))
    return None if math.isnan(measured) else measured


def over(limit: Limit, runs: Sequence[Run], slack: float = SLACK) -> bool | None:
    """Is it worse than ``slack`` allows? None where it was not measured."""
    measured = value(limit, runs)
    return None if measured is None else measured > limit.most * (1 + slack)


def twice(limits: Sequence[Limit], runs: Sequence[Run], again: Callable[[Sequence[Limit]], Sequence[Run]]) -> tuple[list[Limit], list[Run]]:
    """The limits that are over in ``runs`` and not shown to be kept by a second measurement of them; and the runs of that measurement.

    Args:
        again: measures what the limits need, anew.
    """
    first = [limit for limit in limits if over(limit, runs)]
    second = list(again(first)) if first else []
    return [limit for limit in first if over(limit, second) is not False], second
