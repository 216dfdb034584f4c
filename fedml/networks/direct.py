"""A network as a function of its plain layers, without what torch does around each layer's call: as long as the layers of a small network.

forward = direct(network)     # the same numbers as network(x), bit for bit
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

Forward = Callable[[torch.Tensor], torch.Tensor]


def direct(module: nn.Module) -> Forward:
    """``module`` as a function while its parameters stay the same objects. What is no plain layer, or has a hook, is called as it is."""
    if _hooked(module):
        return module
    if type(module) is nn.Sequential:
        return _chain([direct(part) for part in module])
    if type(module) is nn.Linear:
        return _linear(module.weight, module.bias)
    return torch.relu if type(module) is nn.ReLU and not module.inplace else module


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Forward:
    return lambda x: functional.linear(x, weight, bias)


def _chain(parts: list[Forward]) -> Forward:
    def forward(x: torch.Tensor) -> torch.Tensor:
        for part in parts:
            x = part(x)
        return x

    return forward
