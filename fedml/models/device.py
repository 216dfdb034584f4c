"""The device and the precision of the network: the same code for the accelerator of the machine and for a CPU.

    device = pick_device("auto")
    with on_device(model, device, back=True) as network, autocast(device, "bfloat16"):     # the model itself on a CPU, else a copy of it
        output = network(to_device(batch, device))

Weights, their sums and the optimiser's state are float32 in any case. On a CPU with float32 the result depends only on the seed; an
accelerator rounds differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from fedml.networks.device import pick_device as pick_device
from fedml.study.section import Precision


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Computes matrix products and convolutions in the block in ``precision``; weights and sums stay float32. ``float32``: no change.

    ``float16`` needs ``scaler`` in training: small gradients would become 0.
    """
    return nullcontext() if precision == "float32" else torch.autocast(device.type, getattr(torch, precision))


def scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler:
    """Scales the loss, and the gradients back, for ``float16``; for other types it is disabled and changes nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")


def to_device(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """``batch`` on ``device``; on a CPU the same tensors. To CUDA from pinned memory, so that this process goes on meanwhile."""
    if device.type != "cuda":
        return {key: value.to(device) for key, value in batch.items()}
    return {key: value.pin_memory().to(device, non_blocking=True) for key, value in batch.items()}


@contextmanager
def on_device(model: nn.Module, device: torch.device, *, seed: int = 0, back: bool = False) -> Iterator[nn.Module]:
    """The model on ``device``: itself if it is already there, else a copy, whose parameters and buffers are copied ``back`` at the end.

    Convolutions on an accelerator are taken by deterministic algorithms, and with float32 in float32; what is random there (dropout) draws
    from ``seed``, and the accelerator's generator is as before afterwards.
    """
    if device.type == "cpu":
        yield model
        return
    network = deepcopy(model).to(device)
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with exact, torch.random.fork_rng(devices=[device.index or 0], device_type=device.type):
        torch.get_device_module(device).manual_seed(seed)
        yield network
    if back:
        with torch.no_grad():
            for into, found in zip((*model.parameters(), *model.buffers()), (*network.parameters(), *network.buffers()), strict=True):
                into.copy_(found)
