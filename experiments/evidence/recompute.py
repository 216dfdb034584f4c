"""Comparison of a file of a bundle with the same file recomputed: one sentence about the first difference.

Numbers are compared with a tolerance of 1e-9, because another processor may round the last digit of a sum differently. All other text must
be identical.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from html import unescape
from typing import Any

_TOLERANCE = 1e-9
_NUMBER = re.compile(r"(?<![\w#])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w)", re.ASCII)
_TAG = re.compile(r"<[^>]*>")


def differs(name: str, given: bytes, fresh: bytes) -> str | None:
    """The first difference between the file ``name`` of a bundle and the recomputed file ``fresh``; None if there is none."""
    if given == fresh:
        return None
    if len(given) > 2 * len(fresh) + 65_536:
        return "is much longer than the recomputed file"
    try:
        text, right = given.decode(), fresh.decode()
        if name.endswith(".json"):
            return value_differs(json.loads(text), json.loads(right), "")
    except (ValueError, RecursionError):
        return "cannot be read"
    return text_differs(text, right)


def near(given: float, fresh: float, tolerance: float = _TOLERANCE) -> bool:
    """Whether the numbers are equal within ``tolerance``, relative to the larger (or absolute, if both are below 1)."""
    return given == fresh or (tolerance > 0 and math.isclose(given, fresh, rel_tol=tolerance, abs_tol=tolerance))


def value_differs(given: Any, fresh: Any, where: str, whole: bool = True, tolerance: float = _TOLERANCE) -> str | None:
    """The first difference between two JSON values. Unless ``whole``, ``fresh`` may have keys that ``given`` lacks."""
    if isinstance(fresh, Mapping) and isinstance(given, Mapping):
        if missing := [k for k in fresh if k not in given] if whole else []:
            return f"{where}/{missing[0]} is missing"
        for key, value in given.items():
            if key not in fresh:
                return f"{where}/{key} does not follow from the run"
            if found := value_differs(value, fresh[key], f"{where}/{key}", whole, tolerance):
                return found
        return None
    if isinstance(fresh, list | tuple) and isinstance(given, list | tuple):
        if len(given) != len(fresh):
            return f"{where} has {len(given)} values, the run gives {len(fresh)}"
        pairs = enumerate(zip(given, fresh, strict=True))
        return next((w for i, (a, b) in pairs if (w := value_differs(a, b, f"{where}/{i}", whole, tolerance))), None)
    if _number(given) and _number(fresh):
        return None if near(given, fresh, tolerance) else f"{where} is {given!r}, the run gives {fresh!r}"
    return None if type(given) is type(fresh) and given == fresh else f"{where} is {_short(given)}, the run gives {_short(fresh)}"


def text_differs(given: str, fresh: str) -> str | None:
    """The first difference between two texts, except in the last digits of a number."""
    at = past = 0
    for number, right in zip(_NUMBER.finditer(given), _NUMBER.finditer(fresh), strict=False):
        if given[at : number.start()] != fresh[past : right.start()]:
            break
        if number[0] != right[0] and not near(float(number[0]), float(right[0])):
            return f"has {number[0]}, the run gives {right[0]} ({_before(given, number.start())})"
        at, past = number.end(), right.end()
    if given[at:] == fresh[past:]:
        return None
    same = next(
        (i for i, (a, b) in enumerate(zip(given[at:], fresh[past:], strict=False)) if a != b), min(len(given) - at, len(fresh) - past)
    )
    given_part, fresh_part = given[at + same :][:40], fresh[past + same :][:40]
    return f"has {given_part!r}, the run gives {fresh_part!r} ({_before(given, at + same)})"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _before(text: str, at: int) -> str:
    """The words before position ``at``, without markup."""
    words = " ".join(unescape(_TAG.sub(" ", text[max(0, at - 600) : at])).split())
    return f"after {words[-60:]!r}" if words else "at the beginning"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
