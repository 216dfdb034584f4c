"""The cohort of one site: its persons with all inputs of the study, one row for each person. Genotypes and prepared images stay on disk.

``cohort[i]`` is a MONAI-style dictionary of tensors of one person; ``cohort.batch(rows)`` is a dictionary of several persons. Keys:

    label              (persons,) or (persons, numbers) float32: number of the class, the number itself, or what else the task predicts
    <input>_present    (persons,) float32: 1 if the person has the input

and the tensors of each input (``fedml.cohort.inputs.Input.tensors``):

    clinical, omics    (persons, columns) float32, NaN where missing
    variants           (persons, panel) ALT dosage, int8 or float32, -1 where missing
    image              (images, channels, *size), image_person (images,) the row in the batch;
                       for slides a ``fedml.cohort.slides.cohort.Bag``, which reads its tiles when iterated, or features (tiles, width)
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
from fedml.cohort.slides.features import SlideFeatures
from fedml.cohort.variants.harmonise import align
from fedml.cohort.variants.keys import Variant
from fedml.cohort.variants.model import Dosages
from fedml.study.section import PARTS, PartName
from fedml.study.study import Study

if TYPE_CHECKING:
    import torch

Batch = dict[str, Any]  # of tensors
Kind = TypeVar("Kind")
# Parts of an input's content in the order of the digest's definition. The order must not change, because records of runs contain digests
# that are compared. A missing part is hashed as "-", a missing image part is skipped. Parts of other inputs follow by name.
_OF_IMAGES, _KEYS = ("image", "mask", "image_person", "image_spacing"), "variant_keys"


@dataclass(frozen=True, eq=False)
class Cohort:
    """Persons of one site who have a label and at least one of the study's inputs. ``inputs``: the site's inputs by name.
    ``excluded``: reason -> excluded persons. ``excluded_images``: reason -> persons with an excluded image.
    ``groups``: see ``fedml.cohort.groups``. ``clusters``: (persons,) number of each person's cluster, if the study has clusters."""

    site: str
    ids: tuple[str, ...]
    labels: npt.NDArray[np.float64]
    parts: npt.NDArray[np.int8]
    inputs: dict[str, Input] = field(default_factory=dict)
    excluded: dict[str, int] = field(default_factory=dict)
    excluded_images: dict[str, int] = field(default_factory=dict)
    groups: dict[str, npt.NDArray[np.int16]] = field(default_factory=dict)
    clusters: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, part: PartName) -> npt.NDArray[np.int64]:
        """Rows of the persons in ``part``."""
        return np.flatnonzero(self.parts == PARTS.index(part))

    def count(self, part: PartName) -> int:
        """Persons in ``part``."""
        return int((self.parts == PARTS.index(part)).sum())

    def input(self, name: str, kind: type[Kind]) -> Kind | None:
        """The input ``name``, such as ``("image", Images)``; None if the site does not have it, or it is not a ``kind``."""
        found = self.inputs.get(name)
        return found if isinstance(found, kind) else None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(channels, *size) of an image or a tile; empty without images."""
        found = self.input("image", Images) or self.input("image", Slides) or self.input("image", SlideFeatures)
        return () if found is None else found.shape

    def __getitem__(self, row: int) -> Batch:
        """One person: a batch without the axis over persons; the axis over the person's images stays."""
        batch = self.batch([row])
        several = {key for name in self.inputs if f"{name}_person" in batch for key in (name, f"{name}_person")}
        return {k: v if k in several else v[0] for k, v in batch.items()}

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all data that were read, 32 bytes. It can only be checked by a party that has the data."""
        content = {key: part for value in self.inputs.values() for key, part in value.content().items()}
        sha256 = hashlib.sha256("\n".join(self.ids).encode())
        sha256.update(content_of(self.labels) + content_of(self.parts) + content.pop("clinical", b"-"))
        for codes in self.groups.values():
            sha256.update(content_of(codes))
        if self.clusters is not None:
            sha256.update(content_of(self.clusters))
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
        return out | {f"{k}_present": torch.from_numpy(value.has(len(self)).astype(np.float32)) for k, value in self.inputs.items()}

    def batch(self, rows: Sequence[int] | npt.NDArray[np.int64], draw: torch.Generator | None = None) -> Batch:
        """The persons in ``rows``, in that order; keys and shapes as in the module's docstring. With ``draw``, a random sample of each
        person's tiles, as many as the study uses in a training step."""
        import torch

        chosen = np.asarray(rows, dtype=np.int64)
        at = torch.from_numpy(chosen)
        out = {key: values[at] for key, values in self._tensors.items()}
        for value in self.inputs.values():
            out |= value.tensors(chosen, draw)
        return out


def with_inputs(cohort: Cohort, **inputs: Input) -> Cohort:
    """``cohort`` with these inputs added or replaced."""
    return replace(cohort, inputs={**cohort.inputs, **inputs})


def has_label(labels: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """(persons,) of (persons,) or (persons, numbers): whether a person has any of them."""
    there: npt.NDArray[np.bool_] = ~np.isnan(labels if labels.ndim == 2 else labels[:, None])
    return np.asarray(there.any(1))


def drop_unusable_persons(cohort: Cohort) -> Cohort:
    """``cohort`` without persons who lack a label or every input of the study; ``excluded`` has the counts by reason."""
    has = np.zeros(len(cohort), dtype=bool)
    for value in cohort.inputs.values():
        has |= value.has(len(cohort))
    labelled = has_label(cohort.labels)
    excluded = {"no label": int((~labelled).sum()), "no input": int((labelled & ~has).sum())}
    return replace(select(cohort, np.flatnonzero(labelled & has)), excluded={k: v for k, v in excluded.items() if v})


def select(cohort: Cohort, rows: npt.NDArray[np.int64]) -> Cohort:
    """The persons in ``rows``, which are in ascending order."""
    if len(rows) == len(cohort):
        return cohort
    return replace(
        cohort,
        ids=tuple(cohort.ids[r] for r in rows),
        labels=cohort.labels[rows],
        parts=cohort.parts[rows],
        inputs={name: value.select(rows) for name, value in cohort.inputs.items()},
        groups={name: codes[rows] for name, codes in cohort.groups.items()},
        clusters=None if cohort.clusters is None else cohort.clusters[rows],
    )


def aligned(cohort: Cohort, panel: Sequence[Variant], flips: npt.NDArray[np.uint8], study: Study) -> Cohort:
    """``cohort`` with its variants in the panel's order; REF and ALT are exchanged where ``flips`` (panel,) is 1."""
    dosages = cohort.input("variants", Dosages)
    return cohort if dosages is None else with_inputs(cohort, variants=align(dosages, panel, flips, study.cohort.variants.match))
