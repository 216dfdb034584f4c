"""What a run is doing now: RUN/live.json, written while the server works and removed at its end. It is no part of the record.

    live = read_live(run)      # None: nothing works on the run, or it has just begun
    live.sites["oslo"].state   # "asked", "replied", "refused"

A request of ``fedml drop`` is a file in RUN/dropped/, named like the site; the server reads the names.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedml.wire.phases import Phase

FILE, DROPPED = "live.json", "dropped"
SILENT_SECONDS = 60.0  # without a sign from a site, which gives one every 15 s
_DOING: dict[str, str] = {
    Phase.DESCRIBE: "asking the sites what they have",
    Phase.VOXELS: "asking for intensity histograms",
    Phase.STATISTICS: "asking for sums of the training persons",
    Phase.EVALUATE: "the last evaluation",
}


@dataclass
class LiveSite:
    """One site in the exchange that goes on. Times are Unix seconds, None where it is not known. Final.

    Args:
        state: asked, replied or refused. reason: the code of a refusal.
        percent: of the training of this round, in tens; None: not told.
        heard: when the SuperLink last heard of it.
        bytes_out, bytes_in: over the whole run.
    """

    state: str = "asked"
    reason: str = ""
    percent: int | None = None
    heard: float | None = None
    bytes_out: int = 0
    bytes_in: int = 0


@dataclass
class Live:
    """An exchange that goes on: its phase and round, when it began, and who was asked. ``written``: when the file was. Final."""

    phase: str = ""
    round: int = 0
    began: float = 0.0
    written: float = 0.0
    sites: dict[str, LiveSite] = field(default_factory=dict)


def write_live(run: Path, live: Live) -> None:
    """Writes the file in one piece. It can be lost with the machine, so the disk is not waited for; a full disk does not stop a run."""
    partial = run / f".{FILE}.partial"
    with suppress(OSError):
        partial.write_text(json.dumps(asdict(live)), encoding="utf-8")
        os.replace(partial, run / FILE)


def read_live(run: Path) -> Live | None:
    """The file's content; None if there is none or it cannot be read."""
    try:
        found = json.loads((run / FILE).read_text(encoding="utf-8"))
        return Live(**{**found, "sites": {str(name): LiveSite(**values) for name, values in found["sites"].items()}})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def end_live(run: Path) -> None:
    """Removes the file: nothing goes on any longer."""
    for name in (FILE, f".{FILE}.partial"):
        with suppress(OSError):
            (run / name).unlink(missing_ok=True)


def dropped(run: Path) -> frozenset[str]:
    """The sites that the coordinator removed from the run."""
    try:
        return frozenset(path.name for path in (run / DROPPED).iterdir())
    except OSError:
        return frozenset()


def drop(run: Path, site: str) -> None:
    """Asks the server to go on without ``site``: from now on, in this run.

    Raises:
        OSError: the file cannot be written.
    """
    (run / DROPPED).mkdir(exist_ok=True)
    (run / DROPPED / site).touch()


def doing_of(live: Live, rounds: int) -> str:
    """What the server does, in plain words; ``rounds``: of the study."""
    if live.phase == Phase.ROUND:
        return f"training, round {live.round} of {rounds}"
    return _DOING.get(live.phase, live.phase)


def words_of(site: LiveSite, live: Live, now: float) -> str:
    """What a site does, in plain words. ``now``: Unix seconds."""
    if site.state == "refused":
        return f"refused: {site.reason}"
    if site.state == "replied":
        return "replied"
    if site.heard is not None and now - site.heard >= SILENT_SECONDS:
        return f"silent for {long(now - site.heard)}"
    if live.phase == Phase.ROUND:
        return "training" if site.percent is None else f"training {site.percent} %"
    return "computing"


def long(seconds: float) -> str:
    """A time for a person: ``40 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
