"""Histograms of raw intensities, additive over images and sites, and percentiles of them, from which all sites share one intensity window.

    total = add_counts([site, other])                          # (BINS,) int64 each
    low, high = window_from(total, (1, 99))

The bins are fixed and symmetric: linear around 0, logarithmic beyond ``LINEAR`` (log1p(|x| / LINEAR) of either sign). Therefore no round is
needed to agree on a range, and a percentile is within 0.9 % of |x| + 0.01 of the percentile of the voxels; larger values count as 10^6.

The histogram of an image includes all its voxels after orientation and resampling, in raw units, all channels together, before cropping or
padding.
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
class HistogramView:
    """Images before the intensity window is agreed: the later shape of an image (channels, *size), and the cache rows of the histograms.

    Voxels cannot be read, because they depend on the window.
    """

    places: tuple[tuple[ImageCache, int], ...]
    image_shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, the type of the later images."""
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """(images, channels, *size)."""
        return (len(self.places), *self.image_shape)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the images' source files, 32 bytes; a hash of histograms would not cover masks and positions of voxels."""
        return hashlib.sha256("".join(cache.source(at) for cache, at in self.places).encode()).digest()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: object) -> NoReturn:
        raise ValueError("the window of these images is not agreed yet: only histograms can be read, not voxels")

    def take(self, rows: Any) -> HistogramView:
        """The images in ``rows``, any index of a NumPy axis."""
        return HistogramView(tuple(self.places[k] for k in np.arange(len(self))[rows]), self.image_shape)

    def histogram(self) -> Counts:
        """(BINS,) number of voxels in each bin, over all images."""
        total = np.zeros(BINS, np.int64)
        for cache, at in self.places:
            packed = cache.mask(at)
            if packed is not None:
                _unpack_into(total, packed.numpy())
        return total


def histogram_item(spec: Preprocess, raw: Raw) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """An empty image, and its histogram in place of the mask: the cache item of an image whose window is not agreed yet.

    Raises:
        ItemError: as ``transforms.prepared``.
    """
    image, _ = prepared(spec, raw.image, raw.affine)
    return np.zeros((1, 0), np.float32), _packed(voxel_histogram(image))


def voxel_histogram(values: npt.NDArray[Any]) -> Counts:
    """(BINS,) histogram of finite numbers of any shape."""
    flat = np.asarray(values, np.float64).ravel()
    scaled = np.copysign(np.log1p(np.abs(flat) / LINEAR), flat) / _SCALE
    place = np.clip((scaled + 1) * (BINS / 2), 0, BINS - 1).astype(np.int64)
    return np.bincount(place, minlength=BINS)


def percentile(histogram: Counts, percent: float) -> float:
    """The value below which ``percent`` % of the counted voxels are, with the voxels of a bin spread evenly on the bins' scale."""
    upto = np.cumsum(histogram)
    wanted = percent / 100 * int(upto[-1])
    at = min(int(np.searchsorted(upto, wanted, side="left")), BINS - 1)
    at = at if histogram[at] else int(np.flatnonzero(histogram)[0])  # the 0th percentile is in the first non-empty bin
    within = (wanted - (upto[at] - histogram[at])) / histogram[at]
    scaled = (at + within) * (2 / BINS) - 1
    return float(np.copysign(np.expm1(abs(scaled) * _SCALE) * LINEAR, scaled))


def window_from(histogram: Counts, percentiles: tuple[float, float]) -> tuple[float, float]:
    """(low, high), rounded to float32 so that a saved model contains the exact values that were used.

    Raises:
        ValueError: there are no voxels, or the two percentiles are equal.
    """
    if not histogram.sum():
        raise ValueError("no site has a voxel to count")
    low, high = (float(np.float32(percentile(histogram, p))) for p in percentiles)
    if not low < high:
        raise ValueError(f"both percentiles are {low:g}")
    return low, high


def _packed(histogram: Counts) -> npt.NDArray[np.uint8]:
    """(non-empty bins, 6) bytes: index and count of each non-empty bin, little-endian."""
    used = np.flatnonzero(histogram)
    number, count = used.astype("<u2").view(np.uint8).reshape(-1, 2), histogram[used].astype("<u4").view(np.uint8).reshape(-1, 4)
    return np.concatenate([number, count], axis=1)


def _unpack_into(total: Counts, packed: npt.NDArray[np.uint8]) -> None:
    number, count = np.ascontiguousarray(packed[:, :2]).view("<u2")[:, 0], np.ascontiguousarray(packed[:, 2:]).view("<u4")[:, 0]
    total[number] += count
