"""What columns by pattern mean at sites whose tables are on this machine: the names that every site has, as numbers
(``fedml.study.columns``). Names are read here and written beside the study; no site sends them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedml.clients.site.manifest import Site, find_sites
from fedml.cohort.clinical import code_columns
from fedml.cohort.sheet import read_table
from fedml.cohort.somatic.read import features_in
from fedml.cohort.table import column, numbers
from fedml.errors import InputError
from fedml.modalities.omics import files_of
from fedml.study.cohort_section import ClinicalColumns
from fedml.study.columns import ALL, MOST, by_pattern, excluded, matches, of_name, write_names

if TYPE_CHECKING:
    import pandas as pd

_NAMED = 5  # columns in a sentence


def resolve(plan: Mapping[str, Any], path: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Writes the file of names of each input whose columns are by pattern; ``say`` is told how many there are and what was left out.

    Args:
        plan: the study file at ``path`` as TOML reads it. folder: of the sites (``find_sites``).

    Raises:
        InputError: no input has columns by pattern, it names no file, a site or its table cannot be read, or nothing is at every site.
    """
    cohort, federation = plan.get("cohort"), plan.get("federation")
    roster = federation.get("sites") if isinstance(federation, dict) else None
    if not isinstance(cohort, dict) or not isinstance(roster, list):
        raise InputError(f"{path}: has no [cohort] or no [federation] sites; add them.")
    found = [name for name in MOST if isinstance(cohort.get(name), dict) and by_pattern(cohort[name].get("columns"))]
    if not found:
        raise InputError(f'{path}: has no columns by pattern, so there is nothing to resolve; write columns = "all" or ["*_rnaseq"].')
    sites, _ = find_sites(folder, tuple(map(str, roster)))
    for name in found:
        spec = cohort[name]
        if not isinstance(spec.get("names"), str):
            raise InputError(f'{path}: [cohort.{name}] needs names = "{name}_columns.txt", the file of names to write; add it.')
        having = {site: at for site, at in sites.items() if name in at.manifest.data.inputs}
        if not having:
            raise InputError(f"{folder}: no site of the roster has the input {name}; add it to [data] of a site.toml.")
        kept, dropped = _shared({site: _names(at, name, spec, cohort) for site, at in having.items()})
        if not kept:
            raise InputError(f"{path}: [cohort.{name}] columns mean no column that is a number at every site; correct the pattern.")
        write_names(path.parent / spec["names"], spec["columns"], kept)
        say(f"{name}: {len(kept):,} columns that every site has ({path.parent / spec['names']})")
        for line in dropped:
            say(f"{name}: left out {line}")


def _shared(found: Mapping[str, Mapping[str, str]]) -> tuple[list[str], list[str]]:
    """The names that all sites can use, in the order of the first; and what was left out, by site and reason."""
    every = dict.fromkeys(name for names in found.values() for name in names)
    kept = [name for name in every if all(names.get(name) == "" for names in found.values())]
    lines = []
    for site, names in found.items():
        reasons: dict[str, list[str]] = {}
        for name in every:
            if why := names.get(name, "not there"):
                reasons.setdefault(why, []).append(name)
        for why, some in reasons.items():
            more = f" and {len(some) - _NAMED} more" if len(some) > _NAMED else ""
            lines.append(f"{len(some)} {why} at {site}: {', '.join(some[:_NAMED])}{more}")
    return kept, lines


def _names(site: Site, section: str, spec: Mapping[str, Any], cohort: Mapping[str, Any]) -> dict[str, str]:
    """Column of the site's table that ``columns`` means -> "", or why it cannot be used."""
    data, place = site.manifest.data, site.place(section)
    path, own_id = site.folder / place.data.path, place.data.id or data.id
    asked, without = spec["columns"], excluded(cohort) | {own_id, *(["part"] if data.split == place.data.path else [])}
    patterns = ["*"] if asked == ALL else [asked] if isinstance(asked, str) else asked
    if section == "omics" and place.data.format != "table":
        return {name: "" for name in features_in(files_of(place)) if any(matches(pattern, name) for pattern in patterns)}
    table = read_table(path, own_id, numeric=section == "omics")
    found = {}
    for name in dict.fromkeys(map(str, table.columns)):
        if name in patterns:
            found[name] = ""  # listed by name: what is wrong with it is told when the site's data are read
        elif any(matches(pattern, name) for pattern in patterns) and not (asked == ALL and name in without):
            found[name] = _wrong(table, name, path, section, spec)
    return found


def _wrong(table: pd.DataFrame, name: str, path: Path, section: str, spec: Mapping[str, Any]) -> str:
    """Why a column cannot be used; "" if it can."""
    try:
        values = column(table, name, path, "columns")
        if section == "omics":
            if values.dtype != np.float64:
                numbers(values, path, booleans=False)
        elif name not in spec.get("categories", {}) and name not in spec.get("dates", {}):
            codes = of_name(spec.get("missing", {}), name)
            code_columns(table[[name]], ClinicalColumns(columns=(name,), missing={} if codes is None else {name: tuple(codes)}), path)
    except InputError as error:
        return "there twice" if "times; keep one" in str(error) else "not numbers"
    return ""
