"""Shared parts of the benchmarks: paired medians, time and peak memory of a child process, peak memory of this process, the machine's line.

The kernel counts the parent's peak memory as the child's (``ru_maxrss``), so the peak of a child is read from ``/proc`` while it runs.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from fedml.runs.software import git_commit

Measure = Callable[[], float]


@dataclass(frozen=True)
class Ended:
    """A process that ended without an error: wall seconds, CPU seconds, and the peak resident memory of it or of a child, in MB."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclass
class Pairs:
    """Times of ours and of the peer, measured in turn: ``peer[i]`` directly after ``ours[i]``."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median of ours / peer over the pairs, in which noise that lasts longer than a pair cancels."""
        return statistics.median(a / b for a, b in zip(self.ours, self.peer, strict=True))

    def row(self, name: str, scale: float = 1.0, digits: int = 2) -> tuple[str, ...]:
        """Name, both medians, the median ratio, the range of the ratios."""
        each = [a / b for a, b in zip(self.ours, self.peer, strict=True)]
        medians = (f"{statistics.median(times) * scale:.{digits}f}" for times in (self.ours, self.peer))
        return (name, *medians, f"{self.ratio:.2f}", f"{min(each):.2f} to {max(each):.2f}")


def paired(ours: Measure, peer: Measure, repeats: int) -> Pairs:
    """Measures both ``repeats`` times in turn: A B A B."""
    pairs = Pairs()
    for _ in range(repeats):
        pairs.ours.append(ours())
        pairs.peer.append(peer())
    return pairs


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def run_process(command: Sequence[str], cwd: Path, environment: Mapping[str, str] | None = None) -> Ended:
    """Runs ``command`` to its end.

    Raises:
        RuntimeError: the command failed; with the end of its output.
    """
    log = cwd / "output.log"
    with log.open("wb") as out:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=cwd, env={**os.environ, **(environment or {})}, stdout=out, stderr=out)
        peak, ended = [0.0], threading.Event()
        looking = threading.Thread(target=_look, args=(process.pid, peak, ended), daemon=True)
        looking.start()
        _, status, used = os.wait4(process.pid, 0)
        took = time.perf_counter() - began
        ended.set()
        looking.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text(errors='replace')[-4000:]}")
    return Ended(took, used.ru_utime + used.ru_stime, peak[0])


def _look(process: int, peak: list[float], ended: threading.Event) -> None:
    """Keeps the largest peak of resident memory (VmHWM, MB) of the process and of each of its children."""
    while not ended.wait(0.02):
        waiting = [process]
        while waiting:
            here = Path(f"/proc/{waiting.pop()}")
            with suppress(OSError, StopIteration):
                lines = (here / "status").read_text().splitlines()
                peak[0] = max(peak[0], next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024)
                waiting += [int(child) for child in (here / "task" / here.name / "children").read_text().split()]


class PeakMemory:
    """In the block, a thread samples this process's resident memory; ``extra_mb`` is the peak minus that at the start, in MB."""

    def __init__(self, every: float = 0.001) -> None:
        self.every, self.extra_mb = every, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._start = self._peak = resident_mb()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.extra_mb = max(self._peak, resident_mb()) - self._start

    def _sample(self) -> None:
        while not self._stop.wait(self.every):
            self._peak = max(self._peak, resident_mb())


def resident_mb() -> float:
    """Resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def machine() -> str:
    """One line: cores, Python, packages, commit."""
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "flwr", "mlflow", "numpy"))
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}, commit {git_commit(Path(__file__).parent)[:12]}"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a plain table."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    print(f"\n{title}")
    for line in (head, *rows):
        print("  " + "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))))
