"""What pydantic finds wrong in a plan, as one sentence: the key as written in TOML, the expected value, the nearest spelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from reprlib import Repr
from typing import Any

from pydantic import BaseModel, ValidationError

from fedml.errors import nearest
from fedml.study.section import ALLOWED_TEXT, not_allowed


def first_problem(kind: type[BaseModel], error: ValidationError) -> str:
    """The first of pydantic's errors about a plan of ``kind`` as one sentence, and the number of the others."""
    # A misspelt key first: it also explains a key that is missing.
    problems = sorted(error.errors(include_url=False), key=lambda p: p["type"] != "extra_forbidden")
    more = f" ({len(problems) - 1} more after this one.)" if len(problems) > 1 else ""
    return f"{_sentence(kind, problems[0])}{more}"


def _sentence(kind: type[BaseModel], problem: Any) -> str:
    """One sentence for one of pydantic's errors: the key as written in TOML, the expected value, the nearest spelling."""
    where, of_user = list(problem["loc"]), list[Any]()
    if problem["type"] == "extra_forbidden":  # the last part is the unknown key of the user
        where, of_user = where[:-1], where[-1:]
    where = [p for p in where if not (isinstance(p, str) and ("[" in p or p in _UNION_TAGS))] + of_user
    items = [p for p in where if isinstance(p, int)]
    *sections, last = [p for p in where if isinstance(p, str)] or [""]
    key = f"[{'.'.join(sections)}] {last}" if sections else f"[{last}]" if last else "the file"
    key += f", item {items[0] + 1}," if items else ""
    match problem["type"]:
        case "extra_forbidden":
            known = _keys_at(kind, sections)
            hint = nearest(str(last), known) or f" (known: {', '.join(known)})"
            return f"{key} is not a known key{hint}."
        case "missing":
            return f"{key} is missing; add it."
        case "value_error":
            text = str(problem["ctx"]["error"])
            return f"{text}." if key == "the file" and text.startswith("[") else f"{key}: {text}."
        case "literal_error":
            allowed = problem["ctx"]["expected"]
            return f"{key} must be {allowed}, not {_shown(problem['input'])}{nearest(str(problem['input']), _quoted(allowed))}."
        case "string_pattern_mismatch" if problem["ctx"]["pattern"] in ALLOWED_TEXT:
            return f"{key} {not_allowed(problem['input'], problem['ctx']['pattern'])}."
        case _:
            expected = problem["msg"].rstrip(".")
            if expected.startswith("Input should be "):
                expected = "should be " + expected.removeprefix("Input should be ")
            else:
                expected = "is not valid: " + expected[0].lower() + expected[1:]
            return f"{key} {expected}, not {_shown(problem['input'])}."


def _shown(value: Any) -> str:
    """A value of the user's in an error, the start of it if it is long; of several values only that, since one may be a password."""
    if isinstance(value, Mapping | list | tuple):
        return "a table" if isinstance(value, Mapping) else "a list"
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = 120
    return short.repr(value)


_UNION_TAGS = {"int", "float", "str", "bool"}


def _quoted(text: str) -> list[str]:
    return text.replace(" or ", ", ").replace("'", "").split(", ")


def _keys_at(kind: type[BaseModel], sections: Sequence[str]) -> list[str]:
    """The keys that are valid below ``sections`` of model ``kind``."""
    for section in sections:
        field = kind.model_fields.get(section)
        if field is None:
            return []
        choices = [field.annotation, *(getattr(c, "__origin__", c) for c in getattr(field.annotation, "__args__", ()))]
        models = [c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)]
        if not models:
            return []
        kind = models[0]
    return list(kind.model_fields)
