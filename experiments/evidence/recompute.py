"""Comparison of a file of a bundle with the same file recomputed: one sentence about the first difference.

Numbers are compared with a tolerance of 1e-9, because another processor may round the last digit of a sum differently. All other text must
be identical.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Mapping
from html import unescape
from pathlib import PurePosixPath
from typing import Any

_TOLERANCE = 1e-9
_OF_P = 1e-6  # relative: of a p value the error is that of its statistic times the statistic
_NUMBER = re.compile(r"(?<![\w#])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w)", re.ASCII)
_TAG = re.compile(r"<[^>]*>")
_TABLES = {".tsv": "\t", ".csv": ",", ".gz": "\t"}
_P = re.compile(r"(?:.*_)?p(?:_value)?")  # keys and columns of p values, of which the smallest say most
_LARGEST_TABLE = 1 << 32  # bytes of a table that was compressed


def differs(name: str, given: bytes, fresh: bytes) -> str | None:
    """The first difference between the file ``name`` of a bundle and the recomputed file ``fresh``; None if there is none."""
    if given == fresh:
        return None
    if len(given) > 2 * len(fresh) + 65_536:
        return "is much longer than the recomputed file"
    end = PurePosixPath(name).suffix
    try:
        if end == ".gz":
            given, fresh = _unpacked(given, len(fresh)), _unpacked(fresh, len(fresh))
            if given == fresh:
                return "is compressed in another way than the run does it"
        if end in _TABLES:
            return table_differs(given.decode(), fresh.decode(), _TABLES[end])
        text, right = given.decode(), fresh.decode()
        if name.endswith(".json"):
            return value_differs(json.loads(text), json.loads(right), "")
    except (ValueError, RecursionError, OSError, EOFError, zlib.error):
        return "cannot be read"
    return text_differs(text, right)


def near(given: float, fresh: float, tolerance: float = _TOLERANCE) -> bool:
    """Whether the numbers are equal within ``tolerance``, relative to the larger (or absolute, if both are below 1)."""
    return given == fresh or (tolerance > 0 and math.isclose(given, fresh, rel_tol=tolerance, abs_tol=tolerance))


def near_p(given: float, fresh: float) -> bool:
    """Whether two p values are equal: relative, however small they are."""
    return given == fresh or math.isclose(given, fresh, rel_tol=_OF_P, abs_tol=0.0)


def _unpacked(data: bytes, packed: int) -> bytes:
    """The bytes of a gzip file; ``ValueError`` if they are more than a table's of that size would be."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        out = file.read(_LARGEST_TABLE if packed > 1 << 22 else 1 << 28)
        if file.read(1):
            raise ValueError("is too large")
    return out


def table_differs(given: str, fresh: str, separator: str) -> str | None:
    """The first difference between two tables of plain text with one line of heads; numbers as ``near`` and ``near_p``."""
    ours, theirs = (list(csv.reader(io.StringIO(text, newline=""), delimiter=separator)) for text in (given, fresh))
    if len(ours) != len(theirs) or given.count("\n") != fresh.count("\n"):
        return f"has {len(ours)} lines, the run gives {len(theirs)}"
    heads = theirs[0] if theirs else []
    for number, (mine, right) in enumerate(zip(ours, theirs, strict=True), 1):
        if len(mine) != len(right):
            return f"has {len(mine)} columns in line {number}, the run gives {len(right)}"
        for name, a, b in zip(heads, mine, right, strict=False):
            if a != b and not _same_number(name, a, b):
                return f"has {_short(a)} in line {number}, {name[:60]}; the run gives {_short(b)}"
    return None


def _same_number(name: str, a: str, b: str) -> bool:
    if not (_NUMBER.fullmatch(a) and _NUMBER.fullmatch(b)):
        return False
    return near_p(float(a), float(b)) if _P.fullmatch(name) else near(float(a), float(b))


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
        if tolerance and _P.fullmatch(where.rpartition("/")[2]):
            return None if near_p(given, fresh) else f"{where} is {given!r}, the run gives {fresh!r}"
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
