"""Identifiers in names of files and folders, and how such a name is shown: its place among its neighbours in place of the name.

findings_of_name(Path("p1/DOE_JANE_1970.nii.gz"), "p1")      # a finding: a name of a person
shown(Path("images/p1/DOE_JANE_1970.nii.gz"), Path("images"))      # "p1/(name 3 of 12)"
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path

from fedml.cohort.identifiers.rules import Finding, Kind, Search, kinds_in, severity_of

_UID = re.compile(r"[0-2](?:\.(?:0|[1-9]\d*)){4,}")
_DATED = re.compile(r"(?:^|\.)(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?:([01]\d|2[0-3])[0-5]\d[0-5]\d\d*)?(?=\.|$)")
_LOWER = re.compile(r"[a-z]{2,}[_.-][a-z]{2,}")


def dated_uid(uid: str) -> bool:
    """True if a part of a UID is a date, or begins with a date and a time of day, as many scanners write them."""
    return _DATED.search(uid) is not None


def findings_of_name(path: Path, person: str, search: Search | None = None) -> list[Finding]:
    """The findings in the parts of a relative path; a part that is the person's id is not looked at, nor is the id within a part."""
    found: dict[tuple[str, str], Finding] = {}
    parts = path.parts
    for number, part in enumerate(parts):
        where = "name of the file" if number == len(parts) - 1 else "name of a folder"
        for kind in kinds_of(part, person, search):
            found[where, kind] = Finding(0, "", where, str(kind), severity_of(kind))
    return list(found.values())


def kinds_of(part: str, person: str, search: Search | None = None) -> tuple[Kind, ...]:
    """The kinds of identifiers in one part of a path."""
    if part == person:
        return ()
    if search and search.hit(part):
        return (Kind.SEARCHED,)
    bare = re.sub(r"(\.nii|\.ome)?\.\w{1,8}$", "", part)
    if _UID.fullmatch(bare):
        return (Kind.DATE,) if dated_uid(bare) else ()
    bare = bare.removeprefix(person) if person else bare
    # Names of files join words by underscores and hyphens, in which BIDS has keys and values (sub-01_T1w).
    text = re.sub(r"[_+%]|(?<=[^\W\d])[.-](?=[^\W\d])", " ", bare)
    kinds = kinds_in(text, search)
    if "@" in bare:
        kinds = (Kind.MAIL, *kinds)
    return kinds if "^" not in bare or Kind.NAME in kinds else (Kind.NAME, *kinds)


def shown(path: Path, root: Path) -> str:
    """The path below ``root``, each part in which a rule finds an identifier replaced by its place among its neighbours."""
    parts = path.relative_to(root).parts if path.is_relative_to(root) else (path.name,)
    out, here = [], root
    for part in parts:
        if _telling(part):
            order = _neighbours(here)
            out.append(f"(name {order[part]} of {len(order)})" if part in order else "(a name that is not shown)")
        else:
            out.append(part)
        here = here / part
    return "/".join(out)


@lru_cache(maxsize=4096)
def _telling(part: str) -> bool:
    return bool(kinds_of(part, ""))


@lru_cache(maxsize=8)
def _neighbours(folder: Path) -> dict[str, int]:
    try:
        return {name: number for number, name in enumerate(sorted(os.listdir(folder)), 1)}
    except OSError:
        return {}
