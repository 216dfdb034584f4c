"""Attention over the tiles of a person: multiple instance learning for slides too large to be one image.

    model = build_mil(ImageNetwork(), (3, 64, 64), outputs=2)
    logits = model(tiles, tile_person, persons)               # tiles of all slides of a person are one bag
    weight = model.attention(model.embed(tiles), tile_person, persons)   # which tiles spoke: 1 in all for each person

Gated attention: Ilse, Tomczak and Welling 2018, "Attention-based deep multiple instance learning", ICML, equation 9. In training a person
brings at most ``budget`` tiles a step, drawn anew each time from torch's default generator (``fedml.seeds.torch_seed``); in evaluation all
of them, ``CHUNK`` at a time, so memory holds the features of all tiles and what one chunk needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from fedml.models.image import build_image_network
from fedml.study import ImageNetwork

CHUNK = 256  # tiles encoded at a time when there is no gradient


class AttentionMIL(nn.Module):
    """Tiles (tiles, channels, height, width), or features of tiles (tiles, features), to one row of ``outputs`` a person.

    Args:
        encoder: a tile's input to ``width`` numbers, taken as they are: a ReLU after them can end with all of them at 0.
        hidden: width of the attention. budget: tiles a person in training.
    """

    def __init__(self, encoder: nn.Module, width: int, outputs: int, *, hidden: int = 64, budget: int = 64) -> None:
        super().__init__()
        self.encoder, self.width, self.budget = encoder, width, budget
        self.tanh, self.gate, self.score = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, 1, bias=False)
        self.head = nn.Linear(width, outputs)

    def embed(self, tiles: torch.Tensor | Iterable[torch.Tensor]) -> torch.Tensor:
        """(tiles, width) features. Tiles that do not fit in memory come as an iterable of chunks, in evaluation only."""
        if isinstance(tiles, torch.Tensor):
            tiles = (tiles,) if self.training else torch.split(tiles, CHUNK)
        found = [self.encoder(chunk) if len(chunk) else chunk.new_zeros(0, self.width) for chunk in tiles]
        return torch.cat(found) if found else self.head.weight.new_zeros(0, self.width)

    def attention(self, features: torch.Tensor, person: torch.Tensor, persons: int) -> torch.Tensor:
        """(tiles,) weights, from 0 to 1, that sum to 1 over the tiles of each person; in float32 whatever the features are."""
        score = self.score(torch.tanh(self.tanh(features)) * torch.sigmoid(self.gate(features)))[:, 0].float()
        # Softmax does not change with what is taken off all scores of a person, so no gradient goes through the largest.
        largest = score.new_zeros(persons).scatter_reduce(0, person, score.detach(), "amax", include_self=False)
        power = torch.exp(score - largest[person])
        weight: torch.Tensor = power / score.new_zeros(persons).index_add(0, person, power)[person]
        return weight

    def pool(self, features: torch.Tensor, person: torch.Tensor, persons: int) -> torch.Tensor:
        """(persons, outputs) from the features of all tiles; exactly 0, and without gradient, for a person who has none."""
        weight = self.attention(features, person, persons)
        bag = weight.new_zeros(persons, self.width).index_add(0, person, features.float() * weight[:, None])
        present = torch.bincount(person, minlength=persons).clamp_max(1)[:, None]
        out: torch.Tensor = self.head(bag) * present
        return out

    def forward(self, tiles: torch.Tensor, person: torch.Tensor, persons: int) -> torch.Tensor:
        """(persons, outputs).

        Args:
            tiles: (tiles, \\*what the encoder takes). person (tiles,): row of each tile's person, in any order, below ``persons``.
        """
        if self.training:
            kept = choose_tiles(person, self.budget)
            if len(kept) < len(person):
                tiles, person = tiles[kept], person[kept]
        return self.pool(self.embed(tiles), person, persons)


def choose_tiles(person: torch.Tensor, budget: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Rows of at most ``budget`` tiles of each person, drawn without replacement, ascending; all, and nothing drawn, where nobody has more.

    For readers too: what is not chosen need not be read.

    Args:
        person: (tiles,) row of each tile's person. generator: a CPU one; None: torch's default.
    """
    everybody = torch.arange(len(person), device=person.device)
    if not len(person) or int(torch.bincount(person).max()) <= budget:
        return everybody
    drawn = torch.randperm(len(person), generator=generator).to(person.device)
    order = drawn[torch.argsort(person[drawn], stable=True)]  # by person, within a person at random
    count = torch.bincount(person)
    rank = everybody - (count.cumsum(0) - count)[person[order]]
    return order[rank < budget].sort().values


def build_mil(
    spec: ImageNetwork, shape: Sequence[int], outputs: int, *, width: int = 64, hidden: int = 64, budget: int = 64
) -> AttentionMIL:
    """Attention over tiles of ``shape`` (channels, height, width), encoded by the network ``spec.net``, or over features of ``shape`` (n,).

    Raises:
        InputError: no network has that name.
    """
    encoder = nn.Linear(shape[0], width) if len(shape) == 1 else build_image_network(spec, shape, width)
    return AttentionMIL(encoder, width, outputs, hidden=hidden, budget=budget)
