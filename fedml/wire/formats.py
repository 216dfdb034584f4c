"""Updates in fewer bytes: a site's change of the model as float16, bfloat16 or int8.

    sent = encode(update, "int8")                 # {"w": int8 (rows, ...), "w/scale": float32 (rows,)}
    decode(sent, "int8")                          # float32, each number within half a step of what it was

``int8``: each row of an array (all of it, below two dimensions) has a step of its own, its largest absolute number / 127. What rounding
leaves out is the sender's to keep and to add to its next update (error feedback: Seide et al. 2014, "1-bit stochastic gradient descent";
Karimireddy et al. 2019, arXiv:1901.09847), so it is late, not lost.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
SCALE = "/scale"  # behind the name of an int8 array: the steps of its rows
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}  # of a number, without the steps
_LARGEST = float(torch.finfo(torch.float16).max)
_DTYPES = {"float16": torch.float16, "bfloat16": torch.int16, "int8": torch.int8}  # bfloat16 as its 16 bits, which NumPy has no type for


def encode(update: Mapping[str, torch.Tensor], wire: str) -> Tensors:
    """``update`` (float32) in the format ``wire``. Of float16, numbers beyond 65,504 become that."""
    if wire == "float16":
        return {name: value.clamp(-_LARGEST, _LARGEST).half() for name, value in update.items()}
    if wire == "bfloat16":
        return {name: value.to(torch.bfloat16).view(torch.int16) for name, value in update.items()}
    sent = Tensors()
    for name, value in update.items():
        rows = _rows(value)
        scale = rows.abs().amax(1) / 127 if rows.numel() else torch.zeros(len(rows))
        steps = torch.where(scale > 0, scale, torch.ones_like(scale))[:, None]
        sent[name] = (rows / steps).round_().clamp_(-127, 127).to(torch.int8).view(value.shape)
        sent[name + SCALE] = scale
    return sent


def decode(sent: Mapping[str, torch.Tensor], wire: str) -> Tensors:
    """The update as float32.

    Raises:
        ValueError: an array is of another type, or an int8 array's steps are missing, too many or few, or not finite and at least 0.
    """
    names = [name for name in sent if not (wire == "int8" and name.endswith(SCALE))]
    if wire == "int8" and {name + SCALE for name in names} != sent.keys() - set(names):
        raise ValueError("the steps of int8 arrays are not those of its arrays")
    found = Tensors()
    for name in names:
        value = sent[name]
        if value.dtype != _DTYPES[wire]:
            raise ValueError("an update is not in the format of the study")
        if wire == "int8":
            rows, scale = _rows(value), sent[name + SCALE]
            if scale.dtype != torch.float32 or scale.shape != (len(rows),) or not bool((torch.isfinite(scale) & (scale >= 0)).all()):
                raise ValueError("the steps of an int8 array are not one finite number of 0 or more for each row")
            found[name] = (rows.float() * scale[:, None]).view(value.shape)
        else:
            found[name] = (value.view(torch.bfloat16) if wire == "bfloat16" else value).float()
    return found


def as_weights(start: Mapping[str, np.ndarray], sent: Mapping[str, np.ndarray], wire: str) -> dict[str, np.ndarray]:
    """The weights that a site trained, from those that it had received and its update: float32, as both ends compute them.

    Raises:
        ValueError: names or shapes are not those of ``start``, or ``decode`` refuses the update.
    """
    update = decode({name: torch.from_numpy(value) for name, value in sent.items()}, wire)
    if update.keys() != start.keys() or any(value.shape != start[name].shape for name, value in update.items()):
        raise ValueError("an update has other names or shapes than the model")
    return {name: start[name] + value.numpy() for name, value in update.items()}


def _rows(value: torch.Tensor) -> torch.Tensor:
    """(rows, numbers of a row)."""
    return value.reshape(len(value), -1) if value.dim() > 1 else value.reshape(1, -1)
