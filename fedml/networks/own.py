"""A network of own code: a class or function (shape, outputs, options by name) -> module, with names and numbers of its weights checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fedml.code.load import call
from fedml.errors import InputError
from fedml.study import limits
from fedml.study.code_section import Code

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")


def own_network(code: Code | None, spec: Any, shape: Sequence[int] | int, outputs: int) -> nn.Module:
    """The network that ``spec`` names.

    Args:
        spec: a section with ``net`` (``module:name``) and ``options``.
        shape: (channels, *size) of an image, or the number of columns. The network takes (persons, *shape) float32 and gives
            (persons, outputs); for segmentation (images, outputs, *size).

    Raises:
        InputError: it is no network, has no weight, or has weights of another type, too many of them or with strange names.
    """
    name: str = spec.net
    network = call(code, name, tuple(shape) if isinstance(shape, Sequence) else shape, outputs, **dict(spec.options or {}))
    if not isinstance(network, nn.Module):
        raise InputError(f'[model] net "{name}" gives a {type(network).__name__}; it must give a torch.nn.Module.')
    state = network.state_dict()
    if not any(True for _ in network.parameters()):
        raise InputError(f'[model] net "{name}" has no weights that could be trained.')
    for key, value in state.items():
        if not _NAME.fullmatch(key):
            raise InputError(f'[model] net "{name}" names a weight "{key[:40]}"; use letters, digits, _ and - only.')
        if value.is_floating_point() and value.dtype != torch.float32:
            raise InputError(f'[model] net "{name}" has {key} of type {value.dtype}; all weights must be torch.float32.')
    if (count := sum(value.numel() for value in state.values())) > limits.PARAMETERS:
        raise InputError(f'[model] net "{name}" has {count:,} weights, the limit is {limits.PARAMETERS:,}; choose narrower layers.')
    dims = len(shape) - 1 if isinstance(shape, Sequence) else 0

    def check(module: nn.Module, given: tuple[torch.Tensor, ...], out: Any) -> None:
        rows = len(given[0])
        fits = isinstance(out, torch.Tensor) and out.is_floating_point() and out.shape[:2] == (rows, outputs)
        if not fits or out.ndim not in (2, 2 + dims):
            got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise InputError(f'[model] net "{name}" gives {got} for {rows} persons; it must give ({rows}, {outputs}).')

    network.register_forward_hook(check)
    return network


def options_text(options: Mapping[str, Any] | None) -> str:
    """Options as text, such as ``width = 32``."""
    return ", ".join(f"{key} = {value}" for key, value in (options or {}).items())
