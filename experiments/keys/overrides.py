"""Keys of a study as a person writes them, and ``--set``."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from fedml.errors import InputError, nearest
from fedml.study.study import Study


def study_keys() -> list[str]:
    """Every key of a study that has a value of its own, such as ``training.lr``."""
    from fedml.experiments.keys.entries import entries  # loads PyTorch, which a run without --set does not need so early

    return [entry.path for entry in entries() if entry.file == "study" and (entry.type != "section" or entry.path == "cohort.split")]


def full_key(name: str, given: str, value: str = "") -> str:
    """The key of a study that ``name`` means: ``section.key``, or its last part alone if one key ends so.

    Args:
        given: the option with what was written, for an error. value: what follows the key there, such as ``=0.1``.

    Raises:
        InputError: no key or several keys end so.
    """
    keys = study_keys()
    found = [name] if name in keys else [key for key in keys if key.endswith(f".{name}")]
    if len(found) > 1:
        raise InputError(f"{given}: several keys have this name; write {' or '.join(key + value for key in found)}.")
    if not found and "." not in name:
        known = [*keys, *(key.rpartition(".")[2] for key in keys)]
        raise InputError(f"{given}: no key of a study has this name{nearest(name, known)}; docs/keys.md lists all.")
    return found[0] if found else name  # of a table of the study's own names, such as privacy.persons.oslo; the study's checks decide


def set_key(name: str, given: str) -> str:
    """``name`` if it is a whole section, such as ``gwas``, else as ``full_key``."""
    return name if name in Study.model_fields else full_key(name, given)


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` pairs as full key -> value; a value is parsed as TOML, or taken as text if it is not TOML.

    Raises:
        InputError: a pair has no ``=``, or its key is none, or several.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign:
            raise InputError(f"--set {pair}: write section.key=value, such as strategy.name=fedprox.")
        key = full_key(name.strip(), f"--set {pair}", f"={text}")
        try:
            out[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            out[key] = text
    return out
