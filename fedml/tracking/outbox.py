"""Runs not yet delivered to MLflow. A file in the run's folder states whether the run is to be recorded, and which stores have it.

    RUN/tracked.json    store (``fedml.tracking.store.store_key``) -> MLflow's run id and delivered bytes of the log; {}: not delivered

A run without that file is not to be recorded (``--no-track``).
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
    """Another process is recording this run. Final."""


def mark_pending(run: Path) -> None:
    """Marks the run as to be delivered to MLflow."""
    if not (run / MARKER).exists():
        write_whole(run / MARKER, b"{}\n")


def mark_again(run: Path) -> None:
    """Marks a record that has changed as to be delivered."""
    write_whole(run / MARKER, b"{}\n")


def mark_delivered(run: Path, mlflow_run: str, size: int) -> None:
    """Notes that the current store has the first ``size`` bytes of the run's log."""
    deliveries = {**_read(run), store_key(store()): {"mlflow_run_id": mlflow_run, "events_bytes": size}}
    write_whole(run / MARKER, (json.dumps(deliveries, indent=1, sort_keys=True) + "\n").encode())


def is_tracked(run: Path) -> bool:
    """Whether the run is to be recorded in MLflow."""
    return (run / MARKER).exists()


def delivered_bytes(run: Path) -> int | None:
    """The size that was delivered to the current store; None: nothing was."""
    size = _read(run).get(store_key(store()), {}).get("events_bytes")
    return size if isinstance(size, int) else None


def pending(runs: Path) -> list[Path]:
    """Runs in a folder that ended, are to be recorded, and are not completely delivered to the current store; oldest first."""
    key, found = store_key(store()), []
    for marker in runs.glob(f"*/{MARKER}"):
        run = marker.parent
        events, size = read_log(run)
        if (run / STUDY).exists() and any(isinstance(e, End) for e in events) and _read(run).get(key, {}).get("events_bytes") != size:
            found.append((events[0].time, run))
    return [run for _, run in sorted(found)]


def _read(run: Path) -> dict[str, Any]:
    try:
        deliveries = json.loads((run / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or damaged: deliver again, which is idempotent
        return {}
    return {k: v for k, v in deliveries.items() if isinstance(v, dict)} if isinstance(deliveries, dict) else {}


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Holds the exclusive right to record this run.

    Raises:
        Busy: another process holds it.
    """
    with (run / EVENTS).open("ab") as file:  # a lock over NFS requires write access; nothing is written
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(f"{run}: another process is recording this run in MLflow; wait until it has finished.") from error
        yield
