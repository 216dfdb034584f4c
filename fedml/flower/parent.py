"""Processes that end without a word. A child ends with its parent, however the parent ends: no orphan keeps a site's identity or a port.
A server app's end is seen by whoever waits for its run, however it ends: it holds a lock, which the operating system releases."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_PARENT = "FEDML_PARENT"  # environment variable: the parent's process id; a parent can end before its child can look
LOCK = "server.lock"  # in the run's folder, while its server app works
_LOOK_SECONDS, _GRACE_SECONDS = 0.5, 10.0


def owned(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` for a child of this process that calls ``end_with_parent``."""
    return {**environment, _PARENT: str(os.getpid())}


def end_with_parent(*, all_children: bool = False) -> None:
    """Watches, in a thread, whether this process has another parent than the one that started it (``owned``); then it is told to end
    (SIGTERM), and ends in any case after 10 s.

    ``all_children``: with it end the processes that it started, and theirs, those in groups of their own too (Ray's).
    """
    parent = int(os.environ.pop(_PARENT, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        below = descendants(os.getpid()) if all_children else []
        if below and os.fork() == 0:  # who ends the others must not end with them
            os.setsid()
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # no port and no database stays open
            time.sleep(_GRACE_SECONDS)
            for process, began in below:
                with suppress(OSError):
                    if _began(process) == began:
                        os.kill(process, signal.SIGKILL)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def descendants(process: int) -> list[tuple[int, str]]:
    """(process id, time of its start) of all that ``process`` started, and what those started; Linux only, elsewhere empty."""
    found, waiting = list[tuple[int, str]](), [process]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            with suppress(OSError):
                children = [int(child) for child in task.read_text().split()]
                waiting += children
                found += [(child, _began(child)) for child in children]
    return found


def _began(process: int) -> str:
    """When a process started, in ticks: a process id can be used again."""
    return (Path("/proc") / str(process) / "stat").read_text().rpartition(") ")[2].split()[19]


@contextmanager
def working(run: Path) -> Iterator[None]:
    """Tells ``has_left`` that this process works on the run in folder ``run``."""
    with (run / LOCK).open("a") as file:
        with suppress(OSError):  # a file system without locks: ``has_left`` then asks in vain, and the SuperLink is asked
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            (run / LOCK).unlink(missing_ok=True)


def has_left(run: Path) -> bool:
    """Whether a process worked on the run and ended in the midst of it. A process that just begins can look so: ask twice."""
    try:
        with (run / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except OSError:  # no such file, or locked
        return False
