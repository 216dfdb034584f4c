"""Which runs MLflow is still owed: a run's folder says whether it is to be recorded, and in which stores it is.

    RUN/tracked.json    store (``fedml.tracking.store.store_key``) -> MLflow's run id and how much of the log it has; {} while none has it

A run without that file was not to be recorded (``--no-track``), and is left alone.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedml.errors import RunError
from fedml.runs.events import End
from fedml.runs.log import EVENTS, STUDY, read_log, write_whole
from fedml.tracking.store import store, store_key

MARKER = "tracked.json"


class Busy(RunError):
    """Another process records this run now. Final."""


def want(run: Path) -> None:
    """Notes that MLflow is to have this run."""
    if not (run / MARKER).exists():
        write_whole(run / MARKER, b"{}\n")


def note(run: Path, mlflow_run: str, size: int) -> None:
    """Notes that the store of now has the first ``size`` bytes of the run's log."""
    told = {**_read(run), store_key(store()): {"mlflow_run_id": mlflow_run, "events_bytes": size}}
    write_whole(run / MARKER, (json.dumps(told, indent=1, sort_keys=True) + "\n").encode())


def owed(runs: Path) -> list[Path]:
    """Runs in a folder that ended, were to be recorded, and are not (or not to their end) in the store of now; the oldest first."""
    key, found = store_key(store()), []
    for marker in runs.glob(f"*/{MARKER}"):
        run = marker.parent
        events, size = read_log(run)
        if (run / STUDY).exists() and any(isinstance(e, End) for e in events) and _read(run).get(key, {}).get("events_bytes") != size:
            found.append((events[0].time, run))
    return [run for _, run in sorted(found)]


def _read(run: Path) -> dict[str, Any]:
    try:
        told = json.loads((run / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # lost or spoiled: delivered again, which does no harm
        return {}
    return {k: v for k, v in told.items() if isinstance(v, dict)} if isinstance(told, dict) else {}


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Inside the block nobody else records this run.

    Raises:
        Busy: somebody does already.
    """
    with (run / EVENTS).open("ab") as file:  # opened for appending, for a lock over NFS needs that; nothing is written
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(f"{run}: another process is recording it in MLflow; wait until that is done.") from error
        yield
