"""The masks of images as their files have them, beside the prepared ones: metrics are of the file's voxels (``fedml.tasks.original``).

    open_originals(cache, read)             # of a cache of prepared images, in the same folder of caches
    grid_after(spec, size, affine)          # size and affine of an image after preprocessing, without its voxels
    originals.take(rows), originals[0]      # fedml.tasks.original.Original

An entry of the cache holds the mask of each image as bytes: a header in JSON, and the classes of its voxels, compressed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.items import Item, Raw
from fedml.cohort.images.transforms import geometry, spacing_after
from fedml.errors import InputError
from fedml.study.imaging import Preprocess
from fedml.tasks.original import LOST, Original, fold, lost_of

if TYPE_CHECKING:
    from fedml.cohort.images.cache import ImageCache

VERSION = 1  # increment when the bytes of an item change
Packed = npt.NDArray[np.uint8]
_LENGTH = 4  # bytes of the header's length


@dataclass(frozen=True)
class Folded:
    """What is kept of a raw image until its prepared mask is there: the mask, compressed, its size, and the affine."""

    mask: bytes
    size: tuple[int, ...]
    affine: npt.NDArray[np.float64] | None


def folded(raw: Raw) -> Folded:
    """Of a raw image with a mask (1, *size) of classes."""
    mask = raw.mask
    if mask is None:
        raise ValueError("the image has no mask")
    return Folded(fold(mask[0]), tuple(mask.shape[1:]), raw.affine)


def grid_after(spec: Preprocess, size: Sequence[int], affine: npt.NDArray[Any] | None) -> tuple[tuple[int, ...], npt.NDArray[np.float64]]:
    """Size, and affine (4, 4), of an image of ``size`` after ``spec``; MONAI's own, found without voxels."""
    import torch
    from monai.data import MetaTensor

    image: Any = MetaTensor(torch.zeros(1).expand(1, *size), affine=None if affine is None else np.asarray(affine, np.float64))
    for step in geometry(spec):
        image = step(image)
    return tuple(int(n) for n in image.peek_pending_shape()), np.asarray(image.peek_pending_affine(), np.float64)


def matrix_of(spec: Preprocess, size: Sequence[int], affine: npt.NDArray[Any] | None) -> npt.NDArray[np.float64]:
    """(axes + 1, axes + 1): a voxel's index in the file to its index in the prepared image."""
    before = np.eye(4) if affine is None else np.asarray(affine, np.float64)
    kept = [*range(len(size)), 3]
    out: npt.NDArray[np.float64] = (np.linalg.inv(grid_after(spec, size, affine)[1]) @ before)[np.ix_(kept, kept)]
    whole = np.rint(out)
    return np.where(np.abs(out - whole) < 1e-9, whole, out)


def pack(spec: Preprocess, of: Folded, prepared: npt.NDArray[np.uint8], classes: int) -> Packed:
    """The bytes of one original; ``prepared`` (*size): its mask after ``spec``."""
    matrix = matrix_of(spec, of.size, of.affine)
    spacing = spacing_after(None, of.affine, len(of.size))
    whole = Original(of.mask, of.size, spacing, matrix, np.zeros((0, len(LOST)), np.int64))
    lost = lost_of(whole.mask(), prepared, matrix, classes)
    values = {
        "size": list(of.size), "matrix": matrix.tolist(), "lost": lost.tolist(),
        "spacing": [float(v) if np.isfinite(v) else None for v in spacing],
    }  # fmt: skip
    header = json.dumps(values).encode()
    return np.frombuffer(len(header).to_bytes(_LENGTH, "little") + header + of.mask, np.uint8)


def _unpack(packed: Packed) -> Original:
    data = packed.tobytes()
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    values: Mapping[str, Any] = json.loads(data[_LENGTH:end])
    return Original(
        data[end:], tuple(values["size"]), np.array([np.nan if v is None else v for v in values["spacing"]]),
        np.array(values["matrix"], np.float64), np.array(values["lost"], np.int64).reshape(-1, len(LOST)),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class OriginalMasks:
    """Originals of a cohort's images: each either its bytes, or its place in a cache, from which it is read on access."""

    places: tuple[Packed | tuple[ImageCache, int], ...]

    def _packed(self, at: int) -> Packed:
        place = self.places[at]
        if isinstance(place, np.ndarray):
            return place
        found = place[0].mask(place[1])
        assert found is not None  # noqa: S101  each item of such an entry has one
        values: Packed = found.numpy()
        return values

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, at: int) -> Original:
        return _unpack(self._packed(at))

    @cached_property
    def lost(self) -> npt.NDArray[np.int64]:
        """(images, classes without the background, ``LOST``)."""
        return np.stack([self[at].lost for at in range(len(self))])

    @property
    def digest(self) -> bytes:
        """SHA-256 over all masks and where their voxels are; 32 bytes."""
        sha256 = hashlib.sha256()
        for at in range(len(self)):
            sha256.update(hashlib.sha256(self._packed(at).tobytes()).digest())
        return sha256.digest()

    def take(self, rows: Any) -> OriginalMasks:
        """Those of ``rows``, any index of a NumPy axis."""
        return OriginalMasks(tuple(self.places[k] for k in np.arange(len(self))[rows].ravel().tolist()))

    def to(self, device: Any) -> Self:
        """Itself: counting is on the CPU."""
        return self


def concat_originals(many: Sequence[OriginalMasks]) -> OriginalMasks:
    """All of them, in order."""
    return OriginalMasks(tuple(place for one in many for place in one.places))


class Finder(NamedTuple):
    """``find``: an item's mask and affine, by the reader ``name``. ``classes``: with the background."""

    find: Callable[[Item], Folded]
    name: str
    classes: int


def open_originals(
    cache: ImageCache, folder: Path, source: Path, items: Sequence[Item], spec: Preprocess, finder: Finder, say: Callable[[str], None]
) -> OriginalMasks:
    """The originals of ``cache``'s items, from a cache entry of their own.

    Args:
        folder: of caches. source: the images' origin. items: of ``cache``, excluded ones too.

    Raises:
        CannotKeep: the folder cannot be written.
        InputError: an image can no longer be read.
    """
    from fedml.cohort.images.cache import Reader, open_cache

    kept = [items[at] for at in cache.kept]
    row = {item: at for at, item in enumerate(kept)}

    def read(item: Item) -> Raw:
        mask = cache.mask(row[item])
        if mask is None:
            raise ValueError("the image has no mask")
        return Raw(np.zeros((1, 0), np.float32), None, pack(spec, finder.find(item), mask.numpy()[0], finder.classes))

    entry = open_cache(folder, source / "originals", kept, spec, Reader(read, f"{finder.name} original {VERSION}", _as_read), say)
    if entry.excluded:
        raise InputError(f"{kept[min(entry.excluded)].name}: changed while it was read; start again when the file is complete.")
    return OriginalMasks(tuple((entry, k) for k in range(len(entry))))


def _as_read(spec: Preprocess, raw: Raw) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]:
    return raw.image, raw.mask
