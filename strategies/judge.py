"""Updates that stand out: a site whose update, or another record that its algorithm returns (SCAFFOLD's change of the control variate), is
many times longer than those of the others is left out.

A mean follows each site by its weight, so one update of -50 times an honest one undoes the others'. Lengths of updates are compared by
local step; other records are means over the local steps, and are compared as they are. With privacy of a patient the noise of a mean is
inverse to the site's persons, so an update stands out only if it also does so times the persons. Replies of a round are held until their
lengths are known, as long as they are small together: memory does not grow with the number of sites. Beyond that they pass unjudged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedml.errors import Reason
from fedml.learning.training import planned_steps
from fedml.strategies.exchange import Answer
from fedml.study.study import Study
from fedml.wire.records import ARRAYS, METRICS, NUM_EXAMPLES, array_record, metric_record, unpack

LONGEST = 10.0  # times the median of the other sites
FEWEST = 3  # other sites
HELD_BYTES = 64 * 2**20
BLOCK = 2**20  # numbers


def update_norm(answer: Answer, current: Mapping[str, torch.Tensor]) -> float:
    """The Euclidean length of a site's update, over all weights."""
    trained = unpack(array_record(answer.message.content, ARRAYS))
    return math.sqrt(sum(_squared_distance(trained[name], value.numpy()) for name, value in current.items()))


def _squared_distance(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """In blocks: in float64, a large array as a whole would take twice the memory of the model."""
    total, first, second = 0.0, one.reshape(-1), other.reshape(-1)
    for start in range(0, first.size, BLOCK):
        values = np.subtract(first[start : start + BLOCK], second[start : start + BLOCK], dtype=np.float64)
        total += float(np.square(values, out=values).sum())
    return total


def _squared(values: npt.NDArray[Any]) -> float:
    flat = values.reshape(-1)
    return sum(float(np.square(flat[start : start + BLOCK], dtype=np.float64).sum()) for start in range(0, flat.size, BLOCK))


def record_norm(answer: Answer, record: str) -> float:
    """The Euclidean length of another record that a site returned."""
    return math.sqrt(sum(_squared(value) for value in unpack(array_record(answer.message.content, record)).values()))


def judged(
    study: Study, incoming: Iterable[Answer], current: Mapping[str, torch.Tensor], norms: dict[str, float], records: Sequence[str] = ()
) -> Iterator[Answer]:
    """``incoming`` in its order; one that stands out has the reason ``implausible``.

    Args:
        current: the weights that were sent. norms: filled with site -> length of its update.
        records: the names of what the algorithm returns besides the model.
    """
    held, size, stream = list[Answer](), 0, iter(incoming)
    for answer in stream:
        held.append(answer)
        size += answer.bytes_in
        if answer.reason is None:
            norms[answer.site] = update_norm(answer, current)
        if size > HELD_BYTES:
            break
    else:
        valid = [answer for answer in held if answer.reason is None]
        lengths = [[{a.site: norms[a.site] / _steps(study, a) for a in valid}]]
        if study.privacy.unit == "patient":
            lengths[0] += [{a.site: norms[a.site] / _steps(study, a) * _persons(a) for a in valid}]
        lengths += [[{a.site: record_norm(a, record) for a in valid}] for record in records]
        held = [_judge(answer, lengths) for answer in held]
    yield from held
    del held
    for answer in stream:
        if answer.reason is None:
            norms[answer.site] = update_norm(answer, current)
        yield answer


def _steps(study: Study, answer: Answer) -> int:
    """Local steps that follow from the plan: a site of more persons takes more of them, and goes farther."""
    return max(planned_steps(study, _persons(answer)), 1)


def _persons(answer: Answer) -> int:
    return int(str(metric_record(answer.message.content, METRICS)[NUM_EXAMPLES]))


def _judge(answer: Answer, lengths: Sequence[Sequence[Mapping[str, float]]]) -> Answer:
    """``lengths``: of each record, the lengths of the sites in one or more units, in all of which it must stand out."""
    if answer.reason is None and any(all(_stands_out(answer.site, norms) for norms in units) for units in lengths):
        return replace(answer, reason=str(Reason.IMPLAUSIBLE))
    return answer


def _stands_out(site: str, norms: Mapping[str, float]) -> bool:
    others = [norm for name, norm in norms.items() if name != site]
    return len(others) >= FEWEST and norms[site] > LONGEST * median(others) > 0
