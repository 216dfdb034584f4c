"""Columns by pattern. A study file may say ``columns = ["age", "*_rnaseq"]`` or ``columns = "all"`` with ``names = "columns.txt"``: the
file beside the study lists the names that every site has, one on each line. Reading the study puts the list that follows in the pattern's
place, so its identity, its plan and every approval are about named columns, and no site is asked which columns it has.

``fedml check STUDY --sites DIR --resolve`` writes the file from tables on this machine (``fedml.clients.site.columns``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fedml.errors import InputError, nearest
from fedml.study import limits
from fedml.study.omics import read_features

Value = TypeVar("Value")
ALL = "all"
MOST = {"clinical": limits.COLUMNS, "omics": 60_000}  # columns by pattern of one input; a list of names may have limits.FEATURES
_ASKED = "# columns = "  # first line of a file that --resolve wrote


def by_pattern(asked: Any) -> bool:
    """Whether ``columns`` of a study file needs a file of names: "all", or a pattern."""
    return isinstance(asked, str) or (isinstance(asked, list) and any(isinstance(name, str) and "*" in name for name in asked))


def matches(pattern: str, name: str) -> bool:
    """Whether ``*`` of the pattern can stand for a part of the name; every other character is itself."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


def of_name(table: Mapping[str, Value], name: str) -> Value | None:
    """The value of ``name`` in a table whose keys are names or patterns; the name itself comes first."""
    return table[name] if name in table else next((value for key, value in table.items() if "*" in key and matches(key, name)), None)


def excluded(cohort: Mapping[str, Any]) -> set[str]:
    """Columns that "all" never means: the ids, what is predicted, the exposure of counts, and who belongs together."""
    found = {"id"}
    for key in ("target", "exposure", "cluster"):
        value = cohort.get(key)
        found |= {value} if isinstance(value, str) else set(value) if isinstance(value, list) else set()
    return found


def select(asked: Sequence[str] | str, names: Sequence[str], cohort: Mapping[str, Any], where: str, limit: int) -> list[str]:
    """The columns that ``asked`` means among ``names``: in the order asked for, those of a pattern in the order of ``names``, each once.

    Args:
        cohort: ``[cohort]`` of the study file. where: the file and key, for errors. limit: most columns.

    Raises:
        InputError: a name is not among ``names``, a pattern matches nothing or the target, or there are too many columns.
    """
    without, found = excluded(cohort), dict[str, None]()
    if asked == ALL:
        found = dict.fromkeys(name for name in names if name not in without)
        if not found:
            raise InputError(f'{where} is "all", but the names have no column besides the id and the target; add columns, or list them.')
    known = set(names)
    for item in [] if asked == ALL else [asked] if isinstance(asked, str) else asked:
        if "*" not in item or item in known:
            if item not in known:
                raise InputError(f'{where} lists "{item}", which is not among the names{nearest(item, names)}; correct it, or the names.')
            found[item] = None
            continue
        own = [name for name in names if matches(item, name)]
        targets = cohort.get("target")
        for name in own:
            if name == targets or (isinstance(targets, list) and name in targets):
                raise InputError(f'{where}: "{item}" matches the target "{name}", which would reveal it to the model; narrow the pattern.')
        if not own:
            some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise InputError(f'{where}: "{item}" matches none of the names ({some}); correct the pattern, or write the names again.')
        found |= dict.fromkeys(own)
    if len(found) > limit:
        raise InputError(f"{where} means {len(found):,} columns by pattern, the limit is {limit:,}; narrow the pattern.")
    return list(found)


def expand(plan: dict[str, Any], path: Path) -> None:
    """Replaces patterns of ``[cohort.clinical]`` and ``[cohort.omics]`` by the names that they mean, and patterns in ``missing`` and in
    ``[privacy] ranges`` by one entry for each clinical column. ``names`` is removed from the plan.

    Raises:
        InputError: there is no file of names, it was written for other columns, or as ``select``.
    """
    cohort = plan.get("cohort")
    if not isinstance(cohort, dict):
        return
    for section in MOST:
        spec = cohort.get(section)
        if not isinstance(spec, dict) or "columns" not in spec:
            continue
        asked, where = spec["columns"], f"{path}: [cohort.{section}] columns"
        if not isinstance(spec.get("names"), str):
            if by_pattern(asked):
                raise InputError(
                    f'{where} is by pattern and needs names = "columns.txt", a file of the names that every site has; '
                    "fedml check STUDY --sites DIR --resolve writes it."
                )
            continue
        spec["columns"] = select(asked, read_names(path.parent / spec.pop("names"), asked), cohort, where, MOST[section])
        if section == "clinical":
            _each(spec, "missing", spec["columns"])
            _each(plan.get("privacy"), "ranges", spec["columns"])


def read_names(path: Path, asked: Any) -> list[str]:
    """The names in the file, which may say for which columns it was written.

    Raises:
        InputError: the file is missing or no list of names, or was written for other columns than ``asked``.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, and columns by pattern need it; fedml check STUDY --sites DIR --resolve writes it.")
    names = read_features(path)
    if names[0].startswith(_ASKED):
        if names.pop(0) != f"{_ASKED}{json.dumps(asked)}":
            raise InputError(
                f"{path}: was written for other columns than the study has; run fedml check STUDY --sites DIR --resolve again."
            )
        if not names:
            raise InputError(f"{path}: has no name; run fedml check STUDY --sites DIR --resolve again.")
    return names


def write_names(path: Path, asked: Any, names: Iterable[str]) -> None:
    """Writes the file of names for the columns ``asked``. Raises ``InputError`` if it cannot be written."""
    try:
        path.write_text("\n".join([f"{_ASKED}{json.dumps(asked)}", *names]) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); correct names in the study.") from error


def _each(section: Any, key: str, columns: Sequence[str]) -> None:
    """Replaces patterns among the keys of a table by the columns that they match and that it does not name."""
    table = section.get(key) if isinstance(section, dict) else None
    if isinstance(table, dict) and any("*" in name for name in table):
        by_column = {name: value for name in columns if (value := of_name(table, name)) is not None}
        section[key] = {name: value for name, value in table.items() if "*" not in name} | by_column
