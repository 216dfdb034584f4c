"""One entry for each section and key of a study and of a site's manifest, in words; and finding an entry by what a user calls it.

find("training.lr"), find("lr"), find("[cohort.image] size"), find("data.image.format")
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from fedml.errors import InputError, nearest
from fedml.experiments.keys.schema import FILES, OPTION_DEFAULTS, File, Schema, schema
from fedml.study.section import ALLOWED_TEXT
from fedml.study.study import Study
from fedml.study.task_traits import either


class Entry(NamedTuple):
    """A key or a section of a file.

    Args:
        path: its section and key with dots; unique within ``file``. type: in words; "section" for a section.
        default: as TOML; "required"; "" if the key has none. allowed: range of values and number of items in words, "" without limits.
        text: its description. keys: of a section, the keys in it.
    """

    file: File
    path: str
    type: str
    default: str
    allowed: str
    text: str
    keys: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        """The path of its section; "" at the top."""
        return self.path.rpartition(".")[0]

    @property
    def key(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]


@cache
def entries() -> tuple[Entry, ...]:
    """All entries, a section before its keys, in the order of the models."""
    return tuple(entry for file in FILES for entry in _below(file, schema(file), ""))


def _below(file: File, node: Schema, path: str) -> Iterator[Entry]:
    for key, value in node["properties"].items():
        here = f"{path}.{key}".removeprefix(".")
        if "properties" in value.get("items", {}):  # a list of sections, each [[here]] in a file
            yield Entry(file, here, "section", "", "", value.get("description", ""), tuple(value["items"]["properties"]))
            yield from _below(file, value["items"], here)
        elif "properties" in value:
            yield Entry(file, here, "section", "", "", value.get("description", ""), tuple(value["properties"]))
            yield from _below(file, value, here)
        else:
            default = "required" if key in node.get("required", ()) else _default(value)
            yield Entry(file, here, _type(value), default, _allowed(value), value.get("description", ""))
            for kind in value.get("anyOf", ()):
                if "properties" in kind:  # a key that may also be a table with keys of its own
                    yield from _below(file, kind, here)


def _default(node: Schema) -> str:
    if OPTION_DEFAULTS in node:  # equal values together: "0.01 (fedadam, fedyogi), 1.0 (scaffold)"
        by_value: dict[str, list[str]] = {}
        for name, value in node[OPTION_DEFAULTS].items():
            by_value.setdefault(toml(value), []).append(name)
        return ", ".join(f"{value} ({', '.join(names)})" for value, names in by_value.items())
    return toml(node["default"]) if "default" in node else "{}" if node.get("type") == "object" else ""


def toml(value: Any) -> str:
    """A value as it is written in TOML, on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return _short(json.dumps(value)) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


_ONE = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}


def _type(node: Schema) -> str:
    if values := _values(node):
        return either(values)
    if kinds := node.get("anyOf"):
        words = list(dict.fromkeys(map(_type, kinds)))
        if "number" in words:  # a whole number is one too
            words = [word for word in words if word != "whole number"]
        return " or ".join(words)
    match node["type"]:
        case "array":
            same = node.get("minItems") == node.get("maxItems")
            count = f"{node['minItems']} " if same and "minItems" in node else ""
            return f"list of {count}{_many(_item(node))}"
        case "object" if "properties" in node:
            return f"table with {', '.join(node['properties'])}"
        case "object":
            return f"table: name = {_type(_item(node))}"
        case kind:
            return _ONE[kind]


def _values(node: Schema) -> list[str]:
    return [str(value) for value in node.get("enum", [node["const"]] if "const" in node else [])]


def _many(node: Schema) -> str:
    if _values(node):
        return _type(node)
    return " or ".join(re.sub(r"\b(number|text|list)\b", r"\1s", word) for word in _type(node).split(" or "))


def _allowed(node: Schema) -> str:
    """Limits of the value itself, then of the number of items, then of each item."""
    parts = [_range(node)]
    if node.get("pattern"):
        parts.append(ALLOWED_TEXT.get(node["pattern"], ""))
    elif "maxLength" in node:
        parts.append(f"{_count(node.get('minLength'), node['maxLength'])} characters")
    least, most = node.get("minItems"), node.get("maxItems")
    if (least or most is not None) and least != most:
        parts.append(f"{_count(least, most)} item{'s' * ((most or least) != 1)}")
    for inner in [*([_item(node)] if node.get("type") in ("array", "object") and "properties" not in node else []), *_plain_kinds(node)]:
        if (found := _allowed(inner)) and found not in parts:
            parts.append(found if "anyOf" in node or found.startswith("each") else f"each: {found}")
    return "; ".join(filter(None, parts))


def _count(least: int | None, most: int | None) -> str:
    if most is None:
        return f"at least {least}"
    return f"{_number(least)} to {_number(most)}" if least else f"at most {_number(most)}"


def _plain_kinds(node: Schema) -> list[Schema]:
    """The kinds of a value, without lists: of a number or a list of such numbers, the limits are those of the number."""
    return [kind for kind in node.get("anyOf", ()) if kind.get("type") != "array"]


def _item(node: Schema) -> Schema:
    """The schema of each item of a list, or of each value of a table of names."""
    if node["type"] == "array":
        return dict(node["items"])
    return dict(node["additionalProperties"] if "additionalProperties" in node else next(iter(node["patternProperties"].values())))


def _range(node: Schema) -> str:
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{_number(low)} to {_number(high)}"
    start = f"from {_number(low)}" if low is not None else f"above {_number(above)}" if above is not None else ""
    end = f"up to {_number(high)}" if high is not None else f"below {_number(below)}" if below is not None else ""
    return f"{start}, {end}" if start and end else start or end


def _number(value: float) -> str:
    if float(value).is_integer():
        whole = int(value)
        return f"2^{whole.bit_length() - 1}" if whole >= 2**31 and whole & (whole - 1) == 0 else f"{whole:,}"
    return _short(f"{value:g}")


def _short(text: str) -> str:
    """1e-5 for 1e-05."""
    return text.replace("e-0", "e-")


def find(name: str) -> list[Entry]:
    """The entries that a user means by ``name``: of one path, which may be in both files. Brackets as in error messages are accepted.

    Raises:
        InputError: no entry has this name, or entries of several paths have it.
    """
    wanted = re.sub(r"[\[\]\s.]+", ".", name).strip(".")
    found = [entry for entry in entries() if entry.path == wanted]
    found = found or [entry for entry in entries() if entry.path.endswith(f".{wanted}")]
    if not found:  # a name in a table of the study's own names: privacy.persons.oslo
        found = [entry for entry in entries() if entry.type.startswith("table") and entry.path == wanted.rpartition(".")[0]]
    if not found:
        known = dict.fromkeys([entry.path for entry in entries()] + [entry.key for entry in entries()])
        words = wanted.rpartition(".")[2].replace("_", " ").lower()
        about = [entry for entry in entries() if words in entry.text.lower()] if len(words) > 2 else []
        hint = nearest(wanted, known) or nearest(wanted.rpartition(".")[2], known)
        hint = hint or (f"; these are about {words}: {_names(about)}" if about else "")
        raise InputError(f"--explain {name}: no section or key of a study or a site.toml has this name{hint}; docs/keys.md lists all.")
    if len({entry.path for entry in found}) > 1:
        raise InputError(f"--explain {name}: several keys have this name: {_names(found)}; give one of them.")
    return found


def _names(found: list[Entry]) -> str:
    return ", ".join(f"{entry.path} ({entry.file})" for entry in found)


def explain(name: str, study: Study | None = None) -> str:
    """The entries of ``name`` as text for a terminal, with the value that ``study`` has. Raises ``InputError`` as ``find``."""
    found = find(name)
    values = [_value(entry, study) if study is not None and entry.file == "study" else "" for entry in found]
    return "\n\n".join(_text(entry) + value for entry, value in zip(found, values, strict=True))


def _value(entry: Entry, study: Study) -> str:
    value: Any = study.model_dump(mode="json")
    for key in entry.path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return "" if value is None or entry.type == "section" else f'\n  in study "{study.study.name}": {toml(value)}'


def _text(entry: Entry) -> str:
    where = "study" if entry.file == "study" else "site.toml"
    if entry.type == "section":
        return f"[{entry.path}] of {where}: {entry.text}\n  keys: {', '.join(entry.keys)}"
    lines = [f"[{entry.section}] {entry.key} of {where}: {entry.text}", f"  type: {entry.type}"]
    lines += [f"  allowed: {entry.allowed}"] if entry.allowed else []
    lines += ["  required"] if entry.default == "required" else [f"  default: {entry.default}"] if entry.default else []
    return "\n".join(lines)
