"""What an algorithm adds to the messages of a round: config keys and records beyond those that the phase itself has.

The declaration comes from the study's algorithm (``fedml.strategies.algorithms.algorithm``) as a plain value. What it does not declare
passes in neither direction; what it declares must be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fedml.errors import Reason, SiteError
from fedml.wire.records import CONFIG, REQUEST_CONFIG, REQUEST_RECORDS, Phase, array_record, config_record, holds, unpack

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Extras:
    """Config keys with their types, and records: name -> array -> shape. All arrays are float32. ``optional``: keys that may be absent."""

    config: Mapping[str, type]
    records: Mapping[str, Shapes]
    optional: Mapping[str, type] = field(default_factory=dict)


NO_EXTRAS = Extras({}, {})


def check_message(phase: Phase, content: RecordDict, extras: Extras) -> None:
    """Raises ``SiteError`` unless a message holds exactly the records of its phase and of ``extras``, and declared config keys."""
    expected = REQUEST_RECORDS[phase] | extras.records.keys()
    if set(content) != expected:
        raise SiteError(Reason.UNDECLARED, f"records are {sorted(content)}, expected {sorted(expected)}")
    if not holds(content, CONFIG, ConfigRecord):
        raise SiteError(Reason.BAD_MESSAGE, f"{CONFIG} is not a config record")
    config, kinds = config_record(content, CONFIG), {**REQUEST_CONFIG, **extras.optional, **extras.config}
    for key, value in config.items():
        kind = kinds.get(key)
        if kind is None or isinstance(value, bool) or not isinstance(value, kind):
            raise SiteError(Reason.UNDECLARED, "the config holds a key or type that is not declared")
    if missing := sorted(extras.config.keys() - config.keys()):
        raise SiteError(Reason.UNDECLARED, f"the config lacks {missing[0]}, which the study's algorithm sends")
    check_records(content, extras)


def check_records(content: RecordDict, extras: Extras) -> None:
    """Raises ``SiteError`` unless each extra record is there with its arrays' names and shapes, in float32, and finite."""
    for name, shapes in extras.records.items():
        arrays = _arrays(content, name)
        if arrays.keys() != shapes.keys():
            raise SiteError(Reason.UNDECLARED, f"the arrays of {name} have other names than declared")
        for key, value in arrays.items():
            if value.dtype != np.float32 or value.shape != tuple(shapes[key]):
                raise SiteError(Reason.UNDECLARED, f"an array of {name} has another shape or type than declared")
            if not np.isfinite(value).all():
                raise SiteError(Reason.NON_FINITE, f"an array of {name} is not finite")


def shapes_of(content: RecordDict, name: str) -> Shapes:
    """Array -> shape of record ``name``. Raises ``SiteError`` if it is not there or cannot be read."""
    return {key: value.shape for key, value in _arrays(content, name).items()}


def _arrays(content: RecordDict, name: str) -> dict[str, Any]:
    try:
        return unpack(array_record(content, name))
    except (KeyError, ValueError, TypeError) as error:
        raise SiteError(Reason.BAD_MESSAGE, f"{name} cannot be read: {error}") from error
