"""All images of a cohort as one input of its persons (``fedml.cohort.inputs.Input``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.histograms import HistogramView
from fedml.cohort.images.mapped import Mapped, Stored, concat_images, select_images
from fedml.cohort.images.originals import OriginalMasks, concat_originals
from fedml.cohort.images.reasons import Exclusion
from fedml.cohort.images.volumes import Patcher, Volumes
from fedml.cohort.inputs import Rows, content_of, rows_of_items
from fedml.study.imaging import OwnTransform, Patches

if TYPE_CHECKING:
    import torch

_FLOAT_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class Images:
    """All images of a cohort: ``pixels`` (images, channels, *size) and, for each, the row of its person (ascending). Images with
    preprocessing are read from a cache on access (``fedml.cohort.images.mapped``), others are arrays.

    ``masks`` (images, 1, *size): the class index of each voxel. ``spacing`` (images, axes): mm, NaN if unknown.
    ``excluded``: excluded images. ``originals``: the masks as the files have them; None: nothing moved their voxels, or no masks.
    ``patches``: how training draws them from images of different sizes; None: images are used as a whole.
    ``drawn``: random transforms of training.
    """

    pixels: Stored
    person: npt.NDArray[np.int64]
    masks: Stored | None = None
    spacing: npt.NDArray[np.float64] | None = None
    excluded: tuple[Exclusion, ...] = ()
    originals: OriginalMasks | None = None
    patches: Patches | None = None
    drawn: tuple[OwnTransform, ...] = ()
    units: tuple[tuple[str, int], ...] = ()  # unit of the values as far as headers say, and the number of images

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *size) of one image."""
        return tuple(self.pixels.shape[1:])

    @cached_property
    def _read(self) -> torch.Tensor | Mapped | HistogramView | Volumes:
        """Images as one tensor, or as a view of a cache."""
        import torch

        pixels = torch.from_numpy(self.pixels) if isinstance(self.pixels, np.ndarray) else self.pixels
        # Convert to float once instead of in every batch, unless that needs too much memory.
        return pixels.float() if isinstance(pixels, torch.Tensor) and pixels.numel() * 4 <= _FLOAT_BYTES else pixels

    @cached_property
    def _single_images(self) -> bool:
        """Whether each person has exactly one image."""
        return np.array_equal(self.person, np.arange(len(self.person)))

    def has(self, persons: int) -> npt.NDArray[np.bool_]:
        """(persons,): whether each person has an image."""
        return np.bincount(self.person, minlength=persons) > 0

    def tensors(self, rows: Rows, draw: torch.Generator | None) -> dict[str, Any]:
        """``image`` (images, channels, *size) float32 and ``image_person`` (images,), the place in ``rows``; with masks ``mask``, with
        spacings ``image_spacing``; without ``draw`` also the masks as the files have them, ``original``."""
        import torch

        if self._single_images and rows.max(initial=-1) < len(self.person):
            images, person = rows, torch.arange(len(rows))
        else:
            begin, end = np.searchsorted(self.person, rows), np.searchsorted(self.person, rows + 1)
            images = np.concatenate([np.arange(b, e) for b, e in zip(begin, end, strict=True)] or [np.zeros(0, np.int64)])
            person = torch.from_numpy(np.repeat(np.arange(len(rows)), end - begin))
        if self._patcher is not None:
            return self._of_volumes(self._patcher, images, person, draw)
        pixels = self._read
        if isinstance(pixels, Volumes):
            raise ValueError("images of different sizes have masks")
        whole = pixels[torch.from_numpy(images)].float() if isinstance(pixels, torch.Tensor) else torch.from_numpy(pixels[images])
        out: dict[str, Any] = {"image": whole, "image_person": person}
        if self.masks is not None:
            out["mask"] = torch.from_numpy(self.masks[images])
        if self.spacing is not None:
            out["image_spacing"] = torch.from_numpy(self.spacing[images])
        if self.originals is not None and draw is None:
            out["original"] = self.originals.take(images)
        return out

    @cached_property
    def _patcher(self) -> Patcher | None:
        if self.patches is None or not isinstance(self.pixels, Volumes) or not isinstance(self.masks, Volumes):
            return None
        return Patcher(self.pixels, self.masks, self.patches)

    def _of_volumes(self, patcher: Patcher, images: Any, person: torch.Tensor, draw: torch.Generator | None) -> dict[str, Any]:
        """Patches in training; without ``draw`` the whole images, as one tensor or as ``Several``."""
        import torch

        from fedml.tasks.several import stacked

        if draw is not None:
            drawn = [pair for at in images.tolist() for pair in patcher.patches(at, draw)]
            image, mask = ([pair[k] for pair in drawn] for k in (0, 1))
            person = person.repeat_interleave(patcher.spec.per_step)
        else:
            image, mask = ([side.read(at) for at in images.tolist()] for side in (patcher.pixels, patcher.masks))
        blank = torch.zeros(0, *self.shape)
        out = {"image": stacked(image) if image else blank, "image_person": person, "mask": stacked(mask) if mask else blank[:, :1].byte()}
        if self.spacing is not None and draw is None:
            out["image_spacing"] = torch.from_numpy(self.spacing[images])
        if self.originals is not None and draw is None:
            out["original"] = self.originals.take(images)
        return out

    def select(self, rows: Rows) -> Images:
        """The images of these persons, without the list of excluded images."""
        kept, person = rows_of_items(self.person, rows)
        masks = None if self.masks is None else select_images(self.masks, kept)
        spacing = None if self.spacing is None else self.spacing[kept]
        originals = None if self.originals is None else self.originals.take(kept)
        return Images(select_images(self.pixels, kept), person, masks, spacing, originals=originals, patches=self.patches, drawn=self.drawn)

    def content(self) -> dict[str, bytes]:
        """Pixels, masks, persons, spacings, and the masks as the files have them."""
        found: dict[str, Any] = {"image": self.pixels, "mask": self.masks, "image_person": self.person, "image_spacing": self.spacing}
        found["image_original"] = self.originals
        return {key: content_of(values) for key, values in found.items() if values is not None}


def pool_images(parts: Sequence[tuple[Images | None, int]]) -> Images:
    """The images of several sites, concatenated; each with the number of persons of its site. At least one site has images."""
    start = np.cumsum([0, *(persons for _, persons in parts)])
    pairs = [(images, int(s)) for (images, _), s in zip(parts, start, strict=False) if images is not None]
    masks, spacings = [i.masks for i, _ in pairs if i.masks is not None], [i.spacing for i, _ in pairs if i.spacing is not None]
    whole = [i.originals for i, _ in pairs if i.originals is not None]
    return Images(
        concat_images([i.pixels for i, _ in pairs]),
        np.concatenate([i.person + s for i, s in pairs]),
        concat_images(masks) if len(masks) == len(pairs) else None,
        np.concatenate(spacings) if len(spacings) == len(pairs) else None,
        originals=concat_originals(whole) if len(whole) == len(pairs) else None,
        patches=pairs[0][0].patches,
        drawn=pairs[0][0].drawn,
    )
