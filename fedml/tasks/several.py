"""Images of one batch that differ in size, where a tensor would have to be of one size: a person's images in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch


class Several:
    """Tensors (...) of one number of axes, one an image; what is asked of a batch's tensor is asked of each."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.tensors = tuple(tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.tensors)

    def __getitem__(self, at: int) -> torch.Tensor:
        return self.tensors[at]

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Several:
        """``change`` of each, which it takes and gives with an axis over images of length 1."""
        return Several([change(one[None])[0] for one in self.tensors])

    def to(self, device: Any) -> Several:
        """All on ``device``."""
        return Several([one.to(device) for one in self.tensors])

    def float(self) -> Several:
        """All as float32."""
        return Several([one.float() for one in self.tensors])

    def cpu(self) -> Several:
        """All on the CPU."""
        return Several([one.cpu() for one in self.tensors])


def stacked(tensors: Sequence[torch.Tensor]) -> Any:
    """One tensor if all have one size, else ``Several``."""
    return torch.stack(list(tensors)) if len({one.shape for one in tensors}) == 1 else Several(tensors)
