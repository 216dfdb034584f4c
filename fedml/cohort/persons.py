"""The cohort of one site: its persons with all that a study reads of them, one row a person; genotypes and prepared images stay on disk.

``cohort[i]`` is a MONAI-style dictionary of tensors; ``cohort.batch(rows)`` the same for many persons at once. In both:

    label              class index (int64), or the number itself for regression (float32)
    <input>_present    (persons,) float32: has the person that input?

and of each input what its own value gives (``fedml.cohort.inputs.Input.tensors``):

    clinical, omics    (persons, columns) float32, NaN where missing
    variants           (persons, panel) ALT dosage, int8 or float32, -1 where missing
    image              (images, channels, *size), image_person (images,) the row in the batch;
                       of slides a ``fedml.cohort.slides.cohort.Bag``, which reads its tiles when it is gone through
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from fedml.cohort.images.images import Images
from fedml.cohort.inputs import Input, content_of
from fedml.cohort.slides.cohort import Slides
from fedml.cohort.variants.harmonise import align
from fedml.cohort.variants.model import Dosages, Variant
from fedml.study.section import PARTS, PartName
from fedml.study.study import Study

if TYPE_CHECKING:
    import torch

Batch = dict[str, Any]  # of tensors
Kind = TypeVar("Kind")
# Parts of an input's content in the order in which the digest was first defined: a run's record holds such digests, and they are compared.
# A part that is absent counts as "-", those of images where there are no images as nothing. Parts of other inputs follow by name.
_OF_IMAGES, _KEYS = ("image", "mask", "image_person", "image_spacing"), "variant_keys"


@dataclass(frozen=True, eq=False)
class Cohort:
    """Persons of one site who have a label and at least one of the study's inputs. ``inputs``: by name, those that the site has.
    ``left_out`` counts the others by reason, ``set_aside`` persons with an image that could not be used (``fedml.cohort.images.reasons``).
    ``groups``: see ``fedml.cohort.groups``."""

    site: str
    ids: tuple[str, ...]
    labels: npt.NDArray[np.float64]
    parts: npt.NDArray[np.int8]
    inputs: dict[str, Input] = field(default_factory=dict)
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

    def input(self, name: str, kind: type[Kind]) -> Kind | None:
        """The input of that name as a ``kind``, such as ``("image", Images)``; None where the site has none, or one of another kind."""
        found = self.inputs.get(name)
        return found if isinstance(found, kind) else None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(channels, *size) of an image or a tile; empty where there are none."""
        found = self.input("image", Images) or self.input("image", Slides)
        return () if found is None else found.shape

    def __getitem__(self, row: int) -> Batch:
        """One person: as a batch, without the axis over persons (the one over the person's images stays)."""
        batch = self.batch([row])
        several = {key for name in self.inputs if f"{name}_person" in batch for key in (name, f"{name}_person")}
        return {k: v if k in several else v[0] for k, v in batch.items()}

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all that was read of the persons, 32 bytes: the same data give the same; who has them can tell, nobody else."""
        content = {key: part for one in self.inputs.values() for key, part in one.content().items()}
        sha256 = hashlib.sha256("\n".join(self.ids).encode())
        sha256.update(content_of(self.labels) + content_of(self.parts) + content.pop("clinical", b"-"))
        for codes in self.groups.values():
            sha256.update(content_of(codes))
        for key in ("variants", *(_OF_IMAGES if "image" in content else ()), "slides"):
            sha256.update(content.pop(key, b"-"))
        sha256.update(content.pop(_KEYS, b""))
        for key in sorted(content):
            sha256.update(f"{key}:".encode() + content[key])
        return sha256.digest()

    @cached_property
    def _tensors(self) -> Batch:
        """Label and presence of all persons."""
        import torch

        out: Batch = {"label": torch.from_numpy(self.labels.astype(np.float32))}
        return out | {f"{k}_present": torch.from_numpy(one.has(len(self)).astype(np.float32)) for k, one in self.inputs.items()}

    def batch(self, rows: Sequence[int] | npt.NDArray[np.int64], draw: torch.Generator | None = None) -> Batch:
        """The persons in ``rows``, in that order; see the module's text for keys and shapes. With ``draw``, of each person's tiles no more
        than the study has in a step of training."""
        import torch

        chosen = np.asarray(rows, dtype=np.int64)
        at = torch.from_numpy(chosen)
        out = {key: values[at] for key, values in self._tensors.items()}
        for one in self.inputs.values():
            out |= one.tensors(chosen, draw)
        return out


def with_inputs(cohort: Cohort, **inputs: Input) -> Cohort:
    """``cohort`` with these inputs in the place of its own of the same names."""
    return replace(cohort, inputs={**cohort.inputs, **inputs})


def drop_unusable_persons(cohort: Cohort) -> Cohort:
    """``cohort`` without persons who lack a label or every input of the study; ``left_out`` says how many and why."""
    has = np.zeros(len(cohort), dtype=bool)
    for one in cohort.inputs.values():
        has |= one.has(len(cohort))
    labelled = ~np.isnan(cohort.labels)
    left_out = {"no label": int((~labelled).sum()), "no input": int((labelled & ~has).sum())}
    return replace(select(cohort, np.flatnonzero(labelled & has)), left_out={k: v for k, v in left_out.items() if v})


def select(cohort: Cohort, rows: npt.NDArray[np.int64]) -> Cohort:
    """The persons in ``rows``, which are in ascending order."""
    if len(rows) == len(cohort):
        return cohort
    return replace(
        cohort,
        ids=tuple(cohort.ids[r] for r in rows),
        labels=cohort.labels[rows],
        parts=cohort.parts[rows],
        inputs={name: one.select(rows) for name, one in cohort.inputs.items()},
        groups={name: codes[rows] for name, codes in cohort.groups.items()},
    )


def aligned(cohort: Cohort, panel: Sequence[Variant], flips: npt.NDArray[np.uint8], study: Study) -> Cohort:
    """``cohort`` with its variants in the panel's order, turned where ``flips`` (panel,) is 1."""
    dosages = cohort.input("variants", Dosages)
    return cohort if dosages is None else with_inputs(cohort, variants=align(dosages, panel, flips, study.cohort.variants.match))
