"""Image networks by name, each (images, channels, *size) -> (images, outputs). A new network is one function and one line.

The residual and dense networks are MONAI's; its import takes seconds, so it happens in the function that needs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fedml.errors import InputError, nearest
from fedml.study.sections import ImageNetwork


def _norm(kind: str, channels: int, dims: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    if kind == "instance":
        return (nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d)(channels, affine=True)
    return (nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d)(channels)


def cnn(spec: ImageNetwork, shape: Sequence[int], outputs: int) -> nn.Module:
    """A small convolutional network: for each of ``spec.channels`` convolution, norm, ReLU, halving; then the mean over positions."""
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

        # conv1_t_size 3 and stride 1 for small images, because the usual 7 and 2 would reduce them to nothing.
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
        if spec.norm != "batch":  # MONAI applies the norm argument only to the first layer
            _replace_batch_norm(network, spec.norm, len(shape) - 1)
        return network

    build.__doc__ = f"MONAI's ResNet of {depth} layers."
    return build


def _replace_batch_norm(module: nn.Module, kind: str, dims: int) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, _norm(kind, child.num_features, dims))
        else:
            _replace_batch_norm(child, kind, dims)


def densenet121(spec: ImageNetwork, shape: Sequence[int], outputs: int) -> nn.Module:
    """MONAI's DenseNet121."""
    from monai.networks import nets

    network: Any = nets.DenseNet121(spatial_dims=len(shape) - 1, in_channels=shape[0], out_channels=outputs, norm=_monai_norm(spec))
    if min(shape[1:]) < 64:  # as in the residual networks: the usual downsampling would reduce small images to nothing
        network.features.conv0.stride = (1,) * (len(shape) - 1)
        network.features.pool0 = nn.Identity()
    built: nn.Module = network
    return built


def _efficientnet(number: int) -> Callable[[ImageNetwork, Sequence[int], int], nn.Module]:
    def build(spec: ImageNetwork, shape: Sequence[int], outputs: int) -> nn.Module:
        from monai.networks import nets

        if min(shape[1:]) < 64:
            raise InputError(f'[model] image net "efficientnet_b{number}" halves an image five times; it needs 64 voxels along each axis.')
        network: Any = nets.EfficientNetBN(
            f"efficientnet-b{number}", pretrained=False, spatial_dims=len(shape) - 1, in_channels=shape[0], num_classes=outputs
        )
        network.set_swish(memory_efficient=False)
        network._dropout = nn.Identity()  # nothing random in a step
        for module in network.modules():
            if hasattr(module, "drop_connect_rate"):
                module.drop_connect_rate = 0.0
        if spec.norm != "batch":
            _replace_batch_norm(network, spec.norm, len(shape) - 1)
        built: nn.Module = network
        return built

    build.__doc__ = f"MONAI's EfficientNet-B{number}, not pretrained (Tan and Le 2019)."
    return build


class _FirstOutput(nn.Module):
    """Of a network that gives several outputs, the first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.network(x)[0]
        return out


def _vit(width: int, heads: int) -> Callable[[ImageNetwork, Sequence[int], int], nn.Module]:
    def build(spec: ImageNetwork, shape: Sequence[int], outputs: int) -> nn.Module:
        from monai.networks import nets

        from fedml.networks.einops_needed import need_einops

        need_einops("vit")
        smallest = min(shape[1:])
        side = min(16 if smallest >= 96 else 8 if smallest >= 48 else 4, smallest)
        network = nets.ViT(
            shape[0], tuple(shape[1:]), (side,) * (len(shape) - 1), hidden_size=width, mlp_dim=4 * width, num_heads=heads,
            classification=True, num_classes=outputs, spatial_dims=len(shape) - 1, post_activation="none",
        )  # fmt: skip
        for block in network.blocks:
            block.norm_cross_attn = nn.Identity()  # never called here; its weights would be sent and never trained
        return _FirstOutput(network)

    build.__doc__ = f"MONAI's vision transformer of 12 layers and width {width}; it has layer norm, so norm is ignored (Dosovitskiy 2021)."
    return build


class _FixedFeatures(nn.Module):
    """(images, channels, height, width) -> (images, ``width``): features computed without training, with length 1 for each image.

    Of each channel, reduced to at most 28 places a side: its own values, and how strong waves of two lengths in eight directions are
    around each place (moduli of Gabor filters) after the local mean was taken away and the rest divided by the local spread. Three
    groups a channel, each brought to mean 0 and equal weight within an image, so neither exposure nor contrast of a film plays a part.
    Nothing is trained: the filters are buffers that are neither saved nor sent.
    """

    SIDE, DIRECTIONS, LOCAL, SPREAD, IMAGES = 28, 8, 4.0, 0.1, 64  # IMAGES: images per block, sized for the CPU cache
    WAVES = ((5, 0.8, 0.75 * math.pi), (9, 1.6, 0.375 * math.pi))  # filter side, width, radians per pixel; every k + 1 pixels

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.size = min(shape[1], self.SIDE), min(shape[2], self.SIDE)
        self.grids = [(max(self.size[0] // k, 1), max(self.size[1] // k, 1)) for k in (2, 4, 4)]
        self.width = shape[0] * sum(math.prod(g) * n for g, n in zip(self.grids, (1, self.DIRECTIONS, self.DIRECTIONS), strict=True))
        for k, n in enumerate(self.size):
            self.register_buffer(f"near_{k}", _nearness(n, self.LOCAL), persistent=False)
        for k, wave in enumerate(self.WAVES):
            self.register_buffer(f"wave_{k}", _gabor(*wave, self.DIRECTIONS), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([self._of(part) for part in torch.split(x, self.IMAGES)]) if len(x) else x.new_zeros(0, self.width)

    def _of(self, x: torch.Tensor) -> torch.Tensor:
        images, channels = x.shape[:2]
        x = functional.adaptive_avg_pool2d(x, self.size).reshape(images * channels, 1, *self.size)
        deviation = x - self._local_mean(x)
        even = deviation / (self._local_mean(deviation**2) + self.SPREAD**2).sqrt()
        groups = []
        for values, grid in zip((x, *(self._strength(even, k) for k in range(len(self.WAVES)))), self.grids, strict=True):
            flat = functional.adaptive_avg_pool2d(values, grid).flatten(1)
            # The lower bounds prevent scaling the rounding errors of a blank image to length 1.
            groups.append(functional.normalize(flat - flat.mean(1, keepdim=True), eps=1e-2))
        return functional.normalize(torch.cat(groups, dim=1).reshape(images, -1), eps=1.0)

    def _local_mean(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_buffer("near_0") @ x @ self.get_buffer("near_1").T

    def _strength(self, x: torch.Tensor, k: int) -> torch.Tensor:
        wave = self.get_buffer(f"wave_{k}")
        x = functional.pad(x, (wave.shape[-1] // 2,) * 4, mode="replicate")
        found = functional.conv2d(x, wave, stride=k + 1)
        return torch.hypot(found[:, : self.DIRECTIONS], found[:, self.DIRECTIONS :])


def _nearness(places: int, width: float) -> torch.Tensor:
    """(positions, positions), each row a Gaussian window around its position that sums to 1."""
    place = torch.arange(places, dtype=torch.float64)
    bell = torch.exp(-((place[:, None] - place) ** 2) / (2 * width**2))
    return (bell / bell.sum(1, keepdim=True)).float()


def _gabor(side: int, width: float, frequency: float, directions: int) -> torch.Tensor:
    """(2 * directions, 1, side, side): real parts, then imaginary parts, of complex waves in a Gaussian window.

    Each sums to 0 and its moduli to 1: Morlet wavelets as in Bruna and Mallat 2013, section 2.1.
    """
    place = torch.arange(side, dtype=torch.float64) - side // 2
    y, x = torch.meshgrid(place, place, indexing="ij")
    made = []
    for k in range(directions):
        angle = math.pi * k / directions
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        bell = torch.exp(-(along**2 + (across / 2) ** 2) / (2 * width**2))
        wave = torch.polar(bell, frequency * along)
        wave = wave - bell * (wave.sum() / bell.sum())
        made.append(wave / wave.abs().sum())
    filters = torch.stack(made)[:, None]
    return torch.cat([filters.real, filters.imag]).float()


def gabor(spec: ImageNetwork, shape: Sequence[int], outputs: int) -> nn.Module:
    """Fixed features and one trained linear layer that starts at 0; norm and channels of ``spec`` are ignored.

    For DP-SGD, whose noise leaves little to train: Tramèr and Boneh 2021, "Differentially private learning needs better features (or
    much more data)"; theirs are a scattering network's.

    Raises:
        InputError: the images have three dimensions.
    """
    if len(shape) != 3:
        raise InputError(f'[model] image net "gabor" is for images of two dimensions, here there are {len(shape) - 1}; take "cnn".')
    features = _FixedFeatures(shape)
    linear = nn.Linear(features.width, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(features, linear)


NETWORKS: dict[str, Callable[[ImageNetwork, Sequence[int], int], nn.Module]] = {
    "cnn": cnn,
    "resnet10": _resnet(10),
    "resnet18": _resnet(18),
    "resnet34": _resnet(34),
    "resnet50": _resnet(50),
    "densenet121": densenet121,
    "gabor": gabor,
    **{f"efficientnet_b{number}": _efficientnet(number) for number in range(4)},
    "vit_tiny": _vit(192, 3),
    "vit_small": _vit(384, 6),
    "vit_base": _vit(768, 12),
}


def build_image_network(spec: ImageNetwork, shape: Sequence[int], outputs: int) -> nn.Module:
    """The network ``spec.net`` for images of ``shape`` (channels, *size).

    Raises:
        InputError: no network has that name.
    """
    if spec.net not in NETWORKS:
        raise InputError(f'[model] image net "{spec.net}" is not known{nearest(spec.net, NETWORKS)}; one of: {", ".join(NETWORKS)}.')
    return NETWORKS[spec.net](spec, shape, outputs)
