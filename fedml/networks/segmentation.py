"""Segmentation networks by name, each (images, channels, *size) -> (images, classes, *size) logits, in two or three dimensions.

    network = build_segmentation_network("unet", (1, 96, 96, 64), classes=2, channels=(16, 32, 64), strides=(2, 2))

``unet``: Ronneberger, Fischer and Brox 2015 with the residual units of Kerfoot et al. 2018. ``segresnet``: Myronenko 2018 without its
variational branch. Both are from MONAI. An image of any size is padded to a multiple of the strides, and the logits are cropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from fedml.errors import InputError, nearest
from fedml.networks.image import _replace_batch_norm
from fedml.networks.segmentation_monai import attention_unet, dynunet, swin_unetr

Stride = int | Sequence[int]  # one for all axes, or one for each axis
RESIDUAL_UNITS = 2  # convolutions on each level of the U-Net


class Segmenter(nn.Module):
    """``network`` for images of any size: padded with edge values to a multiple of ``factors`` (one for each axis); logits are cropped.

    The padding is split between both sides. At the deepest level at least two positions remain, which instance norm needs. In training with
    deep supervision the logits of the coarser levels follow in the channels (``fedml.tasks.mask_losses.deeply_supervised``).
    """

    def __init__(self, network: nn.Module, classes: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.network, self.classes, self.factors = network, classes, tuple(factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2:]
        if not len(x):
            return x.new_zeros(0, self.classes, *size)
        wanted = [-(-n // f) * f for n, f in zip(size, self.factors, strict=True)]
        if tuple(wanted) == self.factors:
            wanted[0] *= 2
        before = [(w - n) // 2 for w, n in zip(wanted, size, strict=True)]
        if tuple(wanted) != tuple(size):
            sides = [(b, w - n - b) for b, w, n in zip(before, wanted, size, strict=True)]
            x = functional.pad(x, [side for pair in reversed(sides) for side in pair], mode="replicate")
        out: torch.Tensor = self.network(x)
        if out.ndim > x.ndim:  # in training with deep supervision: (images, outputs, classes, *size)
            out = out.flatten(1, 2)
        for axis, (start, n) in enumerate(zip(before, size, strict=True), start=2):
            out = out.narrow(axis, start, n)
        return out


def unet(shape: Sequence[int], classes: int, channels: Sequence[int], strides: Sequence[Stride]) -> nn.Module:
    """MONAI's UNet with two residual units on each level; ``channels`` from the top level, one stride between two levels.

    Raises:
        InputError: fewer than two channels, or the number of strides does not match.
    """
    from monai.networks import nets

    if len(channels) < 2 or len(strides) != len(channels) - 1:
        raise InputError(
            f'[model] net "unet" needs two or more channels and one stride between two of them, here {len(channels)} channels and '
            f"{len(strides)} strides; write such as channels = [16, 32, 64], strides = [2, 2]."
        )
    dims = len(shape) - 1
    network: nn.Module = nets.UNet(
        dims, shape[0], classes, channels=tuple(channels), strides=tuple(_axes(s, dims) for s in strides),
        num_res_units=RESIDUAL_UNITS, norm="batch",
    )  # fmt: skip
    return network


def segresnet(shape: Sequence[int], classes: int, channels: Sequence[int], strides: Sequence[Stride]) -> nn.Module:
    """MONAI's SegResNet: each level has twice the channels and half the size of the level above.

    Raises:
        InputError: channels do not double, or a stride is not 2.
    """
    from monai.networks import nets

    levels, dims = len(channels), len(shape) - 1
    if levels < 2 or any(c != channels[0] * 2**k for k, c in enumerate(channels)):
        raise InputError(
            f'[model] net "segresnet" needs two or more channels, each twice the one before, here {list(channels)}; '
            "write such as channels = [8, 16, 32, 64]."
        )
    if [_axes(s, dims) for s in strides] != [(2,) * dims] * (levels - 1):
        raise InputError(f'[model] net "segresnet" needs {levels - 1} strides of 2, here {list(strides)}; or take "unet".')
    network: nn.Module = nets.SegResNet(
        spatial_dims=dims,
        init_filters=channels[0],
        in_channels=shape[0],
        out_channels=classes,
        norm="batch",
        blocks_down=(1, *(2,) * (levels - 2), 4),
        blocks_up=(1,) * (levels - 1),
        upsample_mode="deconv",  # the gradient of MONAI's default, interpolation, is not deterministic on a GPU
    )
    return network


# name -> network with batch norm, which ``build_segmentation_network`` replaces. A new network is one function and one line.
SEGMENTATION_NETWORKS: dict[str, Callable[[Sequence[int], int, Sequence[int], Sequence[Stride]], nn.Module]] = {
    "unet": unet,
    "segresnet": segresnet,
    "attention_unet": attention_unet,
    "dynunet": dynunet,
    "swin_unetr": swin_unetr,
}
FURTHER = {"swin_unetr": 2}  # how many times more than its strides a network divides an image along each axis


def build_segmentation_network(
    net: str, shape: Sequence[int], classes: int, *, channels: Sequence[int], strides: Sequence[Stride] = (), norm: str = "group",
    supervised: int = 0,
) -> Segmenter:  # fmt: skip
    """The network ``net`` for images of ``shape`` (channels, *size) and ``classes``, including the background.

    Args:
        channels: widths, the top level first. strides: one between two levels, a number or one an axis; none given: all are 2.
        norm: ``group`` (the greatest common divisor of 8 and the width as groups), ``instance``, or ``batch``.
        supervised: coarser levels of a ``dynunet`` whose logits training gets too, in further channels (``dynunet``).

    Raises:
        InputError: no network has that name, or channels and strides are invalid for it.
    """
    if net not in SEGMENTATION_NETWORKS:
        known = ", ".join(SEGMENTATION_NETWORKS)
        raise InputError(f'[model] net "{net}" for segmentation is not known{nearest(net, SEGMENTATION_NETWORKS)}; one of: {known}.')
    dims = len(shape) - 1
    if dims not in (2, 3):
        raise InputError(f"[model] segmentation is of images of two or three dimensions, here there are {dims}; change [cohort.image].")
    strides = tuple(strides) or (2,) * (len(channels) - 1)
    make = partial(dynunet, supervised=supervised) if supervised else SEGMENTATION_NETWORKS[net]
    network = make(shape, classes, channels, strides)
    if norm != "batch":
        _replace_batch_norm(network, norm, dims)
    factors = [FURTHER.get(net, 1) * math.prod(n) for n in zip(*(_axes(s, dims) for s in strides), strict=True)]
    return Segmenter(network, classes, factors)


def _axes(stride: Stride, dims: int) -> tuple[int, ...]:
    """One number for each axis."""
    axes = (stride,) * dims if isinstance(stride, int) else tuple(stride)
    if len(axes) != dims or min(axes) < 1:
        raise InputError(f"[model] strides has {stride}, which is not a positive whole number for each of {dims} axes; correct it.")
    return axes
