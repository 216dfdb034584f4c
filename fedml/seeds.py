"""Random numbers without global state: every seed is derived from (study seed, round, site) and a purpose.

Not for privacy noise and keys, which come from the operating system.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts (type and order matter): BLAKE2b of their joined, typed text."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@contextmanager
def torch_seed(seed: int) -> Iterator[torch.Generator]:
    """Within the block torch's default generator starts from ``seed``; yields another generator with the same seed; restores the state.

    The default generator is needed because layers such as dropout do not take a generator.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)
