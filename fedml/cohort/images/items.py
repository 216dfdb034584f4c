"""The interface between image readers and the image cache: an image to be read (``Item``) and the reader's result (``Raw``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Item(NamedTuple):
    """An image to be read. ``files``: all files that it is read from, the mask's included; ``part``: other dependencies of its reading,
    such as the index of the image in a file, or the person."""

    name: str
    files: tuple[Path, ...]
    part: str = ""

    def unnamed(self, text: str) -> str:
        """``text`` with a number for each of the files, as it is kept."""
        for k, file in enumerate(self.files):
            text = text.replace(str(file), f"\0{k}\0")
        return text

    def named(self, text: str) -> str:
        """The inverse of ``unnamed``, for the same files elsewhere."""
        for k, file in enumerate(self.files):
            text = text.replace(f"\0{k}\0", str(file))
        return text


class Raw(NamedTuple):
    """``image`` (channels, *size), ``affine`` (4, 4) and ``mask`` (mask channels, *size): arguments of ``transforms.prepared``."""

    image: npt.NDArray[Any]
    affine: npt.NDArray[np.float64] | None = None
    mask: npt.NDArray[Any] | None = None


Read = Callable[[Item], Raw]  # raises ItemError with the reason
