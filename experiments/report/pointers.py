"""JSON Pointers (RFC 6901) into the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def resolve(found: Mapping[str, Any], pointer: str) -> Any:
    """The value at a JSON Pointer; raises ``KeyError`` or ``IndexError`` if there is none."""
    value: Any = found
    for word in pointer.split("/")[1:]:
        key = word.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def pointer(*keys: str | int) -> str:
    """A JSON Pointer to ``keys``."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)
