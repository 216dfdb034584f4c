"""The sizes of a model that depend on the data and not on the study."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from fedml.cohort.scores.genes import group
from fedml.cohort.variants.keys import from_text
from fedml.study.genes import Interval
from fedml.study.study import Study


@dataclass(frozen=True)
class Layout:
    """The sizes that depend on the data: (channels, *size) of an image, the number of variants in the shared panel, and for
    ``net = "genes"`` the gene of each variant (``fedml.cohort.scores.genes.group``)."""

    image_shape: tuple[int, ...] = ()
    variants: int = 0
    groups: tuple[int, ...] = ()


@lru_cache(maxsize=8)
def make_layout(study: Study, image_shape: tuple[int, ...], panel: bytes) -> Layout:
    """The layout for a panel in its wire form (``fedml.cohort.variants.model.to_text``)."""
    groups: tuple[int, ...] = ()
    if study.model.variants.net == "genes":
        groups = tuple(group(from_text(panel), [Interval(*i) for i in study.model.variants.intervals])[1].tolist())
    return Layout(image_shape, panel.count(b"\n"), groups)
