"""Whether an input's ids are those of the persons table: spreadsheets drop leading zeros, exports add ``.0``, other case or hyphens."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from fedml.errors import InputError
from fedml.text import printable


def check_ids(persons: Sequence[str], found: Collection[str], where: str) -> None:
    """Raises ``InputError`` if ids of ``found`` are those of ``persons`` in another spelling, or if none is a person's.

    Persons without the input, and ids of nobody in the table, are allowed: only what looks like the same id is an error.

    Args:
        where: the file, or the folder, that has the ids ``found``.
    """
    known, there = set(persons), set(found)
    absent, strangers = [p for p in persons if p not in there], sorted(there - known)
    if not absent or not strangers:
        return
    spelled = _unique(strangers)
    own = _unique(absent)
    near = [(person, spelled[key]) for key, person in own.items() if key in spelled]
    if near:
        person, other = near[0]
        raise InputError(
            f"{where}: {len(absent)} of {len(persons)} persons are not in it, {len(near)} of them by their spelling: it has "
            f'"{printable(other)}" where the persons table has "{printable(person)}"; write ids alike in every file, as text (leading '
            "zeros, case, prefixes)."
        )
    if len(absent) == len(persons):
        raise InputError(
            f'{where}: names none of the {len(persons)} persons of the persons table: it has ids such as "{printable(strangers[0])}", the '
            f'persons table such as "{printable(persons[0])}"; write ids alike in every file.'
        )


def _unique(ids: Sequence[str]) -> dict[str, str]:
    """Spelling without case, punctuation and leading zeros of its numbers -> id, where only one id has it."""
    spelled = dict[str, list[str]]()
    for text in ids:
        spelled.setdefault(_bare(text), []).append(text)
    return {key: texts[0] for key, texts in spelled.items() if len(texts) == 1 and key}


def _bare(text: str) -> str:
    text = re.sub(r"^([0-9]+)[.,]0+$", r"\1", text.strip()).casefold()
    # Letters of any script and numbers stay apart: 1-12 is not 11-2, and another letter is another id.
    return ".".join(part.lstrip("0") or "0" for part in re.findall(r"[^\W\d_]+|[0-9]+", text))
