"""Runs one command and measures it from outside: wall and CPU seconds, and the memory of all its processes. Linux, standard library only.

    python watch.py SPEC.json        # command, cwd, environment, timeout, daemons; writes measured.json into cwd

This process makes itself the parent of every process below it whose own parent ends (PR_SET_CHILD_SUBREAPER), so those that a framework
detaches are measured, and ended by their pid at the end. The clock stops when the last process of the command has ended; with ``daemons``,
of a framework whose services stay, when the command itself has.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

EVERY, MOST = 0.1, 1.0  # seconds between two samples of memory,
SHARE = 0.02  # by the share of processor time that is spent on them: reading holds up the process that is read
_SUBREAPER = 36


def below(root: int) -> list[int]:
    """Pids of the processes below ``root`` that have not ended."""
    found, waiting = [], [root]
    while waiting:
        here = Path(f"/proc/{waiting.pop()}/task")
        try:
            children = [int(child) for task in here.iterdir() for child in (task / "children").read_text().split()]
        except OSError:  # ended meanwhile
            continue
        waiting += children
        found += [child for child in children if not _ended(child)]
    return found


def _ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def pss_mb(processes: list[int]) -> float:
    """Proportional set size in MB (2**20): each page that processes share is divided among them, so that the sum counts it once."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


class Memory(threading.Thread):
    """Samples (Unix seconds, MB) of all processes below this one, until ``ended`` is set. Final."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended, self.samples = threading.Event(), list[tuple[float, float]]()

    def run(self) -> None:
        """Until ``ended``."""
        wait = EVERY
        while not self.ended.wait(wait):
            began = time.thread_time()  # not wall seconds: on a busy machine they are mostly waiting
            self.samples.append((time.time(), pss_mb(below(os.getpid()))))
            wait = min(MOST, max(EVERY, (time.thread_time() - began) / SHARE))


def end_all(seconds: float = 5.0) -> None:
    """Ends every process below this one, by pid: SIGTERM, then SIGKILL; and reaps all."""
    for which in (signal.SIGTERM, signal.SIGKILL):
        for process in below(os.getpid()):
            try:
                os.kill(process, which)
            except ProcessLookupError:
                continue
        if _wait_for_all(time.monotonic() + seconds):
            return


def _wait_for_all(until: float) -> bool:
    """Reaps until there is no child; False if the time is over before."""
    while time.monotonic() < until:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.005)
        except ChildProcessError:
            return True
    return False


def watch(spec: dict[str, Any]) -> dict[str, Any]:
    """The figures of one command, and its exit status (None: it was ended because the time was over)."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    load, memory = os.getloadavg()[0], Memory()
    with (Path(spec["cwd"]) / "output.log").open("wb") as log:
        began = time.time()
        process = subprocess.Popen(
            spec["command"], cwd=spec["cwd"], env=spec["environment"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        memory.start()
        until = time.monotonic() + spec["timeout"]
        try:
            status: int | None = process.wait(spec["timeout"])
        except subprocess.TimeoutExpired:
            status = None
        if status is not None and not spec["daemons"] and not _wait_for_all(until):
            status = None
        ended = time.time()
    memory.ended.set()
    memory.join()
    end_all()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "began": began, "ended": ended, "status": status, "cpu": used.ru_utime + used.ru_stime, "load": load,
        "memory": memory.samples,
    }  # fmt: skip


if __name__ == "__main__":
    # Ended from outside, it still ends what it started: services of a framework would stay otherwise.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    _spec = json.loads(Path(sys.argv[1]).read_text())
    try:
        (Path(_spec["cwd"]) / "measured.json").write_text(json.dumps(watch(_spec)))
    finally:
        end_all()
