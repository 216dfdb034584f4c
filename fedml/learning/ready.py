"""The training persons of a round as tensors that are preprocessed once, so that a step is a selection of rows and the network.

    ready = make_ready(network, cohort, device)      # None: too large, or the model needs more of a batch than this
    for batch in ready.batches(steps): output = ready.forward(batch)

The constants of the preprocessing are fixed for a run and treat each value on its own, so the bits are those of ``Cohort.batch``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedml.cohort.images.images import Images
from fedml.cohort.inputs import Input, Table
from fedml.cohort.persons import Batch, Cohort
from fedml.cohort.variants.model import Dosages
from fedml.models.fusion import CohortModel, ready_forward, ready_key

LARGEST = 2**28  # bytes of the tensors of a round
SMALL = 2**24  # of which a second copy is made, in the order of a pass


@dataclass(frozen=True)
class Ready:
    """``tensors``: of all training persons, by the keys of a batch. ``place``: (persons,) the row in them of each person of the cohort.
    ``forward``: the network as a function of a batch."""

    tensors: Batch
    place: torch.Tensor
    forward: Callable[[Batch], torch.Tensor]

    def batches(self, steps: Sequence[npt.NDArray[np.int64]]) -> Iterator[Batch]:
        """The persons of each step, rows of the cohort. Where that takes little memory, all are selected at once, and a batch is a view."""
        if self.bytes > SMALL:
            yield from (self._select(chosen) for chosen in steps)
            return
        every, at = self._select(np.concatenate(steps)), 0
        parts = list(every.items())
        for chosen in steps:
            end = at + len(chosen)
            yield {key: values[at:end] for key, values in parts}
            at = end

    def _select(self, chosen: npt.NDArray[np.int64]) -> Batch:
        rows = self.place[torch.from_numpy(chosen)]
        return {key: values.index_select(0, rows) for key, values in self.tensors.items()}

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(values.nbytes for values in self.tensors.values())


def make_ready(network: nn.Module, cohort: Cohort, device: torch.device) -> Ready | None:
    """The training persons of ``cohort`` for ``network``, which is on ``device``; None where a batch has to be made anew in each step: for
    slides, patches, several images a person, tables on disk, models of masks, and above ``LARGEST``."""
    if not isinstance(network, CohortModel) or network.segmentation or network.pooling is not None:
        return None
    if (kept := _kept_for(network, cohort, device)) is not None:
        return Ready(*kept, ready_forward(network))
    rows = cohort.rows("train")
    if sum(_bytes(value, len(rows)) for value in cohort.inputs.values()) > LARGEST:
        return None
    label = torch.from_numpy(cohort.labels[rows].astype(np.float32))
    tensors: Batch = {"label": label.to(device)}
    for name, value in cohort.inputs.items():
        found = value.tensors(rows, None)
        person = found.pop(f"{name}_person", None)
        if found.keys() != {name} or (person is not None and not torch.equal(person, torch.arange(len(rows)))):
            return None
        tensors[f"{name}_present"] = torch.from_numpy(value.has(len(cohort))[rows].astype(np.float32)).to(device)
        with torch.no_grad():
            tensors[ready_key(name)] = network.preprocess[name](found[name].to(device))
    place = torch.zeros(len(cohort), dtype=torch.int64)
    place[torch.from_numpy(rows)] = torch.arange(len(rows))
    ready = Ready(tensors, place.to(device), ready_forward(network))
    if ready.bytes <= SMALL:
        _keep(network, cohort, ready)
    return ready


# Of a small cohort the tensors are kept for the next round, with the constants of which they were made.
_KEPT = WeakKeyDictionary[Cohort, tuple[list[torch.Tensor], Batch, torch.Tensor]]()


def _kept_for(network: CohortModel, cohort: Cohort, device: torch.device) -> tuple[Batch, torch.Tensor] | None:
    if (found := _KEPT.get(cohort)) is None:
        return None
    before, tensors, place = found
    now = list(network.preprocess.state_dict().values())
    same = len(now) == len(before) and all(torch.equal(a, b) for a, b in zip(now, before, strict=True))
    return (tensors, place) if same and place.device == device else None


def _keep(network: CohortModel, cohort: Cohort, ready: Ready) -> None:
    if sum(values.nbytes for _, tensors, _ in _KEPT.values() for values in tensors.values()) > 4 * SMALL:  # of many sites
        _KEPT.clear()
    _KEPT[cohort] = [value.clone() for value in network.preprocess.state_dict().values()], ready.tensors, ready.place


def _bytes(value: Input, persons: int) -> float:
    """Of the preprocessed values of so many persons; infinite for what is not read at once."""
    if isinstance(value, Table):
        return 4.0 * persons * int(value.values.shape[1])
    if isinstance(value, Dosages):
        return 4.0 * persons * len(value.keys)
    if isinstance(value, Images) and value.masks is None and value.patches is None:
        return float(4 * max(persons, len(value.person)) * math.prod(value.shape))
    return math.inf
