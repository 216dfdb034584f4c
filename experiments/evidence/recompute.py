"""Is a text what it should be, and if not, where does it differ first? In one sentence for a reader.

Numbers are compared as numbers, to 1e-9: another processor may round the last digit of a sum otherwise. All the rest is compared to the
letter.
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


def differs(name: str, told: bytes, fresh: bytes) -> str | None:
    """What is wrong with the file ``name`` of a bundle, whose sources make ``fresh``; None if nothing is."""
    if told == fresh:
        return None
    if len(told) > 2 * len(fresh) + 65_536:
        return "is far longer than the run gives"
    try:
        text, right = told.decode(), fresh.decode()
        if name.endswith(".json"):
            return value_differs(json.loads(text), json.loads(right), "")
    except (ValueError, RecursionError):
        return "cannot be read"
    return text_differs(text, right)


def near(told: float, fresh: float, tolerance: float = _TOLERANCE) -> bool:
    """Are these the same number, within ``tolerance`` of the larger (or of 1, if both are smaller)?"""
    return told == fresh or (tolerance > 0 and math.isclose(told, fresh, rel_tol=tolerance, abs_tol=tolerance))


def value_differs(told: Any, fresh: Any, where: str, whole: bool = True, tolerance: float = _TOLERANCE) -> str | None:
    """The first place where two JSON values differ. Unless ``whole``, ``fresh`` may have keys that ``told`` lacks."""
    if isinstance(fresh, Mapping) and isinstance(told, Mapping):
        if missing := [k for k in fresh if k not in told] if whole else []:
            return f"{where}/{missing[0]} is missing"
        for key, value in told.items():
            if key not in fresh:
                return f"{where}/{key} does not follow from the run"
            if found := value_differs(value, fresh[key], f"{where}/{key}", whole, tolerance):
                return found
        return None
    if isinstance(fresh, list | tuple) and isinstance(told, list | tuple):
        if len(told) != len(fresh):
            return f"{where} has {len(told)} values where the run gives {len(fresh)}"
        pairs = enumerate(zip(told, fresh, strict=True))
        return next((w for i, (a, b) in pairs if (w := value_differs(a, b, f"{where}/{i}", whole, tolerance))), None)
    if _number(told) and _number(fresh):
        return None if near(told, fresh, tolerance) else f"{where} says {told!r} where the run gives {fresh!r}"
    return None if type(told) is type(fresh) and told == fresh else f"{where} says {_short(told)} where the run gives {_short(fresh)}"


def text_differs(told: str, fresh: str) -> str | None:
    """The first place where two texts differ, other than by the last digits of a number."""
    at = past = 0
    for here, right in zip(_NUMBER.finditer(told), _NUMBER.finditer(fresh), strict=False):
        if told[at : here.start()] != fresh[past : right.start()]:
            break
        if here[0] != right[0] and not near(float(here[0]), float(right[0])):
            return f"says {here[0]} where the run gives {right[0]} ({_before(told, here.start())})"
        at, past = here.end(), right.end()
    if told[at:] == fresh[past:]:
        return None
    same = next(
        (i for i, (a, b) in enumerate(zip(told[at:], fresh[past:], strict=False)) if a != b), min(len(told) - at, len(fresh) - past)
    )
    told_now, fresh_now = told[at + same :][:40], fresh[past + same :][:40]
    return f"reads {told_now!r} where the run gives {fresh_now!r} ({_before(told, at + same)})"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _before(text: str, at: int) -> str:
    """The words before a place, without markup."""
    words = " ".join(unescape(_TAG.sub(" ", text[max(0, at - 600) : at])).split())
    return f"after {words[-60:]!r}" if words else "at its beginning"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
