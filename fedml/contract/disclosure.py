"""Information that a site discloses in addition to its data: its policy, how far it trusts the centre, the code by which it answers, a
digest of its data, the persons with an excluded image.

It is evidence for readers of the run; no decision depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedml.cohort.images.reasons import Unusable

HIDDEN = -1  # in place of a count from 1 to min_count - 1
_LARGEST = 4096  # bytes
Number = Annotated[int, Field(ge=1, le=2**53)]


class DisclosedPolicy(BaseModel):
    """The part of a site's ``[policy]`` that the site discloses (``disclose = true``)."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    min_persons: Number
    min_count: Number
    max_rounds: Number
    max_epsilon: Annotated[float, Field(ge=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    allow_unprotected: bool
    deidentification: Literal["refuse", "strict", "quarantine", "warn"]
    max_quarantined: Annotated[float, Field(ge=0, le=1)]
    centre: Literal["distrusted", "curious", "trusted"] | None = Field(default=None, description="None: the site does not say it")
    public: bool = False
    trust: Annotated[str, Field(max_length=120)] = Field(default="", description="why the approver trusts the centre with this study")
    code_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        default="", description="SHA-256 of the files of this software at the site; empty: the site does not say it"
    )

    @field_validator("trust")
    @classmethod
    def _printable(cls, text: str) -> str:
        if not text.isprintable():
            raise ValueError("is shown to readers, so it is printable")
        return text


def trust_text(policy: Mapping[str, Any]) -> str:
    """How far a site trusted the centre that chose the messages, for a reader; ``policy``: a ``DisclosedPolicy`` as a dictionary."""
    centre = policy.get("centre")
    if centre == "trusted":
        return f"trusted: {policy.get('trust') or 'no reason is given'}"
    if policy.get("public"):
        return "public data"
    return str(centre or "not stated")


def policy_bytes(policy: DisclosedPolicy) -> npt.NDArray[np.uint8]:
    """The wire form: canonical JSON."""
    return np.frombuffer(json.dumps(policy.model_dump(), sort_keys=True).encode(), np.uint8)


def read_policy(data: npt.NDArray[Any]) -> DisclosedPolicy:
    """The inverse.

    Raises:
        ValueError: the data are not a disclosed policy.
    """
    if data.dtype != np.uint8 or data.ndim != 1 or data.size > _LARGEST:
        raise ValueError("a disclosed policy must be a short text")
    try:
        return DisclosedPolicy.model_validate_json(data.tobytes())
    except ValidationError as error:
        raise ValueError("a disclosed policy must have exactly its keys") from error


def excluded_counts(persons: Mapping[str, int], min_count: int) -> npt.NDArray[np.int64]:
    """Persons for each reason, in the order of ``Unusable``; ``HIDDEN`` for counts from 1 to ``min_count`` - 1."""
    counts = np.array([persons.get(str(reason), 0) for reason in Unusable], np.int64)
    return np.where((counts > 0) & (counts < min_count), HIDDEN, counts)


def read_excluded_counts(counts: npt.NDArray[Any]) -> dict[str, int]:
    """Reason -> persons (``HIDDEN``: suppressed), without zero counts."""
    return {str(reason): int(count) for reason, count in zip(Unusable, counts.tolist(), strict=True) if count}
