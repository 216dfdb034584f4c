"""Images or masks of a cohort that stay on disk: array-like views of image caches, read row by row.

pixels = mapped(cache, np.arange(len(cache)))         # .shape, .dtype, len()
pixels[rows]                                          # float32 (rows, channels, *size), read from the cache
select_images(pixels, rows), concat_images([pixels, others])         # views, not read
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.histograms import HistogramView
from fedml.cohort.images.volumes import Volumes

if TYPE_CHECKING:
    from fedml.cohort.images.cache import ImageCache

Rows = npt.NDArray[np.int64] | npt.NDArray[np.bool_] | slice


@dataclass(frozen=True, eq=False)
class Mapped:
    """Rows of image caches, each of shape ``image_shape``: row r is item ``at[r]`` of ``caches[which[r]]``, or its mask."""

    caches: tuple[ImageCache, ...]
    which: npt.NDArray[np.int64]
    at: npt.NDArray[np.int64]
    image_shape: tuple[int, ...]
    masks: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the rows: float32, of masks uint8."""
        return np.dtype(np.uint8 if self.masks else np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, channels, *size)."""
        return (len(self.at), *self.image_shape)

    @property
    def digest(self) -> bytes:
        """SHA-256 over the caches' SHA-256 of the images and masks; 32 bytes."""
        content = [self.caches[cache].content(at) for cache, at in zip(self.which.tolist(), self.at.tolist(), strict=True)]
        return hashlib.sha256("".join(content).encode()).digest()

    def __len__(self) -> int:
        return len(self.at)

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self[at] for at in range(len(self)))

    def __getitem__(self, rows: int | Rows) -> npt.NDArray[Any]:
        """The rows, read into a new array; a single index drops the axis over rows."""
        import torch

        chosen = np.arange(len(self))[rows]
        out = torch.empty((chosen.size, *self.image_shape), dtype=torch.uint8 if self.masks else torch.float32)
        for into, row in zip(out, chosen.ravel().tolist(), strict=True):
            cache = self.caches[self.which[row]]
            (cache.mask if self.masks else cache.image)(int(self.at[row]), out=into)
        values: npt.NDArray[Any] = out.numpy()
        return values if chosen.ndim else values[0]


Stored = npt.NDArray[Any] | Mapped | HistogramView | Volumes


def mapped(cache: ImageCache, at: npt.NDArray[np.int64], *, masks: bool = False) -> Mapped:
    """The items with indices ``at`` into ``cache.kept`` as rows, in that order.

    Raises:
        ValueError: ``at`` is empty, or the items differ in shape.
    """
    shapes = {(cache.mask_shapes if masks else cache.shapes)[k] for k in at.tolist()}
    if len(shapes) != 1:
        raise ValueError(f"images of different shapes {sorted(shapes)} cannot be one array")
    return Mapped((cache,), np.zeros(len(at), np.int64), at, shapes.pop(), masks)


def select_images(values: Stored, rows: Rows) -> Stored:
    """``values[rows]``; a view of a view is a view."""
    if isinstance(values, HistogramView | Volumes):
        return values.take(rows)
    return replace(values, which=values.which[rows], at=values.at[rows]) if isinstance(values, Mapped) else values[rows]


def concat_images(many: Sequence[Stored]) -> Stored:
    """``np.concatenate`` along the first axis; a view if all of ``many`` are views.

    Raises:
        ValueError: ``many`` is empty, or the shapes differ.
    """
    if histograms := [values for values in many if isinstance(values, HistogramView)]:
        return HistogramView(tuple(place for values in histograms for place in values.places), histograms[0].image_shape)
    if own := [values for values in many if isinstance(values, Volumes)]:
        return Volumes(tuple(place for values in own for place in values.places), own[0].image_shape, own[0].masks)
    views = [values for values in many if isinstance(values, Mapped)]
    if not views or len(views) < len(many) or len({view.image_shape for view in views}) != 1:
        return np.concatenate([values[:] for values in many])
    begin = np.cumsum([0, *(len(view.caches) for view in views)])
    which = np.concatenate([view.which + k for view, k in zip(views, begin, strict=False)])
    caches = tuple(cache for view in views for cache in view.caches)
    return replace(views[0], caches=caches, which=which, at=np.concatenate([view.at for view in views]))
