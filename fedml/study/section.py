"""Base class, names, codes and parts for the sections of a study file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fedml.text import printable

PartName = Literal["train", "val", "test"]
Precision = Literal["float32", "bfloat16", "float16"]
PARTS: tuple[PartName, ...] = ("train", "val", "test")

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
COLUMN = r"^[A-Za-z0-9_.-]{1,40}$"
OWN = r"^[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z_][A-Za-z0-9_]{0,62}){0,7}:[A-Za-z_][A-Za-z0-9_]{0,62}$"
ALLOWED_TEXT = {  # pattern -> what it allows, for error messages and the reference of keys
    NAME: "lower-case letters, digits, - and _, first a letter or digit, at most 63 characters",
    COLUMN: "letters, digits, _, . and -, at most 40 characters",
    OWN: "own code as module:name",
}
Name = Annotated[str, Field(pattern=NAME)]


def not_allowed(text: str, pattern: str) -> str:
    """Why ``text`` does not match ``pattern``, in words, and the nearest name that does: ``is "Oslo"; allowed are ...; write "oslo"``."""
    plain = unicodedata.normalize("NFKD", text).lower()
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    suggested = re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")[:63]
    lost = any(character.isalnum() and not character.isascii() for character in plain)  # a letter that has no plain form
    hint = f'; write "{suggested}"' if pattern == NAME and suggested and not lost else ""
    return f'is "{printable(text[:80])}"; allowed are {ALLOWED_TEXT[pattern]}{hint}'


Fraction = Annotated[float, Field(ge=0, le=1)]


def _whole(value: Any) -> Any:
    """1.0 as 1, so that equal studies have equal canonical JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def normal(value: Any) -> str:
    """The canonical text of a code: ``1``, ``1.0`` and ``"1"`` are the same class."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value).strip()
    return str(int(number)) if number.is_integer() else repr(number)


Code = Annotated[int | float | str, AfterValidator(_whole)]
Option = Annotated[bool | int | float | str, AfterValidator(_whole)]


class Section(BaseModel):
    """Base of every section: frozen, strict, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


_FIRST = ("clinical", "image")  # inputs of the first studies, whose canonical JSON holds null where they are not used


def without_later(values: dict[str, Any]) -> dict[str, Any]:
    """A section's values without unused inputs that were added later, so that the SHA-256 of older studies is unchanged."""
    return {key: value for key, value in values.items() if value is not None or key in _FIRST}


def without_unused(section: BaseModel, values: dict[str, Any], *, first: Collection[str]) -> dict[str, Any]:
    """A section's values without the keys that were added after those of ``first``, where they have their defaults (``without_later``)."""
    fields = type(section).model_fields
    return {key: value for key, value in values.items() if key in first or getattr(section, key) != fields[key].default}
