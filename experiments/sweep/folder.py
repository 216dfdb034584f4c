"""The folder of a sweep, which a repeated command goes on with.

RUNS/sweep-heart-1a2b3c4d/sweep.json     the search, its runs (folders next to this one), the result
RUNS/heart-20260131-101500-3fa2b1/       each run, as `fedml run` writes it, and sweep_run.json (fedml.tracking.members)
"""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedml.errors import InputError, RunError
from fedml.experiments.sweep.plan import Sweep
from fedml.experiments.sweep.values import plain
from fedml.runs.log import STUDY, write_whole
from fedml.tracking.sweeps import SWEEP

_SCHEMA = 1


@dataclass(frozen=True)
class Entry:
    """The newest run of a study. ``run``: its place in the folder of runs. ``data``: key of what else its result depends on
    (``plan.Data.key``). ``begun``: how many runs of the study were begun; each has released what it sent before it ended."""

    run: str
    data: str
    begun: int = 1


@dataclass
class State:
    """The contents of ``sweep.json``. ``entries``: SHA-256 of a run's study -> the newest run of it."""

    folder: Path
    sweep: Sweep
    id: str
    entries: dict[str, Entry] = field(default_factory=dict)

    def note(self, sha256: str, run: str, data: str) -> None:
        """Adds a run, before it starts."""
        self.entries[sha256] = Entry(run, data, self.begun(sha256) + 1)
        self.write(None)

    def begun(self, sha256: str) -> int:
        """Number of runs of a study that were begun."""
        return self.entries[sha256].begun if sha256 in self.entries else 0

    def write(self, result: dict[str, Any] | None) -> None:
        """Writes the file. ``result``: what MLflow shows of the sweep (``fedml.tracking.sweeps``); None while runs are missing."""
        search = self.sweep.search
        found = {
            "schema": _SCHEMA,
            "id": self.id,
            "identity": self.sweep.identity,
            "study": self.sweep.study.study.name,
            "study_sha256": self.sweep.study.sha256,
            "grid": plain(search.space),
            "seeds": list(search.seeds),
            "random": search.random,
            "optuna": search.optuna,
            "runs": {sha256: asdict(entry) for sha256, entry in self.entries.items()},
            "result": result,
        }
        write_whole(self.folder / SWEEP, (json.dumps(found, indent=1) + "\n").encode())


@contextmanager
def opened(sweep: Sweep, runs: Path) -> Iterator[State]:
    """The state of the sweep in ``runs``, as an earlier command left it, or a new one; no other process can open it meanwhile.

    Raises:
        RunError: another process runs this sweep. InputError: the file cannot be read.
    """
    folder = runs / sweep.folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"{folder}: another process runs this sweep; wait until it has ended.") from error
        if (folder / SWEEP).exists():
            yield _read(folder, sweep)
        else:
            state = State(folder, sweep, f"{sweep.folder}-{secrets.token_hex(3)}")
            write_whole(folder / STUDY, sweep.study.canonical.encode())
            state.write(None)
            yield state


def _read(folder: Path, sweep: Sweep) -> State:
    try:
        found = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
        if found["schema"] != _SCHEMA or found["identity"] != sweep.identity:
            raise ValueError("it is of another sweep or version")
        entries = {str(sha256): Entry(str(row["run"]), str(row["data"]), int(row["begun"])) for sha256, row in found["runs"].items()}
        if any(Path(entry.run).name != entry.run for entry in entries.values()):
            raise ValueError("a run is not in the folder of runs")
        return State(folder, sweep, str(found["id"]), entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / SWEEP}: cannot be read ({error}); delete the folder to start the sweep again.") from error
