"""A copy of this process that does something else beside it: what both have loaded is in memory once, and nothing is loaded again.

if may_fork():
    process = Forked("fedml.experiments.tracked.follow")     # calls its ``main``, with pipes for input, output and errors
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import selectors
import signal
import sys
import threading
import time
from contextlib import suppress
from subprocess import TimeoutExpired
from typing import NoReturn

from fedml import quiet

_NOT_BEFORE = ("torch", "pyarrow", "grpc", "ray", "mlflow", "IPython")  # start threads, or hold locks, that a copy would not have
_POLL_SECONDS, _BLOCK = 0.01, 1 << 16


def may_fork() -> bool:
    """Whether a copy of this process would be whole: it has no threads but that of ``fedml.quiet``, and no library that starts some."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and thread.name != quiet.THREAD]
    return sys.platform == "linux" and not others and not any(name in sys.modules for name in _NOT_BEFORE)


class Forked:
    """The copy, with the part of ``subprocess.Popen`` that its user needs. Final."""

    def __init__(self, module: str) -> None:
        ours, theirs = [], []
        for writes in (True, False, False):  # input, output, errors
            read, write = os.pipe()
            ours.append(write if writes else read)
            theirs.append(read if writes else write)
        sys.stdout.flush()
        sys.stderr.flush()
        gc.freeze()  # a collection would write to the pages that both have
        self.pid = os.fork()
        if self.pid == 0:
            _become(module, theirs)
        for descriptor in theirs:
            os.close(descriptor)
        self.stdin = os.fdopen(ours[0], "w", encoding="utf-8")
        self._out, self._errors = ours[1:]
        self.returncode: int | None = None

    def kill(self) -> None:
        """Ends it at once."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Closes its input and waits for its end: output and errors. Raises ``TimeoutExpired`` after ``timeout`` seconds."""
        with suppress(BrokenPipeError):
            self.stdin.close()
        until = float("inf") if timeout is None else time.monotonic() + timeout
        said: dict[int, bytes] = {self._out: b"", self._errors: b""}
        with selectors.DefaultSelector() as waiting:
            for descriptor in said:
                waiting.register(descriptor, selectors.EVENT_READ)
            while waiting.get_map():
                if time.monotonic() > until:
                    raise TimeoutExpired("fork", timeout or 0.0)
                for key, _ in waiting.select(1.0):
                    block = os.read(key.fd, _BLOCK)
                    said[key.fd] += block
                    if not block:
                        waiting.unregister(key.fd)
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                raise TimeoutExpired("fork", timeout or 0.0)
            else:
                time.sleep(_POLL_SECONDS)
        for descriptor in said:
            os.close(descriptor)
        out, errors = (text.decode("utf-8", "replace") for text in said.values())
        return out, errors


def _become(module: str, pipes: list[int]) -> NoReturn:
    """In the copy: a session of its own, the pipes in the place of its parent's files, and then ``main`` of the module."""
    try:
        os.setsid()  # the keyboard stops the run, not its record
        for number, descriptor in enumerate(pipes):
            os.dup2(descriptor, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # with the ends of its own pipes, which it would wait for
        quiet.forked()
        logging.getLogger().handlers.clear()
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "r" if n == 0 else "w", encoding="utf-8", closefd=False) for n in range(3))
        importlib.import_module(module).main()
    except Exception as error:  # such as of the import: ``main`` says its own
        print(f"error: {quiet.told(error)}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)  # ``main`` exits by itself
