"""Own code of ``flamby_heart.toml``: logistic regression with one free logit."""

import torch
from torch import nn


class Logistic(nn.Module):
    """(persons, columns) -> (persons, 2): the logits (0, z). Their cross-entropy is the binary cross-entropy of sigmoid(z), so a step of
    SGD with rate lr is one of logistic regression with rate lr. Two free logits would move z twice as far.

    Args:
        init: seed of the first weights, which are PyTorch's default for a linear layer.
    """

    def __init__(self, columns: int, outputs: int, init: int = 0) -> None:
        super().__init__()
        if outputs != 2:
            raise ValueError(f"one logit separates 2 classes, not {outputs}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init)
            self.linear = nn.Linear(columns, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = self.linear(x)
        return torch.cat([torch.zeros_like(z), z], dim=1)
