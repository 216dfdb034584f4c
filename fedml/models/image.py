"""Image networks by name, each (images, channels, *size) -> (images, outputs). Adding one is one function and one line.

The residual and dense networks are MONAI's; its import takes seconds, so it happens in the function that needs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from fedml.errors import InputError, nearest
from fedml.study import ImageNetwork


def _norm(kind: str, channels: int, dims: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    if kind == "instance":
        return (nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d)(channels, affine=True)
    return (nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d)(channels)


def cnn(spec: ImageNetwork, shape: Sequence[int], outputs: int) -> nn.Module:
    """A small convolutional network: for each of ``spec.channels`` convolution, norm, ReLU, halving; then the mean over places."""
    dims = len(shape) - 1
    conv, pool = (nn.Conv2d, nn.MaxPool2d) if dims == 2 else (nn.Conv3d, nn.MaxPool3d)
    mean = nn.AdaptiveAvgPool2d(1) if dims == 2 else nn.AdaptiveAvgPool3d(1)
    layers: list[nn.Module] = []
    before, smallest = shape[0], min(shape[1:])
    for channels in spec.channels:
        layers += [conv(before, channels, 3, padding=1), _norm(spec.norm, channels, dims), nn.ReLU()]
        if smallest >= 4:
            layers.append(pool(2))
            smallest //= 2
        before = channels
    return nn.Sequential(*layers, mean, nn.Flatten(), nn.Linear(before, outputs))


def _monai_norm(spec: ImageNetwork) -> object:
    return {"group": ("group", {"num_groups": 8}), "instance": ("instance", {"affine": True})}.get(spec.norm, spec.norm)


def _resnet(depth: int) -> Callable[[ImageNetwork, Sequence[int], int], nn.Module]:
    def build(spec: ImageNetwork, shape: Sequence[int], outputs: int) -> nn.Module:
        from monai.networks import nets

        # conv1_t_size 3, stride 1 on small images: the usual 7 and 2 would leave nothing of them.
        small = min(shape[1:]) < 64
        network: nn.Module = getattr(nets, f"resnet{depth}")(
            spatial_dims=len(shape) - 1,
            n_input_channels=shape[0],
            num_classes=outputs,
            conv1_t_size=3 if small else 7,
            conv1_t_stride=1 if small else 2,
            no_max_pool=small,
            norm=_monai_norm(spec),
            shortcut_type="B",
            bias_downsample=False,
        )
        return network

    build.__doc__ = f"MONAI's ResNet of {depth} layers."
    return build


def densenet121(spec: ImageNetwork, shape: Sequence[int], outputs: int) -> nn.Module:
    """MONAI's DenseNet121."""
    from monai.networks import nets

    network: Any = nets.DenseNet121(spatial_dims=len(shape) - 1, in_channels=shape[0], out_channels=outputs, norm=_monai_norm(spec))
    if min(shape[1:]) < 64:  # as in the residual networks: the usual halvings would leave nothing of a small image
        network.features.conv0.stride = (1,) * (len(shape) - 1)
        network.features.pool0 = nn.Identity()
    built: nn.Module = network
    return built


NETWORKS: dict[str, Callable[[ImageNetwork, Sequence[int], int], nn.Module]] = {
    "cnn": cnn,
    "resnet10": _resnet(10),
    "resnet18": _resnet(18),
    "resnet34": _resnet(34),
    "resnet50": _resnet(50),
    "densenet121": densenet121,
}


def build_image_network(spec: ImageNetwork, shape: Sequence[int], outputs: int) -> nn.Module:
    """The network ``spec.net`` for images of ``shape`` (channels, *size).

    Raises:
        InputError: no network has that name.
    """
    if spec.net not in NETWORKS:
        raise InputError(f'[model] image net "{spec.net}" is not known{nearest(spec.net, NETWORKS)}; one of: {", ".join(NETWORKS)}.')
    return NETWORKS[spec.net](spec, shape, outputs)
