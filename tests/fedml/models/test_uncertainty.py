"""Spread of several predictions against a dense computation; symmetries and dropout against what is known of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from fedml.errors import InputError
from fedml.models.uncertainty import Symmetry, apply, dropout, spread, symmetries, undo


def dense(p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, entropy and mutual information of (members, classes, ...) in float64; the latter as the mean divergence from the mean."""
    mean = p.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(mean * np.log(mean), axis=0)
        divergence = np.nansum(p * (np.log(p) - np.log(mean)), axis=1).mean(0)
    return mean, entropy, divergence


def test_entropy_and_mutual_information_are_those_of_a_dense_computation() -> None:
    rng = np.random.default_rng(4)
    p = rng.dirichlet(np.full(3, 0.3), (5, 4, 6, 2))  # members, then the size
    p = np.moveaxis(p, -1, 1)
    p[:, :, 0, 0, 0] = np.eye(3)[0][None]  # sure and agreed
    p[:2, :, 1, 0, 0], p[2:, :, 1, 0, 0] = np.eye(3)[1], np.eye(3)[2]  # sure and not agreed
    found = spread(torch.from_numpy(one) for one in p)
    for ours, theirs in zip((found.mean, found.entropy, found.mutual_information), dense(p), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-6)
    assert found.members == 5
    assert found.entropy[0, 0, 0] == found.mutual_information[0, 0, 0] == 0
    known = -(0.4 * np.log(0.4) + 0.6 * np.log(0.6))
    np.testing.assert_allclose([found.entropy[1, 0, 0], found.mutual_information[1, 0, 0]], [known, known], rtol=1e-5)


def test_one_prediction_is_itself_and_disagrees_with_none() -> None:
    p = torch.softmax(torch.randn(4, 7, generator=torch.Generator().manual_seed(1)), 0)
    found = spread([p])
    torch.testing.assert_close(found.mean, p, rtol=0, atol=0)
    assert found.mutual_information.abs().max() == 0
    with pytest.raises(ValueError, match="no prediction"):
        spread([])


@pytest.mark.parametrize("size", [(5, 5), (4, 4, 3)])
def test_symmetries_are_a_group_each_once_and_undone_exactly(size: tuple[int, ...]) -> None:
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(2))
    flips = tuple(range(len(size)))
    plain, turned = symmetries(size, flips, turns=False), symmetries(size, flips, turns=True)
    assert plain[0] == turned[0] == Symmetry(flips, ())
    assert (len(plain), len(turned)) == (2 ** len(size), 8 if len(size) == 2 else 16)
    seen = {apply(view, x).contiguous().numpy().tobytes() for view in turned}
    assert len(seen) == len(turned)
    for view in turned:
        assert torch.equal(undo(view, apply(view, x)), x)
    for one, other in itertools.product(turned, turned):
        assert apply(other, apply(one, x)).contiguous().numpy().tobytes() in seen


def test_quarter_turns_alone_are_four_and_are_numpy_s() -> None:
    x = torch.arange(2 * 9.0).reshape(2, 3, 3)
    views = symmetries((3, 3), (), turns=True)
    found = {apply(view, x).contiguous().numpy().tobytes() for view in views}
    assert found == {np.ascontiguousarray(np.rot90(x.numpy(), k, (1, 2))).tobytes() for k in range(4)}
    with pytest.raises(InputError, match="have 3 and 4 voxels"):
        symmetries((3, 4), (), turns=True)
    with pytest.raises(InputError, match="--view flip-2: the prepared image has the axes 0 to 1"):
        symmetries((3, 3), (2,), turns=False)


def test_of_a_network_that_turns_with_the_image_nothing_changes() -> None:
    network = nn.Conv2d(1, 3, 3, padding=1)
    with torch.no_grad():  # kernels alike in every direction: the same number at equal distances from the middle
        network.weight[:] = torch.randn(3, 1, 1, 1) + torch.tensor([[0.3, 0.7, 0.3], [0.7, 1.0, 0.7], [0.3, 0.7, 0.3]])
    x = torch.randn(1, 6, 6)
    with torch.no_grad():
        plain = torch.softmax(network(x[None])[0], 0)
        found = spread(undo(v, torch.softmax(network(apply(v, x)[None])[0], 0)) for v in symmetries((6, 6), (0, 1), turns=True))
    assert found.members == 8
    torch.testing.assert_close(found.mean, plain, rtol=0, atol=1e-6)
    assert found.mutual_information.max() < 1e-6


def test_dropout_drops_as_stated_by_its_own_random_numbers_and_leaves_the_rest() -> None:
    network = nn.Sequential(nn.BatchNorm1d(500), nn.Dropout(0.3)).eval()
    x = torch.ones(200, 500)
    before, state = network(x), torch.random.get_rng_state()
    with dropout(network, 7) as layers:
        first, second = network(x), network(x)
    with dropout(network, 7):
        again = network(x)
    assert layers == 1
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first[first > 0], torch.full((int((first > 0).sum()),), float(before[0, 0]) / 0.7))
    assert abs(float((first > 0).float().mean()) - 0.7) < 0.01  # 100,000 draws: 7 standard deviations
    assert torch.equal(network(x), before)
    channels = nn.Dropout3d(0.5).eval()
    with dropout(channels, 1):
        kept = (channels(torch.ones(4, 8, 3, 3, 3)) > 0).flatten(2)
    assert torch.equal(kept.all(2), kept.any(2))
    with dropout(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)), 1) as layers:
        assert layers == 0


def test_dropout_of_a_linear_layer_has_the_known_mean_and_variance() -> None:
    """Sum of n inputs x with weight w, each kept with 1 - p: mean w.x, variance p / (1 - p) * sum (w x)^2."""
    p, n = 0.25, 40
    network = nn.Sequential(nn.Dropout(p), nn.Linear(n, 1, bias=False)).eval()
    x = torch.randn(1, n, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), dropout(network, 11):
        drawn = torch.cat([network(x.expand(1000, n)) for _ in range(40)]).double()
    terms = (network[1].weight.detach().double() * x.double()).flatten()
    variance = p / (1 - p) * (terms**2).sum()
    assert abs(drawn.mean() - terms.sum()) < 6 * (variance / len(drawn)).sqrt()
    assert abs(drawn.var() / variance - 1) < 0.06
