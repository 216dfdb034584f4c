"""Reasons to exclude an item of a person (an image, a mask) while the run continues.

try: volume = read_series(files)
except ItemError as error: excluded[error.reason] += 1  # the text stays at the site
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from fedml.errors import InputError


class Unusable(StrEnum):
    """Reason codes. Counts by code may leave the site; a code names no person and no file."""

    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    NOT_AN_IMAGE = "not-an-image"
    COMPRESSED = "compressed"  # no decoder is installed, or the decoder refuses the data
    GAP = "gap"
    DUPLICATE_SLICES = "duplicate-slices"
    MIXED_SERIES = "mixed-series"
    GEOMETRY = "geometry"
    RESCALE = "rescale"
    NON_FINITE = "non-finite"
    WRONG_LENGTH = "wrong-length"
    TOO_LARGE = "too-large"
    MASK_MISMATCH = "mask-mismatch"
    OVERLAPPING_SEGMENTS = "overlapping-segments"
    NOT_DE_IDENTIFIED = "not-de-identified"
    NO_TISSUE = "no-tissue"
    NO_MASK = "no-mask"  # not an error: the image has no mask file
    CONSTANT = "constant"  # every voxel has the same value
    SEVERAL_SERIES = "several-series"  # of a person, where the study wants one
    EMPTY_MASK = "empty-mask"  # the mask has no voxel of the region whose features are computed
    SMALL_REGION = "small-region"  # the region is a point or a line
    NO_SERIES = "no-series"  # of a person is what the study selects


class ItemError(Exception):
    """An item cannot be used. ``reason`` may leave the site; ``str(error)``, which names the file, does not."""

    def __init__(self, reason: Unusable, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Exclusion:
    """An excluded item: person, file, reason code and error text. Stays at the site."""

    person: str
    file: str
    reason: Unusable
    text: str


class TooManyExcluded(InputError):
    """More persons have an unusable image than the site's policy allows; ``excluded``: all excluded images."""

    def __init__(self, text: str, excluded: tuple[Exclusion, ...] = ()) -> None:
        super().__init__(text)
        self.excluded = excluded


def check_exclusion_limit(excluded: Sequence[Exclusion], persons: int, limit: float) -> None:
    """Raises ``TooManyExcluded`` if the affected persons exceed the fraction ``limit`` of ``persons``. A mask, or a series of the kind that
    the study selects, that a person does not have is not an error."""
    errors = [exclusion for exclusion in excluded if exclusion.reason not in (Unusable.NO_MASK, Unusable.NO_SERIES)]
    affected = len({exclusion.person for exclusion in errors})
    if errors and affected > limit * persons:
        counts = f"{affected} of {persons} persons with images have an unusable image, [policy] max_quarantined is {limit:g}"
        raise TooManyExcluded(f"{errors[0].text.rstrip('.')} ({counts}).", tuple(excluded))
