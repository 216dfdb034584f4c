"""Why one item of a person (an image, a mask) is set aside while the run goes on.

try: volume = read_series(files)
except ItemError as error: aside[error.reason] += 1  # the text stays at the site
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Unusable(StrEnum):
    """The code is what may be counted and told; it names no person and no file."""

    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    NOT_AN_IMAGE = "not-an-image"
    COMPRESSED = "compressed"  # no decoder for it here, or the decoder refuses the data
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
    NO_MASK = "no-mask"  # not at fault: nobody drew one


class ItemError(Exception):
    """One item cannot be used. ``reason`` may leave the site; ``str()``, which names the file, never does."""

    def __init__(self, reason: Unusable, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Aside:
    """An item that was set aside: whose it is, which file, why in a code and in words. Kept at the site."""

    person: str
    file: str
    reason: Unusable
    text: str
