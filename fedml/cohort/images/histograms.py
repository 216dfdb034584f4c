"""Histograms of raw intensities that add over images and sites, and percentiles of them: a window that is all sites' together.

    total = add_counts([site, other])                          # (BINS,) int64 each
    low, high = window_from(total, (1, 99))

The grid is fixed and symmetric: linear around 0, logarithmic beyond ``LINEAR`` (log1p(|x| / LINEAR) of either sign). So no round is needed
to agree on a range, and a percentile is within 0.9 % of |x| + 0.01 of that of the voxels themselves; what lies beyond 10^6 counts as 10^6.

An image is counted whole, as oriented and resampled, in raw units, all channels together, before anything is cropped or padded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.items import Raw
from fedml.cohort.images.transforms import prepared
from fedml.study.imaging import Preprocess

if TYPE_CHECKING:
    from fedml.cohort.images.cache import ImageCache

BINS = 4096
LINEAR, LARGEST = 0.01, 1e6
_SCALE = float(np.log1p(LARGEST / LINEAR))
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Counted:
    """Images whose window the sites have yet to agree on: each (channels, *size) ``one`` as it will be, and where its histogram is kept.

    Its voxels cannot be read: without the window there are none.
    """

    places: tuple[tuple[ImageCache, int], ...]
    one: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what they will be: float32."""
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """(images, channels, *size)."""
        return (len(self.places), *self.one)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the images' own files, 32 bytes: histograms would miss masks, and where voxels lie."""
        return hashlib.sha256("".join(cache.source(at) for cache, at in self.places).encode()).digest()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: object) -> NoReturn:
        raise ValueError("the window of these images is not agreed on yet: they have no voxels, only histograms")

    def take(self, rows: Any) -> Counted:
        """Those in ``rows``, whatever an array takes."""
        return Counted(tuple(self.places[k] for k in np.arange(len(self))[rows]), self.one)

    def histogram(self) -> Counts:
        """(BINS,) voxels of all of them."""
        total = np.zeros(BINS, np.int64)
        for cache, at in self.places:
            packed = cache.mask(at)
            if packed is not None:
                _unpack_into(total, packed.numpy())
        return total


def counted(spec: Preprocess, raw: Raw) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """No image, and in the place of the mask its histogram: what ``image_cache`` keeps of an image that is to be counted.

    Raises:
        ItemError: as ``transforms.prepared``.
    """
    image, _ = prepared(spec, raw.image, raw.affine)
    return np.zeros((1, 0), np.float32), _packed(voxel_histogram(image))


def voxel_histogram(values: npt.NDArray[Any]) -> Counts:
    """(BINS,) of finite numbers of any shape."""
    flat = np.asarray(values, np.float64).ravel()
    scaled = np.copysign(np.log1p(np.abs(flat) / LINEAR), flat) / _SCALE
    place = np.clip((scaled + 1) * (BINS / 2), 0, BINS - 1).astype(np.int64)
    return np.bincount(place, minlength=BINS)


def percentile(histogram: Counts, percent: float) -> float:
    """The value below which ``percent`` of 100 of the counted voxels lie, as if those of a bin were spread evenly on the grid's scale."""
    upto = np.cumsum(histogram)
    wanted = percent / 100 * int(upto[-1])
    at = min(int(np.searchsorted(upto, wanted, side="left")), BINS - 1)
    at = at if histogram[at] else int(np.flatnonzero(histogram)[0])  # the 0th percentile lies in the first bin that has any
    within = (wanted - (upto[at] - histogram[at])) / histogram[at]
    scaled = (at + within) * (2 / BINS) - 1
    return float(np.copysign(np.expm1(abs(scaled) * _SCALE) * LINEAR, scaled))


def window_from(histogram: Counts, percentiles: tuple[float, float]) -> tuple[float, float]:
    """(low, high) as float32 has them, so that a saved model says exactly what was done.

    Raises:
        ValueError: there are no voxels, or too few values to tell the two apart.
    """
    if not histogram.sum():
        raise ValueError("no site has a voxel to count")
    low, high = (float(np.float32(percentile(histogram, p))) for p in percentiles)
    if not low < high:
        raise ValueError(f"both percentiles are {low:g}")
    return low, high


def _packed(histogram: Counts) -> npt.NDArray[np.uint8]:
    """(bins in use, 6) bytes: number and count of each bin that has any, little-endian."""
    used = np.flatnonzero(histogram)
    number, count = used.astype("<u2").view(np.uint8).reshape(-1, 2), histogram[used].astype("<u4").view(np.uint8).reshape(-1, 4)
    return np.concatenate([number, count], axis=1)


def _unpack_into(total: Counts, packed: npt.NDArray[np.uint8]) -> None:
    number, count = np.ascontiguousarray(packed[:, :2]).view("<u2")[:, 0], np.ascontiguousarray(packed[:, 2:]).view("<u4")[:, 0]
    total[number] += count
