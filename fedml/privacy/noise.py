"""Gaussian noise for differential privacy, from the operating system's random numbers, never from a study's seed.

    released = add_gaussian(total, std=noise_multiplier * clipping_norm)      # float32, of total's shape

Uniform numbers are bytes of ``os.urandom``: the first of a pair with 64 bits, so that the tail reaches 9.4 standard deviations (a number is
beyond with probability below 1e-19), the second with 53. The Box-Muller transform (1958) gives two normal numbers in float64.

Floating point: the last bits of a sum of a float value and float noise can reveal the value (Mironov 2012, for Laplace; Haney et al. 2022,
for every additive mechanism). Therefore ``add_gaussian`` adds in float64 and rounds the sum to a grid of about a millionth of the standard
deviation: the grid depends on ``std`` only, every grid point can be reached from every value in very many ways, and rounding is
post-processing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import torch

Entropy = Callable[[int], bytes]  # number of bytes -> random bytes; functions other than os.urandom are for tests
GRID_BITS = 20  # the grid's step is std / 2**20, rounded down to a power of two
_BLOCK = 2**17  # pairs at a time, sized for the processor's cache


def add_gaussian(values: torch.Tensor, std: float, *, entropy: Entropy = os.urandom) -> torch.Tensor:
    """``values`` + N(0, std^2), independent in each element, on the grid: a new float32 tensor of the shape of ``values``.

    Raises:
        ValueError: ``std`` is not positive and finite, or a value is not finite (noise would not hide it).
    """
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"the noise needs a positive, finite standard deviation, not {std}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("a value to which noise is added is not finite")
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
    """(count,) independent N(0, 1), float64 (Box and Muller 1958)."""
    pairs = (count + 1) // 2
    words = uniform_words(2 * pairs, entropy)
    open_unit = (words[:pairs].astype(np.float64) + 0.5) * 2.0**-64  # never 0
    radius = torch.from_numpy(np.sqrt(-2 * np.log(open_unit)))
    angle = torch.from_numpy((words[pairs:] >> np.uint64(11)).astype(np.float64)).mul_(2 * math.pi * 2.0**-53)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
