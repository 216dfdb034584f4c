"""Delivery of a sweep or a comparison to MLflow, after its last run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedml import quiet

if TYPE_CHECKING:
    from rich.console import Console

_TRACKING_SECONDS = 1800  # time limit


def delivered(folder: Path, console: Console, what: str) -> str:
    """Delivers a sweep or a comparison (``what``) to MLflow in a separate process; why it has no complete record, "" if it has one."""
    from fedml.text import printable

    command, why = [sys.executable, "-P", "-m", "fedml.experiments.cli", "track", str(folder)], ""
    try:
        with console.status("recording in MLflow"):
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TRACKING_SECONDS, start_new_session=True, check=False)
        if done.returncode:
            why = (quiet.last_said(done.stderr) or "no error message").removeprefix("error: ")
    except subprocess.TimeoutExpired:
        why = f"it took longer than {_TRACKING_SECONDS} s"
    except KeyboardInterrupt:
        why = "stopped from the keyboard"
    if not why:
        return ""
    return f"MLflow has no complete record of this {what} ({printable(why)}); deliver it later: fedml track {folder}"
