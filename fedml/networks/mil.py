"""Attention over the tiles, or several images, of a person: multiple instance learning for data that are too large for one image.

    features = embed(encoder, tiles)                          # (tiles, width); tiles of all slides of a person are one bag
    pooling = GatedAttention(width, outputs=2)
    logits = pooling(features, person, persons)
    weight = pooling.attention(features, person, persons)     # weight of each tile; sum 1 for each person

Gated attention: Ilse, Tomczak and Welling 2018, "Attention-based deep multiple instance learning", ICML, equation 9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Tiles(Protocol):
    """Tiles that are read in chunks of at most ``chunk`` when iterated (``fedml.cohort.slides.cohort.Bag``)."""

    @property
    def chunk(self) -> int: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[torch.Tensor]: ...


def embed(encode: Callable[[torch.Tensor], torch.Tensor], tiles: torch.Tensor | Tiles) -> torch.Tensor:
    """(tiles, features): ``encode`` of all of them, at least one; for ``Tiles`` chunk by chunk, so that memory holds only one chunk.

    Where there is a gradient, a chunk's way through the network is gone again when its turn comes backwards (Chen et al. 2016, "Training
    deep nets with sublinear memory cost"), and the numbers are the same. ``encode`` treats each tile alone: no batch norm.
    """
    if isinstance(tiles, torch.Tensor):
        return encode(tiles)
    if torch.is_grad_enabled():
        again = len(tiles) > tiles.chunk
        return torch.cat([checkpoint(encode, part, use_reentrant=False) if again else encode(part) for part in tiles])
    out, begin = torch.empty(0), 0
    for part in tiles:  # into one buffer, because small results between the chunks' large blocks would fragment memory
        found = encode(part)
        out = out if begin else found.new_empty(len(tiles), found.shape[1])
        out[begin : begin + len(part)] = found
        begin += len(part)
    return out


class GatedAttention(nn.Module):
    """Features of tiles (tiles, width), taken as they are (a ReLU before can end with all of them at 0), to ``outputs`` a person.

    Args:
        hidden: width of the attention.
    """

    def __init__(self, width: int, outputs: int, *, hidden: int = 64) -> None:
        super().__init__()
        self.width = width
        self.tanh, self.gate, self.score = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, 1, bias=False)
        self.head = nn.Linear(width, outputs)

    def attention(self, features: torch.Tensor, person: torch.Tensor, persons: int) -> torch.Tensor:
        """(tiles,) weights, from 0 to 1, that sum to 1 over the tiles of each person; in float32 for any type of features."""
        score = self.score(torch.tanh(self.tanh(features)) * torch.sigmoid(self.gate(features)))[:, 0].float()
        # Subtracting a constant from all scores of a person does not change the softmax, so the maximum needs no gradient.
        largest = score.new_zeros(persons).scatter_reduce(0, person, score.detach(), "amax", include_self=False)
        power = torch.exp(score - largest[person])
        weight: torch.Tensor = power / score.new_zeros(persons).index_add(0, person, power)[person]
        return weight

    def forward(self, features: torch.Tensor, person: torch.Tensor, persons: int) -> torch.Tensor:
        """(persons, outputs); exactly 0, and without gradient, for a person without tiles.

        Args:
            features: (tiles, width). person (tiles,): row of each tile's person, in any order, below ``persons``.
        """
        weight = self.attention(features, person, persons)
        bag = weight.new_zeros(persons, self.width).index_add(0, person, features.float() * weight[:, None])
        present = torch.bincount(person, minlength=persons).clamp_max(1)[:, None]
        out: torch.Tensor = self.head(bag) * present
        return out
