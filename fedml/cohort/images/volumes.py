"""Images or masks of a cohort that stay on disk in the size that preprocessing gives each, and patches drawn from them in training.

    pixels = Volumes(cache, order, (1, 64, 64, 64))       # .shape is that of patches; pixels[3] reads image 3 as a whole
    drawn = Patcher(pixels, masks, spec)
    drawn.patches(3, generator)                           # [(patch of image 3, of its mask)] * spec.per_step

The centre of a patch is, with probability ``foreground``, a voxel of a class other than the background (MONAI's RandCropByPosNegLabel; with
``balanced`` first a class is drawn, as RandCropByLabelClasses does), else any voxel. A patch never leaves its image: the centre is moved.
Of a class, at most ``MOST`` evenly spread voxels of an image may be centres. All draws come from one generator, that of (study's seed,
round, site).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.study.imaging import Patches

if TYPE_CHECKING:
    import torch

    from fedml.cohort.images.cache import ImageCache

MOST = 65_536
Box = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Volumes:
    """Images of image caches, each (channels, *its own size), or their masks. ``image_shape``: (channels, *size of a patch)."""

    places: tuple[tuple[ImageCache, int], ...]
    image_shape: tuple[int, ...]
    masks: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values: float32, of masks uint8."""
        return np.dtype(np.uint8 if self.masks else np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """(images, channels, *size of a patch)."""
        return (len(self.places), *self.image_shape)

    @property
    def digest(self) -> bytes:
        """SHA-256 over the caches' SHA-256 of the images and masks; 32 bytes."""
        return hashlib.sha256("".join(cache.content(at) for cache, at in self.places).encode()).digest()

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self[at] for at in range(len(self)))

    def __getitem__(self, at: Any) -> npt.NDArray[Any]:
        """(channels, *size) one whole image, read from the disk here."""
        if not isinstance(at, int | np.integer):
            raise ValueError("images of different sizes are read one by one")
        values: npt.NDArray[Any] = self.read(int(at)).numpy()
        return values

    def size(self, at: int) -> tuple[int, ...]:
        """Voxels of one image along each axis."""
        cache, k = self.places[at]
        return cache.shapes[k][1:]

    def read(self, at: int, box: Box = ()) -> torch.Tensor:
        """One image, or the part of it in ``box``, in new memory."""
        cache, k = self.places[at]
        return cache.part(k, box, masks=self.masks)

    def take(self, rows: Any) -> Volumes:
        """The images in ``rows``, any index of a NumPy axis."""
        return replace(self, places=tuple(self.places[k] for k in np.arange(len(self))[rows].ravel().tolist()))


def volumes(cache: ImageCache, order: Sequence[int], patch: Sequence[int], *, masks: bool = False) -> Volumes:
    """The items ``order`` of a cache, from which patches of size ``patch`` are drawn."""
    channels = (cache.mask_shapes if masks else cache.shapes)[order[0]][0]
    return Volumes(tuple((cache, int(k)) for k in order), (channels, *patch), masks)


@dataclass(frozen=True, eq=False)
class Patcher:
    """Draws patches of ``spec`` from images and their masks. Where the classes are is read once for each image."""

    pixels: Volumes
    masks: Volumes
    spec: Patches
    _where: dict[int, list[npt.NDArray[np.int64]]] = field(default_factory=dict)

    def _classes(self, at: int) -> list[npt.NDArray[np.int64]]:
        """Indices (C order) of voxels of each class that the mask has, without the background."""
        if at not in self._where:
            flat = self.masks[at][0].ravel()
            places = np.flatnonzero(flat)
            kinds = flat[places]
            found = [places[kinds == c] for c in np.unique(kinds)]
            self._where[at] = [own[np.linspace(0, len(own) - 1, MOST).astype(np.int64)] if len(own) > MOST else own for own in found]
        return self._where[at]

    def box(self, at: int, draw: torch.Generator) -> Box:
        """Where one patch of image ``at`` is."""
        import torch

        size, patch = self.pixels.size(at), self.spec.size
        share, kind, which, *anywhere = torch.rand(3 + len(size), generator=draw, dtype=torch.float64).tolist()
        classes = self._classes(at) if share < self.spec.foreground else []
        if classes:
            own = classes[int(kind * len(classes))] if self.spec.balanced else np.concatenate(classes)
            centre: Sequence[int] = [int(v) for v in np.unravel_index(own[int(which * len(own))], size)]
        else:
            centre = [int(a * n) for a, n in zip(anywhere, size, strict=True)]
        starts = [min(max(c - p // 2, 0), n - p) for c, p, n in zip(centre, patch, size, strict=True)]
        return tuple(slice(start, start + p) for start, p in zip(starts, patch, strict=True))

    def patches(self, at: int, draw: torch.Generator) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """``per_step`` patches of image ``at`` and of its mask: float32 (channels, *patch), uint8 (1, *patch)."""
        boxes = [self.box(at, draw) for _ in range(self.spec.per_step)]
        return [(self.pixels.read(at, box), self.masks.read(at, box)) for box in boxes]
