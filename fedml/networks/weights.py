"""Weights from a file that others made: arrays by name, and nothing of it is run.

    arrays = arrays_of(path.read_bytes(), str(path))       # safetensors, or what torch.save wrote

A checkpoint's table of weights may lie below the names that training programs use, and its names may have a wrapper's prefix.
"""

from __future__ import annotations

import io
from typing import Any

import torch

from fedml.errors import InputError

_INSIDE = ("state_dict", "model", "network", "teacher", "student")  # under which training programs keep the weights
_WRAPPERS = ("module.", "backbone.", "encoder.")


def arrays_of(data: bytes, where: str, wrappers: tuple[str, ...] = _WRAPPERS) -> dict[str, torch.Tensor]:
    """Arrays by name, as the file has them.

    Args:
        where: the file, for messages.
        wrappers: prefixes to leave out where every name has one.

    Raises:
        InputError: it is damaged, or holds anything but arrays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if data[8:9] == b"{":  # after the length of the header, which is JSON
            found: Any = load(data)
        elif data[:2] == b"PK" or data[:1] == b"\x80":  # a zip file, or the older format
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        else:
            raise ValueError("neither format")
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, EOFError, OSError) as error:
        raise InputError(f"{where}: is no file of weights ({type(error).__name__}); give safetensors or a state_dict of torch.") from error
    except Exception as error:  # UnpicklingError: the file names something else than tensors
        raise InputError(f"{where}: holds more than weights, which is not loaded; save the state_dict alone.") from error
    for _ in range(2):
        inner = next((found[key] for key in _INSIDE if isinstance(found, dict) and isinstance(found.get(key), dict)), None)
        found = found if inner is None else inner
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items()) or not found:
        raise InputError(f"{where}: has no table of weights by name; save the network's state_dict.")
    arrays: dict[str, torch.Tensor] = dict(found)
    for prefix in wrappers:
        if all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): value for name, value in arrays.items()}
    return arrays
