"""JSON schemas of the two TOML files, study and ``site.toml``, for editors and for the reference of keys.

    schema("study")["properties"]["training"]["properties"]["lr"]
    # {"type": "number", "exclusiveMinimum": 0, "maximum": 1000000.0, "default": 0.001, "description": "learning rate of the local steps"}

They are JSON Schema draft 7 without references, because editors of TOML differ in what else they read. A section is an object with
``properties``. TOML has no null, so no value is null. Rules between keys are not in a schema; ``fedml check`` checks those.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel

from fedml.clients.site.manifest import Manifest
from fedml.networks.image import NETWORKS
from fedml.networks.segmentation import SEGMENTATION_NETWORKS
from fedml.strategies.algorithms.options import options_of
from fedml.strategies.algorithms.registry import STRATEGIES
from fedml.study.read import FILE_KEYS
from fedml.study.study import Study

File = Literal["study", "site"]
Schema = dict[str, Any]
FILES: tuple[File, ...] = ("study", "site")
OPTION_DEFAULTS = "x-defaults"  # of a key of [strategy]: algorithm -> default
_MODELS: dict[File, type[BaseModel]] = {"study": Study, "site": Manifest}
_TITLES = {"study": "Study of fedml-cohorts", "site": "Manifest of a site of fedml-cohorts (site.toml)"}
_NAMES: dict[tuple[str, ...], Iterable[str]] = {
    ("model", "image", "net"): NETWORKS,
    ("model", "segmentation", "net"): SEGMENTATION_NETWORKS,
    ("strategy", "name"): STRATEGIES,
}


_LISTS = ("files", "packages", "start_arrays")  # of the keys that reading a study replaces


@cache
def schema(file: File) -> Schema:
    """The schema of a file. The result is shared: do not change it."""
    whole = _MODELS[file].model_json_schema()
    plain: Schema = _plain(whole, whole.get("$defs", {}))
    plain.pop("description", None)
    if file == "study":
        _add_study_keys(plain)
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": _TITLES[file], **plain}


def _plain(node: Any, definitions: Schema) -> Any:
    """``node`` with references replaced, and without titles, nulls and what draft 7 does not have."""
    if isinstance(node, list):
        return [_plain(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = {k: v for k, v in definitions[node["$ref"].rpartition("/")[2]].items() if k != "description"}  # the code's docstring
        node = {**target, **{k: v for k, v in node.items() if k != "$ref"}}
        return _plain(node, definitions)
    found = {key: _plain(value, definitions) for key, value in node.items() if key not in ("$defs", "properties")}
    if "properties" in node:
        found["properties"] = {key: _plain(value, definitions) for key, value in node["properties"].items()}
    if isinstance(found.get("title"), str):
        del found["title"]
    if "default" in found and (found["default"] is None or "properties" in found):  # of a section, each key has its own
        del found["default"]
    if "prefixItems" in found:
        kinds = found.pop("prefixItems")
        found["items"] = kinds[0] if all(kind == kinds[0] for kind in kinds) else {"anyOf": _different(kinds)}
    if "oneOf" in found:  # of a union whose kinds differ in type, such as a text and a table
        found["anyOf"] = found.pop("oneOf")
    if "anyOf" in found:
        kinds = [kind for kind in found.pop("anyOf") if kind != {"type": "null"}]
        found = {**kinds[0], **found} if len(kinds) == 1 else {"anyOf": kinds, **found}
        if "properties" in found:
            found.pop("default", None)
    return found


def _different(kinds: list[Any]) -> list[Any]:
    return [kind for at, kind in enumerate(kinds) if kind not in kinds[:at]]


def _add_study_keys(plain: Schema) -> None:
    """Keys that a study file has but the models do not: files of genes and features, options of algorithms; and the names of networks."""
    for (*sections, key), text in FILE_KEYS.items():
        section = _at(plain, sections)
        kind: Schema = {"type": "array", "items": {"type": "string"}} if key in _LISTS else {"type": "string"}
        section["properties"][key] = {**kind, "description": text}
    for part in _at(plain, ["model"])["properties"].values():
        if "options" in part.get("properties", {}):
            part["additionalProperties"] = True  # arguments of own code
    omics = _at(plain, ["cohort", "omics"])
    omics["required"].remove("columns")
    omics["anyOf"] = [{"required": ["columns"]}, {"required": ["features"]}]
    for name in ("clinical", "omics"):
        keys = _at(plain, ["cohort", name])["properties"]
        given = keys["columns"]
        text = f'{given.pop("description")}; with names also patterns such as "*_rnaseq", or "all"'
        keys["columns"] = {"anyOf": [given, {"type": "string"}], **given, "description": text}
        del keys["columns"]["type"], keys["columns"]["items"]
    for path, names in _NAMES.items():
        _at(plain, path)["description"] += f"; one of: {', '.join(names)}"
    options = _at(plain, ["strategy"])["properties"]
    for name, make in STRATEGIES.items():
        for key, option in options_of(name, make).model_json_schema().get("properties", {}).items():
            kept = options.setdefault(key, {**_plain(option, {}), OPTION_DEFAULTS: {}})
            kept.pop("default", None)
            kept[OPTION_DEFAULTS][name] = option["default"]


def _at(plain: Schema, path: tuple[str, ...] | list[str]) -> Schema:
    for key in path:
        plain = plain["properties"][key]
    return plain
