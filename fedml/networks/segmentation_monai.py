"""More networks of MONAI for segmentation, each with batch norm, which ``fedml.networks.segmentation`` replaces as the study says.

``attention_unet``: Oktay et al. 2018. ``dynunet``: the U-Net of nnU-Net (Isensee et al. 2021). ``swin_unetr``:
Hatamizadeh et al. 2022; its attention needs the package einops (``pip install "fedml-cohorts[transformers]"``).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fedml.errors import InputError
from fedml.networks.einops_needed import need_einops

Stride = int | Sequence[int]
SWIN_HEADS = (3, 6, 12, 24)


def _need_strides(net: str, channels: Sequence[int], strides: Sequence[Stride]) -> None:
    if len(channels) < 2 or len(strides) != len(channels) - 1:
        raise InputError(
            f'[model] net "{net}" needs two or more channels and one stride between two of them, here {len(channels)} channels and '
            f"{len(strides)} strides; write such as channels = [16, 32, 64], strides = [2, 2]."
        )


def attention_unet(shape: Sequence[int], classes: int, channels: Sequence[int], strides: Sequence[Stride]) -> nn.Module:
    """MONAI's AttentionUnet: gates weigh what each level passes on.

    Raises:
        InputError: fewer than two channels, or the number of strides does not match.
    """
    from monai.networks import nets

    _need_strides("attention_unet", channels, strides)
    steps = [s if isinstance(s, int) else tuple(s) for s in strides]
    network: nn.Module = nets.AttentionUnet(len(shape) - 1, shape[0], classes, channels=tuple(channels), strides=steps)
    for module in list(network.modules()):  # MONAI has instance norm in a few places; every norm is to be the study's
        for name, child in module.named_children():
            if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d):
                setattr(module, name, (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm3d)(child.num_features))
    return network


def dynunet(shape: Sequence[int], classes: int, channels: Sequence[int], strides: Sequence[Stride], supervised: int = 0) -> nn.Module:
    """MONAI's DynUNet with kernels of 3; strides by axis, as nnU-Net's plans have them.

    With ``supervised`` coarser levels its output in training is (images, 1 + supervised, classes, *size): the logits, then those of each
    level, the finest first, each voxel that of the nearest of its level. In evaluation it is the logits alone.

    Raises:
        InputError: fewer than three channels, or the number of strides does not match.
    """
    from monai.networks import nets

    _need_strides("dynunet", channels, strides)
    if len(channels) < 3:
        raise InputError('[model] net "dynunet" needs three or more channels; write such as channels = [16, 32, 64].')
    dims = len(shape) - 1
    steps = [[s] * dims if isinstance(s, int) else list(s) for s in strides]
    network: nn.Module = nets.DynUNet(
        dims, shape[0], classes, kernel_size=[[3] * dims] * len(channels), strides=[[1] * dims, *steps], upsample_kernel_size=steps,
        filters=list(channels), norm_name="batch", deep_supervision=supervised > 0, deep_supr_num=max(supervised, 1),
    )  # fmt: skip
    for again in ("input_block", "downsamples", "bottleneck", "upsamples", *(["deep_supervision_heads"] if supervised else [])):
        delattr(network, again)  # second names of the layers in skip_layers, which would be sent twice
    return network


def swin_unetr(shape: Sequence[int], classes: int, channels: Sequence[int], strides: Sequence[Stride]) -> nn.Module:
    """MONAI's SwinUNETR of two blocks a stage; ``channels`` are those of its five scales, each twice the one before.

    Raises:
        InputError: channels are others, a stride is not 2, or einops is not installed.
    """
    from monai.networks import nets

    if len(channels) != 5 or channels[0] % 12 or any(c != channels[0] * 2**k for k, c in enumerate(channels)):
        raise InputError(
            f'[model] net "swin_unetr" needs five channels, the first a multiple of 12 and each twice the one before, here '
            f"{list(channels)}; write such as channels = [24, 48, 96, 192, 384]."
        )
    if any(set([s] if isinstance(s, int) else s) != {2} for s in strides):
        raise InputError(f'[model] net "swin_unetr" halves an image at each scale, here strides are {list(strides)}; leave strides out.')
    need_einops("swin_unetr")
    network: nn.Module = nets.SwinUNETR(
        shape[0], classes, feature_size=channels[0], num_heads=SWIN_HEADS, spatial_dims=len(shape) - 1, norm_name="batch"
    )
    return network
