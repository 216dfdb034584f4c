"""Attention over tiles: order means nothing, weights sum to 1 a person, a signal in one tile of twenty is found, memory has a bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fedml.errors import InputError
from fedml.learning.device import autocast
from fedml.models import mil
from fedml.models.mil import AttentionMIL, build_mil, choose_tiles
from fedml.seeds import torch_seed
from fedml.study import ImageNetwork

SMALL = ImageNetwork(channels=(4, 8))
SHAPE = (2, 8, 8)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small(outputs: int = 3, **options: Any) -> AttentionMIL:
    with torch_seed(0):
        return build_mil(SMALL, SHAPE, outputs, width=8, hidden=8, **options).eval()


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
        model.score.weight.mul_(scale)
        weight = model.attention(model.embed(tiles), person, len(counts))
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
            score = (torch.tanh(model.tanh(h)) * torch.sigmoid(model.gate(h))) @ model.score.weight[0]
            torch.testing.assert_close(out[k], model.head(torch.softmax(score, 0) @ h), rtol=1e-5, atol=1e-6)
            alone = model(tiles[person == k], torch.zeros(n, dtype=torch.long), 1)
            torch.testing.assert_close(alone[0], out[k], rtol=1e-5, atol=1e-6)
        assert float(model.attention(model.embed(tiles[:1]), torch.tensor([2]), 4)) == 1


def test_persons_without_tiles_teach_nothing() -> None:
    model = small().train()
    tiles, person = bags([4, 0, 3])
    model(tiles, person, 3)[1].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    out = model(tiles[:0], person[:0], 3)
    assert torch.equal(out, torch.zeros(3, 3))
    out.sum().backward()


@given(COUNTS, st.integers(1, 6), st.integers(0, 999))
def test_chosen_tiles_keep_to_the_budget(counts: list[int], budget: int, seed: int) -> None:
    _, person = bags(counts, seed)
    kept = choose_tiles(person, budget, torch.Generator().manual_seed(seed))
    assert torch.equal(kept, kept.unique())  # ascending, none twice
    assert torch.bincount(person[kept], minlength=len(counts)).tolist() == [min(n, budget) for n in counts]
    assert torch.equal(kept, choose_tiles(person, budget, torch.Generator().manual_seed(seed)))


def test_every_tile_is_chosen_equally_often() -> None:
    person = torch.tensor([1, 0, 1, 0, 1, 1, 0, 1])
    rng = torch.Generator().manual_seed(0)
    often = torch.zeros(8)
    for _ in range(4000):
        often[choose_tiles(person, 2, rng)] += 1
    expected = torch.where(person == 0, 2 / 3, 2 / 5)
    torch.testing.assert_close(often / 4000, expected, rtol=0, atol=0.04)  # four standard deviations are 0.031


def test_training_draws_a_few_tiles_from_its_seed_and_evaluation_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mil, "CHUNK", 4)
    model = small(budget=3)
    tiles, person = bags([10, 2])
    sizes: list[int] = []
    model.encoder.register_forward_hook(lambda m, x, y: sizes.append(len(x[0])))
    model.train()
    with torch_seed(5):
        first, second = model(tiles, person, 2), model(tiles, person, 2)
    assert sizes == [5, 5]
    assert not torch.equal(first, second)  # drawn anew
    with torch_seed(5):
        assert torch.equal(model(tiles, person, 2), first)
    sizes.clear()
    model.eval()
    with torch.no_grad():
        out = model(tiles, person, 2)
        assert sizes == [4, 4, 4]
        monkeypatch.setattr(mil, "CHUNK", 256)
        torch.testing.assert_close(model(tiles, person, 2), out, rtol=1e-5, atol=1e-6)
        streamed = model.embed(part for part in tiles.split(5))  # as a reader gives them
        torch.testing.assert_close(model.pool(streamed, person, 2), out, rtol=1e-5, atol=1e-6)


def test_features_of_tiles_and_low_precision_go_the_same_way() -> None:
    with torch_seed(0):
        model = build_mil(SMALL, (16,), 2, width=8).eval()
    features, person = torch.randn(9, 16), torch.tensor([0, 0, 1, 1, 1, 0, 2, 2, 2])
    with torch.no_grad():
        full = model(features, person, 3)
        with autocast(torch.device("cpu"), "bfloat16"):
            low = model(features, person, 3)
            assert model.attention(model.embed(features), person, 3).dtype == torch.float32
    torch.testing.assert_close(low.float(), full, rtol=0.1, atol=0.1)
    with pytest.raises(InputError, match="not known"):
        build_mil(ImageNetwork(net="cmm"), SHAPE, 2)


def test_it_finds_a_signal_in_one_tile_of_twenty() -> None:
    """Half of the persons have a bright square in one tile of twenty. Told only of persons, it tells new persons apart, and its attention
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
        model = build_mil(ImageNetwork(channels=(16, 32)), (1, 8, 8), 2, width=16, hidden=16)
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
        weight = model.attention(model.embed(tile), person, n).reshape(n, each)
    assert roc_auc_score(label[test], (logits[:, 1] - logits[:, 0]).numpy()) > 0.95
    ill = np.flatnonzero(label[test])
    assert (weight.argmax(1).numpy()[ill] == place[test][ill]).mean() > 0.9
    # The mean of all pixels says less: what was planted is a twentieth of each person.
    assert roc_auc_score(label[test], tiles[test].mean(axis=(1, 2, 3, 4))) < 0.9
