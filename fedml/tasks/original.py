"""The mask of an image as its file has it, and what a prediction on the prepared image says of each of the file's voxels.

    original.labels(logits)       # (*size) uint8: the class of each voxel of the file; what preprocessing cut away is background
    original.mask()               # (*size) uint8: the true class
    original.lost                 # by class: voxels and lesions, and how many of them the prepared mask no longer has

Logits are interpolated linearly, class by class, at the positions of the file's voxels; then the largest is the class (as nnU-Net does:
Isensee et al. 2021). A voxel belongs to the prepared image if its centre is in one of the prepared image's voxels.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

Labels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

LOST = ("voxels", "cut", "changed", "lesions", "lost_lesions")
"""Columns of ``Original.lost``: voxels of the class; of these, outside of the prepared image, and inside but of another class there;
connected parts (also over edges and corners), and those of which no voxel remains."""
_EDGE = 1e-4  # voxels by which a centre on the edge of the prepared image counts as inside
_EXACT = 1e-6  # what is nearer to a whole number is that number, so that a crop is exact


@dataclass(frozen=True, eq=False)
class Original:
    """One image's mask on the file's grid.

    Args:
        packed: the classes of the voxels, (*size) uint8 in C order, compressed by zlib.
        size: of the file's grid. spacing: (axes,) mm between its voxels, NaN where the file does not say.
        matrix: (axes + 1, axes + 1), a voxel's index in the file to its (fractional) index in the prepared image.
        lost: (classes without the background, ``LOST``) counts.
    """

    packed: bytes
    size: tuple[int, ...]
    spacing: Floats
    matrix: Floats
    lost: npt.NDArray[np.int64]

    def mask(self) -> Labels:
        """(*size) the class of each voxel."""
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.size)

    def labels(self, logits: torch.Tensor) -> Labels:
        """(*size) the class of each voxel by ``logits`` (classes, *prepared size); 0 outside of the prepared image."""
        return labels_at(logits, self.matrix, self.size)


class Originals(Protocol):
    """The originals of a batch's images, in their order."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: int) -> Original: ...


def fold(mask: Labels) -> bytes:
    """``Original.packed`` of a mask."""
    return zlib.compress(np.ascontiguousarray(mask, np.uint8).tobytes(), 1)


@dataclass(frozen=True)
class _Axis:
    """One axis of the prepared image: the ``axis`` of the file along it, the ``inside`` indices of that axis, and for these the index
    below, the one above and the weight of the latter."""

    axis: int
    inside: npt.NDArray[np.int64]
    below: npt.NDArray[np.int64]
    above: npt.NDArray[np.int64]
    weight: Floats

    @property
    def nearest(self) -> npt.NDArray[np.int64]:
        """The nearest index."""
        return np.where(self.weight < 0.5, self.below, self.above)


def _axes(matrix: Floats, size: Sequence[int], prepared: Sequence[int]) -> list[_Axis] | None:
    """The axes of the prepared image; None if they are not those of the file (its axes are not at right angles)."""
    n, out = len(size), list[_Axis]()
    big = np.abs(matrix[:n, :n]) > _EXACT
    if not ((big.sum(0) == 1).all() and (big.sum(1) == 1).all()):
        return None
    for a in range(n):
        axis = int(np.flatnonzero(big[a])[0])
        at = matrix[a, axis] * np.arange(size[axis]) + matrix[a, n]
        inside = np.flatnonzero((at >= -0.5 - _EDGE) & (at <= prepared[a] - 0.5 + _EDGE))
        at = np.clip(at[inside], 0, prepared[a] - 1)
        at = np.where(np.abs(at - np.rint(at)) < _EXACT, np.rint(at), at)
        below = np.floor(at).astype(np.int64)
        out.append(_Axis(axis, inside, below, np.minimum(below + 1, prepared[a] - 1), at - below))
    return out


def _dense(matrix: Floats, size: Sequence[int], prepared: Sequence[int]) -> npt.NDArray[np.bool_]:
    """(*size) whether a voxel is in the prepared image, for any matrix."""
    n, grid, inside = len(size), np.ogrid[tuple(slice(0, s) for s in size)], np.ones(tuple(size), bool)
    for a in range(n):
        at = sum(matrix[a, k] * grid[k] for k in range(n)) + matrix[a, n]
        inside &= (at >= -0.5 - _EDGE) & (at <= prepared[a] - 0.5 + _EDGE)
    return inside


def _placed(values: npt.NDArray[Any], axes: Sequence[_Axis], size: Sequence[int], blank: float) -> npt.NDArray[Any]:
    """``values``, with the prepared image's axes and only the inside, as an array on the file's grid; ``blank`` elsewhere."""
    order = [axis.axis for axis in axes]
    out = np.full(tuple(size), blank, values.dtype)
    inside = {axis.axis: axis.inside for axis in axes}
    out[np.ix_(*(inside[k] for k in range(len(size))))] = values.transpose(np.argsort(order))
    return out


def labels_at(logits: torch.Tensor, matrix: Floats, size: Sequence[int]) -> Labels:
    """(*size) the class with the largest of ``logits`` (classes, *prepared size), interpolated at ``matrix`` times the index; 0 outside."""
    prepared, axes = tuple(logits.shape[1:]), _axes(matrix, size, logits.shape[1:])
    best, label = None, None
    for k, values in enumerate(_interpolated(logits, matrix, size, axes)):
        if best is None or label is None:
            best, label = values, torch.zeros(values.shape, dtype=torch.uint8)
        else:
            larger = values > best
            label[larger] = k
            best = torch.maximum(best, values)
    found: Labels = np.zeros(tuple(size), np.uint8) if label is None else label.numpy()
    return _placed(found, axes, size, 0) if axes is not None else np.where(_dense(matrix, size, prepared), found, np.uint8(0))


def values_at(values: torch.Tensor, matrix: Floats, size: Sequence[int]) -> npt.NDArray[np.float32]:
    """(*size) float32: ``values`` (*prepared size), interpolated as ``labels_at`` does; NaN outside of the prepared image."""
    prepared, axes = tuple(values.shape), _axes(matrix, size, values.shape)
    found = next(_interpolated(values[None], matrix, size, axes)).numpy()
    return _placed(found, axes, size, np.nan) if axes is not None else np.where(_dense(matrix, size, prepared), found, np.float32(np.nan))


def _interpolated(logits: torch.Tensor, matrix: Floats, size: Sequence[int], axes: Sequence[_Axis] | None) -> Iterator[torch.Tensor]:
    """The logits of one class after another: of the inside along ``axes``, or without them of all voxels."""
    for values in logits.detach().cpu().float():
        if axes is None:
            from scipy.ndimage import affine_transform

            n = len(size)
            at = {"matrix": matrix[:n, :n], "offset": matrix[:n, n], "output_shape": tuple(size), "order": 1, "mode": "nearest"}
            yield torch.from_numpy(affine_transform(values.numpy(), **at))
            continue
        for a, axis in enumerate(axes):
            below = values.index_select(a, torch.from_numpy(axis.below))
            if axis.weight.any():
                shape = [-1 if k == a else 1 for k in range(values.ndim)]
                above = values.index_select(a, torch.from_numpy(axis.above))
                below = torch.lerp(below, above, torch.from_numpy(axis.weight.astype(np.float32)).view(shape))
            values = below
        yield values


def nearest_at(mask: Labels, matrix: Floats, size: Sequence[int], blank: int) -> npt.NDArray[np.int16]:
    """(*size) the class of the nearest voxel of the prepared ``mask``; ``blank`` outside of it."""
    axes, whole = _axes(matrix, size, mask.shape), mask.astype(np.int16)
    if axes is not None:
        return _placed(whole[np.ix_(*(axis.nearest for axis in axes))], axes, size, blank)
    from scipy.ndimage import affine_transform

    n = len(size)
    found = affine_transform(whole, matrix[:n, :n], matrix[:n, n], output_shape=tuple(size), order=0, mode="nearest")
    return np.where(_dense(matrix, size, mask.shape), found, np.int16(blank))


def lost_of(mask: Labels, prepared: Labels, matrix: Floats, classes: int) -> npt.NDArray[np.int64]:
    """(classes - 1, ``LOST``): what of the file's ``mask`` the ``prepared`` mask no longer has. ``classes``: with the background."""
    from scipy.ndimage import find_objects, label

    back, outside = nearest_at(prepared, matrix, mask.shape, -1), -1
    boxes = find_objects(mask, max_label=classes - 1)
    out = np.zeros((classes - 1, len(LOST)), np.int64)
    for k, box in enumerate(boxes):
        if box is None:
            continue
        own, now = mask[box] == k + 1, back[box]
        parts, lesions = label(own, structure=np.ones((3,) * mask.ndim))
        left = np.unique(parts[own & (now == k + 1)])
        cut, kept = own & (now == outside), own & (now == k + 1)
        voxels = int(own.sum())
        out[k] = voxels, cut.sum(), voxels - int(cut.sum()) - int(kept.sum()), lesions, lesions - len(left)
    return out
