"""What a reading set aside, one JSON object a line in the site's ``.fedml/quarantine.jsonl``; it names persons and stays there.

quarantine.write(site.state, "heart", images.aside)       # replaces the list of the reading before
print(quarantine.show(site.name, quarantine.read(site.state)))
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fedml.cohort.images.reasons import Aside
from fedml.errors import InputError

log = logging.getLogger("fedml.site")
FILE = "quarantine.jsonl"
Entry = dict[str, str]


def write(state: Path, study: str, aside: Sequence[Aside]) -> None:
    """Makes ``aside`` the list, whole or not at all. A folder that cannot be written to is told to the log: it ends no run."""
    path = state / FILE
    if not aside and not path.exists():
        return
    lines = [{"study": study, "person": a.person, "file": a.file, "reason": str(a.reason), "text": a.text} for a in aside]
    try:
        state.mkdir(mode=0o700, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".quarantine-", dir=state)  # for this user alone; several processes may read one site
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        log.warning("%s: cannot be written (%s); %d images are set aside", path, error.strerror or error, len(aside))


def read(state: Path) -> list[Entry]:
    """The list of the last reading; empty if nothing was ever set aside.

    Raises:
        InputError: a line is no entry.
    """
    path = state / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines]
        return [{key: str(one[key]) for key in ("study", "person", "file", "reason", "text")} for one in found]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read; take it away, the next reading writes it anew.") from error


def show(site: str, entries: Sequence[Entry]) -> str:
    """One line an item and the count of each reason."""
    if not entries:
        return f"{site}: nothing is set aside"
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(e["reason"] for e in entries).items()))
    lines = [f'{site}: the last reading, for study "{entries[0]["study"]}", set aside {len(entries)} images: {counts}']
    return "\n".join(lines + [f"  {e['person']}  {e['reason']}: {e['text']}" for e in entries])
