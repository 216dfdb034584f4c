"""What is fixed for a run at this site from its first message: the agreement, the design of an analysis, and the data. Kept in the state
folder, so that a restart does not lift it."""

from __future__ import annotations

import json
from pathlib import Path

from fedml.errors import Reason, SiteError
from fedml.runs.log import write_whole

FOLDER = "pins"
_KEPT = 200  # runs


def pin(state: Path, run: str, values: dict[str, str], code: Reason, text: str) -> None:
    """Fixes ``values`` (name -> digest) for ``run``.

    Raises:
        SiteError: with ``code`` and ``text``: a value differs from the one that was fixed.
    """
    path = state / FOLDER / f"{run}.json"
    try:
        fixed: dict[str, str] = json.loads(path.read_text())
    except FileNotFoundError:
        fixed = {}
    for name, value in values.items():
        if fixed.get(name, value) != value:
            raise SiteError(code, f"{text}: {name}")
    if fixed.keys() >= values.keys():
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_whole(path, json.dumps({**fixed, **values}, sort_keys=True).encode())
    for old in sorted(path.parent.glob("*.json"), key=lambda p: p.stat().st_mtime)[:-_KEPT]:
        old.unlink(missing_ok=True)
