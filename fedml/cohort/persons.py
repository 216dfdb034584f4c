"""The cohort of one site: its persons with all that a study reads of them, one row a person; genotypes and prepared images stay on disk.

``cohort[i]`` is a MONAI-style dictionary of tensors; ``cohort.batch(rows)`` the same for many persons at once. In both:

    label              class index (int64), or the number itself for regression (float32)
    clinical           (persons, columns) float32, NaN where missing; clinical_present (persons,) float32
    variants           (persons, panel) ALT dosage, int8 or float32, -1 where missing; variants_present (persons,) float32
    image              (images, channels, *size), image_person (images,) the row in the batch; image_present (persons,) float32;
                       of slides a ``fedml.cohort.slides.cohort.Bag``, which reads its tiles when it is gone through
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.histograms import Counted
from fedml.cohort.images.mapped import Mapped, joined, taken
from fedml.cohort.read_images import Images
from fedml.cohort.slides.cohort import Slides, pool_slides
from fedml.cohort.variants.genotypes import shared_panel
from fedml.cohort.variants.genotypes import stack as stack_dosages
from fedml.cohort.variants.harmonise import align
from fedml.cohort.variants.model import Dosages, Variant, to_text
from fedml.study.sections import PARTS, PartName
from fedml.study.study import Study

if TYPE_CHECKING:
    import torch

_FLOAT_BYTES = 2**30
Batch = dict[str, Any]  # of tensors


@dataclass(frozen=True, eq=False)
class Cohort:
    """Persons of one site who have a label and at least one of the study's inputs. ``left_out`` counts the others by reason,
    ``set_aside`` persons with an image that could not be used (``fedml.cohort.images.reasons``). ``groups``: see
    ``fedml.cohort.groups``."""

    site: str
    ids: tuple[str, ...]
    labels: npt.NDArray[np.float64]
    parts: npt.NDArray[np.int8]
    clinical: npt.NDArray[np.float64] | None = None
    clinical_present: npt.NDArray[np.bool_] | None = None
    variants: Dosages | None = None
    images: Images | None = None
    slides: Slides | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    set_aside: dict[str, int] = field(default_factory=dict)
    groups: dict[str, npt.NDArray[np.int16]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, part: PartName) -> npt.NDArray[np.int64]:
        """Rows of the persons in ``part``."""
        return np.flatnonzero(self.parts == PARTS.index(part))

    def count(self, part: PartName) -> int:
        """Persons in ``part``."""
        return int((self.parts == PARTS.index(part)).sum())

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(channels, *size) of an image or a tile; empty where there are none."""
        found = self.images or self.slides
        return () if found is None else found.shape

    def __getitem__(self, row: int) -> Batch:
        """One person: as a batch, without the axis over persons (the one over the person's images stays)."""
        batch = self.batch([row])
        return {k: v if k in ("image", "image_person") else v[0] for k, v in batch.items()}

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all that was read of the persons, 32 bytes: the same data give the same; who has them can tell, nobody else."""
        sha256 = hashlib.sha256("\n".join(self.ids).encode())
        tables = (self.labels, self.parts, self.clinical, *self.groups.values())
        dosage = None if self.variants is None else self.variants.dosage
        images = () if self.images is None else (self.images.pixels, self.images.masks, self.images.person, self.images.spacing)
        for values in (*tables, dosage, *images, self.slides):
            sha256.update(b"-" if values is None else _content(values))
        if self.variants is not None:
            sha256.update(to_text(self.variants.keys))
        return sha256.digest()

    @cached_property
    def _tensors(self) -> Batch:
        import torch

        out: Batch = {"label": torch.from_numpy(self.labels.astype(np.float32))}
        if self.clinical is not None and self.clinical_present is not None:
            out["clinical"] = torch.from_numpy(self.clinical.astype(np.float32))
            out["clinical_present"] = torch.from_numpy(self.clinical_present.astype(np.float32))
        if self.variants is not None:
            out["variants_present"] = torch.from_numpy(self.variants.present.astype(np.float32))
        if self.images is not None:
            has = np.bincount(self.images.person, minlength=len(self)) > 0
            out["image_present"] = torch.from_numpy(has.astype(np.float32))
        if self.slides is not None:
            out["image_present"] = torch.from_numpy(np.isin(np.arange(len(self)), self.slides.person).astype(np.float32))
        return out

    @cached_property
    def _pixels(self) -> tuple[torch.Tensor | Mapped | Counted, npt.NDArray[np.int64] | None]:
        """Images as one tensor, or as a view of a cache, and where each person's begin (one more entry closes the last); None if each
        person has exactly one."""
        import torch

        assert self.images is not None  # noqa: S101 - for the type checker; callers have asked
        stored = self.images.pixels
        pixels = torch.from_numpy(stored) if isinstance(stored, np.ndarray) else stored
        # As floats once instead of in every batch, unless that would be large.
        if isinstance(pixels, torch.Tensor) and pixels.numel() * 4 <= _FLOAT_BYTES:
            pixels = pixels.float()
        if np.array_equal(self.images.person, np.arange(len(self))):
            return pixels, None
        return pixels, np.searchsorted(self.images.person, np.arange(len(self) + 1))

    def batch(self, rows: Sequence[int] | npt.NDArray[np.int64], draw: torch.Generator | None = None) -> Batch:
        """The persons in ``rows``, in that order; see the module's text for keys and shapes. With ``draw``, of each person's tiles no more
        than the study has in a step of training."""
        import torch

        chosen = np.asarray(rows, dtype=np.int64)
        at = torch.from_numpy(chosen)
        out = {key: values[at] for key, values in self._tensors.items()}
        if self.variants is not None:
            dosage = self.variants.dosage
            out["variants"] = torch.from_numpy(dosage[chosen] if isinstance(dosage, np.ndarray) else dosage.floats(chosen))
        if self.images is not None:
            pixels, begin = self._pixels
            images = chosen
            if begin is None:
                out["image_person"] = torch.arange(len(at))
            else:
                count = begin[chosen + 1] - begin[chosen]
                images = np.concatenate([np.arange(begin[r], begin[r + 1]) for r in chosen] or [np.zeros(0, np.int64)])
                out["image_person"] = torch.from_numpy(np.repeat(np.arange(len(chosen)), count))
            out["image"] = (
                pixels[torch.from_numpy(images)].float() if isinstance(pixels, torch.Tensor) else torch.from_numpy(pixels[images])
            )
            if self.images.masks is not None:
                out["mask"] = torch.from_numpy(self.images.masks[images])
            if self.images.spacing is not None:
                out["image_spacing"] = torch.from_numpy(self.images.spacing[images])
        if self.slides is not None:
            bag = self.slides.bag(chosen, draw)
            out["image"], out["image_person"] = bag, torch.from_numpy(bag.person)
        return out


def _content(values: Any) -> bytes:
    """Bytes that stand for an array: a digest of its own, or of its numbers with shape and type."""
    if hasattr(values, "digest"):
        return bytes(values.digest)
    plain = np.ascontiguousarray(values)
    return hashlib.sha256(f"{plain.dtype.str}{plain.shape}".encode() + hashlib.sha256(plain.data).digest()).digest()


def keep(cohort: Cohort, study: Study) -> Cohort:
    """``cohort`` without persons who lack a label or every input of the study; ``left_out`` says how many and why."""
    has = np.zeros(len(cohort), dtype=bool)
    if cohort.clinical_present is not None:
        has |= cohort.clinical_present
    if cohort.variants is not None:
        has |= cohort.variants.present
    if cohort.images is not None:
        has |= np.bincount(cohort.images.person, minlength=len(cohort)) > 0
    if cohort.slides is not None:
        has |= np.isin(np.arange(len(cohort)), cohort.slides.person)
    labelled = ~np.isnan(cohort.labels)
    left_out = {"no label": int((~labelled).sum()), "no input": int((labelled & ~has).sum())}
    return replace(select(cohort, np.flatnonzero(labelled & has)), left_out={k: v for k, v in left_out.items() if v})


def select(cohort: Cohort, rows: npt.NDArray[np.int64]) -> Cohort:
    """The persons in ``rows``, which are in ascending order."""
    if len(rows) == len(cohort):
        return cohort
    new_row = np.full(len(cohort), -1)
    new_row[rows] = np.arange(len(rows))
    images = variants = None
    if cohort.images is not None:
        kept = new_row[cohort.images.person] >= 0
        own_images = cohort.images
        images = Images(
            taken(own_images.pixels, kept),
            new_row[own_images.person[kept]],
            None if own_images.masks is None else taken(own_images.masks, kept),
            None if own_images.spacing is None else own_images.spacing[kept],
        )
    if cohort.variants is not None:
        own = cohort.variants
        dosage = own.dosage[rows] if isinstance(own.dosage, np.ndarray) else own.dosage.take(rows)
        variants = replace(own, dosage=dosage, present=own.present[rows])
    return replace(
        cohort,
        ids=tuple(cohort.ids[r] for r in rows),
        labels=cohort.labels[rows],
        parts=cohort.parts[rows],
        clinical=None if cohort.clinical is None else cohort.clinical[rows],
        clinical_present=None if cohort.clinical_present is None else cohort.clinical_present[rows],
        variants=variants,
        images=images,
        groups={name: codes[rows] for name, codes in cohort.groups.items()},
        slides=None if cohort.slides is None else cohort.slides.select(new_row),
    )


def aligned(cohort: Cohort, panel: Sequence[Variant], flips: npt.NDArray[np.uint8], study: Study) -> Cohort:
    """``cohort`` with its variants in the panel's order, turned where ``flips`` (panel,) is 1."""
    if cohort.variants is None:
        return cohort
    return replace(cohort, variants=align(cohort.variants, panel, flips, study.cohort.variants.match))


def pool(cohorts: Sequence[Cohort], study: Study, site: str = "pooled") -> Cohort:
    """All persons of several sites as one: what a federation is compared with. A person at two sites stands twice, as there."""
    own = {c.site: c.variants for c in cohorts if c.variants is not None}
    if own:
        panel = shared_panel(own, study.cohort.variants, counted=study.privacy.unit == "none")
        cohorts = [aligned(c, panel.keys, panel.flips.get(c.site, np.zeros(0, np.uint8)), study) for c in cohorts]

    def stack(parts: list[npt.NDArray[Any] | None], width: tuple[int, ...], fill: float, dtype: Any) -> npt.NDArray[Any] | None:
        if all(p is None for p in parts):
            return None
        blanks = (np.full((len(c), *width), fill, dtype) for c in cohorts)
        return np.concatenate([b if p is None else p for p, b in zip(parts, blanks, strict=True)])

    columns = len(study.cohort.clinical.columns) if study.cohort.clinical else 0
    variants = images = None
    if own:
        variants = stack_dosages([(c.variants, len(c)) for c in cohorts], panel)
    start = np.cumsum([0, *(len(c) for c in cohorts)])
    slides = [(c.slides, int(s)) for c, s in zip(cohorts, start, strict=False) if c.slides is not None]
    if any(c.images for c in cohorts):
        pairs = [(c.images, s) for c, s in zip(cohorts, start, strict=False) if c.images is not None]
        masks, spacings = [i.masks for i, _ in pairs if i.masks is not None], [i.spacing for i, _ in pairs if i.spacing is not None]
        images = Images(
            joined([i.pixels for i, _ in pairs]),
            np.concatenate([i.person + s for i, s in pairs]),
            joined(masks) if len(masks) == len(pairs) else None,
            np.concatenate(spacings) if len(spacings) == len(pairs) else None,
        )
    return Cohort(
        site=site,
        ids=tuple(f"{c.site}/{i}" for c in cohorts for i in c.ids),
        labels=np.concatenate([c.labels for c in cohorts]),
        parts=np.concatenate([c.parts for c in cohorts]),
        clinical=stack([c.clinical for c in cohorts], (columns,), np.nan, np.float64),
        clinical_present=stack([c.clinical_present for c in cohorts], (), 0, bool),
        variants=variants,
        images=images,
        groups={name: np.concatenate([c.groups[name] for c in cohorts]) for name in cohorts[0].groups},
        slides=pool_slides(slides) if slides else None,
    )
