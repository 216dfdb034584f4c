"""The device of a network's computations by its name."""

from __future__ import annotations

import torch

from fedml.errors import InputError


def pick_device(wanted: str = "auto") -> torch.device:
    """``auto``: this machine's accelerator if it has one, else the CPU; or a device of torch's by its name, such as ``cpu`` or ``cuda:1``.

    Raises:
        InputError: this machine has no such device.
    """
    if wanted != "auto":
        try:
            return torch.empty(0, device=wanted).device
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise InputError(f'device "{wanted}" does not exist on this machine; use "auto" or "cpu".') from error
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
