"""An image to be read (``Item``) and what its reader makes of it (``Raw``): what readers and the image cache speak of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Item(NamedTuple):
    """An image to be: ``files`` are all that it is read from, a mask's too; ``part`` is what else its reading depends on: which of the
    images in the files, whose."""

    name: str
    files: tuple[Path, ...]
    part: str = ""


class Raw(NamedTuple):
    """``image`` (channels, *size) and ``mask`` (channels of the mask, *size), as ``fedml.cohort.images.transforms.prepared`` takes them."""

    image: npt.NDArray[Any]
    affine: npt.NDArray[np.float64] | None = None
    mask: npt.NDArray[Any] | None = None


Read = Callable[[Item], Raw]  # raises ItemError with the reason
