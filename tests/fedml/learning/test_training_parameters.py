"""Which parameters a round trains."""

from __future__ import annotations

from torch import nn

from fedml.learning.training import trained_parameters


def test_without_freeze_each_weight_is_trained_whatever_own_code_left() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    network[0].weight.requires_grad_(False)
    assert all(p.requires_grad for p in trained_parameters(network, ()).values())
