"""Gaussian noise that privacy may rest on: from the operating system's randomness, never from a study's seed.

    released = add_gaussian(total, std=noise_multiplier * clipping_norm)      # float32, of total's shape

Uniform numbers are bytes of ``os.urandom``: the first of a pair with 64 bits, so that the tail reaches 9.4 standard deviations (what is
cut off there has a chance below 1e-19 a number), the second with 53. Box and Muller (1958) make two normal numbers of them in float64.

Floating point: a sum of a value and noise that are both floats shows in its last bits what the value was (Mironov 2012, for Laplace;
Haney et al. 2022, for every additive mechanism). ``add_gaussian`` therefore adds in float64 and rounds the sum to a grid of about a
millionth of the standard deviation: the grid depends on ``std`` alone, each of its points can be reached from every value in very many
ways, and rounding is post-processing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import torch

Entropy = Callable[[int], bytes]  # so many random bytes; anything but os.urandom is for tests
GRID_BITS = 20  # the grid's step is std / 2**20, rounded down to a power of two
_BLOCK = 2**17  # pairs at a time: they stay in the cache


def add_gaussian(values: torch.Tensor, std: float, *, entropy: Entropy = os.urandom) -> torch.Tensor:
    """``values`` + N(0, std^2), independent in each place, on the grid; float32 of the shape of ``values``, which stays as it is.

    Raises:
        ValueError: ``std`` is not a positive finite number, or a value is not finite (noise would not hide it).
    """
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"the noise needs a positive, finite standard deviation, not {std}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("a value that noise is to hide is not finite")
    step = 2.0 ** math.floor(math.log2(std) - GRID_BITS)
    out = torch.empty(values.shape, dtype=torch.float32)
    flat, source = out.view(-1), values.detach().reshape(-1)
    for begin in range(0, flat.numel(), 2 * _BLOCK):
        part = source[begin : begin + 2 * _BLOCK].double()
        part = part + _standard_normal(len(part), entropy) * std
        flat[begin : begin + 2 * _BLOCK] = (part / step).round_().mul_(step)
    return out


def uniform_words(count: int, entropy: Entropy = os.urandom) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """``count`` independent 64-bit words."""
    return np.frombuffer(entropy(8 * count), dtype="<u8").astype(np.uint64, copy=False)


def _standard_normal(count: int, entropy: Entropy) -> torch.Tensor:
    """``count`` independent N(0, 1), float64 (Box and Muller 1958)."""
    pairs = (count + 1) // 2
    words = uniform_words(2 * pairs, entropy)
    open_unit = (words[:pairs].astype(np.float64) + 0.5) * 2.0**-64  # never 0
    radius = torch.from_numpy(np.sqrt(-2 * np.log(open_unit)))
    angle = torch.from_numpy((words[pairs:] >> np.uint64(11)).astype(np.float64)).mul_(2 * math.pi * 2.0**-53)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
