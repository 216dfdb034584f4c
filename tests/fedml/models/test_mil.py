"""Attention over tiles: order means nothing, weights sum to 1 a person, a signal in one tile of twenty is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import nn

from fedml.models.device import autocast
from fedml.networks.image import build_image_network
from fedml.networks.mil import GatedAttention
from fedml.seeds import torch_seed
from fedml.study.sections import ImageNetwork

SMALL = ImageNetwork(channels=(4, 8))
SHAPE = (2, 8, 8)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Bags(nn.Module):
    """An encoder of tiles and its attention."""

    def __init__(self, spec: ImageNetwork, shape: tuple[int, ...], outputs: int, width: int, hidden: int) -> None:
        super().__init__()
        self.encoder = build_image_network(spec, shape, width)
        self.pooling = GatedAttention(width, outputs, hidden=hidden)

    def forward(self, tiles: torch.Tensor, person: torch.Tensor, persons: int) -> torch.Tensor:
        out: torch.Tensor = self.pooling(self.encoder(tiles), person, persons)
        return out

    def attention(self, tiles: torch.Tensor, person: torch.Tensor, persons: int) -> torch.Tensor:
        return self.pooling.attention(self.encoder(tiles), person, persons)


def small() -> Bags:
    with torch_seed(0):
        return Bags(SMALL, SHAPE, 3, width=8, hidden=8).eval()


def bags(counts: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tiles; ``counts`` of them each person, the persons' tiles mixed up."""
    rng = torch.Generator().manual_seed(seed)
    person = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.long))
    person = person[torch.randperm(len(person), generator=rng)]
    return torch.randn(len(person), *SHAPE, generator=rng), person


COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@given(COUNTS, st.integers(0, 999))
def test_the_order_of_tiles_changes_nothing(counts: list[int], seed: int) -> None:
    model = small()
    tiles, person = bags(counts, seed)
    order = torch.randperm(len(person), generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        out = model(tiles, person, len(counts))
        torch.testing.assert_close(model(tiles[order], person[order], len(counts)), out, rtol=1e-5, atol=1e-6)
        assert torch.equal(model(tiles, person, len(counts)), out)


@given(COUNTS, st.integers(0, 999), st.sampled_from([1.0, 1e4]))
def test_attention_sums_to_one_a_person(counts: list[int], seed: int, scale: float) -> None:
    """Also where scores are so large that their exponential alone would be infinite."""
    model = small()
    tiles, person = bags(counts, seed)
    with torch.no_grad():
        model.pooling.score.weight.mul_(scale)
        weight = model.attention(tiles, person, len(counts))
    assert bool((weight >= 0).all())
    total = torch.zeros(len(counts)).index_add(0, person, weight)
    torch.testing.assert_close(total, (torch.tensor(counts) > 0).float(), rtol=1e-5, atol=1e-5)


def test_a_person_is_pooled_as_in_the_paper_and_alone_as_among_others() -> None:
    """Equations 7 and 9 of Ilse et al. written out for each person; one tile has all of the attention."""
    model = small()
    counts = [5, 0, 1, 7]
    tiles, person = bags(counts)
    with torch.no_grad():
        out = model(tiles, person, 4)
        for k, n in enumerate(counts):
            if not n:
                assert torch.equal(out[k], torch.zeros(3))
                continue
            h = model.encoder(tiles[person == k])
            own = model.pooling
            score = (torch.tanh(own.tanh(h)) * torch.sigmoid(own.gate(h))) @ own.score.weight[0]
            torch.testing.assert_close(out[k], own.head(torch.softmax(score, 0) @ h), rtol=1e-5, atol=1e-6)
            alone = model(tiles[person == k], torch.zeros(n, dtype=torch.long), 1)
            torch.testing.assert_close(alone[0], out[k], rtol=1e-5, atol=1e-6)
        assert float(model.attention(tiles[:1], torch.tensor([2]), 4)) == 1


def test_persons_without_tiles_teach_nothing() -> None:
    model = small().train()
    tiles, person = bags([4, 0, 3])
    model(tiles, person, 3)[1].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    out = model(tiles[:0], person[:0], 3)
    assert torch.equal(out, torch.zeros(3, 3))
    out.sum().backward()


def test_low_precision_goes_the_same_way() -> None:
    with torch_seed(0):
        model = GatedAttention(16, 2).eval()
    features, person = torch.randn(9, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 1, 0, 2, 2, 2])
    with torch.no_grad():
        full = model(features, person, 3)
        with autocast(torch.device("cpu"), "bfloat16"):
            low = model(features, person, 3)
            assert model.attention(features, person, 3).dtype == torch.float32
    torch.testing.assert_close(low.float(), full, rtol=0.1, atol=0.1)


@pytest.mark.long
def test_it_finds_a_signal_in_one_tile_of_twenty() -> None:
    """Half of the persons have a bright square in one tile of twenty. From labels of persons only, it classifies new ones; its attention
    points at that tile."""
    rng = np.random.default_rng(0)
    persons, each = 200, 20
    label = np.arange(persons) % 2
    tiles = rng.normal(0, 1, (persons, each, 1, 8, 8)).astype(np.float32)
    place = rng.integers(0, each, persons)
    for k in np.flatnonzero(label):
        a, b = rng.integers(0, 5, 2)
        tiles[k, place[k], 0, a : a + 4, b : b + 4] += 3.0
    x, y = torch.from_numpy(tiles), torch.from_numpy(label)
    train, test = np.arange(120), np.arange(120, persons)

    def batch(rows: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
        return x[rows].flatten(0, 1), torch.arange(len(rows)).repeat_interleave(each), len(rows)

    with torch_seed(1):
        model = Bags(ImageNetwork(channels=(16, 32)), (1, 8, 8), 2, width=16, hidden=16)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(20):
            for rows in np.array_split(rng.permutation(train), 15):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(*batch(rows)), y[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    model.eval()
    with torch.no_grad():
        logits = model(*batch(test))
        tile, person, n = batch(test)
        weight = model.attention(tile, person, n).reshape(n, each)
    assert roc_auc_score(label[test], (logits[:, 1] - logits[:, 0]).numpy()) > 0.95
    ill = np.flatnonzero(label[test])
    assert (weight.argmax(1).numpy()[ill] == place[test][ill]).mean() > 0.9
    # The mean of all pixels says less: what was planted is a twentieth of each person.
    assert roc_auc_score(label[test], tiles[test].mean(axis=(1, 2, 3, 4))) < 0.9
