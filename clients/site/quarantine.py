"""The images that the last reading excluded: ``.fedml/quarantine.jsonl`` of the site, one JSON object a line. The file names persons and
stays at the site.

quarantine.write(site.state, "heart", images.excluded)       # replaces the list of the previous reading
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

from fedml.cohort.images.reasons import Exclusion
from fedml.errors import InputError

log = logging.getLogger("fedml.site")
FILE = "quarantine.jsonl"
Entry = dict[str, str]


def write(state: Path, study: str, excluded: Sequence[Exclusion]) -> None:
    """Replaces the list by ``excluded``, completely or not at all. If the folder cannot be written, logs a warning; the run continues."""
    path = state / FILE
    if not excluded and not path.exists():
        return
    lines = [{"study": study, "person": a.person, "file": a.file, "reason": str(a.reason), "text": a.text} for a in excluded]
    try:
        state.mkdir(mode=0o700, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".quarantine-", dir=state)  # mode 0600; several processes may read one site
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        log.warning("%s: cannot be written (%s); %d images are excluded", path, error.strerror or error, len(excluded))


def read(state: Path) -> list[Entry]:
    """The list of the last reading; empty if no image was excluded.

    Raises:
        InputError: the file cannot be read, or a line is not an entry.
    """
    path = state / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines]
        return [{key: str(entry[key]) for key in ("study", "person", "file", "reason", "text")} for entry in found]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete the file, the next reading writes a new one.") from error


def show(site: str, entries: Sequence[Entry]) -> str:
    """The list as text: the count of each reason, then one line an image."""
    if not entries:
        return f"{site}: no images are excluded"
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(e["reason"] for e in entries).items()))
    lines = [f'{site}: the last reading, for study "{entries[0]["study"]}", excluded {len(entries)} images: {counts}']
    return "\n".join(lines + [f"  {e['person']}  {e['reason']}: {e['text']}" for e in entries])
