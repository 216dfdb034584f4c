"""What a site says of itself beside its data: the policy in force, a digest of what was read, how many persons have an image set aside.

They are evidence for whoever reads the run, and no more than that: nothing is decided by them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedml.cohort.images.reasons import Unusable

HIDDEN = -1  # in place of a count from 1 to min_count - 1
_LARGEST = 4096  # bytes
Number = Annotated[int, Field(ge=1, le=2**53)]


class DisclosedPolicy(BaseModel):
    """The part of a site's ``[policy]`` that it tells (``disclose = true``)."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    min_persons: Number
    min_count: Number
    max_rounds: Number
    max_epsilon: Annotated[float, Field(ge=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    allow_unprotected: bool
    deidentification: Literal["refuse", "quarantine", "warn"]
    max_quarantined: Annotated[float, Field(ge=0, le=1)]


def policy_bytes(policy: DisclosedPolicy) -> npt.NDArray[np.uint8]:
    """As it crosses the wire: canonical JSON."""
    return np.frombuffer(json.dumps(policy.model_dump(), sort_keys=True).encode(), np.uint8)


def read_policy(data: npt.NDArray[Any]) -> DisclosedPolicy:
    """The inverse.

    Raises:
        ValueError: it is none.
    """
    if data.dtype != np.uint8 or data.ndim != 1 or data.size > _LARGEST:
        raise ValueError("a disclosed policy is a short text")
    try:
        return DisclosedPolicy.model_validate_json(data.tobytes())
    except ValidationError as error:
        raise ValueError("a disclosed policy has exactly its keys") from error


def excluded_counts(persons: Mapping[str, int], min_count: int) -> npt.NDArray[np.int64]:
    """Persons a reason, in the order of ``Unusable``; ``HIDDEN`` where they are fewer than ``min_count`` and not none."""
    counts = np.array([persons.get(str(reason), 0) for reason in Unusable], np.int64)
    return np.where((counts > 0) & (counts < min_count), HIDDEN, counts)


def read_excluded_counts(counts: npt.NDArray[Any]) -> dict[str, int]:
    """Reason -> persons (``HIDDEN``: a few), without those of nobody."""
    return {str(reason): int(count) for reason, count in zip(Unusable, counts.tolist(), strict=True) if count}
