"""``fedml status``: what a run does, from its folder alone: its events, and while it runs ``live.json`` (``fedml.runs.live``).

print(text_of(status_of(Path("fedml-runs/heart-20260131-101500-3fa2b1"))))
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from fedml.errors import InputError
from fedml.flower.parent import LOCK, has_left
from fedml.runs.events import NO_END, Agreed, Event, Final, Round, Start, Step
from fedml.runs.live import FILE, Live, doing_of, dropped, long, read_live, words_of
from fedml.runs.log import EVENTS, STUDY, last, read_log
from fedml.study.study import Study, parse_study

_STALE_SECONDS = 45.0  # a server that works writes every 10 s
_PACE = 5  # rounds from whose times the end is estimated


@dataclass(frozen=True)
class SiteStatus:
    """One site: what it does, in plain words; bytes to and from it, in the exchanges that are known."""

    name: str
    doing: str
    bytes_out: int
    bytes_in: int


@dataclass(frozen=True)
class Status:
    """A run now. ``state``: running, finished, failed, stopped, or ended (without a word). ``end``: estimated, Unix seconds; None: unknown.
    ``note``: why it failed, or what to do."""

    run: str
    study: str
    engine: str
    state: str
    doing: str
    round: int
    rounds: int
    seconds: float
    end: float | None
    note: str
    sites: tuple[SiteStatus, ...]


def status_of(run: Path, now: float | None = None) -> Status:
    """Reads a run's folder.

    Args:
        now: Unix seconds; None: the clock's.

    Raises:
        InputError: it is no run's folder, or its files cannot be read.
    """
    study, events = _read(run)
    now = time.time() if now is None else now
    start, end = next(e for e in events if isinstance(e, Start)), last(events, NO_END)
    live = None if end.came else read_live(run)
    rounds = [e for e in events if isinstance(e, Round)]
    state = end.status if end.came else "running" if _works(run, live, now, len(events) == 1) else "ended"
    done = rounds[-1].round if rounds else 0
    total = study.federation.rounds if start.job == "train" else 0
    sites = tuple(_site(study, name, state, events, live, now, name in dropped(run)) for name in study.federation.sites)
    finish = None
    if state == "running" and rounds and total:
        pace = median(e.seconds for e in rounds[-_PACE:])
        finish = max(rounds[-1].time + pace * (total - done), now)
    note = end.reason
    if state == "ended":
        note = "it ended without a result, with its process or its machine; the folder has all rounds that were complete"
    return Status(
        run=start.run_id, study=study.study.name, engine=start.engine, state=state, doing=_doing(live, events, total), round=done,
        rounds=total, seconds=(end.time if end.came else now if state == "running" else events[-1].time) - start.time, end=finish,
        note=note, sites=sites,
    )  # fmt: skip


def _read(run: Path) -> tuple[Study, list[Event]]:
    if not run.exists():
        raise InputError(f"{run}: does not exist; give a run's folder, such as one of fedml-runs.")
    if not (run / EVENTS).is_file() or not (run / STUDY).is_file():
        inside = sorted(path.parent.name for path in run.glob(f"*/{EVENTS}")) if run.is_dir() else []
        which = f"it has the runs {', '.join(inside[-3:])}; give one of them" if inside else "give a folder that `fedml run` wrote"
        raise InputError(f"{run}: is not a run's folder (no {EVENTS} or {STUDY}); {which}.")
    try:
        study, events = parse_study((run / STUDY).read_text(encoding="utf-8")), read_log(run)[0]
    except (OSError, ValueError) as error:
        raise InputError(f"{run}: cannot be read ({error}); use the unchanged folder of the run.") from error
    if not any(isinstance(e, Start) for e in events):
        raise InputError(f"{run / EVENTS}: has no event of a start; use the unchanged folder of the run.")
    return study, events


def _works(run: Path, live: Live | None, now: float, asked: bool) -> bool:
    """Whether a server works on the run: it holds its lock. ``asked``: nothing has happened but the start."""
    if (run / LOCK).exists() and not has_left(run):
        return True  # also where the machine sleeps, and writes nothing
    if (run / LOCK).exists():
        return False
    newest = max((path.stat().st_mtime for path in (run / EVENTS, run / FILE) if path.exists()), default=0.0)
    return now - newest < _STALE_SECONDS and live is None and asked  # its server has just been asked for


def _doing(live: Live | None, events: list[Event], total: int) -> str:
    if live is None or not live.phase:
        return last(events, Step(doing="", done=0, total=None, log=False)).doing
    return doing_of(live, total)


def _site(study: Study, name: str, state: str, events: list[Event], live: Live | None, now: float, gone: bool) -> SiteStatus:
    exchanges = [e for e in events if isinstance(e, Round | Final)]
    rows = [e.sites[name] for e in exchanges if name in e.sites]
    out, into = sum(row["bytes_out"] for row in rows), sum(row["bytes_in"] for row in rows)
    now_there = None if live is None else live.sites.get(name)
    if now_there is not None:
        out, into = max(out, now_there.bytes_out), max(into, now_there.bytes_in)
    if gone:
        return SiteStatus(name, "removed by the coordinator", out, into)
    if state == "running" and now_there is not None and live is not None:
        return SiteStatus(name, words_of(now_there, live, now), out, into)
    if state == "running":
        agreed = next((e for e in events if isinstance(e, Agreed)), None)
        return SiteStatus(name, "waiting" if agreed is None or name in agreed.sites else "takes no part", out, into)
    took = [e.round for e in exchanges if isinstance(e, Round) and name in e.sites]
    missed = [reason for e in exchanges if (reason := e.refused.get(name))]
    parts = [f"took part in {len(took)} rounds"] if took or name in study.federation.training else ["only tests the final model"]
    parts += [f"missed {len(missed)}: {', '.join(dict.fromkeys(missed))}"] if missed else []
    return SiteStatus(name, "; ".join(parts), out, into)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def text_of(status: Status, now: float | None = None) -> str:
    """Some lines for a person."""
    now = time.time() if now is None else now
    lines = [
        f"{status.run} ({status.engine}): {status.state} after {long(status.seconds)}, {status.round} of {status.rounds} rounds complete"
    ]
    if not status.rounds:
        lines = [f"{status.run} ({status.engine}): {status.state} after {long(status.seconds)}"]
    if status.state == "running" and status.doing:
        lines.append(f"  {status.doing}")
    width = max(len(site.name) for site in status.sites)
    lines += [f"  {site.name.ljust(width)}  {site.doing}" for site in status.sites]
    out, into = sum(site.bytes_out for site in status.sites), sum(site.bytes_in for site in status.sites)
    lines.append(f"  {_size(out)} to the sites, {_size(into)} from them")
    if status.end is not None:
        when = datetime.fromtimestamp(status.end).strftime("%Y-%m-%d %H:%M")
        lines.append(f"  estimated end of training: {when} (in {long(status.end - now)}, at the pace of the last rounds)")
    if status.note:
        lines.append(f"  {status.note}")
    return "\n".join(lines)


def as_json(status: Status) -> dict[str, Any]:
    """The object of ``--json``."""
    return asdict(status)


def ended(status: Status) -> bool:
    """Whether nothing more will come."""
    return status.state != "running"
