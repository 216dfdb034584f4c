"""Convolutions and linear layers for per-person gradients: a layer's inputs at each output position, and its weight's summed gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def unfolded(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The inputs of each output position: (rows, inputs, positions)."""
    if isinstance(layer, nn.Linear):
        return x[:, :, None] if x.dim() == 2 else x.flatten(1, -2).transpose(1, 2)
    dims = x.dim() - 2
    if dims == 2 and max(layer.kernel_size) > 1:
        return functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    if any(layer.padding):
        x = functional.pad(x, [n for pad in reversed(layer.padding) for n in (pad, pad)])
    for axis, (size, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), 2):
        x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    kernel = range(2 + dims, 2 + 2 * dims)
    return x.permute(0, 1, *kernel, *range(2, 2 + dims)).flatten(1, 1 + dims).flatten(2)


def convolution_weight(layer: Any, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The gradient of a convolution's weight, summed over rows; ``g`` (rows, outputs, positions)."""
    size = [
        (n + 2 * pad - dilation * (k - 1) - 1) // stride + 1
        for n, pad, dilation, k, stride in zip(x.shape[2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    ]
    dims, mask = len(size), [False, True, False]
    g = g.reshape(*g.shape[:2], *size)
    found: torch.Tensor = torch.ops.aten.convolution_backward(
        g, x, layer.weight, None, layer.stride, layer.padding, layer.dilation, False, [0] * dims, 1, mask
    )[1]
    return found
