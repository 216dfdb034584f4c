"""How sure a model is: several predictions of one image, their mean, and how far they disagree.

    views = symmetries((96, 96, 64), flips=(0, 1), turns=False)         # test-time augmentation (Wang et al. 2019)
    all = (undo(view, softmax(network(apply(view, image)))) for view in views)
    found = spread(all)               # mean probabilities, predictive entropy and mutual information of each voxel or person
    with dropout(model, seed): ...    # Monte Carlo dropout (Gal and Ghahramani 2016); the other layers stay as in evaluation

Predictive entropy is that of the mean probabilities; mutual information is what remains of it less the mean entropy of the single
predictions: 0 where all agree (Depeweg et al. 2018). Both in nats.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from fedml.errors import InputError

_BY_CHANNEL = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_PLAIN = (nn.Dropout, *_BY_CHANNEL)


class Symmetry(NamedTuple):
    """The axes of an image in another order, then some of them reversed. Axes are counted from 0 behind the channels."""

    order: tuple[int, ...]
    reversed: tuple[int, ...]


def symmetries(size: Sequence[int], flips: Sequence[int], *, turns: bool) -> list[Symmetry]:
    """The identity first; every combination of ``flips`` (axes), and with ``turns`` also quarter turns in the plane of the first two axes.

    Raises:
        InputError: an axis that an image of ``size`` does not have; turns of a plane that is not square.
    """
    axes = len(size)
    if wrong := [a for a in flips if not 0 <= a < axes]:
        raise InputError(f"--view flip-{wrong[0]}: the prepared image has the axes 0 to {axes - 1}; give one of these.")
    if turns and size[0] != size[1]:
        raise InputError(f"--view turns: the first two axes of the prepared image have {size[0]} and {size[1]} voxels; leave it out.")
    own = sorted(set(flips))
    same = tuple(range(axes))
    out = [Symmetry(same, of) for n in range(len(own) + 1) for of in itertools.combinations(own, n)]
    if turns:
        swapped = (1, 0, *same[2:])
        half = (Symmetry(same, (0, 1)), Symmetry(swapped, (0,)), Symmetry(swapped, (1,)))  # half a turn, and a quarter either way
        out += [_after(one, turn) for turn in half for one in out]
    return list(dict.fromkeys(out))


def _after(first: Symmetry, then: Symmetry) -> Symmetry:
    """``then`` applied to what ``first`` made."""
    order = tuple(first.order[a] for a in then.order)
    moved = {then.order.index(a) for a in first.reversed}
    return Symmetry(order, tuple(sorted(moved ^ set(then.reversed))))


def apply(view: Symmetry, x: torch.Tensor) -> torch.Tensor:
    """``x`` (..., *size) in that view."""
    lead = x.ndim - len(view.order)
    return x.permute(*range(lead), *(lead + a for a in view.order)).flip([lead + a for a in view.reversed])


def undo(view: Symmetry, x: torch.Tensor) -> torch.Tensor:
    """The inverse of ``apply``, without rounding."""
    lead = x.ndim - len(view.order)
    back = [lead + view.order.index(a) for a in range(len(view.order))]
    return x.flip([lead + a for a in view.reversed]).permute(*range(lead), *back)


@dataclass(frozen=True, eq=False)
class Spread:
    """``mean`` (classes, ...) of ``members`` predictions; ``entropy`` and ``mutual_information`` (...), nats."""

    mean: torch.Tensor
    entropy: torch.Tensor
    mutual_information: torch.Tensor
    members: int


def spread(probabilities: Iterable[torch.Tensor]) -> Spread:
    """Of predictions (classes, ...), each summing to 1 over the classes. One after another is held, not all.

    Raises:
        ValueError: there is none.
    """
    total: torch.Tensor | None = None
    own: torch.Tensor | None = None
    members = 0
    for p in probabilities:
        p = p.detach().cpu().float()
        each = entropy(p)
        total, own = (p.clone(), each) if total is None or own is None else (total.add_(p), own.add_(each))
        members += 1
    if total is None or own is None:
        raise ValueError("no prediction")
    mean = total.div_(members)
    whole = entropy(mean)
    return Spread(mean, whole, (whole - own.div_(members)).clamp_min_(0), members)  # below 0 by rounding alone (Jensen)


def entropy(p: torch.Tensor) -> torch.Tensor:
    """(...) of ``p`` (classes, ...), nats; class by class, as a volume is large."""
    out = torch.zeros(p.shape[1:])
    for one in p:
        out -= torch.special.xlogy(one, one)
    return out.clamp_min_(0)


@contextmanager
def dropout(model: nn.Module, seed: int) -> Iterator[int]:
    """Within the block the dropout layers of ``model`` drop as in training, by random numbers of their own from ``seed``; yields how many
    layers there are. Everything else stays as it is, batch norm too."""
    generator = torch.Generator().manual_seed(seed)

    def drop(layer: nn.Module, _: Any, x: torch.Tensor) -> torch.Tensor:
        p = float(cast(Any, layer).p)
        channels = isinstance(layer, _BY_CHANNEL)
        shape = x.shape[:2] + (1,) * (x.ndim - 2) if channels else x.shape
        kept = torch.rand(shape, generator=generator) >= p
        return x * kept.to(x.device, x.dtype) / (1 - p) if p < 1 else torch.zeros_like(x)

    layers = [layer for layer in model.modules() if isinstance(layer, _PLAIN) and layer.p > 0]
    handles = [layer.register_forward_hook(drop) for layer in layers]
    try:
        yield len(layers)
    finally:
        for handle in handles:
            handle.remove()
