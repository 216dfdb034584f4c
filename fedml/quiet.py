"""Keeps what third-party libraries say to themselves: their log records, warnings and lines on standard error can quote values of a file,
such as a person's name. In their place a sentence with a count is shown.

    with hush():                   # while files of persons are read: whichever program imports this, and however it has set up logging
        pydicom.dcmread(path)
    hush_process()                 # of a command: for good, and also what compiled libraries (htslib, libtiff, GLib) write to descriptor 2
    tell()                         # "3 messages of libraries are not shown, because ...: pydicom 2, nibabel 1"; "" if there is none

Records of loggers below ``fedml`` and ``__main__`` are shown as they are. Every other record gets a level below all others when it is
made, so that no handler takes it, not one that a library adds to its own logger (nibabel, mlflow) either, and whatever level a library sets
its logger to when it is imported (pydicom).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from fedml.errors import InputError, RunError, SiteError

NOTE = "note: "  # before the line about libraries on standard error
THREAD = "quiet"  # of ``hush_process``
_OURS = ("fedml", "__main__")
_BELOW_ALL = -1  # a handler takes a record from its own level on, which is at least 0
_BLOCK = 2**16
_NATIVE = "compiled code"
_lock = threading.Lock()
_seen: Counter[str] = Counter()
_blocks = 0  # how many blocks of ``hush`` are entered, in all threads: a library may log from a thread of its own
_whole = False  # the process is hushed for good
_shown: frozenset[str] = frozenset(_OURS)
_make: Callable[..., logging.LogRecord] = logging.LogRecord
_show: Callable[..., None] = warnings.showwarning
_pipe: tuple[threading.Thread, int] | None = None


def _count(name: str) -> None:
    with _lock:
        _seen[name] += 1


def _hushed() -> bool:
    return _whole or _blocks > 0


def _install() -> None:
    """Puts this module's factory of records and function of warnings in place; outside of ``hush`` they do what the earlier ones did."""
    global _make, _show
    with _lock:
        if logging.getLogRecordFactory() is not _record:
            _make = logging.getLogRecordFactory()
            logging.setLogRecordFactory(_record)
        if warnings.showwarning is not _warn:  # the end of a block of warnings.catch_warnings puts an earlier one back
            _show = warnings.showwarning
            warnings.showwarning = _warn


def _record(name: str, level: int, *rest: Any, **more: Any) -> logging.LogRecord:
    if not _hushed() or name.partition(".")[0] in _shown:
        return _make(name, level, *rest, **more)
    if level >= logging.WARNING:
        _count("warnings" if name == "py.warnings" else name.partition(".")[0])
    silent = logging.LogRecord(name, _BELOW_ALL, "", 0, "not shown", (), None)
    silent.levelname = logging.getLevelName(level)
    return silent


def _warn(message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
    if _hushed():
        _count(_package(filename))
    else:
        _show(message, category, filename, lineno, file, line)


def _package(filename: str) -> str:
    """The package that a file of code belongs to."""
    parts = Path(filename).parts
    for place in ("site-packages", "dist-packages"):
        if place in parts[:-1]:
            return parts[parts.index(place) + 1].removesuffix(".py")
    return "warnings"


@contextmanager
def hush() -> Iterator[None]:
    """Within the block, in every thread, no record and no warning of a third-party library is shown; they are counted."""
    global _blocks
    _install()
    with _lock:
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1


def hush_process(*, shown: Collection[str] = (), native: bool = True) -> None:
    """From now on nothing of third-party libraries is shown: no record, no warning, no text of an exception that ends a thread.

    ``shown``: names of loggers that are shown although they are not of this package. ``native``: nor what is written to descriptor 2
    without Python; ``sys.stderr`` then writes to a copy of it. It starts a thread.
    """
    global _whole, _pipe, _shown
    _install()
    _whole, _shown = True, frozenset((*_OURS, *shown))
    threading.excepthook = lambda args: _ended(args.exc_value)
    sys.unraisablehook = lambda raised: _ended(raised.exc_value)
    if not native or _pipe is not None:
        return
    sys.stderr.flush()
    try:
        kept, (out, into) = os.dup(2), os.pipe()
    except OSError:  # descriptor 2 is closed
        return
    os.dup2(into, 2)
    os.close(into)
    sys.stderr = os.fdopen(kept, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    thread = threading.Thread(target=_drain, args=(out,), name=THREAD, daemon=True)
    thread.start()
    _pipe = thread, kept


def _drain(out: int) -> None:
    """Counts lines until every writer has closed the pipe; keeps none."""
    while block := os.read(out, _BLOCK):
        lines = block.count(b"\n") or 1
        with _lock:
            _seen[_NATIVE] += lines
    os.close(out)


def release() -> None:
    """Closes the pipe of ``hush_process`` and waits until all that was written to it is counted."""
    global _pipe
    if _pipe is not None:
        thread, kept = _pipe
        _pipe = None
        os.dup2(kept, 2)
        thread.join(1.0)  # a child that still runs may hold the pipe open


def forked() -> None:
    """In a copy of a process (``os.fork``), which has not its thread: nothing is counted yet, and ``hush_process`` starts anew."""
    global _lock, _pipe
    _lock, _pipe = threading.Lock(), None
    _seen.clear()


def real_stderr() -> int:
    """The descriptor of this process's standard error, for a child that shows its own words."""
    return 2 if _pipe is None else _pipe[1]


def _ended(error: BaseException | None) -> None:
    if error is not None and not isinstance(error, SystemExit):
        logging.getLogger("fedml").error("a thread or a destructor failed: %s", told(error))


def tell() -> str:
    """How many messages were not shown since the last call, by library, as a sentence; "" if none was."""
    with _lock:
        found = sorted(_seen.items(), key=lambda pair: (-pair[1], pair[0]))
        _seen.clear()
    if not found:
        return ""
    total = sum(count for _, count in found)
    which = ", ".join(f"{name} {count}" for name, count in found)
    many = "message of a library is" if total == 1 else "messages of libraries are"
    return f"{total} {many} not shown, because {'it' if total == 1 else 'they'} can quote values of files: {which}"


def last_said(errors: str) -> str:
    """The last line of a command's standard error that is not the line about libraries; "" if there is none."""
    return next((line for line in reversed(errors.strip().splitlines()) if not line.startswith(NOTE)), "")


def told(error: BaseException) -> str:
    """The text of an exception of this package; of another its type and the line of code that raised it, because its text can quote values
    of a file."""
    if isinstance(error, InputError | SiteError | RunError) or type(error).__module__.partition(".")[0] in _OURS:
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({_place(frames[-1])})" if frames else ""
    return f"{type(error).__name__}{where}"


def frames_of(error: BaseException) -> str:
    """The traceback of an exception and of its causes: code and types, and texts only as in ``told``."""
    parts, seen = list[str](), set[int]()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        parts.append("".join([*_lines(one.__traceback__), told(one)]))
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return "\nafter\n".join(reversed(parts))


def _lines(found: TracebackType | None) -> list[str]:
    return ["Traceback (most recent call last):\n", *traceback.format_tb(found)] if found is not None else []


def _place(frame: traceback.FrameSummary) -> str:
    return f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}"
