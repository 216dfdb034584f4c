"""One line of ``fedml-site doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``action``: what to do; ``""`` if ``state`` is ok."""

    what: str
    state: Literal["ok", "warn", "fail"]
    text: str
    action: str = ""


def ok(what: str, text: str) -> Finding:
    """A check that found nothing wrong."""
    return Finding(what, "ok", text)


def warn(what: str, text: str, action: str) -> Finding:
    """Something that may be wrong, or could not be found out."""
    return Finding(what, "warn", text, action)


def fail(what: str, text: str, action: str) -> Finding:
    """Something with which a run does not work."""
    return Finding(what, "fail", text, action)


def open_mode(path: Path) -> int:
    """The path's mode if group or others have any permission, else 0."""
    mode = path.stat().st_mode & 0o777
    return mode if mode & 0o077 else 0
